//! What is known of dialling addresses: how often, how long ago, who was there.

use std::collections::VecDeque;
use std::net::SocketAddr;

use hashbrown::HashMap;

use crate::core::link::Backoff;
use crate::core::refusals::{Line, Refusals};
use crate::error::LinkError;
use crate::gossip::discovery::DiscoveryState;
use crate::hub::Hub;
use crate::hub::peer::count;
use crate::ids::NodeId;

/// The most addresses whose dials are remembered. The oldest that are not in use are forgotten first.
const MAX_ADDRESSES: usize = 4096;
/// The most addresses that wait to be dialled. Those beyond are asked for again later.
const MAX_WAITING: usize = 1024;
/// How long an address that led to this node itself is left alone.
const OWN_PAUSE_MS: u64 = 30_000;
/// A node that is alone for so long says so.
const ALONE_MS: u64 = 10_000;
/// The most addresses that are named when a node says that it is alone.
const MAX_TRIED: usize = 8;

/// The dials by address.
#[derive(Default)]
pub(crate) struct Dials {
    by_addr: HashMap<SocketAddr, Dial>,
    under_way: usize,
    /// Why dials were refused, as it was logged.
    refusals: Refusals<SocketAddr>,
    /// Addresses that were wanted while as many dials as may were under way, in their order, each once.
    waiting: VecDeque<SocketAddr>,
}

struct Dial {
    backoff: Backoff,
    under_way: bool,
    /// It is in the queue.
    waiting: bool,
    /// When the address was first wanted, or last used.
    since_ms: u64,
    /// The node that was there the last time.
    reached: Option<NodeId>,
    /// Why the last dial failed; none when it did not.
    failed: Option<LinkError>,
}

impl Dials {
    /// Whether to dial now; counts as begun. Not when it is being dialled, was tried a moment ago, or `limit` dials are
    /// under way: then it waits for its turn, so that many dead addresses do not keep a live one from being dialled. A
    /// `known` node goes before addresses that are mere hints.
    pub(crate) fn begin(&mut self, addr: SocketAddr, known: bool, limit: usize, now_ms: u64) -> bool {
        let free = self.under_way < limit && (known || self.waiting.is_empty());
        let room = self.waiting.len() < MAX_WAITING;
        let dial = self.at(addr, now_ms);
        if dial.under_way || dial.waiting || dial.backoff.next_ms > now_ms {
            return false;
        }
        dial.under_way = free;
        dial.waiting = !free && room;
        match (free, known) {
            (true, _) => self.under_way += 1,
            (false, _) if !room => {}
            (false, true) => self.waiting.push_front(addr),
            (false, false) => self.waiting.push_back(addr),
        }
        free
    }

    /// The address whose turn it is, if there is room for one more dial; counts as begun. Those that `skip` names are no
    /// longer wanted.
    pub(crate) fn next(&mut self, limit: usize, skip: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        while self.under_way < limit {
            let addr = self.waiting.pop_front()?;
            let Some(dial) = self.by_addr.get_mut(&addr) else { continue };
            dial.waiting = false;
            if !skip(addr) {
                dial.under_way = true;
                self.under_way += 1;
                return Some(addr);
            }
        }
        None
    }

    /// A dial ended: with the node that was there, or in vain. Each new reason is logged once, but not as many refusals as the
    /// other side may think up.
    pub(crate) fn end(
        &mut self,
        addr: SocketAddr,
        result: Result<NodeId, LinkError>,
        hub: &Hub,
        now_ms: u64,
        jitter: f64,
    ) {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(dial) = self.by_addr.get_mut(&addr) else { return };
        dial.under_way = false;
        dial.since_ms = now_ms;
        let error = match result {
            Ok(id) => {
                dial.backoff.succeeded();
                dial.failed = None;
                self.refusals.forget(&addr);
                dial.reached = Some(id);
                count(&hub.counters.dials_linked, 1);
                return;
            }
            Err(error) => error,
        };
        count(&hub.counters.dials_failed, 1);
        match &error {
            LinkError::Own | LinkError::Duplicate | LinkError::Stopping => {
                count(&hub.counters.dials_needless, 1);
            }
            LinkError::Lost(_) => count(&hub.counters.dials_unreachable, 1),
            _ => count(&hub.counters.dials_refused, 1),
        }
        dial.backoff.failed(&hub.config.link.dial_backoff, now_ms, jitter);
        if error == LinkError::Own {
            // Not for ever: behind the address of a load balancer may be another node the next time.
            dial.backoff.next_ms = now_ms + OWN_PAUSE_MS;
        }
        match &error {
            LinkError::Own | LinkError::Duplicate | LinkError::Lost(_) | LinkError::Stopping => {
                if dial.failed.as_ref() != Some(&error) {
                    tracing::debug!(node = %hub.id, %addr, %error, "failed to link");
                }
            }
            _ => match self.refusals.note(addr, &error.to_string(), now_ms) {
                Line::Known => {}
                Line::LeftOut => count(&hub.counters.refusals_unlogged, 1),
                Line::Due { left_out: 0 } => {
                    tracing::warn!(node = %hub.id, %addr, %error, "failed to link");
                }
                Line::Due { left_out } => {
                    tracing::warn!(node = %hub.id, %addr, %error, left_out, "failed to link");
                }
            },
        }
        dial.failed = Some(error);
    }

    /// When the address was first wanted, or last dialled.
    pub(crate) fn since_ms(&mut self, addr: SocketAddr, now_ms: u64) -> u64 {
        self.at(addr, now_ms).since_ms
    }

    /// The node that the last dial of the address reached.
    pub(crate) fn reached(&self, addr: SocketAddr) -> Option<&NodeId> {
        self.by_addr.get(&addr).and_then(|dial| dial.reached.as_ref())
    }

    /// Which seeds were tried in vain and what came of it, for an operator; none when they only lead to this node itself.
    pub(crate) fn tried(&self, seeds: &[DiscoveryState], own: SocketAddr) -> Option<String> {
        let mut tried = Vec::new();
        for seed in seeds {
            if let Some(error) = &seed.last_error {
                tried.push(format!("{} (failed to resolve: {error})", seed.source));
            }
            for addr in seed.addresses.iter().filter(|addr| **addr != own) {
                let name = match addr.to_string() {
                    text if text == seed.source => text,
                    text => format!("{} at {text}", seed.source),
                };
                match self.by_addr.get(addr).and_then(|dial| dial.failed.as_ref()) {
                    Some(LinkError::Own) => {}
                    Some(error) => tried.push(format!("{name} ({error})")),
                    None => tried.push(format!("{name} (no answer yet)")),
                }
            }
        }
        let more = tried.len().saturating_sub(MAX_TRIED);
        tried.truncate(MAX_TRIED);
        if more > 0 {
            tried.push(format!("{more} more"));
        }
        (!tried.is_empty()).then(|| tried.join(", "))
    }

    fn at(&mut self, addr: SocketAddr, now_ms: u64) -> &mut Dial {
        if self.by_addr.len() >= MAX_ADDRESSES && !self.by_addr.contains_key(&addr) {
            self.forget_oldest();
        }
        self.by_addr.entry(addr).or_insert_with(|| Dial {
            backoff: Backoff::default(),
            under_way: false,
            waiting: false,
            since_ms: now_ms,
            reached: None,
            failed: None,
        })
    }

    fn forget_oldest(&mut self) {
        let idle = self.by_addr.iter().filter(|(_, dial)| !dial.under_way && !dial.waiting);
        let mut idle: Vec<_> = idle.map(|(addr, dial)| (dial.since_ms, *addr)).collect();
        idle.sort_unstable();
        for (_, addr) in idle.into_iter().take(MAX_ADDRESSES / 4) {
            self.by_addr.remove(&addr);
        }
    }
}

/// For how long the node has had no link, and whether that was said.
#[derive(Default)]
pub(crate) struct Alone {
    since_ms: u64,
    said: bool,
}

impl Alone {
    /// Whether the node is alone for so long that it must be said, and was not yet.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        !self.said && now_ms.saturating_sub(self.since_ms) >= ALONE_MS
    }

    /// It was said.
    pub(crate) fn said(&mut self) {
        self.said = true;
    }

    /// The node has a link. Returns whether it was said that it had none.
    pub(crate) fn over(&mut self, now_ms: u64) -> bool {
        self.since_ms = now_ms;
        std::mem::take(&mut self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn seed(source: &str, ports: &[u16], error: Option<&str>) -> DiscoveryState {
        let addresses = ports.iter().map(|port| addr(*port)).collect();
        let last_error = error.map(str::to_owned);
        DiscoveryState {
            source: source.to_owned(),
            last_success: None,
            last_error,
            addresses,
            rounds: 1,
            answered: true,
        }
    }

    #[test]
    fn what_was_tried_names_seeds_and_reasons() {
        let mut dials = Dials::default();
        dials.at(addr(1), 0).failed = Some(LinkError::Lost("no answer within 5 s".into()));
        dials.at(addr(2), 0).failed = Some(LinkError::Own);
        let seeds = [
            seed("10.0.0.1:1", &[1], None),
            seed("10.0.0.1:2", &[2], None),
            seed("peers.:7", &[3, 9], None),
            seed("none.:7", &[], Some("no such name")),
        ];
        assert_eq!(
            dials.tried(&seeds, addr(9)).unwrap(),
            "10.0.0.1:1 (connection lost: no answer within 5 s), peers.:7 at 10.0.0.1:3 (no answer yet), \
             none.:7 (failed to resolve: no such name)"
        );
        assert_eq!(dials.tried(&seeds[1..2], addr(9)), None, "it leads to this node");
        assert_eq!(dials.tried(&[], addr(9)), None);
        let ports: Vec<u16> = (10..40).collect();
        let text = dials.tried(&[seed("many.:7", &ports, None)], addr(9)).unwrap();
        assert!(text.ends_with(", 22 more"), "{text}");
    }

    #[test]
    fn everyone_has_a_turn_however_many_are_dead() {
        let mut dials = Dials::default();
        let hub = Hub::new(NodeId::new("n").unwrap(), Default::default(), crate::Config::default());
        // As discovery asks, in the same order again and again; each dial takes 5 s and fails.
        let (mut dialled, mut now) = (Vec::new(), 0);
        while !dialled.contains(&addr(200)) {
            assert!(now < 60_000, "{dialled:?}");
            let mut under_way: Vec<_> =
                (1..=200).map(addr).filter(|a| dials.begin(*a, false, 64, now)).collect();
            under_way.extend(std::iter::from_fn(|| dials.next(64, |_| false)));
            assert!(under_way.len() <= 64);
            dialled.extend(&under_way);
            now += 5_000;
            for dead in under_way {
                dials.end(dead, Err(LinkError::Lost("no answer".into())), &hub, now, 0.5);
            }
        }
        assert_eq!(now, 20_000, "200 addresses are four rounds of 64");
    }

    #[test]
    fn who_refuses_for_ever_new_reasons_is_not_logged_each_time() {
        let mut dials = Dials::default();
        let hub = Hub::new(NodeId::new("n").unwrap(), Default::default(), crate::Config::default());
        let unlogged = || hub.counters.refusals_unlogged.load(std::sync::atomic::Ordering::Relaxed);
        for number in 0..100_u64 {
            assert!(dials.begin(addr(1), false, 64, number * 5_000));
            dials.end(addr(1), Err(LinkError::closed(&format!("{number}"))), &hub, number * 5_000, 0.5);
        }
        assert_eq!(unlogged(), 100 - 8 - 49);
        // The last one is what is said of the seed, logged or not.
        let tried = dials.tried(&[seed("10.0.0.1:1", &[1], None)], addr(9)).unwrap();
        assert!(tried.ends_with("(closed by the peer: 99)"), "{tried}");
    }

    #[test]
    fn known_nodes_go_first_and_linked_ones_are_skipped() {
        let mut dials = Dials::default();
        assert!(dials.begin(addr(1), false, 1, 0) && !dials.begin(addr(1), false, 1, 0));
        for hint in [2, 3] {
            assert!(!dials.begin(addr(hint), false, 1, 0));
        }
        assert!(!dials.begin(addr(4), true, 1, 0) && !dials.begin(addr(4), true, 1, 0));
        assert_eq!(dials.next(1, |_| false), None);
        assert_eq!(dials.next(2, |_| false), Some(addr(4)));
        assert_eq!(dials.next(9, |skipped| skipped == addr(2)), Some(addr(3)));
        assert_eq!(dials.next(9, |_| false), None);
    }

    #[test]
    fn being_alone_is_said_once_each_time() {
        let mut alone = Alone::default();
        assert!(!alone.is_due(9_999) && alone.is_due(10_000));
        alone.said();
        assert!(!alone.is_due(60_000));
        assert!(alone.over(61_000) && !alone.over(62_000));
        assert!(!alone.is_due(71_999) && alone.is_due(72_000));
    }
}
