//! Room events: what fronts say about their rooms becomes what listeners of the node hear.
//!
//! A front says it under the lock that makes the change, so listeners hear it in the order in which it took effect. Locks
//! are taken in this order: the sharing of a path, the lock of a front, the rooms of a path, the channel.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hashbrown::HashMap;
use smallvec::SmallVec;
use tokio::sync::broadcast;

use super::{Inbound, lock};
use crate::event::{RoomEvent, RoomEvents};

/// The channel of a node's room events.
pub(crate) struct RoomFeed {
    /// How many listeners there are: with none, nothing is made or sent.
    listeners: Arc<AtomicUsize>,
    channel: RwLock<Channel>,
    /// In events.
    capacity: usize,
}

enum Channel {
    /// Nobody has listened so far: nothing is allocated.
    Unused,
    Open(broadcast::Sender<RoomEvent>),
    /// The node has stopped.
    Stopped,
}

/// Counts a listener while it lives.
#[derive(Debug)]
pub(crate) struct Listening(Arc<AtomicUsize>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl RoomFeed {
    /// A channel that a listener may be `capacity` events behind in.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        let capacity = capacity.clamp(1, 1 << 24);
        Arc::new(Self { listeners: Arc::default(), channel: RwLock::new(Channel::Unused), capacity })
    }

    /// Events from now on. They end when the node stops.
    pub(crate) fn listen(&self) -> RoomEvents {
        let receiver = {
            let mut channel = self.channel.write().unwrap_or_else(PoisonError::into_inner);
            match &*channel {
                Channel::Open(sender) => sender.subscribe(),
                // Without a sender: it has ended.
                Channel::Stopped => broadcast::channel(1).1,
                Channel::Unused => {
                    let (sender, receiver) = broadcast::channel(self.capacity);
                    *channel = Channel::Open(sender);
                    receiver
                }
            }
        };
        // After it was subscribed: what happens after this call is heard.
        self.listeners.fetch_add(1, Ordering::Release);
        RoomEvents::new(receiver, Listening(Arc::clone(&self.listeners)))
    }

    /// Whether anyone listens.
    #[inline]
    pub(crate) fn is_heard(&self) -> bool {
        self.listeners.load(Ordering::Acquire) > 0
    }

    /// Tells whoever listens.
    pub(crate) fn send(&self, event: RoomEvent) {
        if let Channel::Open(sender) = &*self.channel.read().unwrap_or_else(PoisonError::into_inner) {
            // The last listener may have gone in this moment.
            let _ = sender.send(event);
        }
    }

    /// The node stops: listeners hear what was sent, then the end.
    pub(crate) fn stop(&self) {
        *self.channel.write().unwrap_or_else(PoisonError::into_inner) = Channel::Stopped;
    }
}

/// The rooms of one namespace on this node, over all its fronts.
///
/// With one front, which is the usual case, nothing is kept here: the first member of the front is the first of the node.
/// From the moment when a second front takes the same path, this keeps which front has which room.
pub(crate) struct PathRooms {
    ns: Arc<str>,
    feed: Arc<RoomFeed>,
    shared: AtomicBool,
    /// Held while a front takes its place.
    sharing: Mutex<()>,
    /// Who has which room. Empty while the path is not shared.
    fronts: Mutex<Fronts>,
}

/// The fronts of each room, by their id.
type Fronts = HashMap<Arc<str>, SmallVec<[u64; 2]>>;

impl PathRooms {
    pub(super) fn new(ns: &Arc<str>, feed: &Arc<RoomFeed>) -> Arc<Self> {
        Arc::new(Self {
            ns: Arc::clone(ns),
            feed: Arc::clone(feed),
            shared: AtomicBool::new(false),
            sharing: Mutex::default(),
            fronts: Mutex::default(),
        })
    }

    /// One more front takes the path beside `others`. It must have no rooms before this has returned.
    pub(super) fn share(&self, others: &[(u64, Arc<dyn Inbound>)]) {
        let _sharing = lock(&self.sharing);
        // Those that came after the first two keep their rooms here from the start.
        if self.shared.swap(true, Ordering::AcqRel) {
            return;
        }
        // From here on the others keep their changes here, too. What they have had so far is listed under their lock: a
        // change came before it and is listed, or comes after it and has seen `shared`.
        for (id, front) in others {
            front.rooms_here(&mut |room, _| {
                Self::enter(&mut lock(&self.fronts), *id, &room.into());
            });
        }
    }

    /// Each room, under the lock under which its events are told. `fronts` are those of the path.
    pub(super) fn each(&self, fronts: &[Arc<dyn Inbound>], each: &mut dyn FnMut(&str)) {
        // Nobody begins to share the path meanwhile.
        let _sharing = lock(&self.sharing);
        if self.shared.load(Ordering::Acquire) {
            // Not front by front: a room may move from one that is not listed yet to one that is.
            lock(&self.fronts).keys().for_each(|room| each(room));
            return;
        }
        fronts.iter().for_each(|front| front.rooms_here(&mut |room, _| each(room)));
    }

    /// A front that could not be asked for its rooms before can be from now on.
    pub(super) fn placed(&self) {
        // Whoever shares the path afterwards finds the front; whoever did before is seen by it.
        drop(lock(&self.sharing));
    }

    /// A member joined a room of a front, as its `first` or not.
    #[inline]
    pub(super) fn joined(&self, front: u64, room: &Arc<str>, first: bool, member: impl FnOnce() -> Arc<str>) {
        let shared = self.shared.load(Ordering::Acquire);
        if shared || self.feed.is_heard() {
            self.tell_joined(shared, front, room, first, member);
        }
    }

    /// A member left a room of a front, as its `last` or not.
    #[inline]
    pub(super) fn left(&self, front: u64, room: &Arc<str>, last: bool, member: impl FnOnce() -> Arc<str>) {
        let shared = self.shared.load(Ordering::Acquire);
        if shared || self.feed.is_heard() {
            self.tell_left(shared, front, room, last, member);
        }
    }

    #[cold]
    fn tell_joined(
        &self,
        shared: bool,
        front: u64,
        room: &Arc<str>,
        first: bool,
        member: impl FnOnce() -> Arc<str>,
    ) {
        // Held until all is sent.
        let mut fronts = shared.then(|| lock(&self.fronts));
        let created = first && fronts.as_mut().is_none_or(|fronts| Self::enter(fronts, front, room));
        if !self.feed.is_heard() {
            return;
        }
        if created {
            self.feed.send(RoomEvent::RoomCreated { ns: Arc::clone(&self.ns), room: Arc::clone(room) });
        }
        let (ns, room) = (Arc::clone(&self.ns), Arc::clone(room));
        self.feed.send(RoomEvent::RoomJoined { ns, room, socket: member() });
    }

    #[cold]
    fn tell_left(
        &self,
        shared: bool,
        front: u64,
        room: &Arc<str>,
        last: bool,
        member: impl FnOnce() -> Arc<str>,
    ) {
        let mut fronts = shared.then(|| lock(&self.fronts));
        let deleted = last && fronts.as_mut().is_none_or(|fronts| Self::go(fronts, front, room));
        if !self.feed.is_heard() {
            return;
        }
        let (ns, name) = (Arc::clone(&self.ns), Arc::clone(room));
        self.feed.send(RoomEvent::RoomLeft { ns, room: name, socket: member() });
        if deleted {
            self.feed.send(RoomEvent::RoomDeleted { ns: Arc::clone(&self.ns), room: Arc::clone(room) });
        }
    }

    /// Returns whether no other front has the room.
    fn enter(fronts: &mut Fronts, front: u64, room: &Arc<str>) -> bool {
        let of = fronts.entry(Arc::clone(room)).or_default();
        let first = of.is_empty();
        if !of.contains(&front) {
            of.push(front);
        }
        first
    }

    /// Returns whether no other front has the room.
    fn go(fronts: &mut Fronts, front: u64, room: &str) -> bool {
        // Not listed: a room of the only front, left before it was asked for its rooms.
        let Some(of) = fronts.get_mut(room) else { return true };
        of.retain(|other| *other != front);
        let last = of.is_empty();
        if last {
            fronts.remove(room);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::core::frame::BroadcastHead;

    /// A front that counts members as fronts do.
    struct Front {
        id: u64,
        path: Arc<PathRooms>,
        rooms: Mutex<HashMap<Arc<str>, usize>>,
    }

    impl Inbound for Front {
        fn deliver(&self, _: &BroadcastHead<'_>, _: &Bytes) {}

        fn rooms_here(&self, each: &mut dyn FnMut(&str, usize)) {
            lock(&self.rooms).iter().for_each(|(room, members)| each(room, *members));
        }
    }

    impl Front {
        fn new(id: u64, path: &Arc<PathRooms>) -> Arc<Self> {
            Arc::new(Self { id, path: Arc::clone(path), rooms: Mutex::default() })
        }

        fn join(&self, room: &str) {
            let (mut rooms, room) = (lock(&self.rooms), Arc::from(room));
            let members = rooms.entry(Arc::clone(&room)).or_default();
            *members += 1;
            self.path.joined(self.id, &room, *members == 1, || self.id.to_string().into());
        }

        fn leave(&self, room: &str) {
            let (mut rooms, room) = (lock(&self.rooms), Arc::from(room));
            let members = rooms.get_mut(&room).unwrap();
            *members -= 1;
            let last = *members == 0;
            if last {
                rooms.remove(&room);
            }
            self.path.left(self.id, &room, last, || self.id.to_string().into());
        }
    }

    fn path(capacity: usize) -> (Arc<RoomFeed>, Arc<PathRooms>) {
        let feed = RoomFeed::new(capacity);
        let path = PathRooms::new(&"/chat".into(), &feed);
        (feed, path)
    }

    /// The names of what was sent, then the end.
    async fn names(feed: &RoomFeed, mut events: RoomEvents) -> Vec<&'static str> {
        feed.stop();
        let mut names = Vec::new();
        while let Some(event) = events.recv().await {
            names.push(event.name());
        }
        names
    }

    #[tokio::test]
    async fn the_rooms_of_a_path_are_those_of_all_its_fronts() {
        let (feed, path) = path(100);
        let one = Front::new(1, &path);
        one.join("before");
        let events = feed.listen();
        one.join("lobby");
        // What the first front has had so far counts.
        let two = Front::new(2, &path);
        path.share(&[(1, Arc::clone(&one) as Arc<dyn Inbound>)]);
        two.join("before");
        two.join("lobby");
        one.leave("lobby");
        one.leave("before");
        two.leave("before");
        two.leave("lobby");
        one.join("lobby");
        let expected = [
            "create-room",
            "join-room",
            "join-room",
            "join-room",
            "leave-room",
            "leave-room",
            "leave-room",
            "delete-room",
            "leave-room",
            "delete-room",
            "create-room",
            "join-room",
        ];
        assert_eq!(names(&feed, events).await, expected);
    }

    #[test]
    fn the_rooms_of_a_path_are_listed_once_whoever_has_them() {
        let (_feed, path) = path(4);
        let (one, two) = (Front::new(1, &path), Front::new(2, &path));
        let fronts: [Arc<dyn Inbound>; 2] = [Arc::clone(&one) as _, Arc::clone(&two) as _];
        let listed = || {
            let mut rooms = Vec::new();
            path.each(&fronts, &mut |room| rooms.push(room.to_owned()));
            rooms.sort();
            rooms
        };
        one.join("lobby");
        assert_eq!(listed(), ["lobby"]);
        path.share(&[(1, Arc::clone(&one) as Arc<dyn Inbound>)]);
        two.join("lobby");
        two.join("hall");
        assert_eq!(listed(), ["hall", "lobby"]);
        one.leave("lobby");
        two.leave("hall");
        assert_eq!(listed(), ["lobby"]);
    }

    /// The second front comes while the first has joins and leaves under way.
    #[tokio::test]
    async fn a_path_may_become_shared_at_any_moment() {
        for _ in 0..200 {
            let (feed, path) = path(1 << 12);
            let one = Front::new(1, &path);
            let mut events = feed.listen();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..50 {
                        one.join("lobby");
                        one.leave("lobby");
                    }
                    one.join("lobby");
                });
                scope.spawn(|| {
                    let two = Front::new(2, &path);
                    path.share(&[(1, Arc::clone(&one) as Arc<dyn Inbound>)]);
                    for _ in 0..50 {
                        two.join("lobby");
                        two.leave("lobby");
                    }
                });
            });
            feed.stop();
            let (mut created, mut members) = (false, 0);
            while let Some(event) = events.recv().await {
                match event {
                    RoomEvent::RoomCreated { .. } => {
                        assert!(!created && members == 0);
                        created = true;
                    }
                    RoomEvent::RoomJoined { .. } => members += 1,
                    RoomEvent::RoomLeft { .. } => members -= 1,
                    RoomEvent::RoomDeleted { .. } => {
                        assert!(created && members == 0);
                        created = false;
                    }
                    other => panic!("{other:?}"),
                }
                assert!(members >= 0 && (created || members == 0));
            }
            assert_eq!((created, members), (true, 1));
        }
    }

    #[tokio::test]
    async fn without_a_listener_nothing_is_made() {
        let (feed, path) = path(100);
        let tell = || {
            path.joined(1, &"lobby".into(), true, || panic!("nobody listens"));
            path.left(1, &"lobby".into(), true, || panic!("nobody listens"));
        };
        tell();
        assert!(matches!(*feed.channel.read().unwrap(), Channel::Unused));
        drop(feed.listen());
        tell();
        assert!(!feed.is_heard());
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_how_many_it_missed() {
        let (feed, path) = path(4);
        let front = Front::new(1, &path);
        let (all, mut other) = (feed.listen(), feed.listen().only("/other"));
        front.join("lobby");
        (0..8).for_each(|_| front.join("lobby"));
        assert_eq!(other.recv().await, Some(RoomEvent::Missed(6)));
        let names = names(&feed, all).await;
        assert_eq!(names, ["missed", "join-room", "join-room", "join-room", "join-room"]);
        assert_eq!(other.recv().await, None, "none of them was of that namespace");
        assert_eq!(feed.listen().recv().await, None, "the node has stopped");
    }
}
