//! Those who wait for answers: what has come, who is missing, and how long it may take.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Sleep;

use super::reply::Serving;
use super::{Missing, MissingReason};
use crate::core::frame::{EndStatus, Head};
use crate::core::requests::{Requests, Settled};
use crate::hub::{Hub, lock};
use crate::ids::{NodeId, PeerSlot};

/// Answers up to this size are copied out of the buffer of the link, which they would keep whole.
const COPY_BYTES: usize = 4096;

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(super) slot: PeerSlot,
    /// Who answers.
    pub(crate) node: NodeId,
    /// What it says; what it means depends on what was asked.
    pub(crate) body: Bytes,
}

/// Somebody who waits for answers.
pub(super) struct Waiter {
    pub(super) state: Mutex<Waiting>,
}

#[derive(Default)]
pub(super) struct Waiting {
    pub(super) answers: VecDeque<Answer>,
    /// Who was asked.
    pub(super) asked: SmallVec<[(PeerSlot, NodeId); 4]>,
    pub(super) missing: Vec<Missing>,
    /// Nobody owes anything any more.
    pub(super) over: bool,
    pub(super) waker: Option<Waker>,
}

impl Waiting {
    /// Notes that the share of a node is missing; what was noted of it first counts. Returns whether that is new.
    pub(super) fn miss(&mut self, node: NodeId, reason: MissingReason) -> bool {
        let is_new = self.missing.iter().all(|missing| missing.node != node);
        if is_new {
            self.missing.push(Missing { node, reason });
        }
        is_new
    }
}

impl Waiter {
    pub(super) fn change(&self, change: impl FnOnce(&mut Waiting)) {
        let waker = {
            let mut state = lock(&self.state);
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn push(&self, slot: PeerSlot, body: Bytes) {
        self.change(|state| {
            let node = state.asked.iter().find(|(asked, _)| *asked == slot).map(|(_, node)| node.clone());
            state.answers.extend(node.map(|node| Answer { slot, node, body }));
        });
    }
}

/// The requests of this node, and what it answers itself of them.
pub(crate) struct RequestTable {
    pub(super) pending: Mutex<Requests<Arc<Waiter>>>,
    pub(super) here: Serving,
}

impl RequestTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self { pending: Mutex::new(Requests::new(limit)), here: Serving::default() }
    }

    /// Requests that wait for answers.
    pub(crate) fn pending(&self) -> usize {
        lock(&self.pending).len()
    }

    pub(super) fn settle(&self, id: u64, slot: PeerSlot, reason: Option<MissingReason>) {
        let settled = lock(&self.pending).settle(id, slot);
        note(settled, slot, reason);
    }

    /// The peer answers nothing any more. Returns the questions that it owed answers to.
    pub(crate) fn gone(&self, slot: PeerSlot, reason: MissingReason) -> Vec<u64> {
        let settled = lock(&self.pending).gone(slot);
        let note = |(id, settled)| {
            note(Some(settled), slot, Some(reason));
            id
        };
        settled.into_iter().map(note).collect()
    }

    /// An answer of a peer; false when nobody waits for it any more.
    pub(crate) fn answered(&self, slot: PeerSlot, id: u64, body: Bytes) -> bool {
        let waiter = lock(&self.pending).waiter(id, slot).cloned();
        let Some(waiter) = waiter else { return false };
        waiter.push(slot, if body.len() <= COPY_BYTES { Bytes::copy_from_slice(&body) } else { body });
        true
    }

    /// A peer has answered all that it will.
    pub(crate) fn ended(&self, slot: PeerSlot, id: u64, status: EndStatus) {
        let reason = match status {
            EndStatus::Done | EndStatus::NoNamespace => None,
            EndStatus::Busy => Some(MissingReason::Busy),
            EndStatus::Failed => Some(MissingReason::Failed),
        };
        self.settle(id, slot, reason);
    }
}

/// Tells the waiter of a share that is settled. The lock of the table is not held.
fn note(settled: Option<Settled<Arc<Waiter>>>, slot: PeerSlot, reason: Option<MissingReason>) {
    let Some(Settled { waiter, last }) = settled else { return };
    waiter.change(|state| {
        let node = state.asked.iter().find(|(asked, _)| *asked == slot).map(|(_, node)| node.clone());
        if let Some((node, reason)) = node.zip(reason) {
            state.miss(node, reason);
        }
        state.over |= last;
    });
}

/// A question that was asked: its answers, one after the other. Dropping it gives up: nothing is kept for it here, and
/// the nodes that still answer are told.
pub(crate) struct Asked {
    pub(super) hub: Arc<Hub>,
    pub(super) id: u64,
    pub(super) waiter: Arc<Waiter>,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    /// Answers that were taken and not granted again yet.
    pub(super) taken: SmallVec<[(PeerSlot, u32); 4]>,
    /// How many make it worth a frame.
    pub(super) grant_from: u32,
}

impl Asked {
    /// The next answer; none when every node has settled its share, or the time is over.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        let next = {
            let mut state = lock(&self.waiter.state);
            let next = state.answers.pop_front();
            if next.is_none() && state.over {
                return Poll::Ready(None);
            }
            if next.is_none() && state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            next
        };
        if let Some(answer) = next {
            self.taken(answer.slot);
            return Poll::Ready(Some(answer));
        }
        let due = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        if due {
            self.hub.counters.requests_timed_out.fetch_add(1, Ordering::Relaxed);
            self.give_up(MissingReason::TimedOut);
            // Something may have come in between.
            return self.poll_next(cx);
        }
        Poll::Pending
    }

    /// As [`poll_next`](Self::poll_next). Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Answer> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The nodes whose share is missing so far; complete when there are no more answers.
    pub(crate) fn missing(&self) -> Vec<Missing> {
        lock(&self.waiter.state).missing.clone()
    }

    /// How the question stands, also after this is gone.
    pub(crate) fn standing(&self) -> Standing {
        Standing(Arc::clone(&self.waiter))
    }

    /// An answer could not be read: the share of its node counts as failed, whatever else it says.
    pub(crate) fn unreadable(&self, answer: &Answer, error: &dyn std::error::Error) {
        let is_new = lock(&self.waiter.state).miss(answer.node.clone(), MissingReason::Failed);
        if is_new {
            let (node, peer) = (&self.hub.id, &answer.node);
            tracing::warn!(%node, %peer, %error, "dropped an answer of this node, which is unreadable");
        }
    }

    /// The nodes that were asked.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        lock(&self.waiter.state).asked.iter().map(|(_, node)| node.clone()).collect()
    }

    pub(super) fn taken(&mut self, slot: PeerSlot) {
        let place = self.taken.iter().position(|(of, _)| *of == slot).unwrap_or_else(|| {
            self.taken.push((slot, 0));
            self.taken.len() - 1
        });
        self.taken[place].1 += 1;
        if self.taken[place].1 >= self.grant_from {
            let answers = std::mem::take(&mut self.taken[place].1);
            let (hub, id) = (&self.hub, self.id);
            if slot == PeerSlot::SELF {
                hub.requests.here.grant(id, answers);
            } else if lock(&hub.requests.pending).waiter(id, slot).is_some() {
                hub.tell_slot(slot, &Head::Credit { id, answers });
            }
        }
    }

    pub(super) fn give_up(&self, reason: MissingReason) {
        let owing = lock(&self.hub.requests.pending).cancel(self.id);
        for slot in &owing {
            if *slot == PeerSlot::SELF {
                self.hub.requests.here.cancel(self.id);
            } else {
                self.hub.tell_slot(*slot, &Head::Cancel { id: self.id });
            }
        }
        let mut state = lock(&self.waiter.state);
        let nodes: Vec<NodeId> = state
            .asked
            .iter()
            .filter(|(slot, _)| owing.contains(slot))
            .map(|(_, node)| node.clone())
            .collect();
        for node in nodes {
            state.miss(node, reason);
        }
        state.over = true;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !lock(&self.waiter.state).over {
            self.give_up(MissingReason::TimedOut);
        }
        // Nobody takes them any more, but somebody may still look at who is missing.
        lock(&self.waiter.state).answers = VecDeque::new();
    }
}

/// How a question stands. A cheap clone, which keeps the question from nothing: it ends as ever.
#[derive(Clone)]
pub(crate) struct Standing(pub(super) Arc<Waiter>);

impl Standing {
    /// The nodes whose share is missing so far.
    pub(crate) fn missing(&self) -> Vec<Missing> {
        lock(&self.0.state).missing.clone()
    }

    /// Whether every node has answered in full.
    pub(crate) fn is_complete(&self) -> bool {
        let state = lock(&self.0.state);
        state.over && state.missing.is_empty()
    }
}
