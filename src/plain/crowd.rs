//! Who is in which room of one namespace on this node.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};

use super::{MemberId, Sink};

/// From this many members on, a crowd keeps an index of places. Below it, a look at each is as fast and costs nothing.
const INDEX_FROM: usize = 32;

/// One member in a crowd.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) id: MemberId,
    /// What its handle and everyone who finds it in a crowd share.
    pub(super) shared: Arc<Shared>,
}

/// What there is of a member beside its number.
pub(super) struct Shared<S: ?Sized = dyn Sink> {
    /// Locked before the namespace, never after.
    pub(super) joined: Mutex<Joined>,
    /// What the user has set for it.
    pub(super) data: Mutex<Bytes>,
    /// The user's code: never called under a lock.
    pub(super) sink: S,
}

/// The rooms of a member.
#[derive(Default)]
pub(super) struct Joined {
    pub(super) rooms: HashSet<Arc<str>>,
    /// It is disconnected and joins nothing any more.
    pub(super) gone: bool,
}

impl Entry {
    pub(super) fn new(id: MemberId, sink: impl Sink) -> Self {
        Self { id, shared: Arc::new(Shared { joined: Mutex::default(), data: Mutex::default(), sink }) }
    }
}

/// The members of one room.
///
/// The list is shared with those who deliver to it, so delivering costs one reference count and holds no lock. A change
/// while somebody delivers copies the list (24 bytes and one reference count a member); otherwise it is made in place.
#[derive(Default)]
struct Crowd {
    list: Arc<Vec<Entry>>,
    /// Places in the list; empty for a crowd that never was large.
    places: HashMap<MemberId, usize>,
}

impl Crowd {
    fn add(&mut self, entry: Entry) {
        let list = Arc::make_mut(&mut self.list);
        let place = list.len();
        if !self.places.is_empty() {
            self.places.insert(entry.id, place);
        }
        list.push(entry);
        if self.places.is_empty() && list.len() >= INDEX_FROM {
            self.places = list.iter().enumerate().map(|(place, entry)| (entry.id, place)).collect();
        }
    }

    fn remove(&mut self, id: MemberId) {
        let indexed = !self.places.is_empty();
        let place =
            if indexed { self.places.remove(&id) } else { self.list.iter().position(|entry| entry.id == id) };
        let Some(place) = place else { return };
        let list = Arc::make_mut(&mut self.list);
        list.swap_remove(place);
        if let (true, Some(moved)) = (indexed, list.get(place)) {
            self.places.insert(moved.id, place);
        }
    }

    fn find(&self, id: MemberId) -> Option<&Entry> {
        if self.places.is_empty() {
            return self.list.iter().find(|entry| entry.id == id);
        }
        self.places.get(&id).and_then(|place| self.list.get(*place))
    }
}

/// The members of one namespace on this node, and its rooms. A room exists while it has members.
#[derive(Default)]
pub(super) struct Locals {
    everyone: Crowd,
    rooms: HashMap<Arc<str>, Crowd>,
}

impl Locals {
    /// Adds a member; returns whether it is the first.
    pub(super) fn connect(&mut self, entry: Entry) -> bool {
        self.everyone.add(entry);
        self.everyone.list.len() == 1
    }

    /// Removes a member, which must have left its rooms; returns whether it was the last.
    pub(super) fn disconnect(&mut self, id: MemberId) -> bool {
        self.everyone.remove(id);
        self.everyone.list.is_empty()
    }

    /// Adds a member to a room that it is not in; returns whether it is the first, and the shared name of the room.
    pub(super) fn join(&mut self, room: &str, entry: Entry) -> (bool, Arc<str>) {
        if let Some((name, crowd)) = self.rooms.get_key_value_mut(room) {
            crowd.add(entry);
            return (false, Arc::clone(name));
        }
        let name: Arc<str> = room.into();
        let mut crowd = Crowd::default();
        crowd.add(entry);
        self.rooms.insert(Arc::clone(&name), crowd);
        (true, name)
    }

    /// Removes a member from a room that it is in; returns whether it was the last.
    pub(super) fn leave(&mut self, room: &str, id: MemberId) -> bool {
        let Some(crowd) = self.rooms.get_mut(room) else { return false };
        crowd.remove(id);
        let last = crowd.list.is_empty();
        if last {
            self.rooms.remove(room);
        }
        last
    }

    /// All members.
    pub(super) fn everyone(&self) -> Arc<Vec<Entry>> {
        Arc::clone(&self.everyone.list)
    }

    /// One member.
    pub(super) fn member(&self, id: MemberId) -> Option<Entry> {
        self.everyone.find(id).cloned()
    }

    /// The rooms, each with its number of members.
    pub(super) fn rooms(&self) -> impl Iterator<Item = (&str, usize)> {
        self.rooms.iter().map(|(room, crowd)| (&**room, crowd.list.len()))
    }

    /// How many members and rooms there are.
    pub(super) fn census(&self) -> (usize, usize) {
        (self.everyone.list.len(), self.rooms.len())
    }

    /// The members of a room, when there are any.
    pub(super) fn room(&self, room: &str) -> Option<Arc<Vec<Entry>>> {
        self.rooms.get(room).map(|crowd| Arc::clone(&crowd.list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64) -> Entry {
        Entry::new(MemberId(id), |_| {})
    }

    fn ids(crowd: &Crowd) -> Vec<u64> {
        let mut ids: Vec<u64> = crowd.list.iter().map(|entry| entry.id.0).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn a_crowd_agrees_with_a_set_at_any_size() {
        let (mut crowd, mut model) = (Crowd::default(), std::collections::BTreeSet::new());
        let mut state = 7u64;
        for step in 0..4_000 {
            // A small generator of our own: the run is the same every time.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (state >> 33) % 100;
            let growing = step % 1_000 < 500;
            if growing && model.insert(id) {
                crowd.add(entry(id));
            } else if !growing && model.remove(&id) {
                crowd.remove(MemberId(id));
            }
            assert_eq!(ids(&crowd), model.iter().copied().collect::<Vec<_>>(), "step {step}");
            assert_eq!(crowd.find(MemberId(id)).map(|entry| entry.id.0), model.get(&id).copied());
        }
    }

    #[test]
    fn a_list_in_use_does_not_change_under_its_user() {
        let mut locals = Locals::default();
        assert!(locals.join("r", entry(1)).0);
        let seen = locals.room("r").expect("has a member");
        assert!(!locals.join("r", entry(2)).0);
        assert!(!locals.leave("r", MemberId(1)));
        assert_eq!(seen.len(), 1);
        assert!(locals.leave("r", MemberId(2)));
        assert!(locals.room("r").is_none());
    }
}
