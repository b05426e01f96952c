//! What the writer of the routes keeps about peers, and the table it is about to publish.

use std::mem;
use std::sync::Arc;

use super::table::{Bank, Claim, Space, Table};
use super::{RouteError, place};
use crate::core::interest::{InterestChange, NsMap, RoomMode, namespace_digest, room_digest};
use crate::ids::{Namespace, PeerSlot, RoomKey};

/// What only the writer needs to know.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// By slot.
    pub(super) peers: Vec<Option<Peer>>,
    /// Tables that are no longer published. Each is kept until no reader has it, so that it is never a reader
    /// that pays for freeing a million rows.
    pub(super) retired: Vec<Arc<Table>>,
}

impl Writer {
    /// The peer in a slot.
    pub(super) fn peer(&mut self, slot: PeerSlot) -> Result<&mut Peer, RouteError> {
        self.peers.get_mut(usize::from(slot.0)).and_then(Option::as_mut).ok_or(RouteError::NoPeer(slot))
    }
}

/// One peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// `None` while unknown.
    pub(super) version: Option<u64>,
    pub(super) gathering: Option<Gathering>,
    pub(super) spaces: NsMap<Held>,
    /// Sums over `spaces`.
    pub(super) rooms: usize,
    pub(super) digest: u64,
}

/// What is held of one peer about one namespace, beside its rows.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) mode: RoomMode,
    pub(super) rooms: usize,
    pub(super) digest: u64,
}

/// A snapshot that is not complete.
#[derive(Debug)]
pub(super) struct Gathering {
    pub(super) version: u64,
    pub(super) rooms: usize,
    pub(super) spaces: NsMap<(RoomMode, Vec<RoomKey>)>,
}

impl Gathering {
    /// Puts a part in.
    pub(super) fn take(&mut self, change: InterestChange) {
        let Some(mode) = change.mode else {
            self.rooms -= self.spaces.remove(&change.ns).map_or(0, |(_, rooms)| rooms.len());
            return;
        };
        let (held, rooms) = self.spaces.get_or_insert_with(&change.ns, || (mode, Vec::new()));
        *held = mode;
        if mode == RoomMode::Flood {
            self.rooms -= mem::take(rooms).len();
            return;
        }
        self.rooms += change.added.len();
        if rooms.is_empty() {
            *rooms = change.added;
        } else {
            rooms.extend(change.added);
        }
    }
}

/// The next table, while a command works on it.
pub(super) struct Draft {
    pub(super) table: Table,
    pub(super) changed: bool,
}

impl Draft {
    /// A bank to change.
    pub(super) fn change(&mut self, bank: usize) -> &mut Bank {
        self.changed = true;
        self.table.bank_mut(bank)
    }

    /// Whether a peer gets every frame.
    pub(super) fn set_unknown(&mut self, slot: PeerSlot, unknown: bool) {
        let (bank, bit) = place(slot);
        let mask = &mut self.change(bank).unknown;
        *mask = if unknown { *mask | bit } else { *mask & !bit };
    }

    /// A known peer becomes unknown.
    pub(super) fn make_unknown(&mut self, slot: PeerSlot, peer: &mut Peer) {
        if peer.version.take().is_some() {
            self.set_unknown(slot, true);
        }
    }

    /// Over a limit: the peer keeps nothing.
    pub(super) fn give_up(&mut self, slot: PeerSlot, peer: &mut Peer) {
        peer.gathering = None;
        self.make_unknown(slot, peer);
        self.forget(slot, peer);
    }

    /// Drops all namespaces of a peer.
    pub(super) fn forget(&mut self, slot: PeerSlot, peer: &mut Peer) {
        let all: Vec<_> = peer.spaces.iter().map(|(ns, _)| ns.clone()).collect();
        for ns in all {
            self.claim(slot, peer, &ns, None, &[]);
        }
    }

    /// Replaces all that is held of one peer about one namespace. `keys` are sorted, without duplicates.
    pub(super) fn claim(
        &mut self,
        slot: PeerSlot,
        peer: &mut Peer,
        ns: &Namespace,
        mode: Option<RoomMode>,
        keys: &[u64],
    ) {
        let (bank, bit) = place(slot);
        let held = peer.spaces.remove(ns);
        let had_rows = held.as_ref().is_some_and(|held| held.rooms > 0);
        if let Some(held) = &held {
            peer.rooms -= held.rooms;
            peer.digest = peer.digest.wrapping_sub(held.digest);
        } else if mode.is_none() {
            return;
        }
        let (claim, rooms) = match mode {
            None => (Claim::Gone, 0),
            Some(RoomMode::Flood) => (Claim::Flood, 0),
            Some(RoomMode::Exact) => (Claim::Exact(keys), keys.len()),
        };
        let space = match self.table.space(bank, ns) {
            Some(space) => space.with_claim(bit, claim, had_rows),
            None => Space::default().with_claim(bit, claim, had_rows),
        };
        self.change(bank).set_space(ns, space);
        let Some(mode) = mode else { return };
        let keys = if mode == RoomMode::Exact { keys } else { &[] };
        let digest =
            keys.iter().fold(namespace_digest(ns, mode), |sum, key| sum.wrapping_add(room_digest(ns, *key)));
        peer.spaces.insert(ns, Held { mode, rooms, digest });
        peer.rooms += rooms;
        peer.digest = peer.digest.wrapping_add(digest);
    }
}

/// Keys in the order of the rows, each once.
pub(super) fn sorted(rooms: Vec<RoomKey>) -> Vec<u64> {
    let mut keys: Vec<u64> = rooms.into_iter().map(|room| room.0).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}
