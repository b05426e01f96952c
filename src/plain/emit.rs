//! A selection of members, and one message on its way to them: whom it is for, then the bytes.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::{Inner, MemberId};
use crate::core::frame::{BroadcastHead, MAX_ROOMS, Op, PayloadKind};
use crate::error::IdError;
use crate::hub::Receipt;
use crate::hub::waits::Patience;
use crate::ids::{NodeId, RoomKey};

/// The bit of a volatile message in the flags of a frame.
const VOLATILE: u8 = 0x04;
/// What a frame for one member has beside its payload and the path, at most, in bytes: what `emit_wait` asks room for.
const HEAD_BYTES: usize = 64;

/// A message that could not be sent. Nobody got it, here or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// A room name is unusable. Nothing was sent.
    #[error(transparent)]
    Id(#[from] IdError),
    /// More rooms than one frame can name. Nothing was sent.
    #[error("emit to or except {got} rooms: the limit is {limit}")]
    TooManyRooms {
        /// The rooms given.
        got: usize,
        /// The limit, each for the targeted and for the excepted rooms.
        limit: usize,
    },
    /// The data of a server event cannot be encoded. Nothing was sent.
    #[error("encode the data of the event: {0}")]
    Data(String),
    /// The data of a server event is over what one frame takes. Nothing was sent.
    #[error("emit an event with {got} bytes of data: the limit is {limit}")]
    TooLarge {
        /// The length of the data, in bytes.
        got: usize,
        /// The limit: what [`crate::config::LinkConfig::max_frame_bytes`] leaves beside the names.
        limit: usize,
    },
}

/// Names of rooms: one name, or an array, slice or `Vec` of names. Names are not copied unless they have to be.
pub trait Rooms<'a> {
    /// The names.
    fn names(self) -> impl Iterator<Item = Cow<'a, str>>;
}

impl<'a> Rooms<'a> for &'a str {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        std::iter::once(Cow::Borrowed(self))
    }
}

impl<'a> Rooms<'a> for &'a String {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        std::iter::once(Cow::Borrowed(self.as_str()))
    }
}

impl<'a> Rooms<'a> for String {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        std::iter::once(Cow::Owned(self))
    }
}

impl<'a, T: Into<Cow<'a, str>>, const N: usize> Rooms<'a> for [T; N] {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        self.into_iter().map(Into::into)
    }
}

impl<'a, T: Into<Cow<'a, str>>> Rooms<'a> for Vec<T> {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        self.into_iter().map(Into::into)
    }
}

impl<'a, T: AsRef<str>, const N: usize> Rooms<'a> for &'a [T; N] {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        self.iter().map(|room| Cow::Borrowed(room.as_ref()))
    }
}

impl<'a, T: AsRef<str>> Rooms<'a> for &'a [T] {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        self.iter().map(|room| Cow::Borrowed(room.as_ref()))
    }
}

impl<'a, T: AsRef<str>> Rooms<'a> for &'a Vec<T> {
    fn names(self) -> impl Iterator<Item = Cow<'a, str>> {
        self.iter().map(|room| Cow::Borrowed(room.as_ref()))
    }
}

/// A selection of members, and what can be done with them: [`emit`](Self::emit) sends them a message,
/// [`emit_with_ack`](Self::emit_with_ack) one that they acknowledge; [`join`](Self::join), [`leave`](Self::leave) and
/// [`disconnect`](Self::disconnect) are done to them; [`sockets`](Self::sockets), [`rooms`](Self::rooms) and
/// [`count`](Self::count) ask about them.
#[must_use = "nothing happens before `emit` or what else is to be done with the selected members"]
pub struct Emit<'a> {
    pub(super) inner: &'a Inner,
    /// Who emits, on this node, and is left out.
    pub(super) sender: Option<MemberId>,
    /// The one member that is meant, and its node.
    pub(super) only: Option<(NodeId, MemberId)>,
    pub(super) everyone: bool,
    pub(super) rooms: SmallVec<[Cow<'a, str>; 2]>,
    pub(super) except: SmallVec<[Cow<'a, str>; 1]>,
    pub(super) local: bool,
    volatile: bool,
    /// How long questions wait; none for the setting.
    pub(super) timeout: Option<Duration>,
}

impl<'a> Emit<'a> {
    #[inline]
    pub(super) fn all(inner: &'a Inner, sender: Option<MemberId>) -> Self {
        let (rooms, except) = (smallvec![], smallvec![]);
        let (everyone, local, volatile) = (true, false, false);
        Self { inner, sender, only: None, everyone, rooms, except, local, volatile, timeout: None }
    }

    pub(super) fn member(inner: &'a Inner, node: NodeId, member: MemberId) -> Self {
        Self { only: Some((node, member)), ..Self::all(inner, None) }
    }

    #[inline]
    pub(super) fn to(inner: &'a Inner, sender: Option<MemberId>, rooms: impl Rooms<'a>) -> Self {
        let mut emit = Self { everyone: false, ..Self::all(inner, sender) };
        rooms.names().for_each(|room| emit.rooms.push(room));
        emit
    }

    /// Leaves out the members of these rooms, also those who are in a targeted room. May be called again for more.
    pub fn except(mut self, rooms: impl Rooms<'a>) -> Self {
        rooms.names().for_each(|room| self.except.push(room));
        self
    }

    /// Only members on this node.
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// To other nodes only when it can go at once: it is dropped rather than queued, and never sent again. Members here
    /// get it in any case. For messages to rooms or everyone, without acknowledgement; it changes nothing else.
    pub fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// Sends the message: to the members here at once, then to the queues of the nodes that have such members. Never
    /// waits. What a queue had no room for is in the receipt.
    ///
    /// # Errors
    /// Any [`EmitError`]; then nobody got it.
    pub fn emit(self, message: impl Into<Bytes>) -> Result<Receipt, EmitError> {
        self.check()?;
        Ok(self.send(&message.into()))
    }

    /// As [`emit`](Self::emit), but waits for room in full queues, for senders that want to be slowed down rather than lose
    /// messages: members here and nodes with room have the message on the first poll, the others as soon as they have room.
    /// At each node those who wait are served in the order in which they began to; an `emit` does not wait and may be before
    /// them. With [`QueuePolicy::Wait`](crate::config::QueuePolicy::Wait) the wait ends with the deadline, else it has no
    /// end; what became of the message is in the receipt. A volatile or local message never waits.
    ///
    /// To one member ([`member`](crate::Namespace::member)) the message goes when its node has room.
    ///
    /// Dropping the future gives up the nodes that have no room yet; nothing is counted for them.
    ///
    /// # Errors
    /// Any [`EmitError`], without waiting; then nobody got it.
    pub async fn emit_wait(self, message: impl Into<Bytes>) -> Result<Receipt, EmitError> {
        self.check()?;
        let message = message.into();
        let hub = self.inner.hub();
        let patience = hub.policy_patience().unwrap_or(Patience::Endless);
        if let Some((node, _)) = &self.only {
            let peer = hub.peers().into_iter().find(|peer| peer.id == *node).filter(|_| !self.local);
            let Some(peer) = peer else { return Ok(self.send(&message)) };
            let bytes = message.len() + self.inner.ns().path().len() + HEAD_BYTES;
            return Ok(match hub.turn(&peer, bytes, patience).await {
                Ok(_turn) => self.send(&message),
                Err(reason) => Receipt { targeted: 1, queued: 0, dropped: vec![(node.clone(), reason)] },
            });
        }
        if self.volatile {
            return Ok(self.send(&message));
        }
        let sent = self.send_by(&message, |keys, head| {
            hub.send_waiting(self.inner.ns(), keys, head, &message, patience)
        });
        let Some((mut receipt, waits)) = sent else { return Ok(Receipt::default()) };
        let Receipt { queued, dropped, .. } = waits.finish().await;
        receipt.queued += queued;
        receipt.dropped.extend(dropped);
        Ok(receipt)
    }

    #[inline]
    pub(super) fn check(&self) -> Result<(), EmitError> {
        let got = self.rooms.len().max(self.except.len());
        if got > MAX_ROOMS {
            return Err(EmitError::TooManyRooms { got, limit: MAX_ROOMS });
        }
        let hub = self.inner.hub();
        self.rooms.iter().try_for_each(|room| hub.check_room(room))?;
        self.except.iter().try_for_each(|room| hub.check_room(room))?;
        Ok(())
    }

    #[inline]
    pub(super) fn keys(&self) -> SmallVec<[RoomKey; 4]> {
        let ns = self.inner.ns();
        let mut keys = SmallVec::new();
        self.rooms.iter().for_each(|room| keys.push(ns.room(room)));
        keys
    }

    #[inline]
    fn send(&self, message: &Bytes) -> Receipt {
        if self.only.is_some() {
            return self.order(Op::Deliver, &[], message);
        }
        let sent = self.send_by(message, |keys, head| {
            self.inner.hub().send(self.inner.ns(), keys, head, message, self.volatile)
        });
        sent.unwrap_or_default()
    }

    /// Delivers to the members here, then has `elsewhere` send it to the other nodes; none when it is for nobody there.
    #[inline]
    fn send_by<R>(
        &self,
        message: &Bytes,
        elsewhere: impl FnOnce(&[RoomKey], &BroadcastHead<'_>) -> R,
    ) -> Option<R> {
        if !self.everyone && self.rooms.is_empty() {
            return None;
        }
        let head = BroadcastHead {
            ns: self.inner.ns().path(),
            kind: PayloadKind::Plain,
            flags: if self.volatile { VOLATILE } else { 0 },
            rooms: borrowed(&self.rooms),
            except: borrowed(&self.except),
            server: None,
            socket: None,
            attachments: smallvec![],
        };
        self.inner.deliver_here(&head.rooms, &head.except, self.sender, message);
        if self.local {
            self.inner.hub().counters.emits.local.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(elsewhere(&self.keys(), &head))
    }
}

/// Pushed one by one: for the usual one room that is much cheaper than `collect`.
#[inline]
pub(super) fn borrowed<'s>(rooms: &'s [Cow<'_, str>]) -> SmallVec<[&'s str; 4]> {
    let mut names = SmallVec::new();
    rooms.iter().for_each(|room| names.push(&**room));
    names
}
