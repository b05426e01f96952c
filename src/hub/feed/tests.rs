use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::log::{DELTA_BYTES, FEW_DELTAS, cost};
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
    feed: FeedLink,
    sent: Option<u64>,
    reader: InterestReader,
}

impl Link {
    fn new(feed: &InterestFeed) -> Self {
        Self { feed: feed.link(), sent: None, reader: InterestReader::new(InterestLimits::default()) }
    }

    /// Takes over all there is. Returns the deltas, or the version and the namespaces of the snapshot.
    fn read(&mut self, feed: &InterestFeed, held: &Held) -> Result<Vec<InterestDelta>, (u64, Held)> {
        let (wire, snapshot) = match self.feed.next(self.sent) {
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
    let feed = InterestFeed::new(1_000);
    let (mut link, mut other) = (feed.link(), feed.link());
    assert!(matches!(link.next(None), Next::Snapshot));
    assert!(matches!(link.next(Some(0)), Next::Nothing));
    for version in 1..=20 {
        feed.publish(&delta(version, 1, 0)).unwrap();
    }
    assert!(matches!(link.next(Some(0)), Next::Snapshot));
    assert!(matches!(other.next(Some(19)), Next::Deltas(frames, 20) if frames.len() == 1));
    assert!(matches!(other.next(Some(20)), Next::Nothing));
}

#[test]
fn a_link_that_takes_a_snapshot_finds_the_deltas_after_it() {
    let feed = InterestFeed::new(1 << 20);
    let (mut slow, mut quick) = (feed.link(), feed.link());
    for version in 1..=30 {
        feed.publish(&delta(version, 1, 0)).unwrap();
        if version == 10 {
            assert!(matches!(slow.next(None), Next::Snapshot));
        }
        quick.next(Some(version - 1));
    }
    // The snapshot was made later than it was asked for.
    assert!(matches!(slow.next(Some(12)), Next::Deltas(frames, 30) if frames.len() == 18));
}

/// What the log holds: deltas, bytes, and places for deltas.
fn held(feed: &InterestFeed) -> (usize, usize, usize) {
    let log = lock(&feed.state);
    assert_eq!(log.bytes, log.deltas.iter().map(cost).sum::<usize>());
    (log.deltas.len(), log.bytes, log.deltas.capacity())
}

#[test]
fn what_all_links_have_sent_is_not_kept() {
    let feed = InterestFeed::new(1 << 20);
    for version in 1..=1_000 {
        feed.publish(&delta(version, 1, 1)).unwrap();
    }
    assert_eq!(held(&feed).0, 0, "there is no link");
    let mut links = [feed.link(), feed.link(), feed.link()];
    for version in 1_001..=100_000 {
        feed.publish(&delta(version, 1, 1)).unwrap();
        for link in &mut links {
            assert!(matches!(link.next(Some(version - 1)), Next::Deltas(frames, _) if frames.len() == 1));
        }
        assert_eq!((held(&feed).0, held(&feed).1), (0, 0), "version {version}");
    }
    assert!(held(&feed).2 <= FEW_DELTAS);
}

#[test]
fn what_is_kept_for_a_slow_link_is_bounded_and_goes_with_it() {
    const LIMIT: usize = 100_000;
    let feed = InterestFeed::new(LIMIT);
    let (mut quick, slow) = (feed.link(), feed.link());
    let most = LIMIT / (15 + DELTA_BYTES);
    for version in 1..=10_000 {
        feed.publish(&delta(version, 1, 0)).unwrap();
        quick.next(Some(version - 1));
        let (deltas, bytes, _) = held(&feed);
        assert!(deltas <= most && bytes <= LIMIT, "{deltas} deltas, {bytes} bytes");
    }
    assert!(held(&feed).0 > most / 2);
    drop(slow);
    let (deltas, bytes, places) = held(&feed);
    assert_eq!((deltas, bytes), (0, 0));
    assert!(places <= FEW_DELTAS, "{places}");
    assert!(lock(&feed.state).links.len() == 1);
}

#[test]
fn what_was_not_encoded_needs_a_snapshot() {
    let feed = InterestFeed::new(1 << 20);
    let (mut one, mut two) = (feed.link(), feed.link());
    for version in [1, 2, 4] {
        feed.publish(&delta(version, 1, 0)).unwrap();
    }
    assert!(matches!(one.next(Some(2)), Next::Snapshot));
    // A link that had a snapshot of version 3 must not count from there.
    assert!(matches!(two.next(Some(3)), Next::Deltas(frames, 4) if frames[0].len() > 16));
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
        limit_bytes in prop_oneof![Just(100usize), Just(600), Just(1 << 20)],
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
                links.push(Link::new(&feed));
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
