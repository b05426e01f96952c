//! Answering: the way back to an asker, with no more answers than it has granted.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use hashbrown::HashMap;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use super::wait::Waiter;
use crate::core::frame::{EndStatus, Head, encode_body};
use crate::error::DropReason;
use crate::hub::peer::PeerQueue;
use crate::hub::{Hub, lock};
use crate::ids::PeerSlot;

/// The requests of one asker that are being answered here.
#[derive(Default)]
pub(crate) struct Serving {
    pub(super) replies: Mutex<HashMap<u64, Weak<ReplyInner>>>,
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

    pub(super) fn find(&self, id: u64) -> Option<Arc<ReplyInner>> {
        lock(&self.replies).get(&id).and_then(Weak::upgrade)
    }

    /// A reply to a new request; none at the limit, or when the asker uses a number twice.
    pub(super) fn begin(
        &self,
        hub: &Arc<Hub>,
        to: ReplyTo,
        id: u64,
        credit: u32,
        limit: usize,
    ) -> Option<Reply> {
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
    pub(super) inner: Option<Arc<ReplyInner>>,
}

pub(super) struct ReplyInner {
    pub(super) hub: Arc<Hub>,
    pub(super) to: ReplyTo,
    pub(super) id: u64,
    /// The answers that may be sent; closed when nobody wants any more.
    pub(super) credit: Semaphore,
    /// Wakes those who wait for that.
    pub(super) closed: Notify,
    pub(super) status: AtomicU8,
}

pub(super) enum ReplyTo {
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
    pub(super) fn try_answer(&self, body: Bytes) -> Result<(), Bytes> {
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
    pub(super) fn close(&self) {
        self.credit.close();
        self.closed.notify_waiters();
    }

    pub(super) fn send(&self, body: Bytes) -> bool {
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

    pub(super) fn status(&self) -> EndStatus {
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
