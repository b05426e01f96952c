//! What follows from the notes of all nodes. Pure.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::heal::record::Record;

/// One run of a node, and when others could count on it. Times are microseconds since 1970.
#[derive(Debug, Clone)]
pub struct Life {
    /// The node.
    pub node: String,
    /// The run, as its messages name it.
    pub run: String,
    /// When it said that it is ready.
    pub from: u64,
    /// When it was told to leave; none for one that stayed to the end.
    pub until: Option<u64>,
    /// What it noted; none for one that was killed, to which and from which nothing is counted.
    pub record: Option<Record>,
}

/// What became of the messages between runs that were alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Messages that were due: sent between runs that were both alive.
    pub due: u64,
    /// Of these, those that never came.
    pub lost: u64,
    /// Messages that came again.
    pub duplicated: u64,
    /// Messages that came after a later one of the same sender.
    pub reordered: u64,
}

/// Counts for every pair of runs of two nodes.
///
/// Due to a receiver are the messages of a sender from the first that came on (or, if none came, from when both were
/// ready), up to when the receiver was told to leave.
pub fn verdict(lives: &[Life]) -> Verdict {
    let mut verdict = Verdict::default();
    for (receiver, got) in recorded(lives) {
        let mut numbers: HashMap<&str, Vec<u64>> = HashMap::new();
        for arrival in &got.arrivals {
            numbers.entry(&got.senders[arrival.sender]).or_default().push(arrival.number);
        }
        for (sender, sent) in recorded(lives).filter(|(sender, _)| sender.node != receiver.node) {
            let came = numbers.get(&*sender.run).map(Vec::as_slice).unwrap_or_default();
            let both = sender.from.max(receiver.from);
            let until = receiver.until.unwrap_or(u64::MAX);
            let first = came.iter().copied().min();
            let due = (1..)
                .zip(&sent.sent)
                .filter(|(number, at)| **at < until && first.map_or(**at >= both, |first| *number >= first));
            verdict.pair(came, due.map(|(number, _)| number));
        }
    }
    verdict
}

impl Verdict {
    /// Adds one sender and receiver: the numbers that came, in order, and those that were due.
    fn pair(&mut self, came: &[u64], due: impl Iterator<Item = u64>) {
        let (mut seen, mut newest) = (HashSet::new(), 0);
        for number in came {
            if !seen.insert(*number) {
                self.duplicated += 1;
            } else if *number < newest {
                self.reordered += 1;
            }
            newest = newest.max(*number);
        }
        for number in due {
            self.due += 1;
            self.lost += u64::from(!seen.contains(&number));
        }
    }
}

/// How long it took from the start of `span` to the first sign in it at one of the nodes `at`, in microseconds, and the
/// sign.
pub fn noticed<'a>(lives: &'a [Life], at: &[&str], span: Range<u64>) -> Option<(u64, &'a str)> {
    let signs =
        recorded(lives).filter(|(life, _)| at.contains(&&*life.node)).flat_map(|(_, record)| &record.signs);
    let after = signs.filter(|(when, _)| span.contains(when)).min_by_key(|(when, _)| *when);
    after.map(|(when, what)| (when - span.start, &**what))
}

/// How long it took from `end` until a message that was sent after it had come from every run that stayed to every
/// other one, in microseconds; none if that did not happen.
pub fn healed(lives: &[Life], end: u64) -> Option<u64> {
    let stayed = || recorded(lives).filter(|(life, _)| life.until.is_none());
    let mut last = end;
    for (receiver, got) in stayed() {
        for (sender, _) in stayed().filter(|(sender, _)| sender.node != receiver.node) {
            let of = got.senders.iter().position(|run| *run == sender.run)?;
            let fresh = got.arrivals.iter().find(|arrival| arrival.sender == of && arrival.sent >= end)?;
            last = last.max(fresh.at);
        }
    }
    Some(last - end)
}

/// The runs that left notes.
fn recorded(lives: &[Life]) -> impl Iterator<Item = (&Life, &Record)> {
    lives.iter().filter_map(|life| Some((life, life.record.as_ref()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heal::record::Arrival;

    /// A run that sent a message each second from second 1 on, and got `came`: the sender, the number, and the second
    /// in which it came. Seconds are microseconds here.
    fn life(node: &str, sent: u64, senders: &[&str], came: &[(usize, u64, u64)]) -> Life {
        let arrival = |&(sender, number, at)| Arrival { sender, number, sent: number, at };
        let record = Record {
            sent: (1..=sent).collect(),
            senders: senders.iter().map(|run| (*run).to_owned()).collect(),
            arrivals: came.iter().map(arrival).collect(),
            signs: vec![(5, format!("{node} early")), (9, format!("{node} late"))],
            told: 0,
        };
        Life { node: node.into(), run: format!("{node}.1"), from: 0, until: None, record: Some(record) }
    }

    #[test]
    fn lost_duplicated_and_reordered() {
        let a = life("a", 6, &[], &[]);
        // 2 is the first, so 1 is not due; 4 comes late, 3 twice; 6 never.
        let b = life("b", 0, &["a.1"], &[(0, 2, 2), (0, 3, 3), (0, 5, 5), (0, 4, 6), (0, 3, 7)]);
        let counted = verdict(&[a.clone(), b.clone()]);
        assert_eq!(counted, Verdict { due: 5, lost: 1, duplicated: 1, reordered: 1 });

        // Told to leave in second 6: what is sent then is not due.
        let left = Life { until: Some(6), ..b.clone() };
        assert_eq!(verdict(&[a.clone(), left]), Verdict { due: 4, lost: 0, duplicated: 1, reordered: 1 });
        // Nothing is counted of one that was killed.
        let killed = Life { record: None, ..b };
        assert_eq!(verdict(&[a, killed]), Verdict::default());
    }

    #[test]
    fn one_that_got_nothing_lost_all_since_it_was_ready() {
        let a = life("a", 6, &[], &[]);
        let deaf = Life { from: 4, ..life("b", 0, &[], &[]) };
        assert_eq!(verdict(&[a, deaf]), Verdict { due: 3, lost: 3, duplicated: 0, reordered: 0 });
    }

    #[test]
    fn two_runs_of_one_node_are_counted_apart_and_not_with_each_other() {
        let a = life("a", 6, &["b.1", "b.2"], &[(0, 1, 1), (0, 2, 2), (1, 1, 4), (1, 2, 5)]);
        let old = Life { until: Some(3), ..life("b", 2, &["a.1"], &[(0, 1, 1), (0, 2, 2)]) };
        let new = life("b", 2, &["a.1"], &[(0, 4, 4), (0, 5, 5), (0, 6, 6)]);
        let new = Life { run: "b.2".into(), from: 4, ..new };
        assert_eq!(verdict(&[a, old, new]), Verdict { due: 9, lost: 0, duplicated: 0, reordered: 0 });
    }

    #[test]
    fn noticing_and_healing() {
        let a = life("a", 9, &["b.1"], &[(0, 3, 3), (0, 4, 9), (0, 7, 11)]);
        let b = life("b", 9, &["a.1"], &[(0, 8, 8)]);
        let lives = [a.clone(), b.clone()];
        assert_eq!(noticed(&lives, &["b"], 4..9), Some((1, "b early")));
        assert_eq!(noticed(&lives, &["a", "b"], 6..10), Some((3, "a late")));
        assert_eq!(noticed(&lives, &["a"], 6..9), None);
        // What was sent before the end and comes late does not count.
        assert_eq!(healed(&lives, 6), Some(5));
        assert_eq!(healed(&lives, 8), None);
        let gone = Life { until: Some(8), ..b };
        assert_eq!(healed(&[a, gone], 8), Some(0), "nobody else stayed");
    }
}
