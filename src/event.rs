//! What happens in the cluster, as this node sees it.

use std::net::SocketAddr;

use tokio::sync::broadcast;

pub use crate::core::members::MemberState;
use crate::ids::{Incarnation, NodeId};

/// Something that happened. Of one member, `MemberJoined` comes first and `MemberLeft` last; a link is up only while
/// its member is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A node became a member.
    MemberJoined {
        /// The node.
        id: NodeId,
        /// Its run.
        incarnation: Incarnation,
        /// Where it is dialled.
        addr: SocketAddr,
    },
    /// A member's state changed.
    MemberState {
        /// The node.
        id: NodeId,
        /// Its run.
        incarnation: Incarnation,
        /// The state now.
        state: MemberState,
    },
    /// A member was replaced by a newer run of the same node.
    MemberRestarted {
        /// The node.
        id: NodeId,
        /// The run now.
        incarnation: Incarnation,
        /// Where it is dialled now.
        addr: SocketAddr,
    },
    /// A member is no longer listed.
    MemberLeft {
        /// The node.
        id: NodeId,
        /// Its run.
        incarnation: Incarnation,
    },
    /// A link to a peer is up; its interest comes next.
    LinkUp {
        /// The peer.
        peer: NodeId,
        /// Its run.
        incarnation: Incarnation,
    },
    /// The peer's interest is known: it gets only what it wants from now on.
    LinkSynced {
        /// The peer.
        peer: NodeId,
    },
    /// A link ended.
    LinkDown {
        /// The peer.
        peer: NodeId,
        /// Why.
        reason: String,
    },
    /// Frames between this node and a peer were lost for good.
    Gap {
        /// The peer.
        peer: NodeId,
        /// How many.
        frames: u64,
        /// Whether they were on their way to the peer (or else from it).
        outgoing: bool,
    },
    /// This listener was too slow and missed so many events.
    Missed(u64),
}

/// The events of a node, from the moment of the call on. A slow listener misses the oldest and is told how many; it
/// never slows the node.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self { receiver }
    }

    /// The next event; none when the node has stopped.
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
