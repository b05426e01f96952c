//! What becomes of frames that a queue has no room for, or holds for too long, over real links.

use std::time::Duration;

use cluster_tests::cluster::event;
use cluster_tests::raw::{broadcast, frame, read};
use cluster_tests::recorder::stamp_of;
use cluster_tests::wait::soon;
use cluster_tests::{Live, RawLink, RawPeer, Recorder, Setup, eventually, probe, stamp};
use roomcast::config::QueuePolicy;
use roomcast::core::frame::{Head, Op};
use roomcast::{Event, MissingReason};

/// What a peer read that was told of holes in the numbers: the numbers that it gave, and how many are missing.
#[derive(Default)]
struct Read {
    next: u64,
    frames: u64,
    gap: u64,
    last: Vec<u8>,
    questions: u64,
}

impl Read {
    /// Reads counted frames up to the number `last`.
    async fn up_to(&mut self, link: &mut RawLink, last: u64) {
        while self.next <= last {
            let bytes = soon("a frame", link.next()).await.expect("the link stands");
            match read(&bytes) {
                Head::Start { first } if self.next == 0 => self.next = first,
                Head::Start { first } => {
                    assert!(first > self.next, "{first} after {}", self.next);
                    self.gap += first - self.next;
                    self.next = first;
                }
                head if head.is_counted() => {
                    self.next += 1;
                    self.frames += 1;
                    self.questions +=
                        u64::from(matches!(&head, Head::Request(request) if request.op == Op::Count));
                    self.last = bytes.to_vec();
                }
                _ => {}
            }
        }
    }
}

/// A node with one honest peer and one that is linked and does not read.
async fn with_frozen(setup: &Setup) -> (Vec<Live>, RawPeer, RawLink) {
    let nodes = setup.formed(2).await;
    let peer = RawPeer::new(setup, 9);
    let frozen = peer.link(nodes[0].addr(), "/chat").await;
    eventually("the frozen peer is linked", || nodes[0].is_linked_to(&peer.id)).await;
    (nodes, peer, frozen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_make_room_and_both_sides_count_the_same_gap() {
    let setup = Setup::new("displaced").config(|config| {
        config.link.outbox_bytes = 8 << 20;
        config.link.queue_policy = QueuePolicy::DropOldest;
        config.link.silence_limit = Duration::from_secs(600);
        config.link.request_timeout = Duration::from_secs(600);
    });
    let (nodes, peer, mut frozen) = with_frozen(&setup).await;
    let (here, there) = (nodes[0].namespace("/chat").unwrap(), nodes[1].namespace("/chat").unwrap());
    let recorder = Recorder::new();
    let _member = there.connect(recorder.clone());
    eventually("both are targeted", || here.all().emit(probe()).unwrap().targeted == 2).await;
    let mut events = nodes[0].events();
    let drops = || nodes[0].link(&peer.id).unwrap().drops;

    // More than the connection takes, then a question, then so much that it has to make room.
    let mut number = 0;
    while drops().displaced == 0 {
        number += 1;
        let receipt = here.all().emit(stamp_of("zero", number, 64 << 10)).unwrap();
        assert_eq!((receipt.targeted, receipt.queued), (2, 2), "{receipt:?}");
        eventually("the other keeps up", || recorder.has("zero", number)).await;
    }
    let count = tokio::spawn({
        let here = here.clone();
        async move { here.all().count().await }
    });
    eventually("the question is asked", || nodes[0].report().requests.asked == 1).await;
    let asked_at = drops().displaced;
    while drops().displaced < asked_at + 500 {
        number += 1;
        assert_eq!(here.all().emit(stamp_of("zero", number, 64 << 10)).unwrap().queued, 2);
        eventually("the other keeps up", || recorder.has("zero", number)).await;
    }
    recorder.check_all("zero", number);
    let link = nodes[0].link(&peer.id).unwrap();
    assert!(link.queue_bytes <= 8 << 20, "{link:?}");
    assert_eq!((link.drops.queue_full, link.state.as_str()), (0, "up"));

    // It reads again: the newest comes, in order, and it is told what does not.
    let mut read = Read::default();
    read.up_to(&mut frozen, link.frames_sent).await;
    assert!(
        String::from_utf8_lossy(&read.last).contains(&format!("zero {number} ")),
        "the newest is the last"
    );
    assert_eq!((read.frames + read.gap, read.questions), (link.frames_sent, 0));
    eventually("the sender counts the same", || nodes[0].link(&peer.id).unwrap().gap_frames_sent == read.gap)
        .await;
    assert_eq!(drops().displaced, read.gap);
    let mut told = 0;
    while told < read.gap {
        if let Some(Event::Gap { peer: of, frames, outgoing: true }) =
            soon("the gap is told", events.recv()).await
        {
            assert_eq!(of.as_str(), peer.id);
            told += frames;
        }
    }
    let count = count.await.unwrap().unwrap();
    let lost: Vec<_> = count.missing.iter().map(|missing| (missing.node.as_str(), missing.reason)).collect();
    assert_eq!(lost, [(peer.id.as_str(), MissingReason::Lost)], "nobody waits for a question that is lost");

    frozen.say(&Head::Received { seq: nodes[0].link(&peer.id).unwrap().frames_sent, interest: 1 }, &[]).await;
    let empty = || nodes[0].link(&peer.id).unwrap().queue_frames == 0;
    read.up_to(&mut frozen, nodes[0].link(&peer.id).unwrap().frames_sent).await;
    frozen.say(&Head::Received { seq: nodes[0].link(&peer.id).unwrap().frames_sent, interest: 1 }, &[]).await;
    eventually("everything is settled", empty).await;
    assert_eq!(nodes[0].link(nodes[1].name()).unwrap().gap_frames_sent, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_read_for_too_long_gets_what_is_new() {
    let setup = Setup::new("aged").config(|config| {
        config.link.max_queue_age = Some(Duration::from_millis(300));
        config.link.silence_limit = Duration::from_secs(600);
    });
    let (nodes, peer, mut frozen) = with_frozen(&setup).await;
    let here = nodes[0].namespace("/chat").unwrap();
    let link = || nodes[0].link(&peer.id).unwrap();
    let mut number = 0;
    // Until more is queued than the connection takes, and has been for too long.
    eventually("the frozen peer is targeted", || here.all().emit(probe()).unwrap().targeted > 0).await;
    while link().drops.expired < 100 {
        number += 1;
        here.all().emit(stamp_of("zero", number, 64 << 10)).unwrap();
        tokio::task::yield_now().await;
    }
    let mut read = Read::default();
    let sent = link().frames_sent;
    read.up_to(&mut frozen, sent).await;
    eventually("both count the same", || link().gap_frames_sent == read.gap).await;
    assert_eq!(link().drops.expired, read.gap);
    assert!(read.gap >= 100 && read.frames + read.gap >= sent, "{} {}", read.gap, read.frames);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jump_of_the_numbers_is_a_gap_here_and_a_step_back_ends_the_link() {
    let setup = Setup::new("jumps");
    let nodes = setup.formed(1).await;
    let here = nodes[0].namespace("/chat").unwrap();
    let recorder = Recorder::new();
    let _member = here.connect(recorder.clone());
    let mut events = nodes[0].events();
    let peer = RawPeer::new(&setup, 9);
    let mut link = peer.link(nodes[0].addr(), "/chat").await;
    let message = |number| frame(&broadcast("/chat"), &stamp("raw", number));
    for (first, number) in [(None, 1), (Some(5), 5), (None, 6), (Some(100), 100)] {
        if let Some(first) = first {
            link.say(&Head::Start { first }, &[]).await;
        }
        link.say_bytes(&message(number)).await;
    }
    eventually("all came", || recorder.has("raw", 100)).await;
    assert_eq!(recorder.numbers("raw"), [1, 5, 6, 100]);
    let report = || nodes[0].link(&peer.id).unwrap();
    assert_eq!((report().gap_frames_received, report().frames_received), (3 + 93, 4));
    let mut told = 0;
    while told < 96 {
        if let Some(Event::Gap { frames, outgoing: false, .. }) = soon("the gap is told", events.recv()).await
        {
            told += frames;
        }
    }
    assert_eq!(told, 96);
    // What is acknowledged counts the frames that never come.
    loop {
        let bytes = soon("a frame", link.next()).await.expect("the link stands");
        if matches!(read(&bytes), Head::Received { seq: 100, .. }) {
            break;
        }
    }
    // A gap right before the end of the link is told like any other.
    let both = [150, 150].map(|first| frame(&Head::Start { first }, &[])).concat();
    link.say_bytes(&both).await;
    assert!(link.closed().await.1.contains("an unexpected start"));
    let last = event(&mut events, "gap", |event| matches!(event, Event::Gap { .. })).await;
    let Event::Gap { frames, outgoing, .. } = last else { unreachable!("filtered") };
    assert_eq!((frames, outgoing, report().gap_frames_received), (49, false, 96 + 49));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_slowed_down_by_the_full_one_and_the_others_are_not() {
    let setup = Setup::new("patient").config(|config| {
        config.link.outbox_bytes = 1 << 20;
        config.link.queue_policy = QueuePolicy::Wait { deadline: Duration::from_secs(600) };
        config.link.silence_limit = Duration::from_secs(600);
    });
    let (nodes, peer, mut frozen) = with_frozen(&setup).await;
    let (here, there) = (nodes[0].namespace("/chat").unwrap(), nodes[1].namespace("/chat").unwrap());
    let recorder = Recorder::new();
    let _member = there.connect(recorder.clone());
    eventually("both are targeted", || here.all().emit(probe()).unwrap().targeted == 2).await;
    let before = nodes[0].link(&peer.id).unwrap().frames_sent;

    // 200 messages at once: more than the connection and the queue take. The other peer has them all.
    let emits: Vec<_> = (1..=200u64)
        .map(|_| {
            let here = here.clone();
            tokio::spawn(async move { here.all().emit_wait(vec![b'x'; 64 << 10]).await })
        })
        .collect();
    eventually("the other peer has all", || {
        nodes[1].link(nodes[0].name()).unwrap().frames_received >= before.min(1) + 200
    })
    .await;
    assert!(nodes[0].link(&peer.id).unwrap().queue_bytes <= 1 << 20);
    assert!(emits.iter().any(|emit| !emit.is_finished()), "some wait for the full one");
    let mut read = Read::default();
    for got in 1..=before + 200 {
        read.up_to(&mut frozen, got).await;
        frozen.say(&Head::Received { seq: got, interest: 1 }, &[]).await;
    }
    for emit in emits {
        let receipt = emit.await.unwrap().unwrap();
        assert_eq!((receipt.queued, receipt.dropped), (2, vec![]));
    }
    let link = nodes[0].link(&peer.id).unwrap();
    assert_eq!((read.gap, link.drops.queue_full, link.drops.waited_too_long), (0, 0, 0));
}
