//! Rooms that peers are about to have, because this node ordered members of theirs to join them.
//!
//! From the moment that such an order is queued for a peer until the interest that the peer makes afterwards has come,
//! what is held of that peer is out of date, and this node knows it. Meanwhile the peer counts as wanting these rooms.
//!
//! Rooms share a fixed number of places, so memory is bounded whatever is ordered: with very many rooms at once, those
//! of one place cost unneeded frames to the peers of the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use hashbrown::HashMap;

use super::PeerMask;
use crate::ids::{PeerSlot, RoomKey, Seq};

/// The places that rooms share. Costs 8 bytes for each, and about 100 bytes for each that a peer is in.
const PLACES: usize = 1024;

/// Which peers to suppose in which rooms.
#[derive(Debug)]
pub(super) struct Hints {
    /// Places with a peer. Lookups stop here when there are none.
    used: AtomicUsize,
    /// The peers of each place.
    places: Box<[ArcSwapOption<PeerMask>]>,
    /// Until when. Locked by who changes anything; lookups do not wait for it.
    held: Mutex<Held>,
}

/// The places that each peer is in.
type Held = HashMap<PeerSlot, HashMap<usize, Hint>>;

/// Why a peer is in a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hint {
    /// The last frame that ordered a join of a room there.
    order: Seq,
    /// When it was first known that the peer has applied it.
    applied_ms: Option<u64>,
}

impl Default for Hints {
    fn default() -> Self {
        let places = std::iter::repeat_with(ArcSwapOption::empty).take(PLACES).collect();
        Self { used: AtomicUsize::new(0), places, held: Mutex::default() }
    }
}

impl Hints {
    /// Adds the peers that may have one of the rooms soon. To be called before the look at what is held of them: who is
    /// gone from here is there by then.
    #[inline]
    pub(super) fn collect(&self, rooms: &[RoomKey], out: &mut PeerMask) {
        // Pairs with the release in `take_out`: after it, the interest that made the hint needless is visible.
        if self.used.load(Ordering::Acquire) != 0 {
            self.collect_used(rooms, out);
        }
    }

    #[cold]
    fn collect_used(&self, rooms: &[RoomKey], out: &mut PeerMask) {
        for room in rooms {
            if let Some(peers) = &*self.places[place_of(*room)].load() {
                peers.iter().for_each(|slot| _ = out.insert(slot));
            }
        }
    }

    /// The frame `order` makes members of a peer join these rooms, unless the peer is not there any more: `is_there` is
    /// asked when nobody else changes anything. Returns whether lookups find more than before.
    pub(super) fn add(
        &self,
        slot: PeerSlot,
        rooms: &[RoomKey],
        order: Seq,
        is_there: impl FnOnce() -> bool,
    ) -> bool {
        let mut held = self.held();
        if rooms.is_empty() || !is_there() {
            return false;
        }
        let of_peer = held.entry(slot).or_default();
        let mut more = false;
        for place in rooms.iter().map(|room| place_of(*room)) {
            let hint = of_peer.entry(place).or_insert_with(|| {
                self.put_in(place, slot);
                more = true;
                Hint { order, applied_ms: None }
            });
            // Orders of several threads may come here in another order than into the queue.
            if hint.order < order {
                *hint = Hint { order, applied_ms: None };
            }
        }
        more
    }

    /// The peer has applied everything up to the frame `applied`. What it has joined by then is in its interest, and here,
    /// after `margin_ms` at the latest: hints go when that has passed. Returns whether any went.
    pub(super) fn applied(&self, slot: PeerSlot, applied: Seq, now_ms: u64, margin_ms: u64) -> bool {
        if self.used.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut held = self.held();
        let Some(of_peer) = held.get_mut(&slot) else { return false };
        let before = of_peer.len();
        of_peer.retain(|place, hint| {
            if hint.order > applied {
                return true;
            }
            let since = *hint.applied_ms.get_or_insert(now_ms);
            let stays = now_ms.saturating_sub(since) < margin_ms;
            if !stays {
                self.take_out(*place, slot);
            }
            stays
        });
        let after = of_peer.len();
        if after == 0 {
            held.remove(&slot);
        }
        after < before
    }

    /// The peer is gone. Returns whether anything went.
    pub(super) fn forget(&self, slot: PeerSlot) -> bool {
        let mut held = self.held();
        let Some(of_peer) = held.remove(&slot) else { return false };
        of_peer.keys().for_each(|place| self.take_out(*place, slot));
        true
    }

    /// Pairs of peer and place.
    pub(super) fn len(&self) -> usize {
        self.held().values().map(HashMap::len).sum()
    }

    fn put_in(&self, place: usize, slot: PeerSlot) {
        let old = self.places[place].load_full();
        let mut peers = old.as_deref().cloned().unwrap_or_default();
        peers.insert(slot);
        self.places[place].store(Some(Arc::new(peers)));
        if old.is_none() {
            self.used.fetch_add(1, Ordering::Release);
        }
    }

    fn take_out(&self, place: usize, slot: PeerSlot) {
        let Some(mut peers) = self.places[place].load_full().as_deref().cloned() else { return };
        peers.remove(slot);
        let is_empty = peers.is_empty();
        self.places[place].store((!is_empty).then(|| Arc::new(peers)));
        if is_empty {
            self.used.fetch_sub(1, Ordering::Release);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room keys are uniform hashes.
fn place_of(room: RoomKey) -> usize {
    (room.0 % PLACES as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MARGIN_MS: u64 = 10;

    fn found(hints: &Hints, room: u64) -> Vec<u16> {
        let mut out = PeerMask::default();
        hints.collect(&[RoomKey(room)], &mut out);
        out.iter().map(|slot| slot.0).collect()
    }

    #[test]
    fn a_hint_goes_when_the_order_is_applied_and_the_margin_has_passed() {
        let (hints, peer) = (Hints::default(), PeerSlot(70));
        assert!(hints.add(peer, &[RoomKey(1), RoomKey(2)], Seq(5), || true));
        assert_eq!((found(&hints, 1), found(&hints, 2), found(&hints, 3)), (vec![70], vec![70], vec![]));
        assert!(!hints.applied(peer, Seq(4), 100, MARGIN_MS) && !hints.applied(peer, Seq(5), 200, MARGIN_MS));
        assert!(!hints.add(peer, &[RoomKey(2)], Seq(6), || true), "it is there already");
        assert!(hints.applied(peer, Seq(5), 210, MARGIN_MS));
        assert_eq!((found(&hints, 1), found(&hints, 2)), (vec![], vec![70]), "ordered again");
        assert!(!hints.applied(peer, Seq(9), 211, MARGIN_MS) && !hints.applied(peer, Seq(9), 220, MARGIN_MS));
        assert!(hints.applied(peer, Seq(9), 221, MARGIN_MS));
        assert_eq!((hints.len(), hints.used.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_peer_that_is_gone_has_none() {
        let hints = Hints::default();
        assert!(!hints.add(PeerSlot(0), &[RoomKey(1)], Seq(1), || false));
        hints.add(PeerSlot(0), &[RoomKey(1)], Seq(1), || true);
        hints.add(PeerSlot(1), &[RoomKey(1), RoomKey(9)], Seq(1), || true);
        assert!(hints.forget(PeerSlot(1)) && !hints.forget(PeerSlot(1)));
        assert_eq!((found(&hints, 1), found(&hints, 9)), (vec![0], vec![]));
    }

    #[test]
    fn memory_is_bounded_whatever_is_ordered() {
        let hints = Hints::default();
        let rooms: Vec<RoomKey> = (0..100_000).map(|key| RoomKey(key * 7)).collect();
        hints.add(PeerSlot(3), &rooms, Seq(1), || true);
        assert_eq!(hints.len(), PLACES);
        assert!(rooms.iter().all(|room| found(&hints, room.0) == [3]));
        assert!(hints.forget(PeerSlot(3)));
        assert_eq!((hints.len(), hints.used.load(Ordering::Relaxed)), (0, 0));
    }

    proptest! {
        /// Every room that is still expected is found with its peer, and what is not goes.
        #[test]
        fn follows_a_plain_model(
            steps in proptest::collection::vec((0..4u16, 0..3000u64, 0..4u8, 0..6u64, 0..8u64), 1..150),
        ) {
            let hints = Hints::default();
            // By peer and room: the order, and when it was known to be applied.
            let mut model: BTreeMap<(u16, u64), (u64, Option<u64>)> = BTreeMap::new();
            let (mut now, mut last) = (0, 0);
            for (peer, room, what, back, time) in steps {
                now += time;
                let slot = PeerSlot(peer);
                match what {
                    0 | 1 => {
                        last += 1;
                        hints.add(slot, &[RoomKey(room)], Seq(last), || true);
                        model.insert((peer, room), (last, None));
                    }
                    2 => {
                        let applied = last.saturating_sub(back);
                        hints.applied(slot, Seq(applied), now, MARGIN_MS);
                        model.retain(|(of, _), (order, since)| {
                            *of != peer || *order > applied
                                || now - *since.get_or_insert(now) < MARGIN_MS
                        });
                    }
                    _ => {
                        hints.forget(slot);
                        model.retain(|(of, _), _| *of != peer);
                    }
                }
                for (of, room) in model.keys() {
                    prop_assert!(found(&hints, *room).contains(of));
                }
            }
            for peer in 0..4 {
                hints.applied(PeerSlot(peer), Seq(last), now, MARGIN_MS);
                hints.applied(PeerSlot(peer), Seq(last), now + MARGIN_MS, MARGIN_MS);
            }
            prop_assert_eq!((hints.len(), hints.used.load(Ordering::Relaxed)), (0, 0));
            prop_assert!(hints.places.iter().all(|place| place.load().is_none()));
        }
    }
}
