//! Messages reach who is in the room, and only the nodes that have someone in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_tests::raw::read;
use cluster_tests::recorder::stamp_of;
use cluster_tests::{Live, RawPeer, Recorder, Setup, eventually, probe, stamp};
use roomcast::core::frame::{Head, InterestHead, InterestPart, WireMode};
use roomcast::{Member, Namespace};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_nodes_the_two_with_members_get_one_frame_each() {
    let setup = Setup::new("ten");
    let nodes = setup.formed(10).await;
    let handles: Vec<Namespace> = nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect();
    let (lobby, other) = (Recorder::new(), Recorder::new());
    let members: Vec<Member> = [3, 7].into_iter().map(|at| join(&handles[at], &lobby, "lobby")).collect();
    let _elsewhere = join(&handles[5], &other, "other");

    let mut number = 0;
    let mut emit = || {
        number += 1;
        handles[0].to("lobby").emit(stamp("zero", number)).unwrap()
    };
    eventually("two nodes are interested", || emit().targeted == 2).await;
    let before = sent_by_peer(&nodes[0]);
    let receipt = emit();
    assert_eq!((receipt.targeted, receipt.queued, receipt.dropped.len()), (2, 2, 0));
    let after = sent_by_peer(&nodes[0]);
    let frames: Vec<(&str, u64)> = after
        .iter()
        .map(|(peer, frames)| (peer.as_str(), frames - before[peer]))
        .filter(|(_, frames)| *frames > 0)
        .collect();
    assert_eq!(frames, [("ten-3", 1), ("ten-7", 1)]);
    eventually("both members have it", || {
        lobby.numbers("zero").iter().filter(|n| **n == number).count() == 2
    })
    .await;
    assert_eq!(members.len(), 2);
    assert_eq!(other.count(), 0);
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| ![0, 3, 7].contains(index)) {
        assert_eq!(node.report().counters.frames_received, 0, "node {index} got what it has nobody for");
    }
}

/// What an emit costs does not grow with the peers by more than their queues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_is_encoded_once_for_all_peers() {
    const EMITS: u64 = 20;
    let setup = Setup::new("once");
    let nodes = setup.formed(4).await;
    let handles: Vec<Namespace> = nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect();
    let recorder = Recorder::new();
    let _members: Vec<Member> = handles[1..].iter().map(|handle| join(handle, &recorder, "lobby")).collect();
    eventually("all are interested", || handles[0].to("lobby").emit(probe()).unwrap().targeted == 3).await;
    let counters = || nodes[0].report().counters;
    let before = counters();
    for number in 1..=EMITS {
        handles[0].to("lobby").emit(stamp_of("zero", number, 4_000)).unwrap();
        handles[0].to("nobody").emit(probe()).unwrap();
    }
    let after = counters();
    assert_eq!(after.frames_sent - before.frames_sent, 3 * EMITS);
    assert_eq!(after.emits - before.emits, 2 * EMITS);
    assert_eq!(after.heads_encoded - before.heads_encoded, EMITS, "once, and only if somebody gets it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_leaves_and_dropped_members_are_known_elsewhere() {
    let setup = Setup::new("joins").config(|config| config.interest.linger_ms = 0);
    let nodes = setup.formed(2).await;
    let (here, there) = (nodes[0].namespace("/chat").unwrap(), nodes[1].namespace("/chat").unwrap());
    let mut number = 0;
    let mut targeted = |room: &str| {
        number += 1;
        here.to(room).emit(stamp(room, number)).unwrap().targeted
    };
    assert_eq!(targeted("lobby"), 0, "nobody is there");

    let recorder = Recorder::new();
    let member = join(&there, &recorder, "lobby");
    eventually("the join is known", || targeted("lobby") == 1).await;
    eventually("the message arrives", || recorder.count_from("lobby") > 0).await;
    assert_eq!(targeted("else"), 0, "other rooms are not meant");

    member.leave("lobby");
    eventually("the leave is known", || targeted("lobby") == 0).await;
    member.join("lobby").unwrap();
    eventually("the second join is known", || targeted("lobby") == 1).await;
    drop(member);
    eventually("who is gone has left", || targeted("lobby") == 0).await;
    recorder.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_for_everyone_goes_where_someone_is_connected() {
    let setup = Setup::new("everyone").config(|config| config.interest.linger_ms = 0);
    let nodes = setup.formed(3).await;
    let handles: Vec<Namespace> = nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect();
    let mut number = 0;
    let mut targeted = || {
        number += 1;
        handles[0].all().emit(stamp("all", number)).unwrap().targeted
    };
    assert_eq!(targeted(), 0);
    let recorder = Recorder::new();
    let member = handles[2].connect(recorder.clone());
    eventually("the member is known", || targeted() == 1).await;
    eventually("the message arrives", || recorder.count() == 1).await;

    // Another namespace of the same node is another matter.
    let admin = nodes[0].namespace("/admin").unwrap();
    assert_eq!(admin.all().emit("x").unwrap().targeted, 0);
    drop(member);
    eventually("nobody is left", || targeted() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn excepted_rooms_and_the_sender_are_left_out_in_the_whole_cluster() {
    let setup = Setup::new("except");
    let nodes = setup.formed(2).await;
    let (here, there) = (nodes[0].namespace("/").unwrap(), nodes[1].namespace("/").unwrap());
    let (me, friend, quiet) = (Recorder::new(), Recorder::new(), Recorder::new());
    let sender = join(&here, &me, "lobby");
    let _friend = join(&there, &friend, "lobby");
    let hushed = join(&there, &quiet, "lobby");
    hushed.join("quiet").unwrap();
    eventually("both rooms are known", || {
        here.to("quiet").except("quiet").emit(probe()).unwrap().targeted == 1
    })
    .await;
    for number in 1..=10 {
        sender.to("lobby").except("quiet").emit(stamp("me", number)).unwrap();
    }
    // In both rooms, and once.
    sender.to(["lobby", "quiet"]).emit(stamp("me", 11)).unwrap();
    eventually("the last message is there", || friend.has("me", 11) && quiet.has("me", 11)).await;
    friend.check_all("me", 11);
    assert_eq!((me.count(), quiet.numbers("me")), (0, vec![11]));
}

/// Members come and go in 100 rooms while two nodes send to all of them: who stays misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rooms_churn_while_messages_flow() {
    const ROOMS: usize = 100;
    const ROUNDS: u64 = 25;
    // No damping: every last leave is told, and every first join again.
    let setup = Setup::new("churn").config(|config| config.interest.linger_ms = 0);
    let nodes = setup.formed(3).await;
    let handles: Vec<Namespace> = nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect();
    let room = |index: usize| format!("room-{index}");

    // On node 2 one member of each even room stays, on node 1 one of each third.
    let mut stayers = Vec::new();
    for (at, every) in [(2, 2), (1, 3)] {
        for index in (0..ROOMS).step_by(every) {
            let recorder = Recorder::new();
            stayers.push((index, join(&handles[at], &recorder, &room(index)), recorder));
        }
    }
    for (at, every) in [(2, 2), (1, 3)] {
        let rooms = (0..ROOMS).step_by(every).count() as u64;
        for (other, node) in nodes.iter().enumerate().filter(|(other, _)| *other != at) {
            let known = || node.link(nodes[at].name()).is_some_and(|link| link.rooms >= rooms);
            eventually(format!("node {other} knows the {rooms} rooms of node {at}"), known).await;
        }
    }

    let stop = Arc::new(AtomicBool::new(false));
    let churners: Vec<_> = (0..12u64)
        .map(|seed| {
            tokio::spawn(churn(handles[1 + seed as usize % 2].clone(), seed, ROOMS, Arc::clone(&stop)))
        })
        .collect();
    let senders: Vec<_> = [0, 1]
        .map(|at| {
            let handle = handles[at].clone();
            tokio::spawn(async move {
                for round in 1..=ROUNDS {
                    for index in 0..ROOMS {
                        let message = stamp(&format!("{at}"), round);
                        let receipt = handle.to(format!("room-{index}")).emit(message).unwrap();
                        assert!(receipt.dropped.is_empty(), "{receipt:?}");
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .into_iter()
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for churner in churners {
        churner.await.unwrap();
    }
    eventually("every message has arrived", || {
        stayers.iter().all(|(_, _, recorder)| recorder.count() as u64 >= 2 * ROUNDS)
    })
    .await;
    for (_, _, recorder) in &stayers {
        recorder.check_all("0", ROUNDS);
        recorder.check_all("1", ROUNDS);
        assert_eq!(recorder.count() as u64, 2 * ROUNDS);
    }
}

/// Joins, leaves and reconnects in one room until told to stop. What it hears must be in order.
async fn churn(handle: Namespace, seed: u64, rooms: usize, stop: Arc<AtomicBool>) {
    let mut state = seed;
    while !stop.load(Ordering::SeqCst) {
        // A small generator of our own: the run is the same every time.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let room = format!("room-{}", (state >> 33) as usize % rooms);
        let recorder = Recorder::new();
        let member = handle.connect(recorder.clone());
        for _ in 0..3 {
            member.join(&room).unwrap();
            tokio::time::sleep(Duration::from_millis((state >> 40) % 4)).await;
            member.leave(&room);
        }
        if (state >> 45).is_multiple_of(2) {
            member.join(&room).unwrap();
        }
        drop(member);
        recorder.check();
    }
}

/// Superset routing: who is not known to lack a room gets what is for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_gets_everything_until_its_rooms_are_known() {
    let setup = Setup::new("superset");
    let nodes = setup.formed(1).await;
    let ns = nodes[0].namespace("/chat").unwrap();
    let targeted = |room: &str| ns.to(room).emit(probe()).unwrap().targeted;
    assert_eq!(targeted("lobby"), 0, "alone");

    let peer = RawPeer::new(&setup, 9);
    let mut link = peer.greeted(nodes[0].addr()).await;
    eventually("a peer that said nothing of rooms gets all", || targeted("lobby") == 1 && targeted("x") == 1)
        .await;
    link.say(&part(1, InterestPart::SnapshotEnd, "", WireMode::Exact, 0), &[]).await;
    eventually("a peer without rooms gets nothing", || targeted("lobby") == 0 && targeted("x") == 0).await;

    let key = roomcast::ids::Namespace::new("/chat").unwrap().room("lobby").0.to_le_bytes();
    link.say(&part(2, InterestPart::DeltaEnd, "/chat", WireMode::Exact, 1), &key).await;
    eventually("it joined one", || targeted("lobby") == 1).await;
    assert_eq!(targeted("x"), 0);
    link.say(&part(3, InterestPart::DeltaEnd, "/chat", WireMode::Flood, 0), &[]).await;
    eventually("it wants everything of the namespace", || targeted("x") == 1).await;
    assert_eq!(nodes[0].namespace("/other").unwrap().all().emit(probe()).unwrap().targeted, 0);

    // A delta that leaves one out: what is known may be wrong, so everything is sent until a new snapshot is there.
    link.say(&part(9, InterestPart::DeltaEnd, "/chat", WireMode::Gone, 0), &[]).await;
    let other = nodes[0].namespace("/other").unwrap();
    eventually("it gets all again", || other.all().emit(probe()).unwrap().targeted == 1).await;
    while !matches!(read(&link.next().await.expect("the link stands")), Head::InterestWanted) {}
    link.say(&part(9, InterestPart::SnapshotEnd, "", WireMode::Exact, 0), &[]).await;
    eventually("its new snapshot counts", || targeted("lobby") == 0 && targeted("x") == 0).await;
}

fn part(version: u64, part: InterestPart, ns: &str, mode: WireMode, added: u32) -> Head<'_> {
    Head::Interest(InterestHead { version, part, ns, number: 0, mode, added })
}

/// Users emit from threads that know nothing of tokio.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_thread_may_emit_anything() {
    let setup = Setup::new("thread");
    let nodes = setup.formed(2).await;
    let (here, there) = (nodes[0].namespace("/game").unwrap(), nodes[1].namespace("/game").unwrap());
    let recorder = Recorder::new();
    let _member = join(&there, &recorder, "arena");
    eventually("the join is known", || here.to("arena").emit(probe()).unwrap().targeted == 1).await;
    let mut number = 0;
    while recorder.count_from("large") == 0 {
        number += 1;
        let here = here.clone();
        let thread = std::thread::spawn(move || {
            here.to("arena").emit(stamp("small", number)).unwrap();
            here.to("arena").volatile().emit(stamp_of("large", number, 200_000)).unwrap()
        });
        eventually("the thread ends", || thread.is_finished()).await;
        let receipt = thread.join().expect("it does not panic");
        assert_eq!(receipt.targeted, 1);
    }
    eventually("what is not volatile came", || recorder.has("small", number)).await;
}

/// A volatile message goes around the queue: as a datagram when it fits, on a stream of its own when it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volatile_messages_arrive_and_are_never_queued() {
    let setup = Setup::new("volatile").config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
    });
    let nodes = setup.formed(2).await;
    let (here, there) = (nodes[0].namespace("/game").unwrap(), nodes[1].namespace("/game").unwrap());
    let recorder = Recorder::new();
    let _member = join(&there, &recorder, "arena");
    eventually("the join is known", || here.to("arena").emit(stamp("sure", 1)).unwrap().targeted == 1).await;
    let frames = nodes[0].frames_sent();

    let mut number = 0;
    for (sender, len) in [("small", 100), ("large", 200_000)] {
        eventually(format!("a {sender} one arrives"), || {
            number += 1;
            let message = stamp_of(sender, number, len);
            assert_eq!(here.to("arena").volatile().emit(message).unwrap().targeted, 1);
            recorder.count_from(sender) > 0
        })
        .await;
    }
    let link = nodes[0].link(nodes[1].name()).unwrap();
    assert!(link.volatile_sent >= 2, "{link:?}");
    assert_eq!(nodes[0].frames_sent(), frames, "a volatile message took the way of the others");

    nodes[1].gate.cut();
    eventually("the link is down", || {
        nodes[0].link(nodes[1].name()).is_some_and(|link| link.state == "down")
    })
    .await;
    let receipt = here.to("arena").volatile().emit(stamp("lost", 1)).unwrap();
    assert_eq!((receipt.targeted, receipt.queued), (1, 0), "{receipt:?}");
    assert_eq!(receipt.dropped[0].1, roomcast::DropReason::NotWritable);
    here.to("arena").emit(stamp("kept", 1)).unwrap();
    nodes[1].gate.heal();
    eventually("the one that is not volatile arrives", || recorder.has("kept", 1)).await;
    assert_eq!(recorder.count_from("lost"), 0);
}

fn join(ns: &Namespace, recorder: &Recorder, room: &str) -> Member {
    let member = ns.connect(recorder.clone());
    member.join(room).unwrap();
    member
}

/// Counted frames that a node has queued, by peer.
fn sent_by_peer(node: &Live) -> BTreeMap<String, u64> {
    node.report().links.into_iter().map(|link| (link.peer, link.frames_sent)).collect()
}
