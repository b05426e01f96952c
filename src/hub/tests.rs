//! The hub by itself: who gets a frame, and what it is made of.

use smallvec::smallvec;

use super::*;
use crate::core::frame::PayloadKind;

fn hub(id: &str) -> Arc<Hub> {
    Hub::new(NodeId::new(id).unwrap(), Incarnation(1), Config::default())
}

fn add(hub: &Hub, id: &str) -> Arc<PeerQueue> {
    let id = NodeId::new(id).unwrap();
    let addr = ([127, 0, 0, 1], 1).into();
    hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(1), slot, addr, 1, 1 << 20)))
}

fn head(room: &str) -> BroadcastHead<'_> {
    BroadcastHead {
        ns: "/chat",
        kind: PayloadKind::Plain,
        flags: 0,
        rooms: smallvec![room],
        except: smallvec![],
        server: None,
        socket: None,
        attachments: smallvec![],
    }
}

fn send(hub: &Hub, payload: &Bytes) -> Receipt {
    let ns = Namespace::new("/chat").unwrap();
    hub.send(&ns, &[ns.room("lobby")], &head("lobby"), payload, false)
}

fn taken(peer: &PeerQueue) -> Vec<Bytes> {
    let mut out = Vec::new();
    peer.take(usize::MAX, &mut out);
    out
}

#[test]
fn one_encoding_serves_every_peer() {
    let hub = hub("a");
    let peers = ["b", "c", "d"].map(|id| add(&hub, id));
    let payload = Bytes::from(vec![7; 100_000]);
    assert_eq!(send(&hub, &payload).queued, 3);
    for peer in &peers {
        let [head, body] = &taken(peer)[..] else { panic!("a large frame is its head and its payload") };
        // The payload is the bytes that were handed in, not a copy of them.
        assert_eq!((body.as_ptr(), body.len()), (payload.as_ptr(), payload.len()));
        assert!(head.len() < 64);
    }
}

/// The bytes of a payload: gone when nobody holds it.
struct Owned(Arc<Vec<u8>>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn peers_that_are_away_share_the_payload_and_let_go_of_it_when_they_are_given_up() {
    let hub = hub("a");
    let peers: Vec<_> = (0..20).map(|index| add(&hub, &format!("peer-{index}"))).collect();
    let bytes = Arc::new(vec![7; 100_000]);
    let held = Arc::downgrade(&bytes);
    assert_eq!(send(&hub, &Bytes::from_owner(Owned(bytes))).queued, 20);
    assert_eq!(held.strong_count(), 1, "one allocation, however many peers hold it");
    assert!(peers.iter().all(|peer| peer.depth().1 >= 100_000), "each counts it");
    let queues: Vec<_> = peers.iter().map(Arc::downgrade).collect();
    for (index, peer) in peers.iter().enumerate() {
        assert_eq!(held.strong_count(), 1);
        // A later run of the same node has nothing of what was for the one before.
        let id = format!("peer-{index}");
        let next = add(&hub, &id);
        assert_eq!(hub.remove_peer(peer), 1);
        assert_eq!((peer.depth(), next.depth()), ((0, 0), (0, 0)));
        assert_eq!(peer.push(None, b"late", &Bytes::new(), || 0), Err(DropReason::PeerGone));
    }
    assert_eq!(held.strong_count(), 0, "the memory is given back");
    // The queues go, too: the last to know them is the thread that sent, until it sends again.
    drop(peers);
    assert_eq!(send(&hub, &Bytes::from_static(b"next")).queued, 20);
    assert!(queues.iter().all(|queue| queue.strong_count() == 0));
}

#[test]
fn a_thread_that_has_sent_before_sees_who_came_and_who_went() {
    let (one, other) = (hub("a"), hub("x"));
    let payload = Bytes::from_static(b"hello");
    assert_eq!(send(&one, &payload), Receipt::default());
    let b = add(&one, "b");
    assert_eq!(send(&one, &payload).queued, 1);
    assert_eq!(send(&other, &payload).targeted, 0, "the peers of one node are not those of another");
    let c = add(&one, "c");
    one.remove_peer(&b);
    assert_eq!(send(&one, &payload).queued, 1);
    assert!(taken(&b).is_empty());
    assert_eq!(taken(&c).len(), 1);
}

struct Counting(AtomicU64);

impl Inbound for Counting {
    fn deliver(&self, _: &BroadcastHead<'_>, _: &Bytes) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn messages_that_come_together_reach_every_front_and_are_counted() {
    let hub = hub("a");
    let ns = Namespace::new("/chat").unwrap();
    let fronts = [0, 1].map(|_| Arc::new(Counting(AtomicU64::new(0))));
    let attached = fronts.each_ref().map(|front| {
        let inbound: Weak<dyn Inbound> = Arc::downgrade(&(Arc::clone(front) as Arc<dyn Inbound>));
        hub.attach(&ns, RoomMode::Exact, inbound)
    });
    let mut recent = Recent::default();
    for room in ["lobby", "hall", "hall"] {
        hub.deliver_recent(&mut recent, &head(room), Bytes::from_static(b"hello"));
    }
    hub.deliver_recent(&mut recent, &BroadcastHead { ns: "/none", ..head("hall") }, Bytes::new());
    hub.count_delivered(&mut recent);
    assert_eq!(fronts.each_ref().map(|front| front.0.load(Ordering::Relaxed)), [3, 3]);
    assert_eq!(hub.counters.delivered.load(Ordering::Relaxed), 3);
    assert_eq!(hub.counters.no_namespace.load(Ordering::Relaxed), 1);
    drop(attached);
    hub.deliver(&head("hall"), &Bytes::new());
    assert_eq!(hub.counters.no_namespace.load(Ordering::Relaxed), 2);
}

#[test]
fn a_lookup_is_remembered_only_as_long_as_it_holds() {
    use crate::core::interest::{InterestChange, InterestDelta};

    let (hub, ns) = (hub("a"), Namespace::new("/chat").unwrap());
    let peer = add(&hub, "b");
    let payload = Bytes::from_static(b"hello");
    let targeted = || [send(&hub, &payload).targeted, send(&hub, &payload).targeted];
    assert_eq!(targeted(), [1, 1], "unknown");
    hub.routes.snapshot_begin(peer.slot, 1).unwrap();
    hub.routes.snapshot_end(peer.slot).unwrap();
    assert_eq!(targeted(), [0, 0], "known to have nobody");
    let change = |added: &[RoomKey], removed: &[RoomKey]| InterestChange {
        ns: ns.clone(),
        mode: Some(RoomMode::Exact),
        added: added.to_vec(),
        removed: removed.to_vec(),
    };
    let lobby = [ns.room("lobby")];
    let joined = InterestDelta { version: 2, changes: vec![change(&lobby, &[])] };
    hub.routes.apply_delta(peer.slot, &joined).unwrap();
    assert_eq!(targeted(), [1, 1], "joined");
    let hall = [ns.room("hall")];
    assert_eq!(hub.send(&ns, &hall, &head("hall"), &payload, false).targeted, 0, "another room");
    assert_eq!(targeted(), [1, 1]);
    let left = InterestDelta { version: 3, changes: vec![change(&[], &lobby)] };
    hub.routes.apply_delta(peer.slot, &left).unwrap();
    assert_eq!(targeted(), [0, 0], "left");
    hub.routes.set_unknown(peer.slot);
    assert_eq!(targeted(), [1, 1], "unknown again");
}
