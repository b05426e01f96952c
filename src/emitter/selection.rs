//! Whom something is for, and what is done with them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use super::{Emitter, EmitterError, EmitterState, nothing};
use crate::core::frame::{
    BroadcastHead, MAX_ROOMS, Op, PayloadKind, Relayed, RequestHead, RoomRecord, SocketRecord, decode_body,
};
use crate::error::{DropReason, IdError};
use crate::hub::Receipt;
use crate::hub::guests::missing_from;
use crate::hub::requests::{ANSWER_GRACE, Ask, Missing, MissingReason, Targets};
use crate::ids::{Namespace, NodeId};
use crate::plain::{Gathered, Rooms, SocketInfo};

/// The bits in the flags of a frame.
const BROADCAST: u8 = 0x02;
const VOLATILE: u8 = 0x04;
/// Answers that a node may send before more are asked for.
const CREDIT: u32 = 64;

/// Some sockets and members of a namespace, on all nodes: everyone, or narrowed down. Made by [`Emitter::of`] and
/// [`Emitter::to`].
#[derive(Debug, Clone)]
#[must_use = "nothing is done before `emit`, `join` and the like"]
pub struct Selection<'e> {
    emitter: &'e Emitter,
    ns: Result<Namespace, IdError>,
    everyone: bool,
    rooms: Vec<String>,
    except: Vec<String>,
    volatile: bool,
    timeout: Duration,
}

impl<'e> Selection<'e> {
    pub(super) fn new(emitter: &'e Emitter, ns: Result<Namespace, IdError>) -> Self {
        Self {
            emitter,
            ns,
            everyone: true,
            rooms: Vec::new(),
            except: Vec::new(),
            volatile: false,
            timeout: emitter.inner.request_timeout,
        }
    }

    /// Only the members of these rooms; may be called again for more rooms. No rooms (`to([])`) is nobody: a list that
    /// happens to be empty must not reach everyone.
    pub fn to<'r>(mut self, rooms: impl Rooms<'r>) -> Self {
        self.everyone = false;
        self.rooms.extend(rooms.names().map(String::from));
        self
    }

    /// The same as [`to`](Self::to).
    pub fn within<'r>(self, rooms: impl Rooms<'r>) -> Self {
        self.to(rooms)
    }

    /// Leaves out the members of these rooms, also those who are in a selected room. May be called again for more.
    pub fn except<'r>(mut self, rooms: impl Rooms<'r>) -> Self {
        self.except.extend(rooms.names().map(String::from));
        self
    }

    /// Sends a message only when it can go at once, here and from node to node: it is dropped rather than queued, and never
    /// sent again. [`Emitter::flush`] does not wait for it.
    pub fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// How long a question waits for answers. Default is [`EmitterBuilder::request_timeout`](super::EmitterBuilder::request_timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Emits an event to the selected sockets of Socket.IO servers. A tuple is several arguments, anything else one.
    /// [`bytes::Bytes`] and whatever else serializes as bytes is binary for clients; a `Vec<u8>` is a list of numbers, as in
    /// socketioxide: use [`emit_binary`](Self::emit_binary) for that.
    ///
    /// Never waits: the message is in the outbox when this returns.
    ///
    /// # Errors
    /// [`EmitterError`]; then nobody gets it.
    pub fn emit<T: Serialize + ?Sized>(self, event: &str, data: &T) -> Result<(), EmitterError> {
        let encoded = self.emitter.inner.parser.encode(event, data);
        let encoded = encoded.map_err(|error| EmitterError::Encode(error.to_string()))?;
        self.broadcast(encoded.kind, &encoded.payload, encoded.attachments)
    }

    /// As [`emit`](Self::emit), with bytes as the only argument.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub fn emit_binary(self, event: &str, data: &[u8]) -> Result<(), EmitterError> {
        self.emit(event, &Binary(data))
    }

    /// Sends bytes to the selected members of the plain API.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub fn emit_bytes(self, message: impl Into<Bytes>) -> Result<(), EmitterError> {
        self.broadcast(PayloadKind::Plain, &message.into(), SmallVec::new())
    }

    /// Makes the selected sockets and members join rooms.
    ///
    /// # Errors
    /// [`EmitterError`]; then nothing is done.
    pub fn join<'r>(self, rooms: impl Rooms<'r>) -> Result<(), EmitterError> {
        self.order_rooms(Op::Join, rooms)
    }

    /// Makes the selected sockets and members leave rooms.
    ///
    /// # Errors
    /// [`EmitterError`]; then nothing is done.
    pub fn leave<'r>(self, rooms: impl Rooms<'r>) -> Result<(), EmitterError> {
        self.order_rooms(Op::Leave, rooms)
    }

    /// Disconnects the selected sockets and members.
    ///
    /// # Errors
    /// [`EmitterError`]; then nothing is done.
    pub fn disconnect(self) -> Result<(), EmitterError> {
        self.order(Op::Disconnect, &[], &nothing())
    }

    /// An event for the servers themselves, not for clients: those that handle it in this namespace. Rooms make no
    /// difference. Data is JSON.
    ///
    /// # Errors
    /// [`EmitterError`]; then nobody gets it.
    pub fn server_side_emit<T: Serialize + ?Sized>(self, name: &str, data: &T) -> Result<(), EmitterError> {
        self.emitter.inner.hub.check_room(name)?;
        let data = serde_json::to_vec(data).map_err(|error| EmitterError::Encode(error.to_string()))?;
        let all = Self { everyone: true, rooms: Vec::new(), except: Vec::new(), ..self };
        all.order(Op::ServerEvent, &[name], &data.into())
    }

    /// The selected sockets and members. Of the answers, the nodes whose share is missing are named; `cluster` stands for
    /// all when the link itself was lost or said nothing in time.
    ///
    /// # Errors
    /// [`EmitterError`]; then nobody was asked. Dropping the future gives up: nothing is kept for it anywhere.
    pub async fn sockets(self) -> Result<Gathered<Vec<SocketInfo>>, EmitterError> {
        let mut sockets = Vec::new();
        let missing = self
            .ask(Op::Sockets, |node, list: Vec<SocketRecord>| {
                sockets.extend(list.into_iter().map(|record| SocketInfo::new(node, record)));
            })
            .await?;
        Ok(Gathered { value: sockets, missing })
    }

    /// All rooms of the namespace by name, each with the number of its members on all nodes. What is selected makes no difference.
    ///
    /// # Errors
    /// As [`sockets`](Self::sockets).
    pub async fn rooms(self) -> Result<Gathered<Vec<(String, u64)>>, EmitterError> {
        let mut rooms = BTreeMap::<String, u64>::new();
        let all = Self { everyone: true, rooms: Vec::new(), except: Vec::new(), ..self };
        let missing = all
            .ask(Op::RoomSizes, |_, list: Vec<RoomRecord>| {
                for RoomRecord { room, members } in list {
                    let size = rooms.entry(room).or_default();
                    *size = size.saturating_add(members);
                }
            })
            .await?;
        Ok(Gathered { value: rooms.into_iter().collect(), missing })
    }

    /// How many sockets and members are selected.
    ///
    /// # Errors
    /// As [`sockets`](Self::sockets).
    pub async fn count(self) -> Result<Gathered<u64>, EmitterError> {
        let mut count = 0u64;
        let missing = self.ask(Op::Count, |_, number: u64| count = count.saturating_add(number)).await?;
        Ok(Gathered { value: count, missing })
    }

    fn broadcast(
        &self,
        kind: PayloadKind,
        payload: &Bytes,
        attachments: SmallVec<[u32; 4]>,
    ) -> Result<(), EmitterError> {
        let ns = self.check(&[])?;
        if self.is_nobody() {
            return Ok(());
        }
        let head = BroadcastHead { attachments, ..self.head(ns, kind) };
        let receipt = self.emitter.inner.hub.send(ns, &[], &head, payload, self.volatile);
        self.accepted(&receipt, payload.len())
    }

    fn order_rooms<'r>(&self, op: Op, rooms: impl Rooms<'r>) -> Result<(), EmitterError> {
        let rooms: Vec<_> = rooms.names().collect();
        let names: Vec<&str> = rooms.iter().map(|room| &**room).collect();
        if names.is_empty() {
            return self.check(&[]).map(drop);
        }
        self.order(op, &names, &nothing())
    }

    fn order(&self, op: Op, names: &[&str], payload: &Bytes) -> Result<(), EmitterError> {
        let ns = self.check(names)?;
        if self.is_nobody() {
            return Ok(());
        }
        let head = self.request(ns, op, names);
        let receipt = self.emitter.inner.hub.order(Targets::All, &head, payload, false);
        self.accepted(&receipt, payload.len())
    }

    /// Asks, and has every answer read; returns who is missing.
    async fn ask<T: DeserializeOwned>(
        &self,
        op: Op,
        mut read: impl FnMut(&NodeId, T),
    ) -> Result<Vec<Missing>, EmitterError> {
        let ns = self.check(&[])?;
        if self.is_nobody() {
            return Ok(Vec::new());
        }
        let inner = &self.emitter.inner;
        // The node that asks the others waits for them, and its word has to get here after that.
        let timeout = Some(self.timeout.saturating_add(ANSWER_GRACE));
        let ask = Ask { targets: Targets::All, head: self.request(ns, op, &[]), timeout, here: false };
        let asked = inner.hub.ask(ask, &nothing());
        let mut asked = asked.map_err(|error| EmitterError::TooManyRequests { limit: error.limit })?;
        let mut missing = Vec::new();
        while let Some(answer) = asked.next().await {
            match Relayed::decode(&answer.body) {
                Ok(Relayed::Missing(list)) => {
                    missing.extend(list.iter().filter_map(|(node, reason)| missing_from(node, *reason)));
                }
                Ok(Relayed::Answer { node, body }) => {
                    let Ok(node) = NodeId::new(node) else { continue };
                    match decode_body(&body) {
                        Ok(value) => read(&node, value),
                        Err(_) => missing.push(Missing { node, reason: MissingReason::Failed }),
                    }
                }
                Err(_) => missing.push(Missing { node: answer.node, reason: MissingReason::Failed }),
            }
        }
        missing.extend(asked.missing());
        for missing in &missing {
            if missing.reason == MissingReason::NotAsked(DropReason::QueueFull)
                && missing.node == inner.queue.id
            {
                return Err(EmitterError::Full { limit: inner.hub.config.link.outbox_bytes });
            }
        }
        if self.emitter.state() == EmitterState::Closed {
            return Err(EmitterError::Closed);
        }
        Ok(missing)
    }

    fn is_nobody(&self) -> bool {
        !self.everyone && self.rooms.is_empty()
    }

    fn head<'s>(&'s self, ns: &'s Namespace, kind: PayloadKind) -> BroadcastHead<'s> {
        BroadcastHead {
            ns: ns.path(),
            kind,
            flags: BROADCAST | if self.volatile { VOLATILE } else { 0 },
            rooms: self.rooms.iter().map(String::as_str).collect(),
            except: self.except.iter().map(String::as_str).collect(),
            server: None,
            socket: None,
            attachments: SmallVec::new(),
        }
    }

    fn request<'s>(&'s self, ns: &'s Namespace, op: Op, names: &[&'s str]) -> RequestHead<'s> {
        // This kind stands for sockets of Socket.IO servers and members of the plain API alike.
        let to = self.head(ns, PayloadKind::Plain);
        RequestHead { id: 0, op, timeout_ms: 0, credit: CREDIT, names: names.iter().copied().collect(), to }
    }

    fn check(&self, names: &[&str]) -> Result<&Namespace, EmitterError> {
        let got = self.rooms.len().max(self.except.len()).max(names.len());
        if got > MAX_ROOMS {
            return Err(EmitterError::TooManyRooms { got, limit: MAX_ROOMS });
        }
        let hub = &self.emitter.inner.hub;
        self.rooms.iter().chain(&self.except).try_for_each(|room| hub.check_room(room))?;
        names.iter().try_for_each(|room| hub.check_room(room))?;
        self.ns.as_ref().map_err(|error| error.clone().into())
    }

    /// What became of a frame for the one peer there is.
    fn accepted(&self, receipt: &Receipt, bytes: usize) -> Result<(), EmitterError> {
        let link = &self.emitter.inner.hub.config.link;
        match receipt.dropped.first().map(|(_, reason)| *reason) {
            Some(DropReason::QueueFull | DropReason::WaitedTooLong) => {
                Err(EmitterError::Full { limit: link.outbox_bytes })
            }
            Some(DropReason::TooLarge) => Err(EmitterError::TooLarge { bytes, limit: link.max_frame_bytes }),
            Some(DropReason::PeerGone) => Err(EmitterError::Closed),
            // Volatile, and dropped: as was asked for.
            Some(DropReason::NotWritable) => Ok(()),
            None if receipt.targeted == 0 => Err(EmitterError::Closed),
            None => Ok(()),
        }
    }
}

/// Bytes that are written as bytes, not as a list of numbers.
struct Binary<'a>(&'a [u8]);

impl Serialize for Binary<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
