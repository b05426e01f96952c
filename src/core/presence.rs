//! Who has which rooms, by name: says when a room opens in the cluster and when it closes.
//!
//! Nodes tell their rooms one after another, a snapshot first, changes after. A room is open while at least one node has
//! it. Finding the rooms of one node looks at all of them: that happens when a snapshot ends and when a node goes.

use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

/// A node, as the caller numbers them.
pub type NodeKey = u32;

/// A room that opened or closed. Of one room they alternate, and `Opened` is the first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transition {
    /// The first node has the room.
    Opened {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
    },
    /// No node has the room any more.
    Closed {
        /// The path of the namespace.
        ns: Arc<str>,
        /// The room.
        room: Arc<str>,
    },
}

/// As many rooms as the table may hold. The room is not held, nothing is said of it, and it was counted; it opens when
/// a node says it again and there is a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("hold one more room of the cluster: the limit is {limit}")]
pub struct PresenceFull {
    /// The limit of the table, in rooms.
    pub limit: usize,
}

/// The rooms of all nodes.
///
/// * Inputs of a node, in the order in which it sent them: [`begin`](Self::begin), [`add`](Self::add),
///   [`remove`](Self::remove), [`end`](Self::end), [`gone`](Self::gone). What follows from one is appended to `out`.
/// * Getters: [`rooms`](Self::rooms), [`is_open`](Self::is_open), [`refused`](Self::refused).
///
/// Cost: 80 to 135 bytes for each room with a short name that up to two nodes have, about 16 bytes for each further node. With
/// 1,000,000 rooms `end` and `gone` take about 25 ms, and more where many rooms close.
#[derive(Debug)]
pub struct Presence {
    namespaces: HashMap<Arc<str>, HashMap<Arc<str>, Nodes>>,
    /// The snapshot of each node, counted from 1; a node without one is not listed and has 0.
    snapshots: HashMap<NodeKey, Snapshot>,
    /// Over all namespaces.
    rooms: usize,
    max_rooms: usize,
    refused: u64,
}

/// The nodes that have a room, each with the snapshot in which it said so last.
type Nodes = SmallVec<[(NodeKey, u32); 2]>;

#[derive(Debug, Clone, Copy, Default)]
struct Snapshot {
    number: u32,
    open: bool,
}

impl Presence {
    /// An empty table for at most `max_rooms` rooms over all namespaces.
    pub fn new(max_rooms: usize) -> Self {
        let (namespaces, snapshots) = (HashMap::new(), HashMap::new());
        Self { namespaces, snapshots, rooms: 0, max_rooms, refused: 0 }
    }

    /// A node begins to say all its rooms. What it does not repeat until [`end`](Self::end) is gone then. A second one
    /// replaces the first.
    pub fn begin(&mut self, node: NodeKey) {
        let snapshot = self.snapshots.entry(node).or_default();
        *snapshot = Snapshot { number: snapshot.number.wrapping_add(1), open: true };
    }

    /// A node has a room.
    ///
    /// # Errors
    /// [`PresenceFull`] when the room is new and the table is full. Nothing was changed.
    pub fn add(
        &mut self,
        node: NodeKey,
        ns: &str,
        room: &str,
        out: &mut Vec<Transition>,
    ) -> Result<(), PresenceFull> {
        let snapshot = self.snapshots.get(&node).map_or(0, |snapshot| snapshot.number);
        if let Some(nodes) = self.namespaces.get_mut(ns).and_then(|rooms| rooms.get_mut(room)) {
            match nodes.iter_mut().find(|(other, _)| *other == node) {
                Some((_, said)) => *said = snapshot,
                None => nodes.push((node, snapshot)),
            }
            return Ok(());
        }
        if self.rooms >= self.max_rooms {
            self.refused += 1;
            return Err(PresenceFull { limit: self.max_rooms });
        }
        let ns = self.namespaces.get_key_value(ns).map_or_else(|| ns.into(), |(ns, _)| Arc::clone(ns));
        let room: Arc<str> = room.into();
        let rooms = self.namespaces.entry(Arc::clone(&ns)).or_default();
        rooms.insert(Arc::clone(&room), Nodes::from_slice(&[(node, snapshot)]));
        self.rooms += 1;
        out.push(Transition::Opened { ns, room });
        Ok(())
    }

    /// A node has a room no more. Nothing happens when it had not.
    pub fn remove(&mut self, node: NodeKey, ns: &str, room: &str, out: &mut Vec<Transition>) {
        let Some((ns, rooms)) = self.namespaces.get_key_value_mut(ns) else { return };
        let Some(nodes) = rooms.get_mut(room) else { return };
        nodes.retain(|(other, _)| *other != node);
        if !nodes.is_empty() {
            return;
        }
        let ns = Arc::clone(ns);
        if let Some((room, _)) = rooms.remove_entry(room) {
            self.rooms -= 1;
            if rooms.is_empty() {
                self.namespaces.remove(&ns);
            }
            out.push(Transition::Closed { ns, room });
        }
    }

    /// A node has said all its rooms. Nothing happens when it had not begun.
    pub fn end(&mut self, node: NodeKey, out: &mut Vec<Transition>) {
        let Some(snapshot) = self.snapshots.get_mut(&node).filter(|snapshot| snapshot.open) else { return };
        snapshot.open = false;
        let number = snapshot.number;
        self.forget(|(other, said)| other == node && said != number, out);
    }

    /// A node has gone, and its rooms with it.
    pub fn gone(&mut self, node: NodeKey, out: &mut Vec<Transition>) {
        self.snapshots.remove(&node);
        self.forget(|(other, _)| other == node, out);
    }

    /// The open rooms, over all namespaces.
    pub fn rooms(&self) -> usize {
        self.rooms
    }

    /// Whether any node has the room.
    pub fn is_open(&self, ns: &str, room: &str) -> bool {
        self.namespaces.get(ns).is_some_and(|rooms| rooms.contains_key(room))
    }

    /// How often a room was not taken because the table was full.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn forget(&mut self, stale: impl Fn((NodeKey, u32)) -> bool, out: &mut Vec<Transition>) {
        let before = out.len();
        self.namespaces.retain(|ns, rooms| {
            rooms.retain(|room, nodes| {
                nodes.retain(|node| !stale(*node));
                if nodes.is_empty() {
                    out.push(Transition::Closed { ns: Arc::clone(ns), room: Arc::clone(room) });
                }
                !nodes.is_empty()
            });
            if rooms.len() < rooms.capacity() / 4 {
                rooms.shrink_to_fit();
            }
            !rooms.is_empty()
        });
        self.rooms -= out.len() - before;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn opened(ns: &str, room: &str) -> Transition {
        Transition::Opened { ns: ns.into(), room: room.into() }
    }

    fn closed(ns: &str, room: &str) -> Transition {
        Transition::Closed { ns: ns.into(), room: room.into() }
    }

    #[test]
    fn a_room_opens_with_the_first_node_and_closes_with_the_last() {
        let (mut presence, mut out) = (Presence::new(10), Vec::new());
        presence.add(1, "/", "r", &mut out).unwrap();
        presence.add(2, "/", "r", &mut out).unwrap();
        presence.add(1, "/chat", "r", &mut out).unwrap();
        presence.remove(1, "/", "r", &mut out);
        presence.remove(1, "/", "r", &mut out);
        assert_eq!(std::mem::take(&mut out), [opened("/", "r"), opened("/chat", "r")]);
        presence.gone(2, &mut out);
        assert_eq!(std::mem::take(&mut out), [closed("/", "r")]);
        presence.remove(1, "/chat", "r", &mut out);
        assert_eq!((std::mem::take(&mut out), presence.rooms()), (vec![closed("/chat", "r")], 0));
        assert!(presence.namespaces.is_empty());
    }

    #[test]
    fn what_a_snapshot_repeats_makes_no_noise() {
        let (mut presence, mut out) = (Presence::new(10), Vec::new());
        presence.add(1, "/", "stays", &mut out).unwrap();
        presence.add(1, "/", "goes", &mut out).unwrap();
        out.clear();
        presence.begin(1);
        presence.add(1, "/", "goes", &mut out).unwrap();
        // The link broke and came back.
        presence.begin(1);
        presence.add(1, "/", "stays", &mut out).unwrap();
        presence.add(1, "/", "new", &mut out).unwrap();
        assert_eq!(out, [opened("/", "new")]);
        presence.end(1, &mut out);
        presence.end(1, &mut out);
        assert_eq!(out, [opened("/", "new"), closed("/", "goes")]);
    }

    #[test]
    fn beyond_the_limit_rooms_are_counted_and_nothing_is_said_of_them() {
        let (mut presence, mut out) = (Presence::new(1), Vec::new());
        presence.add(1, "/", "a", &mut out).unwrap();
        assert_eq!(presence.add(1, "/", "b", &mut out), Err(PresenceFull { limit: 1 }));
        presence.add(2, "/", "a", &mut out).unwrap();
        presence.remove(1, "/", "b", &mut out);
        assert_eq!((presence.refused(), out.len()), (1, 1));
        presence.gone(1, &mut out);
        presence.gone(2, &mut out);
        presence.add(2, "/", "b", &mut out).unwrap();
        assert_eq!(out, [opened("/", "a"), closed("/", "a"), opened("/", "b")]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin(NodeKey),
        Add(NodeKey, u8, u8),
        Remove(NodeKey, u8, u8),
        End(NodeKey),
        Gone(NodeKey),
    }

    fn step() -> impl Strategy<Value = Step> {
        let node = || 0..3u32;
        prop_oneof![
            1 => node().prop_map(Step::Begin),
            6 => (node(), 0..2u8, 0..4u8).prop_map(|(node, ns, room)| Step::Add(node, ns, room)),
            3 => (node(), 0..2u8, 0..4u8).prop_map(|(node, ns, room)| Step::Remove(node, ns, room)),
            1 => node().prop_map(Step::End),
            1 => node().prop_map(Step::Gone),
        ]
    }

    type Rooms = BTreeMap<(String, String), BTreeSet<NodeKey>>;

    /// What a reader of the rules would write down: sets, and what each snapshot has repeated.
    #[derive(Default)]
    struct Model {
        rooms: Rooms,
        said: BTreeMap<NodeKey, BTreeSet<(String, String)>>,
    }

    impl Model {
        fn apply(&mut self, step: &Step, max_rooms: usize) {
            let name = |ns: u8, room: u8| (format!("/{ns}"), format!("r{room}"));
            match *step {
                Step::Begin(node) => _ = self.said.insert(node, BTreeSet::new()),
                Step::Add(node, ns, room) => {
                    let name = name(ns, room);
                    if self.rooms.len() < max_rooms || self.rooms.contains_key(&name) {
                        self.rooms.entry(name.clone()).or_default().insert(node);
                        self.said.entry(node).and_modify(|said| _ = said.insert(name));
                    }
                }
                Step::Remove(node, ns, room) => {
                    self.rooms.entry(name(ns, room)).and_modify(|nodes| _ = nodes.remove(&node));
                }
                Step::End(node) => {
                    let Some(said) = self.said.remove(&node) else { return };
                    for (name, nodes) in &mut self.rooms {
                        if !said.contains(name) {
                            nodes.remove(&node);
                        }
                    }
                }
                Step::Gone(node) => {
                    self.said.remove(&node);
                    self.rooms.values_mut().for_each(|nodes| _ = nodes.remove(&node));
                }
            }
            self.rooms.retain(|_, nodes| !nodes.is_empty());
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_model(
            steps in prop::collection::vec(step(), 0..200),
            max_rooms in prop_oneof![Just(3usize), Just(100)],
        ) {
            let (mut presence, mut model) = (Presence::new(max_rooms), Model::default());
            for step in steps {
                let before: BTreeSet<_> = model.rooms.keys().cloned().collect();
                model.apply(&step, max_rooms);
                let after: BTreeSet<_> = model.rooms.keys().cloned().collect();
                let mut expected: Vec<Transition> =
                    after.difference(&before).map(|(ns, room)| opened(ns, room)).collect();
                expected.extend(before.difference(&after).map(|(ns, room)| closed(ns, room)));
                let mut out = Vec::new();
                match step {
                    Step::Begin(node) => presence.begin(node),
                    Step::Add(node, ns, room) => {
                        let _ = presence.add(node, &format!("/{ns}"), &format!("r{room}"), &mut out);
                    }
                    Step::Remove(node, ns, room) => {
                        presence.remove(node, &format!("/{ns}"), &format!("r{room}"), &mut out);
                    }
                    Step::End(node) => presence.end(node, &mut out),
                    Step::Gone(node) => presence.gone(node, &mut out),
                }
                out.sort();
                expected.sort();
                prop_assert_eq!(out, expected);
                prop_assert_eq!(presence.rooms(), after.len());
                prop_assert!(after.iter().all(|(ns, room)| presence.is_open(ns, room)));
            }
        }
    }
}
