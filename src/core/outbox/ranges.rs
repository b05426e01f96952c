//! Numbers that were counted already.

use std::collections::VecDeque;
use std::ops::Range;

/// A set of numbers as ranges, ordered and apart from each other. Between two of them are numbers of frames that are held,
/// so there are never more than frames.
#[derive(Debug, Default)]
pub(super) struct Ranges(VecDeque<Range<u64>>);

impl Ranges {
    /// Adds numbers, some of which may be in it.
    pub(super) fn add(&mut self, mut new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let from = self.0.partition_point(|range| range.end < new.start);
        while let Some(range) = self.0.get(from).filter(|range| range.start <= new.end) {
            new = new.start.min(range.start)..new.end.max(range.end);
            self.0.remove(from);
        }
        self.0.insert(from, new);
    }

    /// How many numbers of `of` are not in it.
    pub(super) fn missing_in(&self, of: Range<u64>) -> u64 {
        let from = self.0.partition_point(|range| range.end <= of.start);
        let within = self.0.iter().skip(from).take_while(|range| range.start < of.end);
        let common = within.map(|range| range.end.min(of.end) - range.start.max(of.start)).sum::<u64>();
        of.end.saturating_sub(of.start) - common
    }

    /// Forgets numbers up to `last`.
    pub(super) fn forget(&mut self, last: u64) {
        while let Some(range) = self.0.front_mut().filter(|range| range.start <= last) {
            if range.end > last + 1 {
                range.start = last + 1;
                return;
            }
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn follows_a_plain_set(steps in proptest::collection::vec((0u64..60, 0u64..9, any::<bool>(), 0u64..60, 0u64..20), 0..40)) {
            let (mut ranges, mut plain, mut forgotten) = (Ranges::default(), BTreeSet::new(), 0);
            for (start, len, forgets, from, of) in steps {
                if forgets {
                    forgotten = forgotten.max(start / 2);
                    ranges.forget(forgotten);
                    plain.retain(|number| *number > forgotten);
                } else {
                    ranges.add(start..start + len);
                    plain.extend(start..start + len);
                }
                let missing = (from..from + of).filter(|number| !plain.contains(number)).count() as u64;
                prop_assert_eq!(ranges.missing_in(from..from + of), missing);
                prop_assert!(ranges.0.iter().zip(ranges.0.iter().skip(1)).all(|(one, next)| one.end < next.start));
                prop_assert!(ranges.0.iter().all(|range| !range.is_empty()));
            }
        }
    }
}
