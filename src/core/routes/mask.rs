//! A set of peers.

use std::fmt;

use smallvec::SmallVec;

use crate::ids::PeerSlot;

/// A set of peers, held in place for slots below 128. Reuse one for many lookups: clearing keeps its memory.
#[derive(Clone, Default)]
pub struct PeerMask(SmallVec<[u64; 2]>);

impl PeerMask {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a peer in; false when it was in already.
    pub fn insert(&mut self, slot: PeerSlot) -> bool {
        let (bank, bit) = place(slot);
        let before = self.word(bank);
        self.set_word(bank, before | bit);
        before & bit == 0
    }

    /// Takes a peer out; false when it was not in.
    pub fn remove(&mut self, slot: PeerSlot) -> bool {
        let (bank, bit) = place(slot);
        let before = self.word(bank);
        self.set_word(bank, before & !bit);
        before & bit != 0
    }

    /// Whether a peer is in.
    pub fn contains(&self, slot: PeerSlot) -> bool {
        let (bank, bit) = place(slot);
        self.word(bank) & bit != 0
    }

    /// The number of peers.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Takes all peers out.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The peers, lowest slot first.
    pub fn iter(&self) -> impl Iterator<Item = PeerSlot> + '_ {
        self.0.iter().enumerate().flat_map(|(bank, word)| {
            let rest = std::iter::successors(Some(*word), |word| Some(word & word.wrapping_sub(1)));
            rest.take_while(|word| *word != 0)
                .map(move |word| PeerSlot((bank * 64 + word.trailing_zeros() as usize) as u16))
        })
    }

    /// Puts the peers of one bank in.
    #[inline]
    pub(super) fn add_word(&mut self, bank: usize, word: u64) {
        self.set_word(bank, self.word(bank) | word);
    }

    /// Replaces the peers of one bank.
    fn set_word(&mut self, bank: usize, word: u64) {
        if bank >= self.0.len() {
            if word == 0 {
                return;
            }
            self.0.resize(bank + 1, 0);
        }
        self.0[bank] = word;
    }

    fn word(&self, bank: usize) -> u64 {
        self.0.get(bank).copied().unwrap_or(0)
    }
}

impl PartialEq for PeerMask {
    fn eq(&self, other: &Self) -> bool {
        (0..self.0.len().max(other.0.len())).all(|bank| self.word(bank) == other.word(bank))
    }
}

impl Eq for PeerMask {}

impl fmt::Debug for PeerMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|slot| slot.0)).finish()
    }
}

impl FromIterator<PeerSlot> for PeerMask {
    fn from_iter<I: IntoIterator<Item = PeerSlot>>(slots: I) -> Self {
        let mut mask = Self::new();
        for slot in slots {
            mask.insert(slot);
        }
        mask
    }
}

/// The bank of a slot and its bit there. Bank `b` covers the slots `64 * b` to `64 * b + 63`.
pub(super) fn place(slot: PeerSlot) -> (usize, u64) {
    (usize::from(slot.0 / 64), 1 << (slot.0 % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in() {
        let slots = [0, 1, 63, 64, 127, 128, 1000, u16::MAX].map(PeerSlot);
        let mut mask: PeerMask = slots.into_iter().collect();
        assert_eq!(mask.iter().collect::<Vec<_>>(), slots);
        assert_eq!(mask.len(), slots.len());
        assert!(!mask.insert(PeerSlot(64)) && mask.contains(PeerSlot(64)));
        assert!(mask.remove(PeerSlot(64)) && !mask.remove(PeerSlot(64)) && !mask.contains(PeerSlot(64)));
        assert_eq!(format!("{mask:?}"), "{0, 1, 63, 127, 128, 1000, 65535}");
    }

    #[test]
    fn equal_whatever_the_history() {
        let mut long: PeerMask = [3, 500].map(PeerSlot).into_iter().collect();
        long.remove(PeerSlot(500));
        let short: PeerMask = [PeerSlot(3)].into_iter().collect();
        assert_eq!(long, short);
        long.insert(PeerSlot(70));
        assert_ne!(long, short);
        long.clear();
        assert!(long.is_empty() && !long.contains(PeerSlot(3)));
        assert_eq!(long, PeerMask::new());
    }
}
