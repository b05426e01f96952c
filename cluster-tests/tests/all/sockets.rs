//! Socket.IO servers on real nodes, and clients in this process that acknowledge.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cluster_tests::{Live, eventually};
use engineioxide::Packet;
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket};
use socketioxide::operators::BroadcastOperators;
use socketioxide::socket::Sid;
use socketioxide::{ParserConfig, SocketIo};
use tokio::sync::mpsc::{Receiver, Sender};

pub(crate) const NS: &str = "/ops";
/// What is sent and acknowledged: no text.
pub(crate) const ASKED: Bytes = Bytes::from_static(b"\x00\xffask");
pub(crate) const ACKED: Bytes = Bytes::from_static(b"\xfe\x00ok");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parser {
    Json,
    MsgPack,
}

/// A Socket.IO server on a node.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) io: SocketIo<Adapter>,
    parser: Parser,
    /// The sockets that connected, in this order, and the rooms for the next.
    seats: Arc<Mutex<(Vec<Sid>, Vec<&'static str>)>>,
}

/// A client in this process.
pub(crate) struct Client {
    pub(crate) sid: Sid,
    heard: Arc<Mutex<Vec<Packet>>>,
    pub(crate) answers: Arc<AtomicBool>,
    _tx: Sender<Packet>,
}

impl Server {
    pub(crate) fn without_namespace(node: &Live, parser: Parser, config: RoomcastAdapterConfig) -> Self {
        let constructor = RoomcastAdapterCtr::new_with_config(&node.node, config);
        let builder = SocketIo::builder();
        let builder = match parser {
            Parser::Json => builder,
            Parser::MsgPack => builder.with_parser(ParserConfig::msgpack()),
        };
        let io = builder.with_adapter::<RoomcastAdapter<_>>(constructor).build_layer().1;
        Self { io, parser, seats: Arc::default() }
    }

    pub(crate) async fn start(node: &Live, parser: Parser, config: RoomcastAdapterConfig) -> Self {
        let server = Self::without_namespace(node, parser, config);
        let seats = Arc::clone(&server.seats);
        let connect = async move |socket: Socket| {
            let mut seats = seats.lock().unwrap();
            let rooms = seats.1.clone();
            socket.join(rooms);
            seats.0.push(socket.id);
        };
        server.io.ns(NS, connect).await.unwrap();
        server
    }

    pub(crate) fn all(&self) -> BroadcastOperators<Adapter> {
        self.io.of(NS).unwrap()
    }

    fn sids(&self) -> Vec<Sid> {
        self.seats.lock().unwrap().0.clone()
    }

    /// Connects a client that joins these rooms.
    pub(crate) async fn connect(&self, rooms: &[&'static str]) -> Client {
        let before = self.sids().len();
        self.seats.lock().unwrap().1 = rooms.to_vec();
        let (heard, answers): (Arc<Mutex<Vec<_>>>, _) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let (tx, rx) = self.io.new_dummy_sock(NS, ()).await;
        if self.parser == Parser::MsgPack {
            let nsp = [&[0xa0 | NS.len() as u8], NS.as_bytes()].concat();
            let packet = [b"\x82\xa4type\x00\xa3nsp", &nsp[..]].concat();
            tx.send(Packet::Binary(packet.into())).await.unwrap();
        }
        tokio::spawn(client(self.parser, rx, tx.clone(), Arc::clone(&heard), Arc::clone(&answers)));
        eventually("the client is connected", || self.sids().len() > before).await;
        Client { sid: self.sids()[before], heard, answers, _tx: tx }
    }
}

/// Keeps what comes, and acknowledges.
pub(crate) async fn client(
    parser: Parser,
    mut rx: Receiver<Packet>,
    tx: Sender<Packet>,
    heard: Arc<Mutex<Vec<Packet>>>,
    answers: Arc<AtomicBool>,
) {
    while let Some(packet) = rx.recv().await {
        let reply = acknowledgement(parser, &packet);
        heard.lock().unwrap().push(packet);
        if answers.load(Ordering::Relaxed) {
            for packet in reply {
                if tx.send(packet).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The packets that acknowledge an event; none for what asks for no acknowledgement.
fn acknowledgement(parser: Parser, packet: &Packet) -> Vec<Packet> {
    match (parser, packet) {
        // 51-/ops,7["ask",{"_placeholder":true,"num":0}]
        (Parser::Json, Packet::Message(text)) => {
            let event = text.as_str().strip_prefix("51-/ops,");
            let Some((id, _)) = event.and_then(|event| event.split_once('[')) else { return Vec::new() };
            if id.is_empty() {
                return Vec::new();
            }
            let ack = format!("61-{NS},{id}[{{\"_placeholder\":true,\"num\":0}}]");
            vec![Packet::Message(ack.into()), Packet::Binary(ACKED)]
        }
        // A map of type, nsp, data and, at the end, id.
        (Parser::MsgPack, Packet::Binary(event)) => {
            let Some(at) = event.windows(3).rposition(|part| part == b"\xa2id") else { return Vec::new() };
            let nsp = [&[0xa0 | NS.len() as u8], NS.as_bytes()].concat();
            let head =
                [b"\x84\xa4type\x03\xa3nsp", &nsp[..], b"\xa4data\x91\xc4", &[ACKED.len() as u8]].concat();
            vec![Packet::Binary([&head[..], &ACKED, &event[at..]].concat().into())]
        }
        _ => Vec::new(),
    }
}

impl Client {
    /// Whether it got a packet with these bytes.
    pub(crate) fn heard(&self, part: &[u8]) -> bool {
        self.count(part) > 0
    }

    /// How many packets with these bytes it got.
    pub(crate) fn count(&self, part: &[u8]) -> usize {
        let heard = self.heard.lock().unwrap();
        let holds = |packet: &&Packet| match packet {
            Packet::Message(text) => text.as_bytes().windows(part.len()).any(|window| window == part),
            Packet::Binary(bytes) => bytes.windows(part.len()).any(|window| window == part),
            _ => false,
        };
        heard.iter().filter(holds).count()
    }
}
