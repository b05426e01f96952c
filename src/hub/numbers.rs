//! Counts that are only looked at from time to time: emits by scope and number of nodes, frames by type, how long messages
//! were on their way. A count costs one atomic addition, and none that the way of a message did not have before.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::core::frame::{BROADCAST, Head, TRACE};

/// Whom a broadcast is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The members of some rooms, on all nodes.
    Rooms,
    /// Everyone in a namespace, on all nodes.
    All,
    /// One Socket.IO server, or a room of servers.
    Server,
}

impl Scope {
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Rooms, Self::All, Self::Server];

    /// As metrics name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rooms => "rooms",
            Self::All => "all",
            Self::Server => "server",
        }
    }
}

/// So many nodes have a place of their own in [`EmitCounts`].
const EXACT: usize = 8;
/// The upper bounds of the places above that; the last place has none.
const ABOVE: [usize; 3] = [16, 32, 64];
const PLACES: usize = EXACT + 1 + ABOVE.len() + 1;

/// Broadcasts by scope and by the number of nodes that they were for.
#[derive(Debug, Default)]
pub(crate) struct EmitCounts {
    cells: [[AtomicU64; PLACES]; 3],
    /// The nodes of the broadcasts in the places above [`EXACT`], by scope.
    nodes_above: [AtomicU64; 3],
    /// Broadcasts that were limited to this node.
    pub(crate) local: AtomicU64,
}

/// A histogram as it was read: how many were at most each bound, their number, and their sum.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram {
    pub(crate) buckets: Vec<(f64, u64)>,
    pub(crate) count: u64,
    pub(crate) sum: f64,
}

impl EmitCounts {
    /// A broadcast for so many nodes.
    #[inline]
    pub(crate) fn count(&self, scope: Scope, nodes: usize) {
        let place = if nodes <= EXACT {
            nodes
        } else {
            self.nodes_above[scope as usize].fetch_add(nodes as u64, Ordering::Relaxed);
            EXACT + 1 + ABOVE.iter().take_while(|bound| **bound < nodes).count()
        };
        self.cells[scope as usize][place].fetch_add(1, Ordering::Relaxed);
    }

    /// All of a scope.
    pub(crate) fn of(&self, scope: Scope) -> u64 {
        self.cells[scope as usize].iter().map(get).sum()
    }

    /// All of them, but for local ones.
    pub(crate) fn total(&self) -> u64 {
        Scope::ALL.into_iter().map(|scope| self.of(scope)).sum()
    }

    /// Those that no other node was interested in.
    pub(crate) fn unwanted(&self) -> u64 {
        self.cells.iter().map(|cells| get(&cells[0])).sum()
    }

    /// How many nodes the broadcasts of a scope were for.
    pub(crate) fn nodes(&self, scope: Scope) -> Histogram {
        let cells = self.cells[scope as usize].each_ref().map(get);
        let bounds = (0..=EXACT).chain(ABOVE);
        let mut count = 0;
        let buckets = bounds.zip(cells).map(|(bound, cell)| {
            count += cell;
            (bound as f64, count)
        });
        let buckets = buckets.collect();
        let exact: u64 = (0..).zip(&cells[..=EXACT]).map(|(nodes, cell)| nodes * cell).sum();
        let sum = exact + get(&self.nodes_above[scope as usize]);
        Histogram { buckets, count: cells.iter().sum(), sum: sum as f64 }
    }
}

/// The number of types of frames: see [`Head`].
const TYPES: usize = 16;

/// Frames and their bytes by the first byte of their head; a head that is repeated counts as a broadcast. The bytes are
/// those on the stream: length, head and payload.
#[derive(Debug, Default)]
pub(crate) struct FrameCounts([Tally; TYPES]);

/// Side by side: they are counted together.
#[derive(Debug, Default)]
struct Tally {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl FrameCounts {
    /// The names of the types, and the first bytes of the heads that each has.
    pub(crate) const NAMES: [(&str, &[u8]); 10] = [
        ("broadcast", &[BROADCAST]),
        ("received", &[4]),
        ("interest", &[5, 9]),
        ("request", &[10]),
        ("answer", &[11]),
        ("end", &[12]),
        ("credit", &[13]),
        ("cancel", &[14]),
        ("trace", &[TRACE]),
        ("control", &[2, 3, 6]),
    ];

    /// Frames with this first byte, and their bytes.
    pub(crate) fn count(&self, first: u8, frames: u64, bytes: u64) {
        if let Some(tally) = self.0.get(usize::from(first)) {
            tally.frames.fetch_add(frames, Ordering::Relaxed);
            tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// A frame with this first byte, while nobody else counts such frames: no atomic addition on the way of a message.
    #[inline]
    pub(crate) fn count_alone(&self, first: Option<&u8>, bytes: usize) {
        let add = |count: &AtomicU64, by| count.store(get(count) + by, Ordering::Relaxed);
        if let Some(tally) = first.and_then(|first| self.0.get(usize::from(*first))) {
            add(&tally.frames, 1);
            add(&tally.bytes, bytes as u64);
        }
    }

    /// As [`count`](Self::count) for one frame of so many bytes, by its head.
    pub(crate) fn count_head(&self, head: &Head<'_>, bytes: usize) {
        let first = match head {
            Head::Hello(_) => 0,
            Head::Refused(_) => 1,
            Head::Resume(_) => 2,
            Head::Start { .. } => 3,
            Head::Received { .. } => 4,
            Head::Interest(_) => 5,
            Head::InterestWanted => 6,
            Head::Broadcast(_) | Head::Again => BROADCAST,
            Head::Rooms { .. } => 9,
            Head::Request(_) => 10,
            Head::Answer { .. } => 11,
            Head::End { .. } => 12,
            Head::Credit { .. } => 13,
            Head::Cancel { .. } => 14,
            Head::Trace(_) => TRACE,
        };
        self.count(first, 1, bytes as u64);
    }

    /// The frames with these first bytes, and their bytes.
    pub(crate) fn of(&self, firsts: &[u8]) -> (u64, u64) {
        let tallies = firsts.iter().filter_map(|first| self.0.get(usize::from(*first)));
        tallies.fold((0, 0), |sum, tally| (sum.0 + get(&tally.frames), sum.1 + get(&tally.bytes)))
    }
}

/// The upper bounds of [`Latency`], in microseconds; the last place has none.
const LATENCY_US: [u64; 13] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];
/// The longest that is noted: what a clock that is far off, or a peer that says nonsense, can add to the sum.
const LONGEST_US: u64 = 3_600_000_000;

/// How long messages of a peer were on their way.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    cells: [AtomicU64; LATENCY_US.len() + 1],
    sum_us: AtomicU64,
    /// Messages that came before they were sent, by the clocks. They count as 0, too.
    pub(crate) backwards: AtomicU64,
}

impl Latency {
    /// A message that was sent and has come at these times, in microseconds of the wall clocks of both nodes.
    pub(crate) fn note(&self, sent_us: u64, come_us: u64) {
        if sent_us > come_us {
            self.backwards.fetch_add(1, Ordering::Relaxed);
        }
        let took_us = come_us.saturating_sub(sent_us).min(LONGEST_US);
        let place = LATENCY_US.iter().take_while(|bound| **bound < took_us).count();
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
        self.cells[place].fetch_add(1, Ordering::Relaxed);
    }

    /// What was noted, in seconds.
    pub(crate) fn seconds(&self) -> Histogram {
        let cells = self.cells.each_ref().map(get);
        let mut count = 0;
        let buckets = LATENCY_US.iter().zip(cells).map(|(bound, cell)| {
            count += cell;
            (*bound as f64 / 1e6, count)
        });
        let buckets = buckets.collect();
        Histogram { buckets, count: cells.iter().sum(), sum: get(&self.sum_us) as f64 / 1e6 }
    }
}

/// Messages that an actor has not handled yet.
#[derive(Debug, Default)]
pub(crate) struct Mailbox(AtomicI64);

/// One of them; counted until it is dropped.
pub(crate) struct Letter<'m>(&'m Mailbox);

impl Mailbox {
    /// To be held while a message is sent and its answer is waited for.
    #[must_use = "counted until it is dropped"]
    pub(crate) fn letter(&self) -> Letter<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Letter(self)
    }

    /// How many there are now.
    pub(crate) fn depth(&self) -> u64 {
        u64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

impl Drop for Letter<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::core::frame::{EndStatus, LENGTH_BYTES, Resume, encode_head};

    #[test]
    fn each_number_of_nodes_has_its_place_and_the_sum_is_exact() {
        let counts = EmitCounts::default();
        let nodes = [0, 0, 1, 8, 9, 16, 17, 64, 65, 1000];
        nodes.iter().for_each(|nodes| counts.count(Scope::Rooms, *nodes));
        counts.count(Scope::All, 3);
        let rooms = counts.nodes(Scope::Rooms);
        assert_eq!(rooms.count, nodes.len() as u64);
        assert_eq!(rooms.sum, nodes.iter().sum::<usize>() as f64);
        for (bound, count) in &rooms.buckets {
            let expected = nodes.iter().filter(|nodes| **nodes as f64 <= *bound).count();
            assert_eq!(*count, expected as u64, "up to {bound}");
        }
        assert_eq!((counts.total(), counts.unwanted(), counts.of(Scope::Server)), (11, 2, 0));
    }

    #[test]
    fn latencies_are_sorted_by_their_bounds_and_clocks_may_differ() {
        let latency = Latency::default();
        for (sent, come) in [(0, 250), (0, 251), (1_000, 0), (0, u64::MAX)] {
            latency.note(sent, come);
        }
        let seconds = latency.seconds();
        assert_eq!((seconds.count, get(&latency.backwards)), (4, 1));
        assert_eq!(seconds.buckets[..2], [(0.00025, 2), (0.0005, 3)]);
        assert_eq!(seconds.buckets.last(), Some(&(5.0, 3)));
        assert!((seconds.sum - 3_600.000_501).abs() < 1e-6, "{}", seconds.sum);
    }

    #[test]
    fn the_first_byte_of_a_head_is_what_it_is_counted_as() {
        let heads = [
            Head::Resume(Resume { epoch: 1, received: None }),
            Head::Start { first: 1 },
            Head::Received { seq: 1, interest: 1 },
            Head::InterestWanted,
            Head::Rooms { number: 1, added: 1 },
            Head::Answer { id: 1 },
            Head::End { id: 1, status: EndStatus::Done },
            Head::Credit { id: 1, answers: 1 },
            Head::Cancel { id: 1 },
        ];
        for head in heads {
            let mut bytes = BytesMut::new();
            encode_head(&head, 0, &mut bytes).unwrap();
            let counts = FrameCounts::default();
            counts.count_head(&head, bytes.len());
            let first = bytes[LENGTH_BYTES];
            assert_eq!(counts.of(&[first]), (1, bytes.len() as u64), "{head:?}");
            assert!(FrameCounts::NAMES.iter().any(|(_, firsts)| firsts.contains(&first)), "{head:?}");
        }
    }

    #[test]
    fn bytes_are_counted_with_the_frames_of_a_type() {
        let counts = FrameCounts::default();
        counts.count(BROADCAST, 3, 300);
        counts.count_alone(Some(&BROADCAST), 45);
        counts.count_alone(Some(&10), 7);
        counts.count_alone(None, 1);
        counts.count_alone(Some(&255), 1);
        assert_eq!((counts.of(&[BROADCAST]), counts.of(&[10])), ((4, 345), (1, 7)));
        assert_eq!(counts.of(&[BROADCAST, 10, 200]), (5, 352));
    }

    #[test]
    fn a_letter_counts_until_it_is_dropped() {
        let mailbox = Mailbox::default();
        let (one, two) = (mailbox.letter(), mailbox.letter());
        assert_eq!(mailbox.depth(), 2);
        drop(one);
        drop(two);
        assert_eq!(mailbox.depth(), 0);
    }
}
