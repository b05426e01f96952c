//! One namespace of this node: its holders, its rooms, and what of them is advertised.

use std::hash::{BuildHasherDefault, Hasher};
use std::mem;

use hashbrown::HashMap;

use super::RoomMode;
use crate::ids::{Namespace, RoomKey};

/// One namespace.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Attached holders that want everything.
    pub(super) flood: u32,
    /// Attached holders that want their rooms.
    pub(super) exact: u32,
    /// Flood because of the limit on rooms.
    pub(super) over_limit: bool,
    /// What the peers were told.
    pub(super) advertised: Option<RoomMode>,
    /// In [`Interest::dirty`].
    pub(super) dirty: bool,
    pub(super) rooms: HashMap<u64, Room, BuildHasherDefault<KeyIsHash>>,
    /// Rooms adjusted since the last flush, each once. Kept only while advertised as exact; any other state
    /// is left by looking at all rooms.
    pub(super) touched: Vec<RoomKey>,
    pub(super) rooms_shown: usize,
    /// The part of this namespace in [`Interest::digest`].
    pub(super) digest: u64,
}

impl Space {
    /// The count of attached holders of a mode.
    pub(super) fn holders(&mut self, mode: RoomMode) -> &mut u32 {
        match mode {
            RoomMode::Flood => &mut self.flood,
            RoomMode::Exact => &mut self.exact,
        }
    }

    /// Puts the namespace into [`Interest::dirty`](super::Interest), once.
    pub(super) fn mark(&mut self, ns: &Namespace, dirty: &mut Vec<Namespace>) {
        if !mem::replace(&mut self.dirty, true) {
            dirty.push(ns.clone());
        }
    }

    /// How it should be advertised.
    pub(super) fn target(&self) -> Option<RoomMode> {
        match (self.flood, self.exact) {
            (0, 0) => None,
            (0, _) if !self.over_limit => Some(RoomMode::Exact),
            _ => Some(RoomMode::Flood),
        }
    }

    /// Whether it can be forgotten.
    pub(super) fn is_idle(&self) -> bool {
        self.flood + self.exact == 0 && self.advertised.is_none() && self.rooms.is_empty()
    }

    /// The rooms advertised.
    pub(super) fn shown(&self) -> impl Iterator<Item = RoomKey> + '_ {
        self.rooms.iter().filter(|(_, room)| room.stage != Stage::Hidden).map(|(key, _)| RoomKey(*key))
    }

    /// The number of rooms that a flush as exact would add.
    pub(super) fn rooms_to_come(&self) -> usize {
        if self.advertised != Some(RoomMode::Exact) {
            return self.rooms.len();
        }
        let is_new = |key: &&RoomKey| {
            self.rooms.get(&key.0).is_some_and(|room| room.holders > 0 && room.stage == Stage::Hidden)
        };
        self.touched.iter().filter(is_new).count()
    }

    /// Exact before and after: looks at the touched rooms only.
    pub(super) fn flush_touched(
        &mut self,
        ns: &Namespace,
        at_once: bool,
        added: &mut Vec<RoomKey>,
        removed: &mut Vec<RoomKey>,
        lingering: &mut Vec<(RoomKey, u16)>,
    ) {
        for key in mem::take(&mut self.touched) {
            let Some(room) = self.rooms.get_mut(&key.0) else { continue };
            room.touched = false;
            match (room.stage, room.holders) {
                (Stage::Hidden, 0) => {
                    self.rooms.remove(&key.0);
                }
                (Stage::Hidden, _) => {
                    room.stage = Stage::Shown;
                    self.digest = self.digest.wrapping_add(room_digest(ns, key.0));
                    added.push(key);
                }
                (Stage::Shown, 0) if !at_once => {
                    room.stage = Stage::Lingering;
                    lingering.push((key, room.epoch));
                }
                (Stage::Shown | Stage::Spent, 0) => {
                    self.digest = self.digest.wrapping_sub(room_digest(ns, key.0));
                    self.rooms.remove(&key.0);
                    removed.push(key);
                }
                // Unchanged as far as a peer can tell. `Spent` with holders cannot be: adjusting and running
                // out are never in one flush.
                (Stage::Shown | Stage::Spent | Stage::Lingering, _) => {}
            }
        }
        self.rooms_shown = self.rooms_shown + added.len() - removed.len();
        if self.rooms.capacity() > 1024 && self.rooms.len() < self.rooms.capacity() / 8 {
            self.rooms.shrink_to(self.rooms.len() * 2);
        }
    }

    /// Another mode than before: starts from nothing.
    pub(super) fn change_mode(&mut self, ns: &Namespace, target: Option<RoomMode>, added: &mut Vec<RoomKey>) {
        self.touched = Vec::new();
        self.rooms.retain(|_, room| room.holders > 0);
        self.advertised = target;
        self.digest = target.map_or(0, |mode| namespace_digest(ns, mode));
        let shows = target == Some(RoomMode::Exact);
        for (key, room) in &mut self.rooms {
            room.touched = false;
            room.epoch = room.epoch.wrapping_add(1);
            room.stage = if shows { Stage::Shown } else { Stage::Hidden };
            if shows {
                self.digest = self.digest.wrapping_add(room_digest(ns, *key));
                added.push(RoomKey(*key));
            }
        }
        self.rooms_shown = added.len();
    }
}

/// One room, small because there may be a million: 16 bytes with its key.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) holders: u32,
    /// Tells the current wait of a room from an earlier one that a new holder cut short.
    pub(super) epoch: u16,
    pub(super) stage: Stage,
    /// In [`Space::touched`].
    pub(super) touched: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not advertised.
    #[default]
    Hidden,
    /// Advertised.
    Shown,
    /// Advertised without a holder, until its batch in [`Interest::lingering`] runs out.
    Lingering,
    /// Advertised without a holder; the time is over.
    Spent,
}

/// Room keys are hashes already.
#[derive(Default)]
pub(super) struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// The digest of a namespace's mode. The digest of a state is the wrapping sum over its namespaces and rooms.
pub(in crate::core) fn namespace_digest(ns: &Namespace, mode: RoomMode) -> u64 {
    let mode = match mode {
        RoomMode::Flood => 1,
        RoomMode::Exact => 2,
    };
    mix(ns.everyone().0 ^ mix(mode))
}

/// The digest of one room of a namespace.
pub(in crate::core) fn room_digest(ns: &Namespace, room: u64) -> u64 {
    mix(room ^ ns.everyone().0.rotate_left(32))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
