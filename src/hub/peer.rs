//! The queue of one peer: what fronts put in and its link takes out. One bound, one writer; a slow peer delays nobody
//! else.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, Semaphore};

use crate::config::{LinkConfig, QueuePolicy};
use crate::core::frame::{Head, LENGTH_BYTES, Resume, TRACE, TRACE_SINCE, TraceFrame, encode_head};
use crate::core::inbox::Inbox;
use crate::core::link::LinkState;
use crate::core::outbox::{GivenUp, Outbox, Resumed, Taken};
use crate::error::DropReason;
use crate::hub::lock;
use crate::hub::numbers::{FrameCounts, Latency};
use crate::hub::requests::Serving;
use crate::ids::{Incarnation, NodeId, PeerSlot, Seq};
use crate::quic::handshake::CloseCode;

/// The most small frames that wait for room in the queue of one peer. Cost: about 6 MiB, for a peer that does not read and
/// has asked, or been asked, so many questions.
const MAX_LATE: usize = 65_536;

/// The connection under a link: sends what may be dropped, without a queue of ours.
pub(crate) trait LinkPath: Send + Sync + 'static {
    /// Sends the frame now or drops it.
    fn send(&self, frame: Bytes) -> Result<(), DropReason>;
    /// Sends a gossip message now or drops it.
    fn gossip(&self, message: Bytes) -> Result<(), DropReason>;
    /// Closes the connection; the link's tasks end.
    fn close(&self, code: CloseCode, reason: &str);
    /// The smoothed round trip of the link.
    fn round_trip(&self) -> Duration;
    /// The address that the link goes to.
    fn remote(&self) -> SocketAddr;
}

/// What is at the other end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerRole {
    /// Another member of the cluster.
    Member,
    /// An emitter, linked to this node: no member; what it sends is for the whole cluster.
    Guest,
    /// A node, to which this emitter is linked.
    Host,
}

impl PeerRole {
    /// Whether one in this role may say that on the data stream.
    pub(crate) fn may_say(self, head: &Head<'_>) -> bool {
        match self {
            Self::Member => true,
            Self::Guest => !matches!(
                head,
                Head::Interest(_)
                    | Head::Rooms { .. }
                    | Head::InterestWanted
                    | Head::Answer { .. }
                    | Head::End { .. }
            ),
            Self::Host => !matches!(
                head,
                Head::Interest(_)
                    | Head::Rooms { .. }
                    | Head::InterestWanted
                    | Head::Broadcast(_)
                    | Head::Request(_)
                    | Head::Trace(_)
            ),
        }
    }
}

/// What this node holds for one run of one peer, over all its links.
pub(crate) struct PeerQueue {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) slot: PeerSlot,
    pub(crate) role: PeerRole,
    /// Where this run wants to be dialled.
    pub(crate) advertise: SocketAddr,
    outbox: Mutex<Outbox>,
    limit_bytes: usize,
    /// Small frames that must get there and found the queue full, oldest first.
    late: Mutex<VecDeque<Bytes>>,
    /// Whose turn it is of those who wait for room, first come, first served; and how many they are.
    pub(super) turn: Semaphore,
    pub(super) waiting: AtomicUsize,
    /// The inbox, while no link reads.
    inbox: Mutex<Option<Inbox>>,
    /// Wakes the writer: frames, interest or an acknowledgement are due.
    pub(crate) wake: Notify,
    /// Wakes those who wait for room.
    space: Notify,
    /// Wakes those who wait for `interest_acked` to grow.
    acked: Notify,
    /// The link, while there is one.
    path: ArcSwapOption<Box<dyn LinkPath>>,
    state: AtomicU8,
    /// The protocol version of the link that stands or stood last; 0 before the first.
    version: AtomicU16,
    /// When the link came up, in milliseconds of the node's clock.
    pub(crate) link_since_ms: AtomicU64,
    closed: AtomicBool,
    /// The peer was found dead. It may come back.
    dead: AtomicBool,
    /// Its link stands and says nothing, not even heartbeats.
    quiet: AtomicBool,
    /// This node leaves: the link says goodbye when everything is sent.
    leaving: AtomicBool,
    /// The node has said its last word on the link of an emitter: nothing that comes after is applied.
    parted: AtomicBool,
    /// The last counted frame from the peer that was applied here; from an emitter, also at the nodes that need it.
    pub(crate) applied: AtomicU64,
    /// The last one from an emitter that was applied here and passed on, and who waits for that.
    pub(crate) relayed: AtomicU64,
    pub(crate) relay_wake: Notify,
    /// The version of the peer's interest that is applied here.
    pub(crate) interest_held: AtomicU64,
    /// Its digest; stored before the version.
    pub(crate) interest_digest: AtomicU64,
    /// The version of this node's interest that the peer has applied.
    pub(crate) interest_acked: AtomicU64,
    /// Links that ended because they got nothing done, since the peer acknowledged something last.
    pub(crate) stalls_in_a_row: AtomicU32,
    /// What the peer asked and is being answered.
    pub(crate) serving: Serving,
    pub(crate) counters: PeerCounters,
}

/// Counts of one run of one peer.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    /// Broadcast frames queued for the peer.
    pub(crate) frames_sent: AtomicU64,
    /// Broadcast frames that came from the peer and were new.
    pub(crate) frames_received: AtomicU64,
    /// These and the other frames of the data stream, by type.
    pub(crate) sent_by_type: FrameCounts,
    pub(crate) received_by_type: FrameCounts,
    /// How long messages from the peer were on their way: see `quic/writer.rs`.
    pub(crate) latency: Latency,
    /// Bytes written to and read from the data stream, all frames.
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    /// Bytes of interest among the bytes sent.
    pub(crate) interest_bytes_sent: AtomicU64,
    pub(crate) volatile_sent: AtomicU64,
    pub(crate) volatile_received: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    /// Frames that were lost on the way to the peer, and from it.
    pub(crate) gap_sent: AtomicU64,
    pub(crate) gap_received: AtomicU64,
    pub(crate) dropped_full: AtomicU64,
    pub(crate) dropped_waited: AtomicU64,
    pub(crate) dropped_too_large: AtomicU64,
    pub(crate) dropped_volatile: AtomicU64,
    pub(crate) dropped_gone: AtomicU64,
    pub(crate) links: AtomicU64,
    /// Links that stood, got nothing done and were replaced.
    pub(crate) stalls: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Adds to a counter that nobody else adds to at the time: cheaper on the way of every message.
pub(crate) fn count_alone(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

impl PeerQueue {
    pub(crate) fn new(
        id: NodeId,
        incarnation: Incarnation,
        slot: PeerSlot,
        advertise: SocketAddr,
        epoch: u64,
        limit_bytes: usize,
    ) -> Self {
        Self {
            id,
            incarnation,
            slot,
            role: PeerRole::Member,
            advertise,
            outbox: Mutex::new(Outbox::new(epoch, limit_bytes)),
            limit_bytes,
            late: Mutex::default(),
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            inbox: Mutex::new(Some(Inbox::new())),
            wake: Notify::new(),
            space: Notify::new(),
            acked: Notify::new(),
            path: ArcSwapOption::empty(),
            state: AtomicU8::new(0),
            version: AtomicU16::new(0),
            link_since_ms: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            parted: AtomicBool::new(false),
            applied: AtomicU64::new(0),
            relayed: AtomicU64::new(0),
            relay_wake: Notify::new(),
            interest_held: AtomicU64::new(0),
            interest_digest: AtomicU64::new(0),
            interest_acked: AtomicU64::new(0),
            stalls_in_a_row: AtomicU32::new(0),
            serving: Serving::default(),
            counters: PeerCounters::default(),
        }
    }

    /// The same with another role.
    pub(crate) fn with_role(self, role: PeerRole) -> Self {
        Self { role, ..self }
    }

    /// The same with the policy of the node.
    pub(crate) fn with_policy(self, link: &LinkConfig) -> Self {
        let drop_oldest = link.queue_policy == QueuePolicy::DropOldest;
        let outbox = self.outbox.into_inner().unwrap_or_else(PoisonError::into_inner);
        Self { outbox: Mutex::new(outbox.dropping_oldest(drop_oldest)), ..self }
    }

    /// Queues a frame; its bytes are copied or shared, never changed. Returns its number. The trace that it is a part of goes
    /// with it if the peer reads that.
    pub(crate) fn push(
        &self,
        trace: Option<&TraceFrame>,
        head: &[u8],
        payload: &Bytes,
        now_ms: impl FnOnce() -> u64,
    ) -> Result<Seq, DropReason> {
        let (had_unsent, seq) = {
            let mut outbox = lock(&self.outbox);
            // Under the lock: what is pushed before a close is counted by the close.
            if self.closed.load(Ordering::Acquire) {
                return Err(DropReason::PeerGone);
            }
            let had_unsent = outbox.has_unsent();
            let seq = outbox.push_at(trace, head, payload, now_ms)?;
            // Under the lock, so nobody else counts.
            count_alone(&self.counters.frames_sent, 1);
            self.counters.sent_by_type.count_alone(head.get(LENGTH_BYTES), outbox.newest_bytes());
            if let Some(trace) = trace.filter(|_| outbox.traces()) {
                self.counters.sent_by_type.count_alone(Some(&TRACE), trace.len());
            }
            (had_unsent, seq)
        };
        if !had_unsent {
            self.wake.notify_one();
        }
        Ok(seq)
    }

    /// Keeps a small frame for which the queue has no room. Says whether it is the only one: then the caller sees to it
    /// that it is queued. Without `begins` nobody could.
    pub(crate) fn tell_later(&self, head: &Head<'_>, begins: bool) -> Result<bool, DropReason> {
        let mut frame = BytesMut::new();
        let encoded = encode_head(head, 0, &mut frame);
        let mut late = lock(&self.late);
        let first = late.is_empty();
        if encoded.is_err() || late.len() >= MAX_LATE || (first && !begins) {
            return Err(DropReason::QueueFull);
        }
        late.push_back(frame.freeze());
        Ok(first)
    }

    /// The oldest frame that waits for room.
    pub(crate) fn late(&self) -> Option<Bytes> {
        lock(&self.late).front().cloned()
    }

    /// That one is queued, or the peer is gone. Returns whether more wait.
    pub(crate) fn told_late(&self) -> bool {
        let mut late = lock(&self.late);
        late.pop_front();
        !late.is_empty()
    }

    /// Sends a frame now, or not at all.
    pub(crate) fn send_volatile(
        &self,
        trace: Option<&TraceFrame>,
        head: &[u8],
        payload: &Bytes,
    ) -> Result<(), DropReason> {
        let path = self.path.load();
        let Some(path) = &*path else { return Err(DropReason::NotWritable) };
        // After the path: of a version that is older than the path nothing new is said.
        let trace = trace.filter(|_| self.reads_traces()).map_or(&[][..], |trace| &trace[..]);
        let mut frame = BytesMut::with_capacity(trace.len() + head.len() + payload.len());
        frame.extend_from_slice(trace);
        frame.extend_from_slice(head);
        frame.extend_from_slice(payload);
        path.send(frame.freeze())?;
        count(&self.counters.volatile_sent, 1);
        Ok(())
    }

    /// Counts a frame that was not queued.
    pub(crate) fn count_drop(&self, reason: DropReason) {
        let counters = &self.counters;
        let counter = match reason {
            DropReason::QueueFull => &counters.dropped_full,
            DropReason::WaitedTooLong => &counters.dropped_waited,
            DropReason::TooLarge => &counters.dropped_too_large,
            DropReason::NotWritable => &counters.dropped_volatile,
            DropReason::PeerGone => &counters.dropped_gone,
        };
        count(counter, 1);
    }

    /// Waits until `bytes` more fit, or the peer is gone.
    pub(crate) async fn writable(&self, bytes: usize) {
        loop {
            let mut notified = std::pin::pin!(self.space.notified());
            notified.as_mut().enable();
            let held = lock(&self.outbox).bytes();
            if held == 0 || held + bytes <= self.limit_bytes || self.closed.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// Waits until the peer has acknowledged everything, or is gone.
    pub(crate) async fn flushed(&self) {
        loop {
            let mut notified = std::pin::pin!(self.space.notified());
            notified.as_mut().enable();
            if self.is_flushed() || self.closed.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// The peer has applied this version of this node's interest.
    pub(crate) fn interest_applied(&self, version: u64) {
        if self.interest_acked.fetch_max(version, Ordering::AcqRel) < version {
            self.stalls_in_a_row.store(0, Ordering::Release);
            self.acked.notify_waiters();
        }
    }

    /// Waits until the peer has applied this version of this node's interest, or a newer one; also ends when the peer is
    /// gone or this node says goodbye to it. Cancel safe.
    pub(crate) async fn knows_interest(&self, version: u64) {
        loop {
            let mut notified = std::pin::pin!(self.acked.notified());
            notified.as_mut().enable();
            let knows = self.interest_acked.load(Ordering::Acquire) >= version;
            if knows || self.closed.load(Ordering::Acquire) || self.leaves() {
                return;
            }
            notified.await;
        }
    }

    /// The frames that wait to be sent.
    pub(crate) fn unsent(&self) -> u64 {
        lock(&self.outbox).unsent()
    }

    /// Moves unsent frames to `out`, about `max_bytes`. Says how many are lost that would have come before them, and since
    /// when they waited.
    pub(crate) fn take(&self, max_bytes: usize, out: &mut Vec<Bytes>) -> Taken {
        let taken = lock(&self.outbox).take(max_bytes, out);
        if taken.lost > 0 {
            count(&self.counters.gap_sent, taken.lost);
        }
        taken
    }

    /// The peer has applied frames up to `seq`. Returns up to where it owes no more acknowledgements.
    pub(crate) fn ack(&self, seq: Seq) -> Seq {
        let (moved, acked) = {
            let mut outbox = lock(&self.outbox);
            let before = outbox.acked();
            outbox.ack(seq);
            (before != outbox.acked(), outbox.acked())
        };
        if moved {
            self.stalls_in_a_row.store(0, Ordering::Release);
            self.space.notify_waiters();
        }
        acked
    }

    /// A link is up: where sending goes on.
    pub(crate) fn resume(&self, theirs: &Resume) -> Resumed {
        let (moved, resumed) = {
            let mut outbox = lock(&self.outbox);
            let before = outbox.acked();
            let resumed = outbox.resume(theirs);
            (before != outbox.acked(), resumed)
        };
        if moved {
            self.stalls_in_a_row.store(0, Ordering::Release);
        }
        count(&self.counters.gap_sent, resumed.lost);
        self.space.notify_waiters();
        resumed
    }

    /// The next link goes to another node: see [`Outbox::move_to`].
    pub(crate) fn move_to(&self, epoch: u64, untouched: bool) -> u64 {
        let lost = lock(&self.outbox).move_to(epoch, untouched);
        // Who wakes finds it counted.
        count(&self.counters.gap_sent, lost);
        self.space.notify_waiters();
        lost
    }

    /// The frames that were sent and are not acknowledged.
    pub(crate) fn under_way(&self) -> u64 {
        lock(&self.outbox).under_way()
    }

    /// Whether frames are sent and not acknowledged, and the last one that is.
    pub(crate) fn owed(&self) -> (bool, Seq) {
        let outbox = lock(&self.outbox);
        (outbox.under_way() > 0, outbox.acked())
    }

    /// Waits until everything queued so far is acknowledged or given up.
    pub(crate) async fn caught_up(&self) {
        self.reached(self.last()).await;
    }

    /// The number of the last frame that was queued.
    pub(crate) fn last(&self) -> Seq {
        lock(&self.outbox).last()
    }

    /// Waits until everything up to `last` is acknowledged or given up.
    pub(crate) async fn reached(&self, last: Seq) {
        loop {
            let mut notified = std::pin::pin!(self.space.notified());
            notified.as_mut().enable();
            if lock(&self.outbox).acked() >= last || self.closed.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// Gives up frames older than the window, once there was no link for so long.
    pub(crate) fn expire(&self, now_ms: u64, window_ms: u64) -> u64 {
        let expired = lock(&self.outbox).expire(now_ms, window_ms);
        if expired > 0 {
            self.space.notify_waiters();
        }
        expired
    }

    /// Gives up frames older than `before_ms` that were not sent yet over the link that stands.
    pub(crate) fn expire_unsent(&self, before_ms: u64) -> u64 {
        let expired = lock(&self.outbox).expire_unsent(before_ms);
        if expired > 0 {
            self.space.notify_waiters();
            self.wake.notify_one();
        }
        expired
    }

    /// Frames that were queued and given up, by reason.
    pub(crate) fn given_up(&self) -> GivenUp {
        lock(&self.outbox).given_up()
    }

    /// The link has ended, with its tasks.
    pub(crate) fn link_ended(&self, now_ms: u64) {
        lock(&self.outbox).link_ended(now_ms);
    }

    /// Whether everything was given up.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Gives up everything, for good. Returns how many frames the peer was still owed.
    pub(crate) fn close(&self) -> u64 {
        let lost = {
            let mut outbox = lock(&self.outbox);
            self.closed.store(true, Ordering::Release);
            outbox.clear()
        };
        count(&self.counters.gap_sent, lost);
        self.space.notify_waiters();
        self.acked.notify_waiters();
        self.serving.cancel_all();
        lost
    }

    /// Frames and bytes that are queued or not acknowledged.
    pub(crate) fn depth(&self) -> (u64, usize) {
        let outbox = lock(&self.outbox);
        (outbox.len(), outbox.bytes())
    }

    /// When the oldest frame that is queued or not acknowledged was queued, in milliseconds of the node's clock.
    #[cfg(feature = "status")]
    pub(crate) fn oldest_ms(&self) -> Option<u64> {
        lock(&self.outbox).oldest_ms()
    }

    /// Whether the peer has acknowledged everything.
    pub(crate) fn is_flushed(&self) -> bool {
        lock(&self.outbox).is_empty()
    }

    /// What to tell the peer on a new link.
    pub(crate) fn own_resume(&self) -> Resume {
        let epoch = lock(&self.outbox).epoch();
        let resume = lock(&self.inbox).as_ref().map(|inbox| inbox.resume(epoch));
        let mut resume = resume.unwrap_or(Resume { epoch, received: None });
        if let (PeerRole::Guest, Some((_, received))) = (self.role, &mut resume.received) {
            // What this says counts as acknowledged: no more than what the other nodes have. The rest comes again, and is
            // dropped by its number.
            *received = (*received).min(self.applied.load(Ordering::Acquire));
        }
        resume
    }

    /// Lends the inbox to the reader of a link. One link reads at a time.
    pub(crate) fn lend_inbox(self: &Arc<Self>) -> Option<LentInbox> {
        let inbox = lock(&self.inbox).take()?;
        Some(LentInbox { inbox, peer: Arc::clone(self) })
    }

    /// The link, for volatile frames and round trips.
    pub(crate) fn set_path(&self, path: Option<Box<dyn LinkPath>>) {
        self.path.store(path.map(Arc::new));
        self.space.notify_waiters();
    }

    /// Lets the link say goodbye when everything is sent, and waits until it has ended.
    pub(crate) async fn say_goodbye(&self) {
        self.leaving.store(true, Ordering::Release);
        self.wake.notify_one();
        self.acked.notify_waiters();
        self.link_over().await;
    }

    /// Waits until the peer has applied this version of this node's interest, or its link has ended.
    pub(crate) async fn link_knows_interest(&self, version: u64) {
        tokio::select! {
            () = self.knows_interest(version) => {}
            () = self.link_over() => {}
        }
    }

    /// Waits until no link stands.
    async fn link_over(&self) {
        loop {
            let mut notified = std::pin::pin!(self.space.notified());
            notified.as_mut().enable();
            if self.path.load().is_none() {
                return;
            }
            notified.await;
        }
    }

    /// The peer was found dead, or alive.
    pub(crate) fn set_dead(&self, dead: bool) {
        self.dead.store(dead, Ordering::Release);
    }

    /// Whether it was found dead and has not come back.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire) && self.path.load().is_none()
    }

    /// Its link stands and has been silent for a while, or no longer is.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Release);
    }

    /// Whether not even a heartbeat has come for a while over the link that stands, or stood last.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    /// Whether this node leaves.
    pub(crate) fn leaves(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// From now on nothing that comes from an emitter is applied.
    pub(crate) fn part(&self, parted: bool) {
        self.parted.store(parted, Ordering::Release);
    }

    /// Whether it is so, on either side.
    pub(crate) fn has_parted(&self) -> bool {
        self.parted.load(Ordering::Acquire)
    }

    /// Sends a gossip message over the link, if there is one.
    pub(crate) fn gossip(&self, message: Bytes) -> Result<(), DropReason> {
        self.path.load().as_ref().map_or(Err(DropReason::NotWritable), |path| path.gossip(message))
    }

    /// Closes the link, if there is one.
    pub(crate) fn close_link(&self, code: CloseCode, reason: &str) {
        if let Some(path) = &*self.path.load() {
            path.close(code, reason);
        }
    }

    /// The round trip and the address of the link, while there is one.
    pub(crate) fn link(&self) -> Option<(Duration, SocketAddr)> {
        self.path.load().as_ref().map(|path| (path.round_trip(), path.remote()))
    }

    /// The protocol version of the link that stands or stood last; none before the first.
    pub(crate) fn version(&self) -> Option<u16> {
        Some(self.version.load(Ordering::Acquire)).filter(|version| *version > 0)
    }

    /// Whether frames on the link may have a trace context ahead of them.
    pub(crate) fn reads_traces(&self) -> bool {
        self.version().is_some_and(|version| version >= TRACE_SINCE)
    }

    /// A link of this protocol version comes up; none stands.
    pub(crate) fn set_version(&self, version: u16) {
        self.version.store(version, Ordering::Release);
        lock(&self.outbox).set_traces(version >= TRACE_SINCE);
    }

    pub(crate) fn state(&self) -> LinkState {
        match self.state.load(Ordering::Acquire) {
            0 => LinkState::Down,
            1 => LinkState::Syncing,
            _ => LinkState::Up,
        }
    }

    pub(crate) fn set_state(&self, state: LinkState) {
        let state = match state {
            LinkState::Down => 0,
            LinkState::Syncing => 1,
            LinkState::Up => 2,
        };
        self.state.store(state, Ordering::Release);
    }
}

/// The inbox, in the hands of the task that reads the link. Goes back when that task ends, however it ends.
pub(crate) struct LentInbox {
    pub(crate) inbox: Inbox,
    peer: Arc<PeerQueue>,
}

impl Drop for LentInbox {
    fn drop(&mut self) {
        *lock(&self.peer.inbox) = Some(std::mem::take(&mut self.inbox));
    }
}
