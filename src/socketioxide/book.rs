//! What one namespace has and wants to hear: which socket holds which room here, and the namespace's place in the hub.
//!
//! Locks are taken in this order: one [`Holder`], the local adapter of socketioxide, the state of the [`Book`], the hub. A
//! holder may be dropped under any lock of socketioxide, so dropping it takes the last two only. Room events are sent under
//! the state of the book: it says in which order joins and leaves took effect.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;
use socketioxide_core::Sid;
use socketioxide_core::adapter::Room;
use tokio::time::Instant;

use super::ServerRoom;
use super::watch::Wake;
use crate::core::interest::RoomMode;
use crate::hub::{Attachment, lock};
use crate::ids::{Namespace, RoomKey};

/// How long a socket that only the adapter knows is kept although the server does not list it: it may be in a
/// middleware. socketioxide gives up on such a socket after 45 seconds by default.
pub(super) const UNLISTED_GRACE: Duration = Duration::from_secs(60);

/// The keys of the rooms of one call.
pub(super) type Keys = SmallVec<[RoomKey; 4]>;

/// What one namespace has and wants to hear. In a flood namespace rooms are held, too, but not announced.
pub(super) struct Book {
    ns: Namespace,
    mode: RoomMode,
    /// Whether the namespace is flood now: from the start, or because rooms were joined past the book.
    flooded: AtomicBool,
    state: Mutex<State>,
    /// Held while a socket gets its holder. Nothing that is dropped takes it.
    guarding: Mutex<()>,
    /// The next number of a holder.
    next_holder: AtomicU64,
    /// The length of [`State::owned`].
    owned: AtomicUsize,
    /// Wakes the check for rooms that were joined past the book, and for sockets that have gone.
    pub(super) wake: Arc<Wake>,
}

#[derive(Default)]
struct State {
    place: Option<Place>,
    /// The namespace was closed: nothing is held any more.
    closed: bool,
    /// How many holders a room has.
    rooms: HashMap<Arc<str>, usize>,
    /// The rooms of each holder that has any, by its number.
    held: HashMap<u64, Held>,
    /// Counts the changes of `rooms`.
    generation: u64,
    /// The holders that live in the extensions of their socket, and their numbers.
    guarded: HashMap<Sid, (u64, Weak<Holder>)>,
    /// The holders of sockets that were moved by the adapter and never seen by the extractor.
    owned: HashMap<Sid, Owned>,
}

struct Held {
    sid: Sid,
    rooms: HashSet<Arc<str>>,
}

struct Owned {
    holder: Arc<Holder>,
    since: Instant,
    /// Whether the server has listed the socket: when it does not any more, the socket has gone.
    listed: bool,
}

/// The namespace's place in the hub.
struct Place {
    attachment: Attachment,
    _server: Arc<ServerRoom>,
}

impl State {
    /// A socket left a room that it held; returns whether nobody holds it any more.
    fn released(&mut self, exact: bool, sid: Sid, room: &Arc<str>) -> bool {
        let Some(holders) = self.rooms.get_mut(room) else { return false };
        *holders -= 1;
        let last = *holders == 0;
        if last {
            self.rooms.remove(room);
        }
        if let Some(Place { attachment, .. }) = &self.place {
            if last && exact {
                attachment.adjust(attachment.ns().room(room), -1);
            }
            attachment.left(room, last, || name(sid));
        }
        last
    }

    /// As [`released`](Self::released), for all that a holder holds.
    fn released_all(&mut self, exact: bool, holder: u64) -> bool {
        let Some(Held { sid, rooms }) = self.held.remove(&holder) else { return false };
        self.generation += 1;
        let mut emptied = false;
        for room in &rooms {
            emptied |= self.released(exact, sid, room);
        }
        emptied
    }
}

impl Book {
    /// A book that is not open yet: nothing is wanted.
    pub(super) fn new(ns: Namespace, mode: RoomMode) -> Arc<Self> {
        Arc::new(Self {
            ns,
            mode,
            flooded: AtomicBool::new(mode == RoomMode::Flood),
            state: Mutex::default(),
            guarding: Mutex::default(),
            next_holder: AtomicU64::new(0),
            owned: AtomicUsize::new(0),
            wake: Arc::default(),
        })
    }

    /// The namespace.
    pub(super) fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// How the namespace was set up.
    pub(super) fn mode(&self) -> RoomMode {
        self.mode
    }

    /// Whether every broadcast of the namespace comes here.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Acquire)
    }

    /// Whether there are sockets that only the adapter knows.
    pub(super) fn has_owned(&self) -> bool {
        self.owned.load(Ordering::Acquire) > 0
    }

    /// The keys of some rooms.
    pub(super) fn keys<'a>(&self, rooms: impl IntoIterator<Item = &'a (impl AsRef<str> + 'a)>) -> Keys {
        rooms.into_iter().map(|room| self.ns.room(room.as_ref())).collect()
    }

    /// Takes a place in the hub: from now on rooms that are held are announced. To be called before the server knows the
    /// namespace, and so before any socket is in a room.
    pub(super) fn open(&self, attachment: Attachment, server: Arc<ServerRoom>) {
        let mut state = lock(&self.state);
        if self.is_exact() {
            attachment.adjust(self.ns.everyone(), 1);
        }
        state.place = Some(Place { attachment, _server: server });
    }

    /// Gives the place back, with all that was held: for listeners, every socket leaves its rooms. Holders that are still
    /// alive hold nothing any more.
    pub(super) fn close(&self) {
        let closed = {
            let mut state = lock(&self.state);
            let holders: Vec<u64> = state.held.keys().copied().collect();
            for holder in holders {
                state.released_all(self.is_exact(), holder);
            }
            if let (Some(place), true) = (&state.place, self.is_exact()) {
                place.attachment.adjust(self.ns.everyone(), -1);
            }
            self.owned.store(0, Ordering::Release);
            let left = State { closed: true, generation: state.generation + 1, ..State::default() };
            std::mem::replace(&mut *state, left)
        };
        // Not under the lock: holders take it when they are dropped.
        drop(closed);
        self.wake.wake();
    }

    /// From now on every broadcast of the namespace comes here. Returns whether that is new.
    pub(super) fn flood(&self) -> bool {
        let was_flooded = self.flooded.swap(true, Ordering::AcqRel);
        let state = lock(&self.state);
        !was_flooded && state.place.as_ref().is_some_and(|place| place.attachment.flood())
    }

    /// If nobody holds the room: the number of changes so far. As long as it stays, nobody holds the room.
    pub(super) fn unheld(&self, room: &str) -> Option<u64> {
        let state = lock(&self.state);
        (!state.rooms.contains_key(room)).then_some(state.generation)
    }

    /// Every room that is held, and by how many sockets. `each` runs under the lock that orders room events.
    pub(super) fn rooms_here(&self, each: &mut dyn FnMut(&str, usize)) {
        lock(&self.state).rooms.iter().for_each(|(room, holders)| each(room, *holders));
    }

    /// How many rooms are held.
    pub(super) fn room_count(&self) -> usize {
        lock(&self.state).rooms.len()
    }

    /// The holder of a socket; a new one for a socket that the extractor has not seen.
    pub(super) fn holder(self: &Arc<Self>, sid: Sid) -> Arc<Holder> {
        let mut state = lock(&self.state);
        if let Some(holder) = state.guarded.get(&sid).and_then(|(_, holder)| holder.upgrade()) {
            return holder;
        }
        let make = || Owned { holder: Holder::new(sid, self), since: Instant::now(), listed: false };
        let holder = Arc::clone(&state.owned.entry(sid).or_insert_with(make).holder);
        self.count_owned(&state);
        holder
    }

    /// The holder of a socket, if there is one.
    pub(super) fn find(&self, sid: Sid) -> Option<Arc<Holder>> {
        let state = lock(&self.state);
        let guarded = state.guarded.get(&sid).and_then(|(_, holder)| holder.upgrade());
        guarded.or_else(|| state.owned.get(&sid).map(|owned| Arc::clone(&owned.holder)))
    }

    /// Gives a socket a holder that lives as long as what `keep` makes of it. `kept` says what the socket has already;
    /// both run under one lock, so that a socket gets one holder.
    pub(super) fn guard<G>(
        self: &Arc<Self>,
        sid: Sid,
        kept: impl FnOnce() -> Option<G>,
        keep: impl FnOnce(Arc<Holder>) -> G,
    ) -> G {
        let _guarding = lock(&self.guarding);
        if let Some(kept) = kept() {
            return kept;
        }
        let holder = {
            let mut state = lock(&self.state);
            let owned = state.owned.remove(&sid);
            self.count_owned(&state);
            let holder = owned.map_or_else(|| Holder::new(sid, self), |owned| owned.holder);
            // A socket with this id was here before and has gone, whoever still keeps its holder alive.
            let before = state.guarded.insert(sid, (holder.number, Arc::downgrade(&holder)));
            let emptied = before.is_some_and(|(number, _)| state.released_all(self.is_exact(), number));
            drop(state);
            self.touch_if(emptied);
            holder
        };
        keep(holder)
    }

    /// The server lists a socket that only the adapter knows.
    pub(super) fn listed(&self, sid: Sid) {
        if let Some(owned) = lock(&self.state).owned.get_mut(&sid) {
            owned.listed = true;
        }
    }

    /// The sockets that only the adapter knows, whether the server has listed them, and whether they are past
    /// [`UNLISTED_GRACE`].
    pub(super) fn owned(&self) -> Vec<(Sid, bool, bool)> {
        let state = lock(&self.state);
        let owned = state.owned.iter();
        owned.map(|(sid, owned)| (*sid, owned.listed, owned.since.elapsed() >= UNLISTED_GRACE)).collect()
    }

    /// Forgets a socket that only the adapter knew.
    pub(super) fn disown(&self, sid: Sid) {
        let gone = {
            let mut state = lock(&self.state);
            let gone = state.owned.remove(&sid);
            self.count_owned(&state);
            gone
        };
        // Not under the lock: the drop of the last holder takes it.
        drop(gone);
    }

    fn count_owned(&self, state: &State) {
        self.owned.store(state.owned.len(), Ordering::Release);
    }

    fn is_exact(&self) -> bool {
        self.mode == RoomMode::Exact
    }

    fn touch_if(&self, emptied: bool) {
        if emptied && !self.is_flooded() {
            self.wake.touch();
        }
    }

    fn hold(&self, holder: &Holder, rooms: &[Room]) {
        if rooms.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        let State { place, closed, rooms: all, held, generation, .. } = &mut *state;
        if *closed {
            return;
        }
        *generation += 1;
        let held = held
            .entry(holder.number)
            .or_insert_with(|| Held { sid: holder.sid, rooms: HashSet::with_capacity(rooms.len()) });
        for room in rooms {
            if held.rooms.contains(&**room) {
                continue;
            }
            let (room, holders) = match all.get_key_value_mut(&**room) {
                Some((room, holders)) => (Arc::clone(room), holders),
                None => {
                    let room: Arc<str> = (&**room).into();
                    (Arc::clone(&room), all.entry(room).or_default())
                }
            };
            *holders += 1;
            if let Some(Place { attachment, .. }) = place {
                if *holders == 1 && self.is_exact() {
                    attachment.adjust(self.ns.room(&room), 1);
                }
                attachment.joined(&room, *holders == 1, || name(holder.sid));
            }
            held.rooms.insert(room);
        }
    }

    /// Returns whether a room lost its last holder.
    fn release(&self, holder: &Holder, rooms: &[Room]) -> bool {
        let mut state = lock(&self.state);
        let Some(held) = state.held.get_mut(&holder.number) else { return false };
        let gone: SmallVec<[Arc<str>; 4]> =
            rooms.iter().filter_map(|room| held.rooms.take(&**room)).collect();
        if held.rooms.is_empty() {
            state.held.remove(&holder.number);
        }
        state.generation += 1;
        let exact = self.is_exact();
        let mut emptied = false;
        for room in &gone {
            emptied |= state.released(exact, holder.sid, room);
        }
        emptied
    }

    /// As [`release`](Self::release), for all that the holder holds.
    fn release_all(&self, holder: &Holder) -> bool {
        lock(&self.state).released_all(self.is_exact(), holder.number)
    }
}

/// The id of a socket, as room events show it.
fn name(sid: Sid) -> Arc<str> {
    sid.as_str().into()
}

/// Stands for one socket while it has rooms. Dropping it gives them back.
pub(super) struct Holder {
    sid: Sid,
    /// Unique in its book: a later socket may have the same id.
    number: u64,
    /// Held while the socket joins or leaves, here and in the local adapter.
    moving: Mutex<()>,
    book: Weak<Book>,
}

impl Holder {
    fn new(sid: Sid, book: &Arc<Book>) -> Arc<Self> {
        let number = book.next_holder.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { sid, number, moving: Mutex::default(), book: Arc::downgrade(book) })
    }

    /// The id of the socket.
    pub(super) fn sid(&self) -> Sid {
        self.sid
    }

    /// Announces rooms, then makes the socket a member with `add`: a member never goes unannounced.
    pub(super) fn join(&self, book: &Book, rooms: Vec<Room>, add: impl FnOnce(Vec<Room>)) {
        let _moving = lock(&self.moving);
        book.hold(self, &rooms);
        add(rooms);
    }

    /// Takes the membership back with `del`, then the announcement. Returns whether a room lost its last holder.
    pub(super) fn leave(&self, book: &Book, rooms: &[Room], del: impl FnOnce()) -> bool {
        let _moving = lock(&self.moving);
        del();
        book.release(self, rooms)
    }

    /// As [`leave`](Self::leave), for every room of the socket.
    pub(super) fn leave_all(&self, book: &Book, del: impl FnOnce()) -> bool {
        let _moving = lock(&self.moving);
        del();
        book.release_all(self)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let Some(book) = self.book.upgrade() else { return };
        let emptied = {
            let mut state = lock(&book.state);
            // A new socket may have the same id: it has a holder of its own.
            if state.guarded.get(&self.sid).is_some_and(|(number, _)| *number == self.number) {
                state.guarded.remove(&self.sid);
            }
            state.released_all(book.is_exact(), self.number)
        };
        book.touch_if(emptied);
    }
}
