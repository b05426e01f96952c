//! What goes out: which broadcasts other nodes have to get, and their form on the wire.

use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};
use socketioxide_core::adapter::{BroadcastFlags, BroadcastOptions};
use socketioxide_core::packet::{Packet, PacketData};
use socketioxide_core::{Sid, Uid, Value};

use super::adapter::RoomcastAdapter;
use super::book::Keys;
use super::{Error, RoomcastAdapterCtr as State};
use crate::core::frame::{BroadcastHead, MAX_ROOMS, PayloadKind};
use crate::error::DropReason;
use crate::hub::waits::Waits;
use crate::hub::{Receipt, scope};
use crate::ids::Namespace;

/// Where a broadcast goes.
pub(super) enum Target {
    /// Sockets of this server only.
    Here,
    /// One other server.
    Server(Uid),
    /// Every node with members.
    Cluster,
}

impl Target {
    /// Whether sockets of this server can be among the selected.
    pub(super) fn is_here(&self) -> bool {
        !matches!(self, Self::Server(_))
    }
}

/// A broadcast on its way to other nodes.
pub(super) struct Outgoing {
    pub(super) value: Value,
    pub(super) opts: BroadcastOptions,
    pub(super) target: Target,
}

impl<E> RoomcastAdapter<E> {
    /// Who can be among the sockets that the options select.
    pub(super) fn target(&self, opts: &BroadcastOptions) -> Target {
        if opts.is_local(self.server()) || opts.server_id == Some(self.server()) {
            return Target::Here;
        }
        match opts.server_id {
            Some(server) => Target::Server(server),
            // Without rooms and without the flag the options select one socket, by id, or none. Other nodes' sockets
            // are addressed with their server.
            None if opts.rooms.is_empty() && !opts.has_flag(BroadcastFlags::Broadcast) => Target::Here,
            None => Target::Cluster,
        }
    }

    /// What other nodes have to get; none when nothing. Checks the limits even if there is no other node now.
    pub(super) fn outgoing(
        &self,
        packet: &Packet,
        opts: &BroadcastOptions,
    ) -> Result<Option<Outgoing>, Error> {
        let target = self.target(opts);
        if matches!(target, Target::Here) {
            self.state().hub.counters.emits.local.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let (PacketData::Event(value, None) | PacketData::BinaryEvent(value, None)) = &packet.inner else {
            return Err(Error::NotAnEvent);
        };
        self.check_names(opts)?;
        if self.state().hub.peer_count() == 0 {
            return Ok(None);
        }
        Ok(Some(Outgoing { value: value.clone(), opts: opts.clone(), target }))
    }

    /// Checks the limits of what selects sockets.
    pub(super) fn check_names(&self, opts: &BroadcastOptions) -> Result<(), Error> {
        let got = opts.rooms.len().max(opts.except.len());
        if got > MAX_ROOMS {
            return Err(Error::TooManyRooms { got });
        }
        for room in opts.rooms.iter().chain(&opts.except) {
            self.state().hub.check_room(room)?;
        }
        Ok(())
    }

    /// The namespace and the rooms that lead to the nodes of a target; none for this one.
    pub(super) fn place(&self, target: Target, opts: &BroadcastOptions) -> Option<(&Namespace, Keys)> {
        let State { servers, .. } = self.state();
        match target {
            Target::Here => None,
            Target::Cluster => Some((self.book().ns(), self.book().keys(&opts.rooms))),
            Target::Server(server) => Some((&servers.ns, smallvec![servers.room(server)])),
        }
    }

    /// The head for what has no value, with the options as they are.
    pub(super) fn head<'a>(&'a self, opts: &'a BroadcastOptions) -> BroadcastHead<'a> {
        BroadcastHead {
            ns: self.book().ns().path(),
            kind: self.kind(),
            flags: opts.flags(),
            rooms: opts.rooms.iter().map(AsRef::as_ref).collect(),
            except: opts.except.iter().map(AsRef::as_ref).collect(),
            server: opts.server_id.as_ref().map(|server| server.as_str()),
            socket: opts.sid.as_ref().map(Sid::as_str),
            attachments: SmallVec::new(),
        }
    }

    /// Hands a broadcast to the queues of the nodes that need it. What has no room waits when the policy says so.
    pub(super) fn send(&self, outgoing: Outgoing) -> Result<(Receipt, Option<Waits>), Error> {
        let Outgoing { value, opts, target } = outgoing;
        let volatile = opts.has_flag(BroadcastFlags::Volatile);
        let State { hub, .. } = self.state();
        let Some((ns, keys)) = self.place(target, &opts) else { return Ok(Default::default()) };
        if copies(&value) && !hub.wants(ns, &keys) {
            // What the hub would say, without the copy.
            hub.counters.emits.count(scope(ns, &keys), 0);
            return Ok(Default::default());
        }
        let (kind, payload, attachments) = encode(value);
        let head = BroadcastHead { kind, attachments, ..self.head(&opts) };
        let (receipt, waits) = match hub.policy_patience().filter(|_| !volatile) {
            None => (hub.send(ns, &keys, &head, &payload, volatile), None),
            Some(patience) => {
                let (receipt, waits) = hub.send_waiting(ns, &keys, &head, &payload, patience);
                (receipt, Some(waits).filter(|waits| !waits.is_empty()))
            }
        };
        // Full queues and the like are counted by the hub; a message that can never be sent is the caller's to know.
        if receipt.dropped.iter().any(|(_, reason)| *reason == DropReason::TooLarge) {
            let limit = hub.limits.max_frame_bytes;
            return Err(Error::TooLarge { bytes: payload.len(), limit });
        }
        Ok((receipt, waits))
    }
}

/// Whether [`encode`] copies.
fn copies(value: &Value) -> bool {
    matches!(value, Value::Str(_, Some(attachments)) if !attachments.is_empty())
}

/// The payload of a frame: the text with the attachments behind it, or the bytes. One copy if there are attachments,
/// else none.
pub(super) fn encode(value: Value) -> (PayloadKind, Bytes, SmallVec<[u32; 4]>) {
    match value {
        Value::Bytes(bytes) => (PayloadKind::SocketIoBytes, bytes, SmallVec::new()),
        Value::Str(text, attachments) => {
            let attachments = attachments.unwrap_or_default();
            if attachments.is_empty() {
                return (PayloadKind::SocketIoText, text.into(), SmallVec::new());
            }
            let total = attachments.iter().map(Bytes::len).sum::<usize>();
            let mut payload = BytesMut::with_capacity(text.len() + total);
            payload.extend_from_slice(text.as_bytes());
            attachments.iter().for_each(|attachment| payload.extend_from_slice(attachment));
            // A length over 4 GiB is over every limit of a frame, so the frame is refused anyway.
            let lengths = attachments.iter().map(|a| u32::try_from(a.len()).unwrap_or(u32::MAX)).collect();
            (PayloadKind::SocketIoText, payload.freeze(), lengths)
        }
    }
}
