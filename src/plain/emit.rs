//! A selection of members, and one message on its way to them: whom it is for, then the bytes.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::{Inner, MemberId};
use crate::core::frame::{BroadcastHead, MAX_ROOMS, Op, PayloadKind};
use crate::error::IdError;
use crate::hub::Receipt;
use crate::ids::{NodeId, RoomKey};

/// The bit of a volatile message in the flags of a frame.
const VOLATILE: u8 = 0x04;
/// What a frame has beside its payload and its names, at most, in bytes: what `emit_wait` asks room for.
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

    /// As [`emit`](Self::emit), but first waits until the queue of every node that the message is for has room, for
    /// senders that want to be slowed down rather than lose messages. Others may use that room up in the meantime:
    /// what became of the message is in the receipt. A volatile or local message never waits.
    ///
    /// Nobody gets the message before the wait is over, here or elsewhere. Dropping the future before that sends
    /// nothing.
    ///
    /// # Errors
    /// Any [`EmitError`], without waiting; then nobody got it.
    pub async fn emit_wait(self, message: impl Into<Bytes>) -> Result<Receipt, EmitError> {
        self.check()?;
        let message = message.into();
        let (hub, ns) = (self.inner.hub(), self.inner.ns());
        let names: usize = self.rooms.iter().chain(&self.except).map(|room| room.len() + 2).sum();
        let bytes = message.len() + names + HEAD_BYTES;
        match &self.only {
            _ if self.local => {}
            Some((node, _)) => {
                let peer = hub.peers().into_iter().find(|peer| peer.id == *node);
                if let Some(peer) = peer {
                    peer.writable(bytes + ns.path().len()).await;
                }
            }
            None if self.volatile || (!self.everyone && self.rooms.is_empty()) => {}
            None => hub.writable(ns, &self.keys(), bytes).await,
        }
        Ok(self.send(&message))
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

    fn send(&self, message: &Bytes) -> Receipt {
        if self.only.is_some() {
            return self.order(Op::Deliver, &[], message);
        }
        if !self.everyone && self.rooms.is_empty() {
            return Receipt::default();
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
            return Receipt::default();
        }
        self.inner.hub().send(self.inner.ns(), &self.keys(), &head, message, self.volatile)
    }
}

/// Pushed one by one: for the usual one room that is much cheaper than `collect`.
#[inline]
pub(super) fn borrowed<'s>(rooms: &'s [Cow<'_, str>]) -> SmallVec<[&'s str; 4]> {
    let mut names = SmallVec::new();
    rooms.iter().for_each(|room| names.push(&**room));
    names
}
