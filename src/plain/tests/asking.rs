//! What members here are asked, without a network.

use super::*;
use crate::core::frame::{
    EndStatus, Head, LENGTH_BYTES, Op, RequestHead, decode_body, decode_head, frame_len,
};
use crate::core::requests::TooManyRequests;
use crate::error::{AskError, DataError};
use crate::ids::Seq;

fn add_peer(hub: &Hub, id: &str) -> Arc<PeerQueue> {
    let (id, addr) = (NodeId::new(id).unwrap(), "127.0.0.1:7946".parse().unwrap());
    hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(2), slot, addr, 1, 1 << 20)))
}

/// Everything that is queued for a peer, looked at one by one.
fn queued(hub: &Hub, peer: &PeerQueue, mut look: impl FnMut(Head<'_>, &[u8])) {
    let mut parts = Vec::new();
    peer.take(usize::MAX, &mut parts);
    peer.ack(Seq(u64::MAX));
    let stream = parts.concat();
    let mut rest = &stream[..];
    while let Some(length) = frame_len(rest, &hub.limits).unwrap() {
        let (frame, behind) = rest[LENGTH_BYTES..].split_at(length);
        let (head, used) = decode_head(frame, &hub.limits).unwrap();
        look(head, &frame[used..]);
        rest = behind;
    }
}

/// How many members another node is told when it asks so; none without an answer.
fn count_for(hub: &Arc<Hub>, peer: &Arc<PeerQueue>, to: BroadcastHead<'_>) -> Option<u64> {
    let names = SmallVec::new();
    hub.request(
        peer,
        None,
        &RequestHead { id: 7, op: Op::Count, timeout_ms: 0, credit: 1, names, to },
        &Bytes::new(),
    );
    let (mut count, mut ended) = (None, false);
    queued(hub, peer, |head, body| match head {
        Head::Answer { id: 7 } => count = Some(decode_body(body).unwrap()),
        Head::End { id: 7, status: EndStatus::Done } => ended = true,
        other => panic!("{other:?}"),
    });
    assert!(ended);
    count
}

async fn every(mut acks: Acks) -> Vec<(MemberId, Result<Bytes, AckError>)> {
    let mut all = Vec::new();
    while let Some(ack) = acks.next().await {
        assert_eq!(ack.node.as_str(), "a");
        all.push((ack.member, ack.result));
    }
    assert_eq!(acks.missing(), []);
    all.sort_by_key(|(member, _)| *member);
    all
}

#[tokio::test]
async fn what_the_wire_says_of_who_is_meant() {
    let (hub, ns) = chat();
    let peer = add_peer(&hub, "b");
    let (member, _) = member(&ns, &["r"]);
    let other = NodeId::new("b").unwrap();
    member.to("r").except("q").leave("r").unwrap();
    ns.member(&other, MemberId(40)).emit("x").unwrap();
    ns.member(&other, MemberId(41)).local().emit("x").unwrap();
    ns.to([""; 0]).disconnect().unwrap();
    ns.all().local().disconnect().unwrap();
    let mut said = Vec::new();
    queued(&hub, &peer, |head, body| {
        let Head::Request(RequestHead { id: 0, op, names, to, .. }) = head else { panic!("{head:?}") };
        assert_eq!((to.ns, to.kind, to.server), ("/chat", PayloadKind::Plain, None));
        said.push(format!(
            "{op:?} {names:?} {:?} {:?} {} {:?} {body:?}",
            to.rooms, to.except, to.flags, to.socket
        ));
    });
    let expected =
        ["Leave [\"r\"] [\"r\"] [\"q\"] 2 Some(\"1\") []", "Deliver [] [] [] 0 Some(\"40\") [120]"];
    assert_eq!(said, expected);
    assert!(!member.is_connected());
}

#[tokio::test]
async fn a_question_from_elsewhere_means_who_its_head_says() {
    let (hub, ns) = chat();
    let peer = add_peer(&hub, "b");
    let (one, _) = member(&ns, &["r", "s"]);
    let (_two, _) = member(&ns, &["r"]);
    let plain = |rooms, except| head(PayloadKind::Plain, rooms, except);
    assert_eq!(count_for(&hub, &peer, plain(&[], &[])), Some(2));
    assert_eq!(count_for(&hub, &peer, plain(&["r", "s"], &[])), Some(2));
    assert_eq!(count_for(&hub, &peer, plain(&["r"], &["s"])), Some(1));
    assert_eq!(count_for(&hub, &peer, plain(&["x"], &[])), Some(0));
    // Not asked of members of the plain API.
    assert_eq!(count_for(&hub, &peer, head(PayloadKind::SocketIoText, &[], &[])), None);
    assert_eq!(count_for(&hub, &peer, BroadcastHead { server: Some("s"), ..plain(&[], &[]) }), None);
    // One member; or a sender, who is one of the other node.
    let id = one.id().to_string();
    let one = |flags, socket| BroadcastHead { flags, socket: Some(socket), ..plain(&["r"], &[]) };
    assert_eq!(count_for(&hub, &peer, one(0, &id)), Some(1));
    assert_eq!(
        count_for(&hub, &peer, BroadcastHead { rooms: smallvec::smallvec!["x"], ..one(0, &id) }),
        Some(0)
    );
    assert_eq!(
        count_for(&hub, &peer, BroadcastHead { except: smallvec::smallvec!["s"], ..one(0, &id) }),
        Some(0)
    );
    assert_eq!(count_for(&hub, &peer, one(0, "99")), Some(0));
    assert_eq!(count_for(&hub, &peer, one(0, "no number")), None);
    assert_eq!(count_for(&hub, &peer, one(2, &id)), Some(2));
    assert_eq!(count_for(&hub, &peer, one(2, "no number")), Some(2));
}

#[tokio::test(start_paused = true)]
async fn members_acknowledge_for_themselves() {
    let (hub, ns) = chat();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let given = ns.connect_with_ack(|message, ack| ack.send(message));
    let late = ns.connect_with_ack({
        let kept = Arc::clone(&kept);
        move |_, ack| lock(&kept).push(ack)
    });
    let silent = ns.connect(|_| {});
    let bad = ns.connect_with_ack(|_, _ack| panic!("a bad sink"));
    let asked = tokio::time::Instant::now();
    let acks = every(ns.all().emit_with_ack("x", Duration::from_secs(7)).unwrap()).await;
    let expected = [
        (given.id(), Ok("x".into())),
        (late.id(), Err(AckError::TimedOut)),
        (silent.id(), Err(AckError::Dropped)),
        (bad.id(), Err(AckError::Dropped)),
    ];
    assert_eq!((acks, asked.elapsed().as_secs()), (expected.to_vec(), 7));
    let ack = lock(&kept).pop().unwrap();
    assert!(!ack.is_wanted());
    ack.send("too late");
    // The sender is left out, and an answer that is given later is not lost.
    let acks = given.all().except("nobody").emit_with_ack("y", Duration::from_secs(7)).unwrap();
    lock(&kept).pop().unwrap().send("later");
    let acks = every(acks).await;
    assert_eq!((acks.len(), &acks[0]), (3, &(late.id(), Ok("later".into()))));
    assert_eq!(hub.pending_requests(), (0, 0));
}

#[tokio::test]
async fn a_closure_with_acknowledgement_gets_other_messages_too() {
    let (_hub, ns) = chat();
    let wanted = Arc::new(Mutex::new(Vec::new()));
    let _member = ns.connect_with_ack({
        let wanted = Arc::clone(&wanted);
        move |_, ack| lock(&wanted).push(ack.is_wanted())
    });
    ns.all().emit("x").unwrap();
    let acks = ns.all().emit_with_ack("x", Duration::from_secs(7)).unwrap();
    assert_eq!(*lock(&wanted), [false, true]);
    assert_eq!(every(acks).await[0].1, Err(AckError::Dropped));
}

#[tokio::test]
async fn too_many_questions_are_refused() {
    let mut config = Config::default();
    config.link.max_requests = 1;
    let hub = hub(config);
    let ns = NamespaceHandle::open(&hub, &NamespaceRegistry::default(), "/chat").unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let _member = ns.connect_with_ack({
        let kept = Arc::clone(&kept);
        move |_, ack| lock(&kept).push(ack)
    });
    let first = ns.all().emit_with_ack("x", Duration::from_secs(7)).unwrap();
    let error = AskError::TooManyRequests(TooManyRequests { limit: 1 });
    assert_eq!(ns.all().emit_with_ack("x", Duration::from_secs(7)).err(), Some(error.clone()));
    assert_eq!(ns.all().count().await, Err(error));
    assert_eq!(lock(&kept).len(), 1, "the second message reached nobody");
    drop(first);
    assert_eq!(*ns.all().count().await.unwrap(), 1);
}

#[test]
fn a_question_outside_a_runtime_is_an_error() {
    let (_hub, ns) = chat();
    let (_a, a) = member(&ns, &["r"]);
    assert_eq!(ns.all().emit_with_ack("x", Duration::from_secs(7)).err(), Some(AskError::NoRuntime));
    assert!(take(&a).is_empty());
    ns.all().join("s").unwrap();
    assert_eq!(_a.rooms().len(), 2, "orders need none");
}

#[tokio::test]
async fn data_has_a_limit() {
    let (_hub, ns) = chat();
    let (a, _) = member(&ns, &[]);
    assert!(a.data().is_empty());
    a.set_data(vec![1; 1024]).unwrap();
    assert_eq!(a.set_data(vec![2; 1025]), Err(DataError { got: 1025, limit: 1024 }));
    assert_eq!(a.data(), vec![1; 1024]);
    a.set_data("").unwrap();
    assert!(a.data().is_empty());
}

#[tokio::test]
async fn who_is_disconnected_is_told_once_and_no_interest_is_left() {
    struct Told(Arc<Mutex<u32>>, NamespaceHandle);
    impl Sink for Told {
        fn deliver(&self, _: Bytes) {}

        fn disconnected(&self) {
            *lock(&self.0) += 1;
            // No lock is held, and it is gone.
            assert_eq!(self.1.inner.read().everyone().len(), 0);
        }
    }
    let (hub, ns) = chat();
    let told = Arc::new(Mutex::new(0));
    let member = ns.connect(Told(Arc::clone(&told), ns.clone()));
    member.join("r").unwrap();
    drop(hub.take_pending());
    ns.to("r").disconnect().unwrap();
    ns.to("r").disconnect().unwrap();
    ns.all().disconnect().unwrap();
    let (everyone, r) = (ns.inner.ns().everyone(), ns.inner.ns().room("r"));
    assert_eq!(changes(&hub, &ns), sorted([(everyone, -1), (r, -1)]));
    member.join("s").unwrap();
    ns.all().join("s").unwrap();
    assert!(!member.is_connected() && member.rooms().is_empty());
    drop(member);
    assert_eq!((*lock(&told), changes(&hub, &ns)), (1, vec![]));
}
