//! What other nodes ask and order, done with the sockets of this server.

use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use socketioxide_core::adapter::{BroadcastFlags, BroadcastOptions, Room, SocketEmitter};
use socketioxide_core::packet::Packet;
use socketioxide_core::{Sid, Value};
use tokio::runtime::Handle;

use super::acks;
use super::adapter::RoomcastAdapter;
use super::inbound::{Unreadable, options, value};
use crate::core::frame::{BroadcastHead, EndStatus, Op, PayloadKind, RoomRecord, SocketRecord, parts};
use crate::hub::requests::{Reply, Request};

impl<E: SocketEmitter> RoomcastAdapter<E> {
    /// Does what is asked with the sockets here. Never waits.
    pub(super) fn serve(&self, request: &Request<'_, '_>, reply: &Reply) {
        let (head, to) = (request.head, &request.head.to);
        // Another server of this process may use the same path.
        if to.server.is_some_and(|server| server != self.server().as_str()) {
            return;
        }
        let selected = match selected(to) {
            Ok(selected) => selected,
            Err(error) => return self.refuse(request, &error, reply),
        };
        let Some(opts) = selected else { return };
        let rooms = || head.names.iter().map(|name| Room::from(Cow::Owned((*name).to_owned()))).collect();
        match head.op {
            // The plain API has its own members for that.
            Op::Deliver if to.kind == PayloadKind::Plain => {}
            Op::Deliver if to.kind != self.kind() => {
                self.warn_of_other_parser(to.kind);
                reply.end_as(EndStatus::Failed);
            }
            Op::Deliver => match value(to.kind, &to.attachments, request.payload) {
                Ok(value) => self.deliver_with_acks(value, opts, head.timeout(), reply),
                Err(error) => self.refuse(request, &error, reply),
            },
            Op::Join => self.join_if_here(opts, rooms()),
            Op::Leave => self.del_here(opts, rooms()),
            Op::Disconnect => self.disconnect_each(&opts),
            Op::Rooms => {
                let rooms = self.local().rooms(opts).into_iter().map(Cow::into_owned).collect();
                reply.answer_list(parts(rooms, String::len));
            }
            Op::Sockets => reply.answer_list(parts(self.records(opts, to.kind), SocketRecord::size)),
            Op::Count => reply.answer_value(&(self.local().fetch_sockets(opts).len() as u64)),
            Op::RoomSizes => reply.answer_list(parts(self.room_sizes(), RoomRecord::size)),
            Op::ServerEvent | Op::WatchRooms => {}
        }
    }

    fn refuse(&self, request: &Request<'_, '_>, error: &Unreadable, reply: &Reply) {
        let (node, ns, op) = (self.node(), self.book().ns(), request.head.op);
        tracing::warn!(%node, peer = %request.from, %ns, ?op, %error, "refused a request of another node");
        reply.end_as(EndStatus::Failed);
    }

    fn deliver_with_acks(
        &self,
        value: Value,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
        reply: &Reply,
    ) {
        let Ok(runtime) = Handle::try_current() else { return reply.end_as(EndStatus::Failed) };
        let packet = Packet::event(self.local().path().clone(), value);
        // Here and now, in order with broadcasts; only the waiting is left to the task.
        let (acks, _) = self.local().broadcast_with_ack(packet, opts, timeout);
        runtime.spawn(acks::answer_all(Box::pin(acks), reply.clone()));
    }

    /// As [`add_here`](Self::add_here), where the one socket that is meant may have gone: the server would keep its rooms
    /// for ever.
    pub(super) fn join_if_here(&self, opts: BroadcastOptions, rooms: Vec<Room>) {
        let one = if is_one(&opts.rooms, opts.flags()) { opts.sid } else { None };
        let is_here = |sid| !self.local().fetch_sockets(BroadcastOptions::new(sid)).is_empty();
        if one.is_some_and(|sid| !is_here(sid)) {
            return;
        }
        self.add_here(opts, rooms.clone());
        if let Some(sid) = one
            && !is_here(sid)
        {
            self.del_here(BroadcastOptions::new(sid), rooms);
        }
    }

    /// One after the other, because each runs code of the user.
    fn disconnect_each(&self, opts: &BroadcastOptions) {
        for socket in self.local().fetch_sockets(opts.clone()) {
            let (sid, node, ns) = (socket.id, self.node(), self.book().ns());
            let disconnect = || self.local().disconnect_socket(BroadcastOptions::new(sid));
            match catch_unwind(AssertUnwindSafe(disconnect)) {
                Ok(Ok(())) => {}
                Ok(Err(errors)) => {
                    tracing::debug!(%node, %ns, %sid, ?errors, "a socket was not disconnected")
                }
                Err(_) => tracing::error!(%node, %ns, %sid, "a disconnect handler panicked"),
            }
        }
    }

    fn records(&self, opts: BroadcastOptions, asked_by: PayloadKind) -> Vec<SocketRecord> {
        let sockets = self.local().fetch_sockets(opts).into_iter();
        let record = |sid: Sid| {
            let mut record = SocketRecord {
                id: sid.to_string(),
                server: Some(self.server().to_string()),
                rooms: Vec::new(),
                data: Vec::new(),
            };
            // A Socket.IO server has no use for the rest.
            if asked_by == PayloadKind::Plain {
                let rooms = self.local().socket_rooms(sid);
                record.rooms = rooms.into_iter().map(Cow::into_owned).collect();
                record.data = self.data().get(sid).to_vec();
            }
            record
        };
        sockets.map(|socket| record(socket.id)).collect()
    }

    /// Every room with a member here. A socket has no room of its own name unless it joined one.
    fn room_sizes(&self) -> Vec<RoomRecord> {
        let mut everyone = BroadcastOptions::default();
        everyone.add_flag(BroadcastFlags::Broadcast);
        let mut sizes: HashMap<Room, u64> = HashMap::new();
        for sid in self.local().sockets(everyone) {
            for room in self.local().socket_rooms(sid) {
                *sizes.entry(room).or_default() += 1;
            }
        }
        sizes.into_iter().map(|(room, members)| RoomRecord { room: room.into_owned(), members }).collect()
    }
}

/// The sockets that are meant; none when members of the plain API are.
pub(super) fn selected(to: &BroadcastHead<'_>) -> Result<Option<BroadcastOptions>, Unreadable> {
    if to.kind != PayloadKind::Plain {
        return options(to).map(Some);
    }
    let mut to = to.clone();
    // There, one socket is named or the sender is left out, by the number of a member: that is none of ours.
    if to.socket.is_some_and(|socket| socket.parse::<Sid>().is_err()) {
        if is_one(&to.rooms, to.flags) {
            return Ok(None);
        }
        to.socket = None;
    }
    let mut opts = options(&to)?;
    if opts.rooms.is_empty() && opts.sid.is_none() {
        // No rooms is everyone there, whatever the flags.
        opts.add_flag(BroadcastFlags::Broadcast);
    }
    Ok(Some(opts))
}

/// Whether one socket is meant, by its id.
fn is_one<R>(rooms: &[R], flags: u8) -> bool {
    rooms.is_empty() && flags & BroadcastFlags::Broadcast as u8 == 0
}
