//! Peers with the secret that misuse time, numbers and streams: each limit ends that link, with its reason, or costs that peer
//! alone, and nothing else happens.

use std::time::Duration;

use cluster_tests::logs::{self, logged};
use cluster_tests::raw::{broadcast, frame, read};
use cluster_tests::recorder::stamp_of;
use cluster_tests::wait::soon;
use cluster_tests::{RawPeer, eventually};
use roomcast::core::frame::{EndStatus, Head, RefusalKind, Resume, trace_frame};
use tokio::time::timeout;

use crate::hostile::{Scene, VIOLATION};

/// What a node closes a link with on which it hears nothing.
const SILENT: u64 = 5;
/// What a node closes a link with that gets nothing done.
const STALLED: u64 = 7;

/// A `Start` in the middle of a link says that frames were given up. It may step forward, which is a gap, and never back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_step_forward_only() {
    let mut scene = Scene::new("jumps").await;
    let start = |first| frame(&Head::Start { first }, b"").to_vec();
    let said = frame(&broadcast("/elsewhere"), b"x").to_vec();
    scene.attack("an unexpected start", &start(0)).await;
    scene.attack("an unexpected start", &[&said[..], &said, &start(2)].concat()).await;
    scene.attack("an unexpected start", &[&start(1_000)[..], &said, &start(1_000)].concat()).await;
    scene.attack("first frame number", &start((1 << 62) + 1)).await;

    let peer = scene.peer();
    let mut link = peer.link(scene.nodes[0].addr(), "/elsewhere").await;
    link.say_bytes(&[start(1_000), said.clone(), start(1 << 62), said].concat()).await;
    eventually("both frames are taken, and the others are counted as lost", || {
        let report = scene.nodes[0].link(&peer.id);
        report
            .is_some_and(|report| (report.frames_received, report.gap_frames_received) == (2, (1 << 62) - 2))
    })
    .await;
    // The same memory and epoch with earlier numbers: frames that came before are not delivered again.
    drop(link);
    let link = peer.link(scene.nodes[0].addr(), "/elsewhere").await;
    eventually("it is linked again", || scene.nodes[0].is_linked_to(&peer.id)).await;
    assert!(link.conn.close_reason().is_none());
    scene.unharmed().await;
}

/// What is said of frames, questions and answers that never were is no reason for anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_sent_or_asked_for_is_ignored() {
    let mut scene = Scene::new("inventors").await;
    let peer = scene.peer();
    let mut link = peer.open(scene.nodes[0].addr()).await;
    peer.hello(&mut link).await;
    // It remembers more than there was, of a run that never was.
    link.say(&Head::Resume(Resume { epoch: u64::MAX, received: Some((u64::MAX, u64::MAX)) }), b"").await;
    link.say(&Head::Start { first: 1 }, b"").await;
    link.say(&Head::Received { seq: u64::MAX, interest: u64::MAX - 1 }, &[0xff; 16]).await;
    for id in [0, 1, u64::MAX] {
        link.say(&Head::Answer { id }, b"nonsense").await;
        link.say(&Head::Credit { id, answers: u32::MAX }, b"").await;
        link.say(&Head::Cancel { id }, b"").await;
        link.say(&Head::End { id, status: EndStatus::Done }, b"").await;
    }
    eventually("all are taken", || {
        scene.nodes[0].link(&peer.id).is_some_and(|link| link.frames_received == 12)
    })
    .await;
    assert_eq!(scene.nodes[0].report().requests.late_answers, 3);
    assert!(link.conn.close_reason().is_none());
    scene.unharmed().await;
}

/// A trace has ids, stands ahead of a counted frame, and is for those who said that they read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_stands_where_it_may_only() {
    let mut scene = Scene::new("tracers").await;
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
    let trace = trace_frame(&context).to_vec();
    let said = frame(&broadcast("/elsewhere"), b"x").to_vec();
    let alone = "a trace context without the frame";
    scene.attack(alone, &[&trace[..], &trace].concat()).await;
    let received = frame(&Head::Received { seq: 0, interest: 0 }, b"").to_vec();
    scene.attack(alone, &[&trace[..], &received].concat()).await;
    let mut nameless = trace.clone();
    nameless[5..21].fill(0);
    scene.attack("", &[&nameless[..], &said].concat()).await;
    let cut = [&25u32.to_le_bytes(), &trace[4..29], &said[..]].concat();
    scene.attack("", &cut).await;

    for (version, is_read) in [(2, true), (1, false)] {
        let mut peer = scene.peer();
        peer.protocol = (1, version);
        let mut link = peer.link(scene.nodes[0].addr(), "/elsewhere").await;
        eventually("the link is up", || scene.nodes[0].is_linked_to(&peer.id)).await;
        link.say_bytes(&[&trace[..], &said].concat()).await;
        if is_read {
            eventually("the frame is taken", || {
                scene.nodes[0].link(&peer.id).is_some_and(|link| link.frames_received == 1)
            })
            .await;
            assert!(link.conn.close_reason().is_none());
        } else {
            scene.caught(&peer, &link, "a frame of a later version than that of the link").await;
        }
    }
    scene.unharmed().await;
}

/// QUIC answers, the data stream is silent: before the start, after it, and in the middle of a frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_ends_its_link() {
    let quick = |config: &mut roomcast::Config| {
        config.link.silence_limit = Duration::from_secs(3);
        config.link.heartbeat = Duration::from_millis(100);
        // Only silence ends the link here.
        config.link.stall_limit = Duration::from_secs(600);
    };
    let mut scene = Scene::with("silent", quick).await;
    let resume = frame(&Head::Resume(Resume { epoch: 7, received: None }), b"").to_vec();
    let begun = [&resume[..], &frame(&Head::Start { first: 1 }, b"")].concat();
    let half = [&begun[..], &frame(&broadcast("/elsewhere"), &[0; 1000])[..500]].concat();
    for said in [Vec::new(), begun, half] {
        let peer = scene.peer();
        let mut link = peer.open(scene.nodes[0].addr()).await;
        peer.hello(&mut link).await;
        link.say_bytes(&said).await;
        let (code, reason) = link.closed().await;
        assert_eq!((code, reason.as_str()), (SILENT, "no heartbeat on the data stream for 3000 ms"));
        logged(scene.nodes[0].name(), &["link down", &format!("peer={}", peer.id), "no heartbeat"]).await;
        scene.unharmed().await;
    }
}

/// It says heartbeats and reads nothing, or next to nothing: its queue is bounded, and in the end it loses the link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_fills_its_own_queue_and_loses_its_link() {
    const OUTBOX: u64 = 1 << 20;
    let mut scene = Scene::with("hoarders", |config| {
        config.link.silence_limit = Duration::from_secs(600);
        config.link.stall_limit = Duration::from_secs(4);
        config.link.heartbeat = Duration::from_millis(100);
        config.link.outbox_bytes = OUTBOX as usize;
        config.link.interest_tick = Duration::from_millis(5);
    })
    .await;
    let peer = scene.peer();
    let mut link = peer.link(scene.nodes[0].addr(), "/flood").await;
    eventually("it is linked", || scene.nodes[0].is_linked_to(&peer.id)).await;
    let flood = scene.nodes[0].namespace("/flood").unwrap();
    let mut dropped = 0;
    while link.conn.close_reason().is_none() {
        for number in 0..20 {
            dropped += flood.all().emit(stamp_of("flood", number, 16 << 10)).unwrap().dropped.len();
        }
        let held = scene.nodes[0].link(&peer.id).unwrap().queue_bytes;
        assert!(held <= OUTBOX, "{held} bytes are held");
        link.say(&Head::Received { seq: 0, interest: u64::MAX - 1 }, b"").await;
        scene.unharmed().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (code, reason) = link.closed().await;
    assert_eq!(code, STALLED, "{reason}");
    assert!(dropped > 0 && reason.starts_with("the peer applied nothing"), "{dropped} {reason}");
    assert_eq!(scene.nodes[0].link(scene.nodes[1].name()).unwrap().stalls, 0);
    scene.unharmed().await;
}

/// Short streams that are opened and never ended, further data streams, and a flood of datagrams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_have_a_number_and_an_end() {
    const STREAMS: usize = 8;
    let mut scene = Scene::with("floods", |config| {
        config.quic.max_uni_streams = STREAMS as u32;
        // The flood of this test is no heartbeat.
        config.link.silence_limit = Duration::from_secs(600);
        config.link.stall_limit = Duration::from_secs(600);
    })
    .await;
    let peer = scene.peer();
    let link = peer.link(scene.nodes[0].addr(), "/elsewhere").await;
    eventually("it is linked", || scene.nodes[0].is_linked_to(&peer.id)).await;
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = link.conn.open_uni().await.unwrap();
        stream.write_all(&[2, 0xff]).await.unwrap();
        open.push(stream);
    }
    let moment = Duration::from_millis(300);
    assert!(timeout(moment, link.conn.open_uni()).await.is_err(), "the node grants no more");
    assert!(timeout(moment, link.conn.open_bi()).await.is_err(), "there is one data stream");
    scene.unharmed().await;
    // None of them has ended. The node lets go of each; there is room again when the peer has done so, too.
    for mut stream in open {
        soon("the node stops the stream", stream.stopped()).await.unwrap();
        let _ = stream.reset(0u32.into());
    }
    let next = timeout(Duration::from_secs(30), link.conn.open_uni()).await;
    assert!(next.is_ok_and(|stream| stream.is_ok()));

    let datagram: bytes::Bytes = frame(&broadcast("/elsewhere"), &[0; 500]).freeze();
    for _ in 0..20_000 {
        link.conn.send_datagram(datagram.clone()).unwrap();
    }
    scene.unharmed().await;
    eventually("some of the flood has arrived", || {
        scene.nodes[0].link(&peer.id).is_some_and(|link| link.volatile_received > 0)
    })
    .await;
    assert!(link.conn.close_reason().is_none(), "what may be dropped is no violation");
    scene.unharmed().await;
}

/// An earlier run of an honest node: it is refused, and the node that runs keeps its link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_run_is_refused() {
    let mut scene = Scene::new("ghosts").await;
    let mut peer: RawPeer = scene.peer();
    peer.id = scene.nodes[1].name().to_owned();
    let run = scene.nodes[1].incarnation().0;
    for incarnation in [0, 1, run - 1] {
        peer.incarnation = incarnation;
        let mut link = peer.open(scene.nodes[0].addr()).await;
        peer.hello(&mut link).await;
        let answer = link.next().await.expect("the reason is sent before the connection is closed");
        let Head::Refused(refusal) = read(&answer) else { panic!("{:?}", read(&answer)) };
        assert_eq!(refusal.kind, RefusalKind::Stale, "{}", refusal.text);
        link.conn.close(0u32.into(), b"");
        scene.unharmed().await;
    }
    logged(scene.nodes[0].name(), &["incoming connection refused"]).await;
    assert_eq!(scene.nodes[0].link(scene.nodes[1].name()).unwrap().incarnation, run);
    // Nor does a node talk to somebody who says that he is the node itself.
    peer.id = scene.nodes[0].name().to_owned();
    peer.incarnation = scene.nodes[0].incarnation().0;
    let mut link = peer.open(scene.nodes[0].addr()).await;
    peer.hello(&mut link).await;
    let answer = link.next().await.expect("the reason is sent");
    assert!(matches!(read(&answer), Head::Refused(refusal) if refusal.kind == RefusalKind::Own));
    scene.unharmed().await;
}

/// Each refusal has another reason, and few of them are logged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_for_ever_new_reasons_does_not_fill_the_log() {
    const TRIES: u64 = 40;
    let mut scene = Scene::new("talkers").await;
    let mut peer = scene.peer();
    let begun = tokio::time::Instant::now();
    for number in 0..TRIES {
        peer.cluster = format!("other-{number}");
        let mut link = peer.open(scene.nodes[0].addr()).await;
        peer.hello(&mut link).await;
        let answer = link.next().await.expect("the reason is sent");
        let name = peer.cluster.as_str();
        assert!(matches!(read(&answer), Head::Refused(refusal) if refusal.text.contains(name)));
        link.conn.close(0u32.into(), b"read the reason");
    }
    let node = &scene.nodes[0];
    eventually("all are counted", || node.report().counters.refused == TRIES).await;
    let counted = || node.report().counters.refusals_unlogged;
    let lines = || logs::count(node.name(), &["incoming connection refused", "wrong cluster"]) as u64;
    eventually("each is logged or counted", || lines() + counted() == TRIES).await;
    let allowed = 8 + begun.elapsed().as_secs() / 10;
    assert!((8..=allowed).contains(&lines()), "{} of {allowed}", lines());
    scene.unharmed().await;
}

/// All at once, with links beside each other: whoever breaks the protocol loses its own link only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_violation_ends_one_link() {
    let mut scene = Scene::new("crowd").await;
    let (good, bad) = (scene.peer(), scene.peer());
    let still = good.link(scene.nodes[0].addr(), "/elsewhere").await;
    let mut link = bad.link(scene.nodes[0].addr(), "/elsewhere").await;
    for peer in [&good, &bad] {
        eventually("it is linked", || scene.nodes[0].is_linked_to(&peer.id)).await;
    }
    link.say_bytes(&[0xff; 8]).await;
    assert_eq!(link.closed().await.0, VIOLATION);
    eventually("that link is down", || !scene.nodes[0].is_linked_to(&bad.id)).await;
    assert!(still.conn.close_reason().is_none() && scene.nodes[0].is_linked_to(&good.id));
    eventually("it is counted", || scene.nodes[0].report().counters.violations == 1).await;
    scene.unharmed().await;
}
