//! What one peer is still owed: numbered frames, kept until they are acknowledged, bounded in bytes.
//!
//! The number of a frame is its place in the stream of counted frames, so it costs no bytes on the wire: a link begins
//! with the number of its first counted frame. Small frames are copied next to each other into one buffer, which makes
//! one write of many frames; a large payload is held as a reference that all peers share. In such a buffer the head of a
//! broadcast that is that of the broadcast before is not repeated. The first broadcast of each has its own, so that any of
//! them can be the first of a link.
//!
//! The trace context of a frame lies right before it, has no number of its own, and goes and stays with it.
//!
//! Frames that are given up before they were sent leave a hole in the numbers. Where sending comes to one, a
//! [`Head::Start`] with the next number goes out, and the frames of the hole are counted as lost.

#[cfg(test)]
mod model;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};

use self::ranges::Ranges;
use crate::core::frame::{
    AGAIN, BROADCAST, Head, LENGTH_BYTES, Resume, TRACE, TraceFrame, encode_head, reread_broadcast,
};
use crate::ids::Seq;

/// Payloads up to this size are copied into the shared buffer; larger ones are held by reference.
/// A copy of this size costs about as much as two reference counts that several cores fight over.
const INLINE_BYTES: usize = 2048;
/// The size of the buffer that small frames gather in. Cost: one per peer that has frames under way.
const BUFFER_BYTES: usize = 16 * 1024;

/// The counted frames for one run of one peer.
///
/// Commands: [`push`](Self::push), then [`take`](Self::take) what is not sent yet, [`ack`](Self::ack) what the peer
/// has applied. When a link comes up: [`resume`](Self::resume) first; when it has ended: [`link_ended`](Self::link_ended).
/// While there is none: [`expire`](Self::expire); while there is one: [`expire_unsent`](Self::expire_unsent).
#[derive(Debug)]
pub struct Outbox {
    epoch: u64,
    limit_bytes: usize,
    /// Whether the oldest frames make room at the limit; else the newest is refused.
    drop_oldest: bool,
    /// Whether the peer reads the trace contexts of frames; else they are left out.
    traces: bool,
    /// Whether a link stands: what was sent over it may have been applied.
    linked: bool,
    /// When the last one ended that came as far as a [`resume`](Self::resume).
    ended_ms: u64,
    /// Frames that were sent on this link, oldest first.
    under_way: VecDeque<Chunk>,
    /// Frames that are to be sent, oldest first; after a break also those that were sent before.
    waiting: VecDeque<Chunk>,
    /// Small frames that are not sent yet and still gather.
    open: BytesMut,
    open_count: u32,
    open_since_ms: u64,
    /// Where the last whole head of a broadcast stands in `open`; empty for none.
    open_head: Range<usize>,
    /// The bytes that the last frame took, without its trace context.
    newest_bytes: usize,
    /// The bytes in `under_way`, `waiting` and `open`, and those in `under_way` alone.
    bytes: usize,
    bytes_under_way: usize,
    /// The frames held.
    frames: u64,
    /// The numbers above `acked` that were counted as lost, so that none is counted twice.
    counted: Ranges,
    given_up: GivenUp,
    /// The epoch that the peer gave last: another one is another memory.
    peer_memory: Option<u64>,
    /// The last number given out, sent over this link (or to be taken for sent), ever sent, and acknowledged or given up.
    last: Seq,
    sent: Seq,
    reached: Seq,
    acked: Seq,
}

/// Frames that were queued and not kept until they were acknowledged, by reason. They count as lost, too, as soon as it is
/// clear that the peer lacks them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    /// To make room for newer ones (`drop_oldest`).
    pub displaced: u64,
    /// Because they were older than the limit.
    pub expired: u64,
}

/// What [`Outbox::take`] took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The bytes of the frames.
    pub bytes: usize,
    /// Frames that are left out from here on, not counted before: they are lost.
    pub lost: u64,
    /// When the first of them was pushed, or one that gathered with it; none when nothing was taken.
    pub since_ms: Option<u64>,
}

/// Some frames with consecutive numbers.
#[derive(Debug)]
struct Chunk {
    first: Seq,
    count: u32,
    since_ms: u64,
    parts: SmallVec<[Bytes; 2]>,
}

impl Chunk {
    fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }

    fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// How sending goes on over a new link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// The number of the next frame that is sent.
    pub first: Seq,
    /// Frames that the peer never gets: they were sent to a memory it has lost, or are no longer held.
    pub lost: u64,
}

/// Why a frame for one peer was not queued. Counted per peer and reason; other peers are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DropReason {
    /// The peer's queue is at its bound in bytes. This frame was dropped (`drop_newest`, and what cannot wait or displace
    /// enough).
    #[error("queue full")]
    QueueFull,
    /// The frame is over the size limit of a frame. Dropped for every peer.
    #[error("frame too large")]
    TooLarge,
    /// The peer's queue had no room until the deadline of the policy `wait`. This frame was dropped.
    #[error("queue still full at the deadline")]
    WaitedTooLong,
    /// A volatile frame found no room in the connection, or no connection. Dropped.
    #[error("volatile and not writable")]
    NotWritable,
    /// The peer left or died, and nothing is kept for it any more. The frame has no number: it is a drop, not a gap.
    /// (What was queued for the peer before is reported as a gap.)
    #[error("peer gone")]
    PeerGone,
}

impl Outbox {
    /// An empty outbox. `epoch` must differ from every earlier outbox of this node for the same peer.
    pub fn new(epoch: u64, limit_bytes: usize) -> Self {
        Self {
            epoch,
            limit_bytes,
            drop_oldest: false,
            traces: false,
            linked: false,
            ended_ms: 0,
            under_way: VecDeque::new(),
            waiting: VecDeque::new(),
            open: BytesMut::new(),
            open_count: 0,
            open_since_ms: 0,
            open_head: 0..0,
            newest_bytes: 0,
            bytes: 0,
            bytes_under_way: 0,
            frames: 0,
            counted: Ranges::default(),
            given_up: GivenUp::default(),
            peer_memory: None,
            last: Seq(0),
            sent: Seq(0),
            reached: Seq(0),
            acked: Seq(0),
        }
    }

    /// At the limit the oldest frames make room: those that were not sent yet while a link stands, else the oldest held.
    pub fn dropping_oldest(self, drop_oldest: bool) -> Self {
        Self { drop_oldest, ..self }
    }

    /// The epoch that was given.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last number that is settled: acknowledged, or given up as lost. No frame up to it is sent again.
    pub fn acked(&self) -> Seq {
        self.acked
    }

    /// The bytes held: not sent, or sent and not acknowledged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes that the frame that was pushed last takes: less than it was given as when its head is not repeated.
    /// Without its trace context.
    pub fn newest_bytes(&self) -> usize {
        self.newest_bytes
    }

    /// The frames held.
    pub fn len(&self) -> u64 {
        self.frames
    }

    /// When the oldest frame that is held was pushed, or one that gathered with it; none when nothing is held.
    pub fn oldest_ms(&self) -> Option<u64> {
        let oldest = self.under_way.front().or(self.waiting.front()).map(|chunk| chunk.since_ms);
        oldest.or_else(|| (self.open_count > 0).then_some(self.open_since_ms))
    }

    /// The frames that were given up so far.
    pub fn given_up(&self) -> GivenUp {
        self.given_up
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether frames wait to be sent, or the peer is to be told that they never come.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.last
    }

    /// The frames that wait to be sent, those included that the peer is to be told of only.
    pub fn unsent(&self) -> u64 {
        self.last.0 - self.sent.0
    }

    /// Takes a frame: its head with the length, as [`encode_head`] wrote it, and its
    /// payload.
    ///
    /// # Errors
    /// [`DropReason::QueueFull`] when the frame with its head would go over the limit, and no older frames may make enough
    /// room for it: it has no number and is gone. An empty outbox takes any frame, so that no frame is too large for every
    /// outbox.
    pub fn push(&mut self, head: &[u8], payload: &Bytes, now_ms: u64) -> Result<Seq, DropReason> {
        self.push_at(None, head, payload, || now_ms)
    }

    /// Whether the peer reads the trace contexts of frames. Not before it has said so. Those that are held for a peer that
    /// does not are taken out; to be called before [`resume`](Self::resume).
    pub fn set_traces(&mut self, traces: bool) {
        if std::mem::replace(&mut self.traces, traces) && !traces {
            self.close_open();
            let chunks = self.under_way.iter_mut().map(|chunk| (chunk, true));
            for (chunk, sent) in chunks.chain(self.waiting.iter_mut().map(|chunk| (chunk, false))) {
                let before = chunk.len();
                chunk.parts[0] = without_traces(&chunk.parts[0]);
                let less = before - chunk.len();
                self.bytes -= less;
                self.bytes_under_way -= if sent { less } else { 0 };
            }
        }
    }

    /// Whether the peer reads the trace contexts of frames.
    pub fn traces(&self) -> bool {
        self.traces
    }

    /// As [`push`](Self::push), with the trace context of the frame, which is left out if the peer does not read those.
    /// Asks for the time only when it is needed: most frames go into a buffer that has one already, and reading the clock
    /// would cost as much as the rest.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_at(
        &mut self,
        trace: Option<&TraceFrame>,
        head: &[u8],
        payload: &Bytes,
        now_ms: impl FnOnce() -> u64,
    ) -> Result<Seq, DropReason> {
        let trace = trace.filter(|_| self.traces).map_or(&[][..], |trace| &trace[..]);
        let len = trace.len() + head.len() + payload.len();
        if self.bytes + len > self.limit_bytes && self.bytes > 0 && !self.make_room(len) {
            return Err(DropReason::QueueFull);
        }
        let large = payload.len() > INLINE_BYTES;
        if large || self.open.capacity() - self.open.len() < len {
            self.close_open();
        }
        self.last = self.last.next();
        self.frames += 1;
        if large {
            (self.bytes, self.newest_bytes) = (self.bytes + len, len - trace.len());
            let head =
                if trace.is_empty() { Bytes::copy_from_slice(head) } else { [trace, head].concat().into() };
            let parts = smallvec![head, payload.clone()];
            self.waiting.push_back(Chunk { first: self.last, count: 1, since_ms: now_ms(), parts });
            return Ok(self.last);
        }
        if self.open_count == 0 {
            self.open_since_ms = now_ms();
            if self.open.capacity() - self.open.len() < len {
                self.open = BytesMut::with_capacity(BUFFER_BYTES.max(len));
            }
        }
        if !trace.is_empty() {
            self.open.extend_from_slice(trace);
        }
        let before = self.open.len();
        if !self.open_head.is_empty() && self.open[self.open_head.clone()] == head[LENGTH_BYTES..] {
            // At most `INLINE_BYTES` and one.
            self.open.put_u32_le(1 + payload.len() as u32);
            self.open.put_u8(AGAIN);
        } else {
            if head.get(LENGTH_BYTES) == Some(&BROADCAST) {
                let at = self.open.len();
                self.open_head = at + LENGTH_BYTES..at + head.len();
            }
            self.open.extend_from_slice(head);
        }
        self.open.extend_from_slice(payload);
        self.open_count += 1;
        self.newest_bytes = self.open.len() - before;
        self.bytes += trace.len() + self.newest_bytes;
        Ok(self.last)
    }

    /// Moves unsent frames to `out`, in order, until it holds `max_bytes` or nothing is left; at least one chunk. Where
    /// frames were given up, a [`Head::Start`] says how the numbers go on.
    pub fn take(&mut self, max_bytes: usize, out: &mut Vec<Bytes>) -> Taken {
        self.close_open();
        let mut taken = Taken::default();
        while taken.bytes < max_bytes {
            let Some(chunk) = self.waiting.pop_front() else { break };
            self.jump_to(chunk.first, &mut taken, out);
            out.extend(chunk.parts.iter().cloned());
            taken.bytes += chunk.len();
            self.bytes_under_way += chunk.len();
            self.sent = chunk.last();
            taken.since_ms.get_or_insert(chunk.since_ms);
            self.under_way.push_back(chunk);
        }
        if self.waiting.is_empty() {
            self.jump_to(self.last.next(), &mut taken, out);
        }
        self.reached = self.reached.max(self.sent);
        taken
    }

    /// The peer has applied everything up to `seq`: lets go of it.
    pub fn ack(&mut self, seq: Seq) {
        let seq = seq.min(self.sent);
        if seq <= self.acked {
            return;
        }
        self.acked = seq;
        self.counted.forget(seq.0);
        while let Some(chunk) = self.under_way.pop_front_if(|chunk| chunk.last() <= seq) {
            self.bytes_under_way -= chunk.len();
            self.let_go(&chunk);
        }
    }

    /// A new link is up and the peer said what it remembers: sending goes on after the last frame it has applied.
    ///
    /// A peer that remembers nothing of this epoch has applied nothing of it when its memory is the one of the link
    /// before. With another memory it may or may not have applied what was sent and not acknowledged: that is given up
    /// and counted as lost, because a duplicate is never sent. Each loss is counted once.
    pub fn resume(&mut self, theirs: &Resume) -> Resumed {
        self.close_open();
        let same_memory = self.peer_memory.replace(theirs.epoch) == Some(theirs.epoch);
        let remembered = theirs.received.is_some_and(|(epoch, _)| epoch == self.epoch);
        let wanted = match theirs.received {
            Some((_, seq)) if remembered && Seq(seq) <= self.reached => Seq(seq).max(self.acked),
            _ if same_memory && !remembered => self.acked,
            // Of a peer that says that it has less than it has, as hosts of emitters may, more can have been applied than
            // was sent over the last link.
            _ => self.reached,
        };
        let mut lost = if remembered || same_memory { 0 } else { self.under_way() };
        self.send_again(wanted);
        let first = self.held_from();
        lost += self.counted.missing_in(wanted.0 + 1..first.0);
        self.sent = Seq(first.0 - 1);
        self.reached = self.reached.max(self.sent);
        // What is lost is settled, too, should this link break before the peer hears where it begins.
        self.acked = self.sent;
        self.counted.forget(self.acked.0);
        self.linked = true;
        Resumed { first, lost }
    }

    /// The link has ended: what was sent over it is held until a [`resume`](Self::resume) says what became of it. The time
    /// for that begins, unless it never came as far as a resume: such a link was none.
    pub fn link_ended(&mut self, now_ms: u64) {
        if std::mem::replace(&mut self.linked, false) {
            self.ended_ms = now_ms;
        }
    }

    /// The next link goes to another node, which has nothing of this epoch: a new one begins, with a number of its own as
    /// for [`new`](Self::new). Returns how many frames are given up: those that were sent and not acknowledged, because
    /// the node before may have applied them. When it has said that it did not (`untouched`) they are sent again.
    pub fn move_to(&mut self, epoch: u64, untouched: bool) -> u64 {
        self.close_open();
        self.epoch = epoch;
        if untouched {
            self.send_again(self.acked);
            (self.sent, self.reached) = (self.acked, self.acked);
            return 0;
        }
        let lost = self.under_way();
        self.send_again(self.reached);
        (self.sent, self.acked) = (self.reached, self.reached);
        self.counted.forget(self.acked.0);
        lost
    }

    /// The frames that were sent and are not acknowledged.
    pub fn under_way(&self) -> u64 {
        self.counted.missing_in(self.acked.0 + 1..self.reached.0 + 1)
    }

    /// The last number given out.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Gives up frames that were pushed more than `window_ms` ago, once there was no link for so long; returns how many. A
    /// link that comes back within the window, however often it breaks, costs nothing: the peer may not have had the time to
    /// acknowledge what is older. They count as lost at the next [`resume`](Self::resume) or [`clear`](Self::clear), if the
    /// peer lacks them.
    pub fn expire(&mut self, now_ms: u64, window_ms: u64) -> u64 {
        let before_ms = now_ms.saturating_sub(window_ms);
        if self.linked || self.ended_ms > before_ms {
            return 0;
        }
        let mut expired = 0;
        while let Some(chunk) = self.under_way.pop_front_if(|chunk| chunk.since_ms < before_ms) {
            self.bytes_under_way -= chunk.len();
            self.let_go(&chunk);
            expired += u64::from(chunk.count);
        }
        self.given_up.expired += expired;
        // What was sent is older than what was not.
        expired + if self.under_way.is_empty() { self.expire_unsent(before_ms) } else { 0 }
    }

    /// Gives up frames that were pushed before `before_ms` and not sent yet; returns how many. For a peer that does not
    /// read. They count as lost when sending comes to where they were.
    pub fn expire_unsent(&mut self, before_ms: u64) -> u64 {
        // What gathers while nothing is sent is no older than one call of this.
        self.close_open();
        let mut expired = 0;
        while let Some(chunk) = self.waiting.pop_front_if(|chunk| chunk.since_ms < before_ms) {
            self.let_go(&chunk);
            expired += u64::from(chunk.count);
        }
        self.given_up.expired += expired;
        expired
    }

    /// Gives up everything, because the peer is gone; returns how many frames were not acknowledged.
    pub fn clear(&mut self) -> u64 {
        let lost = self.counted.missing_in(self.acked.0 + 1..self.last.0 + 1);
        (self.under_way, self.waiting, self.open) = Default::default();
        (self.open_count, self.open_head) = (0, 0..0);
        (self.bytes, self.bytes_under_way, self.frames) = (0, 0, 0);
        self.counted = Ranges::default();
        (self.acked, self.sent, self.reached) = (self.last, self.last, self.last);
        lost
    }

    /// Gives up the oldest frames that may be, until `len` bytes more fit: whole chunks, so that it costs little for each
    /// frame. Says whether they fit; if they cannot, nothing is given up.
    #[cold]
    fn make_room(&mut self, len: usize) -> bool {
        let stays = if self.linked { self.bytes_under_way } else { 0 };
        if !self.drop_oldest || stays + len > self.limit_bytes {
            return false;
        }
        self.close_open();
        while self.bytes > 0 && self.bytes + len > self.limit_bytes {
            let sent = if self.linked { None } else { self.under_way.pop_front() };
            if let Some(chunk) = &sent {
                self.bytes_under_way -= chunk.len();
            }
            let Some(chunk) = sent.or_else(|| self.waiting.pop_front()) else { break };
            self.let_go(&chunk);
            self.given_up.displaced += u64::from(chunk.count);
        }
        true
    }

    /// Says to the peer that the next frame is `first`, when others were to come before it.
    fn jump_to(&mut self, first: Seq, taken: &mut Taken, out: &mut Vec<Bytes>) {
        let left_out = self.sent.0 + 1..first.0;
        if left_out.is_empty() {
            return;
        }
        taken.lost += self.counted.missing_in(left_out.clone());
        self.counted.add(left_out);
        let mut frame = BytesMut::new();
        encode_head(&Head::Start { first: first.0 }, 0, &mut frame).expect("a number is a small head");
        out.push(frame.freeze());
        self.sent = Seq(first.0 - 1);
    }

    /// All that is held is sent again, but for frames up to `applied`.
    fn send_again(&mut self, applied: Seq) {
        self.under_way.append(&mut self.waiting);
        std::mem::swap(&mut self.under_way, &mut self.waiting);
        self.bytes_under_way = 0;
        while let Some(chunk) = self.waiting.pop_front_if(|chunk| chunk.last() <= applied) {
            self.let_go(&chunk);
        }
        self.trim_front(applied);
    }

    /// A chunk is no longer held.
    fn let_go(&mut self, chunk: &Chunk) {
        self.bytes -= chunk.len();
        self.frames -= u64::from(chunk.count);
    }

    /// The number of the oldest frame held, or of the next one when none is.
    fn held_from(&self) -> Seq {
        let oldest = self.under_way.front().or(self.waiting.front());
        oldest.map_or(Seq(self.last.0 - u64::from(self.open_count) + 1), |chunk| chunk.first)
    }

    fn close_open(&mut self) {
        if self.open_count == 0 {
            return;
        }
        let first = Seq(self.last.0 - u64::from(self.open_count) + 1);
        let parts = smallvec![self.open.split().freeze()];
        self.waiting.push_back(Chunk { first, count: self.open_count, since_ms: self.open_since_ms, parts });
        (self.open_count, self.open_head) = (0, 0..0);
    }

    /// Cuts frames up to `applied` off the first chunk.
    fn trim_front(&mut self, applied: Seq) {
        let Some(chunk) = self.waiting.front_mut() else { return };
        if chunk.first > applied {
            return;
        }
        let before = chunk.len();
        let cut = applied.0 + 1 - chunk.first.0;
        match cut_frames(&chunk.parts[0], cut) {
            Some(rest) => {
                chunk.count -= u32::try_from(cut).unwrap_or(chunk.count);
                self.frames -= cut;
                chunk.first = applied.next();
                chunk.parts[0] = rest;
                self.bytes -= before - chunk.len();
            }
            // Not as it was encoded: given up, and so counted as lost.
            None => {
                self.bytes -= before;
                self.frames -= u64::from(chunk.count);
                self.waiting.pop_front();
            }
        }
    }
}

/// What is left of gathered frames without the first `count` counted ones, and what stands before those. The first broadcast that is left has its whole head; what
/// is left is never longer than what was there. None when the bytes are not frames.
fn cut_frames(bytes: &Bytes, count: u64) -> Option<Bytes> {
    let frame = |at: usize| {
        let length = u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<LENGTH_BYTES>()?) as usize;
        bytes.get(at + LENGTH_BYTES..at + LENGTH_BYTES + length)
    };
    let (mut cut, mut whole): (_, &[u8]) = (0, &[]);
    let mut left = count;
    while left > 0 {
        let frame = frame(cut)?;
        if frame.first() == Some(&BROADCAST) {
            whole = frame;
        }
        left -= u64::from(frame.first() != Some(&TRACE));
        cut += LENGTH_BYTES + frame.len();
    }
    let mut at = cut;
    while at < bytes.len() {
        let first = frame(at)?;
        match first.first() {
            Some(&BROADCAST) => break,
            Some(&AGAIN) => {
                let (_, used) = reread_broadcast(whole).ok()?;
                let mut rest = BytesMut::with_capacity(bytes.len() - cut + used);
                rest.extend_from_slice(&bytes[cut..at]);
                rest.put_u32_le(u32::try_from(used + first.len() - 1).ok()?);
                rest.extend_from_slice(&whole[..used]);
                rest.extend_from_slice(&bytes[at + LENGTH_BYTES + 1..]);
                return Some(rest.freeze());
            }
            _ => at += LENGTH_BYTES + first.len(),
        }
    }
    Some(bytes.slice(cut..))
}

/// The same frames without trace contexts. The last frame may go on beyond the end: a large payload is a part of its own.
fn without_traces(bytes: &Bytes) -> Bytes {
    let (mut kept, mut at) = (BytesMut::with_capacity(bytes.len()), 0);
    while let Some(length) = bytes[at..].first_chunk::<LENGTH_BYTES>() {
        let end = (at + LENGTH_BYTES).saturating_add(u32::from_le_bytes(*length) as usize).min(bytes.len());
        if bytes.get(at + LENGTH_BYTES) != Some(&TRACE) {
            kept.extend_from_slice(&bytes[at..end]);
        }
        at = end;
    }
    if kept.len() == bytes.len() { bytes.clone() } else { kept.freeze() }
}
