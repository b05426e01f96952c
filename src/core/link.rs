//! Which link to keep when two nodes dial each other, and when to dial again.

use crate::ids::{Incarnation, NodeId};

/// The state of the link to a peer, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// No connection; it is being dialled or waited for.
    Down,
    /// Connected, and the peer's interest is still coming in: it gets every broadcast.
    Syncing,
    /// Connected, and the peer's interest is known.
    Up,
}

impl LinkState {
    /// The name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Syncing => "syncing",
            Self::Up => "up",
        }
    }
}

/// What to do with a new connection to a node while another one stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Use the new one and close the standing one.
    Replace,
    /// Keep the standing one and refuse the new one.
    Keep,
}

/// What tells two connections between the same two runs apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialled {
    /// Whether this node dialled.
    pub by_us: bool,
    /// The dialler's counter of its dials, from its hello.
    pub nonce: u64,
}

/// Settles two connections between the same two runs, in the same way on both sides and in any order.
///
/// The connection that the node with the smaller id dialled is kept. When the same side dialled both, its later dial
/// is kept: that side only dials again when it has lost the earlier one or has two addresses for the same node.
pub fn settle(own: &NodeId, peer: &NodeId, standing: Dialled, new: Dialled) -> Settle {
    let keep_new =
        if standing.by_us == new.by_us { new.nonce > standing.nonce } else { new.by_us == (own < peer) };
    if keep_new { Settle::Replace } else { Settle::Keep }
}

/// How a hello compares with what is known of that node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Not known yet.
    New,
    /// The run that is known.
    Same,
    /// A restart: it replaces the known run at once.
    Newer,
    /// An older run: refused.
    Older,
}

/// Compares the incarnation of a hello with the known one.
pub fn compare_run(known: Option<Incarnation>, got: Incarnation) -> Run {
    match known {
        None => Run::New,
        Some(known) if got == known => Run::Same,
        Some(known) if got > known => Run::Newer,
        Some(_) => Run::Older,
    }
}

/// When to dial an address: at once the first time, then with doubling pauses and jitter.
#[derive(Debug, Clone, Copy)]
pub struct BackoffConfig {
    /// The first pause, in milliseconds. Default is 100.
    pub min_ms: u64,
    /// The longest pause, in milliseconds: how long a healed network can go unnoticed. Default is 2,000.
    pub max_ms: u64,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { min_ms: 100, max_ms: 2_000 }
    }
}

/// The pauses between dials of one address.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    failures: u32,
    /// When to dial next, in milliseconds of the node's clock.
    pub next_ms: u64,
}

impl Backoff {
    /// A dial failed. `jitter` is a random number below 1; the pause is between half and the whole of the doubling
    /// step.
    pub fn failed(&mut self, config: &BackoffConfig, now_ms: u64, jitter: f64) {
        let step = config.min_ms.saturating_mul(1 << self.failures.min(16)).min(config.max_ms);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a pause is a small positive number of milliseconds"
        )]
        let pause = (step as f64 * (0.5 + jitter / 2.0)) as u64;
        self.failures = self.failures.saturating_add(1);
        self.next_ms = now_ms + pause;
    }

    /// A dial succeeded.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// The part of a link that does not get on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stuck {
    /// The peer was sent messages and acknowledges none.
    Frames,
    /// The peer was sent this node's rooms and does not say that it knows them.
    Interest,
    /// This node does not get done with what the peer has sent.
    Reader,
    /// This node has nothing to write, because its own rooms are not handed out.
    Writer,
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Frames => "the peer applied nothing of what it was sent",
            Self::Interest => "the peer did not take in the rooms of this node",
            Self::Reader => "this node did not get done with what the peer had sent",
            Self::Writer => "this node did not get at its own rooms",
        })
    }
}

/// What a link has got done: numbers that only grow, and whether they should.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether frames are sent and not acknowledged, and the last one that is.
    pub frames: (bool, u64),
    /// The same of the versions of this node's interest.
    pub interest: (bool, u64),
    /// Bytes that the peer says it has read; stays 0 with one that does not say.
    pub heard: u64,
    /// Whether the reader has something in hand, and how often it had.
    pub reader: (bool, u64),
    /// Whether the writer waits for this node's rooms, and how often it did.
    pub writer: (bool, u64),
}

/// Finds a link that stands, and even says heartbeats, but does not get on.
///
/// Looked at with [`look`](Self::look) several times in each limit. What is owed and does not move for the limit is stuck.
/// A peer that reads is not: one frame may take long to arrive. But so many bytes without any acknowledgement are no frame
/// any more: then reading alone is no progress. The time between two looks counts for two steps at most: who
/// did not run itself has seen nothing.
#[derive(Debug)]
pub struct Stall {
    limit_ms: u64,
    step_ms: u64,
    read_bytes: u64,
    looked_ms: Option<u64>,
    heard: u64,
    debts: [Debt; 4],
}

#[derive(Debug, Clone, Copy, Default)]
struct Debt {
    settled: u64,
    /// What the peer had read when this was settled last.
    heard: u64,
    waits_ms: u64,
}

impl Stall {
    /// How many looks belong in one limit.
    pub const LOOKS: u32 = 16;

    /// With the limit in milliseconds, and how many bytes a peer may read without an acknowledgement.
    pub fn new(limit_ms: u64, read_bytes: u64) -> Self {
        let step_ms = (2 * limit_ms / u64::from(Self::LOOKS)).max(1);
        Self { limit_ms, step_ms, read_bytes, looked_ms: None, heard: 0, debts: Default::default() }
    }

    /// The limit of a link after so many that stalled one after the other with nothing done in between: it doubles, up to 32
    /// times, so that a peer that stays stuck is not dialled without end.
    pub fn limit_after(limit_ms: u64, stalls: u32) -> u64 {
        limit_ms.saturating_mul(1 << stalls.min(5))
    }

    /// What is stuck, and for how many milliseconds, if anything is for longer than the limit.
    pub fn look(&mut self, now: &Progress, now_ms: u64) -> Option<(Stuck, u64)> {
        let before = self.looked_ms.replace(now_ms).unwrap_or(now_ms);
        let step = now_ms.saturating_sub(before).min(self.step_ms);
        let reads = std::mem::replace(&mut self.heard, now.heard) != now.heard;
        let parts = [
            (Stuck::Frames, now.frames, reads),
            (Stuck::Interest, now.interest, reads),
            (Stuck::Reader, now.reader, false),
            (Stuck::Writer, now.writer, false),
        ];
        let mut stuck = None;
        for (debt, (part, (owed, settled), reads)) in self.debts.iter_mut().zip(parts) {
            if !owed || settled != debt.settled {
                *debt = Debt { settled, heard: now.heard, waits_ms: 0 };
            } else if reads && now.heard.saturating_sub(debt.heard) <= self.read_bytes {
                debt.waits_ms = 0;
            } else {
                debt.waits_ms += step;
            }
            if stuck.is_none() && debt.waits_ms > self.limit_ms {
                stuck = Some((part, debt.waits_ms));
            }
        }
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 10 ms until something is stuck, at most `looks` times; `at` says what there is to see.
    fn watch(stall: &mut Stall, looks: u64, at: impl Fn(u64) -> Progress) -> Option<(Stuck, u64, u64)> {
        (0..looks).find_map(|look| stall.look(&at(look), look * 10).map(|(part, ms)| (part, ms, look * 10)))
    }

    #[test]
    fn what_is_owed_and_does_not_move_is_stuck() {
        let owed = (true, 7);
        let parts = [
            (Stuck::Frames, Progress { frames: owed, ..Progress::default() }),
            (Stuck::Interest, Progress { interest: owed, ..Progress::default() }),
            (Stuck::Reader, Progress { reader: owed, ..Progress::default() }),
            (Stuck::Writer, Progress { writer: owed, ..Progress::default() }),
        ];
        for (part, progress) in parts {
            let mut stall = Stall::new(160, 1000);
            assert_eq!(watch(&mut stall, 100, |_| progress), Some((part, 170, 170)));
        }
        let nothing = Progress { frames: (false, 7), interest: (false, 3), ..Progress::default() };
        assert_eq!(watch(&mut Stall::new(160, 1000), 1000, |_| nothing), None, "nothing is owed");
    }

    #[test]
    fn a_little_progress_is_enough() {
        // One frame in 150 ms.
        let slow = |look| Progress { frames: (true, look / 15), ..Progress::default() };
        assert_eq!(watch(&mut Stall::new(160, 1000), 1000, slow), None);
        // One part does not excuse the other.
        let half = |look| Progress { frames: (true, 1), interest: (true, look), ..Progress::default() };
        assert_eq!(watch(&mut Stall::new(160, 1000), 1000, half).map(|stuck| stuck.0), Some(Stuck::Frames));
    }

    #[test]
    fn a_large_frame_that_is_being_read_is_progress_and_endless_reading_is_not() {
        let reading = |look| Progress { frames: (true, 1), heard: look / 10 * 10, ..Progress::default() };
        assert_eq!(watch(&mut Stall::new(160, 1000), 1000, reading), None);
        let (part, _, at_ms) = watch(&mut Stall::new(160, 1000), 3000, reading).unwrap();
        assert_eq!(part, Stuck::Frames);
        // 1,000 bytes were read after 10 s.
        assert!((10_100..10_400).contains(&at_ms), "{at_ms}");
        let busy = |look| Progress { reader: (true, 1), heard: look, ..Progress::default() };
        assert!(
            watch(&mut Stall::new(160, 1000), 100, busy).is_some(),
            "what the peer reads says nothing of our reader"
        );
    }

    #[test]
    fn who_did_not_run_itself_has_seen_nothing() {
        let mut stall = Stall::new(160, 1000);
        let owed = Progress { frames: (true, 1), ..Progress::default() };
        assert_eq!(stall.look(&owed, 0), None);
        assert_eq!(stall.look(&owed, 10), None);
        assert_eq!(stall.look(&owed, 60_000), None, "frozen for a minute");
        assert_eq!(stall.look(&Progress { frames: (true, 2), ..owed }, 60_010), None);
    }

    #[test]
    fn the_limit_doubles_while_nothing_gets_done() {
        let limits: Vec<_> = (0..8).map(|stalls| Stall::limit_after(10, stalls)).collect();
        assert_eq!(limits, [10, 20, 40, 80, 160, 320, 320, 320]);
        assert_eq!(Stall::limit_after(u64::MAX, 3), u64::MAX);
    }

    fn ids() -> (NodeId, NodeId) {
        (NodeId::new("a").unwrap(), NodeId::new("b").unwrap())
    }

    const OURS: Dialled = Dialled { by_us: true, nonce: 7 };
    const THEIRS: Dialled = Dialled { by_us: false, nonce: 3 };

    #[test]
    fn both_sides_keep_the_same_connection() {
        let (a, b) = ids();
        // a's dial and b's dial cross; whichever stands first on a side, both end with a's dial.
        assert_eq!(settle(&a, &b, OURS, THEIRS), Settle::Keep);
        assert_eq!(settle(&a, &b, THEIRS, OURS), Settle::Replace);
        assert_eq!(settle(&b, &a, THEIRS, OURS), Settle::Keep);
        assert_eq!(settle(&b, &a, OURS, THEIRS), Settle::Replace);
    }

    #[test]
    fn the_later_dial_of_one_side_is_kept_in_any_order() {
        let (a, b) = ids();
        let (early, late) = (Dialled { nonce: 1, ..OURS }, Dialled { nonce: 2, ..OURS });
        assert_eq!(settle(&a, &b, early, late), Settle::Replace);
        assert_eq!(settle(&a, &b, late, early), Settle::Keep);
        let (early, late) = (Dialled { nonce: 1, ..THEIRS }, Dialled { nonce: 2, ..THEIRS });
        assert_eq!(settle(&b, &a, early, late), Settle::Replace);
        assert_eq!(settle(&b, &a, late, early), Settle::Keep);
    }

    #[test]
    fn pauses_double_up_to_the_limit() {
        let config = BackoffConfig::default();
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            backoff.failed(&config, 0, 1.0);
            pauses.push(backoff.next_ms);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        backoff.succeeded();
        assert_eq!(backoff.next_ms, 0);
        backoff.failed(&config, 1000, 0.0);
        assert_eq!(backoff.next_ms, 1050);
    }

    #[test]
    fn newer_runs_win() {
        assert_eq!(compare_run(None, Incarnation(1)), Run::New);
        assert_eq!(compare_run(Some(Incarnation(1)), Incarnation(1)), Run::Same);
        assert_eq!(compare_run(Some(Incarnation(1)), Incarnation(2)), Run::Newer);
        assert_eq!(compare_run(Some(Incarnation(2)), Incarnation(1)), Run::Older);
    }
}
