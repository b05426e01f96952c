use smallvec::smallvec;

use super::*;
use crate::config::Config;
use crate::core::frame::{Head, LENGTH_BYTES, PayloadKind, decode_body, decode_head, encode_body, frame_len};
use crate::core::inbox::Verdict;
use crate::core::interest::RoomMode;
use crate::core::version::Protocols;
use crate::hub::requests::{Request, everyone};
use crate::hub::{Attachment, Inbound};
use crate::ids::Seq;
use crate::quic::tls::ClusterName;

/// A node with one other node and one emitter, without a network.
struct Node {
    hub: Arc<Hub>,
    other: Arc<PeerQueue>,
    guest: Arc<Guest>,
    front: Arc<Front>,
    _attachment: Attachment,
}

#[derive(Default)]
struct Front {
    messages: Mutex<Vec<Bytes>>,
    requests: Mutex<Vec<Op>>,
}

impl Inbound for Front {
    fn deliver(&self, _: &BroadcastHead<'_>, payload: &Bytes) {
        lock(&self.messages).push(payload.clone());
    }

    fn request(&self, request: &Request<'_, '_>, reply: &Reply) {
        lock(&self.requests).push(request.head.op);
        reply.answer_now(encode_body(&3u64).unwrap());
    }
}

fn card(id: &str, incarnation: u64) -> Card {
    Card {
        cluster: ClusterName::new("test").unwrap(),
        id: NodeId::new(id).unwrap(),
        incarnation: Incarnation(incarnation),
        advertise: "127.0.0.1:1".parse().unwrap(),
        nonce: 1,
        emitter: true,
        protocols: Protocols::default(),
    }
}

fn node(config: Config) -> Node {
    let hub = Hub::new(NodeId::new("a").unwrap(), Incarnation(1), config);
    let (id, addr) = (NodeId::new("b").unwrap(), "127.0.0.1:1".parse().unwrap());
    let other = hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(1), slot, addr, 1, 1 << 20)));
    let guest = hub.guests.admit(&hub, &card("e", 1)).unwrap();
    let front = Arc::new(Front::default());
    let weak: std::sync::Weak<dyn Inbound> = Arc::downgrade(&(Arc::clone(&front) as Arc<dyn Inbound>));
    let attachment = hub.attach(&Namespace::new("/chat").unwrap(), RoomMode::Exact, weak);
    Node { hub, other, guest, front, _attachment: attachment }
}

/// The frames that wait for a peer, each with its payload.
fn frames(queue: &PeerQueue, hub: &Hub) -> Vec<(String, u64, Bytes)> {
    let mut parts = Vec::new();
    queue.take(usize::MAX, &mut parts);
    queue.ack(Seq(u64::MAX));
    let stream = Bytes::from(parts.concat());
    let (mut at, mut found) = (0, Vec::new());
    while let Some(length) = frame_len(&stream[at..], &hub.limits).unwrap() {
        let frame = stream.slice(at + LENGTH_BYTES..at + LENGTH_BYTES + length);
        at += LENGTH_BYTES + length;
        let (head, used) = decode_head(&frame, &hub.limits).unwrap();
        let (name, id) = match &head {
            Head::Broadcast(_) | Head::Again => ("broadcast", 0),
            Head::Request(request) => ("request", request.id),
            Head::Answer { id } => ("answer", *id),
            Head::End { id, .. } => ("end", *id),
            Head::Cancel { id } => ("cancel", *id),
            other => panic!("{other:?}"),
        };
        found.push((name.to_owned(), id, frame.slice(used..)));
    }
    found
}

fn names(frames: &[(String, u64, Bytes)]) -> Vec<&str> {
    frames.iter().map(|(name, ..)| name.as_str()).collect()
}

fn question(id: u64) -> RequestHead<'static> {
    let to = everyone("/chat", PayloadKind::Plain);
    RequestHead { id, op: Op::Count, timeout_ms: 60_000, credit: 2, names: smallvec![], to }
}

#[tokio::test]
async fn what_an_emitter_sends_goes_on_and_what_a_member_sends_does_not() {
    let node = node(Config::default());
    let (head, payload) = (everyone("/chat", PayloadKind::Plain), Bytes::from_static(b"x"));
    node.hub.arrived_alone(&node.guest.queue, None, &head, &payload);
    node.hub.arrived(&node.guest.queue, &mut Recent::default(), None, &head, payload.clone());
    assert_eq!(names(&frames(&node.other, &node.hub)), ["broadcast"; 2]);
    let order = RequestHead { op: Op::Disconnect, ..question(0) };
    node.hub.request(&node.guest.queue, None, &order, &Bytes::new());
    assert_eq!(names(&frames(&node.other, &node.hub)), ["request"]);
    assert_eq!(*lock(&node.front.requests), [Op::Disconnect]);

    node.hub.arrived_alone(&node.other, None, &head, &payload);
    node.hub.request(&node.other, None, &order, &Bytes::new());
    node.hub.request(&node.other, None, &question(5), &Bytes::new());
    assert_eq!(lock(&node.front.messages).len(), 3);
    // Only the answers to what it asked itself.
    assert_eq!(names(&frames(&node.other, &node.hub)), ["answer", "end"]);
    assert_eq!(node.guest.queue.depth().0, 0);
}

#[tokio::test]
async fn answers_come_back_with_the_names_of_the_nodes_and_with_those_that_are_missing() {
    let node = node(Config::default());
    node.hub.request(&node.guest.queue, None, &question(7), &Bytes::new());
    let asked = frames(&node.other, &node.hub);
    assert_eq!(names(&asked), ["request"]);
    assert!(node.hub.requests.answered(node.other.slot, asked[0].1, encode_body(&4u64).unwrap()));
    node.hub.remove_peer(&node.other);
    let mut back = Vec::new();
    while names(&back).last() != Some(&"end") {
        tokio::task::yield_now().await;
        back.extend(frames(&node.guest.queue, &node.hub));
        // The emitter takes them.
        node.guest.queue.serving.grant(7, 1);
    }
    assert_eq!(names(&back), ["answer", "answer", "answer", "end"]);
    assert!(back.iter().all(|(_, id, _)| *id == 7));
    let mut of = Vec::new();
    for (_, _, payload) in &back[..3] {
        match Relayed::decode(payload).unwrap() {
            Relayed::Answer { node, body } => of.push((node, decode_body::<u64>(&body).unwrap())),
            Relayed::Missing(missing) => assert_eq!(missing, [("b".to_owned(), 0)]),
        }
    }
    of.sort();
    assert_eq!(of, [("a".to_owned(), 3), ("b".to_owned(), 4)]);
    assert_eq!((node.hub.requests.pending(), node.guest.queue.serving.len()), (0, 0));
}

#[tokio::test]
async fn an_emitter_that_gives_up_or_goes_leaves_no_question_behind() {
    let node = node(Config::default());
    for id in 1..=100 {
        node.hub.request(&node.guest.queue, None, &question(id), &Bytes::new());
    }
    assert_eq!(node.hub.requests.pending(), 100);
    node.guest.queue.serving.cancel(1);
    while node.hub.requests.pending() > 99 {
        tokio::task::yield_now().await;
    }
    node.hub.guests.ended(&node.guest, 0, true);
    while node.hub.requests.pending() > 0 || node.guest.queue.serving.len() > 0 {
        tokio::task::yield_now().await;
    }
    let sent = frames(&node.other, &node.hub);
    assert_eq!(names(&sent).iter().filter(|name| **name == "cancel").count(), 100);
    assert_eq!(node.hub.guests.len(), 0);
}

#[tokio::test]
async fn limits_are_answered_not_exceeded() {
    let mut config = Config::default();
    (config.link.max_emitters, config.link.max_requests) = (1, 4);
    let node = node(config);
    let refused = node.hub.guests.admit(&node.hub, &card("f", 1)).map(drop);
    assert_eq!(refused, Err(LinkError::TooManyEmitters { limit: 1 }));
    assert!(node.hub.guests.admit(&node.hub, &card("e", 1)).is_ok(), "the same run again");
    // Half of the questions of the node, for all emitters together.
    for id in 1..=3 {
        node.hub.request(&node.guest.queue, None, &question(id), &Bytes::new());
    }
    assert_eq!(node.hub.requests.pending(), 2);
    assert_eq!(node.hub.counters.requests_refused.load(Ordering::Relaxed), 1);
}

#[test]
fn one_whose_link_broke_is_kept_for_the_window() {
    let hub = Hub::new(NodeId::new("a").unwrap(), Incarnation(1), Config::default());
    let guest = hub.guests.admit(&hub, &card("e", 1)).unwrap();
    hub.guests.admit(&hub, &card("e", 1)).unwrap();
    hub.guests.ended(&guest, 10, false);
    hub.guests.tick(1_000, 100);
    assert_eq!(hub.guests.len(), 1, "it has another connection");
    hub.guests.ended(&guest, 1_000, false);
    hub.guests.tick(1_099, 100);
    assert_eq!(hub.guests.len(), 1);
    hub.guests.tick(1_100, 100);
    assert_eq!(hub.guests.len(), 0);
    hub.guests.close();
    assert_eq!(hub.guests.admit(&hub, &card("e", 1)).map(drop), Err(LinkError::Stopping));
}

#[test]
fn reasons_survive_the_wire() {
    let node = NodeId::new("b").unwrap();
    for reason in REASONS {
        let (name, number) = numbered(Missing { node: node.clone(), reason });
        assert_eq!(missing_from(&name, number), Some(Missing { node: node.clone(), reason }));
    }
    assert_eq!(missing_from("b", 200).map(|missing| missing.reason), Some(MissingReason::Failed));
}

/// What a node says to an emitter that comes back counts as acknowledged there: it must not be more than the others have.
#[test]
fn who_comes_back_is_told_what_the_others_have_and_not_what_came() {
    let hub = Hub::new(NodeId::new("a").unwrap(), Incarnation(1), Config::default());
    let guest = &hub.guests.admit(&hub, &card("e", 1)).unwrap().queue;
    assert_eq!(guest.own_resume().received, None);
    let mut lent = guest.lend_inbox().unwrap();
    lent.inbox.start(7, Seq(1));
    (0..10).for_each(|_| assert_eq!(lent.inbox.accept(), Verdict::Deliver));
    drop(lent);
    guest.applied.store(4, Ordering::Release);
    assert_eq!(guest.own_resume().received, Some((7, 4)));
    // It sends the rest again.
    let mut lent = guest.lend_inbox().unwrap();
    lent.inbox.start(7, Seq(5));
    (5..=10).for_each(|_| assert_eq!(lent.inbox.accept(), Verdict::Duplicate));
    assert_eq!(lent.inbox.accept(), Verdict::Deliver);
}
