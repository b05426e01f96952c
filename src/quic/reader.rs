//! The reader of a link: cuts frames, tells new ones from repeated ones, hands messages to the fronts and interest to the
//! registry.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use crate::core::frame::{
    Ahead, BROADCAST, Head, InterestLimits, InterestReader, InterestStep, LAST_WORD, LENGTH_BYTES, LastHead,
    Resume, decode_head, frame_len,
};
use crate::core::inbox::Verdict;
use crate::error::LinkError;
use crate::event::Event;
use crate::hub::peer::{LentInbox, PeerQueue, PeerRole, count, count_alone};
use crate::hub::requests::MissingReason;
use crate::hub::{Hub, Recent};
use crate::ids::Seq;
use crate::quic::connection::{Applied, Ends, GapLog, InterestUpdate, LinkHost, Signals};
use crate::quic::handshake::FrameReader;
use crate::quic::together::give_way;

/// An acknowledgement is due after so many bytes of counted frames; else it goes with the heartbeat.
const ACK_BYTES: usize = 256 * 1024;
/// Into how many parts the time is cut after which a silent link ends; it is noticed one part late at most.
const SILENCE_TICKS: u32 = 16;
/// After so many of them without a byte the peer is quiet: 1 s with the defaults, in which it owes two heartbeats. Time in
/// which this process did not run is no silence.
const QUIET_TICKS: u32 = SILENCE_TICKS / 4;

pub(super) struct Reader {
    reader: FrameReader,
    inbox: LentInbox,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
    host: Arc<dyn LinkHost>,
    signals: Arc<Signals>,
    /// Takes the peer's resume to the writer, once.
    resume: Option<oneshot::Sender<Resume>>,
    /// The epoch that the peer's resume names; 0 before it.
    theirs: u64,
    /// The same, once the peer has said where it begins.
    epoch: u64,
    interest: InterestReader,
    /// The trace that the next counted frame is a part of.
    ahead: Ahead,
    /// Bytes of counted frames since the last acknowledgement.
    unacked: usize,
    /// Frames that were lost and are not reported yet.
    gap: u64,
    gap_log: GapLog,
    /// The version and digest of this node's interest that the peer said last, if it should have another digest.
    differs: Option<(u64, u64)>,
    /// The version of which it was sent a snapshot for that.
    repaired: Option<u64>,
}

impl Reader {
    pub(super) fn new(
        reader: FrameReader,
        inbox: LentInbox,
        ends: Ends,
        resume: oneshot::Sender<Resume>,
    ) -> Self {
        let Ends { peer, hub, host, signals } = ends;
        let interest = InterestReader::new(InterestLimits {
            max_rooms: hub.config.link.max_rooms_per_peer,
            max_namespaces: hub.config.link.max_namespaces_per_peer,
        });
        Self {
            reader,
            inbox,
            peer,
            hub,
            host,
            signals,
            resume: Some(resume),
            theirs: 0,
            epoch: 0,
            interest,
            ahead: Ahead::default(),
            unacked: 0,
            gap: 0,
            gap_log: GapLog::default(),
            differs: None,
            repaired: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), LinkError> {
        let limit = self.hub.config.link.silence_limit;
        // One timer for the whole link: one for each block would cost as much as some messages. It only ticks; after a
        // long pause of this process what has arrived is read before the next tick counts.
        let mut tick = interval((limit / SILENCE_TICKS).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut silent_ticks, mut heard) = (0, 0);
        self.peer.set_quiet(false);
        // The last head of a broadcast, from one block to the next. Grows to the largest that came.
        let mut last_head = Vec::new();
        loop {
            let block = tokio::select! {
                biased;
                block = self.reader.block() => block?,
                _ = tick.tick() => {
                    self.signals.read.store(self.reader.heard, Ordering::Release);
                    // A frame that takes long is no silence.
                    let goes_on = std::mem::replace(&mut heard, self.reader.heard) != self.reader.heard;
                    silent_ticks = if goes_on { 0 } else { silent_ticks + 1 };
                    self.peer.set_quiet(silent_ticks >= QUIET_TICKS);
                    if silent_ticks > SILENCE_TICKS {
                        return Err(LinkError::Silent(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)));
                    }
                    continue;
                }
            };
            silent_ticks = 0;
            self.signals.read.store(self.reader.heard, Ordering::Release);
            if self.peer.role == PeerRole::Guest && self.peer.has_parted() {
                continue;
            }
            count(&self.peer.counters.bytes_received, block.len() as u64);
            count_alone(&self.signals.reader, 1);
            if let Some(here) = self.block(&block, &last_head).await? {
                last_head.clear();
                last_head.extend_from_slice(&block[here]);
            }
            self.report_gap();
            count_alone(&self.signals.reader, 1);
            if self.peer.role == PeerRole::Guest {
                // Acknowledged when the others have it: see `guest.rs`.
                self.peer.relayed.store(self.inbox.inbox.received().0, Ordering::Release);
                self.peer.relay_wake.notify_one();
            } else if self.epoch != 0 {
                self.peer.applied.store(self.inbox.inbox.received().0, Ordering::Release);
            }
            if self.unacked >= ACK_BYTES {
                self.unacked = 0;
                self.signal(&self.signals.ack);
                // The writer is in the same task: however much comes in, it must get to say so.
                give_way().await;
            }
        }
    }

    /// Handles whole frames; `last_head` is that of the broadcast before them. Says where they have a later one.
    async fn block(&mut self, block: &Bytes, last_head: &[u8]) -> Result<Option<Range<usize>>, LinkError> {
        let mut run =
            Run { last: LastHead::new(last_head), recent: Recent::default(), broadcasts: 0, bytes: 0 };
        let mut at = 0;
        while let Some(length) = frame_len(&block[at..], &self.reader.limits)? {
            let frame = at + LENGTH_BYTES..at + LENGTH_BYTES + length;
            at = frame.end;
            if let Some(step) = self.frame(block, frame, &mut run)? {
                self.hub.count_delivered(&mut run.recent);
                self.interest(step).await?;
            }
        }
        self.hub.count_delivered(&mut run.recent);
        if run.broadcasts > 0 {
            self.peer.counters.received_by_type.count(BROADCAST, run.broadcasts, run.bytes);
        }
        Ok(run.last.here())
    }

    /// Handles the frame that is `range` of `block`. What has to wait for the registry is given back.
    #[inline]
    fn frame<'b>(
        &mut self,
        block: &'b Bytes,
        range: Range<usize>,
        run: &mut Run<'b>,
    ) -> Result<Option<InterestStep>, LinkError> {
        let frame = &block[range.clone()];
        if self.epoch != 0
            && let Some(message) = run.last.read(block, range.clone(), &self.reader.limits)?
        {
            if !message.again {
                run.recent.kept = None;
            }
            let trace = self.ahead.take();
            if self.accept(frame.len(), BROADCAST) {
                run.broadcasts += 1;
                run.bytes += (LENGTH_BYTES + frame.len()) as u64;
                // Only what is handed on is counted as a reference to the block.
                let payload = block.slice(range.start + message.payload_at..range.end);
                self.hub.arrived(&self.peer, &mut run.recent, trace, message.head, payload);
            }
            return Ok(None);
        }
        run.recent.kept = None;
        let (head, used) = decode_head(frame, &self.reader.limits)?;
        if self.resume.is_some() && !matches!(head, Head::Resume(_)) {
            return Err(LinkError::Violation("the second frame is not a resume".into()));
        }
        if !self.peer.role.may_say(&head) {
            return Err(LinkError::Violation("a frame that its sender must not send".into()));
        }
        if matches!(head, Head::Trace(_)) && !self.peer.reads_traces() {
            return Err(LinkError::Violation("a frame of a later version than that of the link".into()));
        }
        let trace = self.ahead.read(&head)?;
        if (head.is_counted() || self.ahead.is_open()) && self.epoch == 0 {
            return Err(LinkError::Violation("a counted frame before the start".into()));
        }
        if !head.is_counted() {
            self.peer.counters.received_by_type.count_head(&head, LENGTH_BYTES + frame.len());
        }
        let payload = |used: usize| block.slice(range.start + used..range.end);
        match head {
            // Those after the start were read above.
            Head::Broadcast(_) | Head::Again => {
                return Err(LinkError::Violation("a broadcast that is none".into()));
            }
            Head::Request(request) => {
                if self.accept(frame.len(), frame[0]) {
                    self.hub.request(&self.peer, trace, &request, &payload(used));
                }
            }
            Head::Answer { id } => {
                if self.accept(frame.len(), frame[0])
                    && !self.hub.requests.answered(self.peer.slot, id, payload(used))
                {
                    count(&self.hub.counters.late_answers, 1);
                }
            }
            Head::End { id, status } => {
                if self.accept(frame.len(), frame[0]) {
                    self.hub.requests.ended(self.peer.slot, id, status);
                }
            }
            Head::Credit { id, answers } => {
                if self.accept(frame.len(), frame[0]) {
                    self.peer.serving.grant(id, answers);
                }
            }
            Head::Cancel { id } => {
                if self.accept(frame.len(), frame[0]) {
                    self.peer.serving.cancel(id);
                }
            }
            // Kept for the frame that follows.
            Head::Trace(_) => {}
            Head::Received { seq, interest } => {
                let said = frame[used..].as_chunks::<8>().0;
                if let Some(read) = said.first() {
                    self.signals.heard.fetch_max(u64::from_le_bytes(*read), Ordering::AcqRel);
                }
                let acked = self.peer.ack(Seq(seq));
                match self.peer.role {
                    PeerRole::Host => self.peer.part(interest == LAST_WORD),
                    PeerRole::Guest => {}
                    PeerRole::Member => {
                        self.hub.orders_applied(&self.peer, acked);
                        self.peer.interest_applied(interest);
                        if let Some(digest) = said.get(1) {
                            self.compare(interest, u64::from_le_bytes(*digest));
                        }
                        if let Some(stamp) = said.get(2) {
                            // In the order of the stream: what came before it is applied.
                            let (sent, come) = (u64::from_le_bytes(*stamp), self.hub.wall_us());
                            self.peer.counters.latency.note(sent, come);
                        }
                    }
                }
            }
            Head::Resume(resume) => {
                let Some(to_writer) = self.resume.take() else {
                    return Err(LinkError::Violation("a second resume".into()));
                };
                let _ = to_writer.send(resume);
                self.theirs = resume.epoch;
            }
            Head::Start { first } => self.start(first)?,
            Head::Interest(interest) => return Ok(Some(self.interest.part(&interest, &frame[used..])?)),
            Head::Rooms { number, added } => {
                return Ok(Some(InterestStep::Delta(self.interest.rooms(number, added, &frame[used..])?)));
            }
            Head::InterestWanted => self.signal(&self.signals.snapshot_wanted),
            Head::Hello(_) | Head::Refused(_) => {
                return Err(LinkError::Violation("a hello in the middle of a link".into()));
            }
        }
        Ok(None)
    }

    /// Counts a counted frame with this first byte; whether it is new.
    #[inline]
    fn accept(&mut self, bytes: usize, first: u8) -> bool {
        self.unacked += bytes;
        if self.inbox.inbox.accept() == Verdict::Duplicate {
            count(&self.peer.counters.duplicates, 1);
            return false;
        }
        if first != BROADCAST {
            // One link of a peer reads at a time.
            self.peer.counters.received_by_type.count_alone(Some(&first), LENGTH_BYTES + bytes);
        }
        count_alone(&self.peer.counters.frames_received, 1);
        true
    }

    /// The peer holds this version of this node's interest with that digest. When it holds something else, it is sent a
    /// snapshot: once for a version, and only when it says so twice, because version and digest here are not read in one.
    fn compare(&mut self, version: u64, digest: u64) {
        let own = (self.hub.feed.version(), self.hub.interest_digest.load(Ordering::Acquire));
        if version != own.0 || digest == own.1 || self.repaired == Some(version) {
            self.differs = None;
        } else if self.differs.replace((version, digest)) == Some((version, digest)) {
            self.repaired = Some(version);
            count(&self.hub.counters.interest_repairs, 1);
            tracing::error!(node = %self.hub.id, peer = %self.peer.id, version, "a peer holds other rooms of this node than it has: it is sent all of them");
            self.signal(&self.signals.snapshot_wanted);
        }
    }

    fn start(&mut self, first: u64) -> Result<(), LinkError> {
        let unexpected = || LinkError::Violation("an unexpected start".into());
        if self.epoch != 0 {
            // The peer has given up frames before it sent them.
            let gap = self.inbox.inbox.jump(Seq(first)).ok_or_else(unexpected)?;
            self.lost(gap);
            return Ok(());
        }
        if self.theirs == 0 || first == 0 {
            return Err(unexpected());
        }
        self.epoch = self.theirs;
        let started = self.inbox.inbox.start(self.epoch, Seq(first));
        if self.peer.role != PeerRole::Guest {
            // Only now is it clear which frames the number counts.
            self.peer.applied.store(self.inbox.inbox.received().0, Ordering::Release);
        }
        self.lost(started.gap);
        Ok(())
    }

    /// Frames never come. What depends on them ends before the next frame is looked at.
    fn lost(&mut self, frames: u64) {
        if frames > 0 {
            count(&self.peer.counters.gap_received, frames);
            self.gap += frames;
            // An answer may have been among them, and that the peer gives up a question. What it asked before, it takes
            // for lost itself.
            self.hub.no_answers(&self.peer, MissingReason::Lost);
            self.peer.serving.cancel_all();
        }
    }

    /// Says what was lost, once for a block of frames.
    fn report_gap(&mut self) {
        let frames = std::mem::take(&mut self.gap);
        if frames == 0 {
            return;
        }
        let peer = self.peer.id.clone();
        if let Some(frames) = self.gap_log.due(frames) {
            tracing::warn!(node = %self.hub.id, %peer, frames, "frames from a peer were lost");
        }
        self.hub.event(Event::Gap { peer, frames, outgoing: false });
    }

    async fn interest(&mut self, step: InterestStep) -> Result<(), LinkError> {
        let version = match step {
            InterestStep::More => return Ok(()),
            InterestStep::Snapshot { version, begins, change, ends } => {
                if begins {
                    self.apply(InterestUpdate::Begin(version)).await?;
                }
                if let Some(change) = change {
                    self.apply(InterestUpdate::Chunk(change)).await?;
                }
                if !ends || !self.apply(InterestUpdate::End).await? {
                    return Ok(());
                }
                version
            }
            InterestStep::Delta(delta) => {
                let version = delta.version;
                if !self.apply(InterestUpdate::Delta(delta)).await? {
                    return Ok(());
                }
                version
            }
        };
        // Nobody else changes what is held of this peer.
        self.peer.interest_digest.store(self.hub.routes.digest(self.peer.slot), Ordering::Release);
        self.peer.interest_held.store(version, Ordering::Release);
        self.signal(&self.signals.ack);
        Ok(())
    }

    /// Whether it was applied; if not, a new snapshot is asked for.
    async fn apply(&mut self, update: InterestUpdate) -> Result<bool, LinkError> {
        let applied = self.host.interest(&self.peer, update).await?;
        if applied == Applied::Resync {
            self.signal(&self.signals.want_snapshot);
        }
        Ok(applied == Applied::Yes)
    }

    fn signal(&self, signal: &AtomicBool) {
        signal.store(true, Ordering::Release);
        self.peer.wake.notify_one();
    }
}

/// What was lost is told, too, when the link ends amid a block.
impl Drop for Reader {
    fn drop(&mut self) {
        self.report_gap();
    }
}

/// The messages of one block: a head that is repeated is read once, and fronts may keep what they looked up for it.
struct Run<'b> {
    last: LastHead<'b>,
    recent: Recent,
    /// Those that were new, and their bytes.
    broadcasts: u64,
    bytes: u64,
}
