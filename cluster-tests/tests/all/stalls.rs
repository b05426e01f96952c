//! Links that stand and get nothing done: they are replaced, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_tests::cluster::{event, formed};
use cluster_tests::raw::read;
use cluster_tests::{Live, RawLink, RawPeer, Recorder, Setup, eventually, probe, stamp};
use roomcast::Event;
use roomcast::core::frame::Head;

/// What a node closes a link with that gets nothing done.
const STALLED: u64 = 7;
/// What a node closes a link with on which it hears nothing.
const SILENT: u64 = 5;

/// Nodes that never take anything for silence, and wait 2 s for progress.
fn setup(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.link.silence_limit = Duration::from_secs(600);
        config.link.stall_limit = Duration::from_secs(2);
        config.link.heartbeat = Duration::from_millis(100);
    })
}

/// Says heartbeats until the node closes the link; the reason that it gave.
async fn heartbeats(link: &mut RawLink, interest: u64) -> (u64, String) {
    while link.conn.close_reason().is_none() {
        link.say(&Head::Received { seq: 0, interest }, &[]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    link.closed().await
}

/// Reads broadcasts, each with its text.
async fn broadcasts(link: &mut RawLink, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let frame = link.next().await.expect("the link stands");
        if let Head::Broadcast(_) = read(&frame) {
            let text = String::from_utf8_lossy(&frame).into_owned();
            texts.push(text[text.find("zero").unwrap()..].to_owned());
        }
    }
    texts
}

fn others_are_not_disturbed(nodes: &[Live]) {
    for (node, other) in nodes.iter().zip([&nodes[1], &nodes[0]]) {
        let link = node.link(other.name()).unwrap();
        assert_eq!((link.state.as_str(), link.stalls), ("up", 0), "{link:?}");
    }
}

/// The peer's reader hangs while its writer goes on: it says heartbeats, and acknowledges nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_heartbeats_and_applies_nothing_gets_another_link_and_loses_nothing() {
    let setup = setup("stuck");
    let nodes = setup.formed(2).await;
    let here = nodes[0].namespace("/chat").unwrap();
    let peer = RawPeer::new(&setup, 9);
    let mut link = peer.link(nodes[0].addr(), "/chat").await;
    eventually("the peer is linked", || nodes[0].is_linked_to(&peer.id)).await;
    for number in 1..=3 {
        assert_eq!(here.all().emit(stamp("zero", number)).unwrap().queued, 1);
    }
    let first = broadcasts(&mut link, 3).await;
    let (code, reason) = heartbeats(&mut link, u64::MAX).await;
    assert_eq!(code, STALLED, "{reason}");
    assert!(reason.starts_with("the peer applied nothing of what it was sent for "), "{reason}");
    eventually("the link is down", || nodes[0].link(&peer.id).is_some_and(|link| link.state == "down")).await;

    // The next one has twice as long, and goes on where this one hung.
    let mut link = peer.link(nodes[0].addr(), "/chat").await;
    assert_eq!(broadcasts(&mut link, 3).await, first);
    link.say(&Head::Received { seq: 3, interest: u64::MAX }, &[]).await;
    eventually("it is acknowledged", || nodes[0].link(&peer.id).is_some_and(|link| link.queue_frames == 0))
        .await;
    here.all().emit(stamp("zero", 4)).unwrap();
    assert_eq!(broadcasts(&mut link, 1).await, ["zero 4"]);
    let report = nodes[0].link(&peer.id).unwrap();
    assert_eq!((report.links, report.stalls, report.gap_frames_sent), (2, 1, 0), "{report:?}");
    assert_eq!(nodes[0].report().counters.stalls, 1);
    others_are_not_disturbed(&nodes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_takes_in_the_rooms_gets_another_link() {
    let setup = setup("deaf");
    let nodes = setup.formed(2).await;
    let _here = nodes[0].namespace("/chat").unwrap().connect(Recorder::new());
    eventually("the namespace is advertised", || nodes[0].report().interest.version > 0).await;
    let peer = RawPeer::new(&setup, 9);
    let mut link = peer.link(nodes[0].addr(), "/chat").await;
    let (code, reason) = heartbeats(&mut link, 0).await;
    assert_eq!(code, STALLED, "{reason}");
    assert!(reason.starts_with("the peer did not take in the rooms of this node for "), "{reason}");
    others_are_not_disturbed(&nodes);
}

/// The peer's writer hangs: its QUIC answers, and nothing comes on the data stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_gets_another_link() {
    let setup = setup("mute").config(|config| config.link.silence_limit = Duration::from_secs(2));
    let nodes = setup.formed(1).await;
    let here = nodes[0].namespace("/chat").unwrap();
    let peer = RawPeer::new(&setup, 9);
    let mut link = peer.link(nodes[0].addr(), "/chat").await;
    eventually("the peer is linked", || nodes[0].is_linked_to(&peer.id)).await;
    link.say(&Head::Received { seq: 0, interest: u64::MAX }, &[]).await;
    let (code, reason) = link.closed().await;
    assert_eq!((code, reason.as_str()), (SILENT, "no heartbeat on the data stream for 2000 ms"));
    here.all().emit(stamp("zero", 1)).unwrap();
    let mut link = peer.link(nodes[0].addr(), "/chat").await;
    assert_eq!(broadcasts(&mut link, 1).await, ["zero 1"]);
}

/// The peer is a node whose sink blocks: its reader hangs, and its writer with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_sink_that_blocks_costs_its_link_and_no_message() {
    let setup = setup("blocked");
    let nodes = setup.formed(3).await;
    let here = nodes[0].namespace("/").unwrap();
    let (blocked, recorder, other) = (Arc::new(AtomicBool::new(true)), Recorder::new(), Recorder::new());
    let (blocks, sink) = (Arc::clone(&blocked), recorder.clone());
    let _member = nodes[1].namespace("/").unwrap().connect(move |message: bytes::Bytes| {
        while blocks.load(Ordering::SeqCst) && message != probe() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        roomcast::Sink::deliver(&sink, message);
    });
    let _other = nodes[2].namespace("/").unwrap().connect(other.clone());
    eventually("both are known", || here.all().emit(probe()).unwrap().targeted == 2).await;
    let mut events = nodes[0].events();
    for number in 1..=50 {
        here.all().emit(stamp("zero", number)).unwrap();
    }
    let down = |event: &Event| matches!(event, Event::LinkDown { peer, .. } if peer == nodes[1].id());
    event(&mut events, "link down", down).await;
    here.all().emit(stamp("zero", 51)).unwrap();
    eventually("the other node gets all at once", || other.has("zero", 51)).await;
    blocked.store(false, Ordering::SeqCst);
    eventually("all came after all", || recorder.has("zero", 51)).await;
    recorder.check_all("zero", 51);
    formed(&nodes).await;
    let stalls: u64 = nodes.iter().map(|node| node.report().counters.stalls).sum();
    assert!(stalls > 0);
    assert_eq!(nodes[0].link(nodes[1].name()).unwrap().gap_frames_sent, 0);
    assert_eq!(nodes[0].link(nodes[2].name()).unwrap().stalls, 0);
}
