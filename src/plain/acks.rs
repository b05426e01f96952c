//! Acknowledgements: what a message that asks for them collects, and how a member gives its own.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{MemberId, Sink};
use crate::core::frame::{ANSWER_BYTES, AckFailure, Acknowledged};
use crate::hub::requests::{Asked, Missing, Reply, Unwanted};
use crate::ids::NodeId;

/// What an answer has beside the acknowledgement, at most, in bytes.
const ANSWER_HEAD_BYTES: usize = 64;
/// Acknowledgements that are taken together.
const BATCH: usize = 256;
/// Members that one answer names, at most.
const NAMED: usize = ANSWER_BYTES / 8;

/// What one member acknowledges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberAck {
    /// The node of the member.
    pub node: NodeId,
    /// The member, by its number on that node.
    pub member: MemberId,
    /// What it gave, or why it gave nothing.
    pub result: Result<Bytes, AckError>,
}

/// Why a member gave no acknowledgement. Others are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// Not within the time. It has the message; what it gives later is for nobody.
    #[error("acknowledge in time")]
    TimedOut,
    /// Its sink dropped the [`AckSender`], or panicked. It may have the message.
    #[error("acknowledge: it gave no answer")]
    Dropped,
    /// What it gave is over [`crate::config::LinkConfig::max_frame_bytes`] there. It has the message; what it gave is
    /// lost.
    #[error("acknowledge: the answer is too large")]
    TooLarge,
}

impl From<AckFailure> for AckError {
    fn from(failure: AckFailure) -> Self {
        match failure {
            AckFailure::TimedOut => Self::TimedOut,
            AckFailure::Dropped => Self::Dropped,
            AckFailure::TooLarge => Self::TooLarge,
        }
    }
}

/// The acknowledgements of a message, as they come: one [`MemberAck`] for each member that was asked, and none for the
/// members of a node that is [`missing`](Self::missing).
///
/// It ends as soon as every node has settled its share: all its members have answered, or their time is over, or the
/// node has left. A node sends no more than is taken here, so a slow reader holds a bounded number of them; what it has
/// not taken when the time is over may be lost, and the node is missing then. Dropping it gives up: nobody answers any
/// more, and nothing is kept.
#[must_use = "acknowledgements that nobody waits for are given up at once"]
pub struct Acks {
    asked: Asked,
    /// What came in one answer and is not taken yet.
    came: VecDeque<MemberAck>,
}

impl Acks {
    pub(super) fn new(asked: Asked) -> Self {
        Self { asked, came: VecDeque::new() }
    }

    /// The next acknowledgement; none when it has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<MemberAck> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next), for streams of your own.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<MemberAck>> {
        loop {
            if let Some(ack) = self.came.pop_front() {
                return Poll::Ready(Some(ack));
            }
            let Some(answer) = ready!(self.asked.poll_next(cx)) else { return Poll::Ready(None) };
            let ack =
                |member, result| MemberAck { node: answer.node.clone(), member: MemberId(member), result };
            match Acknowledged::decode(&answer.body) {
                Ok(Acknowledged::Given(member, given)) => self.came.push_back(ack(member, Ok(given))),
                Ok(Acknowledged::Failed(why, members)) => {
                    self.came.extend(members.into_iter().map(|member| ack(member, Err(why.into()))));
                }
                Err(error) => self.asked.unreadable(&answer, &error),
            }
        }
    }

    /// The nodes whose share is missing so far, and why; complete when [`next`](Self::next) has returned none. What
    /// came from them before that counts.
    pub fn missing(&self) -> Vec<Missing> {
        self.asked.missing()
    }
}

impl fmt::Debug for Acks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acks").field("missing", &self.missing()).finish_non_exhaustive()
    }
}

/// Gives the acknowledgement of one member for one message, now or later, on any thread. Dropping it says that there is
/// none.
pub struct AckSender {
    member: MemberId,
    to: Option<mpsc::Sender<Ack>>,
}

/// Of whom, and what; none when there is none.
type Ack = (MemberId, Option<Bytes>);

impl AckSender {
    /// For a message that nobody waits for.
    fn nobody() -> Self {
        Self { member: MemberId(0), to: None }
    }

    /// Gives the acknowledgement. Never waits. Whether the sender of the message gets it depends on whether it still
    /// waits.
    pub fn send(mut self, answer: impl Into<Bytes>) {
        self.give(Some(answer.into()));
    }

    /// Whether somebody waits for it.
    pub fn is_wanted(&self) -> bool {
        self.to.as_ref().is_some_and(|to| !to.is_closed())
    }

    fn give(&mut self, answer: Option<Bytes>) {
        if let Some(to) = self.to.take() {
            // There is a place for each member; closed means that nobody waits any more.
            let _ = to.try_send((self.member, answer));
        }
    }
}

impl Drop for AckSender {
    fn drop(&mut self) {
        self.give(None);
    }
}

impl fmt::Debug for AckSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckSender").field("member", &self.member.0).finish_non_exhaustive()
    }
}

/// A closure that acknowledges.
pub(super) struct WithAck<F>(pub(super) F);

impl<F: Fn(Bytes, AckSender) + Send + Sync + 'static> Sink for WithAck<F> {
    fn deliver(&self, message: Bytes) {
        (self.0)(message, AckSender::nobody());
    }

    fn deliver_with_ack(&self, message: Bytes, ack: AckSender) {
        (self.0)(message, ack);
    }
}

/// What the members here acknowledge, on its way to who asked: a place for each of them.
pub(super) struct Collector {
    to: mpsc::Sender<Ack>,
    acks: mpsc::Receiver<Ack>,
    waiting: HashSet<MemberId>,
    timeout: Option<Duration>,
    /// The longest acknowledgement, in bytes.
    limit: usize,
}

impl Collector {
    /// For these members. `max_frame_bytes` is the limit of a frame.
    pub(super) fn new(
        members: impl ExactSizeIterator<Item = MemberId>,
        timeout: Option<Duration>,
        max_frame_bytes: usize,
    ) -> Self {
        let (to, acks) = mpsc::channel(members.len().max(1));
        let limit = max_frame_bytes.saturating_sub(ANSWER_HEAD_BYTES);
        Self { to, acks, waiting: members.collect(), timeout, limit }
    }

    /// For the sink of one of the members; once for each.
    pub(super) fn sender(&self, member: MemberId) -> AckSender {
        AckSender { member, to: Some(self.to.clone()) }
    }

    /// Answers with what is given until every member has answered, or their time is over, or nobody waits any more.
    pub(super) async fn run(self, reply: Reply) {
        let Self { to, mut acks, mut waiting, timeout, limit } = self;
        drop(to);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let over = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let (mut over, mut unwanted) = (std::pin::pin!(over), std::pin::pin!(reply.unwanted()));
        let mut came = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = &mut unwanted => return,
                taken = acks.recv_many(&mut came, BATCH) => if taken == 0 { return },
                () = &mut over => break,
            }
            for (member, _) in &came {
                waiting.remove(member);
            }
            if pass_on(&reply, &mut came, limit).await.is_err() {
                return;
            }
        }
        let late: Vec<u64> = waiting.into_iter().map(|member| member.0).collect();
        let _ = fail(&reply, AckFailure::TimedOut, late).await;
    }
}

async fn pass_on(reply: &Reply, came: &mut Vec<Ack>, limit: usize) -> Result<(), Unwanted> {
    let (mut dropped, mut too_large) = (Vec::new(), Vec::new());
    for (member, given) in came.drain(..) {
        match given {
            None => dropped.push(member.0),
            Some(given) if given.len() > limit => too_large.push(member.0),
            Some(given) => reply.answer(Acknowledged::Given(member.0, given).encode()).await?,
        }
    }
    fail(reply, AckFailure::Dropped, dropped).await?;
    fail(reply, AckFailure::TooLarge, too_large).await
}

async fn fail(reply: &Reply, why: AckFailure, mut members: Vec<u64>) -> Result<(), Unwanted> {
    members.sort_unstable();
    for part in members.chunks(NAMED) {
        reply.answer(Acknowledged::Failed(why, part.to_vec()).encode()).await?;
    }
    Ok(())
}
