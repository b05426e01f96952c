//! What is asked and ordered of other nodes: joins, leaves, disconnections, rooms, sockets, acknowledgements.
//!
//! Orders are queued behind what was sent before and nobody waits for them. Questions end when every node that was asked has
//! settled its share (see [`crate::hub::requests`]); what is missing then is no error.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use smallvec::smallvec;
use socketioxide_core::adapter::errors::{AdapterError, BroadcastError};
use socketioxide_core::adapter::{BroadcastOptions, RemoteSocketData, Room, SocketEmitter};
use socketioxide_core::packet::Packet;

use super::acks::AckStream;
use super::adapter::RoomcastAdapter;
use super::outbound::{Outgoing, Target, encode};
use super::{Error, RoomcastAdapterCtr as State};
use super::{answers, receipt};
use crate::core::frame::{BroadcastHead, MAX_ROOMS, Op, RequestHead, SocketRecord, decode_body};
use crate::error::DropReason;
use crate::hub::requests::{Ask, Asked, LIST_CREDIT, Missing, MissingReason, Targets};
use crate::ids::{Namespace, RoomKey};

impl<E: SocketEmitter> RoomcastAdapter<E> {
    /// Makes the selected sockets members of rooms: those here at once, others by order.
    pub(super) fn add_sockets_now(&self, opts: BroadcastOptions, rooms: Vec<Room>) -> Result<(), Error> {
        let target = self.target(&opts);
        if target.is_here() {
            self.join_if_here(opts.clone(), rooms.clone());
        }
        self.order(Op::Join, target, &opts, &rooms)
    }

    /// Takes the selected sockets out of rooms: those here at once, others by order.
    pub(super) fn del_sockets_now(&self, opts: BroadcastOptions, rooms: Vec<Room>) -> Result<(), Error> {
        let target = self.target(&opts);
        if target.is_here() {
            self.del_here(opts.clone(), rooms.clone());
        }
        self.order(Op::Leave, target, &opts, &rooms)
    }

    /// Disconnects the selected sockets: those here at once, others by order.
    pub(super) fn disconnect_now(&self, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        let target = self.target(&opts);
        let here = if target.is_here() { self.local().disconnect_socket(opts.clone()) } else { Ok(()) };
        self.order(Op::Disconnect, target, &opts, &[]).map_err(AdapterError::from)?;
        match here {
            Err(errors) if !errors.is_empty() => Err(BroadcastError::Socket(errors)),
            _ => Ok(()),
        }
    }

    /// The rooms of the selected sockets, each once.
    pub(super) async fn all_rooms(&self, opts: BroadcastOptions) -> Result<Vec<Room>, Error> {
        let target = self.target(&opts);
        let mut rooms = if target.is_here() { self.local().rooms(opts.clone()) } else { HashSet::new() };
        self.gather(Op::Rooms, target, &opts, |room: String| _ = rooms.insert(room.into())).await?;
        Ok(rooms.into_iter().collect())
    }

    /// The selected sockets.
    pub(super) async fn all_sockets(&self, opts: BroadcastOptions) -> Result<Vec<RemoteSocketData>, Error> {
        let target = self.target(&opts);
        let mut sockets =
            if target.is_here() { self.local().fetch_sockets(opts.clone()) } else { Vec::new() };
        let ns = self.local().path().clone();
        self.gather(Op::Sockets, target, &opts, |record: SocketRecord| {
            // Members of the plain API have no server, and are not asked for.
            let (id, server) = (record.id.parse(), record.server.as_deref().map(str::parse));
            if let (Ok(id), Some(Ok(server_id))) = (id, server) {
                sockets.push(RemoteSocketData { id, server_id, ns: ns.clone() });
            }
        })
        .await?;
        Ok(sockets)
    }

    /// Serves the selected sockets here, then asks other nodes to; the acknowledgements of both.
    pub(super) fn acks(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> Result<AckStream<E>, Error> {
        let outgoing = self.outgoing(&packet, &opts);
        // Sockets here come first, and are served whatever becomes of the rest.
        let here = self.target(&opts).is_here();
        let here = here.then(|| self.local().broadcast_with_ack(packet, opts, timeout).0);
        let asked = match outgoing? {
            Some(outgoing) => self.ask_for_acks(outgoing, timeout)?,
            None => None,
        };
        Ok(AckStream::new(here, asked, self.kind()))
    }

    fn ask_for_acks(&self, outgoing: Outgoing, timeout: Option<Duration>) -> Result<Option<Asked>, Error> {
        let Outgoing { value, opts, target } = outgoing;
        let Some((ns, keys)) = self.place(target, &opts) else { return Ok(None) };
        let (kind, payload, attachments) = encode(value);
        let to = BroadcastHead { kind, attachments, ..self.head(&opts) };
        let timeout = timeout.unwrap_or_else(|| self.local().ack_timeout());
        let credit = u32::try_from(self.state().config.ack_response_buffer).unwrap_or(u32::MAX);
        let head = RequestHead { credit: credit.max(1), ..request(Op::Deliver, &[], to) };
        self.ask((ns, &keys), head, timeout, &payload)
    }

    /// Queues an order for the nodes that may have such sockets.
    fn order(&self, op: Op, target: Target, opts: &BroadcastOptions, names: &[Room]) -> Result<(), Error> {
        let Some((ns, keys)) = self.place(target, opts) else { return Ok(()) };
        self.check_names(opts)?;
        self.check_rooms(names)?;
        let head = request(op, names, self.head(opts));
        let receipt = self.state().hub.order(Targets::Rooms(ns, &keys), &head, &Bytes::new(), false);
        // Full queues and the like are counted by the hub; an order that can never be sent is the caller's to know.
        let refused = receipt.dropped.iter().any(|(_, reason)| *reason == DropReason::TooLarge);
        receipt::collect(receipt);
        self.check_size(refused, 0)
    }

    /// Asks the nodes that may have such sockets for lists.
    async fn gather<T: DeserializeOwned>(
        &self,
        op: Op,
        target: Target,
        opts: &BroadcastOptions,
        mut each: impl FnMut(T),
    ) -> Result<(), Error> {
        let Some((ns, keys)) = self.place(target, opts) else { return Ok(()) };
        self.check_names(opts)?;
        let head = RequestHead { credit: LIST_CREDIT, ..request(op, &[], self.head(opts)) };
        let timeout = self.state().config.request_timeout;
        let Some(mut asked) = self.ask((ns, &keys), head, timeout, &Bytes::new())? else { return Ok(()) };
        while let Some(answer) = asked.next().await {
            match decode_body::<Vec<T>>(&answer.body) {
                Ok(list) => list.into_iter().for_each(&mut each),
                Err(error) => asked.unreadable(&answer, &error),
            }
        }
        let missing = asked.missing();
        if !missing.is_empty() {
            let (node, ns) = (self.node(), self.book().ns());
            tracing::debug!(%node, %ns, ?op, ?missing, "the answers of some nodes are missing");
        }
        Ok(())
    }

    /// Asks the nodes that have one of these rooms; none when there is no such node.
    fn ask<'a>(
        &self,
        (ns, keys): (&'a Namespace, &'a [RoomKey]),
        head: RequestHead<'a>,
        timeout: Duration,
        payload: &Bytes,
    ) -> Result<Option<Asked>, Error> {
        let State { hub, .. } = self.state();
        if !hub.wants(ns, keys) {
            return Ok(None);
        }
        let targets = Targets::Rooms(ns, keys);
        let asked = hub.ask(Ask { targets, head, timeout: Some(timeout), here: false }, payload)?;
        let too_large = MissingReason::NotAsked(DropReason::TooLarge);
        let refused = asked.missing().iter().any(|Missing { reason, .. }| *reason == too_large);
        self.check_size(refused, payload.len())?;
        answers::collect(&asked.standing());
        Ok(Some(asked))
    }

    fn check_size(&self, refused: bool, bytes: usize) -> Result<(), Error> {
        let limit = self.state().hub.limits.max_frame_bytes;
        if refused { Err(Error::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    /// Checks the rooms to join or to leave.
    fn check_rooms(&self, rooms: &[Room]) -> Result<(), Error> {
        if rooms.len() > MAX_ROOMS {
            return Err(Error::TooManyRooms { got: rooms.len() });
        }
        rooms.iter().try_for_each(|room| self.state().hub.check_room(room))?;
        Ok(())
    }
}

/// A request that nobody waits for yet.
fn request<'a>(op: Op, names: &'a [Room], to: BroadcastHead<'a>) -> RequestHead<'a> {
    let mut head = RequestHead { id: 0, op, timeout_ms: 0, credit: 0, names: smallvec![], to };
    head.names.extend(names.iter().map(AsRef::as_ref));
    head
}
