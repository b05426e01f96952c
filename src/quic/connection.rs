//! A link at work: its reader, its writer, its short streams and its datagrams. Bytes, no policy.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream, WriteError};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::core::frame::{
    BroadcastHead, Head, InterestHead, InterestPart, LENGTH_BYTES, Resume, WireMode, decode_broadcast,
    decode_head, decode_keys, encode_head, frame_len,
};
use crate::core::inbox::Verdict;
use crate::core::interest::{InterestChange, InterestDelta, RoomMode};
use crate::core::link::LinkState;
use crate::error::{DropReason, LinkError};
use crate::event::Event;
use crate::hub::feed::{InterestSnapshot, KEYS_PER_FRAME, Next};
use crate::hub::peer::{LentInbox, LinkPath, PeerQueue, count, count_alone};
use crate::hub::{Hub, Recent};
use crate::ids::{Namespace, Seq};
use crate::quic::handshake::{CloseCode, FrameReader, Greeted, connection_error, split_frame};
use crate::quic::together::{either, give_way};

/// About how many bytes go into one write.
const WRITE_BYTES: usize = 128 * 1024;
/// An acknowledgement is due after so many bytes of counted frames; else it goes with the heartbeat.
const ACK_BYTES: usize = 256 * 1024;
/// Into how many parts the time is cut after which a silent link ends; it is noticed one part late at most.
const SILENCE_TICKS: u32 = 16;
/// The largest message on a short stream of gossip, in bytes. chitchat keeps its messages below 64 KiB.
const MAX_GOSSIP_BYTES: usize = 80 * 1024;
/// The most short streams that one link writes at the same time; more are dropped and counted.
const MAX_SHORT_STREAMS: usize = 16;
/// The longest time that a short stream may take.
const SHORT_STREAM_TIME: Duration = Duration::from_secs(5);
/// The first byte of a short stream.
const STREAM_GOSSIP: u8 = 1;
const STREAM_VOLATILE: u8 = 2;

/// A part of a peer's interest.
#[derive(Debug)]
pub(crate) enum InterestUpdate {
    /// A snapshot of this version begins.
    Begin(u64),
    /// A part of it.
    Chunk(InterestChange),
    /// It is complete.
    End,
    /// A delta.
    Delta(InterestDelta),
}

/// Whether an interest update could be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    Yes,
    /// Something was missed: a new snapshot is wanted.
    Resync,
}

/// What a link needs from the node.
#[async_trait]
pub(crate) trait LinkHost: Send + Sync + 'static {
    /// Applies a part of the peer's interest; it is applied when this returns.
    async fn interest(&self, peer: &Arc<PeerQueue>, update: InterestUpdate) -> Result<Applied, LinkError>;
    /// This node's whole interest.
    async fn snapshot(&self) -> Result<InterestSnapshot, LinkError>;
    /// A gossip message of the peer that advertises `from`. Must not wait.
    fn gossip(&self, from: SocketAddr, message: Bytes);
}

/// The signals from a link's reader to its writer.
#[derive(Default)]
struct Signals {
    ack: AtomicBool,
    snapshot_wanted: AtomicBool,
    want_snapshot: AtomicBool,
}

/// Makes a greeted connection the way to its peer. [`run`] comes next.
pub(crate) fn open(greeted: &Greeted, peer: &PeerQueue, runtime: Handle) {
    peer.set_path(Some(Box::new(Path { conn: greeted.conn.clone(), short: Arc::default(), runtime })));
    peer.set_state(LinkState::Syncing);
}

/// Runs a link until it ends; says why. When it returns, nothing of it is left running.
pub(crate) async fn run(
    greeted: Greeted,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
    host: Arc<dyn LinkHost>,
) -> LinkError {
    let Greeted { conn, send, reader, .. } = greeted;
    let own_resume = peer.own_resume();
    let Some(inbox) = peer.lend_inbox() else {
        return LinkError::Violation("another link of this peer still reads".into());
    };

    // What was applied of another link may be counted from another memory of the peer: see `Reader::start`.
    peer.applied.store(0, Ordering::Release);
    let (resume_tx, resume_rx) = oneshot::channel();
    let signals = Arc::new(Signals::default());
    let mut tasks = JoinSet::new();
    let read = Reader {
        reader,
        inbox,
        peer: Arc::clone(&peer),
        hub: Arc::clone(&hub),
        host: Arc::clone(&host),
        signals: Arc::clone(&signals),
        resume: Some(resume_tx),
        theirs: 0,
        epoch: 0,
        gathered: Vec::new(),
        gathered_keys: 0,
        snapshot: false,
        unacked: 0,
    };
    let write =
        Writer { send, peer: Arc::clone(&peer), hub: Arc::clone(&hub), host: Arc::clone(&host), signals };
    tasks.spawn(either(read.run(), write.run(own_resume, resume_rx)));
    tasks.spawn(read_datagrams(conn.clone(), Arc::clone(&peer), Arc::clone(&hub)));
    tasks.spawn(read_short_streams(conn.clone(), Arc::clone(&peer), Arc::clone(&hub), host));

    let mut error = match tasks.join_next().await {
        Some(Ok(Err(error))) => error,
        Some(Err(panic)) => LinkError::Lost(format!("a task of the link failed: {panic}")),
        Some(Ok(Ok(()))) | None => LinkError::Lost("a task of the link ended".into()),
    };
    // The connection knows best why it ended.
    if let Some(closed) = conn.close_reason()
        && matches!(error, LinkError::Lost(_))
    {
        error = connection_error(&closed);
    }
    let code = match &error {
        LinkError::Violation(_) => CloseCode::Violation,
        LinkError::Silent(_) => CloseCode::Silent,
        LinkError::Stopping => CloseCode::Left,
        _ => CloseCode::Refused,
    };
    peer.set_path(None);
    peer.set_state(LinkState::Down);
    code.close(&conn, &error.to_string());
    tasks.shutdown().await;
    error
}

struct Reader {
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
    async fn run(mut self) -> Result<(), LinkError> {
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
            if self.unacked >= ACK_BYTES {
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
                    self.hub.deliver_recent(&mut run.recent, head, payload(bytes.len()));
                }
                return Ok(None);
            }
        }
        let (head, used) = decode_head(frame, &self.reader.limits)?;
        if self.resume.is_some() && !matches!(head, Head::Resume(_)) {
            return Err(LinkError::Violation("the second frame is not a resume".into()));
        }
        if head.is_counted() && self.epoch == 0 {
            return Err(LinkError::Violation("a counted frame before the start".into()));
        }
        match head {
            Head::Broadcast(broadcast) => {
                if self.accept(frame.len()) {
                    self.hub.deliver(&broadcast, &payload(used));
                }
            }
            Head::Received { seq, interest } => {
                self.peer.ack(Seq(seq));
                self.peer.interest_acked.fetch_max(interest, Ordering::AcqRel);
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

struct Writer {
    send: SendStream,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
    host: Arc<dyn LinkHost>,
    signals: Arc<Signals>,
}

impl Writer {
    async fn run(mut self, own: Resume, theirs: oneshot::Receiver<Resume>) -> Result<(), LinkError> {
        let mut out: Vec<Bytes> = Vec::with_capacity(64);
        push_head(&Head::Resume(own), &mut out)?;
        self.write(&mut out).await?;
        let Ok(theirs) = theirs.await else { return Err(LinkError::Lost("no resume".into())) };
        let resumed = self.peer.resume(&theirs);
        if resumed.lost > 0 {
            let (peer, frames) = (self.peer.id.clone(), resumed.lost);
            tracing::warn!(node = %self.hub.id, %peer, frames, "frames for a peer were lost");
            self.hub.event(Event::Gap { peer, frames, outgoing: true });
        }
        push_head(&Head::Start { first: resumed.first.0 }, &mut out)?;

        let heartbeat = self.hub.config.link.heartbeat;
        let mut gather = Gather::new();
        let mut next_heartbeat = Instant::now();
        // The interest version that was sent, and what is left of a snapshot that is being sent.
        let mut sent: Option<u64> = None;
        let mut snapshot: std::vec::IntoIter<Bytes> = Vec::new().into_iter();
        loop {
            if self.signals.ack.swap(false, Ordering::AcqRel) || Instant::now() >= next_heartbeat {
                next_heartbeat = Instant::now() + heartbeat;
                let seq = self.peer.applied.load(Ordering::Acquire);
                let interest = self.peer.interest_held.load(Ordering::Acquire);
                push_head(&Head::Received { seq, interest }, &mut out)?;
            }
            if self.signals.want_snapshot.swap(false, Ordering::AcqRel) {
                push_head(&Head::InterestWanted, &mut out)?;
            }
            if self.signals.snapshot_wanted.swap(false, Ordering::AcqRel) {
                sent = None;
            }
            if snapshot.len() == 0 {
                match self.hub.feed.next(sent) {
                    Next::Nothing => {}
                    Next::Deltas(frames, version) => {
                        count(&self.peer.counters.interest_bytes_sent, total(&frames));
                        out.extend(frames);
                        sent = Some(version);
                    }
                    Next::Snapshot => {
                        let whole = self.host.snapshot().await?;
                        count(&self.peer.counters.interest_bytes_sent, total(&whole.frames));
                        sent = Some(whole.version);
                        snapshot = whole.frames.into_iter();
                    }
                }
            }
            // A snapshot goes in between the messages, not before all of them.
            out.extend(snapshot.by_ref().take(2));
            self.peer.take(WRITE_BYTES, &mut out);
            if out.is_empty() {
                tokio::select! {
                    () = self.peer.wake.notified() => {}
                    () = sleep_until(next_heartbeat) => {}
                }
            } else {
                self.write(&mut out).await?;
            }
            if self.peer.leaves() && self.peer.unsent() == 0 {
                return self.goodbye(out).await;
            }
            gather.wait(&self.peer).await;
        }
    }

    /// The node leaves: says last what was applied, so that the peer knows what was not.
    async fn goodbye(&mut self, mut out: Vec<Bytes>) -> Result<(), LinkError> {
        let seq = self.peer.applied.load(Ordering::Acquire);
        let interest = self.peer.interest_held.load(Ordering::Acquire);
        push_head(&Head::Received { seq, interest }, &mut out)?;
        self.write(&mut out).await?;
        if self.send.finish().is_ok() {
            // Ends when the peer has it all.
            let _ = self.send.stopped().await;
        }
        Err(LinkError::Stopping)
    }

    async fn write(&mut self, out: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let bytes = total(out);
        self.send.write_all_chunks(out).await.map_err(|error| match error {
            WriteError::ConnectionLost(error) => connection_error(&error),
            other => LinkError::Lost(other.to_string()),
        })?;
        out.clear();
        count(&self.peer.counters.bytes_sent, bytes);
        Ok(())
    }
}

/// Lets a batch grow while many emit: a batch costs a wake-up, a lock and a system call, whatever is in it.
///
/// A turn is when every other task that could run has run once. Whether waiting for a turn makes batches larger is tried
/// now and then, less and less often while it does not (one message, then its answer): such batches go at once.
struct Gather {
    /// Batches that go at once before it is tried again; none while waiting pays.
    skip: u32,
    /// What `skip` is the next time that waiting does not pay.
    next_skip: u32,
    /// The frames that had ever been queued when last looked at.
    seen: u64,
}

impl Gather {
    /// The most turns that a batch waits.
    const TURNS: u32 = 16;
    /// So many frames are enough for one batch.
    const ENOUGH: u64 = 256;
    /// The least and the most batches that go at once between two trials.
    const SKIP: (u32, u32) = (8, 512);

    fn new() -> Self {
        Self { skip: Self::SKIP.0, next_skip: Self::SKIP.0, seen: 0 }
    }

    async fn wait(&mut self, peer: &PeerQueue) {
        // What was queued, read without the lock of the queue: those who emit hold it often enough.
        let queued = || peer.counters.frames_sent.load(Ordering::Relaxed);
        let mut now = queued();
        let before = std::mem::replace(&mut self.seen, now);
        if now == before || now - before >= Self::ENOUGH {
            return;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.skip = self.next_skip;
        self.next_skip = (2 * self.next_skip).min(Self::SKIP.1);
        for _ in 0..Self::TURNS {
            yield_now().await;
            now = queued();
            if now == self.seen {
                break;
            }
            (self.skip, self.next_skip, self.seen) = (0, Self::SKIP.0, now);
            if now - before >= Self::ENOUGH {
                break;
            }
        }
    }
}

fn total(frames: &[Bytes]) -> u64 {
    frames.iter().map(|frame| frame.len() as u64).sum()
}

fn push_head(head: &Head<'_>, out: &mut Vec<Bytes>) -> Result<(), LinkError> {
    let mut frame = BytesMut::new();
    encode_head(head, 0, &mut frame)?;
    out.push(frame.freeze());
    Ok(())
}

async fn read_datagrams(conn: Connection, peer: Arc<PeerQueue>, hub: Arc<Hub>) -> Result<(), LinkError> {
    loop {
        let datagram = conn.read_datagram().await.map_err(|error| connection_error(&error))?;
        volatile_frame(datagram, &peer, &hub)?;
    }
}

fn volatile_frame(mut bytes: Bytes, peer: &PeerQueue, hub: &Hub) -> Result<(), LinkError> {
    while let Some(frame) = split_frame(&mut bytes, &hub.limits)? {
        let (head, used) = decode_head(&frame, &hub.limits)?;
        let Head::Broadcast(head) = head else {
            return Err(LinkError::Violation("a volatile frame that is no broadcast".into()));
        };
        count(&peer.counters.volatile_received, 1);
        hub.deliver(&head, &frame.slice(used..));
    }
    Ok(())
}

/// Gossip and large volatile messages: one short stream each. QUIC bounds how many are open at the same time.
async fn read_short_streams(
    conn: Connection,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
    host: Arc<dyn LinkHost>,
) -> Result<(), LinkError> {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = conn.accept_uni() => {
                let stream = stream.map_err(|error| connection_error(&error))?;
                let (peer, hub, host) = (Arc::clone(&peer), Arc::clone(&hub), Arc::clone(&host));
                streams.spawn(async move {
                    timeout(SHORT_STREAM_TIME, read_short_stream(stream, &peer, &hub, &*host)).await
                });
            }
            Some(done) = streams.join_next() => {
                // A stream that took too long or broke is dropped; one that broke the protocol ends the link.
                if let Ok(Ok(Err(error @ LinkError::Violation(_)))) = done {
                    return Err(error);
                }
            }
        }
    }
}

async fn read_short_stream(
    mut stream: RecvStream,
    peer: &PeerQueue,
    hub: &Hub,
    host: &dyn LinkHost,
) -> Result<(), LinkError> {
    let mut kind = [0u8];
    let lost = |error: String| LinkError::Lost(error);
    stream.read_exact(&mut kind).await.map_err(|error| lost(error.to_string()))?;
    let limit = match kind[0] {
        STREAM_GOSSIP => MAX_GOSSIP_BYTES,
        STREAM_VOLATILE => hub.limits.max_frame_bytes + crate::core::frame::LENGTH_BYTES,
        other => return Err(LinkError::Violation(format!("a stream of unknown kind {other}"))),
    };
    let message = match stream.read_to_end(limit).await {
        Ok(message) => Bytes::from(message),
        Err(quinn::ReadToEndError::TooLong) => {
            return Err(LinkError::Violation(format!("a short stream of more than {limit} bytes")));
        }
        Err(error) => return Err(lost(error.to_string())),
    };
    if kind[0] == STREAM_GOSSIP {
        host.gossip(peer.advertise, message);
        return Ok(());
    }
    volatile_frame(message, peer, hub)
}

/// The way out for what may be dropped.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    conn: Connection,
    /// Short streams under way.
    short: Arc<AtomicUsize>,
    /// Where they are written: users emit from any thread.
    runtime: Handle,
}

impl LinkPath for Path {
    fn send(&self, frame: Bytes) -> Result<(), DropReason> {
        if self.conn.max_datagram_size().is_some_and(|max| frame.len() <= max) {
            if self.conn.datagram_send_buffer_space() < frame.len() {
                return Err(DropReason::NotWritable);
            }
            return self.conn.send_datagram(frame).map_err(|_| DropReason::NotWritable);
        }
        self.short_stream(STREAM_VOLATILE, frame)
    }

    fn gossip(&self, message: Bytes) -> Result<(), DropReason> {
        self.short_stream(STREAM_GOSSIP, message)
    }

    fn round_trip(&self) -> Duration {
        self.conn.rtt()
    }

    fn remote(&self) -> SocketAddr {
        self.conn.remote_address()
    }

    fn close(&self, code: CloseCode, reason: &str) {
        code.close(&self.conn, reason);
    }
}

impl Path {
    /// Sends a message on a stream of its own, if one can be opened without waiting.
    fn short_stream(&self, kind: u8, message: Bytes) -> Result<(), DropReason> {
        let under_way = self.short.fetch_add(1, Ordering::AcqRel);
        let opened = if under_way < MAX_SHORT_STREAMS { poll_once(self.conn.open_uni()) } else { None };
        let Some(Ok(mut stream)) = opened else {
            self.short.fetch_sub(1, Ordering::AcqRel);
            return Err(DropReason::NotWritable);
        };
        let short = Arc::clone(&self.short);
        self.runtime.spawn(async move {
            let write = async {
                stream.write_all(&[kind]).await?;
                stream.write_chunk(message).await
            };
            if let Ok(Ok(())) = timeout(SHORT_STREAM_TIME, write).await {
                let _ = stream.finish();
            }
            short.fetch_sub(1, Ordering::AcqRel);
        });
        Ok(())
    }
}

fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
