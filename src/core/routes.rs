//! Everyone's rooms: (namespace, rooms) -> peers that need a frame; unknown -> all.
//!
//! One writer, the registry, says what each peer advertises. Readers on any thread ask which peers a frame is
//! for; they take no lock, allocate nothing and never wait for the writer. The rule is the superset: a peer
//! is left out only when it is known not to want the frame, at every moment and under every interleaving.

mod draft;
mod hints;
mod mask;
mod table;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use self::draft::{Draft, Gathering, Peer, Writer, sorted};
use self::hints::Hints;
pub use self::mask::PeerMask;
use self::mask::place;
use self::table::Table;
use super::interest::{InterestChange, InterestDelta, NsMap, RoomMode, room_digest};
use crate::ids::{Namespace, PeerSlot, RoomKey, Seq};

/// Limits of [`Routes`]: what one peer can make this node hold.
#[derive(Clone, Debug)]
pub struct RoutesConfig {
    /// The most rooms of one peer, over all its namespaces.
    ///
    /// Default is 2,000,000. Costs 16 to 20 bytes per room that no other of the same 64 peers has, next to
    /// nothing for others; while a snapshot arrives, another 8 per room.
    pub max_rooms_per_peer: usize,
    /// The most namespaces of one peer.
    ///
    /// Default is 65,536. Costs 300 bytes plus the path for each, and as much again for each 64 peers that
    /// have it.
    pub max_namespaces_per_peer: usize,
}

impl Default for RoutesConfig {
    fn default() -> Self {
        Self { max_rooms_per_peer: 2_000_000, max_namespaces_per_peer: 65_536 }
    }
}

/// Why something a peer advertises was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The slot was never added, or was removed. Nothing changes.
    #[error("apply interest of slot {}: there is no such peer", .0.0)]
    NoPeer(PeerSlot),
    /// A delta for a peer that is unknown, or a chunk or end of a snapshot that was not begun. Nothing
    /// changes: the peer stays unknown and gets every frame until a whole snapshot came.
    #[error("apply interest of slot {}: no snapshot of it is held or under way", .0.0)]
    NoSnapshot(PeerSlot),
    /// A delta while a snapshot is being gathered. The delta is dropped; the snapshot goes on.
    #[error("apply interest of slot {}: a snapshot is under way", .0.0)]
    SnapshotOpen(PeerSlot),
    /// A delta that does not follow on what is held. The peer becomes unknown and gets every frame until a
    /// new snapshot came: ask for one.
    #[error("apply interest delta {got}: version {held} is held")]
    VersionGap {
        /// The version held.
        held: u64,
        /// The version of the delta.
        got: u64,
    },
    /// More rooms or namespaces than [`RoutesConfig`] allows. The peer becomes unknown and gets every frame,
    /// its rooms are forgotten, a snapshot under way is dropped.
    #[error("hold the interest of slot {}: too much, {rooms} rooms in {namespaces} namespaces", .slot.0)]
    TooManyRooms {
        /// The peer.
        slot: PeerSlot,
        /// Its rooms, as far as they were counted.
        rooms: usize,
        /// Its namespaces, as far as they were counted.
        namespaces: usize,
    },
}

/// How many peers there are, by what is known of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Peers whose interest is held.
    pub known: usize,
    /// Peers that get every frame because it is not.
    pub unknown: usize,
}

/// The route table, shared behind an `Arc`.
///
/// - Commands, by the registry only: [`add_peer`](Self::add_peer), [`remove_peer`](Self::remove_peer),
///   [`set_unknown`](Self::set_unknown); [`snapshot_begin`](Self::snapshot_begin), any number of
///   [`snapshot_chunk`](Self::snapshot_chunk), [`snapshot_end`](Self::snapshot_end); then
///   [`apply_delta`](Self::apply_delta). What a command did is visible to every lookup that starts after it
///   returned.
/// - Commands, from any thread: [`expect`](Self::expect) rooms of a peer before it advertises them,
///   [`applied`](Self::applied), [`expect_nothing`](Self::expect_nothing).
/// - Lookups, from any thread: [`lookup`](Self::lookup).
/// - Getters: the rest. They wait for a command that runs at the time: for status, not for emits.
///
/// A new peer is unknown and becomes known at `snapshot_end`. Unknown peers are in the result of every
/// lookup.
#[derive(Debug)]
pub struct Routes {
    config: RoutesConfig,
    table: ArcSwap<Table>,
    /// What peers are about to advertise.
    hints: Hints,
    /// Counts removals in place, before each: see [`Routes::lookup`].
    removals: AtomicU64,
    /// Counts the commands that are done: as long as it stays, every lookup gives what it gave.
    edits: AtomicU64,
    writer: Mutex<Writer>,
}

impl Routes {
    /// No peers.
    pub fn new(config: RoutesConfig) -> Self {
        Self {
            config,
            table: ArcSwap::default(),
            hints: Hints::default(),
            removals: AtomicU64::new(0),
            edits: AtomicU64::new(0),
            writer: Mutex::default(),
        }
    }

    /// A new peer, unknown. Whatever an earlier one in this slot had is forgotten.
    pub fn add_peer(&self, slot: PeerSlot) {
        self.change(|writer, draft| {
            let index = usize::from(slot.0);
            if index >= writer.peers.len() {
                writer.peers.resize_with(index + 1, || None);
            }
            if let Some(old) = &mut writer.peers[index] {
                draft.forget(slot, old);
            }
            writer.peers[index] = Some(Peer::default());
            draft.set_unknown(slot, true);
        });
    }

    /// Forgets a peer; no lookup returns it any more. Does nothing for an empty slot.
    pub fn remove_peer(&self, slot: PeerSlot) {
        self.change(|writer, draft| {
            let Some(mut peer) = writer.peers.get_mut(usize::from(slot.0)).and_then(Option::take) else {
                return;
            };
            draft.forget(slot, &mut peer);
            draft.set_unknown(slot, false);
        });
    }

    /// What the peer wants is not known any more (its link broke, say): it gets every frame until the next
    /// snapshot is complete. What was held stays, to be compared with that. A snapshot under way is dropped.
    pub fn set_unknown(&self, slot: PeerSlot) {
        self.change(|writer, draft| {
            if let Ok(peer) = writer.peer(slot) {
                peer.gathering = None;
                draft.make_unknown(slot, peer);
            }
        });
    }

    /// A snapshot starts; it will show `version`. The peer is unknown until it is complete. One already under
    /// way is dropped.
    ///
    /// # Errors
    /// [`RouteError::NoPeer`].
    pub fn snapshot_begin(&self, slot: PeerSlot, version: u64) -> Result<(), RouteError> {
        self.change(|writer, draft| {
            let peer = writer.peer(slot)?;
            peer.gathering = Some(Gathering { version, rooms: 0, spaces: NsMap::default() });
            draft.make_unknown(slot, peer);
            Ok(())
        })
    }

    /// A part of the snapshot, kept aside until the end. A namespace may be spread over any number of chunks;
    /// `removed` is ignored.
    ///
    /// # Errors
    /// [`RouteError::NoPeer`], [`RouteError::NoSnapshot`], [`RouteError::TooManyRooms`].
    pub fn snapshot_chunk(&self, slot: PeerSlot, chunk: Vec<InterestChange>) -> Result<(), RouteError> {
        self.change(|writer, draft| {
            let peer = writer.peer(slot)?;
            let gathering = peer.gathering.as_mut().ok_or(RouteError::NoSnapshot(slot))?;
            for change in chunk {
                gathering.take(change);
            }
            let (rooms, namespaces) = (gathering.rooms, gathering.spaces.len());
            self.check(slot, rooms, namespaces).inspect_err(|_| draft.give_up(slot, peer))
        })
    }

    /// The snapshot is complete: it replaces all that was held, and the peer is known. Takes about 0.05 us
    /// per room, and about 10 ms per million rooms that other peers have in the same namespaces.
    ///
    /// # Errors
    /// [`RouteError::NoPeer`], [`RouteError::NoSnapshot`].
    pub fn snapshot_end(&self, slot: PeerSlot) -> Result<(), RouteError> {
        self.change(|writer, draft| {
            let peer = writer.peer(slot)?;
            let gathered = peer.gathering.take().ok_or(RouteError::NoSnapshot(slot))?;
            let gone = |ns: &Namespace| gathered.spaces.get(ns).is_none();
            let gone: Vec<_> = peer.spaces.iter().map(|(ns, _)| ns).filter(|ns| gone(ns)).cloned().collect();
            for ns in gone {
                draft.claim(slot, peer, &ns, None, &[]);
            }
            for (ns, (mode, rooms)) in gathered.spaces.into_iter() {
                draft.claim(slot, peer, &ns, Some(mode), &sorted(rooms));
            }
            peer.version = Some(gathered.version);
            // In one publication with the rows: nobody sees the peer known without them.
            draft.set_unknown(slot, false);
            Ok(())
        })
    }

    /// What changed at a known peer, from the version held to the next.
    ///
    /// # Errors [`RouteError::NoPeer`], [`RouteError::NoSnapshot`], [`RouteError::SnapshotOpen`],
    /// [`RouteError::VersionGap`], [`RouteError::TooManyRooms`].
    pub fn apply_delta(&self, slot: PeerSlot, delta: &InterestDelta) -> Result<(), RouteError> {
        self.change(|writer, draft| {
            let peer = writer.peer(slot)?;
            if peer.gathering.is_some() {
                return Err(RouteError::SnapshotOpen(slot));
            }
            let held = peer.version.ok_or(RouteError::NoSnapshot(slot))?;
            if held.checked_add(1) != Some(delta.version) {
                draft.make_unknown(slot, peer);
                return Err(RouteError::VersionGap { held, got: delta.version });
            }
            for change in &delta.changes {
                let held = peer.spaces.get(&change.ns).map(|held| held.mode);
                if held == Some(RoomMode::Exact) && change.mode == held {
                    self.edit(draft, slot, peer, change);
                } else {
                    let rooms = if change.mode == Some(RoomMode::Exact) { &change.added[..] } else { &[] };
                    draft.claim(slot, peer, &change.ns, change.mode, &sorted(rooms.to_vec()));
                }
            }
            peer.version = Some(delta.version);
            let (rooms, namespaces) = (peer.rooms, peer.spaces.len());
            self.check(slot, rooms, namespaces).inspect_err(|_| draft.give_up(slot, peer))
        })
    }

    /// Fills `out` with the peers that need a frame for any of the rooms (none given: for everyone in the
    /// namespace): all that are unknown, that have the namespace as flood, that hold one of the rooms, or that
    /// are [expected](Self::expect) to. What `out` held is dropped.
    ///
    /// With several rooms, a peer that moves from one to another could be looked for in each at the wrong
    /// time. So a lookup that saw a removal begin starts again, and after a few times settles for all peers
    /// of the namespace.
    pub fn lookup(&self, ns: &Namespace, rooms: &[RoomKey], out: &mut PeerMask) {
        const ATTEMPTS: usize = 4;
        out.clear();
        let everyone = [ns.everyone()];
        let rooms = if rooms.is_empty() { &everyone } else { rooms };
        // Before the table: what is expected no longer is in the table by then.
        self.hints.collect(rooms, out);
        let table = self.table.load();
        if rooms.len() == 1 {
            return table.collect(ns, rooms, out);
        }
        for _ in 0..ATTEMPTS {
            let before = self.removals.load(Ordering::Acquire);
            table.collect(ns, rooms, out);
            if self.removals.load(Ordering::Acquire) == before {
                return;
            }
        }
        table.collect_present(ns, out);
    }

    /// The frame `order` for a peer makes members of its join these rooms, so what is held of it is out of date: it counts
    /// as having the rooms until [`applied`](Self::applied) says otherwise. Does nothing for a peer that is not there
    /// any more: `is_there` is asked once, and not while [`expect_nothing`](Self::expect_nothing) runs. Takes a lock that
    /// no lookup waits for.
    pub fn expect(&self, slot: PeerSlot, rooms: &[RoomKey], order: Seq, is_there: impl FnOnce() -> bool) {
        if self.hints.add(slot, rooms, order, is_there) {
            self.edits.fetch_add(1, Ordering::Release);
        }
    }

    /// The peer has applied everything up to the frame `applied`. To be called again and again: when `margin_ms` have
    /// passed since it was first called for an order, the peer has advertised what its members joined, and the rooms of
    /// that order are expected no longer.
    pub fn applied(&self, slot: PeerSlot, applied: Seq, now_ms: u64, margin_ms: u64) {
        if self.hints.applied(slot, applied, now_ms, margin_ms) {
            self.edits.fetch_add(1, Ordering::Release);
        }
    }

    /// Nothing is expected of the peer any more, because it is gone.
    pub fn expect_nothing(&self, slot: PeerSlot) {
        if self.hints.forget(slot) {
            self.edits.fetch_add(1, Ordering::Release);
        }
    }

    /// What is expected: the number of rooms and peers in pairs, at most (rooms that share a place count once).
    pub fn expected(&self) -> usize {
        self.hints.len()
    }

    /// Fills `out` with the peers of which it is not known that they lack the namespace. What `out` held is dropped.
    pub fn present(&self, ns: &Namespace, out: &mut PeerMask) {
        out.clear();
        self.table.load().collect_present(ns, out);
    }

    /// Counts the commands that are done. A lookup may be remembered with the count from before it, and used until the
    /// count changes: what it lacks belongs to a command that is not done.
    pub fn edits(&self) -> u64 {
        self.edits.load(Ordering::Acquire)
    }

    /// The version held of a peer; `None` while it is unknown.
    pub fn version(&self, slot: PeerSlot) -> Option<u64> {
        self.writer().peer(slot).ok()?.version
    }

    /// The number of rooms held of a peer.
    pub fn rooms(&self, slot: PeerSlot) -> usize {
        self.writer().peer(slot).map_or(0, |peer| peer.rooms)
    }

    /// The number of namespaces held of a peer.
    pub fn namespaces(&self, slot: PeerSlot) -> usize {
        self.writer().peer(slot).map_or(0, |peer| peer.spaces.len())
    }

    /// The digest of what is held of a peer: [`Interest::digest`](super::interest::Interest::digest) of that
    /// peer at the same version.
    pub fn digest(&self, slot: PeerSlot) -> u64 {
        self.writer().peer(slot).map_or(0, |peer| peer.digest)
    }

    /// The number of (room, peer) pairs held.
    pub fn rows(&self) -> usize {
        self.writer().peers.iter().flatten().map(|peer| peer.rooms).sum()
    }

    /// The memory that lookups read, in bytes, without the allocator's own. Walks over all shards.
    pub fn bytes(&self) -> usize {
        self.table.load().bytes()
    }

    /// How many peers are known and unknown.
    pub fn peers(&self) -> PeerCounts {
        let writer = self.writer();
        let known = writer.peers.iter().flatten().filter(|peer| peer.version.is_some()).count();
        PeerCounts { known, unknown: writer.peers.iter().flatten().count() - known }
    }

    /// Both sides exact: changes rows in place.
    fn edit(&self, draft: &mut Draft, slot: PeerSlot, peer: &mut Peer, change: &InterestChange) {
        let (bank, bit) = place(slot);
        let ns = &change.ns;
        let (Some(space), Some(held)) = (draft.table.space(bank, ns).cloned(), peer.spaces.get_mut(ns))
        else {
            debug_assert!(false, "{ns} is held by slot {} and not in the table", slot.0);
            return;
        };
        let before = (held.rooms, held.digest);
        let added = sorted(change.added.clone());
        space.edit(bit, &added, true, |key| {
            held.rooms += 1;
            held.digest = held.digest.wrapping_add(room_digest(ns, key));
        });
        let mut removed = sorted(change.removed.clone());
        removed.retain(|key| added.binary_search(key).is_err());
        if !removed.is_empty() {
            // After all that is added, before anything is removed: a lookup that finds this unchanged saw a
            // state with everything that it needed.
            self.removals.fetch_add(1, Ordering::SeqCst);
            space.edit(bit, &removed, false, |key| {
                held.rooms -= 1;
                held.digest = held.digest.wrapping_sub(room_digest(ns, key));
            });
        }
        peer.rooms = peer.rooms - before.0 + held.rooms;
        peer.digest = peer.digest.wrapping_sub(before.1).wrapping_add(held.digest);
        if let Some(fitted) = space.fitted() {
            draft.change(bank).set_space(ns, Some(fitted));
        }
    }

    fn check(&self, slot: PeerSlot, rooms: usize, namespaces: usize) -> Result<(), RouteError> {
        if rooms > self.config.max_rooms_per_peer || namespaces > self.config.max_namespaces_per_peer {
            return Err(RouteError::TooManyRooms { slot, rooms, namespaces });
        }
        Ok(())
    }

    /// Runs a command and publishes the table if it drafted another.
    fn change<R>(&self, command: impl FnOnce(&mut Writer, &mut Draft) -> R) -> R {
        let mut writer = self.writer();
        let mut draft = Draft { table: Table::clone(&self.table.load()), changed: false };
        let result = command(&mut writer, &mut draft);
        if draft.changed {
            writer.retired.push(self.table.swap(Arc::new(draft.table)));
        }
        writer.retired.retain(|table| Arc::strong_count(table) > 1);
        self.edits.fetch_add(1, Ordering::Release);
        result
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
