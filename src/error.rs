//! What can go wrong. The doc of each variant ends with its effect on the node.

use std::net::SocketAddr;

use crate::core::frame::FrameError;
use crate::ids::{Incarnation, NodeId};

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a node name. Nothing was started or changed.
    #[error("use {0:?} as a node id: give 1 to 63 letters, digits, '-', '_' or '.'")]
    Node(String),
    /// Not a namespace path. Nothing was started or changed.
    #[error("use {0:?} as a namespace: give a path of 1 to 255 bytes, for example \"/chat\"")]
    Namespace(String),
    /// A room name over the limit. The join or emit had no effect.
    #[error("use a room name of {len} bytes: the limit is {limit}")]
    Room {
        /// The length given, in bytes.
        len: usize,
        /// [`crate::config::LinkConfig::max_room_bytes`].
        limit: usize,
    },
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

/// Why a link was not made, or ended. The node lives on; a peer that is still a member is dialled again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No connection: nobody answers there, or it broke. Dialled again with backoff.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The other side refused the connection or its certificate was refused. Dialled again with backoff.
    #[error("{0}")]
    Tls(String),
    /// The other side speaks no protocol version of ours. Dialled again with backoff.
    #[error("no common protocol version: ours {ours}, theirs {theirs}")]
    Protocol {
        /// Our version.
        ours: u16,
        /// The range of the other side, as text.
        theirs: String,
    },
    /// The other side is in another cluster. Dialled again with backoff.
    #[error("wrong cluster: ours is {ours:?}, theirs is {theirs:?}; give both nodes the same cluster name")]
    Cluster {
        /// Our cluster name.
        ours: String,
        /// The cluster name of the other side.
        theirs: String,
    },
    /// The address is our own. It is not dialled again.
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
    /// Another link to the same run of that node stands or is preferred. That one is used.
    #[error("another link to the same node is kept")]
    Duplicate,
    /// The other side broke the protocol or a limit. The link is closed; the node lives on.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// Nothing was heard on the data stream for too long although the connection stood. The link is replaced.
    #[error("no heartbeat on the data stream for {0} ms")]
    Silent(u64),
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

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        Self::Violation(error.to_string())
    }
}

/// Why a frame for one peer was not queued. Counted per peer and reason; other peers are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DropReason {
    /// The peer's queue is at its bound in bytes. This frame was dropped (`drop_newest`).
    #[error("queue full")]
    QueueFull,
    /// The frame is over the size limit of a frame. Dropped for every peer.
    #[error("frame too large")]
    TooLarge,
    /// A volatile frame found no room in the connection, or no connection. Dropped.
    #[error("volatile and not writable")]
    NotWritable,
    /// The frame was older than the resume window while the peer was away. Dropped and reported as a gap.
    #[error("older than the resume window")]
    Expired,
    /// The peer left or died before the frame reached it. Dropped and reported as a gap.
    #[error("peer gone")]
    PeerGone,
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
