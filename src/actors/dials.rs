//! What is known of dialling addresses: how often, how long ago, who was there.

use std::net::SocketAddr;

use hashbrown::HashMap;

use crate::core::link::Backoff;
use crate::error::LinkError;
use crate::hub::Hub;
use crate::hub::peer::count;
use crate::ids::NodeId;

/// The most addresses whose dials are remembered. The oldest that are not in use are forgotten first.
const MAX_ADDRESSES: usize = 4096;
/// How long an address that led to this node itself is left alone.
const OWN_PAUSE_MS: u64 = 30_000;

/// The dials by address.
#[derive(Default)]
pub(crate) struct Dials {
    by_addr: HashMap<SocketAddr, Dial>,
    under_way: usize,
}

struct Dial {
    backoff: Backoff,
    under_way: bool,
    /// When the address was first wanted, or last used.
    since_ms: u64,
    /// The node that was there the last time.
    reached: Option<NodeId>,
    /// The reason that was logged last.
    logged: Option<LinkError>,
}

impl Dials {
    /// Whether to dial now; counts as begun. Not when it is being dialled, was tried a moment ago, or `limit` dials are
    /// under way.
    pub(crate) fn begin(&mut self, addr: SocketAddr, limit: usize, now_ms: u64) -> bool {
        if self.under_way >= limit {
            return false;
        }
        let dial = self.at(addr, now_ms);
        if dial.under_way || dial.backoff.next_ms > now_ms {
            return false;
        }
        dial.under_way = true;
        self.under_way += 1;
        true
    }

    /// A dial ended: with the node that was there, or in vain. Each new reason is logged once.
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
                dial.logged = None;
                dial.reached = Some(id);
                return;
            }
            Err(error) => error,
        };
        count(&hub.counters.dials_failed, 1);
        dial.backoff.failed(&hub.config.link.dial_backoff, now_ms, jitter);
        if error == LinkError::Own {
            // Not for ever: behind the address of a load balancer may be another node the next time.
            dial.backoff.next_ms = now_ms + OWN_PAUSE_MS;
        }
        if dial.logged.as_ref() == Some(&error) {
            return;
        }
        match &error {
            LinkError::Own | LinkError::Duplicate | LinkError::Lost(_) | LinkError::Stopping => {
                tracing::debug!(node = %hub.id, %addr, %error, "failed to link");
            }
            _ => tracing::warn!(node = %hub.id, %addr, %error, "failed to link"),
        }
        dial.logged = Some(error);
    }

    /// When the address was first wanted, or last dialled.
    pub(crate) fn since_ms(&mut self, addr: SocketAddr, now_ms: u64) -> u64 {
        self.at(addr, now_ms).since_ms
    }

    /// The node that the last dial of the address reached.
    pub(crate) fn reached(&self, addr: SocketAddr) -> Option<&NodeId> {
        self.by_addr.get(&addr).and_then(|dial| dial.reached.as_ref())
    }

    fn at(&mut self, addr: SocketAddr, now_ms: u64) -> &mut Dial {
        if self.by_addr.len() >= MAX_ADDRESSES && !self.by_addr.contains_key(&addr) {
            self.forget_oldest();
        }
        self.by_addr.entry(addr).or_insert_with(|| Dial {
            backoff: Backoff::default(),
            under_way: false,
            since_ms: now_ms,
            reached: None,
            logged: None,
        })
    }

    fn forget_oldest(&mut self) {
        let idle = self.by_addr.iter().filter(|(_, dial)| !dial.under_way);
        let mut idle: Vec<_> = idle.map(|(addr, dial)| (dial.since_ms, *addr)).collect();
        idle.sort_unstable();
        for (_, addr) in idle.into_iter().take(MAX_ADDRESSES / 4) {
            self.by_addr.remove(&addr);
        }
    }
}
