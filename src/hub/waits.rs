//! Messages that wait for room in the queues of peers: first come, first served at each peer, up to a deadline.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Sleep;

use super::peer::{PeerQueue, count};
use super::{Hub, Receipt, trace};
use crate::config::QueuePolicy;
use crate::core::frame::{BroadcastHead, TraceFrame};
use crate::error::DropReason;
use crate::ids::{Namespace, RoomKey};

/// The most messages that wait for room at one peer; one more is dropped as the newest. Cost: about 1 KiB each, and the
/// messages.
const MAX_WAITING: usize = 65_536;

/// How long a message that has no room may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as it takes.
    Endless,
    /// This long.
    Until(Duration),
}

/// A message that has a place in the line of some peers. Dropping it gives up those places.
pub(crate) struct Waits {
    hub: Arc<Hub>,
    patience: Patience,
    list: Vec<(Arc<PeerQueue>, Place)>,
}

type Place = Pin<Box<dyn Future<Output = Result<(), DropReason>> + Send>>;

/// One that waits, counted at its peer.
struct Waiting(Arc<PeerQueue>);

impl Waiting {
    /// None at the limit.
    fn begin(peer: &Arc<PeerQueue>) -> Option<Self> {
        let waiting = Self(Arc::clone(peer));
        (peer.waiting.fetch_add(1, Ordering::AcqRel) < MAX_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Hub {
    /// The patience of those who wait because the policy says so; none when it does not.
    #[inline]
    pub(crate) fn policy_patience(&self) -> Option<Patience> {
        match self.config.link.queue_policy {
            QueuePolicy::Wait { deadline } => Some(Patience::Until(deadline)),
            QueuePolicy::DropNewest | QueuePolicy::DropOldest => None,
        }
    }

    /// As [`send`](Self::send), for who can wait: peers with room have the message in their queues when this returns, and
    /// it waits for the others in [`Waits::finish`], behind those who wait there already.
    pub(crate) fn send_waiting(
        self: &Arc<Self>,
        ns: &Namespace,
        rooms: &[RoomKey],
        head: &BroadcastHead<'_>,
        payload: &Bytes,
        patience: Patience,
    ) -> (Receipt, Waits) {
        let trace = self.trace_out(None, head.ns, trace::BROADCAST, || self.wants(ns, rooms));
        let trace = trace.as_ref().map(|trace| &trace.frame);
        let mut waits = Waits { hub: Arc::clone(self), patience, list: Vec::new() };
        let mut kept: Option<Bytes> = None;
        let receipt = self.send_by(ns, rooms, head, payload, None, |peer, head| {
            if peer.waiting.load(Ordering::Acquire) == 0 {
                match peer.push(trace, head, payload, || self.now_ms()) {
                    Err(DropReason::QueueFull) => {}
                    done => return done.map(|_| true),
                }
            }
            let waiting = Waiting::begin(peer).ok_or(DropReason::QueueFull)?;
            let head = kept.get_or_insert_with(|| Bytes::copy_from_slice(head)).clone();
            let place = in_line(Arc::clone(self), waiting, trace.copied(), head, payload.clone());
            waits.list.push((Arc::clone(peer), Box::pin(place)));
            Ok(false)
        });
        (receipt, waits)
    }

    /// Waits for the turn of a frame of about `bytes` for one peer, and for room. Until the turn is dropped, nobody else who
    /// waits for this peer is served.
    ///
    /// # Errors
    /// [`DropReason::WaitedTooLong`], and [`DropReason::QueueFull`] when too many wait; counted.
    pub(crate) async fn turn(
        &self,
        peer: &Arc<PeerQueue>,
        bytes: usize,
        patience: Patience,
    ) -> Result<Turn, DropReason> {
        let turn = async {
            let waiting = Waiting::begin(peer).ok_or(DropReason::QueueFull)?;
            take_turn(peer).await;
            let turn = Turn(waiting);
            peer.writable(bytes).await;
            Ok(turn)
        };
        let mut turn = std::pin::pin!(turn);
        let mut limit = patience.limit();
        let turn = poll_fn(|cx| match turn.as_mut().poll(cx) {
            Poll::Pending if limit.is_over(cx) => Poll::Ready(Err(DropReason::WaitedTooLong)),
            polled => polled,
        });
        turn.await.inspect_err(|reason| {
            count(&self.counters.drops, 1);
            peer.count_drop(*reason);
        })
    }
}

/// The turn at a peer.
pub(crate) struct Turn(Waiting);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.turn.add_permits(1);
    }
}

/// Waits in line; the permit is to be given back.
async fn take_turn(peer: &PeerQueue) {
    // Never closed.
    if let Ok(permit) = peer.turn.acquire().await {
        permit.forget();
    }
}

/// Waits for its turn and for room, and queues the frame.
async fn in_line(
    hub: Arc<Hub>,
    waiting: Waiting,
    trace: Option<TraceFrame>,
    head: Bytes,
    payload: Bytes,
) -> Result<(), DropReason> {
    take_turn(&waiting.0).await;
    let Turn(Waiting(peer)) = &Turn(waiting);
    loop {
        peer.writable(trace.map_or(0, |trace| trace.len()) + head.len() + payload.len()).await;
        match peer.push(trace.as_ref(), &head, &payload, || hub.now_ms()) {
            // Somebody who does not wait has taken the room.
            Err(DropReason::QueueFull) => {}
            done => return done.map(drop),
        }
    }
}

impl Waits {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Waits until each peer has the message in its queue, is gone, or has kept it waiting for too long. Tells what became
    /// of it at these peers, which the receipt of [`Hub::send_waiting`] counts as targeted. Cancel safe: who has not got
    /// it then does not get it.
    pub(crate) async fn finish(mut self) -> Receipt {
        let mut receipt = Receipt::default();
        if self.list.is_empty() {
            return receipt;
        }
        let mut limit = self.patience.limit();
        poll_fn(|cx| {
            let hub = &self.hub;
            self.list.retain_mut(|(peer, place)| match place.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(outcome) => {
                    note(hub, &mut receipt, peer, outcome);
                    false
                }
            });
            if !self.list.is_empty() && limit.is_over(cx) {
                let late = self.list.drain(..);
                late.for_each(|(peer, _)| note(hub, &mut receipt, &peer, Err(DropReason::WaitedTooLong)));
            }
            if self.list.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        receipt
    }
}

fn note(hub: &Hub, receipt: &mut Receipt, peer: &PeerQueue, outcome: Result<(), DropReason>) {
    match outcome {
        Ok(()) => receipt.queued += 1,
        Err(reason) => {
            count(&hub.counters.drops, 1);
            peer.count_drop(reason);
            receipt.dropped.push((peer.id.clone(), reason));
        }
    }
}

impl Patience {
    fn limit(self) -> Limit {
        match self {
            Self::Endless => Limit::None,
            // Elsewhere there is no clock to wait by.
            Self::Until(_) if Handle::try_current().is_err() => Limit::Over,
            Self::Until(time) => Limit::At(Box::pin(tokio::time::sleep(time))),
        }
    }
}

enum Limit {
    None,
    At(Pin<Box<Sleep>>),
    Over,
}

impl Limit {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::None => false,
            Self::At(sleep) => sleep.as_mut().poll(cx).is_ready(),
            Self::Over => true,
        }
    }
}

#[cfg(test)]
mod tests;
