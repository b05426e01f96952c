//! Who waits for room, for how long, and in which order.

use smallvec::smallvec;
use tokio::time::timeout;

use super::*;
use crate::config::Config;
use crate::core::frame::{LENGTH_BYTES, PayloadKind, decode_head, frame_len};
use crate::ids::{Incarnation, NodeId, Seq};

const LIMIT: usize = 10_000;

fn hub() -> Arc<Hub> {
    Hub::new(NodeId::new("a").unwrap(), Incarnation(1), Config::default())
}

fn add(hub: &Hub, id: &str) -> Arc<PeerQueue> {
    let id = NodeId::new(id).unwrap();
    let addr = ([127, 0, 0, 1], 1).into();
    hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(1), slot, addr, 1, LIMIT)))
}

fn head() -> BroadcastHead<'static> {
    BroadcastHead {
        ns: "/chat",
        kind: PayloadKind::Plain,
        flags: 0,
        rooms: smallvec!["lobby"],
        except: smallvec![],
        server: None,
        socket: None,
        attachments: smallvec![],
    }
}

fn message(number: u8) -> Bytes {
    vec![number; 6000].into()
}

fn send(hub: &Arc<Hub>, number: u8, patience: Patience) -> (Receipt, Waits) {
    let ns = Namespace::new("/chat").unwrap();
    hub.send_waiting(&ns, &[ns.room("lobby")], &head(), &message(number), patience)
}

/// Takes all that is queued, as a link would, and acknowledges it. Says which messages they were.
fn pass(hub: &Hub, peer: &PeerQueue) -> Vec<u8> {
    let (mut parts, mut found, mut at) = (Vec::new(), Vec::new(), 0);
    peer.take(usize::MAX, &mut parts);
    peer.ack(Seq(u64::MAX));
    let wire = parts.concat();
    while let Some(len) = frame_len(&wire[at..], &hub.limits).unwrap() {
        let frame = &wire[at + LENGTH_BYTES..at + LENGTH_BYTES + len];
        found.push(frame[decode_head(frame, &hub.limits).unwrap().1]);
        at += LENGTH_BYTES + len;
    }
    found
}

fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test]
async fn peers_with_room_have_it_at_once_and_the_full_one_in_order() {
    let hub = hub();
    let (full, free) = (add(&hub, "full"), add(&hub, "free"));
    let mut waiting = Vec::new();
    for number in 0..20 {
        let (receipt, waits) = send(&hub, number, Patience::Endless);
        assert_eq!((receipt.targeted, receipt.queued), (2, if number == 0 { 2 } else { 1 }));
        assert_eq!(pass(&hub, &free), [number], "it does not wait for the other");
        let mut waits = Box::pin(waits.finish());
        let polled = poll(waits.as_mut());
        assert_eq!(polled.is_ready(), number == 0);
        waiting.extend((number > 0).then(|| tokio::spawn(waits)));
    }
    // One of them is given up: those behind it move up.
    waiting.remove(9).abort();
    let mut came = Vec::new();
    while came.len() < 19 {
        came.extend(pass(&hub, &full));
        tokio::task::yield_now().await;
    }
    assert_eq!(came, (0..20).filter(|number| *number != 10).collect::<Vec<_>>());
    for waits in waiting {
        assert_eq!(waits.await.unwrap(), Receipt { targeted: 0, queued: 1, dropped: vec![] });
    }
    assert_eq!((full.waiting.load(Ordering::Relaxed), hub.counters.drops.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(send(&hub, 20, Patience::Endless).0.queued, 2, "nobody is in line any more");
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_dropped_and_counted_and_who_goes_is_named() {
    let hub = hub();
    let (full, gone) = (add(&hub, "full"), add(&hub, "gone"));
    let patience = Patience::Until(Duration::from_secs(3));
    assert!(send(&hub, 0, patience).1.is_empty());
    let (receipt, waits) = send(&hub, 1, patience);
    assert_eq!((receipt.targeted, receipt.queued, receipt.dropped), (2, 0, vec![]));
    let mut waits = Box::pin(waits.finish());
    assert!(timeout(Duration::from_millis(2900), waits.as_mut()).await.is_err());
    hub.remove_peer(&gone);
    let mut receipt = waits.await;
    receipt.dropped.sort_by(|a, b| b.0.cmp(&a.0));
    let dropped: Vec<_> = receipt.dropped.iter().map(|(id, reason)| (id.as_str(), *reason)).collect();
    assert_eq!(dropped, [("gone", DropReason::PeerGone), ("full", DropReason::WaitedTooLong)]);
    assert_eq!(full.counters.dropped_waited.load(Ordering::Relaxed), 1);
    assert_eq!(gone.counters.dropped_gone.load(Ordering::Relaxed), 1);
    assert_eq!((hub.counters.drops.load(Ordering::Relaxed), full.waiting.load(Ordering::Relaxed)), (2, 0));
    assert_eq!(pass(&hub, &full), [0], "what was dropped does not come later");
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_one_of_the_line() {
    let hub = hub();
    let full = add(&hub, "full");
    assert!(send(&hub, 0, Patience::Endless).1.is_empty());
    let mut first = Box::pin(send(&hub, 1, Patience::Endless).1.finish());
    assert!(poll(first.as_mut()).is_pending());
    let mut turn = Box::pin(hub.turn(&full, 6000, Patience::Endless));
    assert!(poll(turn.as_mut()).is_pending());
    assert_eq!(pass(&hub, &full), [0]);
    assert!(poll(turn.as_mut()).is_pending(), "the other is first");
    first.await;
    assert!(poll(turn.as_mut()).is_pending());
    assert_eq!(pass(&hub, &full), [1]);
    let turn = turn.await.unwrap();
    let late = hub.turn(&full, 6000, Patience::Until(Duration::from_secs(1))).await;
    assert_eq!(late.err(), Some(DropReason::WaitedTooLong));
    drop(turn);
    assert!(send(&hub, 2, Patience::Endless).1.is_empty());
    assert_eq!((pass(&hub, &full), full.waiting.load(Ordering::Relaxed)), (vec![2], 0));
}

#[test]
fn those_in_line_are_bounded_and_without_a_clock_nobody_waits() {
    let hub = hub();
    let full = add(&hub, "full");
    assert!(send(&hub, 0, Patience::Endless).1.is_empty());
    let held: Vec<_> = (0..MAX_WAITING).map(|_| send(&hub, 1, Patience::Endless).1).collect();
    let (receipt, waits) = send(&hub, 1, Patience::Endless);
    assert!(waits.is_empty());
    assert_eq!(receipt.dropped, [(NodeId::new("full").unwrap(), DropReason::QueueFull)]);
    drop(held);
    assert_eq!(full.waiting.load(Ordering::Relaxed), 0);
    let (_, waits) = send(&hub, 1, Patience::Until(Duration::from_secs(1)));
    let Poll::Ready(receipt) = poll(Box::pin(waits.finish()).as_mut()) else { panic!("it waits for ever") };
    assert_eq!(receipt.dropped[0].1, DropReason::WaitedTooLong);
}
