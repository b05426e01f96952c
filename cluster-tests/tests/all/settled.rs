//! Settled joins: a message that is emitted after a join has settled is never missed, wherever it comes from. Without
//! `settled` it can be, until the join has got around and no longer.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::cluster::{event, formed};
use cluster_tests::wait::soon;
use cluster_tests::{Live, Recorder, Setup, eventually, probe, stamp};
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket};
use roomcast::{Event, Member, Namespace};
use serde_json::json;
use socketioxide::SocketIo;
use socketioxide::extract::Data;
use tokio::sync::mpsc;

/// Joins of one run, how many go on at a time, and over how many rooms and namespaces they are spread.
const JOINS: u64 = 10_000;
const AT_A_TIME: u64 = 100;
const ROOMS: u64 = 400;
const NAMESPACES: u64 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_settled_joins_miss_nothing() {
    let misses = misses_of("settle", JOINS, true).await;
    assert_eq!(misses, 0, "of {JOINS} settled joins");
}

/// The same, and nobody waits: the run above would notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn joins_that_do_not_wait_do_miss() {
    let misses = misses_of("hasty", JOINS / 10, false).await;
    assert!(misses > 0, "every one of {} joins was known elsewhere at once", JOINS / 10);
}

/// Members come to and go from rooms of three nodes; each has two messages sent to it, from the two other nodes, when it
/// has settled, or at once. How many of them miss one?
async fn misses_of(name: &str, joins: u64, settle: bool) -> u64 {
    let seed = std::env::var("ROOMCAST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
    println!("choices of {name}: ROOMCAST_SEED={seed}");
    // No damping: every last leave is told, and every first join again.
    let setup = Setup::new(name).config(|config| config.interest.linger_ms = 0);
    let nodes = Arc::new(setup.formed(3).await);
    let missed = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..AT_A_TIME)
        .map(|worker| {
            let (nodes, missed) = (Arc::clone(&nodes), Arc::clone(&missed));
            tokio::spawn(async move {
                let mut choices = Choices(seed ^ (worker + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                for join in (worker..joins).step_by(AT_A_TIME as usize) {
                    if !one_join(&nodes, &mut choices, join, settle).await {
                        missed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    let missed = missed.load(Ordering::SeqCst);
    println!("{name}: {missed} of {joins} joins missed a message");
    missed
}

/// Whether a member got the messages of both other nodes.
async fn one_join(nodes: &[Live], choices: &mut Choices, id: u64, settle: bool) -> bool {
    let at = choices.below(3) as usize;
    let (path, room) = (format!("/{}", choices.below(NAMESPACES)), choices.below(ROOMS).to_string());
    let others = [(at + 1) % 3, (at + 2) % 3].map(|other| nodes[other].namespace(&path).unwrap());
    choices.pause().await;

    let (ear, here) = (Ear::new(id), nodes[at].namespace(&path).unwrap());
    let member = here.connect(ear.sink());
    if choices.below(4) == 0 {
        member.join(&room).unwrap();
        choices.pause().await;
        member.leave(&room);
    }
    member.join(&room).unwrap();
    if settle {
        match choices.below(3) {
            0 => soon("settled", member.settled()).await,
            1 => soon("settled", here.settled()).await,
            _ => soon("settled", nodes[at].settled()).await,
        }
    }
    let emit = |index: usize, number: u8| {
        let receipt = others[index].to(&room).emit(Ear::message(id, number)).unwrap();
        assert_eq!(receipt.targeted, receipt.queued, "{receipt:?}");
    };
    let first = choices.below(2) as usize;
    emit(first, first as u8);
    if choices.below(2) == 0 {
        choices.pause().await;
    }
    emit(1 - first, 1 - first as u8);

    // What comes after them on the same ways shows that they have not merely not arrived yet.
    soon("settled", member.settled()).await;
    emit(0, 2);
    emit(1, 3);
    eventually("the last messages are there", || ear.heard() & 0b1100 == 0b1100).await;
    ear.heard() & 0b11 == 0b11
}

/// Hears which of its four messages came.
#[derive(Clone)]
struct Ear {
    id: u64,
    heard: Arc<AtomicU32>,
}

impl Ear {
    fn new(id: u64) -> Self {
        Self { id, heard: Arc::default() }
    }

    fn message(id: u64, number: u8) -> Bytes {
        [&id.to_le_bytes()[..], &[number]].concat().into()
    }

    /// Others are in the room at the same time: what is for them is not for this one.
    fn sink(&self) -> impl Fn(Bytes) + Send + Sync + 'static {
        let ear = self.clone();
        move |message| {
            if message[..8] == ear.id.to_le_bytes() {
                let bit = 1 << message[8];
                let before = ear.heard.fetch_or(bit, Ordering::SeqCst);
                assert_eq!(before & bit, 0, "twice");
            }
        }
    }

    fn heard(&self) -> u32 {
        self.heard.load(Ordering::SeqCst)
    }
}

/// A small generator of our own: the choices of a seed are the same every time.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// A moment, or none.
    async fn pause(&mut self) {
        match self.below(4) {
            0 => {}
            1 => tokio::task::yield_now().await,
            micros => tokio::time::sleep(Duration::from_micros(micros * self.below(1_500))).await,
        }
    }
}

/// What a join misses without `settled` is what was emitted until it got around: from the first message that arrives, all do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_settled_only_what_overtakes_the_join_is_missed() {
    let nodes = Setup::new("window").formed(2).await;
    let (here, there) = (nodes[0].namespace("/").unwrap(), nodes[1].namespace("/").unwrap());
    let mut missed = 0;
    for number in 0..100 {
        let room = format!("room-{number}");
        let (_member, recorder) = join(&here, &room);
        let mut last = 0;
        eventually("a message arrives", || {
            last += 1;
            there.to(&room).emit(stamp("there", last)).unwrap();
            recorder.count() > 0
        })
        .await;
        for _ in 0..20 {
            last += 1;
            there.to(&room).emit(stamp("there", last)).unwrap();
        }
        eventually("the last message arrives", || recorder.has("there", last)).await;
        let numbers = recorder.numbers("there");
        assert_eq!(numbers, (numbers[0]..=last).collect::<Vec<_>>());
        missed += numbers[0] - 1;
    }
    println!("{missed} messages missed at 100 joins");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_dies_and_a_node_that_stops_are_not_waited_for() {
    let setup = Setup::new("settledie").config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.members.dead_linger_ms = 500;
        config.members.unheard_ms = 1_000;
    });
    let mut nodes = setup.formed(3).await;
    let dead = nodes.pop().unwrap();
    let (there, mut events) = (nodes[1].namespace("/").unwrap(), nodes[0].events());
    dead.gate.cut();
    let (member, recorder) = join(&nodes[0].namespace("/").unwrap(), "lobby");
    let settled = tokio::spawn(member.settled());
    eventually("who lives has heard of it", || there.to("lobby").emit(probe()).unwrap().targeted == 2).await;
    // The other counts as long as it may be back.
    acknowledged(&nodes[0], nodes[1].name()).await;
    assert!(!settled.is_finished(), "one has not acknowledged");
    dead.kill().await;
    soon("settled", settled).await.unwrap();
    event(&mut events, "the end of the dead", |event| matches!(event, Event::MemberLeft { .. })).await;
    there.to("lobby").emit(stamp("there", 1)).unwrap();
    eventually("a message arrives", || recorder.has("there", 1)).await;

    // A node that stops tells nobody anything any more.
    nodes[1].gate.cut();
    member.join("attic").unwrap();
    let settled = tokio::spawn(member.settled());
    let dropped = member.settled();
    nodes[0].stop().await;
    soon("settled", settled).await.unwrap();
    member.join("cellar").unwrap();
    soon("settled at once", member.settled()).await;
    drop(dropped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_link_is_cut_is_waited_for() {
    let setup = Setup::new("settlecut").config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.link.resume_window = Duration::from_secs(600);
        config.link.handshake_timeout = Duration::from_secs(2);
        config.members.dead_linger_ms = 600_000;
    });
    let nodes = setup.formed(2).await;
    let there = nodes[1].namespace("/").unwrap();
    nodes[1].gate.cut();
    let down = || nodes[0].link(nodes[1].name()).is_some_and(|link| link.state == "down");
    eventually("the link is down", down).await;
    let (member, recorder) = join(&nodes[0].namespace("/").unwrap(), "lobby");
    let waiting = tokio::time::timeout(Duration::from_millis(200), member.settled()).await;
    assert!(waiting.is_err(), "settled with nobody there");
    let settled = tokio::spawn(member.settled());
    nodes[1].gate.heal();
    soon("settled", settled).await.unwrap();
    assert_eq!(there.to("lobby").emit(stamp("there", 1)).unwrap().queued, 1);
    eventually("the message arrives", || recorder.has("there", 1)).await;
    formed(&nodes).await;
}

/// Sockets join in their connect handler, say when they have settled, and are then sent something from the other nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_have_settled_miss_nothing() {
    const SOCKETS: u64 = 300;
    let nodes = Setup::new("settleio").formed(3).await;
    let ios: Vec<_> = nodes.iter().map(serve).collect();
    let (settled, mut heard) = mpsc::unbounded_channel();
    for (at, io) in ios.iter().enumerate() {
        for path in ["/exact", "/flood"] {
            let settled = settled.clone();
            let handler = async move |socket: Socket, Data(auth): Data<HashMap<String, u64>>| {
                let number = auth["number"];
                socket.join(format!("room-{number}"));
                socket.settled().await;
                settled.send((at, path, number)).unwrap();
            };
            io.ns(path, handler).await.unwrap();
        }
    }
    let emitter = tokio::spawn({
        let ios = ios.clone();
        async move {
            for _ in 0..SOCKETS {
                let (at, path, number) = heard.recv().await.unwrap();
                for other in [(at + 1) % 3, (at + 2) % 3] {
                    let room = ios[other].of(path).unwrap().to(format!("room-{number}"));
                    room.emit("said", &format!("<{number} from {other}>")).await.unwrap();
                }
            }
        }
    });
    let clients: Vec<_> = (0..SOCKETS)
        .map(|number| {
            let (io, at) = (ios[number as usize % 3].clone(), number % 3);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(number * 700)).await;
                let path = if number % 2 == 0 { "/exact" } else { "/flood" };
                let (_tx, mut rx) = io.new_dummy_sock(path, json!({ "number": number })).await;
                let mut missing =
                    [(at + 1) % 3, (at + 2) % 3].map(|other| format!("<{number} from {other}>"));
                while missing.iter().any(|text| !text.is_empty()) {
                    let packet = format!("{:?}", rx.recv().await.expect("the socket is connected"));
                    missing.iter_mut().filter(|text| packet.contains(&**text)).for_each(String::clear);
                }
            })
        })
        .collect();
    for client in clients {
        soon("both messages are there", client).await.unwrap();
    }
    emitter.await.unwrap();
}

fn serve(node: &Live) -> SocketIo<Adapter> {
    let config = RoomcastAdapterConfig::new().with_exact_namespace("/exact");
    let constructor = RoomcastAdapterCtr::new_with_config(&node.node, config);
    SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(constructor).build_layer().1
}

fn join(ns: &Namespace, room: &str) -> (Member, Recorder) {
    let recorder = Recorder::new();
    let member = ns.connect(recorder.clone());
    member.join(room).unwrap();
    (member, recorder)
}

/// Waits until `peer` has acknowledged all that `node` wants to hear.
async fn acknowledged(node: &Live, peer: &str) {
    eventually("the peer is up to date", || {
        let report = node.report();
        let link = report.links.iter().find(|link| link.peer == peer);
        link.is_some_and(|link| link.interest_version_acknowledged == report.interest.version)
    })
    .await;
}
