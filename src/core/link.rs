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

#[cfg(test)]
mod tests {
    use super::*;

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
