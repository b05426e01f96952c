//! Questions and orders to another node, and the answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{BroadcastHead, list};

/// What is asked or ordered. Variants keep their order: the index is on the wire.
///
/// The kind of the payload in [`RequestHead::to`] says who is meant: with
/// [`Plain`](super::PayloadKind::Plain) everyone in the namespace, members of the plain API and sockets of Socket.IO
/// servers (but [`Deliver`](Self::Deliver) reaches members of the plain API only); else sockets of Socket.IO servers only.
/// Each answer of a list has a part of it ([`parts`](super::parts)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// Deliver the payload to the selected sockets and answer with what each acknowledges.
    Deliver,
    /// Make the selected sockets members of `names`.
    Join,
    /// Take the selected sockets out of `names`.
    Leave,
    /// Disconnect the selected sockets.
    Disconnect,
    /// The rooms of the selected sockets: lists of names.
    Rooms,
    /// The selected sockets: lists of [`SocketRecord`](super::SocketRecord).
    Sockets,
    /// How many sockets are selected: a `u64` from each front.
    Count,
    /// Every room of the namespace: lists of [`RoomRecord`](super::RoomRecord).
    RoomSizes,
    /// An event for the servers themselves, not for clients; its name is in `names`.
    ServerEvent,
    /// Every room of the node by name, and from then on each that is opened or closed.
    WatchRooms,
}

/// A question or an order. Counted: it is applied in order with broadcasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead<'a> {
    /// The number that the asker gave it, unique in its run; 0 for an order that nobody waits for.
    pub id: u64,
    /// What is asked or ordered.
    pub op: Op,
    /// How long the asker waits, in milliseconds; 0 when there is nothing to wait for or no limit.
    pub timeout_ms: u32,
    /// How many answers may be sent before the asker grants more.
    pub credit: u32,
    /// Rooms to join or to leave, or the name of a server event.
    #[serde(borrow, deserialize_with = "list::read")]
    pub names: SmallVec<[&'a str; 4]>,
    /// The sockets that it is about, with the namespace, and what the payload is.
    #[serde(borrow)]
    pub to: BroadcastHead<'a>,
}

impl RequestHead<'_> {
    /// How long sockets or handlers may take that answer; none for as long as it takes.
    pub fn timeout(&self) -> Option<Duration> {
        (self.timeout_ms > 0).then(|| Duration::from_millis(self.timeout_ms.into()))
    }
}

/// How a request ended at one node. Variants keep their order: the index is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndStatus {
    /// Everything asked for was answered.
    Done,
    /// The namespace is not on that node, so there was nothing to answer.
    NoNamespace,
    /// That node answers as many requests as it may; nothing was done.
    Busy,
    /// That node could not do it; the log there says why.
    Failed,
}
