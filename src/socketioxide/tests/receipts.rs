//! Receipts of broadcasts of the adapter.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::super::with_receipt;
use super::fake::Side;
use super::*;
use crate::config::{Config, QueuePolicy};
use crate::error::DropReason;
use crate::hub::Receipt;
use crate::hub::peer::PeerQueue;

fn sent(targeted: usize, queued: usize) -> Receipt {
    Receipt { targeted, queued, dropped: Vec::new() }
}

async fn emit(pair: &Pair) {
    pair.sender.broadcast(event("/chat", text(r#"["hi"]"#)), everyone()).await.unwrap();
}

/// Gives the thread back once.
async fn turn() {
    let mut waited = false;
    std::future::poll_fn(
        |_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending },
    )
    .await;
}

fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_receipt_says_what_became_of_the_broadcasts_inside() {
    let pair = Pair::flood();
    assert_eq!(now(with_receipt(async { 7 })), (7, Receipt::default()));
    assert_eq!(now(with_receipt(emit(&pair))).1, sent(1, 1));
    pair.a.meet(&Side::new("c"));
    let twice = async {
        emit(&pair).await;
        emit(&pair).await;
    };
    assert_eq!(now(with_receipt(twice)).1, sent(4, 4));
    let volatile = flagged(everyone(), BroadcastFlags::Volatile);
    let (result, receipt) = now(with_receipt(pair.sender.broadcast(event("/chat", text("[]")), volatile)));
    result.unwrap();
    assert_eq!((receipt.targeted, receipt.queued), (2, 0));
    let dropped: Vec<_> = receipt.dropped.iter().map(|(id, reason)| (id.as_str(), *reason)).collect();
    assert_eq!(dropped, [("b", DropReason::NotWritable), ("c", DropReason::NotWritable)]);
    let local = flagged(everyone(), BroadcastFlags::Local);
    let (result, receipt) = now(with_receipt(pair.sender.broadcast(event("/chat", text("[]")), local)));
    result.unwrap();
    assert_eq!(receipt, Receipt::default(), "it was for nobody else");
}

/// Fills the queue to `b` and has `with` emit to it and to `c`.
fn full(policy: QueuePolicy) -> (Pair, Arc<PeerQueue>) {
    let mut config = Config::default();
    config.link.queue_policy = policy;
    let pair = Pair::with_config(config);
    let c = pair.a.meet(&Side::new("c"));
    pair.queue.push(None, &[0; 8], &Bytes::from(vec![0; 64 << 20]), || 0).unwrap();
    (pair, c)
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_waits_for_room_when_the_policy_says_so() {
    let (pair, c) = full(QueuePolicy::Wait { deadline: Duration::from_secs(2) });
    let sid = pair.from.connect();
    let mut first = pin!(with_receipt(emit(&pair)));
    assert!(poll(first.as_mut()).is_pending());
    assert_eq!((pair.from.reached(), c.depth().0), (vec![sid], 1), "sockets here and other nodes have it");
    let mut second = pin!(with_receipt(emit(&pair)));
    assert!(poll(second.as_mut()).is_pending());
    assert_eq!(c.depth().0, 2);
    pair.queue.take(usize::MAX >> 1, &mut Vec::new());
    pair.queue.ack(crate::ids::Seq(1));
    assert_eq!((first.await.1, second.await.1), (sent(2, 2), sent(2, 2)));
    assert_eq!(pair.queue.depth().0, 2);

    let (pair, c) = full(QueuePolicy::Wait { deadline: Duration::from_secs(2) });
    let ((), receipt) = with_receipt(emit(&pair)).await;
    assert_eq!((receipt.targeted, receipt.queued, c.depth().0), (2, 1, 1));
    assert_eq!(receipt.dropped[0].1, DropReason::WaitedTooLong);
}

#[test]
fn without_that_policy_a_broadcast_does_not_wait() {
    let (pair, _c) = full(QueuePolicy::DropNewest);
    let receipt = now(with_receipt(emit(&pair))).1;
    assert_eq!((receipt.targeted, receipt.queued, receipt.dropped[0].1), (2, 1, DropReason::QueueFull));
}

#[test]
fn orders_are_in_receipts_like_broadcasts() {
    let pair = Pair::flood();
    pair.a.meet(&Side::new("c"));
    let orders = async {
        pair.sender.add_sockets(everyone(), "x").await.unwrap();
        pair.sender.del_sockets(everyone(), "x").await.unwrap();
        pair.sender.disconnect_socket(everyone()).await.unwrap();
    };
    assert_eq!(now(with_receipt(orders)).1, sent(6, 6));
    let local = flagged(everyone(), BroadcastFlags::Local);
    assert_eq!(now(with_receipt(pair.sender.add_sockets(local, "x"))).1, Receipt::default());
    assert_eq!(now(with_receipt(emit(&pair))).1, sent(2, 2));
}

#[test]
fn what_else_the_thread_does_while_a_future_waits_is_not_in_its_receipt() {
    let pair = Pair::flood();
    let mut slow = pin!(with_receipt(async {
        emit(&pair).await;
        turn().await;
        emit(&pair).await;
    }));
    assert!(poll(slow.as_mut()).is_pending());
    now(emit(&pair));
    assert_eq!(now(with_receipt(emit(&pair))).1, sent(1, 1));
    assert_eq!(poll(slow), Poll::Ready(((), sent(2, 2))));
}

#[test]
fn a_receipt_inside_another_counts_for_both_also_when_it_is_given_up() {
    let pair = Pair::flood();
    let outer = with_receipt(async {
        emit(&pair).await;
        let (_, inner) = with_receipt(emit(&pair)).await;
        {
            let mut half = pin!(with_receipt(async {
                emit(&pair).await;
                turn().await;
                emit(&pair).await;
            }));
            assert!(poll(half.as_mut()).is_pending());
        }
        inner
    });
    assert_eq!(now(outer), (sent(1, 1), sent(3, 3)));
}

#[test]
fn a_panic_inside_ends_the_collection() {
    let pair = Pair::flood();
    let panics = || now(with_receipt(async { panic!("on purpose") }));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    now(emit(&pair));
    assert_eq!(now(with_receipt(async {})).1, Receipt::default());
}
