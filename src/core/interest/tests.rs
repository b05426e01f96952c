use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::RoomMode::{Exact, Flood};
use super::*;

fn ns(path: &str) -> Namespace {
    Namespace::new(path).unwrap()
}

fn interest(linger_ms: u64) -> Interest {
    Interest::new(InterestConfig { linger_ms, ..InterestConfig::default() })
}

/// What a peer makes of deltas and snapshots.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen(BTreeMap<String, (RoomMode, BTreeSet<u64>)>);

impl Seen {
    fn apply(&mut self, changes: &[InterestChange]) {
        for change in changes {
            let Some(mode) = change.mode else {
                self.0.remove(change.ns.path());
                continue;
            };
            let (held, rooms) = self.0.entry(change.ns.path().into()).or_insert((mode, BTreeSet::new()));
            if std::mem::replace(held, mode) != mode || mode == Flood {
                rooms.clear();
            }
            for room in &change.removed {
                assert!(rooms.remove(&room.0), "removed a room that was not there");
            }
            for room in &change.added {
                assert!(rooms.insert(room.0), "added a room that was there");
            }
        }
    }

    fn of(interest: &Interest, chunk: usize) -> Self {
        let mut seen = Self::default();
        for changes in interest.snapshot(chunk) {
            let weight: usize = changes.iter().map(|c| c.added.len() + namespace_weight(&c.ns)).sum();
            assert!(weight <= chunk.max(1) + 34, "a chunk of {weight}");
            seen.apply(&changes);
        }
        seen
    }

    fn wants(&self, ns: &Namespace, room: RoomKey) -> bool {
        self.0.get(ns.path()).is_some_and(|(mode, rooms)| *mode == Flood || rooms.contains(&room.0))
    }

    fn digest(&self) -> u64 {
        self.0.iter().fold(0, |sum, (path, (mode, rooms))| {
            let ns = ns(path);
            let rooms = rooms.iter().fold(0u64, |sum, room| sum.wrapping_add(room_digest(&ns, *room)));
            sum.wrapping_add(namespace_digest(&ns, *mode)).wrapping_add(rooms)
        })
    }
}

#[test]
fn one_tick_is_one_delta() {
    let (mut mine, chat) = (interest(2000), ns("/chat"));
    mine.attach(&chat, Exact);
    mine.adjust(&chat, chat.room("a"), 3);
    mine.adjust(&chat, chat.room("b"), 1);
    mine.adjust(&chat, chat.room("b"), -1);
    let delta = mine.flush(0).unwrap();
    assert_eq!(delta.version, 1);
    assert_eq!(
        delta.changes,
        [InterestChange {
            ns: chat.clone(),
            mode: Some(Exact),
            added: vec![chat.room("a")],
            removed: vec![]
        }]
    );
    assert_eq!((mine.flush(0), mine.version(), mine.rooms(), mine.namespaces()), (None, 1, 1, 1));
}

#[test]
fn a_room_lingers_and_comes_back_for_free() {
    let (mut mine, chat) = (interest(2000), ns("/chat"));
    mine.attach(&chat, Exact);
    mine.adjust(&chat, chat.room("a"), 1);
    mine.flush(0).unwrap();
    mine.adjust(&chat, chat.room("a"), -1);
    assert_eq!((mine.flush(100), mine.next_flush_ms()), (None, Some(2100)));
    mine.adjust(&chat, chat.room("a"), 1);
    assert_eq!(mine.flush(200), None);
    mine.adjust(&chat, chat.room("a"), -1);
    assert_eq!(mine.flush(1500), None);
    assert_eq!(mine.flush(2100), None, "the first wait was cut short and says nothing");
    assert_eq!((mine.rooms(), mine.next_flush_ms()), (1, Some(3500)));
    let delta = mine.flush(3500).unwrap();
    assert_eq!(delta.changes[0].removed, [chat.room("a")]);
    assert_eq!((mine.rooms(), mine.next_flush_ms(), mine.flush(9000)), (0, None, None));
}

#[test]
fn who_leaves_gives_up_empty_rooms_at_once() {
    let (mut mine, chat) = (interest(2000), ns("/chat"));
    mine.attach(&chat, Exact);
    for room in ["a", "b", "c"] {
        mine.adjust(&chat, chat.room(room), 1);
    }
    mine.flush(0).unwrap();
    mine.adjust(&chat, chat.room("a"), -1);
    assert_eq!(mine.flush(100), None);
    mine.adjust(&chat, chat.room("b"), -1);
    mine.stop_lingering();
    let mut removed = mine.flush(100).unwrap().changes.remove(0).removed;
    removed.sort();
    let mut gone = vec![chat.room("a"), chat.room("b")];
    gone.sort();
    assert_eq!((removed, mine.rooms(), mine.next_flush_ms()), (gone, 1, None));
    mine.adjust(&chat, chat.room("c"), -1);
    assert_eq!(mine.flush(100).unwrap().changes[0].removed, [chat.room("c")]);
}

#[test]
fn flood_wins_and_rooms_are_right_again_afterwards() {
    let (mut mine, chat) = (interest(0), ns("/chat"));
    mine.attach(&chat, Exact);
    mine.attach(&chat, Exact);
    mine.adjust(&chat, chat.room("a"), 1);
    mine.flush(0).unwrap();
    mine.switch_to_flood(&chat);
    mine.adjust(&chat, chat.room("b"), 1);
    let delta = mine.flush(0).unwrap();
    assert_eq!(
        delta.changes,
        [InterestChange { ns: chat.clone(), mode: Some(Flood), added: vec![], removed: vec![] }]
    );
    assert_eq!((mine.rooms(), mine.mode(&chat)), (0, Some(Flood)));
    mine.adjust(&chat, chat.room("a"), -1);
    mine.adjust(&chat, chat.room("c"), 1);
    assert_eq!(mine.flush(0), None);
    mine.detach(&chat, Flood);
    let mut added = mine.flush(0).unwrap().changes.remove(0).added;
    added.sort();
    let mut wanted = vec![chat.room("b"), chat.room("c")];
    wanted.sort();
    assert_eq!(added, wanted);
}

#[test]
fn a_late_release_takes_nothing_from_a_new_holder() {
    let (mut mine, chat) = (interest(0), ns("/chat"));
    mine.attach(&chat, Exact);
    mine.adjust(&chat, chat.room("a"), 1);
    mine.flush(0).unwrap();
    mine.detach(&chat, Exact);
    assert_eq!(mine.flush(0).unwrap().changes[0].mode, None);
    mine.attach(&chat, Exact);
    mine.adjust(&chat, chat.room("a"), 1);
    mine.flush(0).unwrap();
    mine.adjust(&chat, chat.room("a"), -1);
    assert_eq!((mine.flush(0), mine.rooms()), (None, 1));
}

#[test]
fn too_many_rooms_become_flood() {
    let mut mine = Interest::new(InterestConfig { max_rooms: 10, linger_ms: 0 });
    let (small, large) = (ns("/small"), ns("/large"));
    mine.attach(&small, Exact);
    mine.attach(&large, Exact);
    for room in 0..5 {
        mine.adjust(&small, RoomKey(room), 1);
        mine.adjust(&large, RoomKey(room), 1);
    }
    mine.flush(0).unwrap();
    assert_eq!((mine.rooms(), mine.take_overflowed()), (10, vec![]));
    mine.adjust(&large, RoomKey(5), 1);
    assert_eq!(mine.flush(0).unwrap().changes[0].mode, Some(Flood));
    assert_eq!((mine.rooms(), mine.take_overflowed()), (5, vec![large.clone()]));
    assert!(mine.take_overflowed().is_empty());
    for room in 0..6 {
        mine.adjust(&large, RoomKey(room), -1);
    }
    mine.detach(&large, Exact);
    mine.flush(0).unwrap();
    mine.attach(&large, Exact);
    mine.flush(0).unwrap();
    assert_eq!(mine.mode(&large), Some(Exact), "a fresh start after the last holder");
}

#[test]
fn flood_by_too_many_rooms_ends_when_they_are_half_as_many() {
    let mut mine = Interest::new(InterestConfig { max_rooms: 10, linger_ms: 0 });
    let (small, large) = (ns("/small"), ns("/large"));
    mine.attach(&small, Exact);
    mine.attach(&large, Exact);
    mine.adjust(&small, RoomKey(0), 1);
    for room in 0..11 {
        mine.adjust(&large, RoomKey(room), 1);
    }
    mine.flush(0).unwrap();
    assert_eq!((mine.mode(&large), mine.take_overflowed().len()), (Some(Flood), 1));
    for room in 0..6 {
        mine.adjust(&large, RoomKey(room), -1);
        assert_eq!(mine.flush(0), None, "{} and one more are over half of the limit", 10 - room);
    }
    mine.adjust(&large, RoomKey(6), -1);
    let change = mine.flush(0).unwrap().changes.remove(0);
    assert_eq!((change.mode, change.added.len()), (Some(Exact), 4));
    assert_eq!(mine.rooms(), 5);
    // Up to the limit it stays exact, and over it, it floods anew.
    for room in 0..6 {
        mine.adjust(&large, RoomKey(room), 1);
        mine.flush(0);
    }
    assert_eq!((mine.mode(&large), mine.take_overflowed().len()), (Some(Flood), 1));
}

#[test]
fn nothing_stays_of_namespaces_that_went() {
    let mut mine = interest(0);
    for i in 0..10_000 {
        let ns = ns(&format!("/game-{i}"));
        mine.attach(&ns, Exact);
        mine.adjust(&ns, ns.everyone(), 1);
        mine.flush(i).unwrap();
        mine.detach(&ns, Exact);
        mine.flush(i).unwrap();
        mine.adjust(&ns, ns.everyone(), -1);
    }
    assert_eq!((mine.spaces.len(), mine.digest(), mine.dirty.len(), mine.lingering.len()), (0, 0, 0, 0));
}

#[derive(Clone, Debug)]
enum Op {
    Attach(usize, bool),
    Detach(usize, usize),
    Switch(usize),
    Hold(usize, u64, i64),
    Release(usize),
    Flush(u64),
    Snapshot(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..3usize, any::<bool>()).prop_map(|(n, flood)| Op::Attach(n, flood)),
        2 => (0..3usize, any::<usize>()).prop_map(|(n, pick)| Op::Detach(n, pick)),
        1 => (0..3usize).prop_map(Op::Switch),
        8 => (0..3usize, 0..6u64, 1..3i64).prop_map(|(n, r, by)| Op::Hold(n, r, by)),
        8 => any::<usize>().prop_map(Op::Release),
        6 => (0..60u64).prop_map(Op::Flush),
        1 => (1..40usize).prop_map(Op::Snapshot),
    ]
}

proptest! {
    #[test]
    fn follows_a_plain_model(
        ops in proptest::collection::vec(op(), 1..120),
        linger_ms in prop_oneof![Just(0), Just(50)],
        max_rooms in prop_oneof![Just(4usize), Just(1000)],
    ) {
        let mut mine = Interest::new(InterestConfig { linger_ms, max_rooms });
        let spaces = ["/", "/chat", "/a-namespace-with-a-longer-path"].map(ns);
        let mut attached: [Vec<RoomMode>; 3] = Default::default();
        let mut holds: Vec<(usize, RoomKey, i64)> = Vec::new();
        // The peers that came in at some time, and follow the deltas since.
        let mut peers = vec![Seen::default()];
        let mut now_ms = 0;
        for op in ops {
            match op {
                Op::Attach(n, flood) => {
                    let mode = if flood { Flood } else { Exact };
                    mine.attach(&spaces[n], mode);
                    attached[n].push(mode);
                }
                Op::Detach(n, pick) if !attached[n].is_empty() => {
                    let pick = pick % attached[n].len();
                    mine.detach(&spaces[n], attached[n].remove(pick));
                }
                Op::Switch(n) => {
                    let Some(exact) = attached[n].iter_mut().find(|mode| **mode == Exact) else { continue };
                    *exact = Flood;
                    mine.switch_to_flood(&spaces[n]);
                }
                Op::Hold(n, room, by) => {
                    let room = spaces[n].room(&room.to_string());
                    mine.adjust(&spaces[n], room, by);
                    holds.push((n, room, by));
                }
                Op::Release(pick) if !holds.is_empty() => {
                    let (n, room, by) = holds.swap_remove(pick % holds.len());
                    mine.adjust(&spaces[n], room, -by);
                }
                Op::Snapshot(chunk) => {
                    let seen = Seen::of(&mine, chunk);
                    prop_assert_eq!(&seen, &peers[0]);
                    peers.push(seen);
                }
                Op::Flush(later) => {
                    now_ms += later;
                    let version = mine.version();
                    if let Some(delta) = mine.flush(now_ms) {
                        prop_assert_eq!(delta.version, version + 1);
                        peers.iter_mut().for_each(|peer| peer.apply(&delta.changes));
                    }
                    prop_assert!(mine.next_flush_ms().is_none_or(|at| at > now_ms));
                    for (n, ns) in spaces.iter().enumerate() {
                        let mode = mine.mode(ns);
                        prop_assert_eq!(mode.is_none(), attached[n].is_empty());
                        prop_assert!(mode != Some(Exact) || !attached[n].contains(&Flood));
                        prop_assert!(mode != Some(Flood) || attached[n].contains(&Flood) || max_rooms == 4);
                    }
                    for (n, room, _) in &holds {
                        prop_assert!(attached[*n].is_empty() || peers[0].wants(&spaces[*n], *room));
                    }
                }
                _ => {}
            }
            prop_assert!(mine.rooms() <= max_rooms);
            prop_assert_eq!(mine.rooms(), peers[0].0.values().map(|(_, rooms)| rooms.len()).sum::<usize>());
            prop_assert_eq!(mine.namespaces(), peers[0].0.len());
            prop_assert_eq!(mine.digest(), peers[0].digest());
            prop_assert!(peers.iter().all(|peer| *peer == peers[0]));
        }
        // Once all is released and waited for, only attached namespaces are left.
        for (n, room, by) in holds {
            mine.adjust(&spaces[n], room, -by);
        }
        mine.flush(now_ms);
        mine.flush(now_ms + linger_ms);
        prop_assert_eq!(mine.rooms(), 0);
        prop_assert_eq!(mine.spaces.len(), attached.iter().filter(|modes| !modes.is_empty()).count());
    }
}
