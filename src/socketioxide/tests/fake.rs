//! Sockets without connections, and nodes without links.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_core::{FusedStream, Stream};
use serde::{Deserialize, Serialize};
use socketioxide_core::adapter::errors::SocketError;
use socketioxide_core::adapter::{
    AckStreamItem, BroadcastIter, CoreAdapter, CoreLocalAdapter, RemoteSocketData, SocketEmitter,
};
use socketioxide_core::packet::{Packet, PacketData, Str};
use socketioxide_core::parser::{Parse, ParseConfig, ParseError, ParserError, ParserState};
use socketioxide_core::{Sid, Uid, Value};

use super::super::{RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr};
use crate::config::Config;
use crate::core::frame::{Head, LENGTH_BYTES, decode_head};
use crate::core::interest::{Interest, InterestConfig, RoomMode};
use crate::hub::peer::PeerQueue;
use crate::hub::{Hub, NamespaceOp, lock};
use crate::ids::{Incarnation, Namespace, NodeId, PeerSlot, RoomKey};

/// Where nobody dials.
const ADDR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

pub(super) type FakeAdapter = RoomcastAdapter<FakeSockets>;

/// The sockets of one namespace, and what each was sent.
#[derive(Clone)]
pub(super) struct FakeSockets {
    pub(super) path: Str,
    pub(super) server: Uid,
    pub(super) parser: FakeParser,
    pub(super) listed: Arc<Mutex<Vec<Sid>>>,
    pub(super) sent: Arc<Mutex<Vec<(Sid, Value)>>>,
    /// Whether sending fails, after it was recorded.
    pub(super) fails: bool,
    /// What sockets acknowledge.
    pub(super) acks: FakeAcks,
}

/// What sockets acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FakeAcks {
    /// What they were sent, at once.
    Echo,
    /// An error, at once.
    Error,
    /// Nothing, ever.
    Never,
}

impl FakeSockets {
    pub(super) fn new(path: &'static str, parser: FakeParser) -> Self {
        Self {
            path: path.into(),
            server: Uid::new(),
            parser,
            listed: Arc::default(),
            sent: Arc::default(),
            fails: false,
            acks: FakeAcks::Echo,
        }
    }

    pub(super) fn connect(&self) -> Sid {
        let sid = Sid::new();
        lock(&self.listed).push(sid);
        sid
    }

    /// As socketioxide does when a socket goes.
    pub(super) fn disconnect(&self, adapter: &FakeAdapter, sid: Sid) {
        lock(&self.listed).retain(|other| *other != sid);
        adapter.get_local().del_all(sid);
    }

    pub(super) fn sent(&self) -> Vec<(Sid, Value)> {
        std::mem::take(&mut *lock(&self.sent))
    }

    /// Who got something since the last call.
    pub(super) fn reached(&self) -> Vec<Sid> {
        self.sent().into_iter().map(|(sid, _)| sid).collect()
    }
}

impl SocketEmitter for FakeSockets {
    type AckError = FakeError;
    type AckStream = FakeAckStream;

    fn get_all_sids(&self, filter: impl Fn(&Sid) -> bool) -> Vec<Sid> {
        lock(&self.listed).iter().copied().filter(filter).collect()
    }

    fn get_remote_sockets(&self, sids: BroadcastIter<'_>) -> Vec<RemoteSocketData> {
        let listed = lock(&self.listed);
        sids.filter(|sid| listed.contains(sid))
            .map(|id| RemoteSocketData { id, server_id: self.server, ns: self.path.clone() })
            .collect()
    }

    fn send_many(&self, sids: BroadcastIter<'_>, data: Value) -> Result<(), Vec<SocketError>> {
        self.send_many_volatile(sids, data);
        if self.fails { Err(vec![SocketError::InternalChannelFull]) } else { Ok(()) }
    }

    fn send_many_volatile(&self, sids: BroadcastIter<'_>, data: Value) {
        let listed = lock(&self.listed);
        lock(&self.sent).extend(sids.filter(|sid| listed.contains(sid)).map(|sid| (sid, data.clone())));
    }

    fn send_many_with_ack(
        &self,
        sids: BroadcastIter<'_>,
        packet: Packet,
        _: Option<Duration>,
    ) -> (FakeAckStream, u32) {
        let value = self.parser.encode(packet);
        let before = lock(&self.sent).len();
        self.send_many_volatile(sids, value);
        let never = self.acks == FakeAcks::Never;
        let mut items = VecDeque::new();
        for (sid, value) in lock(&self.sent)[before..].iter().filter(|_| !never) {
            let ack = if self.acks == FakeAcks::Error { Err(FakeError) } else { Ok(value.clone()) };
            items.push_back((*sid, ack));
        }
        let expected = u32::try_from(items.len()).unwrap();
        (FakeAckStream { items, never }, expected)
    }

    fn disconnect_many(&self, sids: Vec<Sid>) -> Result<(), Vec<SocketError>> {
        lock(&self.listed).retain(|sid| !sids.contains(sid));
        Ok(())
    }

    fn path(&self) -> &Str {
        &self.path
    }

    fn parser(&self) -> impl Parse {
        self.parser
    }

    fn server_id(&self) -> Uid {
        self.server
    }

    fn ack_timeout(&self) -> Duration {
        Duration::from_secs(5)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("fake")]
pub(super) struct FakeError;

/// Acknowledgements that are there already, and then the end or nothing.
pub(super) struct FakeAckStream {
    items: VecDeque<AckStreamItem<FakeError>>,
    never: bool,
}

impl Stream for FakeAckStream {
    type Item = AckStreamItem<FakeError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.items.pop_front() {
            None if self.never => Poll::Pending,
            item => Poll::Ready(item),
        }
    }
}

impl FusedStream for FakeAckStream {
    fn is_terminated(&self) -> bool {
        self.items.is_empty() && !self.never
    }
}

/// Sends values as they are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum FakeParser {
    #[default]
    Text,
    Bytes,
}

impl Parse for FakeParser {
    fn encode(self, packet: Packet) -> Value {
        match packet.inner {
            PacketData::Event(value, _) | PacketData::BinaryEvent(value, _) => value,
            other => panic!("not an event: {other:?}"),
        }
    }

    fn encode_value<T: ?Sized + Serialize>(self, _: &T, _: Option<&str>) -> Result<Value, ParserError> {
        Ok(match self {
            Self::Text => text("null"),
            Self::Bytes => Value::Bytes(Bytes::from_static(b"\xc0")),
        })
    }

    fn encode_default<T: ?Sized + Serialize>(self, data: &T) -> Result<Value, ParserError> {
        self.encode_value(data, None)
    }

    fn decode_str(self, _: &ParseConfig, _: &ParserState, _: Str) -> Result<Packet, ParseError> {
        Err(ParseError::InvalidData)
    }

    fn decode_bin(self, _: &ParseConfig, _: &ParserState, _: Bytes) -> Result<Packet, ParseError> {
        Err(ParseError::InvalidData)
    }

    fn decode_value<'de, T: Deserialize<'de>>(self, _: &'de mut Value, _: bool) -> Result<T, ParserError> {
        Err(ParserError::new(FakeError))
    }

    fn decode_default<'de, T: Deserialize<'de>>(self, _: Option<&'de Value>) -> Result<T, ParserError> {
        Err(ParserError::new(FakeError))
    }

    fn read_event(self, _: &Value) -> Result<&str, ParserError> {
        Err(ParserError::new(FakeError))
    }
}

pub(super) fn text(text: &'static str) -> Value {
    Value::Str(text.into(), None)
}

pub(super) fn event(ns: &'static str, value: Value) -> Packet {
    Packet::event(ns, value)
}

/// What a future answers on its first poll.
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

/// A node without links.
pub(super) struct Side {
    pub(super) hub: Arc<Hub>,
    interest: Mutex<Interest>,
}

impl Side {
    pub(super) fn new(name: &str) -> Self {
        Self::with_config(name, Config::default())
    }

    pub(super) fn with_config(name: &str, config: Config) -> Self {
        let hub = Hub::new(NodeId::new(name).unwrap(), Incarnation(1), config);
        Self {
            hub,
            interest: Mutex::new(Interest::new(InterestConfig { linger_ms: 0, ..Default::default() })),
        }
    }

    pub(super) fn ctr(&self, config: RoomcastAdapterConfig) -> RoomcastAdapterCtr {
        RoomcastAdapterCtr::with_hub(&self.hub, config)
    }

    pub(super) fn adapter(&self, config: RoomcastAdapterConfig, sockets: &FakeSockets) -> Arc<FakeAdapter> {
        let local = CoreLocalAdapter::new(sockets.clone());
        let adapter = Arc::new(RoomcastAdapter::new(&self.ctr(config), local));
        now(Arc::clone(&adapter).init(|| ())).unwrap();
        adapter
    }

    /// Lets the node see `other` as a peer whose interest it does not know.
    pub(super) fn meet(&self, other: &Side) -> Arc<PeerQueue> {
        let make = |slot: PeerSlot| {
            Arc::new(PeerQueue::new(other.hub.id.clone(), other.hub.incarnation, slot, ADDR, 1, 64 << 20))
        };
        self.hub.add_peer(make)
    }

    /// Does what the registry does with what the fronts said. A count below zero is a panic there.
    fn collect(&self) -> std::sync::MutexGuard<'_, Interest> {
        let pending = self.hub.take_pending();
        let mut interest = lock(&self.interest);
        for (ns, op) in &pending.namespaces {
            match op {
                NamespaceOp::Attach(mode) => interest.attach(ns, *mode),
                NamespaceOp::Detach(mode) => interest.detach(ns, *mode),
                NamespaceOp::Flood => interest.switch_to_flood(ns),
            }
        }
        for (ns, rooms) in &pending.rooms {
            rooms.iter().for_each(|(room, by)| interest.adjust(ns, *room, *by));
        }
        interest.flush(0);
        interest.flush(1);
        interest
    }

    /// Tells `other`, which has this node in `slot`, what is wanted here.
    pub(super) fn tell(&self, other: &Side, slot: PeerSlot) {
        let interest = self.collect();
        other.hub.routes.snapshot_begin(slot, interest.version()).unwrap();
        for chunk in interest.snapshot(1000) {
            other.hub.routes.snapshot_chunk(slot, chunk).unwrap();
        }
        other.hub.routes.snapshot_end(slot).unwrap();
    }

    /// How a namespace is wanted here, and which rooms besides [`Namespace::everyone`].
    pub(super) fn wanted(&self, ns: &str) -> (Option<RoomMode>, usize) {
        let interest = self.collect();
        let ns = Namespace::new(ns).unwrap();
        let chunks: Vec<_> =
            interest.snapshot(1_000_000).flatten().filter(|change| change.ns == ns).collect();
        let rooms =
            chunks.iter().flat_map(|change| &change.added).filter(|room| **room != ns.everyone()).count();
        (interest.mode(&ns), rooms)
    }

    pub(super) fn wants(&self, ns: &str, room: &str) -> bool {
        let key: RoomKey = Namespace::new(ns).unwrap().room(room);
        self.collect().snapshot(1_000_000).flatten().any(|change| change.added.contains(&key))
    }

    /// How many rooms are wanted, over all namespaces, the servers' included.
    pub(super) fn wanted_in_all(&self) -> usize {
        self.collect().rooms()
    }
}

/// Carries the frames that wait in `queue` to `to`; returns how many there were. Only broadcasts are queued.
pub(super) fn carry(queue: &PeerQueue, to: &Side) -> usize {
    frames(queue, to, |head, payload| {
        let Head::Broadcast(head) = head else { panic!("only broadcasts are queued") };
        to.hub.deliver(&head, &payload);
    })
}

/// As [`carry`], for frames of any kind; `from` is what `to` keeps for the sender.
pub(super) fn pass(queue: &PeerQueue, to: &Side, from: &Arc<PeerQueue>) -> usize {
    frames(queue, to, |head, payload| match head {
        Head::Broadcast(head) => to.hub.deliver(&head, &payload),
        Head::Request(head) => to.hub.request(from, None, &head, &payload),
        Head::Answer { id } => drop(to.hub.requests.answered(from.slot, id, payload)),
        Head::End { id, status } => to.hub.requests.ended(from.slot, id, status),
        Head::Credit { id, answers } => from.serving.grant(id, answers),
        Head::Cancel { id } => from.serving.cancel(id),
        other => panic!("{other:?}"),
    })
}

fn frames(queue: &PeerQueue, to: &Side, mut each: impl FnMut(Head<'_>, Bytes)) -> usize {
    let mut chunks = Vec::new();
    queue.take(usize::MAX >> 1, &mut chunks);
    let wire = Bytes::from(chunks.concat());
    let (mut at, mut frames) = (0, 0);
    let mut last = Bytes::new();
    while at < wire.len() {
        let length = u32::from_le_bytes(*wire[at..].first_chunk::<LENGTH_BYTES>().unwrap()) as usize;
        let frame = wire.slice(at + LENGTH_BYTES..at + LENGTH_BYTES + length);
        let (head, used) = decode_head(&frame, &to.hub.limits).unwrap();
        match head {
            Head::Again => each(decode_head(&last, &to.hub.limits).unwrap().0, frame.slice(used..)),
            head => {
                if matches!(head, Head::Broadcast(_)) {
                    last = frame.slice(..used);
                }
                each(head, frame.slice(used..));
            }
        }
        (at, frames) = (at + LENGTH_BYTES + length, frames + 1);
    }
    frames
}
