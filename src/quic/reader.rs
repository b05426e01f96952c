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
    BroadcastHead, Head, InterestHead, InterestPart, LAST_WORD, LENGTH_BYTES, Resume, WireMode,
    decode_broadcast, decode_head, decode_keys, frame_len,
};
use crate::core::inbox::Verdict;
use crate::core::interest::{InterestChange, InterestDelta, RoomMode};
use crate::error::LinkError;
use crate::event::Event;
use crate::hub::feed::KEYS_PER_FRAME;
use crate::hub::peer::{LentInbox, PeerQueue, PeerRole, count, count_alone};
use crate::hub::requests::MissingReason;
use crate::hub::{Hub, Recent};
use crate::ids::{Namespace, Seq};
use crate::quic::connection::{Applied, Ends, InterestUpdate, LinkHost, Signals};
use crate::quic::handshake::FrameReader;
use crate::quic::together::give_way;

/// An acknowledgement is due after so many bytes of counted frames; else it goes with the heartbeat.
const ACK_BYTES: usize = 256 * 1024;
/// Into how many parts the time is cut after which a silent link ends; it is noticed one part late at most.
const SILENCE_TICKS: u32 = 16;

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
    /// The parts of a delta so far, and how many keys are in them.
    gathered: Vec<InterestChange>,
    gathered_keys: usize,
    /// Whether a snapshot is coming in.
    snapshot: bool,
    /// Bytes of counted frames since the last acknowledgement.
    unacked: usize,
}

impl Reader {
    pub(super) fn new(
        reader: FrameReader,
        inbox: LentInbox,
        ends: Ends,
        resume: oneshot::Sender<Resume>,
    ) -> Self {
        let Ends { peer, hub, host, signals } = ends;
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
            gathered: Vec::new(),
            gathered_keys: 0,
            snapshot: false,
            unacked: 0,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), LinkError> {
        let limit = self.hub.config.link.silence_limit;
        // One timer for the whole link: one for each block would cost as much as some messages. It only ticks; after a
        // long pause of this process what has arrived is read before the next tick counts.
        let mut tick = interval((limit / SILENCE_TICKS).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut silent_ticks, mut heard) = (0, 0);
        loop {
            let block = tokio::select! {
                biased;
                block = self.reader.block() => block?,
                _ = tick.tick() => {
                    // A frame that takes long is no silence.
                    let goes_on = std::mem::replace(&mut heard, self.reader.heard) != self.reader.heard;
                    silent_ticks = if goes_on { 0 } else { silent_ticks + 1 };
                    if silent_ticks > SILENCE_TICKS {
                        return Err(LinkError::Silent(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)));
                    }
                    continue;
                }
            };
            silent_ticks = 0;
            if self.peer.role == PeerRole::Guest && self.peer.has_parted() {
                continue;
            }
            count(&self.peer.counters.bytes_received, block.len() as u64);
            let (mut at, mut run) = (0, Run::default());
            while let Some(length) = frame_len(&block[at..], &self.reader.limits)? {
                let frame = at + LENGTH_BYTES..at + LENGTH_BYTES + length;
                at = frame.end;
                if let Some((head, payload)) = self.frame(&block, frame, &mut run)? {
                    self.hub.count_delivered(&mut run.recent);
                    run = Run::default();
                    self.interest(head, &payload).await?;
                }
            }
            self.hub.count_delivered(&mut run.recent);
            if self.epoch != 0 {
                self.peer.applied.store(self.inbox.inbox.received().0, Ordering::Release);
            }
            // An emitter waits for it to know that a node has taken over.
            let at_once = self.unacked > 0 && self.peer.role == PeerRole::Guest;
            if self.unacked >= ACK_BYTES || at_once {
                self.unacked = 0;
                self.signal(&self.signals.ack);
                // The writer is in the same task: however much comes in, it must get to say so.
                give_way().await;
            }
        }
    }

    /// Handles the frame that is `range` of `block`. What has to wait for the registry is given back.
    #[inline]
    fn frame<'b>(
        &mut self,
        block: &'b Bytes,
        range: Range<usize>,
        run: &mut Run<'b>,
    ) -> Result<Option<(OwnedInterest, Bytes)>, LinkError> {
        let frame = &block[range.clone()];
        // Only what is handed on is counted as a reference to the block.
        let payload = |used: usize| block.slice(range.start + used..range.end);
        if self.epoch != 0 {
            if !run.goes_on(frame) {
                run.begin(
                    decode_broadcast(frame, &self.reader.limits)?.map(|(head, used)| (head, &frame[..used])),
                );
            }
            if let Some((head, bytes)) = &run.head {
                if self.accept(frame.len()) {
                    self.hub.arrived(&self.peer, &mut run.recent, head, payload(bytes.len()));
                }
                return Ok(None);
            }
        }
        let (head, used) = decode_head(frame, &self.reader.limits)?;
        if self.resume.is_some() && !matches!(head, Head::Resume(_)) {
            return Err(LinkError::Violation("the second frame is not a resume".into()));
        }
        if !self.peer.role.may_say(&head) {
            return Err(LinkError::Violation("a frame that its sender must not send".into()));
        }
        if head.is_counted() && self.epoch == 0 {
            return Err(LinkError::Violation("a counted frame before the start".into()));
        }
        match head {
            Head::Broadcast(broadcast) => {
                if self.accept(frame.len()) {
                    self.hub.arrived_alone(&self.peer, &broadcast, &payload(used));
                }
            }
            Head::Request(request) => {
                if self.accept(frame.len()) {
                    self.hub.request(&self.peer, &request, &payload(used));
                }
            }
            Head::Answer { id } => {
                if self.accept(frame.len()) && !self.hub.requests.answered(self.peer.slot, id, payload(used))
                {
                    count(&self.hub.counters.late_answers, 1);
                }
            }
            Head::End { id, status } => {
                if self.accept(frame.len()) {
                    self.hub.requests.ended(self.peer.slot, id, status);
                }
            }
            Head::Credit { id, answers } => {
                if self.accept(frame.len()) {
                    self.peer.serving.grant(id, answers);
                }
            }
            Head::Cancel { id } => {
                if self.accept(frame.len()) {
                    self.peer.serving.cancel(id);
                }
            }
            Head::Received { seq, interest } => {
                self.peer.ack(Seq(seq));
                if self.peer.role == PeerRole::Host {
                    self.peer.part(interest == LAST_WORD);
                } else {
                    self.peer.interest_acked.fetch_max(interest, Ordering::AcqRel);
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
            Head::Interest(interest) => {
                return Ok(Some((OwnedInterest::new(&interest)?, payload(used))));
            }
            Head::InterestWanted => self.signal(&self.signals.snapshot_wanted),
            Head::Hello(_) | Head::Refused(_) => {
                return Err(LinkError::Violation("a hello in the middle of a link".into()));
            }
        }
        Ok(None)
    }

    /// Counts a counted frame; whether it is new.
    #[inline]
    fn accept(&mut self, bytes: usize) -> bool {
        self.unacked += bytes;
        if self.inbox.inbox.accept() == Verdict::Duplicate {
            count(&self.peer.counters.duplicates, 1);
            return false;
        }
        count_alone(&self.peer.counters.frames_received, 1);
        true
    }

    fn start(&mut self, first: u64) -> Result<(), LinkError> {
        if self.epoch != 0 || self.theirs == 0 || first == 0 {
            return Err(LinkError::Violation("an unexpected start".into()));
        }
        self.epoch = self.theirs;
        let started = self.inbox.inbox.start(self.epoch, Seq(first));
        // Only now is it clear which frames the number counts.
        self.peer.applied.store(self.inbox.inbox.received().0, Ordering::Release);
        if started.gap > 0 {
            count(&self.peer.counters.gap_received, started.gap);
            let peer = self.peer.id.clone();
            tracing::warn!(node = %self.hub.id, %peer, frames = started.gap, "frames from a peer were lost");
            self.hub.event(Event::Gap { peer, frames: started.gap, outgoing: false });
            // An answer may have been among them.
            self.hub.requests.gone(self.peer.slot, MissingReason::Lost);
        }
        Ok(())
    }

    async fn interest(&mut self, head: OwnedInterest, payload: &Bytes) -> Result<(), LinkError> {
        let (added, removed) = decode_keys(&head.wire(), payload)?;
        let change = head.ns.map(|ns| InterestChange { ns, mode: head.mode, added, removed });
        let snapshot = matches!(head.part, InterestPart::Snapshot | InterestPart::SnapshotEnd);
        let end = matches!(head.part, InterestPart::SnapshotEnd | InterestPart::DeltaEnd);
        if snapshot {
            if !self.snapshot {
                self.snapshot = true;
                (self.gathered, self.gathered_keys) = (Vec::new(), 0);
                self.apply(InterestUpdate::Begin(head.version)).await?;
            }
            if let Some(change) = change {
                self.apply(InterestUpdate::Chunk(change)).await?;
            }
            if !end {
                return Ok(());
            }
            self.snapshot = false;
            if !self.apply(InterestUpdate::End).await? {
                return Ok(());
            }
        } else {
            self.gathered_keys += change.as_ref().map_or(0, |c| c.added.len() + c.removed.len());
            self.gathered.extend(change);
            let (parts, keys, limits) = (self.gathered.len(), self.gathered_keys, &self.hub.config.link);
            // A change of a namespace that has many keys comes in several parts.
            let most_parts = limits.max_namespaces_per_peer + limits.max_rooms_per_peer / KEYS_PER_FRAME;
            if keys > limits.max_rooms_per_peer || parts > most_parts {
                return Err(LinkError::Violation(format!("a delta of {keys} rooms in {parts} parts")));
            }
            if !end {
                return Ok(());
            }
            let changes = std::mem::take(&mut self.gathered);
            self.gathered_keys = 0;
            if !self.apply(InterestUpdate::Delta(InterestDelta { version: head.version, changes })).await? {
                return Ok(());
            }
        }
        self.peer.interest_held.store(head.version, Ordering::Release);
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

/// Messages with the same head, one after the other in one block: the head is read once, and fronts may keep what they
/// looked up for it.
#[derive(Default)]
struct Run<'b> {
    /// The head and its bytes.
    head: Option<(BroadcastHead<'b>, &'b [u8])>,
    recent: Recent,
}

impl<'b> Run<'b> {
    /// Whether the frame has the same head. No head of a broadcast is the beginning of another one.
    #[inline]
    fn goes_on(&self, frame: &[u8]) -> bool {
        self.head.as_ref().is_some_and(|(_, bytes)| frame.starts_with(bytes))
    }

    #[inline]
    fn begin(&mut self, head: Option<(BroadcastHead<'b>, &'b [u8])>) {
        self.head = head;
        self.recent.kept = None;
    }
}

/// An interest head that outlives its frame.
struct OwnedInterest {
    version: u64,
    part: InterestPart,
    ns: Option<Namespace>,
    mode: Option<RoomMode>,
    added: u32,
}

impl OwnedInterest {
    fn new(head: &InterestHead<'_>) -> Result<Self, LinkError> {
        let ns = match head.ns {
            "" => None,
            path => Some(Namespace::new(path).map_err(|error| LinkError::Violation(error.to_string()))?),
        };
        let mode = match head.mode {
            WireMode::Gone => None,
            WireMode::Flood => Some(RoomMode::Flood),
            WireMode::Exact => Some(RoomMode::Exact),
        };
        Ok(Self { version: head.version, part: head.part, ns, mode, added: head.added })
    }

    fn wire(&self) -> InterestHead<'static> {
        let (version, part, added) = (self.version, self.part, self.added);
        InterestHead { version, part, ns: "", mode: WireMode::Exact, added }
    }
}
