//! The writer of a link: takes what has gathered for the peer and writes it to the stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{SendStream, WriteError};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::core::frame::{Head, INTEREST, LAST_WORD, Resume, encode_head};
use crate::error::LinkError;
use crate::event::Event;
use crate::hub::Hub;
use crate::hub::feed::Next;
use crate::hub::peer::{PeerQueue, PeerRole, count, count_alone};
use crate::hub::requests::MissingReason;
use crate::quic::connection::{Ends, GapLog, LinkHost, Signals};
use crate::quic::handshake::connection_error;

/// About how many bytes go into one write.
const WRITE_BYTES: usize = 128 * 1024;
/// The least time between two frames that say when something was queued.
const STAMP_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Writer {
    send: SendStream,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
    host: Arc<dyn LinkHost>,
    signals: Arc<Signals>,
}

impl Writer {
    pub(super) fn new(send: SendStream, ends: Ends) -> Self {
        let Ends { peer, hub, host, signals } = ends;
        Self { send, peer, hub, host, signals }
    }

    pub(super) async fn run(
        mut self,
        own: Resume,
        theirs: oneshot::Receiver<Resume>,
    ) -> Result<(), LinkError> {
        let mut out: Vec<Bytes> = Vec::with_capacity(64);
        self.push_head(&Head::Resume(own), &mut out)?;
        self.write(&mut out).await?;
        let Ok(theirs) = theirs.await else { return Err(LinkError::Lost("no resume".into())) };
        let resumed = self.peer.resume(&theirs);
        let mut log = GapLog::default();
        self.report(resumed.lost, &mut log);
        self.push_head(&Head::Start { first: resumed.first.0 }, &mut out)?;

        let heartbeat = self.hub.config.link.heartbeat;
        let mut gather = Gather::new();
        let mut next_heartbeat = Instant::now();
        let mut next_stamp = next_heartbeat;
        // The interest version that was sent, and what is left of a snapshot that is being sent.
        let mut sent: Option<u64> = None;
        let mut snapshot: std::vec::IntoIter<Bytes> = Vec::new().into_iter();
        let mut feed = (self.peer.role == PeerRole::Member).then(|| self.hub.feed.link());
        loop {
            let now = Instant::now();
            if self.signals.ack.swap(false, Ordering::AcqRel) || now >= next_heartbeat {
                next_heartbeat = now + heartbeat;
                let seq = self.peer.applied.load(Ordering::Acquire);
                let interest = self.peer.interest_held.load(Ordering::Acquire);
                self.push_received(seq, interest, None, &mut out)?;
            }
            if self.signals.want_snapshot.swap(false, Ordering::AcqRel) {
                self.push_head(&Head::InterestWanted, &mut out)?;
            }
            if self.signals.snapshot_wanted.swap(false, Ordering::AcqRel) {
                sent = None;
            }
            if snapshot.len() == 0
                && let Some(feed) = &mut feed
            {
                match feed.next(sent) {
                    Next::Nothing => {}
                    Next::Deltas(frames, version) => {
                        self.count_interest(&frames);
                        out.extend(frames);
                        sent = Some(version);
                        self.signals.interest_sent.store(version, Ordering::Release);
                    }
                    Next::Snapshot => {
                        count_alone(&self.signals.writer, 1);
                        let whole = self.host.snapshot().await?;
                        count_alone(&self.signals.writer, 1);
                        self.signals.interest_sent.store(whole.version, Ordering::Release);
                        self.count_interest(&whole.frames);
                        sent = Some(whole.version);
                        snapshot = whole.frames.into_iter();
                    }
                }
            }
            // A snapshot goes in between the messages, not before all of them.
            out.extend(snapshot.by_ref().take(2));
            let taken = self.peer.take(WRITE_BYTES, &mut out);
            self.report(taken.lost, &mut log);
            if let Some(since_ms) = taken.since_ms
                && now >= next_stamp
            {
                next_stamp = now + STAMP_PAUSE;
                self.push_stamp(since_ms, &mut out)?;
            }
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

    fn count_interest(&self, frames: &[Bytes]) {
        let bytes = total(frames);
        count(&self.peer.counters.interest_bytes_sent, bytes);
        self.peer.counters.sent_by_type.count(INTEREST, frames.len() as u64, bytes);
    }

    /// Says what the peer never gets.
    fn report(&self, lost: u64, log: &mut GapLog) {
        if let Some(frames) = log.due(lost) {
            tracing::warn!(node = %self.hub.id, peer = %self.peer.id, frames, "frames for a peer were lost");
        }
        if lost > 0 {
            self.hub.event(Event::Gap { peer: self.peer.id.clone(), frames: lost, outgoing: true });
            // A question may have been among them.
            self.hub.no_answers(&self.peer, MissingReason::Lost);
        }
    }

    /// The node leaves: says last what was applied, so that the peer knows what was not.
    async fn goodbye(&mut self, mut out: Vec<Bytes>) -> Result<(), LinkError> {
        // An emitter moves to another node and must know what is left for that one: the reader, which is in this task,
        // applies nothing more.
        self.peer.part(self.peer.role == PeerRole::Guest);
        let seq = self.peer.applied.load(Ordering::Acquire).max(self.peer.relayed.load(Ordering::Acquire));
        let interest = match self.peer.role {
            PeerRole::Guest => LAST_WORD,
            _ => self.peer.interest_held.load(Ordering::Acquire),
        };
        self.push_received(seq, interest, None, &mut out)?;
        self.write(&mut out).await?;
        if self.send.finish().is_ok() {
            // Ends when the peer has it all.
            let _ = self.send.stopped().await;
        }
        Err(LinkError::Stopping)
    }

    /// Says when the first of the frames before it was queued: the peer sees how long they took until they were applied. An
    /// acknowledgement like every other, with one more number.
    fn push_stamp(&self, since_ms: u64, out: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let interest = self.peer.interest_held.load(Ordering::Acquire);
        if self.peer.role != PeerRole::Member || interest == 0 {
            return Ok(());
        }
        let waited_us = self.hub.now_ms().saturating_sub(since_ms).saturating_mul(1000);
        let stamp = self.hub.wall_us().saturating_sub(waited_us);
        self.push_received(self.peer.applied.load(Ordering::Acquire), interest, Some(stamp), out)
    }

    /// What was applied, how much was read (a frame that takes long to arrive is no standstill), and the digest of the
    /// interest that is held.
    fn push_received(
        &self,
        seq: u64,
        interest: u64,
        stamp: Option<u64>,
        out: &mut Vec<Bytes>,
    ) -> Result<(), LinkError> {
        // The version was read before: its digest, or a newer one that the peer does not compare.
        let digest = self.peer.interest_digest.load(Ordering::Acquire);
        let read = self.signals.read.load(Ordering::Acquire);
        let payload = [read, digest, stamp.unwrap_or_default()].map(u64::to_le_bytes);
        let said = match (interest, stamp) {
            (0, _) => 1,
            (_, None) => 2,
            (_, Some(_)) => 3,
        };
        let payload = payload[..said].as_flattened();
        let mut frame = BytesMut::new();
        let head = Head::Received { seq, interest };
        encode_head(&head, payload.len(), &mut frame)?;
        frame.extend_from_slice(payload);
        self.peer.counters.sent_by_type.count_head(&head, frame.len());
        out.push(frame.freeze());
        Ok(())
    }

    fn push_head(&self, head: &Head<'_>, out: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let mut frame = BytesMut::new();
        encode_head(head, 0, &mut frame)?;
        self.peer.counters.sent_by_type.count_head(head, frame.len());
        out.push(frame.freeze());
        Ok(())
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
