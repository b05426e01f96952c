//! Messages that are only counted: for loads of which a record would cost more than the load.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// What one run emitted and got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The number of the last message that it emitted; the first is 1.
    pub emitted: u64,
    /// Messages that were not queued for a peer, once for each peer.
    pub dropped: u64,
    /// Frames that were lost for good, on the way to a peer or from one.
    pub gap_frames: u64,
    /// What came from each run.
    pub heard: Vec<Heard>,
}

/// What came from one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Its node.
    pub node: usize,
    /// Its incarnation.
    pub run: u64,
    /// Messages that came, each later than all before.
    pub came: u64,
    /// The last one of them.
    pub last: u64,
    /// Messages that came again, or after a later one.
    pub behind: u64,
}

/// Counts while messages come.
#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) counts: Counts,
    places: HashMap<(usize, u64), usize>,
}

impl Counter {
    /// A message came.
    pub(super) fn heard(&mut self, node: usize, run: u64, number: u64) {
        let heard = &mut self.counts.heard;
        let place = *self.places.entry((node, run)).or_insert_with(|| {
            heard.push(Heard { node, run, ..Heard::default() });
            heard.len() - 1
        });
        let heard = &mut heard[place];
        if number > heard.last {
            heard.came += 1;
            heard.last = number;
        } else {
            heard.behind += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_or_late_is_behind() {
        let mut counter = Counter::default();
        for number in [1, 2, 4, 3, 4, 5] {
            counter.heard(0, 7, number);
        }
        counter.heard(1, 7, 1);
        let [one, two] = &counter.counts.heard[..] else { panic!("two runs") };
        assert_eq!((one.came, one.last, one.behind), (4, 5, 2));
        assert_eq!((two.came, two.last, two.behind), (1, 1, 0));
    }
}
