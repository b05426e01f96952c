//! What happens in the cluster, as this node sees it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::broadcast;

pub use crate::core::members::MemberState;
use crate::hub::rooms::Listening;
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

/// Something that happened to a room.
///
/// Of one room on this node the order is `RoomCreated`, then `RoomJoined` and `RoomLeft` of its members, then
/// `RoomDeleted`: each exactly once for each change, in the order in which the changes took effect, however many threads
/// make them. A join of a room that the member is in already, and a leave of one that it is not in, is no change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RoomEvent {
    /// A room got its first member on this node.
    RoomCreated {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
    },
    /// A room lost its last member on this node.
    RoomDeleted {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
    },
    /// A member of this node joined a room.
    RoomJoined {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
        /// The Socket.IO id, or the [`MemberId`](crate::MemberId) of the plain API as a decimal number.
        socket: Arc<str>,
    },
    /// A member of this node left a room, or went.
    RoomLeft {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
        /// As in `RoomJoined`.
        socket: Arc<str>,
    },
    /// A room got its first member in the cluster. Only from [`Node::watch_rooms`](crate::Node::watch_rooms).
    RoomOpened {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
    },
    /// A room lost its last member in the cluster. Only from [`Node::watch_rooms`](crate::Node::watch_rooms).
    RoomClosed {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
    },
    /// This listener was too slow and missed so many events, those of other namespaces included.
    Missed(u64),
}

impl RoomEvent {
    /// The name that Socket.IO has for it (the first four), or one of the same kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RoomCreated { .. } => "create-room",
            Self::RoomDeleted { .. } => "delete-room",
            Self::RoomJoined { .. } => "join-room",
            Self::RoomLeft { .. } => "leave-room",
            Self::RoomOpened { .. } => "room-opened",
            Self::RoomClosed { .. } => "room-closed",
            Self::Missed(_) => "missed",
        }
    }

    /// The path of the namespace and the room; none for [`Missed`](Self::Missed).
    pub fn place(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        match self {
            Self::RoomCreated { ns, room }
            | Self::RoomDeleted { ns, room }
            | Self::RoomJoined { ns, room, .. }
            | Self::RoomLeft { ns, room, .. }
            | Self::RoomOpened { ns, room }
            | Self::RoomClosed { ns, room } => Some((ns, room)),
            Self::Missed(_) => None,
        }
    }
}

/// The room events of a node, from the moment of the call on. A slow listener misses the oldest and is told how many
/// ([`Config::room_event_buffer`](crate::Config::room_event_buffer)); it never slows the node.
#[derive(Debug)]
pub struct RoomEvents {
    receiver: broadcast::Receiver<RoomEvent>,
    only: Option<Arc<str>>,
    /// While it lives, events are made.
    _listening: Listening,
}

impl RoomEvents {
    pub(crate) fn new(receiver: broadcast::Receiver<RoomEvent>, listening: Listening) -> Self {
        Self { receiver, only: None, _listening: listening }
    }

    /// Only the events of one namespace, by its path. [`RoomEvent::Missed`] still counts those of all namespaces.
    #[must_use]
    pub fn only(self, ns: impl Into<Arc<str>>) -> Self {
        Self { only: Some(ns.into()), ..self }
    }

    /// The events of all namespaces that were sent and not read yet.
    pub(crate) fn waiting(&self) -> u64 {
        self.receiver.len() as u64
    }

    /// The next event of any namespace, if there is one now.
    pub(crate) fn try_recv(&mut self) -> Option<RoomEvent> {
        match self.receiver.try_recv() {
            Ok(event) => Some(event),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(RoomEvent::Missed(missed)),
            Err(_) => None,
        }
    }

    /// The next event; none when the node has stopped.
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<RoomEvent> {
        loop {
            let event = match self.receiver.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(missed)) => RoomEvent::Missed(missed),
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            let wanted = match (&self.only, event.place()) {
                (Some(only), Some((ns, _))) => only == ns,
                _ => true,
            };
            if wanted {
                return Some(event);
            }
        }
    }
}
