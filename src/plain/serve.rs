//! What this node and others ask and order of the members here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashSet;
use tokio::runtime::Handle;

use super::acks::Collector;
use super::crowd::Entry;
use super::member::Here;
use super::order::BROADCAST;
use super::{Inner, MemberId};
use crate::core::frame::{EndStatus, Op, PayloadKind, RequestHead, RoomRecord, SocketRecord, parts};
use crate::hub::lock;
use crate::hub::requests::{Reply, Request};
use crate::ids::NodeId;

/// Whom a request means.
struct Who<'a> {
    rooms: &'a [&'a str],
    except: &'a [&'a str],
    sender: Option<MemberId>,
    only: Option<MemberId>,
}

impl<'a> Who<'a> {
    /// None when nobody here is meant.
    fn of(head: &'a RequestHead<'_>, from: &NodeId, own: &NodeId) -> Option<Self> {
        let to = &head.to;
        if to.kind != PayloadKind::Plain || to.server.is_some() {
            return None;
        }
        let (mut sender, mut only) = (None, None);
        match to.socket {
            None => {}
            // The sender is a member of the node that asks; here somebody else has its number.
            Some(name) if to.flags & BROADCAST != 0 => {
                sender = if from == own { name.parse().ok().map(MemberId) } else { None };
            }
            Some(name) => only = Some(MemberId(name.parse().ok()?)),
        }
        Some(Self { rooms: &to.rooms, except: &to.except, sender, only })
    }

    /// Whether that is everyone in the namespace.
    fn is_everyone(&self) -> bool {
        self.rooms.is_empty() && self.except.is_empty() && self.sender.is_none() && self.only.is_none()
    }
}

/// Whom a request of another node means, as far as its head says: for fuzzing.
pub(crate) fn whom_it_means(head: &RequestHead<'_>) -> bool {
    let (Ok(from), Ok(own)) = (NodeId::new("peer"), NodeId::new("own")) else { return false };
    Who::of(head, &from, &own).is_some_and(|who| who.is_everyone())
}

impl Inner {
    /// Does what is asked or ordered. Runs on the task that reads the link, or that asks on this node.
    pub(super) fn serve(&self, request: &Request<'_, '_>, reply: &Reply) {
        let head = request.head;
        let Some(who) = Who::of(head, request.from, &self.hub().id) else { return };
        match head.op {
            Op::Deliver => self.deliver_with_ack(&who, request, reply),
            // No name is too long: the limit of this node held when the frame was read, or when it was made here.
            Op::Join => self.each(&who, |here| {
                head.names.iter().for_each(|room| drop(here.join(room)));
            }),
            Op::Leave => self.each(&who, |here| head.names.iter().for_each(|room| here.leave(room))),
            Op::Disconnect => self.each(&who, |here| {
                if here.disconnect() {
                    self.tell_disconnected(here.entry);
                }
            }),
            Op::Rooms => reply.answer_list(parts(self.rooms_of(&who), String::len)),
            Op::Sockets => reply.answer_list(parts(self.records(&who), SocketRecord::size)),
            Op::Count => reply.answer_value(&self.count(&who)),
            Op::RoomSizes => {
                let record = |(room, members): (&str, usize)| RoomRecord {
                    room: room.to_owned(),
                    members: members as u64,
                };
                let rooms: Vec<RoomRecord> = self.read().rooms().map(record).collect();
                reply.answer_list(parts(rooms, RoomRecord::size));
            }
            // Not of members.
            Op::ServerEvent | Op::WatchRooms => {}
        }
    }

    fn deliver_with_ack(&self, who: &Who<'_>, request: &Request<'_, '_>, reply: &Reply) {
        let entries = self.selected(who);
        if !reply.is_wanted() {
            entries.iter().for_each(|entry| self.deliver_to(entry, request.payload.clone()));
            return;
        }
        if entries.is_empty() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return reply.end_as(EndStatus::Failed) };
        let timeout = request.head.timeout();
        let limit = self.hub().limits.max_frame_bytes;
        let collector = Collector::new(entries.iter().map(|entry| entry.id), timeout, limit);
        let senders: Vec<_> = entries.iter().map(|entry| collector.sender(entry.id)).collect();
        // Before the sinks run: the time of the members begins now, also where one of them is slow.
        runtime.spawn(collector.run(reply.clone()));
        for (entry, ack) in entries.iter().zip(senders) {
            let message = request.payload.clone();
            self.user_code(entry, || entry.shared.sink.deliver_with_ack(message, ack));
        }
    }

    fn tell_disconnected(&self, entry: &Entry) {
        self.user_code(entry, || entry.shared.sink.disconnected());
    }

    pub(super) fn deliver_to(&self, entry: &Entry, message: Bytes) {
        self.user_code(entry, || entry.shared.sink.deliver(message));
    }

    /// A sink is the user's code and may run on the task of a link: its panic must not end that.
    fn user_code(&self, entry: &Entry, call: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(call)).is_err() {
            let (node, ns) = (&self.hub().id, self.ns());
            tracing::error!(%node, %ns, member = %entry.id, "a sink panicked: its member may have lost a message");
        }
    }

    /// Does something with each member that is meant. No lock is held.
    fn each(&self, who: &Who<'_>, mut action: impl FnMut(&Here<'_>)) {
        for entry in &self.selected(who) {
            action(&Here { inner: self, entry });
        }
    }

    /// The members here that are meant.
    fn selected(&self, who: &Who<'_>) -> Vec<Entry> {
        let mut selected = Vec::new();
        match who.only {
            None => self.each_of(who.rooms, who.except, who.sender, |entry| selected.push(entry.clone())),
            Some(only) => {
                let locals = self.read();
                let is_in = |room: &&str| {
                    locals.room(room).is_some_and(|room| room.iter().any(|entry| entry.id == only))
                };
                let meant =
                    !who.except.iter().any(is_in) && (who.rooms.is_empty() || who.rooms.iter().any(is_in));
                selected.extend(locals.member(only).filter(|_| meant));
            }
        }
        selected
    }

    fn count(&self, who: &Who<'_>) -> u64 {
        if who.is_everyone() {
            return self.read().everyone().len() as u64;
        }
        self.selected(who).len() as u64
    }

    /// The names of the rooms that the members who are meant are in.
    fn rooms_of(&self, who: &Who<'_>) -> Vec<String> {
        if who.is_everyone() {
            return self.read().rooms().map(|(room, _)| room.to_owned()).collect();
        }
        let mut names = HashSet::<Arc<str>>::new();
        self.each(who, |here| names.extend(lock(&here.entry.shared.joined).rooms.iter().cloned()));
        names.iter().map(|name| String::from(&**name)).collect()
    }

    fn records(&self, who: &Who<'_>) -> Vec<SocketRecord> {
        let mut records = Vec::new();
        self.each(who, |here| {
            let Entry { id, shared } = here.entry;
            let rooms = lock(&shared.joined).rooms.iter().map(|room| String::from(&**room)).collect();
            let data = lock(&shared.data).to_vec();
            records.push(SocketRecord { id: id.to_string(), server: None, rooms, data });
        });
        records
    }
}
