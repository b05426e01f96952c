//! This node's interest as frames, written once and sent to every peer.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;

use crate::core::frame::{
    FrameError, Head, InterestHead, InterestPart, KEYS_PER_FRAME, WireMode, encode_head, encode_keys,
};
use crate::core::interest::{InterestChange, InterestDelta, RoomMode};
use crate::hub::lock;
use crate::ids::Namespace;

/// The latest deltas. A link that is behind them is sent a snapshot, so a slow peer costs no memory.
pub(crate) struct InterestFeed {
    state: Mutex<Log>,
    /// Locked before `state`, by who publishes; links do not wait for it.
    names: Mutex<Names>,
    limit_bytes: usize,
}

#[derive(Default)]
struct Log {
    version: u64,
    deltas: VecDeque<Bytes>,
    bytes: usize,
}

/// The numbers of the namespaces that are advertised: on the wire they stand for the paths.
#[derive(Default)]
struct Names {
    held: HashMap<Namespace, Named>,
    /// The last number given; none is given twice.
    last: u32,
}

struct Named {
    /// 0 for none, when the numbers are used up.
    number: u32,
    mode: RoomMode,
}

impl Names {
    /// Takes note of a change and says its number.
    fn note(&mut self, change: &InterestChange) -> u32 {
        let Some(mode) = change.mode else {
            return self.held.remove(&change.ns).map_or(0, |named| named.number);
        };
        if let Some(named) = self.held.get_mut(&change.ns) {
            named.mode = mode;
            return named.number;
        }
        let number = self.last.checked_add(1).unwrap_or(0);
        self.last = self.last.max(number);
        self.held.insert(change.ns.clone(), Named { number, mode });
        number
    }

    /// The number of the namespace, if it is the only one of the delta, stays exact, and has few changes.
    fn rooms_of<'d>(&self, delta: &'d InterestDelta) -> Option<(u32, &'d InterestChange)> {
        let [change] = &delta.changes[..] else { return None };
        let named = self.held.get(&change.ns)?;
        let stays = named.mode == RoomMode::Exact && change.mode == Some(RoomMode::Exact);
        let fits = change.added.len() + change.removed.len() <= KEYS_PER_FRAME;
        (stays && fits && named.number != 0).then_some((named.number, change))
    }
}

/// What a link has to send next.
pub(crate) enum Next {
    /// It is up to date.
    Nothing,
    /// These frames, which lead to that version.
    Deltas(Vec<Bytes>, u64),
    /// The deltas it lacks are gone: it needs a snapshot.
    Snapshot,
}

/// The whole interest at one version, as frames.
#[derive(Debug, Clone)]
pub(crate) struct InterestSnapshot {
    pub(crate) version: u64,
    pub(crate) frames: Vec<Bytes>,
}

impl InterestFeed {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { state: Mutex::default(), names: Mutex::default(), limit_bytes }
    }

    /// The newest version.
    pub(crate) fn version(&self) -> u64 {
        lock(&self.state).version
    }

    /// Adds a delta. Returns its size on the wire. When it cannot be encoded, links are sent a snapshot instead.
    pub(crate) fn publish(&self, delta: &InterestDelta) -> Result<usize, FrameError> {
        let mut names = lock(&self.names);
        // Versions that are not written out are counted by both sides: not after one that was left out.
        let follows = self.version() + 1 == delta.version;
        let short = names.rooms_of(delta).filter(|_| follows);
        let frames = match short {
            Some((number, change)) => encode_rooms(number, change),
            None => {
                let parts = (InterestPart::Delta, InterestPart::DeltaEnd);
                encode_parts(&mut names, delta.version, &delta.changes, parts)
                    .map(|frames| frames.concat().into())
            }
        };
        let mut log = lock(&self.state);
        log.version = delta.version;
        if frames.is_err() || !follows {
            log.deltas.clear();
            log.bytes = 0;
        }
        let frames: Bytes = frames?;
        let size = frames.len();
        log.bytes += size;
        log.deltas.push_back(frames);
        while log.bytes > self.limit_bytes {
            let Some(oldest) = log.deltas.pop_front() else { break };
            log.bytes -= oldest.len();
        }
        Ok(size)
    }

    /// Encodes a snapshot of what was published, part by part.
    pub(crate) fn snapshot(
        &self,
        version: u64,
        chunks: &[Vec<InterestChange>],
    ) -> Result<InterestSnapshot, FrameError> {
        let changes: Vec<InterestChange> = chunks.iter().flatten().cloned().collect();
        let parts = (InterestPart::Snapshot, InterestPart::SnapshotEnd);
        let frames = encode_parts(&mut lock(&self.names), version, &changes, parts)?;
        Ok(InterestSnapshot { version, frames })
    }

    /// What a link that has sent `version` (none when it has sent nothing) has to send next.
    pub(crate) fn next(&self, sent: Option<u64>) -> Next {
        let log = lock(&self.state);
        let Some(sent) = sent else { return Next::Snapshot };
        let Ok(behind) = usize::try_from(log.version.saturating_sub(sent)) else { return Next::Snapshot };
        if behind == 0 {
            return Next::Nothing;
        }
        if behind > log.deltas.len() {
            return Next::Snapshot;
        }
        let from = log.deltas.len() - behind;
        Next::Deltas(log.deltas.range(from..).cloned().collect(), log.version)
    }
}

/// A whole delta of one namespace.
fn encode_rooms(number: u32, change: &InterestChange) -> Result<Bytes, FrameError> {
    let added = u32::try_from(change.added.len()).unwrap_or(u32::MAX);
    let mut frame = BytesMut::new();
    let keys = change.added.len() + change.removed.len();
    encode_head(&Head::Rooms { number, added }, keys * 8, &mut frame)?;
    encode_keys(&change.added, &mut frame);
    encode_keys(&change.removed, &mut frame);
    Ok(frame.freeze())
}

fn encode_parts(
    names: &mut Names,
    version: u64,
    changes: &[InterestChange],
    (more, end): (InterestPart, InterestPart),
) -> Result<Vec<Bytes>, FrameError> {
    let mut frames = Vec::with_capacity(changes.len() + 1);
    for change in changes {
        let number = names.note(change);
        let mode = match change.mode {
            None => WireMode::Gone,
            Some(RoomMode::Flood) => WireMode::Flood,
            Some(RoomMode::Exact) => WireMode::Exact,
        };
        let mut added = change.added.chunks(KEYS_PER_FRAME);
        let mut removed = change.removed.chunks(KEYS_PER_FRAME);
        let mut first = true;
        loop {
            let (plus, minus) = match added.next() {
                Some(plus) if added.len() == 0 && plus.len() + change.removed.len() <= KEYS_PER_FRAME => {
                    (plus, removed.next().unwrap_or_default())
                }
                Some(plus) => (plus, Default::default()),
                None => match removed.next() {
                    Some(minus) => (Default::default(), minus),
                    None if first => (Default::default(), Default::default()),
                    None => break,
                },
            };
            first = false;
            frames.push((change.ns.path(), number, mode, plus, minus));
        }
    }
    if frames.is_empty() {
        frames.push(("", 0, WireMode::Exact, &[], &[]));
    }
    let last = frames.len() - 1;
    frames
        .into_iter()
        .enumerate()
        .map(|(index, (ns, number, mode, plus, minus))| {
            let part = if index == last { end } else { more };
            let added = u32::try_from(plus.len()).unwrap_or(u32::MAX);
            let head = Head::Interest(InterestHead { version, part, ns, number, mode, added });
            let mut frame = BytesMut::new();
            encode_head(&head, (plus.len() + minus.len()) * 8, &mut frame)?;
            encode_keys(plus, &mut frame);
            encode_keys(minus, &mut frame);
            Ok(frame.freeze())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::core::frame::{
        FrameLimits, InterestLimits, InterestReader, InterestStep, LENGTH_BYTES, decode_head, decode_stream,
        frame_len,
    };
    use crate::ids::RoomKey;

    const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 80 * 1024, max_room_bytes: 256 };

    fn keys(n: usize) -> Vec<RoomKey> {
        (0..n as u64).map(RoomKey).collect()
    }

    fn change(path: &str, mode: Option<RoomMode>, added: usize, removed: usize) -> InterestChange {
        let ns = Namespace::new(path).unwrap();
        InterestChange { ns, mode, added: keys(added), removed: keys(removed) }
    }

    fn delta(version: u64, added: usize, removed: usize) -> InterestDelta {
        InterestDelta { version, changes: vec![change("/", Some(RoomMode::Exact), added, removed)] }
    }

    /// One side of a link: what it was sent, and what it made of it.
    struct Link {
        sent: Option<u64>,
        reader: InterestReader,
    }

    impl Link {
        fn new() -> Self {
            Self { sent: None, reader: InterestReader::new(InterestLimits::default()) }
        }

        /// Takes over all there is. Returns the deltas, or the version and the namespaces of the snapshot.
        fn read(&mut self, feed: &InterestFeed, held: &Held) -> Result<Vec<InterestDelta>, (u64, Held)> {
            let (wire, snapshot) = match feed.next(self.sent) {
                Next::Nothing => return Ok(Vec::new()),
                Next::Deltas(frames, version) => {
                    self.sent = Some(version);
                    (frames.concat(), false)
                }
                Next::Snapshot => {
                    let changes = held.iter().map(|(path, mode)| change(path, Some(*mode), 3, 0)).collect();
                    let snapshot = feed.snapshot(feed.version(), &[changes]).unwrap();
                    self.sent = Some(snapshot.version);
                    (snapshot.frames.concat(), true)
                }
            };
            let (mut deltas, mut shown, mut at) = (Vec::new(), Held::new(), 0);
            while let Some(length) = frame_len(&wire[at..], &LIMITS).unwrap() {
                let frame = &wire[at + LENGTH_BYTES..at + LENGTH_BYTES + length];
                at += LENGTH_BYTES + length;
                match decode_head(frame, &LIMITS).unwrap() {
                    (Head::Interest(head), used) => match self.reader.part(&head, &frame[used..]).unwrap() {
                        InterestStep::More => {}
                        InterestStep::Delta(delta) => deltas.push(delta),
                        InterestStep::Snapshot { change, .. } => {
                            shown.extend(change.map(|c| (c.ns.path().to_owned(), c.mode.unwrap())));
                        }
                    },
                    (Head::Rooms { number, added }, used) => {
                        deltas.push(self.reader.rooms(number, added, &frame[used..]).unwrap());
                    }
                    (other, _) => panic!("{other:?}"),
                }
            }
            if snapshot { Err((self.sent.unwrap(), shown)) } else { Ok(deltas) }
        }
    }

    type Held = BTreeMap<String, RoomMode>;

    #[test]
    fn a_link_behind_the_log_needs_a_snapshot() {
        let feed = InterestFeed::new(200);
        assert!(matches!(feed.next(None), Next::Snapshot));
        assert!(matches!(feed.next(Some(0)), Next::Nothing));
        for version in 1..=20 {
            feed.publish(&delta(version, 1, 0)).unwrap();
        }
        assert!(matches!(feed.next(Some(0)), Next::Snapshot));
        assert!(matches!(feed.next(Some(19)), Next::Deltas(frames, 20) if frames.len() == 1));
        assert!(matches!(feed.next(Some(20)), Next::Nothing));
    }

    #[test]
    fn what_was_not_encoded_needs_a_snapshot() {
        let feed = InterestFeed::new(1 << 20);
        for version in [1, 2, 4] {
            feed.publish(&delta(version, 1, 0)).unwrap();
        }
        assert!(matches!(feed.next(Some(2)), Next::Snapshot));
        // A link that had a snapshot of version 3 must not count from there.
        assert!(matches!(feed.next(Some(3)), Next::Deltas(frames, 4) if frames[0].len() > 16));
    }

    #[test]
    fn large_deltas_are_cut_into_frames_within_the_limit() {
        for (added, removed, frames) in [(0, 0, 1), (3, 3, 1), (20_000, 9_000, 5), (0, 8_193, 2)] {
            let delta = delta(1, added, removed);
            let parts = (InterestPart::Delta, InterestPart::DeltaEnd);
            let parts = encode_parts(&mut Names::default(), 1, &delta.changes, parts).unwrap();
            assert_eq!(decode_stream(&parts.concat(), &LIMITS), Ok(frames), "{added} {removed}");
        }
    }

    #[test]
    fn a_join_costs_at_most_16_bytes() {
        let feed = InterestFeed::new(1 << 20);
        let bytes = feed.publish(&delta(1, 1000, 0)).unwrap();
        assert!(bytes <= 16 * 1000, "{bytes} together");
        let long = format!("/{}", "n".repeat(200));
        let mode = Some(RoomMode::Exact);
        feed.publish(&InterestDelta { version: 2, changes: vec![change(&long, mode, 0, 0)] }).unwrap();
        for version in 3..1000 {
            let changes = vec![change(&long, mode, 1, 0)];
            assert_eq!(feed.publish(&InterestDelta { version, changes }), Ok(15), "alone");
        }
    }

    #[test]
    fn numbers_are_given_once_and_not_beyond_the_last() {
        let mut names = Names::default();
        let flood = Some(RoomMode::Flood);
        assert_eq!(names.note(&change("/a", flood, 0, 0)), 1);
        assert_eq!(names.note(&change("/a", None, 0, 0)), 1);
        assert_eq!(names.note(&change("/a", None, 0, 0)), 0);
        assert_eq!(names.note(&change("/a", flood, 0, 0)), 2);
        names.last = u32::MAX;
        assert_eq!([names.note(&change("/b", flood, 0, 0)), names.note(&change("/c", flood, 0, 0))], [0, 0]);
        assert!(
            names.rooms_of(&InterestDelta { version: 1, changes: vec![change("/b", flood, 1, 0)] }).is_none()
        );
    }

    fn modes() -> impl Strategy<Value = Option<RoomMode>> {
        prop_oneof![1 => Just(None), 1 => Just(Some(RoomMode::Flood)), 6 => Just(Some(RoomMode::Exact))]
    }

    proptest! {
        /// Whatever changes, each link hears the deltas that were published since its snapshot, and nothing else.
        #[test]
        fn links_hear_what_was_published(
            steps in proptest::collection::vec(
                (proptest::collection::vec((0..3u8, modes(), 0..4usize, 0..4usize), 1..3), any::<bool>(), 0..4usize),
                1..60,
            ),
            limit_bytes in prop_oneof![Just(100usize), Just(1 << 20)],
        ) {
            let feed = InterestFeed::new(limit_bytes);
            let (mut held, mut published, mut links) = (Held::new(), Vec::new(), Vec::new());
            for (version, (changes, new_link, reads)) in (1..).zip(steps) {
                let mut seen = BTreeSet::new();
                let changes: Vec<_> = changes
                    .into_iter()
                    .filter(|(ns, ..)| seen.insert(*ns))
                    .map(|(ns, mode, added, removed)| change(&format!("/{ns}"), mode, added, removed))
                    .collect();
                for change in &changes {
                    let path = change.ns.path().to_owned();
                    match change.mode {
                        Some(mode) => held.insert(path, mode),
                        None => held.remove(&path),
                    };
                }
                let delta = InterestDelta { version, changes };
                feed.publish(&delta).unwrap();
                published.push(delta);
                if new_link {
                    links.push(Link::new());
                }
                for link in links.iter_mut().rev().take(reads) {
                    let from = link.sent.unwrap_or(0) as usize;
                    match link.read(&feed, &held) {
                        Ok(deltas) => prop_assert_eq!(&deltas[..], &published[from..]),
                        Err(snapshot) => prop_assert_eq!(snapshot, (version, held.clone())),
                    }
                    prop_assert_eq!(link.sent, Some(version));
                }
            }
        }
    }
}
