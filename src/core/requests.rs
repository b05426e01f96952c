//! Which nodes still owe an answer.
//!
//! A request is opened with the peers that it goes to. Each of them settles its share once: by its end of the answers,
//! by leaving, or because the frame never got away. When the last share is settled the request is gone from here; so it
//! is when the asker gives up. What comes later for it is for nobody.

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::ids::PeerSlot;

/// The peers that owe an answer.
pub type Owing = SmallVec<[PeerSlot; 8]>;

/// The requests of this node that wait for answers; `W` is whoever waits.
#[derive(Debug)]
pub struct Requests<W> {
    last: u64,
    limit: usize,
    pending: HashMap<u64, Pending<W>>,
}

#[derive(Debug)]
struct Pending<W> {
    owing: Owing,
    waiter: W,
}

/// A share that is settled.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled<W> {
    /// Who waits.
    pub waiter: W,
    /// Whether it was the last share: the request is over.
    pub last: bool,
}

/// As many requests wait for answers as may. This one was not sent; others are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ask other nodes: {limit} requests wait for answers, which is the limit")]
pub struct TooManyRequests {
    /// The limit.
    pub limit: usize,
}

impl<W: Clone> Requests<W> {
    /// No requests; at most `limit` at a time.
    pub fn new(limit: usize) -> Self {
        Self { last: 0, limit, pending: HashMap::new() }
    }

    /// Opens a request that `owing` owe answers to, each named once. Returns its number, which is never given again.
    ///
    /// A request that nobody owes is over at once: it has a number and is not held.
    ///
    /// # Errors
    /// [`TooManyRequests`] at the limit; nothing is held.
    pub fn open(&mut self, owing: Owing, waiter: W) -> Result<u64, TooManyRequests> {
        if self.pending.len() >= self.limit {
            return Err(TooManyRequests { limit: self.limit });
        }
        self.last += 1;
        if !owing.is_empty() {
            self.pending.insert(self.last, Pending { owing, waiter });
        }
        Ok(self.last)
    }

    /// Who waits for an answer of this peer to this request; none when it owes none (any more).
    pub fn waiter(&self, id: u64, peer: PeerSlot) -> Option<&W> {
        let pending = self.pending.get(&id)?;
        pending.owing.contains(&peer).then_some(&pending.waiter)
    }

    /// The peer owes nothing more; none when it did not.
    pub fn settle(&mut self, id: u64, peer: PeerSlot) -> Option<Settled<W>> {
        let pending = self.pending.get_mut(&id)?;
        let place = pending.owing.iter().position(|owing| *owing == peer)?;
        pending.owing.swap_remove(place);
        if pending.owing.is_empty() {
            let waiter = self.pending.remove(&id)?.waiter;
            return Some(Settled { waiter, last: true });
        }
        Some(Settled { waiter: pending.waiter.clone(), last: false })
    }

    /// The peer answers nothing any more: settles all that it owes, each with the number of its request. Walks over all
    /// requests.
    pub fn gone(&mut self, peer: PeerSlot) -> Vec<(u64, Settled<W>)> {
        let owed: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.owing.contains(&peer))
            .map(|(id, _)| *id)
            .collect();
        owed.into_iter().filter_map(|id| Some((id, self.settle(id, peer)?))).collect()
    }

    /// The asker gives up: the request is gone. Returns who still owed an answer.
    pub fn cancel(&mut self, id: u64) -> Owing {
        self.pending.remove(&id).map(|pending| pending.owing).unwrap_or_default()
    }

    /// The requests that wait for answers.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether none waits for answers.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn a_share_is_settled_once() {
        let mut requests = Requests::new(10);
        let id = requests.open(smallvec![PeerSlot(1), PeerSlot(2)], "w").unwrap();
        assert_eq!(requests.waiter(id, PeerSlot(1)), Some(&"w"));
        assert_eq!(requests.settle(id, PeerSlot(1)), Some(Settled { waiter: "w", last: false }));
        assert_eq!(requests.waiter(id, PeerSlot(1)), None);
        assert_eq!(requests.settle(id, PeerSlot(1)), None);
        assert_eq!(requests.settle(id, PeerSlot(2)), Some(Settled { waiter: "w", last: true }));
        assert!(requests.is_empty());
    }

    #[test]
    fn the_limit_is_an_error_and_holds_nothing() {
        let mut requests = Requests::new(1);
        let first = requests.open(smallvec![PeerSlot(1)], ()).unwrap();
        assert_eq!(requests.open(smallvec![PeerSlot(1)], ()), Err(TooManyRequests { limit: 1 }));
        assert_eq!(requests.cancel(first).as_slice(), [PeerSlot(1)]);
        assert!(requests.open(smallvec![PeerSlot(1)], ()).unwrap() > first);
    }

    #[test]
    fn a_request_to_nobody_is_over() {
        let mut requests = Requests::new(1);
        requests.open(smallvec![], ()).unwrap();
        assert!(requests.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Open(BTreeSet<u16>),
        Settle(u64, u16),
        Gone(u16),
        Cancel(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            proptest::collection::btree_set(0..5u16, 0..5).prop_map(Step::Open),
            (1..20u64, 0..5u16).prop_map(|(id, peer)| Step::Settle(id, peer)),
            (0..5u16).prop_map(Step::Gone),
            (1..20u64).prop_map(Step::Cancel),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_model(steps in steps()) {
            let mut requests: Requests<u64> = Requests::new(6);
            let mut model: BTreeMap<u64, BTreeSet<u16>> = BTreeMap::new();
            let mut opened = 0;
            for step in steps {
                match step {
                    Step::Open(peers) => {
                        let owing = peers.iter().map(|peer| PeerSlot(*peer)).collect();
                        let open = requests.open(owing, opened + 1);
                        prop_assert_eq!(open.is_err(), model.len() >= 6);
                        if open.is_ok() {
                            opened += 1;
                            if !peers.is_empty() {
                                model.insert(opened, peers);
                            }
                        }
                    }
                    Step::Settle(id, peer) => {
                        let settled = requests.settle(id, PeerSlot(peer));
                        let owed = model.get_mut(&id).is_some_and(|owing| owing.remove(&peer));
                        let last = owed && model[&id].is_empty();
                        prop_assert_eq!(settled, owed.then_some(Settled { waiter: id, last }));
                        model.retain(|_, owing| !owing.is_empty());
                    }
                    Step::Gone(peer) => {
                        let mut settled: Vec<(u64, u64, bool)> =
                            requests.gone(PeerSlot(peer)).into_iter().map(|(id, s)| (id, s.waiter, s.last)).collect();
                        settled.sort_unstable();
                        let mut expected = Vec::new();
                        for (id, owing) in &mut model {
                            if owing.remove(&peer) {
                                expected.push((*id, *id, owing.is_empty()));
                            }
                        }
                        prop_assert_eq!(settled, expected);
                        model.retain(|_, owing| !owing.is_empty());
                    }
                    Step::Cancel(id) => {
                        let mut owing: Vec<u16> = requests.cancel(id).iter().map(|slot| slot.0).collect();
                        owing.sort_unstable();
                        prop_assert_eq!(owing, model.remove(&id).unwrap_or_default().into_iter().collect::<Vec<_>>());
                    }
                }
                prop_assert_eq!(requests.len(), model.len());
            }
        }
    }
}
