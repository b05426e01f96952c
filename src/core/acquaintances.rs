//! Where other nodes once were: kept for long after they are forgotten as members, and visited now and then.
//!
//! Without it two sides of a split could forget each other for good, when no seed leads from one to the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::ids::NodeId;

/// The most nodes that are remembered. Those that were not linked for longest are forgotten first.
/// Cost: about 150 bytes each, and one dial now and then of each that is away.
const MAX: usize = 256;

/// Nodes that were linked once and did not say goodbye.
#[derive(Debug, Default)]
pub struct Acquaintances {
    nodes: BTreeMap<NodeId, Acquaintance>,
}

#[derive(Debug)]
struct Acquaintance {
    addr: SocketAddr,
    /// When it was linked last.
    seen_ms: u64,
    /// When it is visited next.
    next_ms: u64,
}

/// How long nodes are remembered, and how often they are visited.
#[derive(Debug, Clone, Copy)]
pub struct Visits {
    /// How long, in milliseconds since the last link.
    pub remember_ms: u64,
    /// The shortest pause between two visits of one node, in milliseconds. The longest is twice that.
    pub revisit_ms: u64,
}

impl Acquaintances {
    /// A link goes to that node, which is dialled at that address.
    pub fn met(&mut self, id: &NodeId, addr: SocketAddr, now_ms: u64) {
        if !self.nodes.contains_key(id) && self.nodes.len() >= MAX {
            let oldest = self.nodes.iter().min_by_key(|(_, node)| node.seen_ms).map(|(id, _)| id.clone());
            oldest.map(|id| self.nodes.remove(&id));
        }
        self.nodes.insert(id.clone(), Acquaintance { addr, seen_ms: now_ms, next_ms: now_ms });
    }

    /// The node has left on purpose.
    pub fn left(&mut self, id: &NodeId) {
        self.nodes.remove(id);
    }

    /// At that address is this node: whoever was there before is not there any more.
    pub fn found(&mut self, addr: SocketAddr, id: &NodeId) {
        self.nodes.retain(|known, node| node.addr != addr || known == id);
    }

    /// The one to visit now: at most one each time, the one that waits for longest. `is_linked` says who needs no visit;
    /// `jitter` is a random number below 1.
    pub fn next(
        &mut self,
        visits: &Visits,
        now_ms: u64,
        jitter: f64,
        is_linked: impl Fn(&NodeId) -> bool,
    ) -> Option<SocketAddr> {
        for (id, node) in &mut self.nodes {
            if is_linked(id) {
                (node.seen_ms, node.next_ms) = (now_ms, now_ms.saturating_add(visits.revisit_ms));
            }
        }
        self.nodes.retain(|_, node| now_ms.saturating_sub(node.seen_ms) <= visits.remember_ms);
        let due = self.nodes.values_mut().filter(|node| node.next_ms <= now_ms);
        let node = due.min_by_key(|node| node.next_ms)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a part of a small positive number of milliseconds"
        )]
        let more = (visits.revisit_ms as f64 * jitter) as u64;
        node.next_ms = now_ms.saturating_add(visits.revisit_ms).saturating_add(more);
        Some(node.addr)
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISITS: Visits = Visits { remember_ms: 100_000, revisit_ms: 10_000 };

    fn id(number: usize) -> NodeId {
        NodeId::new(format!("n{number:04}")).unwrap()
    }

    fn addr(port: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], u16::try_from(port).unwrap()))
    }

    #[test]
    fn who_is_away_is_visited_now_and_then_until_the_time_is_over() {
        let mut known = Acquaintances::default();
        known.met(&id(1), addr(1), 0);
        known.met(&id(2), addr(2), 0);
        assert_eq!(known.next(&VISITS, 5_000_000, 0.5, |_| true), None, "both are linked, for long");
        let start = 5_000_000;
        let visits: Vec<_> = (0..=130u64)
            .filter_map(|second| {
                let now = start + second * 1_000;
                Some((second, known.next(&VISITS, now, 0.5, |node| *node == id(2))?))
            })
            .collect();
        let expected: Vec<_> = (0..7).map(|visit| (10 + visit * 15, addr(1))).collect();
        assert_eq!(visits, expected);
        assert_eq!(known.len(), 1, "it was away for too long");
    }

    #[test]
    fn who_left_or_was_followed_by_another_is_not_visited() {
        let mut known = Acquaintances::default();
        for number in 1..=3 {
            known.met(&id(number), addr(number), 0);
        }
        known.left(&id(1));
        known.found(addr(2), &id(9));
        known.found(addr(3), &id(3));
        let visited: Vec<_> = (0..3).filter_map(|now| known.next(&VISITS, now, 0.0, |_| false)).collect();
        assert_eq!(visited, [addr(3)]);
        known.met(&id(3), addr(7), 50);
        assert_eq!(known.next(&VISITS, 60, 0.0, |_| false), Some(addr(7)), "it has moved");
    }

    #[test]
    fn no_more_than_so_many_are_remembered_and_each_gets_its_turn() {
        let mut known = Acquaintances::default();
        for number in 0..1_000 {
            known.met(&id(number), addr(number + 1), number as u64);
        }
        assert_eq!(known.len(), MAX);
        let mut visited: Vec<_> =
            (0..MAX as u64).filter_map(|now| known.next(&VISITS, 1_000 + now, 0.9, |_| false)).collect();
        visited.sort_unstable();
        visited.dedup();
        assert_eq!(visited.len(), MAX);
        assert_eq!(visited[0], addr(1_000 - MAX + 1));
    }
}
