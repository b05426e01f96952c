//! What a history comes to in numbers, and what is left of it when it was checked.

use std::collections::BTreeSet;
use std::ops::AddAssign;
use std::time::Duration;

use super::missing;
use super::runs::Runs;
use crate::harness::history::{Entry, History, What};

/// A history in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that were emitted.
    pub emitted: u64,
    /// Messages that came to a member, that of the emitting node included.
    pub delivered: u64,
    /// Messages that somebody should have got and did not, once for each.
    pub missed: u64,
    /// Those of them that no gap and no receipt counts.
    pub uncounted: u64,
    /// Messages that came again.
    pub duplicated: u64,
    /// Messages that came after a later one of the same run.
    pub reordered: u64,
}

impl Tally {
    /// Whether something happened that must not: what was missed and counted may.
    pub fn is_wrong(&self) -> bool {
        self.uncounted + self.duplicated + self.reordered > 0
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.emitted += other.emitted;
        self.delivered += other.delivered;
        self.missed += other.missed;
        self.uncounted += other.uncounted;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
    }
}

/// The numbers of a history. `ids` are the ids of the nodes by their index.
pub fn tally(history: &History, ids: &[String]) -> Tally {
    let runs = Runs::read(history, ids);
    let mut tally = Tally::default();
    for (receiver, run) in &runs.runs {
        tally.emitted += run.emits.len() as u64;
        for numbers in run.delivered.values() {
            let (mut seen, mut newest) = (BTreeSet::new(), 0);
            for number in numbers {
                if !seen.insert(number) {
                    tally.duplicated += 1;
                } else if *number < newest {
                    tally.reordered += 1;
                }
                newest = newest.max(*number);
            }
            tally.delivered += numbers.len() as u64;
        }
        for sender in runs.runs.keys().filter(|sender| *sender != receiver) {
            let missed = missing(&runs, *sender, *receiver).len() as u64;
            tally.missed += missed;
            tally.uncounted += missed.saturating_sub(runs.counted(*sender, *receiver));
        }
    }
    tally
}

/// What a later check has to know of a history that was checked at a moment when nothing was on its way: which runs
/// there are, and where their members are. It has one entry for each run that has not ended, of the time `at`.
///
/// None while a join is not known everywhere.
pub fn forget(history: &History, ids: &[String], at: Duration) -> Option<History> {
    let runs = Runs::read(history, ids);
    let mut left = History::default();
    for ((node, run), past) in runs.runs.iter().filter(|(_, run)| run.end.is_none()) {
        for what in [What::Started, past.before()?] {
            left.add(Entry { at, node: *node, run: *run, what });
        }
    }
    Some(left)
}
