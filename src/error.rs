//! What can go wrong. The doc of each variant ends with its effect on the node.

use std::net::SocketAddr;

use crate::core::frame::FrameError;
use crate::core::link::Stuck;
pub use crate::core::outbox::DropReason;
pub use crate::core::requests::TooManyRequests;
pub use crate::core::version::ProtocolError;
use crate::core::version::Protocols;
pub use crate::ids::IdError;
use crate::ids::{Incarnation, NodeId};
use crate::plain::EmitError;

/// Why the settings could not be taken from the environment. No node was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvError {
    /// A variable with our prefix that nothing reads. No node was started.
    #[error("read {name}: it is not a setting; did you mean {nearest}? docs/operations.md lists all of them")]
    Unknown {
        /// The variable.
        name: String,
        /// The known one that is most like it.
        nearest: String,
    },
    /// A value that cannot be used. No node was started.
    #[error("use {name}={value:?}: {reason}")]
    Value {
        /// The variable.
        name: String,
        /// Its value, cut to 100 characters. Never that of a secret.
        value: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// A value that is not UTF-8. No node was started.
    #[error("use {name}: its value is not UTF-8")]
    Encoding {
        /// The variable.
        name: String,
    },
    /// Variables that do not go together, or not alone. No node was started.
    #[error("use {0}")]
    Together(&'static str),
    /// The secret cannot be used. No node was started.
    #[error(transparent)]
    Secret(#[from] crate::quic::tls::SecretError),
}

/// Why a node did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is missing or unusable. Nothing was started.
    #[error("start the node: {0}")]
    Config(String),
    /// A name in the settings is unusable. Nothing was started.
    #[error(transparent)]
    Id(#[from] IdError),
    /// [`crate::config::ProtocolConfig::max`] is no version that this build speaks. Nothing was started.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The cluster secret is missing or unusable. Nothing was started.
    #[error(transparent)]
    Secret(#[from] crate::quic::tls::SecretError),
    /// Certificates could not be made from the secret. Nothing was started.
    #[error(transparent)]
    Tls(#[from] crate::quic::tls::TlsError),
    /// The UDP address could not be bound. Nothing was started.
    #[error(transparent)]
    Bind(#[from] crate::quic::endpoint::BindError),
    /// A seed is not `host:port`. Nothing was started.
    #[error(transparent)]
    Seed(#[from] crate::gossip::discovery::SeedError),
    /// Gossip did not start. Everything started before it was stopped again.
    #[error(transparent)]
    Gossip(#[from] crate::gossip::GossipError),
    /// The thread of the actors ended before it was ready. Everything started before it was stopped again.
    #[error("start the thread of the actors: {0}")]
    Actors(String),
    /// The QUIC endpoint could not be made. Nothing is left running.
    #[error("open the QUIC endpoint: {0}")]
    Endpoint(#[from] std::io::Error),
}

/// Why other nodes were not asked. Nothing was sent, and nothing is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Who is meant or what is to be sent is unusable. Nobody was asked.
    #[error(transparent)]
    Selection(#[from] EmitError),
    /// As many questions wait for answers as may ([`crate::config::LinkConfig::max_requests`]). Nobody was asked.
    #[error(transparent)]
    TooManyRequests(#[from] TooManyRequests),
    /// It was called on a thread that is in no tokio runtime, where no timeout can be kept. Nobody was asked.
    #[error("ask: call it in a tokio runtime")]
    NoRuntime,
}

/// The data for a member or socket is too long. Nothing was changed: what was set before stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("set data of {got} bytes: the limit is {limit}")]
pub struct DataError {
    /// The length given, in bytes.
    pub got: usize,
    /// The limit, in bytes: [`crate::config::LinkConfig::max_data_bytes`].
    pub limit: usize,
}

/// Why a link was not made, or ended. The node lives on; a peer that is still a member is dialled again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No connection: nobody answers there, or it broke. Dialled again with backoff.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The name of a seed has no address now. Looked up again with backoff.
    #[error("look up the name: {0}")]
    Unresolved(String),
    /// The other side refused the connection or its certificate was refused. Dialled again with backoff.
    #[error("{0}")]
    Tls(String),
    /// The other side speaks no protocol version of ours. Dialled again with backoff.
    #[error("no common protocol version: ours {ours}, theirs {theirs}")]
    Protocol {
        /// What this node speaks.
        ours: Protocols,
        /// What the other side says that it speaks.
        theirs: Protocols,
    },
    /// The other side is in another cluster. Dialled again with backoff.
    #[error("wrong cluster: ours is {ours:?}, theirs is {theirs:?}; give both nodes the same cluster name")]
    Cluster {
        /// Our cluster name.
        ours: String,
        /// The cluster name of the other side.
        theirs: String,
    },
    /// The address led to this node itself. It is dialled again after 30 s.
    #[error("that address is this node itself")]
    Own,
    /// The other side is an older run of a node whose newer run is known. Refused.
    #[error("older incarnation {got} of node {id}: incarnation {known} is known")]
    Stale {
        /// The node.
        id: NodeId,
        /// The incarnation that was refused.
        got: Incarnation,
        /// The incarnation that is known.
        known: Incarnation,
    },
    /// The other side has this node's id, and is newer. Refused; this node tells its operator.
    #[error("the node id {0} is in use by this node, too; give each node its own id")]
    Taken(NodeId),
    /// Another link to the same run of that node stands or is preferred. That one is used.
    #[error("another link to the same node is kept")]
    Duplicate,
    /// The other side broke the protocol or a limit. The link is closed; the node lives on.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// Nothing was heard on the data stream for too long although the connection stood. The link is replaced.
    #[error("no heartbeat on the data stream for {0} ms")]
    Silent(u64),
    /// The link stood, and got nothing done for too long. It is replaced; what was not applied is sent again.
    #[error("{part} for {ms} ms")]
    Stalled {
        /// What does not get on.
        part: Stuck,
        /// For how long, in milliseconds of this process' running.
        ms: u64,
    },
    /// As many emitters are linked, or were a moment ago, as may. This one is refused; it tries another node.
    #[error("this node serves {limit} emitters, which is the limit (link.max_emitters)")]
    TooManyEmitters {
        /// [`crate::config::LinkConfig::max_emitters`].
        limit: usize,
    },
    /// The other side closed the link and said why. Dialled again while it is a member.
    #[error("closed by the peer: {0}")]
    Closed(String),
    /// The peer said goodbye: it left the cluster. Not dialled again.
    #[error("the peer left the cluster")]
    Left,
    /// This node is leaving or stopping. Not dialled again.
    #[error("this node is stopping")]
    Stopping,
}

/// How [`LinkError::Closed`] begins.
const CLOSED: &str = "closed by the peer: ";

impl LinkError {
    /// The other side closed the link and said why, maybe in words that came from here: they are not said twice.
    pub(crate) fn closed(mut reason: &str) -> Self {
        while let Some(rest) = reason.strip_prefix(CLOSED) {
            reason = rest;
        }
        Self::Closed(if reason.is_empty() { "without a reason".to_owned() } else { reason.to_owned() })
    }

    /// The run for which the other side refused the run `own` of the node `id` as older: its [`LinkError::Stale`], which
    /// comes as text.
    pub(crate) fn newer_run(&self, id: &NodeId, own: Incarnation) -> Option<Incarnation> {
        let Self::Closed(text) = self else { return None };
        let before = format!("older incarnation {own} of node {id}: incarnation ");
        let newer = text.strip_prefix(&before)?.strip_suffix(" is known")?;
        newer.parse().ok().map(Incarnation).filter(|newer| *newer > own)
    }
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        Self::Violation(error.to_string())
    }
}

/// An address that cannot be used, with the reason. Nothing was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("use {addr} as the advertised address: {reason}")]
pub struct AdvertiseError {
    /// The address.
    pub addr: SocketAddr,
    /// What is wrong with it and what to do.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_as_older_learns_of_the_newer_run() {
        let id = NodeId::new("a").unwrap();
        let stale = LinkError::Stale { id: id.clone(), got: Incarnation(5), known: Incarnation(7) };
        assert_eq!(stale.to_string(), "older incarnation 5 of node a: incarnation 7 is known");
        let heard = LinkError::closed(&stale.to_string());
        assert_eq!(heard.newer_run(&id, Incarnation(5)), Some(Incarnation(7)));
        assert_eq!(heard.newer_run(&id, Incarnation(6)), None, "not this run");
        assert_eq!(heard.newer_run(&NodeId::new("b").unwrap(), Incarnation(5)), None);
        let older = LinkError::closed("older incarnation 5 of node a: incarnation 4 is known");
        assert_eq!(older.newer_run(&id, Incarnation(5)), None, "it makes no sense");
        assert_eq!(LinkError::closed("bye").newer_run(&id, Incarnation(5)), None);
    }

    #[test]
    fn what_the_peer_said_is_said_once() {
        let twice = LinkError::closed(&LinkError::closed("no room").to_string());
        assert_eq!(twice.to_string(), "closed by the peer: no room");
        assert_eq!(LinkError::closed("").to_string(), "closed by the peer: without a reason");
    }
}
