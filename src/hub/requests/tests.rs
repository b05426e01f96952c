use std::collections::HashMap;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};

use smallvec::smallvec;

use super::*;
use crate::config::Config;
use crate::core::frame::{Op, PayloadKind, decode_body, decode_head, frame_len};
use crate::core::interest::RoomMode;
use crate::hub::{Attachment, Inbound};
use crate::ids::{Incarnation, Seq};

/// Two nodes without a network: `a` asks, `b` answers.
struct Pair {
    a: Arc<Hub>,
    b: Arc<Hub>,
    to_b: Arc<PeerQueue>,
    to_a: Arc<PeerQueue>,
}

impl Pair {
    fn new(config: Config) -> Self {
        let hub = |id| Hub::new(NodeId::new(id).unwrap(), Incarnation(1), config.clone());
        let (a, b) = (hub("a"), hub("b"));
        let add = |hub: &Arc<Hub>, id| {
            let (id, addr) = (NodeId::new(id).unwrap(), "127.0.0.1:1".parse().unwrap());
            hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(1), slot, addr, 1, 1 << 20)))
        };
        let (to_b, to_a) = (add(&a, "b"), add(&b, "a"));
        Self { a, b, to_b, to_a }
    }

    /// Carries every frame, as links would. Returns how many went.
    fn carry(&self) -> usize {
        let ways = [(&self.to_b, &self.b, &self.to_a), (&self.to_a, &self.a, &self.to_b)];
        ways.into_iter().map(|(out, to, from)| pass(out, to, from)).sum()
    }

    fn ask(&self, credit: u32, timeout: Option<Duration>, here: bool) -> Asked {
        let head = RequestHead {
            id: 0,
            op: Op::Rooms,
            timeout_ms: 0,
            credit,
            names: smallvec![],
            to: everyone("/chat", PayloadKind::Plain),
        };
        self.a.ask(Ask { targets: Targets::All, head, timeout, here }, &Bytes::new()).unwrap()
    }
}

fn pass(out: &PeerQueue, to: &Arc<Hub>, from: &Arc<PeerQueue>) -> usize {
    let mut parts = Vec::new();
    out.take(usize::MAX, &mut parts);
    out.ack(Seq(u64::MAX));
    let stream = Bytes::from(parts.concat());
    let (mut at, mut frames) = (0, 0);
    while let Some(length) = frame_len(&stream[at..], &to.limits).unwrap() {
        let frame = stream.slice(at + LENGTH_BYTES..at + LENGTH_BYTES + length);
        at += LENGTH_BYTES + length;
        frames += 1;
        let (head, used) = decode_head(&frame, &to.limits).unwrap();
        match head {
            Head::Request(request) => to.request(from, None, &request, &frame.slice(used..)),
            Head::Answer { id } => drop(to.requests.answered(from.slot, id, frame.slice(used..))),
            Head::End { id, status } => to.requests.ended(from.slot, id, status),
            Head::Credit { id, answers } => from.serving.grant(id, answers),
            Head::Cancel { id } => from.serving.cancel(id),
            other => panic!("{other:?}"),
        }
    }
    frames
}

/// Answers each question so often, as fast as it may.
struct Answers(usize, Arc<AtomicUsize>);

impl Inbound for Answers {
    fn deliver(&self, _: &BroadcastHead<'_>, _: &Bytes) {}

    fn request(&self, _: &Request<'_, '_>, reply: &Reply) {
        let (reply, answers, sent) = (reply.clone(), self.0, Arc::clone(&self.1));
        tokio::spawn(async move {
            for number in 0..answers {
                if reply.answer(Bytes::from(number.to_string())).await.is_err() {
                    return;
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

fn attach(hub: &Arc<Hub>, answers: usize) -> (Attachment, Arc<Answers>) {
    let front = Arc::new(Answers(answers, Arc::default()));
    let inbound: Weak<dyn Inbound> = Arc::downgrade(&(Arc::clone(&front) as Arc<dyn Inbound>));
    let ns = Namespace::new("/chat").unwrap();
    (hub.attach(&ns, RoomMode::Exact, inbound), front)
}

async fn settle(pair: &Pair) {
    // Two turns without a frame: nothing moves any more.
    let mut quiet = 0;
    while quiet < 2 {
        tokio::task::yield_now().await;
        quiet = if pair.carry() == 0 { quiet + 1 } else { 0 };
    }
}

fn nothing_is_left(pair: &Pair) {
    assert_eq!(pair.a.requests.pending(), 0);
    assert_eq!(pair.a.requests.here.len(), 0);
    assert_eq!(pair.to_a.serving.len(), 0);
}

#[tokio::test]
async fn every_answer_comes_in_order_and_then_the_end() {
    let pair = Pair::new(Config::default());
    let _fronts = (attach(&pair.a, 3), attach(&pair.b, 1000));
    let mut asked = pair.ask(8, None, true);
    let mut of = HashMap::<String, Vec<String>>::new();
    loop {
        settle(&pair).await;
        let Some(answer) = asked.next().await else { break };
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        of.entry(answer.node.to_string()).or_default().push(text);
        // No more answers wait than were granted.
        assert!(lock(&asked.waiter.state).answers.len() <= 16);
    }
    let numbers = |to: usize| (0..to).map(|number| number.to_string()).collect::<Vec<_>>();
    assert_eq!((&of["a"], &of["b"]), (&numbers(3), &numbers(1000)));
    assert_eq!(asked.missing(), []);
    nothing_is_left(&pair);
}

/// Has one short list, at once.
struct List(u64);

impl Inbound for List {
    fn deliver(&self, _: &BroadcastHead<'_>, _: &Bytes) {}

    fn request(&self, _: &Request<'_, '_>, reply: &Reply) {
        reply.answer_list([vec![self.0]]);
    }
}

#[tokio::test]
async fn fronts_of_one_path_share_what_may_be_sent() {
    let pair = Pair::new(Config::default());
    let ns = Namespace::new("/chat").unwrap();
    let lists = [Arc::new(List(1)), Arc::new(List(2))];
    let _attached = lists.each_ref().map(|list| {
        let inbound: Weak<dyn Inbound> = Arc::downgrade(&(Arc::clone(list) as Arc<dyn Inbound>));
        pair.b.attach(&ns, RoomMode::Exact, inbound)
    });
    let mut asked = pair.ask(1, None, false);
    for list in 1..=2 {
        settle(&pair).await;
        let answer = asked.next().await.expect("each front answers");
        assert_eq!(decode_body::<Vec<u64>>(&answer.body), Ok(vec![list]));
    }
    settle(&pair).await;
    assert!(asked.next().await.is_none());
    assert_eq!(asked.missing(), []);
    nothing_is_left(&pair);
}

#[tokio::test]
async fn a_node_without_the_namespace_answers_at_once() {
    let pair = Pair::new(Config::default());
    let mut asked = pair.ask(8, None, true);
    settle(&pair).await;
    assert!(asked.next().await.is_none());
    assert_eq!(asked.missing(), []);
    nothing_is_left(&pair);
}

#[tokio::test]
async fn a_node_that_goes_settles_its_share() {
    let pair = Pair::new(Config::default());
    let mut asked = pair.ask(8, Some(Duration::from_secs(3600)), false);
    pair.a.remove_peer(&pair.to_b);
    assert!(asked.next().await.is_none());
    let node = NodeId::new("b").unwrap();
    assert_eq!(asked.missing(), [Missing { node, reason: MissingReason::Left }]);
    assert!(pair.ask(8, None, false).next().await.is_none(), "nobody to ask");
}

#[tokio::test(start_paused = true)]
async fn the_time_is_over_for_those_who_say_nothing() {
    let pair = Pair::new(Config::default());
    let _front = attach(&pair.b, 1_000_000);
    let mut asked = pair.ask(2, Some(Duration::from_secs(2)), false);
    settle(&pair).await;
    let mut answers = 0;
    while asked.next().await.is_some() {
        answers += 1;
    }
    // No frame was carried meanwhile, so there are only those that were granted at first.
    assert_eq!(answers, 2);
    assert_eq!(asked.missing()[0].reason, MissingReason::TimedOut);
    settle(&pair).await;
    nothing_is_left(&pair);
}

#[tokio::test]
async fn of_100_000_questions_that_are_given_up_nothing_is_left() {
    let pair = Pair::new(Config::default());
    let front = attach(&pair.b, 1_000_000);
    for round in 0..1_000 {
        let mut asked: Vec<_> =
            (0..100).map(|_| pair.ask(4, Some(Duration::from_secs(60)), round % 2 == 0)).collect();
        if round % 3 != 0 {
            settle(&pair).await;
            let _ = asked[0].next().await;
        }
        assert!(pair.a.requests.pending() >= 100);
        drop(asked);
        settle(&pair).await;
    }
    nothing_is_left(&pair);
    assert!(front.1.1.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn limits_are_answered_not_exceeded() {
    let mut config = Config::default();
    (config.link.max_requests, config.link.max_serving_per_peer) = (3, 2);
    let pair = Pair::new(config);
    let _front = attach(&pair.b, 1_000_000);
    let mut asked: Vec<_> = (0..3).map(|_| pair.ask(1, None, false)).collect();
    let head = RequestHead {
        id: 0,
        op: Op::Rooms,
        timeout_ms: 0,
        credit: 1,
        names: smallvec![],
        to: everyone("/chat", PayloadKind::Plain),
    };
    let ask = Ask { targets: Targets::All, head, timeout: None, here: false };
    assert_eq!(pair.a.ask(ask, &Bytes::new()).err(), Some(TooManyRequests { limit: 3 }));
    settle(&pair).await;
    assert!(asked[2].next().await.is_none());
    assert_eq!(asked[2].missing()[0].reason, MissingReason::Busy);
    assert_eq!(pair.b.counters.requests_refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_name_that_is_no_member_is_missing() {
    let pair = Pair::new(Config::default());
    let head = RequestHead {
        id: 0,
        op: Op::Rooms,
        timeout_ms: 0,
        credit: 1,
        names: smallvec![],
        to: everyone("/chat", PayloadKind::Plain),
    };
    let nodes = [NodeId::new("a").unwrap(), NodeId::new("b").unwrap(), NodeId::new("c").unwrap()];
    let ask = Ask { targets: Targets::Nodes(&nodes), head, timeout: None, here: false };
    let mut asked = pair.a.ask(ask, &Bytes::new()).unwrap();
    settle(&pair).await;
    assert!(asked.next().await.is_none());
    assert_eq!(asked.missing(), [Missing { node: nodes[2].clone(), reason: MissingReason::Left }]);
}

fn order<'a>(op: Op, room: &'a str) -> RequestHead<'a> {
    let to = everyone("/chat", PayloadKind::Plain);
    RequestHead { id: 0, op, timeout_ms: 0, credit: 0, names: smallvec![room], to }
}

/// How many peers a message for a room would go to.
fn wanted(hub: &Hub, room: &str) -> usize {
    let (ns, mut mask) = (Namespace::new("/chat").unwrap(), PeerMask::default());
    hub.routes.lookup(&ns, &[ns.room(room)], &mut mask);
    mask.len()
}

/// A node with a peer that has the namespace, and nobody in any room.
fn with_known_peer(config: Config) -> (Arc<Hub>, Arc<PeerQueue>) {
    use crate::core::interest::InterestChange;

    let pair = Pair::new(config);
    let (hub, peer, ns) = (pair.a, pair.to_b, Namespace::new("/chat").unwrap());
    let change =
        InterestChange { mode: Some(RoomMode::Exact), added: vec![ns.everyone()], removed: vec![], ns };
    hub.routes.snapshot_begin(peer.slot, 1).unwrap();
    hub.routes.snapshot_chunk(peer.slot, vec![change]).unwrap();
    hub.routes.snapshot_end(peer.slot).unwrap();
    (hub, peer)
}

/// Takes what is queued for a peer and acknowledges it.
fn acknowledge(hub: &Hub, peer: &PeerQueue) {
    peer.take(usize::MAX, &mut Vec::new());
    hub.orders_applied(peer, peer.ack(Seq(u64::MAX)));
}

#[tokio::test(start_paused = true)]
async fn who_is_ordered_to_join_a_room_is_sent_to_at_once() {
    let (hub, peer) = with_known_peer(Config::default());
    let ns = Namespace::new("/chat").unwrap();
    let send = |room: &'static str| {
        let mut head = everyone("/chat", PayloadKind::Plain);
        head.rooms.push(room);
        hub.send(&ns, &[ns.room(room)], &head, &Bytes::new(), false).queued
    };
    let join = |room| hub.order(Targets::Rooms(&ns, &[]), &order(Op::Join, room), &Bytes::new(), false);
    assert_eq!((send("x"), send("y")), (0, 0));
    assert_eq!(join("x").queued, 1);
    assert_eq!((send("x"), send("y"), wanted(&hub, "y")), (1, 0, 0), "also where a lookup is remembered");
    hub.order(Targets::All, &order(Op::Leave, "y"), &Bytes::new(), false);
    assert_eq!(send("y"), 0, "who leaves is not supposed to be there");

    hub.orders_applied(&peer, Seq(0));
    tokio::time::advance(ORDER_MARGIN * 2).await;
    hub.orders_applied(&peer, Seq(0));
    assert_eq!(send("x"), 1, "it has not applied the order");
    acknowledge(&hub, &peer);
    assert_eq!(send("x"), 1, "its interest may be on the way");
    tokio::time::advance(ORDER_MARGIN + hub.config.link.interest_tick).await;
    acknowledge(&hub, &peer);
    assert_eq!((send("x"), hub.routes.expected()), (0, 0), "now it would be known");
}

#[tokio::test(start_paused = true)]
async fn orders_that_are_not_queued_and_peers_that_go_are_not_supposed_anywhere() {
    let (hub, peer) = with_known_peer(Config::default());
    let other = NodeId::new("c").unwrap();
    hub.order(Targets::Nodes(&[other]), &order(Op::Join, "x"), &Bytes::new(), false);
    let large = Bytes::from(vec![0; hub.limits.max_frame_bytes + 1]);
    assert_eq!(hub.order(Targets::All, &order(Op::Join, "x"), &large, false).queued, 0);
    assert_eq!((wanted(&hub, "x"), hub.routes.expected()), (0, 0));

    for number in 0..10_000 {
        hub.order(Targets::All, &order(Op::Join, &format!("room-{number}")), &Bytes::new(), false);
    }
    assert!((0..10_000).all(|number| wanted(&hub, &format!("room-{number}")) == 1));
    assert!(hub.routes.expected() <= 1024, "rooms share places");
    hub.remove_peer(&peer);
    assert_eq!(hub.routes.expected(), 0);
    hub.order(Targets::All, &order(Op::Join, "x"), &Bytes::new(), false);
    assert_eq!(hub.routes.expected(), 0, "nobody is there");
}

/// A long break of the link loses the order: its number counts as settled, so nothing waits for it for ever.
#[tokio::test(start_paused = true)]
async fn an_order_that_is_lost_is_not_waited_for() {
    use crate::core::frame::Resume;

    let (hub, peer) = with_known_peer(Config::default());
    hub.order(Targets::All, &order(Op::Join, "x"), &Bytes::new(), false);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(peer.expire(hub.now_ms(), 15_000), 1);
    assert_eq!(wanted(&hub, "x"), 1);
    assert_eq!(peer.resume(&Resume { epoch: 9, received: None }).lost, 1);
    for _ in 0..2 {
        acknowledge(&hub, &peer);
        tokio::time::advance(ORDER_MARGIN * 2).await;
    }
    assert_eq!((wanted(&hub, "x"), hub.routes.expected()), (0, 0));
}

#[tokio::test]
async fn a_node_whose_answers_cannot_be_read_is_missing_once() {
    let pair = Pair::new(Config::default());
    let _front = attach(&pair.b, 3);
    let mut asked = pair.ask(8, None, false);
    settle(&pair).await;
    while let Some(answer) = asked.next().await {
        asked.unreadable(&answer, &crate::core::frame::FrameError::Payload("odd"));
        settle(&pair).await;
    }
    let node = NodeId::new("b").unwrap();
    assert_eq!(asked.missing(), [Missing { node, reason: MissingReason::Failed }]);
}

#[tokio::test]
async fn who_was_found_dead_is_not_asked_and_not_waited_for() {
    let pair = Pair::new(Config::default());
    let _front = attach(&pair.b, 1);
    pair.to_b.set_dead(true);
    let mut asked = pair.ask(8, None, false);
    assert!(asked.next().await.is_none());
    let node = NodeId::new("b").unwrap();
    assert_eq!(asked.missing(), [Missing { node, reason: MissingReason::Left }]);
    assert_eq!(pair.carry(), 0);
    pair.to_b.set_dead(false);
    let mut asked = pair.ask(8, None, false);
    settle(&pair).await;
    assert!(asked.next().await.is_some() && asked.next().await.is_none());
    nothing_is_left(&pair);
}

#[tokio::test]
async fn a_node_that_is_not_waited_for_any_more_ends_its_answers() {
    let pair = Pair::new(Config::default());
    let _front = attach(&pair.b, 1_000_000);
    let mut asked = pair.ask(4, None, false);
    settle(&pair).await;
    assert_eq!(pair.to_a.serving.len(), 1);
    pair.a.no_answers(&pair.to_b, MissingReason::Lost);
    while asked.next().await.is_some() {}
    assert_eq!(asked.missing()[0].reason, MissingReason::Lost);
    settle(&pair).await;
    nothing_is_left(&pair);
}

#[tokio::test]
async fn a_question_that_makes_room_for_others_is_not_waited_for() {
    let mut config = Config::default();
    config.link.queue_policy = crate::config::QueuePolicy::DropOldest;
    let pair = Pair::new(config);
    let (id, addr) = (NodeId::new("c").unwrap(), "127.0.0.1:1".parse().unwrap());
    let full = pair.a.add_peer(|slot| {
        let queue = PeerQueue::new(id, Incarnation(1), slot, addr, 1, 1 << 20);
        Arc::new(queue.with_policy(&pair.a.config.link))
    });
    full.resume(&crate::core::frame::Resume { epoch: 1, received: None });
    let mut asked = pair.ask(8, None, false);
    pair.a.offer(&full, &Head::Answer { id: u64::MAX }, &Bytes::from(vec![0; (1 << 20) - 16])).unwrap();
    // As the writer does.
    assert_eq!((full.given_up().displaced, full.take(usize::MAX, &mut Vec::new()).lost), (1, 1));
    pair.a.no_answers(&full, MissingReason::Lost);
    settle(&pair).await;
    while asked.next().await.is_some() {}
    assert!(asked.missing().contains(&Missing { node: full.id.clone(), reason: MissingReason::Lost }));
}

/// Fills a queue with one frame that means nothing.
fn fill(hub: &Arc<Hub>, queue: &PeerQueue) {
    let payload = Bytes::from(vec![0; (1 << 20) - 8]);
    hub.offer(queue, &Head::Answer { id: u64::MAX }, &payload).unwrap();
    assert_eq!(hub.offer(queue, &Head::Cancel { id: 1 }, &Bytes::new()), Err(DropReason::QueueFull));
}

#[tokio::test]
async fn a_full_queue_delays_what_keeps_questions_going_and_loses_none_of_it() {
    let pair = Pair::new(Config::default());
    let _front = attach(&pair.b, 100);
    let mut asked = pair.ask(8, None, false);
    let given_up = pair.ask(8, None, false);
    settle(&pair).await;
    fill(&pair.a, &pair.to_b);
    drop(given_up);
    for _ in 0..8 {
        assert!(asked.next().await.is_some());
    }
    let mut answers = 8;
    loop {
        settle(&pair).await;
        if asked.next().await.is_none() {
            break;
        }
        answers += 1;
    }
    assert_eq!((answers, asked.missing()), (100, vec![]));
    nothing_is_left(&pair);
    assert!(pair.to_b.late().is_none());
}

#[tokio::test]
async fn what_waits_for_room_is_bounded() {
    let pair = Pair::new(Config::default());
    fill(&pair.a, &pair.to_b);
    for id in 0..70_000 {
        pair.a.tell(&pair.to_b, &Head::Cancel { id });
    }
    assert_eq!(pair.a.counters.drops.load(Ordering::Relaxed), 70_000 - 65_536);
    settle(&pair).await;
    assert!(pair.to_b.late().is_none());
}

/// Answers each question with one answer that takes more than half of the queue.
struct Large;

impl Inbound for Large {
    fn deliver(&self, _: &BroadcastHead<'_>, _: &Bytes) {}

    fn request(&self, _: &Request<'_, '_>, reply: &Reply) {
        let reply = reply.clone();
        tokio::spawn(async move { reply.answer(Bytes::from(vec![7; 600 << 10])).await });
    }
}

#[tokio::test]
async fn answers_that_wait_for_the_same_room_all_go() {
    let pair = Pair::new(Config::default());
    let front: Arc<dyn Inbound> = Arc::new(Large);
    let ns = Namespace::new("/chat").unwrap();
    let _attachment = pair.b.attach(&ns, RoomMode::Exact, Arc::downgrade(&front));
    fill(&pair.b, &pair.to_a);
    let asked: Vec<_> = (0..3).map(|_| pair.ask(1, None, false)).collect();
    pass(&pair.to_b, &pair.b, &pair.to_a);
    for _ in 0..5 {
        tokio::task::yield_now().await;
    }
    settle(&pair).await;
    for mut asked in asked {
        assert_eq!(asked.next().await.map(|answer| answer.body.len()), Some(600 << 10));
        assert!(asked.next().await.is_none());
        assert_eq!(asked.missing(), []);
    }
    nothing_is_left(&pair);
}
