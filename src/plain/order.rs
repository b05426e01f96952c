//! What a selection means on the wire, and orders: members anywhere join, leave or are disconnected.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::emit::borrowed;
use super::{Emit, EmitError, Rooms};
use crate::core::frame::{BroadcastHead, MAX_ROOMS, Op, PayloadKind, RequestHead};
use crate::hub::Receipt;
use crate::hub::requests::Targets;

/// The bit of "everyone but" in the flags of a frame: the socket in its head is the sender. Without it that socket is
/// the only one that is meant.
pub(super) const BROADCAST: u8 = 0x02;

impl<'a> Emit<'a> {
    /// Makes the selected members, here and elsewhere, members of these rooms; Socket.IO sockets, too. Those here are
    /// when this returns. Never waits for other nodes: they do it in the order in which they get everything else from
    /// this node, so that messages from this node to the room reach them from now on. For messages from elsewhere it counts
    /// as soon as other nodes have heard of it, as after any join.
    ///
    /// ```no_run
    /// # fn doc(chat: &roomcast::Namespace) -> Result<(), roomcast::EmitError> {
    /// chat.to("lobby").join(["game-7", "players"])?;
    /// chat.to("game-6").leave("players")?;
    /// chat.to("banned").disconnect()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Any [`EmitError`]; then nobody joins anything.
    pub fn join(self, rooms: impl Rooms<'a>) -> Result<Receipt, EmitError> {
        self.order_rooms(Op::Join, rooms)
    }

    /// Takes the selected members, here and elsewhere, out of these rooms; else as [`join`](Self::join). A question that
    /// is asked on this node afterwards finds them out of it.
    ///
    /// # Errors
    /// Any [`EmitError`]; then nobody leaves anything.
    pub fn leave(self, rooms: impl Rooms<'a>) -> Result<Receipt, EmitError> {
        self.order_rooms(Op::Leave, rooms)
    }

    /// Disconnects the selected members, here and elsewhere; Socket.IO sockets, too. What was sent to them before from
    /// this node reaches them first. What becomes of a [`Member`](super::Member) then is said there.
    ///
    /// # Errors
    /// Any [`EmitError`]; then nobody is disconnected.
    pub fn disconnect(self) -> Result<Receipt, EmitError> {
        self.check()?;
        Ok(self.order(Op::Disconnect, &[], &Bytes::new()))
    }

    fn order_rooms(self, op: Op, rooms: impl Rooms<'a>) -> Result<Receipt, EmitError> {
        self.check()?;
        let names: SmallVec<[Cow<'a, str>; 4]> = rooms.names().collect();
        if names.len() > MAX_ROOMS {
            return Err(EmitError::TooManyRooms { got: names.len(), limit: MAX_ROOMS });
        }
        let hub = self.inner.hub();
        names.iter().try_for_each(|name| hub.check_room(name))?;
        if names.is_empty() {
            return Ok(Receipt::default());
        }
        Ok(self.order(op, &borrowed(&names), &Bytes::new()))
    }

    /// Orders something of the selected members, which must have been checked.
    pub(super) fn order(&self, op: Op, names: &[&str], message: &Bytes) -> Receipt {
        let socket = self.socket();
        let head = self.request_head(op, 0, names, socket.as_deref());
        let hub = self.inner.hub();
        self.with_targets(|targets, here| hub.order(targets, &head, message, here))
    }

    /// Who is asked: which other nodes, and whether this one.
    pub(super) fn with_targets<R>(&self, use_them: impl FnOnce(Targets<'_>, bool) -> R) -> R {
        let own = &self.inner.hub().id;
        match &self.only {
            Some((node, _)) if node == own => return use_them(Targets::Nodes(&[]), true),
            Some(_) if self.local => return use_them(Targets::Nodes(&[]), false),
            Some((node, _)) => return use_them(Targets::Nodes(std::slice::from_ref(node)), false),
            None => {}
        }
        let somebody = self.everyone || !self.rooms.is_empty();
        if self.local || !somebody {
            return use_them(Targets::Nodes(&[]), somebody);
        }
        use_them(Targets::Rooms(self.inner.ns(), &self.keys()), true)
    }

    /// The name of the only member, or of the sender, who is left out.
    pub(super) fn socket(&self) -> Option<String> {
        let only = self.only.as_ref().map(|(_, member)| *member);
        only.or(self.sender).map(|member| member.to_string())
    }

    pub(super) fn request_head<'h>(
        &'h self,
        op: Op,
        credit: u32,
        names: &[&'h str],
        socket: Option<&'h str>,
    ) -> RequestHead<'h> {
        let to = BroadcastHead {
            ns: self.inner.ns().path(),
            kind: PayloadKind::Plain,
            flags: if self.only.is_some() { 0 } else { BROADCAST },
            rooms: borrowed(&self.rooms),
            except: borrowed(&self.except),
            server: None,
            socket,
            attachments: smallvec![],
        };
        RequestHead { id: 0, op, timeout_ms: 0, credit, names: names.into(), to }
    }
}
