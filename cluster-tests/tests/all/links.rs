//! Links: how two are settled, what a break costs, and what a slow peer costs the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_tests::cluster::{event, formed};
use cluster_tests::recorder::stamp_of;
use cluster_tests::{Live, RawPeer, Recorder, Setup, eventually, probe, stamp};
use roomcast::core::frame::Head;
use roomcast::{DropReason, Event, Namespace};

/// Both sides know the address of the other and dial in the same moment, 50 times.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn simultaneous_dials_end_in_one_link() {
    for batch in 0..10 {
        let pairs: Vec<_> = (0..5).map(|index| tokio::spawn(crossing(batch * 5 + index))).collect();
        for pair in pairs {
            pair.await.unwrap();
        }
    }
}

/// Both send from the first moment on, while the dials are settled: what was for the other side arrives there.
async fn crossing(index: usize) {
    let setup = Setup::new(&format!("cross{index}"));
    let (first, second) = (setup.seat(0), setup.seat(1));
    let (a, b) =
        tokio::join!(setup.start_at(&first, [second.addr()]), setup.start_at(&second, [first.addr()]));
    let nodes = [a, b];
    let recorders = [Recorder::new(), Recorder::new()];
    let handles = [nodes[0].namespace("/").unwrap(), nodes[1].namespace("/").unwrap()];
    let _members = [handles[0].connect(recorders[0].clone()), handles[1].connect(recorders[1].clone())];
    let stop = Arc::new(AtomicBool::new(false));
    let senders = [("a", 0), ("b", 1)]
        .map(|(name, at)| tokio::spawn(emit_to_others(handles[at].clone(), name, Arc::clone(&stop))));
    formed(&nodes).await;
    let one_each = || nodes.iter().all(|node| node.open_connections() == 1 && node.report().links.len() == 1);
    eventually("one connection is left", one_each).await;
    let before = recorders[0].count_from("b").min(recorders[1].count_from("a"));
    eventually("messages flow", || {
        recorders[0].count_from("b") > before && recorders[1].count_from("a") > before
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    let [from_a, from_b] = senders;
    for (recorder, name, sent) in
        [(&recorders[1], "a", from_a.await.unwrap()), (&recorders[0], "b", from_b.await.unwrap())]
    {
        let last = sent.last().copied().unwrap_or_default();
        eventually("the last message is there", || recorder.has(name, last)).await;
        let came: Vec<u64> = recorder.numbers(name);
        assert_eq!(came, sent, "what came is not what was sent");
    }
    assert!(one_each(), "a link was replaced without need");
    for node in &nodes {
        let link = &node.report().links[0];
        assert_eq!((link.gap_frames_sent, link.gap_frames_received), (0, 0), "{link:?}");
    }
}

/// Emits numbered messages for everyone until told to stop; returns the numbers of those that another node was sent.
async fn emit_to_others(ns: Namespace, sender: &'static str, stop: Arc<AtomicBool>) -> Vec<u64> {
    let (mut number, mut sent) = (0, Vec::new());
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let receipt = ns.all().emit(stamp(sender, number)).unwrap();
        assert_eq!(receipt.targeted, receipt.queued, "{receipt:?}");
        if receipt.queued > 0 {
            sent.push(number);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sent
}

/// Links that break soon when nothing is heard, and a long memory.
fn brittle(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.link.resume_window = Duration::from_secs(600);
        config.link.handshake_timeout = Duration::from_secs(2);
        config.members.dead_linger_ms = 600_000;
    })
}

/// Emits numbered messages to `room` until told to stop; returns how many.
async fn emit_until(ns: Namespace, room: &'static str, sender: &'static str, stop: Arc<AtomicBool>) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        // Now and then a large one, which takes another way through the queue.
        let len = if number % 50 == 0 { 20_000 } else { 40 };
        let receipt = ns.to(room).emit(stamp_of(sender, number, len)).unwrap();
        assert_eq!((receipt.targeted, receipt.queued), (1, 1), "{receipt:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    number
}

/// The connection breaks under the link three times while both sides send.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_break_interrupts_is_sent_again_and_nothing_twice() {
    let setup = brittle("breaks");
    let nodes = setup.formed(2).await;
    let handles = [nodes[0].namespace("/").unwrap(), nodes[1].namespace("/").unwrap()];
    let recorders = [Recorder::new(), Recorder::new()];
    let members = [handles[0].connect(recorders[0].clone()), handles[1].connect(recorders[1].clone())];
    members.iter().for_each(|member| member.join("room").unwrap());
    for (index, handle) in handles.iter().enumerate() {
        let known = || handle.to("room").emit(probe()).unwrap().targeted == 1;
        eventually(format!("node {index} knows the room of the other"), known).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let senders = [("a", 0), ("b", 1)]
        .map(|(name, at)| tokio::spawn(emit_until(handles[at].clone(), "room", name, Arc::clone(&stop))));
    for _ in 0..3 {
        let mut events = [nodes[0].events(), nodes[1].events()];
        let before = recorders[1].count_from("a");
        eventually("messages flow", || recorders[1].count_from("a") > before + 20).await;
        nodes[1].gate.cut();
        for (node, events) in nodes.iter().zip(&mut events) {
            event(events, "link down", |event| matches!(event, Event::LinkDown { .. })).await;
            eventually("no link", || node.report().links.iter().all(|link| link.state == "down")).await;
        }
        nodes[1].gate.heal();
        for events in &mut events {
            event(events, "link synced", |event| matches!(event, Event::LinkSynced { .. })).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    let [from_a, from_b] = senders;
    let (from_a, from_b) = (from_a.await.unwrap(), from_b.await.unwrap());
    eventually("the last message of each is there", || {
        recorders[1].has("a", from_a) && recorders[0].has("b", from_b)
    })
    .await;

    check_flow(&recorders[1], "a", from_a);
    check_flow(&recorders[0], "b", from_b);
    for (node, other) in nodes.iter().zip([&nodes[1], &nodes[0]]) {
        let link = node.link(other.name()).unwrap();
        assert_eq!((link.gap_frames_sent, link.gap_frames_received), (0, 0), "{link:?}");
        assert!(link.links >= 4, "three breaks make four links: {link:?}");
    }
}

/// The numbers 1 to `last`, each once and in order; probes of other senders do not matter.
fn check_flow(recorder: &Recorder, sender: &str, last: u64) {
    assert_eq!(recorder.numbers(sender), (1..=last).collect::<Vec<_>>());
}

/// A pause that is shorter than the idle timeout does not even break the link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_pause_is_only_a_pause() {
    let setup = Setup::new("pause").config(|config| {
        config.quic.idle_timeout = Duration::from_secs(600);
        config.link.silence_limit = Duration::from_secs(600);
        config.link.stall_limit = Duration::from_secs(600);
    });
    let nodes = setup.formed(2).await;
    let (here, there) = (nodes[0].namespace("/").unwrap(), nodes[1].namespace("/").unwrap());
    let recorder = Recorder::new();
    let _member = there.connect(recorder.clone());
    eventually("the member is known", || {
        here.to("x").emit("").is_ok() && here.all().emit(probe()).unwrap().targeted == 1
    })
    .await;
    let mut number = 0;
    for _ in 0..5 {
        let sent = || nodes[0].link("pause-1").unwrap().bytes_sent;
        let (before, lost) = (sent(), nodes[1].gate.lost());
        nodes[1].gate.cut();
        for _ in 0..50 {
            number += 1;
            here.all().emit(stamp("zero", number)).unwrap();
        }
        eventually("they were written", || sent() >= before + 50 * 8).await;
        eventually("packets were lost", || nodes[1].gate.lost() > lost).await;
        assert!(!recorder.has("zero", number), "the cut leaks");
        nodes[1].gate.heal();
        eventually("all came after all", || recorder.has("zero", number)).await;
    }
    assert_eq!(recorder.numbers("zero"), (1..=number).collect::<Vec<_>>());
    assert_eq!(nodes[0].link("pause-1").unwrap().links, 1);
}

/// What does not fit into the window is lost, and both sides count it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_the_window_is_a_gap_on_both_sides() {
    let setup = brittle("window").config(|config| {
        config.link.resume_window = Duration::from_millis(200);
        // Who finds the other dead forgets its numbers after the window, and begins anew when it comes back.
        config.gossip.phi_threshold = 1e6;
    });
    let nodes = setup.formed(2).await;
    let (here, there) = (nodes[0].namespace("/").unwrap(), nodes[1].namespace("/").unwrap());
    let recorder = Recorder::new();
    let _member = there.connect(recorder.clone());
    eventually("the member is known", || here.all().emit(probe()).unwrap().targeted == 1).await;
    let queued = || nodes[0].link("window-1").unwrap().queue_frames;
    eventually("the probes are acknowledged", || queued() == 0).await;
    let mut events = [nodes[0].events(), nodes[1].events()];
    nodes[1].gate.cut();
    for events in &mut events {
        event(events, "link down", |event| matches!(event, Event::LinkDown { .. })).await;
    }
    for number in 1..=7 {
        here.all().emit(stamp("zero", number)).unwrap();
    }
    eventually("they have expired", || queued() == 0).await;
    here.all().emit(stamp("zero", 8)).unwrap();
    nodes[1].gate.heal();
    // The eighth may have expired before the link came up; then it is counted, too.
    let mut lost = [0, 0];
    for (side, events) in events.iter_mut().enumerate() {
        let found = event(events, "gap", |event| matches!(event, Event::Gap { .. })).await;
        let Event::Gap { frames, outgoing, .. } = found else { unreachable!("filtered") };
        assert_eq!(outgoing, side == 0);
        lost[side] = frames;
    }
    assert!(lost == [7, 7] || lost == [8, 8], "{lost:?}");
    let link = nodes[0].link("window-1").unwrap();
    let other = nodes[1].link("window-0").unwrap();
    assert_eq!((link.gap_frames_sent, other.gap_frames_received), (lost[0], lost[1]));
    here.all().emit(stamp("zero", 9)).unwrap();
    eventually("it goes on", || recorder.has("zero", 9)).await;
    recorder.check();
}

/// A peer that stops to read fills its own queue, and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_read_costs_only_itself() {
    const BATCH: u64 = 8;
    let setup = Setup::new("frozen").config(|config| {
        config.link.outbox_bytes = 2 << 20;
        config.link.silence_limit = Duration::from_secs(600);
        config.link.stall_limit = Duration::from_secs(600);
    });
    let nodes = setup.formed(2).await;
    let peer = RawPeer::new(&setup, 9);
    let mut frozen = peer.link(nodes[0].addr(), "/chat").await;
    eventually("the frozen peer is linked", || nodes[0].is_linked_to(&peer.id)).await;

    let (here, there) = (nodes[0].namespace("/chat").unwrap(), nodes[1].namespace("/chat").unwrap());
    let recorder = Recorder::new();
    let _member = there.connect(recorder.clone());
    eventually("both are targeted", || here.all().emit(probe()).unwrap().targeted == 2).await;

    let (mut number, mut dropped) = (0, 0);
    while dropped < 5 * BATCH {
        for _ in 0..BATCH {
            number += 1;
            let receipt = here.all().emit(stamp_of("zero", number, 16 << 10)).unwrap();
            assert_eq!(receipt.targeted, 2);
            for (node, reason) in receipt.dropped {
                assert_eq!((node.as_str(), reason), (peer.id.as_str(), DropReason::QueueFull));
                dropped += 1;
            }
        }
        eventually("the other peer keeps up", || recorder.has("zero", number)).await;
    }
    check_flow(&recorder, "zero", number);
    let link = nodes[0].link(&peer.id).unwrap();
    assert_eq!((link.state.as_str(), link.drops.queue_full), ("up", dropped));
    assert!(link.queue_bytes <= 2 << 20, "{link:?}");
    assert_eq!(nodes[0].link(nodes[1].name()).unwrap().drops.queue_full, 0);

    // It wakes up: what is in the queue comes, and its acknowledgement makes room.
    let mut frames = 0;
    while frames < link.queue_frames {
        let frame = frozen.next().await.expect("the link stands");
        frames += u64::from(matches!(cluster_tests::raw::read(&frame), Head::Broadcast(_)));
    }
    frozen.say(&Head::Received { seq: link.frames_sent, interest: 1 }, &[]).await;
    eventually("the queue is empty", || nodes[0].link(&peer.id).is_some_and(|link| link.queue_frames == 0))
        .await;
    let receipt = here.all().emit(stamp("zero", number + 1)).unwrap();
    assert!(receipt.dropped.is_empty(), "{receipt:?}");
    still(&nodes);
}

/// A frame that takes long to arrive is no silence and no standstill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_frame_over_a_slow_path_does_not_break_the_link() {
    let setup = Setup::new("slowpath").config(|config| {
        config.link.silence_limit = Duration::from_secs(1);
        config.link.stall_limit = Duration::from_secs(2);
        config.link.heartbeat = Duration::from_millis(100);
    });
    let nodes = setup.formed(2).await;
    let (here, there) = (nodes[0].namespace("/").unwrap(), nodes[1].namespace("/").unwrap());
    let recorder = Recorder::new();
    let _member = there.connect(recorder.clone());
    eventually("the member is known", || here.all().emit(probe()).unwrap().targeted == 1).await;
    let links = || [0, 1].map(|at| nodes[at].link(nodes[1 - at].name()).unwrap().links);
    let before = links();
    // It takes eight times as long as nothing may be heard, and four times as long as nothing may be applied.
    nodes[0].gate.slow_down(500_000);
    here.all().emit(stamp_of("zero", 1, 4 << 20)).unwrap();
    here.all().emit(stamp("zero", 2)).unwrap();
    eventually("it arrives", || recorder.has("zero", 2)).await;
    check_flow(&recorder, "zero", 2);
    assert_eq!(links(), before, "the link broke");
    still(&nodes);
}

/// A process that ends without a word, or a program that is no node, closes with the code 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_dropped_without_a_word_is_a_break_and_no_goodbye() {
    const DROPPED: u32 = 0;
    const LEFT: u32 = 1;
    let setup = brittle("wordless");
    let nodes = setup.formed(1).await;
    let peer = RawPeer::new(&setup, 9);
    for (code, kept) in [(DROPPED, true), (LEFT, false)] {
        let link = peer.link(nodes[0].addr(), "/chat").await;
        eventually("the peer is linked", || nodes[0].is_linked_to(&peer.id)).await;
        link.conn.close(code.into(), b"");
        let state = || nodes[0].link(&peer.id).map(|link| link.state);
        let wanted = kept.then(|| "down".to_owned());
        eventually(format!("after the code {code} it is {wanted:?}"), || state() == wanted).await;
    }
    still(&nodes);
}

fn still(nodes: &[Live]) {
    assert!(nodes.iter().all(|node| node.is_live() && node.report().counters.violations == 0));
}
