//! My rooms: member counts in, versioned deltas and snapshots out.
//!
//! The registry owns one [`Interest`]. Fronts tell it how many holders (sockets, members) each room has here;
//! it tells what the peers have to hear. What is advertised is always a superset of the rooms that have
//! holders, from the flush that follows a change on.

mod nsmap;
mod space;

use std::collections::VecDeque;
use std::mem;

pub(super) use self::nsmap::NsMap;
use self::space::{Space, Stage};
pub(super) use self::space::{namespace_digest, room_digest};
use crate::ids::{Namespace, RoomKey};

/// How a namespace is advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoomMode {
    /// The namespace wants every frame; its rooms are not listed.
    Flood,
    /// Only frames for the listed rooms, which are those with holders.
    Exact,
}

/// One namespace's part of a delta or of a snapshot chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterestChange {
    /// The namespace.
    pub ns: Namespace,
    /// Its mode from now on; `None` when the namespace is gone, and all its rooms with it.
    ///
    /// A change to `Flood` forgets the rooms held; a change to `Exact` from anything else starts with no
    /// room.
    pub mode: Option<RoomMode>,
    /// Rooms that are wanted from now on. Always empty unless `mode` is `Exact`.
    pub added: Vec<RoomKey>,
    /// Rooms that are no longer wanted. Always empty in a snapshot. A room in both lists is wanted.
    pub removed: Vec<RoomKey>,
}

/// What changed from one version of the advertised state to the next.
///
/// A delta is never cut in two: half of a change from flood to exact would miss frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterestDelta {
    /// The version after it. It applies to `version - 1` and to nothing else.
    pub version: u64,
    /// At most one per namespace.
    pub changes: Vec<InterestChange>,
}

/// Limits and delays of [`Interest`].
#[derive(Clone, Debug)]
pub struct InterestConfig {
    /// How long a room is still advertised after its last holder went, in milliseconds.
    ///
    /// Default is 2000. Damps reconnect storms: a client that is back in time costs nothing. Costs frames for
    /// rooms that are empty that long, and 16 bytes per room in that state.
    pub linger_ms: u64,
    /// The most rooms advertised by this node, over all exact namespaces.
    ///
    /// Default is 2,000,000. A namespace that would exceed it is advertised as flood: nothing is missed, its
    /// frames cost bandwidth. It is exact again once one of its rooms goes and all exact rooms together, its
    /// own included, are no more than half of the limit. Memory is 20 to 40 bytes per room here and 16 to
    /// 20 bytes on each peer. Keep it no higher than `max_rooms_per_peer` of the peers' routes.
    pub max_rooms: usize,
}

impl Default for InterestConfig {
    fn default() -> Self {
        Self { linger_ms: 2_000, max_rooms: 2_000_000 }
    }
}

/// What this node wants to hear.
///
/// - Commands: [`attach`](Self::attach), [`detach`](Self::detach),
///   [`switch_to_flood`](Self::switch_to_flood), [`adjust`](Self::adjust), in any order and number;
///   [`stop_lingering`](Self::stop_lingering) when the node leaves.
/// - Outputs: [`flush`](Self::flush) once per tick; [`snapshot`](Self::snapshot) for a peer that starts at
///   [`version`](Self::version): it shows what was flushed, never what is still pending.
/// - Getters: the rest.
///
/// Counts do not depend on attachments: a holder that is released after its namespace was detached is still
/// accounted for, so it can never take away the room of a later holder. Each `+n` is owed a `-n`.
#[derive(Debug, Default)]
pub struct Interest {
    config: InterestConfig,
    version: u64,
    digest: u64,
    /// Rooms advertised, over all namespaces.
    rooms: usize,
    spaces: NsMap<Space>,
    /// Namespaces that the next flush has to look at, each once.
    dirty: Vec<Namespace>,
    /// Rooms without holders that are still advertised, by the time they run out.
    lingering: VecDeque<Lingering>,
    overflowed: Vec<Namespace>,
}

impl Interest {
    /// Nothing advertised, version 0.
    pub fn new(config: InterestConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// One more holder of a namespace. Flood wins over exact while any flood holder is attached.
    pub fn attach(&mut self, ns: &Namespace, mode: RoomMode) {
        let space = self.spaces.get_or_insert_with(ns, Space::default);
        *space.holders(mode) += 1;
        space.mark(ns, &mut self.dirty);
    }

    /// One holder less: the counterpart of [`attach`](Self::attach). With the last one the namespace is gone.
    pub fn detach(&mut self, ns: &Namespace, mode: RoomMode) {
        let Some(space) = self.spaces.get_mut(ns) else {
            debug_assert!(false, "detached {ns} without attaching");
            return;
        };
        let holders = space.holders(mode);
        debug_assert!(*holders > 0, "detached {ns} more often than attached");
        *holders = holders.saturating_sub(1);
        space.mark(ns, &mut self.dirty);
    }

    /// One exact holder becomes a flood holder. It is detached as [`RoomMode::Flood`] later.
    pub fn switch_to_flood(&mut self, ns: &Namespace) {
        self.attach(ns, RoomMode::Flood);
        self.detach(ns, RoomMode::Exact);
    }

    /// `by` more (or less) holders of a room, coalesced as the caller likes. Counts never go below 0.
    pub fn adjust(&mut self, ns: &Namespace, room: RoomKey, by: i64) {
        if by == 0 {
            return;
        }
        let space = self.spaces.get_or_insert_with(ns, Space::default);
        let entry = space.rooms.entry(room.0).or_default();
        let holders = i64::from(entry.holders).saturating_add(by);
        debug_assert!(holders >= 0, "{ns} lost a holder of {room:?} that it never had");
        entry.holders = holders.clamp(0, u32::MAX.into()) as u32;
        if entry.holders > 0 && entry.stage == Stage::Lingering {
            entry.stage = Stage::Shown;
            entry.epoch = entry.epoch.wrapping_add(1);
        }
        if space.advertised == Some(RoomMode::Exact) {
            if !mem::replace(&mut entry.touched, true) {
                space.touched.push(room);
                space.mark(ns, &mut self.dirty);
            }
        } else if entry.holders == 0 {
            space.rooms.remove(&room.0);
            // A space nobody is attached to exists for its counts only.
            if space.is_idle() && !space.dirty {
                self.spaces.remove(ns);
            } else if space.over_limit && self.rooms + space.rooms.len() <= self.config.max_rooms / 2 {
                space.mark(ns, &mut self.dirty);
            }
        }
    }

    /// From the next flush on a room is given up with its last holder, also those that linger now: nobody comes back to a
    /// node that leaves.
    pub fn stop_lingering(&mut self) {
        self.config.linger_ms = 0;
        self.run_out(u64::MAX);
    }

    /// Brings what is advertised up to date; `None` when that changes nothing. `now_ms` must never go back.
    pub fn flush(&mut self, now_ms: u64) -> Option<InterestDelta> {
        self.run_out(now_ms);
        let mut changes = Vec::new();
        for ns in mem::take(&mut self.dirty) {
            changes.extend(self.flush_namespace(&ns, now_ms));
        }
        if changes.is_empty() {
            return None;
        }
        self.version += 1;
        Some(InterestDelta { version: self.version, changes })
    }

    /// When the next lingering room runs out, so that a flush is due even if nothing else happens.
    pub fn next_flush_ms(&self) -> Option<u64> {
        self.lingering.front().map(|batch| batch.until_ms)
    }

    /// Everything advertised at [`version`](Self::version), in chunks of at most `max_rooms_per_chunk` rooms.
    ///
    /// The head of a namespace weighs as much as the rooms that would take its place, so chunks are bounded
    /// in bytes: 8 per room, plus at most 300. Nothing advertised means no chunk.
    pub fn snapshot(&self, max_rooms_per_chunk: usize) -> impl Iterator<Item = Vec<InterestChange>> + '_ {
        let mut spaces = self.spaces.iter().filter_map(|(ns, space)| Some((ns, space, space.advertised?)));
        let mut current = None;
        std::iter::from_fn(move || {
            let mut chunk = Vec::new();
            let mut left = max_rooms_per_chunk.max(1);
            while left > 0 {
                let Some((ns, mode, mut rooms)) = current
                    .take()
                    .or_else(|| spaces.next().map(|(ns, space, mode)| (ns, mode, space.shown().peekable())))
                else {
                    break;
                };
                left = left.saturating_sub(namespace_weight(ns)).max(usize::from(chunk.is_empty()));
                let added: Vec<_> = rooms.by_ref().take(left).collect();
                left -= added.len();
                let more = rooms.peek().is_some();
                if !added.is_empty() || !more {
                    chunk.push(InterestChange {
                        ns: ns.clone(),
                        mode: Some(mode),
                        added,
                        removed: Vec::new(),
                    });
                }
                current = more.then_some((ns, mode, rooms));
            }
            (!chunk.is_empty()).then_some(chunk)
        })
    }

    /// The version of what is advertised: the number of deltas made.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The number of rooms advertised.
    pub fn rooms(&self) -> usize {
        self.rooms
    }

    /// The number of namespaces advertised. Walks over all of them.
    pub fn namespaces(&self) -> usize {
        self.spaces.iter().filter(|(_, space)| space.advertised.is_some()).count()
    }

    /// A digest of what is advertised, whatever the order it came about in. A peer's route table that holds
    /// the same has the same digest.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// How a namespace is advertised; `None` when it is not.
    pub fn mode(&self, ns: &Namespace) -> Option<RoomMode> {
        self.spaces.get(ns)?.advertised
    }

    /// The namespaces switched to flood because of [`InterestConfig::max_rooms`] since the last call: log
    /// each.
    pub fn take_overflowed(&mut self) -> Vec<Namespace> {
        mem::take(&mut self.overflowed)
    }

    /// Marks the lingering rooms whose time is over, so that the flush removes them.
    fn run_out(&mut self, now_ms: u64) {
        while self.lingering.front().is_some_and(|batch| batch.until_ms <= now_ms) {
            let Some(batch) = self.lingering.pop_front() else { return };
            let Some(space) = self.spaces.get_mut(&batch.ns) else { continue };
            for (room, epoch) in batch.rooms {
                let Some(entry) = space.rooms.get_mut(&room.0) else { continue };
                if entry.stage == Stage::Lingering && entry.epoch == epoch {
                    entry.stage = Stage::Spent;
                    if !mem::replace(&mut entry.touched, true) {
                        space.touched.push(room);
                    }
                }
            }
            if !space.touched.is_empty() {
                space.mark(&batch.ns, &mut self.dirty);
            }
        }
    }

    fn flush_namespace(&mut self, ns: &Namespace, now_ms: u64) -> Option<InterestChange> {
        let space = self.spaces.get_mut(ns)?;
        space.dirty = false;
        // Not at the limit itself, or a room that comes and goes would make the namespace change to and fro.
        let fits_well = self.rooms + space.rooms.len() <= self.config.max_rooms / 2;
        if space.flood + space.exact == 0 || fits_well {
            space.over_limit = false;
        }
        let before = (space.rooms_shown, space.digest);
        let was = space.advertised;
        if space.target() == Some(RoomMode::Exact)
            && self.rooms + space.rooms_to_come() > self.config.max_rooms
        {
            space.over_limit = true;
            self.overflowed.push(ns.clone());
        }
        let target = space.target();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        if was == Some(RoomMode::Exact) && target == was {
            let mut lingering = Vec::new();
            space.flush_touched(ns, self.config.linger_ms == 0, &mut added, &mut removed, &mut lingering);
            if !lingering.is_empty() {
                let until_ms = now_ms.saturating_add(self.config.linger_ms);
                self.lingering.push_back(Lingering { until_ms, ns: ns.clone(), rooms: lingering });
            }
        } else if was != target {
            space.change_mode(ns, target, &mut added);
        }
        self.rooms = self.rooms - before.0 + space.rooms_shown;
        self.digest = self.digest.wrapping_sub(before.1).wrapping_add(space.digest);
        if space.is_idle() {
            self.spaces.remove(ns);
        }
        let changed = was != target || !added.is_empty() || !removed.is_empty();
        changed.then(|| InterestChange { ns: ns.clone(), mode: target, added, removed })
    }
}

/// What a namespace adds to a message, in units of one room: its path and about as much around it.
fn namespace_weight(ns: &Namespace) -> usize {
    ns.path().len() / 8 + 2
}

#[derive(Debug)]
struct Lingering {
    until_ms: u64,
    ns: Namespace,
    rooms: Vec<(RoomKey, u16)>,
}

#[cfg(test)]
mod tests;
