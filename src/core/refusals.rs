//! Which refusals are logged: each reason of an address once, and never so many that they fill the log, whatever reasons the
//! other side makes up.

use std::hash::Hash;

use hashbrown::HashMap;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// The most addresses whose reasons are remembered. Cost: about 150 bytes each.
const MAX_ADDRESSES: usize = 1024;
/// The most reasons that are remembered of one address; the oldest is forgotten first.
const MAX_REASONS: usize = 8;
/// Lines that one address may cause at once, and how long until it may cause one more.
const OF_ADDRESS: Rate = Rate { at_once: 8, pause_ms: 10_000 };
/// The same for all addresses together.
const OF_ALL: Rate = Rate { at_once: 64, pause_ms: 1_000 };

/// What to do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The reason was logged for this address.
    Known,
    /// Log it. So many new reasons were left out since the line before, of any address.
    Due {
        /// How many.
        left_out: u64,
    },
    /// The reason is new, and there were too many lines: it is due when it comes again later.
    LeftOut,
}

/// The reasons that were logged, by address.
///
/// [`note`](Self::note) each refusal; [`forget`](Self::forget) an address that was not refused: its reasons are new again.
#[derive(Debug)]
pub struct Refusals<A> {
    by_addr: HashMap<A, Known>,
    budget: Budget,
    left_out: u64,
}

#[derive(Debug)]
struct Known {
    /// The digests of the reasons, oldest first.
    reasons: SmallVec<[u64; MAX_REASONS]>,
    budget: Budget,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    at_once: u64,
    pause_ms: u64,
}

/// How many lines are free, and since when the next one becomes so.
#[derive(Debug)]
struct Budget {
    free: u64,
    since_ms: u64,
}

impl<A> Default for Refusals<A> {
    fn default() -> Self {
        Self { by_addr: HashMap::new(), budget: Budget::full(OF_ALL, 0), left_out: 0 }
    }
}

impl<A: Eq + Hash> Refusals<A> {
    /// An address was refused, or has refused, for this reason.
    pub fn note(&mut self, addr: A, reason: &str, now_ms: u64) -> Line {
        let reason = xxh3_64(reason.as_bytes());
        if self.by_addr.len() >= MAX_ADDRESSES && !self.by_addr.contains_key(&addr) {
            self.by_addr.clear();
        }
        let known = self
            .by_addr
            .entry(addr)
            .or_insert_with(|| Known { reasons: SmallVec::new(), budget: Budget::full(OF_ADDRESS, now_ms) });
        if known.reasons.contains(&reason) {
            return Line::Known;
        }
        if !known.budget.has(OF_ADDRESS, now_ms) || !self.budget.has(OF_ALL, now_ms) {
            self.left_out += 1;
            return Line::LeftOut;
        }
        known.budget.free -= 1;
        self.budget.free -= 1;
        if known.reasons.len() == MAX_REASONS {
            known.reasons.remove(0);
        }
        known.reasons.push(reason);
        Line::Due { left_out: std::mem::take(&mut self.left_out) }
    }

    /// The address is not refused any more. The lines that it has caused still count.
    pub fn forget(&mut self, addr: &A) {
        if let Some(known) = self.by_addr.get_mut(addr) {
            known.reasons.clear();
        }
    }
}

impl Budget {
    fn full(rate: Rate, now_ms: u64) -> Self {
        Self { free: rate.at_once, since_ms: now_ms }
    }

    /// Whether a line is free now.
    fn has(&mut self, rate: Rate, now_ms: u64) -> bool {
        let more = now_ms.saturating_sub(self.since_ms) / rate.pause_ms;
        self.free = (self.free + more).min(rate.at_once);
        self.since_ms += more * rate.pause_ms;
        self.free > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUE: Line = Line::Due { left_out: 0 };

    #[test]
    fn a_reason_of_an_address_is_logged_once() {
        let mut refusals = Refusals::default();
        for (addr, reason) in [(1, "secret"), (2, "secret"), (1, "cluster")] {
            assert_eq!(refusals.note(addr, reason, 0), DUE);
            assert_eq!(refusals.note(addr, reason, 0), Line::Known);
        }
        // The one before has not become new.
        assert_eq!(refusals.note(1, "secret", 3_600_000), Line::Known);
        refusals.forget(&1);
        refusals.forget(&9);
        assert_eq!((refusals.note(1, "secret", 0), refusals.note(2, "secret", 0)), (DUE, Line::Known));
    }

    #[test]
    fn who_makes_up_reasons_gets_few_lines() {
        let mut refusals = Refusals::default();
        let mut lines = 0;
        for number in 0..3_600_u64 {
            // Ten a second, for six minutes; to be let in now and then does not help.
            let line = refusals.note(7, &format!("reason {number}"), number * 100);
            lines += u64::from(matches!(line, Line::Due { .. }));
            refusals.forget(&7);
        }
        assert_eq!(lines, 8 + 35);
        // Somebody else is logged, and it is said how many were not.
        assert_eq!(refusals.note(8, "secret", 360_000), Line::Due { left_out: 99 });
        assert_eq!(refusals.note(9, "secret", 360_000), DUE);
        // What was left out is no known reason.
        assert_eq!(refusals.note(7, "reason 3599", 370_000), DUE);
    }

    #[test]
    fn many_addresses_together_have_a_bound_too() {
        let mut refusals = Refusals::default();
        let due = |refusals: &mut Refusals<u64>, addr, now_ms| {
            u64::from(matches!(refusals.note(addr, "secret", now_ms), Line::Due { .. }))
        };
        // More than are remembered, ten times over, all within ten seconds.
        let lines: u64 = (0..50_000).map(|number| due(&mut refusals, number % 5_000, number / 5)).sum();
        assert_eq!(lines, 64 + 9);
        assert!(refusals.by_addr.len() <= MAX_ADDRESSES);
    }
}
