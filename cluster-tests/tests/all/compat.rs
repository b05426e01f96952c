//! What a user of socketioxide relies on, seen from outside: nothing but its public API and what clients get, over three
//! real nodes, with both parsers, in flood namespaces and in exact ones.

mod broadcast;
mod local;
mod rooms;
mod sockets;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use cluster_tests::wait::soon;
use cluster_tests::{Live, Setup, eventually};
use roomcast::socketioxide::{Adapter, RoomcastAdapterConfig};
use socketioxide::extract::SocketRef;
use socketioxide::operators::BroadcastOperators;
use socketioxide::socket::{RemoteSocket, Sid};

use super::sockets::{Client, NS, Parser, Server};

pub(crate) type Operators = BroadcastOperators<Adapter>;
/// Chooses sockets of those that an operator selects.
pub(crate) type Select = fn(Operators) -> Operators;

/// The clients of [`Cluster`]: the server of each, and its rooms.
const SEATS: [(usize, &[&str]); 8] = [
    (0, &["lobby"]),
    (0, &["lobby", "quiet"]),
    (0, &[]),
    (1, &["lobby"]),
    (1, &["lobby", "quiet"]),
    (2, &["quiet"]),
    (2, &["alone"]),
    (2, &[]),
];

/// What servers select, on whichever of them: none, one and many, here and there. Clients are meant by their seats.
const SELECTIONS: [(&str, Select, &[usize]); 15] = [
    ("all", |all| all, &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("broadcast", |all| all.broadcast(), &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("a room", |all| all.to("lobby"), &[0, 1, 3, 4]),
    ("within a room", |all| all.within("lobby"), &[0, 1, 3, 4]),
    ("two rooms that share sockets", |all| all.to(["lobby", "quiet"]), &[0, 1, 3, 4, 5]),
    ("rooms one by one", |all| all.to("lobby").to("quiet").to("alone"), &[0, 1, 3, 4, 5, 6]),
    ("a room twice", |all| all.to("lobby").within("lobby"), &[0, 1, 3, 4]),
    ("a room except another", |all| all.to("lobby").except("quiet"), &[0, 3]),
    ("a room except two", |all| all.to(["lobby", "quiet"]).except(["lobby", "alone"]), &[5]),
    ("except only", |all| all.except("lobby"), &[2, 5, 6, 7]),
    ("except all rooms", |all| all.except(["lobby", "quiet"]).except("alone"), &[2, 7]),
    ("except nobody", |all| all.except("nobody"), &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("one", |all| all.to(["nobody", "alone"]), &[6]),
    ("a room except itself", |all| all.to("alone").except("alone"), &[]),
    ("nobody", |all| all.to("nobody"), &[]),
];

/// Three servers on nodes of their own, and a client on each of [`SEATS`]. All nodes know of all rooms.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Live>,
    pub(crate) parser: Parser,
    pub(crate) exact: bool,
    servers: Vec<Server>,
    clients: Vec<Client>,
    words: AtomicUsize,
}

impl Cluster {
    /// Runs a test with both parsers, in a flood and in an exact namespace: four times, on the same nodes.
    pub(crate) async fn each(name: &str, test: impl AsyncFn(&Cluster)) {
        let both =
            [(Parser::Json, true), (Parser::MsgPack, false), (Parser::Json, false), (Parser::MsgPack, true)];
        Self::with(name, &both, test).await;
    }

    /// Runs a test with each parser once: JSON in a flood namespace, MsgPack in an exact one.
    pub(crate) async fn in_turns(name: &str, test: impl AsyncFn(&Cluster)) {
        Self::with(name, &[(Parser::Json, false), (Parser::MsgPack, true)], test).await;
    }

    async fn with(name: &str, ways: &[(Parser, bool)], test: impl AsyncFn(&Cluster)) {
        let mut nodes = Setup::new(name).formed(3).await;
        for (parser, exact) in ways.iter().copied() {
            println!("{parser:?}, exact: {exact}");
            let (mut servers, mut clients) = (Vec::new(), Vec::new());
            let config = RoomcastAdapterConfig::new().with_exact_rooms(exact);
            for node in &nodes {
                servers.push(Server::start(node, parser, config.clone()).await);
            }
            for (server, rooms) in SEATS {
                clients.push(servers[server].connect(rooms).await);
            }
            let cluster = Self { nodes, parser, exact, servers, clients, words: AtomicUsize::new(0) };
            cluster.settle().await;
            test(&cluster).await;
            for node in &cluster.nodes {
                eventually("nothing is pending", || node.pending_requests() == (0, 0)).await;
            }
            cluster.servers.iter().for_each(|server| server.io.delete_ns(NS));
            nodes = cluster.nodes;
        }
    }

    /// Waits until every node has heard of the rooms of the others.
    pub(crate) async fn settle(&self) {
        for node in &self.nodes {
            soon("settled", node.settled()).await;
        }
    }

    /// All sockets, as a server selects them.
    pub(crate) fn io(&self, server: usize) -> Operators {
        self.servers[server].all()
    }

    pub(crate) fn client(&self, seat: usize) -> &Client {
        &self.clients[seat]
    }

    /// The socket of a client, on the server it is connected to.
    pub(crate) fn socket(&self, seat: usize) -> SocketRef<Adapter> {
        self.io(SEATS[seat].0).get_socket(self.clients[seat].sid).expect("the socket is connected")
    }

    /// The socket of a client, as another server (or its own) gets it.
    pub(crate) async fn remote(&self, server: usize, seat: usize) -> RemoteSocket<Adapter> {
        let found = self.io(server).fetch_sockets().await.unwrap();
        found.into_iter().find(|socket| socket.data().id == self.clients[seat].sid).expect("it is connected")
    }

    pub(crate) fn sids(&self, seats: &[usize]) -> BTreeSet<Sid> {
        seats.iter().map(|seat| self.clients[*seat].sid).collect()
    }

    /// Something to say that nobody has said: no text.
    pub(crate) fn word(&self) -> Bytes {
        let number = self.words.fetch_add(1, Ordering::Relaxed);
        [b"\x00\xffword-", number.to_string().as_bytes(), b"-"].concat().into()
    }

    /// Has a server emit something, and tells the seats that hear it.
    pub(crate) async fn emit(&self, server: usize, to: Operators) -> Vec<usize> {
        let word = self.word();
        to.emit("said", &word).await.unwrap();
        self.hear(server, &word).await
    }

    /// The seats that have heard, exactly once, what a server said before: known when something later has come.
    pub(crate) async fn hear(&self, server: usize, word: &Bytes) -> Vec<usize> {
        let later = format!("later-{}-", self.words.fetch_add(1, Ordering::Relaxed));
        self.io(server).emit("later", &later).await.unwrap();
        for seat in 0..SEATS.len() {
            let come = || self.clients[seat].heard(later.as_bytes()) || self.is_gone(seat);
            eventually(format!("client {seat} hears {later}"), come).await;
        }
        self.heard(word)
    }

    /// The seats that have heard something so far, and none twice.
    pub(crate) fn heard(&self, word: &Bytes) -> Vec<usize> {
        let counts: Vec<usize> = self.clients.iter().map(|client| client.count(word)).collect();
        assert!(counts.iter().all(|count| *count <= 1), "nobody hears a thing twice: {counts:?}");
        (0..SEATS.len()).filter(|seat| counts[*seat] == 1).collect()
    }

    /// Whether a client was told that it is disconnected. Nothing comes after that.
    pub(crate) fn is_gone(&self, seat: usize) -> bool {
        match self.parser {
            Parser::Json => self.clients[seat].heard(b"1/ops,"),
            Parser::MsgPack => self.clients[seat].heard(b"\xa4type\x01"),
        }
    }

    /// Counted frames that each node has queued for the others.
    pub(crate) fn frames(&self) -> Vec<u64> {
        self.nodes.iter().map(Live::frames_sent).collect()
    }
}

/// What a future has on its first poll.
#[track_caller]
pub(crate) fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not on the first poll"),
    }
}

fn names<const COUNT: usize>(names: [&str; COUNT]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}
