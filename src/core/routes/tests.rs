use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;

use proptest::prelude::*;

use super::RoomMode::{Exact, Flood};
use super::*;
use crate::core::interest::{Interest, InterestConfig};

fn ns(path: &str) -> Namespace {
    Namespace::new(path).unwrap()
}

fn change(ns: &Namespace, mode: Option<RoomMode>, added: &[RoomKey], removed: &[RoomKey]) -> InterestChange {
    InterestChange { ns: ns.clone(), mode, added: added.to_vec(), removed: removed.to_vec() }
}

/// Brings a peer to a state by a snapshot.
fn snapshot(routes: &Routes, slot: PeerSlot, version: u64, changes: Vec<InterestChange>) {
    routes.snapshot_begin(slot, version).unwrap();
    routes.snapshot_chunk(slot, changes).unwrap();
    routes.snapshot_end(slot).unwrap();
}

fn lookup(routes: &Routes, ns: &Namespace, rooms: &[RoomKey]) -> Vec<u16> {
    let mut out = PeerMask::new();
    out.insert(PeerSlot(999));
    routes.lookup(ns, rooms, &mut out);
    out.iter().map(|slot| slot.0).collect()
}

fn keys(ns: &Namespace, range: std::ops::Range<u32>) -> Vec<RoomKey> {
    range.map(|i| ns.room(&i.to_string())).collect()
}

#[test]
fn an_unknown_peer_gets_everything() {
    let (routes, chat) = (Routes::new(RoutesConfig::default()), ns("/chat"));
    let (a, b) = (PeerSlot(0), PeerSlot(64));
    routes.add_peer(a);
    routes.add_peer(b);
    assert_eq!(lookup(&routes, &chat, &[chat.room("x")]), [0, 64]);
    routes.snapshot_begin(a, 7).unwrap();
    routes.snapshot_chunk(a, vec![change(&chat, Some(Exact), &[chat.room("x")], &[])]).unwrap();
    assert_eq!(lookup(&routes, &chat, &[chat.room("y")]), [0, 64]);
    assert_eq!((routes.version(a), routes.rooms(a)), (None, 0));
    routes.snapshot_end(a).unwrap();
    assert_eq!((routes.version(a), routes.rooms(a), routes.rows()), (Some(7), 1, 1));
    assert_eq!(routes.peers(), PeerCounts { known: 1, unknown: 1 });
    assert_eq!(lookup(&routes, &chat, &[chat.room("y")]), [64]);
    assert_eq!(lookup(&routes, &chat, &[chat.room("y"), chat.room("x")]), [0, 64]);
    assert_eq!(lookup(&routes, &chat, &[]), [64], "it never said that it has anyone there");
    assert_eq!(lookup(&routes, &ns("/other"), &[]), [64]);
    routes.set_unknown(a);
    assert_eq!(lookup(&routes, &ns("/other"), &[]), [0, 64]);
    routes.remove_peer(b);
    routes.remove_peer(a);
    assert_eq!(lookup(&routes, &chat, &[chat.room("x")]), [0u16; 0]);
}

#[test]
fn errors_leave_the_peer_as_documented() {
    let routes = Routes::new(RoutesConfig { max_rooms_per_peer: 3, max_namespaces_per_peer: 2 });
    let (chat, a) = (ns("/chat"), PeerSlot(2));
    let delta = |version, rooms| InterestDelta {
        version,
        changes: vec![change(&chat, Some(Exact), &keys(&chat, rooms), &[])],
    };
    assert_eq!(routes.apply_delta(a, &delta(1, 0..1)), Err(RouteError::NoPeer(a)));
    routes.add_peer(a);
    assert_eq!(routes.apply_delta(a, &delta(1, 0..1)), Err(RouteError::NoSnapshot(a)));
    assert_eq!(routes.snapshot_end(a), Err(RouteError::NoSnapshot(a)));
    routes.snapshot_begin(a, 0).unwrap();
    assert_eq!(routes.apply_delta(a, &delta(1, 0..1)), Err(RouteError::SnapshotOpen(a)));
    routes.snapshot_end(a).unwrap();
    routes.apply_delta(a, &delta(1, 0..2)).unwrap();
    assert_eq!(routes.apply_delta(a, &delta(3, 2..3)), Err(RouteError::VersionGap { held: 1, got: 3 }));
    assert_eq!((routes.version(a), lookup(&routes, &ns("/other"), &[])), (None, vec![2]));
    snapshot(&routes, a, 5, vec![change(&chat, Some(Exact), &keys(&chat, 0..3), &[])]);
    let over = routes.apply_delta(a, &delta(6, 3..4)).unwrap_err();
    assert_eq!(over, RouteError::TooManyRooms { slot: a, rooms: 4, namespaces: 1 });
    assert_eq!((routes.version(a), routes.rooms(a), routes.digest(a)), (None, 0, 0));
    routes.snapshot_begin(a, 6).unwrap();
    let chunk = vec![change(&chat, Some(Exact), &keys(&chat, 0..4), &[])];
    assert!(routes.snapshot_chunk(a, chunk).is_err());
    assert_eq!(routes.snapshot_end(a), Err(RouteError::NoSnapshot(a)));
    let all = ["/1", "/2", "/3"].map(|path| change(&ns(path), Some(Flood), &[], &[])).to_vec();
    routes.snapshot_begin(a, 6).unwrap();
    assert!(routes.snapshot_chunk(a, all).is_err());
    assert_eq!(over.to_string(), "hold the interest of slot 2: too much, 4 rooms in 1 namespaces");
}

#[test]
fn grows_shrinks_and_gives_memory_back() {
    let (routes, chat) = (Routes::new(RoutesConfig::default()), ns("/chat"));
    let (a, b) = (PeerSlot(0), PeerSlot(1));
    for slot in [a, b] {
        routes.add_peer(slot);
        snapshot(&routes, slot, 0, vec![]);
    }
    let empty = routes.bytes();
    let all = keys(&chat, 0..20_000);
    for (step, part) in all.chunks(500).enumerate() {
        let delta =
            InterestDelta { version: step as u64 + 1, changes: vec![change(&chat, Some(Exact), part, &[])] };
        routes.apply_delta(a, &delta).unwrap();
    }
    snapshot(&routes, b, 0, vec![change(&chat, Some(Exact), &all[..10_000], &[])]);
    assert_eq!((routes.rows(), routes.rooms(a)), (30_000, 20_000));
    assert!(routes.bytes() - empty < 20_000 * 20, "{} bytes", routes.bytes());
    for (i, room) in all.iter().enumerate() {
        let wanted: &[u16] = if i < 10_000 { &[0, 1] } else { &[0] };
        assert_eq!(lookup(&routes, &chat, &[*room]), wanted);
    }
    for room in keys(&chat, 20_000..21_000) {
        assert_eq!(lookup(&routes, &chat, &[room]), [0u16; 0]);
    }
    for (step, part) in all.chunks(700).enumerate() {
        let changes = vec![change(&chat, Some(Exact), &[], part)];
        routes.apply_delta(a, &InterestDelta { version: 41 + step as u64, changes }).unwrap();
    }
    assert_eq!(lookup(&routes, &chat, &all[9_999..10_001]), [1]);
    snapshot(&routes, b, 9, vec![]);
    assert!(routes.bytes() < empty + 400, "one namespace without rooms: {} bytes", routes.bytes());
    assert_eq!((routes.rows(), routes.digest(b)), (0, 0));
    snapshot(&routes, a, 99, vec![]);
    assert_eq!(routes.bytes(), empty);
}

#[test]
fn keys_that_gather_in_one_place_are_found() {
    let (routes, chat, a) = (Routes::new(RoutesConfig::default()), ns("/chat"), PeerSlot(0));
    routes.add_peer(a);
    let low: Vec<_> = (0..2000).map(|i| RoomKey(i * 2)).collect();
    let high: Vec<_> = (0..2000).map(|i| RoomKey(u64::MAX - i * 2)).collect();
    let both = [low, high].concat();
    snapshot(&routes, a, 0, vec![change(&chat, Some(Exact), &both, &[])]);
    for room in &both {
        assert_eq!(lookup(&routes, &chat, &[*room]), [0]);
        assert_eq!(lookup(&routes, &chat, &[RoomKey(room.0 ^ 1)]), [0u16; 0]);
    }
}

/// What a peer advertises, as far as the model cares.
type State = BTreeMap<usize, Option<BTreeSet<u32>>>;

#[derive(Clone, Debug)]
enum Op {
    Add(usize),
    Remove(usize),
    Unknown(usize),
    Snapshot(usize, State, bool),
    Delta(usize, Vec<(usize, Claimed)>),
    Gap(usize),
}

#[derive(Clone, Debug)]
enum Claimed {
    Gone,
    Flood,
    Exact { added: BTreeSet<u32>, removed: BTreeSet<u32> },
}

const PEERS: [PeerSlot; 5] = [PeerSlot(0), PeerSlot(1), PeerSlot(63), PeerSlot(64), PeerSlot(300)];
const PATHS: [&str; 3] = ["/", "/chat", "/news"];

fn rooms() -> impl Strategy<Value = BTreeSet<u32>> {
    prop_oneof![
        4 => proptest::collection::btree_set(0..10u32, 0..6),
        1 => (0..500u32, 0..900u32).prop_map(|(from, count)| (from..from + count).collect()),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let claimed = prop_oneof![
        1 => Just(Claimed::Gone),
        1 => Just(Claimed::Flood),
        6 => (rooms(), rooms()).prop_map(|(added, removed)| Claimed::Exact { added, removed }),
    ];
    let state = proptest::collection::btree_map(0..PATHS.len(), proptest::option::of(rooms()), 0..3);
    let whole = proptest::bool::weighted(0.8);
    let changes = proptest::collection::vec((0..PATHS.len(), claimed), 0..4);
    let peer = || 0..PEERS.len();
    prop_oneof![
        2 => peer().prop_map(Op::Add),
        1 => peer().prop_map(Op::Remove),
        1 => peer().prop_map(Op::Unknown),
        4 => (peer(), state, whole).prop_map(|(p, state, whole)| Op::Snapshot(p, state, whole)),
        8 => (peer(), changes).prop_map(|(p, changes)| Op::Delta(p, changes)),
        1 => peer().prop_map(Op::Gap),
    ]
}

#[derive(Clone, Debug, Default)]
struct Model {
    version: Option<u64>,
    state: State,
}

impl Model {
    fn wants(&self, space: usize, rooms: &[u32]) -> bool {
        let held = self.state.get(&space);
        self.version.is_none()
            || held.is_some_and(|held| {
                held.as_ref().is_none_or(|held| rooms.iter().any(|room| held.contains(room)))
            })
    }

    fn digest(&self, spaces: &[Namespace]) -> u64 {
        let mut mine = Interest::new(InterestConfig::default());
        for (space, rooms) in &self.state {
            mine.attach(&spaces[*space], if rooms.is_some() { Exact } else { Flood });
            for room in rooms.iter().flatten() {
                mine.adjust(&spaces[*space], key(&spaces[*space], *room), 1);
            }
        }
        mine.flush(0);
        mine.digest()
    }
}

/// Room 0 stands for everyone, so that lookups without rooms find it.
fn key(ns: &Namespace, room: u32) -> RoomKey {
    if room == 0 { ns.everyone() } else { ns.room(&room.to_string()) }
}

fn apply(routes: &Routes, spaces: &[Namespace], model: &mut BTreeMap<usize, Model>, op: Op) {
    let to_keys = |space: usize, rooms: &BTreeSet<u32>| -> Vec<RoomKey> {
        rooms.iter().map(|room| key(&spaces[space], *room)).collect()
    };
    match op {
        Op::Add(p) => {
            routes.add_peer(PEERS[p]);
            model.insert(p, Model::default());
        }
        Op::Remove(p) => {
            routes.remove_peer(PEERS[p]);
            model.remove(&p);
        }
        Op::Unknown(p) => {
            routes.set_unknown(PEERS[p]);
            model.entry(p).and_modify(|peer| peer.version = None);
        }
        Op::Snapshot(p, state, whole) => {
            let begun = routes.snapshot_begin(PEERS[p], 40);
            let Some(peer) = model.get_mut(&p) else {
                return assert_eq!(begun, Err(RouteError::NoPeer(PEERS[p])));
            };
            peer.version = None;
            for (space, rooms) in &state {
                let mode = if rooms.is_some() { Exact } else { Flood };
                let keys = rooms.as_ref().map(|rooms| to_keys(*space, rooms)).unwrap_or_default();
                for part in [&keys[..keys.len() / 2], &keys[keys.len() / 2..]] {
                    let chunk = vec![change(&spaces[*space], Some(mode), part, &[])];
                    routes.snapshot_chunk(PEERS[p], chunk).unwrap();
                }
            }
            if whole {
                routes.snapshot_end(PEERS[p]).unwrap();
                *peer = Model { version: Some(40), state };
            }
        }
        Op::Delta(p, changes) => {
            let Some(peer) = model.get_mut(&p) else { return };
            let version = peer.version.unwrap_or(40) + 1;
            let mut wire = Vec::new();
            let mut state = peer.state.clone();
            for (space, claimed) in changes {
                let ns = &spaces[space];
                wire.push(match claimed {
                    Claimed::Gone => {
                        state.remove(&space);
                        change(ns, None, &[], &[])
                    }
                    Claimed::Flood => {
                        state.insert(space, None);
                        change(ns, Some(Flood), &[], &[])
                    }
                    Claimed::Exact { added, removed } => {
                        let held = state.entry(space).or_default().get_or_insert_default();
                        held.retain(|room| !removed.contains(room));
                        held.extend(&added);
                        change(ns, Some(Exact), &to_keys(space, &added), &to_keys(space, &removed))
                    }
                });
            }
            let applied = routes.apply_delta(PEERS[p], &InterestDelta { version, changes: wire });
            assert_eq!(applied.is_ok(), peer.version.is_some());
            if applied.is_ok() {
                *peer = Model { version: Some(version), state };
            }
        }
        Op::Gap(p) => {
            let gap = InterestDelta { version: 9999, changes: vec![] };
            assert!(routes.apply_delta(PEERS[p], &gap).is_err());
            model.entry(p).and_modify(|peer| peer.version = None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn finds_exactly_who_needs_it(ops in proptest::collection::vec(op(), 1..50)) {
        let routes = Routes::new(RoutesConfig::default());
        let spaces = PATHS.map(ns);
        let mut model = BTreeMap::new();
        for op in ops {
            apply(&routes, &spaces, &mut model, op);
            for (space, ns) in spaces.iter().enumerate() {
                for rooms in [&[0][..], &[1], &[9], &[450], &[1399], &[2, 3], &[0, 700, 1200], &[5, 8, 499]] {
                    let keys: Vec<_> = rooms.iter().map(|room| key(ns, *room)).collect();
                    let needed: Vec<u16> = model
                        .iter()
                        .filter(|(_, peer)| peer.wants(space, rooms))
                        .map(|(p, _)| PEERS[*p].0)
                        .collect();
                    prop_assert_eq!(&lookup(&routes, ns, &keys), &needed);
                    if rooms == [0] {
                        prop_assert_eq!(&lookup(&routes, ns, &[]), &needed);
                    }
                }
            }
        }
        for (p, peer) in &model {
            prop_assert_eq!(routes.version(PEERS[*p]), peer.version);
            if peer.version.is_some() {
                prop_assert_eq!(routes.rooms(PEERS[*p]), peer.state.values().flatten().flatten().count());
                prop_assert_eq!(routes.namespaces(PEERS[*p]), peer.state.len());
                prop_assert_eq!(routes.digest(PEERS[*p]), peer.digest(&spaces));
            }
        }
        let known = model.values().filter(|peer| peer.version.is_some()).count();
        prop_assert_eq!(routes.peers(), PeerCounts { known, unknown: model.len() - known });
        for slot in PEERS {
            routes.remove_peer(slot);
        }
        prop_assert_eq!(routes.rows(), 0);
        for ns in &spaces {
            prop_assert_eq!(lookup(&routes, ns, &[]), [0u16; 0]);
            prop_assert!((0..6).all(|bank| routes.table.load().space(bank, ns).is_none()));
        }
    }
}

/// Runs `write` here while two threads look up: `read` returns whether the lookup found what it must find.
fn never_missed(routes: &Routes, read: impl Fn(&mut PeerMask, usize) -> bool + Sync, write: impl FnOnce()) {
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut out = PeerMask::new();
                    let mut missed = 0;
                    for round in 0.. {
                        missed += usize::from(!read(&mut out, round));
                        reads.fetch_add(1, Ordering::Relaxed);
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    missed
                })
            })
            .collect();
        while reads.load(Ordering::Relaxed) < 100 {
            thread::yield_now();
        }
        write();
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 0, "lookups missed a peer");
        }
    });
    assert!(reads.load(Ordering::Relaxed) > 100 && routes.writer().retired.len() <= 2);
}

#[test]
fn a_held_room_is_found_while_others_change() {
    let (routes, chat, a, b) = (Routes::new(RoutesConfig::default()), ns("/chat"), PeerSlot(3), PeerSlot(4));
    let held = chat.room("held");
    routes.add_peer(a);
    snapshot(&routes, a, 0, vec![change(&chat, Some(Exact), &[held], &[])]);
    let others = keys(&chat, 0..3000);
    let find = |out: &mut PeerMask, _| {
        routes.lookup(&chat, &[held], out);
        out.contains(a)
    };
    never_missed(&routes, find, || {
        let mut version = 0;
        for round in 0..40usize {
            // Rooms of its own come and go, with the shards: 3000 rooms at most.
            for part in others.chunks(300) {
                version += 1;
                // After a snapshot as flood this is the change back to exact, which lists all that is wanted.
                let (added, removed): (_, &[_]) = match round % 2 {
                    0 => ([part, &[held]].concat(), &[]),
                    _ => (vec![held], part),
                };
                let changes = vec![change(&chat, Some(Exact), &added, removed)];
                routes.apply_delta(a, &InterestDelta { version, changes }).unwrap();
            }
            // Another peer comes and goes with the same rooms.
            routes.add_peer(b);
            snapshot(&routes, b, 0, vec![change(&chat, Some(Exact), &others, &[])]);
            routes.remove_peer(b);
            // Its mode changes, its link breaks, its snapshot is replaced: the room is wanted throughout.
            for mode in [Flood, Exact] {
                version += 1;
                let changes = vec![change(&chat, Some(mode), &[held], &[])];
                routes.apply_delta(a, &InterestDelta { version, changes }).unwrap();
            }
            routes.set_unknown(a);
            let rooms = if round % 2 == 0 { [&others[..], &[held]].concat() } else { vec![held] };
            let mode = if round % 3 == 0 { Flood } else { Exact };
            snapshot(&routes, a, version, vec![change(&chat, Some(mode), &rooms, &[])]);
        }
    });
}

#[test]
fn a_peer_that_moves_between_rooms_is_found_in_one_of_them() {
    let (routes, chat, a) = (Routes::new(RoutesConfig::default()), ns("/chat"), PeerSlot(0));
    routes.add_peer(a);
    let filler = keys(&chat, 100..3000);
    let rooms = keys(&chat, 0..3);
    let start = [&filler[..], &rooms[..1]].concat();
    snapshot(&routes, a, 0, vec![change(&chat, Some(Exact), &start, &[])]);
    let find = |out: &mut PeerMask, round: usize| {
        let mut order = rooms.clone();
        order.rotate_left(round % 3);
        if round.is_multiple_of(2) {
            order.reverse();
        }
        routes.lookup(&chat, &order, out);
        out.contains(a)
    };
    never_missed(&routes, find, || {
        for step in 0..20_000usize {
            let (from, to) = (step % 3, (step + 1) % 3);
            let changes = vec![change(&chat, Some(Exact), &rooms[to..=to], &rooms[from..=from])];
            routes.apply_delta(a, &InterestDelta { version: step as u64 + 1, changes }).unwrap();
        }
    });
}
