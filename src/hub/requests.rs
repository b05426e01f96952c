//! Requests: asking other nodes, and answering them.
//!
//! A question goes out as one frame to each node that may know something; each answers with any number of answers and
//! one end. Who owes what is kept by [`crate::core::requests`]; here are those who wait, their timeouts and the flow
//! control: a node sends no more answers than the asker has granted, so a slow asker holds a bounded number of them.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use serde::Serialize;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Sleep;

use crate::core::frame::{
    BroadcastHead, EndStatus, Head, LENGTH_BYTES, Op, RequestHead, encode_body, encode_head,
};
use crate::core::requests::{Requests, Settled, TooManyRequests};
use crate::core::routes::PeerMask;
use crate::error::DropReason;
use crate::hub::peer::{PeerQueue, PeerRole, count};
use crate::hub::{Hub, Receipt, cluster_rooms, lock};
use crate::ids::{Namespace, NodeId, PeerSlot, RoomKey, Seq};

/// How much longer than its timeout a question waits for the answers of other nodes: those apply the timeout, too, and
/// what they say at its end has to get here.
pub(crate) const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// How much longer than an interest tick rooms are expected of a peer that has applied an order to join them. A peer
/// whose registry stands still for longer while its link works is missed; a longer margin costs unneeded frames.
const ORDER_MARGIN: Duration = Duration::from_secs(2);
/// The parts of a list that a node may send before they are taken here.
pub(crate) const LIST_CREDIT: u32 = 16;
/// Answers up to this size are copied out of the buffer of the link, which they would keep whole.
const COPY_BYTES: usize = 4096;

/// Why the share of a node is missing in the answers to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum MissingReason {
    /// The node left, died or was started anew, or is not a member. What it had not answered is missing.
    #[error("left")]
    Left,
    /// The node did not answer in time. It may have done what was asked.
    #[error("timed out")]
    TimedOut,
    /// The question did not get into the queue of the node. It was not asked.
    #[error("not asked: {0}")]
    NotAsked(DropReason),
    /// Frames to or from the node were lost in a long break of the link. It may have done what was asked.
    #[error("frames were lost")]
    Lost,
    /// The node answers as many requests as it may. It did nothing.
    #[error("busy")]
    Busy,
    /// The node could not do it; its log says why.
    #[error("failed")]
    Failed,
}

/// A node whose share is missing in the answers to a question, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Missing {
    /// The node.
    pub node: NodeId,
    /// Why.
    pub reason: MissingReason,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.reason)
    }
}

/// Which other nodes a frame is for.
#[derive(Clone, Copy)]
pub(crate) enum Targets<'a> {
    /// Those that may have members of these rooms; of anyone in the namespace when there are none.
    Rooms(&'a Namespace, &'a [RoomKey]),
    /// Every other node.
    All,
    /// These, by name; not this one.
    Nodes(&'a [NodeId]),
}

/// A question or an order, as fronts see it.
pub(crate) struct Request<'a, 'h> {
    /// The node that asks.
    pub(crate) from: &'a NodeId,
    pub(crate) head: &'a RequestHead<'h>,
    pub(crate) payload: &'a Bytes,
}

/// A question to other nodes.
pub(crate) struct Ask<'a> {
    pub(crate) targets: Targets<'a>,
    /// What is asked. Its `id` and `timeout_ms` are filled in.
    pub(crate) head: RequestHead<'a>,
    /// How long the sockets or handlers may take that answer; none for as long as it takes.
    pub(crate) timeout: Option<Duration>,
    /// Whether this node is asked as well.
    pub(crate) here: bool,
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    slot: PeerSlot,
    /// Who answers.
    pub(crate) node: NodeId,
    /// What it says; what it means depends on what was asked.
    pub(crate) body: Bytes,
}

/// Somebody who waits for answers.
struct Waiter {
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    answers: VecDeque<Answer>,
    /// Who was asked.
    asked: SmallVec<[(PeerSlot, NodeId); 4]>,
    missing: Vec<Missing>,
    /// Nobody owes anything any more.
    over: bool,
    waker: Option<Waker>,
}

impl Waiting {
    /// Notes that the share of a node is missing; what was noted of it first counts. Returns whether that is new.
    fn miss(&mut self, node: NodeId, reason: MissingReason) -> bool {
        let is_new = self.missing.iter().all(|missing| missing.node != node);
        if is_new {
            self.missing.push(Missing { node, reason });
        }
        is_new
    }
}

impl Waiter {
    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        let waker = {
            let mut state = lock(&self.state);
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn push(&self, slot: PeerSlot, body: Bytes) {
        self.change(|state| {
            let node = state.asked.iter().find(|(asked, _)| *asked == slot).map(|(_, node)| node.clone());
            state.answers.extend(node.map(|node| Answer { slot, node, body }));
        });
    }
}

/// The requests of this node, and what it answers itself of them.
pub(crate) struct RequestTable {
    pending: Mutex<Requests<Arc<Waiter>>>,
    here: Serving,
}

impl RequestTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self { pending: Mutex::new(Requests::new(limit)), here: Serving::default() }
    }

    /// Requests that wait for answers.
    pub(crate) fn pending(&self) -> usize {
        lock(&self.pending).len()
    }

    fn settle(&self, id: u64, slot: PeerSlot, reason: Option<MissingReason>) {
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
    hub: Arc<Hub>,
    id: u64,
    waiter: Arc<Waiter>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Answers that were taken and not granted again yet.
    taken: SmallVec<[(PeerSlot, u32); 4]>,
    /// How many make it worth a frame.
    grant_from: u32,
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

    fn taken(&mut self, slot: PeerSlot) {
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

    fn give_up(&self, reason: MissingReason) {
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
pub(crate) struct Standing(Arc<Waiter>);

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

/// The requests of one asker that are being answered here.
#[derive(Default)]
pub(crate) struct Serving {
    replies: Mutex<HashMap<u64, Weak<ReplyInner>>>,
}

impl Serving {
    /// Requests that are being answered.
    pub(crate) fn len(&self) -> usize {
        lock(&self.replies).len()
    }

    /// The asker takes so many answers more.
    pub(crate) fn grant(&self, id: u64, answers: u32) {
        if let Some(reply) = self.find(id) {
            // A peer may say what it likes: more than this is as good as no limit.
            let room =
                Semaphore::MAX_PERMITS / 2 - reply.credit.available_permits().min(Semaphore::MAX_PERMITS / 2);
            reply.credit.add_permits(room.min(answers as usize));
        }
    }

    /// The asker has given up.
    pub(crate) fn cancel(&self, id: u64) {
        if let Some(reply) = self.find(id) {
            reply.close();
        }
    }

    /// The asker is gone.
    pub(crate) fn cancel_all(&self) {
        let replies: Vec<_> = lock(&self.replies).drain().filter_map(|(_, reply)| reply.upgrade()).collect();
        replies.iter().for_each(|reply| reply.close());
    }

    fn find(&self, id: u64) -> Option<Arc<ReplyInner>> {
        lock(&self.replies).get(&id).and_then(Weak::upgrade)
    }

    /// A reply to a new request; none at the limit, or when the asker uses a number twice.
    fn begin(&self, hub: &Arc<Hub>, to: ReplyTo, id: u64, credit: u32, limit: usize) -> Option<Reply> {
        let mut replies = lock(&self.replies);
        if replies.len() >= limit || replies.contains_key(&id) {
            return None;
        }
        let inner = Arc::new(ReplyInner {
            hub: Arc::clone(hub),
            to,
            id,
            credit: Semaphore::new((credit.max(1) as usize).min(Semaphore::MAX_PERMITS / 2)),
            closed: Notify::new(),
            status: AtomicU8::new(EndStatus::Done as u8),
        });
        replies.insert(id, Arc::downgrade(&inner));
        Some(Reply { inner: Some(inner) })
    }
}

/// The way back to an asker. When the last clone is dropped, the asker is told that this node has answered.
#[derive(Clone)]
pub(crate) struct Reply {
    /// None for an order, to which nobody wants an answer.
    inner: Option<Arc<ReplyInner>>,
}

struct ReplyInner {
    hub: Arc<Hub>,
    to: ReplyTo,
    id: u64,
    /// The answers that may be sent; closed when nobody wants any more.
    credit: Semaphore,
    /// Wakes those who wait for that.
    closed: Notify,
    status: AtomicU8,
}

enum ReplyTo {
    Peer(Arc<PeerQueue>),
    Here(Arc<Waiter>),
}

/// Nobody waits for the answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unwanted;

impl Reply {
    /// To an order: nobody wants an answer.
    pub(crate) fn nobody() -> Self {
        Self { inner: None }
    }

    /// Whether somebody waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| !inner.credit.is_closed())
    }

    /// Sends an answer at once, within what the asker has granted: at least one answer to each request fits. What does
    /// not fit is not sent, and the share of this node counts as failed.
    pub(crate) fn answer_now(&self, body: Bytes) {
        if self.try_answer(body).is_err() {
            self.end_as(EndStatus::Failed);
        }
    }

    /// As [`answer_now`](Self::answer_now), with a value.
    pub(crate) fn answer_value<T: Serialize>(&self, value: &T) {
        match encode_body(value) {
            Ok(body) => self.answer_now(body),
            Err(_) => self.end_as(EndStatus::Failed),
        }
    }

    /// As [`answer_now`](Self::answer_now); gives back what is over what the asker has granted.
    fn try_answer(&self, body: Bytes) -> Result<(), Bytes> {
        let Some(inner) = &self.inner else { return Ok(()) };
        let Ok(permit) = inner.credit.try_acquire() else { return Err(body) };
        permit.forget();
        if !inner.send(body) {
            self.end_as(EndStatus::Failed);
        }
        Ok(())
    }

    /// Sends an answer as soon as the asker takes it and the queue to it has room.
    ///
    /// # Errors
    /// [`Unwanted`] when nobody waits for it any more. Cancel safe: then it is not sent.
    pub(crate) async fn answer(&self, body: Bytes) -> Result<(), Unwanted> {
        let Some(inner) = &self.inner else { return Err(Unwanted) };
        let permit = inner.credit.acquire().await.map_err(|_| Unwanted)?;
        let ReplyTo::Peer(peer) = &inner.to else {
            permit.forget();
            inner.send(body);
            return Ok(());
        };
        let sent = loop {
            peer.writable(body.len() + 64).await;
            if inner.credit.is_closed() {
                return Err(Unwanted);
            }
            match inner.hub.offer(peer, &Head::Answer { id: inner.id }, &body) {
                // Others who waited for room have taken it.
                Err(DropReason::QueueFull) => {}
                sent => break sent,
            }
        };
        permit.forget();
        if let Err(reason) = sent {
            inner.hub.count_drop(peer, reason);
            self.end_as(EndStatus::Failed);
        }
        Ok(())
    }

    /// Sends the parts of a list: what fits at once, the rest as the asker takes it.
    pub(crate) fn answer_list<T: Serialize>(&self, parts: impl IntoIterator<Item = Vec<T>>) {
        if !self.is_wanted() {
            return;
        }
        let bodies = parts.into_iter().map(|part| encode_body(&part)).collect::<Result<Vec<_>, _>>();
        let Ok(mut bodies) = bodies else { return self.end_as(EndStatus::Failed) };
        let Ok(runtime) = Handle::try_current() else {
            return bodies.into_iter().for_each(|body| self.answer_now(body));
        };
        if bodies.len() == 1 {
            // One part goes at once, unless another front of the path has used up what may.
            let waits = bodies.pop().and_then(|body| self.try_answer(body).err());
            bodies.extend(waits);
        }
        if bodies.is_empty() {
            return;
        }
        let reply = self.clone();
        runtime.spawn(async move {
            for body in bodies {
                if reply.answer(body).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Ends when nobody waits any more.
    pub(crate) async fn unwanted(&self) {
        let Some(inner) = &self.inner else { return };
        loop {
            let mut closed = std::pin::pin!(inner.closed.notified());
            closed.as_mut().enable();
            if inner.credit.is_closed() {
                return;
            }
            closed.await;
        }
    }

    /// How the share of this node ends, when it is not all that was asked for.
    pub(crate) fn end_as(&self, status: EndStatus) {
        if let Some(inner) = &self.inner {
            inner.status.store(status as u8, Ordering::Relaxed);
        }
    }
}

impl ReplyInner {
    fn close(&self) {
        self.credit.close();
        self.closed.notify_waiters();
    }

    fn send(&self, body: Bytes) -> bool {
        match &self.to {
            ReplyTo::Here(waiter) => {
                waiter.push(PeerSlot::SELF, body);
                true
            }
            ReplyTo::Peer(peer) => {
                let sent = self.hub.offer(peer, &Head::Answer { id: self.id }, &body);
                sent.inspect_err(|reason| self.hub.count_drop(peer, *reason)).is_ok()
            }
        }
    }

    fn status(&self) -> EndStatus {
        let of = [EndStatus::Done, EndStatus::NoNamespace, EndStatus::Busy, EndStatus::Failed];
        of.into_iter().find(|s| *s as u8 == self.status.load(Ordering::Relaxed)).unwrap_or(EndStatus::Failed)
    }
}

impl Drop for ReplyInner {
    fn drop(&mut self) {
        let (id, status) = (self.id, self.status());
        match &self.to {
            ReplyTo::Here(_) => {
                lock(&self.hub.requests.here.replies).remove(&id);
                self.hub.requests.ended(PeerSlot::SELF, id, status);
            }
            ReplyTo::Peer(peer) => {
                lock(&peer.serving.replies).remove(&id);
                if !self.credit.is_closed() {
                    self.hub.tell(peer, &Head::End { id, status });
                }
            }
        }
    }
}

impl Hub {
    /// Asks other nodes, and this one where `here` says so.
    ///
    /// # Errors
    /// [`TooManyRequests`] when as many wait as may; nobody was asked.
    pub(crate) fn ask(self: &Arc<Self>, ask: Ask<'_>, payload: &Bytes) -> Result<Asked, TooManyRequests> {
        let Ask { targets, mut head, timeout, here } = ask;
        let (peers, strangers) = self.select(targets);
        let mut asked: SmallVec<[(PeerSlot, NodeId); 4]> =
            peers.iter().map(|peer| (peer.slot, peer.id.clone())).collect();
        asked.extend(here.then(|| (PeerSlot::SELF, self.id.clone())));
        let owing = asked.iter().map(|(slot, _)| *slot).collect();
        let missing =
            strangers.into_iter().map(|node| Missing { node, reason: MissingReason::Left }).collect();
        let over = asked.is_empty();
        let waiter =
            Arc::new(Waiter { state: Mutex::new(Waiting { asked, missing, over, ..Waiting::default() }) });
        let id = lock(&self.requests.pending).open(owing, Arc::clone(&waiter))?;
        head.id = id;
        head.timeout_ms = timeout.map_or(0, |t| u32::try_from(t.as_millis()).unwrap_or(u32::MAX).max(1));
        let grant_from = (head.credit / 2).max(1);
        let deadline =
            timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout.saturating_add(ANSWER_GRACE))));
        let asked = Asked {
            hub: Arc::clone(self),
            id,
            waiter: Arc::clone(&waiter),
            deadline,
            taken: SmallVec::new(),
            grant_from,
        };
        // Members here first, whatever becomes of the rest.
        if here {
            let reply = self.requests.here.begin(self, ReplyTo::Here(waiter), id, head.credit, usize::MAX);
            if let Some(reply) = reply {
                self.serve(&Request { from: &self.id, head: &head, payload }, &reply);
            }
        }
        // Who was found dead answers no more. After the question was opened: of whom it is found later settles it, too.
        let (dead, peers): (SmallVec<[_; 4]>, SmallVec<[_; 4]>) =
            peers.into_iter().partition(|peer| peer.is_dead());
        for peer in dead {
            self.requests.settle(id, peer.slot, Some(MissingReason::Left));
        }
        if !peers.is_empty() {
            let frame = Head::Request(head.clone());
            for (peer, reason) in self.push_all(&peers, &frame, payload) {
                let reason = match reason {
                    DropReason::PeerGone => MissingReason::Left,
                    other => MissingReason::NotAsked(other),
                };
                self.requests.settle(id, peer.slot, Some(reason));
            }
        }
        Ok(asked)
    }

    /// Questions of this node that wait for answers, and questions that are being answered here.
    pub(crate) fn pending_requests(&self) -> (usize, usize) {
        let serving = self.peers().iter().map(|peer| peer.serving.len()).sum::<usize>();
        (self.requests.pending(), self.requests.here.len() + serving)
    }

    /// Orders something of other nodes, and of this one where `here` says so. Nobody waits for it. Names that are no peers
    /// are among what was dropped. From now on this node supposes those in a room whose members it orders to join it.
    pub(crate) fn order(
        self: &Arc<Self>,
        targets: Targets<'_>,
        head: &RequestHead<'_>,
        payload: &Bytes,
        here: bool,
    ) -> Receipt {
        debug_assert_eq!(head.id, 0, "nobody waits for the answer to an order");
        if here {
            self.serve(&Request { from: &self.id, head, payload }, &Reply::nobody());
        }
        let (peers, strangers) = self.select(targets);
        let mut receipt = Receipt { targeted: peers.len() + strangers.len(), ..Receipt::default() };
        if !peers.is_empty() {
            let joined = joined(head);
            let frame = Head::Request(head.clone());
            let dropped = self.push_noting(&peers, &frame, payload, |peer, order| {
                self.routes.expect(peer.slot, &joined, order, || !peer.is_closed());
            });
            receipt.queued = peers.len() - dropped.len();
            receipt.dropped = dropped.into_iter().map(|(peer, reason)| (peer.id.clone(), reason)).collect();
        }
        receipt.dropped.extend(strangers.into_iter().map(|node| (node, DropReason::PeerGone)));
        receipt
    }

    /// A peer has applied everything up to a frame: what orders of this node made members of it join is known soon.
    pub(crate) fn orders_applied(&self, peer: &PeerQueue, applied: Seq) {
        let margin = self.config.link.interest_tick.saturating_add(ORDER_MARGIN);
        let margin_ms = u64::try_from(margin.as_millis()).unwrap_or(u64::MAX);
        self.routes.applied(peer.slot, applied, self.now_ms(), margin_ms);
    }

    /// A request of a peer. Runs on the task that reads the link: must not wait.
    pub(crate) fn request(self: &Arc<Self>, from: &Arc<PeerQueue>, head: &RequestHead<'_>, payload: &Bytes) {
        if from.role == PeerRole::Guest {
            return self.relay_request(from, head, payload);
        }
        let request = Request { from: &from.id, head, payload };
        let limit = self.config.link.max_serving_per_peer;
        if let Some(reply) = self.reply_to(from, head, limit) {
            self.serve(&request, &reply);
        }
    }

    /// The way back to who asked; none at the limit, which the asker is told.
    pub(super) fn reply_to(
        self: &Arc<Self>,
        from: &Arc<PeerQueue>,
        head: &RequestHead<'_>,
        limit: usize,
    ) -> Option<Reply> {
        if head.id == 0 {
            return Some(Reply::nobody());
        }
        let to = ReplyTo::Peer(Arc::clone(from));
        let reply = from.serving.begin(self, to, head.id, head.credit, limit);
        if reply.is_none() {
            count(&self.counters.requests_refused, 1);
            self.tell(from, &Head::End { id: head.id, status: EndStatus::Busy });
        }
        reply
    }

    /// Has the fronts of the namespace here do what is asked.
    fn serve(self: &Arc<Self>, request: &Request<'_, '_>, reply: &Reply) {
        if request.head.op == Op::WatchRooms {
            if let (true, Ok(runtime)) = (reply.is_wanted(), Handle::try_current()) {
                runtime.spawn(cluster_rooms::tell(Arc::clone(self), reply.clone()));
            }
            return;
        }
        let fronts = self.fronts_of(request.head.to.ns);
        if fronts.is_empty() {
            reply.end_as(EndStatus::NoNamespace);
        }
        fronts.iter().for_each(|front| front.request(request, reply));
    }

    /// The peers that are meant, and those names that are no peers.
    fn select(&self, targets: Targets<'_>) -> (SmallVec<[Arc<PeerQueue>; 4]>, Vec<NodeId>) {
        match targets {
            Targets::All => (self.peers().into(), Vec::new()),
            Targets::Rooms(ns, rooms) => {
                let mut mask = PeerMask::default();
                self.routes.lookup(ns, rooms, &mut mask);
                let peers = self.peers.load();
                let peer = |slot: PeerSlot| peers.get(usize::from(slot.0)).cloned().flatten();
                (mask.iter().filter_map(peer).collect(), Vec::new())
            }
            Targets::Nodes(nodes) => {
                let peers: SmallVec<[Arc<PeerQueue>; 4]> =
                    self.peers().into_iter().filter(|peer| nodes.contains(&peer.id)).collect();
                let known = |node: &&NodeId| peers.iter().all(|peer| peer.id != **node) && **node != self.id;
                let strangers = nodes.iter().filter(known).cloned().collect();
                (peers, strangers)
            }
        }
    }

    /// Queues one frame for several peers; its head is encoded once. Returns who does not get it.
    fn push_all<'p>(
        &self,
        peers: &'p [Arc<PeerQueue>],
        head: &Head<'_>,
        payload: &Bytes,
    ) -> Vec<(&'p Arc<PeerQueue>, DropReason)> {
        self.push_noting(peers, head, payload, |_, _| {})
    }

    /// As [`push_all`](Self::push_all); says the number of the frame for each peer that gets it.
    fn push_noting<'p>(
        &self,
        peers: &'p [Arc<PeerQueue>],
        head: &Head<'_>,
        payload: &Bytes,
        queued: impl Fn(&PeerQueue, Seq),
    ) -> Vec<(&'p Arc<PeerQueue>, DropReason)> {
        let mut encoded = BytesMut::new();
        let fits = encode_head(head, payload.len(), &mut encoded).is_ok()
            && encoded.len() + payload.len() <= self.limits.max_frame_bytes + LENGTH_BYTES;
        let push = |peer: &'p Arc<PeerQueue>| {
            let pushed =
                if fits { peer.push(&encoded, payload, || self.now_ms()) } else { Err(DropReason::TooLarge) };
            let reason = match pushed {
                Ok(seq) => {
                    queued(peer, seq);
                    return None;
                }
                Err(reason) => reason,
            };
            self.count_drop(peer, reason);
            Some((peer, reason))
        };
        peers.iter().filter_map(push).collect()
    }

    /// Queues one frame for one peer; what is not queued is not counted.
    fn offer(&self, peer: &PeerQueue, head: &Head<'_>, payload: &Bytes) -> Result<(), DropReason> {
        let mut encoded = BytesMut::new();
        let fits = encode_head(head, payload.len(), &mut encoded).is_ok()
            && encoded.len() + payload.len() <= self.limits.max_frame_bytes + LENGTH_BYTES;
        if fits {
            peer.push(&encoded, payload, || self.now_ms()).map(drop)
        } else {
            Err(DropReason::TooLarge)
        }
    }

    fn count_drop(&self, peer: &PeerQueue, reason: DropReason) {
        count(&self.counters.drops, 1);
        peer.count_drop(reason);
    }

    /// Queues a small frame that must get there, without payload: when the queue is full, as soon as it has room.
    fn tell(self: &Arc<Self>, peer: &Arc<PeerQueue>, head: &Head<'_>) {
        let Err(mut reason) = self.offer(peer, head, &Bytes::new()) else { return };
        if reason == DropReason::QueueFull {
            let runtime = Handle::try_current();
            match (peer.tell_later(head, runtime.is_ok()), runtime) {
                (Ok(true), Ok(runtime)) => {
                    runtime.spawn(tell_late(Arc::clone(self), Arc::clone(peer)));
                    return;
                }
                (Ok(_), _) => return,
                (Err(full), _) => reason = full,
            }
        }
        self.count_drop(peer, reason);
    }

    /// As [`tell`](Self::tell), to the peer in a slot, if there is one.
    fn tell_slot(self: &Arc<Self>, slot: PeerSlot, head: &Head<'_>) {
        let peer = self.peers.load().get(usize::from(slot.0)).cloned().flatten();
        if let Some(peer) = peer {
            self.tell(&peer, head);
        }
    }

    /// The answers of a peer that is still there are not to be waited for: settles what it owes, and has it answer no more.
    pub(crate) fn no_answers(self: &Arc<Self>, peer: &Arc<PeerQueue>, reason: MissingReason) {
        for id in self.requests.gone(peer.slot, reason) {
            self.tell(peer, &Head::Cancel { id });
        }
    }
}

/// Queues what had no room, in order.
async fn tell_late(hub: Arc<Hub>, peer: Arc<PeerQueue>) {
    while let Some(frame) = peer.late() {
        peer.writable(frame.len()).await;
        let pushed = peer.push(&frame, &Bytes::new(), || hub.now_ms());
        // Who finds nothing waiting begins anew.
        if pushed != Err(DropReason::QueueFull) && !peer.told_late() {
            return;
        }
    }
}

/// The rooms that an order makes members join; none when it is another order.
fn joined(order: &RequestHead<'_>) -> SmallVec<[RoomKey; 4]> {
    // A path that is none is on no node.
    let Some(ns) = (order.op == Op::Join).then(|| Namespace::new(order.to.ns).ok()).flatten() else {
        return SmallVec::new();
    };
    order.names.iter().map(|room| ns.room(room)).collect()
}

/// What is asked about nobody in particular: everything in a namespace.
pub(crate) fn everyone(ns: &str, kind: crate::core::frame::PayloadKind) -> BroadcastHead<'_> {
    BroadcastHead {
        ns,
        kind,
        flags: 0x02,
        rooms: SmallVec::new(),
        except: SmallVec::new(),
        server: None,
        socket: None,
        attachments: SmallVec::new(),
    }
}

#[cfg(test)]
mod tests;
