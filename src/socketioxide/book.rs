//! What one namespace wants to hear: which socket holds which room here, and the namespace's place in the hub.
//!
//! Locks are taken in this order: the rooms of one [`Holder`], the local adapter of socketioxide, the state of the
//! [`Book`], the hub. A holder may be dropped under any lock of socketioxide, so dropping it takes the last two only.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use smallvec::SmallVec;
use socketioxide_core::Sid;
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

/// What one namespace wants to hear.
pub(super) struct Book {
    ns: Namespace,
    mode: RoomMode,
    /// Whether the namespace is flood now: from the start, or because rooms were joined past the book.
    flooded: AtomicBool,
    state: Mutex<State>,
    /// Held while a socket gets its holder. Nothing that is dropped takes it.
    guarding: Mutex<()>,
    /// Wakes the check for rooms that were joined past the book.
    pub(super) wake: Arc<Wake>,
}

#[derive(Default)]
struct State {
    place: Option<Place>,
    /// How many holders a room has.
    rooms: HashMap<RoomKey, u32>,
    /// Counts the changes of `rooms`.
    generation: u64,
    /// The holders that live in the extensions of their socket.
    guarded: HashMap<Sid, Weak<Holder>>,
    /// The holders of sockets that were moved by the adapter and never seen by the extractor.
    owned: HashMap<Sid, (Arc<Holder>, Instant)>,
}

/// The namespace's place in the hub.
struct Place {
    attachment: Attachment,
    _server: Arc<ServerRoom>,
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

    /// The keys of some rooms.
    pub(super) fn keys<'a>(&self, rooms: impl IntoIterator<Item = &'a (impl AsRef<str> + 'a)>) -> Keys {
        rooms.into_iter().map(|room| self.ns.room(room.as_ref())).collect()
    }

    /// Takes a place in the hub: from now on rooms that are held are announced.
    pub(super) fn open(&self, attachment: Attachment, server: Arc<ServerRoom>) {
        let mut state = lock(&self.state);
        if self.mode == RoomMode::Exact {
            attachment.adjust(self.ns.everyone(), 1);
            state.rooms.keys().for_each(|room| attachment.adjust(*room, 1));
        }
        state.place = Some(Place { attachment, _server: server });
    }

    /// Gives the place back, with all that was announced. Holders that are still alive hold nothing any more.
    pub(super) fn close(&self) {
        let closed = {
            let mut state = lock(&self.state);
            state.generation += 1;
            std::mem::take(&mut *state)
        };
        if let (Some(place), RoomMode::Exact) = (&closed.place, self.mode) {
            place.attachment.adjust(self.ns.everyone(), -1);
            closed.rooms.keys().for_each(|room| place.attachment.adjust(*room, -1));
        }
        self.wake.wake();
    }

    /// From now on every broadcast of the namespace comes here. Returns whether that is new.
    pub(super) fn flood(&self) -> bool {
        let was_flooded = self.flooded.swap(true, Ordering::AcqRel);
        let state = lock(&self.state);
        !was_flooded && state.place.as_ref().is_some_and(|place| place.attachment.flood())
    }

    /// If nobody holds the room: the number of changes so far. As long as it stays, nobody holds the room.
    pub(super) fn unheld(&self, room: RoomKey) -> Option<u64> {
        let state = lock(&self.state);
        (!state.rooms.contains_key(&room)).then_some(state.generation)
    }

    /// The holder of a socket; a new one for a socket that the extractor has not seen.
    pub(super) fn holder(self: &Arc<Self>, sid: Sid) -> Arc<Holder> {
        let mut state = lock(&self.state);
        if let Some(holder) = state.guarded.get(&sid).and_then(Weak::upgrade) {
            return holder;
        }
        let owned = state.owned.entry(sid).or_insert_with(|| (Holder::new(sid, self), Instant::now()));
        Arc::clone(&owned.0)
    }

    /// The holder of a socket, if there is one.
    pub(super) fn find(&self, sid: Sid) -> Option<Arc<Holder>> {
        let state = lock(&self.state);
        let guarded = state.guarded.get(&sid).and_then(Weak::upgrade);
        guarded.or_else(|| state.owned.get(&sid).map(|(holder, _)| Arc::clone(holder)))
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
            let holder = owned.map_or_else(|| Holder::new(sid, self), |(holder, _)| holder);
            state.guarded.insert(sid, Arc::downgrade(&holder));
            holder
        };
        keep(holder)
    }

    /// The sockets that only the adapter knows, and whether they are past [`UNLISTED_GRACE`].
    pub(super) fn owned(&self) -> Vec<(Sid, bool)> {
        let state = lock(&self.state);
        state.owned.iter().map(|(sid, (_, since))| (*sid, since.elapsed() >= UNLISTED_GRACE)).collect()
    }

    /// Forgets a socket that only the adapter knew.
    pub(super) fn disown(&self, sid: Sid) {
        // Not under the lock: the drop of the last holder takes it.
        let gone = lock(&self.state).owned.remove(&sid);
        drop(gone);
    }

    fn hold(&self, rooms: &[RoomKey]) {
        if rooms.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        let State { place, rooms: held, generation, .. } = &mut *state;
        *generation += 1;
        for room in rooms {
            let holders = held.entry(*room).or_default();
            *holders += 1;
            if let (1, Some(place)) = (*holders, &place) {
                place.attachment.adjust(*room, 1);
            }
        }
    }

    /// Returns whether a room lost its last holder.
    fn release(&self, rooms: impl IntoIterator<Item = RoomKey>) -> bool {
        Self::release_locked(&mut lock(&self.state), rooms)
    }

    fn release_locked(state: &mut MutexGuard<'_, State>, rooms: impl IntoIterator<Item = RoomKey>) -> bool {
        let State { place, rooms: held, generation, .. } = &mut **state;
        *generation += 1;
        let mut emptied = false;
        for room in rooms {
            // A holder from before the book was closed has nothing to give back.
            let Entry::Occupied(mut holders) = held.entry(room) else { continue };
            *holders.get_mut() -= 1;
            if *holders.get() == 0 {
                holders.remove();
                emptied = true;
                if let Some(place) = place {
                    place.attachment.adjust(room, -1);
                }
            }
        }
        emptied
    }
}

/// The rooms that one socket holds. Dropping it gives them back.
pub(super) struct Holder {
    sid: Sid,
    rooms: Mutex<HashSet<RoomKey>>,
    book: Weak<Book>,
}

impl Holder {
    fn new(sid: Sid, book: &Arc<Book>) -> Arc<Self> {
        Arc::new(Self { sid, rooms: Mutex::default(), book: Arc::downgrade(book) })
    }

    /// The id of the socket.
    pub(super) fn sid(&self) -> Sid {
        self.sid
    }

    /// Announces rooms, then makes the socket a member with `add`: a member never goes unannounced.
    pub(super) fn join(&self, book: &Book, keys: Keys, add: impl FnOnce()) {
        let mut rooms = lock(&self.rooms);
        let new: Keys = keys.into_iter().filter(|key| rooms.insert(*key)).collect();
        book.hold(&new);
        add();
    }

    /// Takes the membership back with `del`, then the announcement. Returns whether a room lost its last holder.
    pub(super) fn leave(&self, book: &Book, keys: Keys, del: impl FnOnce()) -> bool {
        let mut rooms = lock(&self.rooms);
        del();
        let gone: Keys = keys.into_iter().filter(|key| rooms.remove(key)).collect();
        !gone.is_empty() && book.release(gone)
    }

    /// As [`leave`](Self::leave), for every room of the socket.
    pub(super) fn leave_all(&self, book: &Book, del: impl FnOnce()) -> bool {
        let mut rooms = lock(&self.rooms);
        del();
        book.release(std::mem::take(&mut *rooms))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let Some(book) = self.book.upgrade() else { return };
        let rooms = self.rooms.get_mut().map(std::mem::take).unwrap_or_default();
        let emptied = {
            let mut state = lock(&book.state);
            // A new socket may have the same id: it has a holder of its own.
            if state.guarded.get(&self.sid).is_some_and(|other| std::ptr::eq(other.as_ptr(), self)) {
                state.guarded.remove(&self.sid);
            }
            Book::release_locked(&mut state, rooms)
        };
        if emptied && !book.is_flooded() {
            book.wake.touch();
        }
    }
}
