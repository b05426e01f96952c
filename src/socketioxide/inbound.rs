//! What comes in: broadcasts of other nodes for the sockets of this server.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::str::Utf8Error;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use socketioxide_core::adapter::{BroadcastFlags, BroadcastOptions, Room, SocketEmitter};
use socketioxide_core::packet::{Packet, Str};
use socketioxide_core::{Sid, Value};

use super::adapter::RoomcastAdapter;
use crate::core::frame::{BroadcastHead, PayloadKind};
use crate::hub::Inbound;
use crate::hub::requests::{Reply, Request};
use crate::hub::summary::Census;

/// Why a broadcast of another node cannot be delivered. It is dropped; the link stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// The attachments do not fit the payload. Dropped.
    #[error("the attachments are longer than the payload")]
    Attachments,
    /// The text is not UTF-8. Dropped.
    #[error("the text is not UTF-8: {0}")]
    Text(#[from] Utf8Error),
    /// The id of the socket is not one. Dropped.
    #[error("{0:?} is not the id of a socket")]
    Socket(String),
}

impl<E: SocketEmitter> Inbound for RoomcastAdapter<E> {
    fn rooms_here(&self, each: &mut dyn FnMut(&str, usize)) {
        self.book().rooms_here(each);
    }

    fn census(&self) -> Census {
        let mut everyone = BroadcastOptions::default();
        everyone.add_flag(BroadcastFlags::Broadcast);
        let clients = self.local().sockets(everyone).len();
        Census { clients: clients as u64, rooms: self.book().room_count() as u64 }
    }

    fn deliver(&self, head: &BroadcastHead<'_>, payload: &Bytes) {
        // The plain API and other servers of this process may use the same path.
        if head.kind == PayloadKind::Plain
            || head.server.is_some_and(|server| server != self.server().as_str())
        {
            return;
        }
        if head.kind != self.kind() {
            self.warn_of_other_parser(head.kind);
            return;
        }
        let ns = self.local().path().clone();
        let value = value(head.kind, &head.attachments, payload);
        let broadcast = value.and_then(|value| Ok((Packet::event(ns, value), options(head)?)));
        let (packet, opts) = match broadcast {
            Ok(broadcast) => broadcast,
            Err(error) => {
                tracing::warn!(node = %self.node(), ns = head.ns, %error, "dropped a broadcast of another node");
                return;
            }
        };
        // A socket that is slow or gone is the concern of its own connection.
        if let Err(errors) = self.local().broadcast(packet, opts) {
            tracing::debug!(node = %self.node(), ns = head.ns, ?errors, "some sockets did not get a broadcast");
        }
    }

    fn request(&self, request: &Request<'_, '_>, reply: &Reply) {
        self.serve(request, reply);
    }
}

impl<E> RoomcastAdapter<E> {
    /// Warns, once.
    pub(super) fn warn_of_other_parser(&self, theirs: PayloadKind) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            let (node, ns, ours) = (self.node(), self.book().ns(), self.kind());
            tracing::warn!(
                %node, %ns, ?ours, ?theirs,
                "dropping broadcasts of a node with another Socket.IO parser: all nodes must use the same",
            );
        }
    }
}

/// The value as the other node's parser made it. Attachments and bytes share the memory of `payload`.
pub(super) fn value(kind: PayloadKind, attachments: &[u32], payload: &Bytes) -> Result<Value, Unreadable> {
    if kind == PayloadKind::SocketIoBytes {
        return Ok(Value::Bytes(payload.clone()));
    }
    let attached = attachments.iter().map(|length| u64::from(*length)).sum::<u64>();
    let text_len = usize::try_from(attached).ok().and_then(|attached| payload.len().checked_sub(attached));
    let mut at = text_len.ok_or(Unreadable::Attachments)?;
    let text = Str::copy_from_slice(std::str::from_utf8(&payload[..at])?);
    if attachments.is_empty() {
        return Ok(Value::Str(text, None));
    }
    let mut attached = VecDeque::with_capacity(attachments.len());
    for length in attachments {
        let end = at + *length as usize;
        attached.push_back(payload.slice(at..end));
        at = end;
    }
    Ok(Value::Str(text, Some(attached)))
}

/// The options as the other node had them. Flags that this version does not know are left out.
pub(super) fn options(head: &BroadcastHead<'_>) -> Result<BroadcastOptions, Unreadable> {
    let rooms =
        |rooms: &[&str]| rooms.iter().map(|room| Room::from(Cow::Owned((*room).to_owned()))).collect();
    let sid = match head.socket {
        Some(sid) => {
            Some(sid.parse::<Sid>().map_err(|_| Unreadable::Socket(sid.chars().take(80).collect()))?)
        }
        None => None,
    };
    let mut opts = BroadcastOptions::default();
    (opts.rooms, opts.except, opts.sid) = (rooms(&head.rooms), rooms(&head.except), sid);
    for flag in [BroadcastFlags::Broadcast, BroadcastFlags::Volatile] {
        if head.flags & flag as u8 != 0 {
            opts.add_flag(flag);
        }
    }
    Ok(opts)
}
