//! What readers of the routes see: table -> bank of 64 peers -> namespace -> shard -> row.
//!
//! Two kinds of change, and no other:
//! - *In place* ([`Space::edit`]): one peer's rooms added to or removed from a namespace it holds as exact.
//!   The shards touched are swapped one by one; a room is in one shard, so a reader of it sees old or new.
//! - *Structural* ([`Bank::set_space`] and all else): works on a copy that is published as a whole. The
//!   shards of the replaced [`Space`] are never written again, so a reader that still has it sees one moment.

use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::PeerMask;
use crate::core::interest::NsMap;
use crate::ids::{Namespace, RoomKey};

/// Everything a lookup needs. A clone shares all banks.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    banks: Vec<Arc<Bank>>,
}

impl Table {
    /// A bank to change; made when it is not there yet.
    pub(super) fn bank_mut(&mut self, bank: usize) -> &mut Bank {
        if bank >= self.banks.len() {
            self.banks.resize_with(bank + 1, Arc::default);
        }
        Arc::make_mut(&mut self.banks[bank])
    }

    /// What a bank holds about a namespace.
    pub(super) fn space(&self, bank: usize, ns: &Namespace) -> Option<&Arc<Space>> {
        self.banks.get(bank)?.space(ns)
    }

    /// Adds to `out` the peers that are unknown or want one of the rooms.
    pub(super) fn collect(&self, ns: &Namespace, rooms: &[RoomKey], out: &mut PeerMask) {
        for (index, bank) in self.banks.iter().enumerate() {
            let mut found = bank.unknown;
            if let Some(space) = bank.space(ns) {
                found |= space.flood;
                for room in rooms {
                    if space.present & !found == 0 {
                        break;
                    }
                    found |= space.peers_of(room.0);
                }
            }
            out.add_word(index, found);
        }
    }

    /// Adds to `out` the peers that are unknown or have the namespace at all.
    pub(super) fn collect_present(&self, ns: &Namespace, out: &mut PeerMask) {
        for (index, bank) in self.banks.iter().enumerate() {
            out.add_word(index, bank.unknown | bank.space(ns).map_or(0, |space| space.present));
        }
    }

    /// All shards' memory and what leads to them, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let mut bytes = self.banks.capacity() * size_of::<Arc<Bank>>();
        for bank in &self.banks {
            bytes += size_of::<Bank>() + bank.directory.len() * size_of::<Arc<Directory>>();
            for (_, space) in bank.directory.iter().flat_map(|part| part.iter()) {
                bytes += size_of::<(Namespace, Arc<Space>)>() + space.bytes();
            }
        }
        bytes
    }
}

/// The namespaces of one part of a bank.
type Directory = NsMap<Arc<Space>>;

/// Parts of a bank's directory: a new namespace copies one of them, not all namespaces.
const PARTS: usize = 64;

/// What 64 peers want. A clone shares all namespaces.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    /// Peers that get everything because it is not known what they want.
    pub(super) unknown: u64,
    directory: Box<[Arc<Directory>]>,
}

impl Default for Bank {
    fn default() -> Self {
        let part = Arc::new(Directory::default());
        Self { unknown: 0, directory: vec![part; PARTS].into() }
    }
}

impl Bank {
    /// Puts a namespace in, or takes it out.
    pub(super) fn set_space(&mut self, ns: &Namespace, space: Option<Space>) {
        let part = Arc::make_mut(&mut self.directory[part_of(ns)]);
        match space {
            Some(space) => part.insert(ns, Arc::new(space)),
            None => {
                part.remove(ns);
            }
        }
    }

    fn space(&self, ns: &Namespace) -> Option<&Arc<Space>> {
        self.directory[part_of(ns)].get(ns)
    }
}

/// Takes bits that the map within the part does not depend on.
fn part_of(ns: &Namespace) -> usize {
    (ns.everyone().0 >> 40) as usize % PARTS
}

/// What one peer says about one namespace.
#[derive(Clone, Copy, Debug)]
pub(super) enum Claim<'a> {
    /// It does not have it.
    Gone,
    /// It wants all of it.
    Flood,
    /// It wants these rooms: sorted, without duplicates.
    Exact(&'a [u64]),
}

/// One namespace for the 64 peers of a bank.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Peers that have the namespace.
    present: u64,
    /// Those of them that want all of it.
    flood: u64,
    shards: Shards,
}

impl Space {
    /// A copy in which one peer has another claim; `None` when no peer is left. `had_rows`: it may have rows
    /// here.
    pub(super) fn with_claim(&self, bit: u64, claim: Claim<'_>, had_rows: bool) -> Option<Self> {
        let (present, flood, keys): (_, _, &[u64]) = match claim {
            Claim::Gone => (self.present & !bit, self.flood & !bit, &[]),
            Claim::Flood => (self.present | bit, self.flood | bit, &[]),
            Claim::Exact(keys) => (self.present | bit, self.flood & !bit, keys),
        };
        let keys = (had_rows || !keys.is_empty()).then_some(keys);
        let shards = self.shards.copy(|rows, part| replaced(rows, bit, part), keys);
        (present != 0).then(|| Self { present, flood, shards: shards.fitted().unwrap_or(shards) })
    }

    /// A copy with another number of shards, when this one has too many or too few.
    pub(super) fn fitted(&self) -> Option<Self> {
        Some(Self { present: self.present, flood: self.flood, shards: self.shards.fitted()? })
    }

    /// Adds rooms to (or removes them from) one peer, in place, and tells which of them changed. `keys` are
    /// sorted, without duplicates. By the one writer only.
    pub(super) fn edit(&self, bit: u64, keys: &[u64], add: bool, mut changed: impl FnMut(u64)) {
        self.shards.edit(keys, |rows, part| edited(rows, bit, part, add, &mut changed));
    }

    fn peers_of(&self, key: u64) -> u64 {
        let shards = &self.shards;
        find(&shards.parts[shards.index(key)].load().rows, key << shards.bits, key)
    }

    fn bytes(&self) -> usize {
        // Each Arc has two counters before its value.
        let shard = size_of::<ArcSwap<Shard>>() + size_of::<Shard>() + 2 * size_of::<usize>();
        let rows: usize = self.shards.parts.iter().map(|part| part.load().rows.len()).sum();
        size_of::<Self>() + self.shards.parts.len() * shard + rows * size_of::<Row>()
    }
}

/// A room and the peers of a bank that want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    key: u64,
    peers: u64,
}

#[derive(Debug, Default)]
struct Shard {
    /// Sorted by key; no row without a peer.
    rows: Box<[Row]>,
}

/// Rows per shard above which there are more shards, as an average. A delta copies this much per room: 4 KiB.
const MOST_ROWS: usize = 256;
/// Rows per shard below which there are fewer shards, as an average.
const LEAST_ROWS: usize = 32;
/// Rows per shard to aim at, at most. A shard costs about 80 bytes beside its rows.
const GOOD_ROWS: usize = 128;

/// The rows of a namespace, cut by the top bits of the room key.
#[derive(Debug)]
struct Shards {
    /// There are `1 << bits` parts.
    bits: u32,
    rows: AtomicUsize,
    parts: Box<[ArcSwap<Shard>]>,
}

impl Default for Shards {
    fn default() -> Self {
        Self { bits: 0, rows: AtomicUsize::new(0), parts: [ArcSwap::default()].into() }
    }
}

impl Shards {
    fn index(&self, key: u64) -> usize {
        ((key >> 1) >> (63 - self.bits)) as usize
    }

    /// The keys at the front that belong to one part, and the rest.
    fn split<'k>(&self, keys: &'k [u64], part: usize) -> (&'k [u64], &'k [u64]) {
        keys.split_at(keys.partition_point(|key| self.index(*key) <= part))
    }

    /// A copy. With keys, each part goes through `change` with the keys that belong there, even if none do.
    fn copy(&self, change: impl Fn(&[Row], &[u64]) -> Option<Vec<Row>>, keys: Option<&[u64]>) -> Self {
        let mut rows = 0;
        let mut rest = keys.unwrap_or_default();
        let mut parts = Vec::with_capacity(self.parts.len());
        for (index, part) in self.parts.iter().enumerate() {
            let (here, later) = self.split(rest, index);
            rest = later;
            let old = part.load_full();
            let new = keys.and_then(|_| change(&old.rows, here));
            let shard = new.map_or(old, |rows| Arc::new(Shard { rows: rows.into() }));
            rows += shard.rows.len();
            parts.push(ArcSwap::new(shard));
        }
        Self { bits: self.bits, rows: rows.into(), parts: parts.into() }
    }

    fn edit(&self, mut keys: &[u64], mut change: impl FnMut(&[Row], &[u64]) -> Option<Vec<Row>>) {
        while let Some(first) = keys.first() {
            let index = self.index(*first);
            let (here, later) = self.split(keys, index);
            keys = later;
            let old = self.parts[index].load();
            let Some(rows) = change(&old.rows, here) else { continue };
            // One writer: nobody else changes the count in between.
            let count = self.rows.load(Ordering::Relaxed) - old.rows.len() + rows.len();
            self.rows.store(count, Ordering::Relaxed);
            drop(old);
            self.parts[index].store(Arc::new(Shard { rows: rows.into() }));
        }
    }

    fn fitted(&self) -> Option<Self> {
        let (count, parts) = (self.rows.load(Ordering::Relaxed), self.parts.len());
        if count <= parts * MOST_ROWS && (parts == 1 || count >= parts * LEAST_ROWS) {
            return None;
        }
        let bits = count.div_ceil(GOOD_ROWS).max(1).next_power_of_two().ilog2();
        let mut new = Vec::with_capacity(1 << bits);
        let end = |index: usize| ((index as u64 + 1) << (63 - bits)).wrapping_sub(1) << 1 | 1;
        let mut rows: Vec<Row> = Vec::new();
        for part in &self.parts {
            let old = part.load();
            let mut rest = &old.rows[..];
            while let Some(next) = rest.first() {
                while next.key > end(new.len()) {
                    new.push(ArcSwap::from_pointee(Shard { rows: std::mem::take(&mut rows).into() }));
                }
                let here = rest.partition_point(|row| row.key <= end(new.len()));
                rows.extend_from_slice(&rest[..here]);
                rest = &rest[here..];
            }
        }
        new.push(ArcSwap::from_pointee(Shard { rows: rows.into() }));
        new.resize_with(1 << bits, ArcSwap::default);
        Some(Self { bits, rows: count.into(), parts: new.into() })
    }
}

/// Rows in which exactly `keys` have the peer `bit`; `None` when nothing changes.
fn replaced(rows: &[Row], bit: u64, keys: &[u64]) -> Option<Vec<Row>> {
    let same = rows.iter().filter(|row| row.peers & bit != 0).map(|row| &row.key).eq(keys);
    if same {
        return None;
    }
    let mut new = Vec::with_capacity(rows.len() + keys.len());
    let mut keys = keys.iter().copied().peekable();
    for row in rows {
        while let Some(key) = keys.next_if(|key| *key < row.key) {
            new.push(Row { key, peers: bit });
        }
        let wants = keys.next_if_eq(&row.key).is_some();
        let peers = if wants { row.peers | bit } else { row.peers & !bit };
        if peers != 0 {
            new.push(Row { key: row.key, peers });
        }
    }
    new.extend(keys.map(|key| Row { key, peers: bit }));
    Some(new)
}

/// Rows in which `keys` have the peer `bit` too (or no longer); `None` when nothing changes.
fn edited(
    rows: &[Row],
    bit: u64,
    keys: &[u64],
    add: bool,
    changed: &mut impl FnMut(u64),
) -> Option<Vec<Row>> {
    let mut new = Vec::with_capacity(rows.len() + if add { keys.len() } else { 0 });
    let mut any = false;
    let mut rest = rows;
    for &key in keys {
        let (before, after) = rest.split_at(rest.partition_point(|row| row.key < key));
        new.extend_from_slice(before);
        let (old, after) = match after.split_first() {
            Some((row, after)) if row.key == key => (row.peers, after),
            _ => (0, after),
        };
        rest = after;
        let peers = if add { old | bit } else { old & !bit };
        if peers != old {
            any = true;
            changed(key);
        }
        if peers != 0 {
            new.push(Row { key, peers });
        }
    }
    new.extend_from_slice(rest);
    any.then_some(new)
}

/// The peers of a key; 0 when it is not there. `place` is where the key stands in the range of the shard, as
/// a fraction of 2^64: keys are uniform hashes, so the row is a few steps from there. Keys chosen to gather
/// in one place cost a binary search.
fn find(rows: &[Row], place: u64, key: u64) -> u64 {
    const STEPS: usize = 16;
    let peers_if = |row: &Row| if row.key == key { row.peers } else { 0 };
    let guess = ((u128::from(place) * rows.len() as u128) >> 64) as usize;
    let Some(first) = rows.get(guess) else { return 0 };
    let rest = if first.key <= key {
        let rest = &rows[guess..];
        if let Some(row) = rest.iter().take(STEPS).find(|row| row.key >= key) {
            return peers_if(row);
        }
        rest.get(STEPS..).unwrap_or_default()
    } else {
        let rest = &rows[..guess];
        if let Some(row) = rest.iter().rev().take(STEPS).find(|row| row.key <= key) {
            return peers_if(row);
        }
        &rest[..guess.saturating_sub(STEPS)]
    };
    rest.binary_search_by_key(&key, |row| row.key).map_or(0, |at| rest[at].peers)
}
