//! The one link of an emitter: finds a node, stays with it, and moves to another when it goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::actors::guests::NoInterest;
use crate::core::link::Backoff;
use crate::error::LinkError;
use crate::event::Event;
use crate::gossip::discovery::{MAX_ADDRESSES, Resolver, Seed};
use crate::hub::Hub;
use crate::hub::peer::{PeerQueue, count};
use crate::hub::requests::MissingReason;
use crate::ids::{Incarnation, NodeId};
use crate::quic::connection;
use crate::quic::handshake::{self, Card, CloseCode, Greeted};

use super::EmitterState;

/// What is said when no address has answered.
pub(super) const NOBODY: &str =
    "nobody answered; give the UDP address that a node listens on, and let UDP through";

/// How long a dial is waited for before the next address is dialled as well.
const STAGGER: Duration = Duration::from_millis(250);

/// The pause between two dials of the same address.
const AGAIN_PAUSE: Duration = Duration::from_millis(50);

/// What the task works with.
pub(super) struct Link {
    pub(super) hub: Arc<Hub>,
    pub(super) queue: Arc<PeerQueue>,
    pub(super) endpoint: quinn::Endpoint,
    pub(super) card: Card,
    pub(super) seeds: Vec<Seed>,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) move_after: Duration,
    pub(super) state: watch::Sender<EmitterState>,
    pub(super) failed: watch::Sender<Option<Failed>>,
    pub(super) rng: StdRng,
    pub(super) last: Option<Last>,
}

/// The node of the link before.
pub(super) struct Last {
    id: NodeId,
    incarnation: Incarnation,
    addr: SocketAddr,
}

/// Why no node was found in the last round.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    /// Each address with its reason.
    pub(super) text: String,
    /// Every address refused, in a way that waiting does not mend.
    pub(super) refused: bool,
}

impl Link {
    pub(super) fn generator(seed: u64) -> StdRng {
        StdRng::seed_from_u64(seed)
    }

    /// Links again and again, until this emitter has said goodbye.
    pub(super) async fn run(mut self) {
        loop {
            let greeted = self.find().await;
            let (id, incarnation) = (greeted.theirs.id.clone(), greeted.theirs.incarnation);
            self.settle_with(&greeted);
            self.last =
                Some(Last { id: id.clone(), incarnation, addr: canonical(greeted.conn.remote_address()) });
            count(&self.queue.counters.links, 1);
            connection::open(&greeted, &self.queue, Handle::current());
            tracing::info!(node = %self.hub.id, peer = %id, "linked");
            // Who saw the state change has missed no later event.
            self.hub.event(Event::LinkUp { peer: id.clone(), incarnation });
            self.state.send_replace(EmitterState::Linked(id.clone()));
            let (queue, hub) = (Arc::clone(&self.queue), Arc::clone(&self.hub));
            let error = connection::run(greeted, queue, hub, Arc::new(NoInterest)).await;
            if self.queue.leaves() {
                return;
            }
            tracing::info!(node = %self.hub.id, peer = %id, reason = %error, "link down");
            self.state.send_replace(EmitterState::Searching);
            self.hub.event(Event::LinkDown { peer: id, reason: error.to_string() });
            if error == LinkError::Duplicate {
                // Two dials met at the node: it is there.
                sleep(AGAIN_PAUSE).await;
            }
            if error == LinkError::Left && !self.queue.has_parted() {
                // It stopped without its last word, and does not come back.
                self.last = self.last.take().map(|last| Last { incarnation: Incarnation(0), ..last });
            }
        }
    }

    /// Says what becomes of what the node before had not acknowledged, when this is another one.
    fn settle_with(&mut self, greeted: &Greeted) {
        let parted = self.queue.has_parted();
        self.queue.part(false);
        let same = |last: &Last| {
            (&last.id, last.incarnation) == (&greeted.theirs.id, greeted.theirs.incarnation) && !parted
        };
        if self.last.as_ref().is_none_or(same) {
            return;
        }
        let frames = self.queue.move_to(self.rng.random::<u64>() | 1, parted);
        // The node before does not answer any more.
        self.hub.requests.gone(self.queue.slot, MissingReason::Lost);
        if frames > 0 {
            let peer = self.queue.id.clone();
            tracing::warn!(node = %self.hub.id, frames, "moved to another node: it is not known what became of these frames");
            self.hub.event(Event::Gap { peer, frames, outgoing: true });
        }
    }

    /// A node that takes this emitter. Never gives up.
    async fn find(&mut self) -> Greeted {
        let owed = self.queue.under_way() > 0 || self.hub.requests.pending() > 0;
        if let Some(last) = self.last.as_ref().filter(|last| last.incarnation.0 > 0)
            && owed
            && !self.queue.has_parted()
        {
            // Only the same run can say what it has applied.
            let addr = last.addr;
            if let Some(greeted) = self.again(addr).await {
                return greeted;
            }
        }
        let mut backoff = Backoff::default();
        loop {
            let began = self.hub.now_ms();
            let (addrs, mut failed) = self.look_up().await;
            let within = self.hub.config.link.handshake_timeout + STAGGER * addrs.len() as u32;
            match self.race(addrs, within).await {
                Ok(greeted) => return greeted,
                Err(errors) => {
                    failed.extend(errors.into_iter().map(|(addr, error)| (addr.to_string(), error)))
                }
            }
            self.report(&failed);
            count(&self.hub.counters.dials_failed, failed.len() as u64);
            let jitter = self.rng.random::<f64>();
            backoff.failed(&self.hub.config.link.dial_backoff, began, jitter);
            sleep(Duration::from_millis(backoff.next_ms.saturating_sub(began))).await;
        }
    }

    /// Dials an address again and again, one dial at a time: a later one would replace the one before at the node.
    async fn again(&mut self, addr: SocketAddr) -> Option<Greeted> {
        let deadline = Instant::now() + self.move_after;
        let one = self.hub.config.link.handshake_timeout / 5;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            match self.race(vec![addr], one.min(left)).await {
                Ok(greeted) => return Some(greeted),
                Err(failed) if failed.iter().any(|(_, error)| !matches!(error, LinkError::Lost(_))) => {
                    return None;
                }
                Err(_) => sleep(AGAIN_PAUSE.min(left)).await,
            }
        }
    }

    /// The addresses of all seeds in random order, the one of the node before last, and the seeds that have none.
    async fn look_up(&mut self) -> (Vec<SocketAddr>, Vec<(String, LinkError)>) {
        let (mut addrs, mut failed) = (Vec::new(), Vec::new());
        let limit = self.hub.config.discovery.resolve_timeout;
        let mut lookups = JoinSet::new();
        for seed in &self.seeds {
            if let Seed::Addr(addr) = seed {
                addrs.push(*addr);
                continue;
            }
            let (resolver, seed) = (Arc::clone(&self.resolver), seed.clone());
            lookups.spawn(async move {
                let found = timeout(limit, seed.addresses(&*resolver)).await;
                let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
                (seed.to_string(), found)
            });
        }
        while let Some(found) = lookups.join_next().await {
            match found {
                Ok((_, Ok(found))) if !found.is_empty() => {
                    addrs.extend(found.into_iter().take(MAX_ADDRESSES))
                }
                Ok((seed, Ok(_))) => {
                    failed.push((seed, LinkError::Unresolved("the name has no address".into())))
                }
                Ok((seed, Err(error))) => failed.push((seed, LinkError::Unresolved(error.to_string()))),
                Err(_) => {}
            }
        }
        addrs.sort_unstable();
        addrs.dedup();
        addrs.shuffle(&mut self.rng);
        if let Some(last) = &self.last
            && let Some(place) = addrs.iter().position(|addr| *addr == last.addr)
        {
            let addr = addrs.remove(place);
            addrs.push(addr);
        }
        (addrs, failed)
    }

    /// Dials one address after the other, each when the one before has failed or takes long. The first node that takes
    /// this emitter wins.
    async fn race(
        &mut self,
        addrs: Vec<SocketAddr>,
        within: Duration,
    ) -> Result<Greeted, Vec<(SocketAddr, LinkError)>> {
        let deadline = Instant::now() + within;
        let (mut dials, mut failed) = (JoinSet::new(), Vec::new());
        let mut waiting = addrs.into_iter();
        let mut next_at = Instant::now();
        loop {
            if waiting.len() == 0 && dials.is_empty() {
                return Err(failed);
            }
            tokio::select! {
                biased;
                Some(done) = dials.join_next() => match done {
                    Ok((_, Ok(greeted))) => {
                        tokio::spawn(decline(dials, greeted.theirs.id.clone(), greeted.theirs.incarnation));
                        return Ok(greeted);
                    }
                    Ok((addr, Err(error))) => {
                        failed.push((addr, error));
                        next_at = Instant::now();
                    }
                    Err(_) => {}
                },
                () = sleep_until(next_at), if waiting.len() > 0 => {
                    if let Some(addr) = waiting.next() {
                        self.dial(addr, &mut dials);
                        next_at = Instant::now() + STAGGER;
                    }
                }
                () = sleep_until(deadline) => {
                    // Those that are still under way have said nothing.
                    return Err(failed);
                }
            }
        }
    }

    fn dial(&mut self, addr: SocketAddr, dials: &mut JoinSet<(SocketAddr, Result<Greeted, LinkError>)>) {
        self.card.nonce += 1;
        let (endpoint, card, limits) = (self.endpoint.clone(), self.card.clone(), self.hub.limits);
        let limit = self.hub.config.link.handshake_timeout;
        dials.spawn(async move {
            let greeted = match timeout(limit, handshake::dial(&endpoint, addr, &card, limits)).await {
                Ok(greeted) => greeted,
                Err(_) => Err(LinkError::Lost(format!("no answer within {} s", limit.as_secs_f32()))),
            };
            if let Err(error @ LinkError::Violation(_)) = &greeted {
                tracing::warn!(node = %card.id, %addr, %error, "failed to link");
            }
            (addr, greeted)
        });
    }

    fn report(&self, failed: &[(String, LinkError)]) {
        let final_reason = |error: &LinkError| {
            matches!(
                error,
                LinkError::Tls(_)
                    | LinkError::Cluster { .. }
                    | LinkError::Protocol { .. }
                    | LinkError::Closed(_)
            )
        };
        let refused = !failed.is_empty() && failed.iter().all(|(_, error)| final_reason(error));
        let text =
            failed.iter().map(|(addr, error)| format!("{addr}: {error}")).collect::<Vec<_>>().join("; ");
        let text = if text.is_empty() { NOBODY.to_owned() } else { text };
        let changed = self.failed.borrow().as_ref().is_none_or(|before| before.text != text);
        if changed {
            tracing::warn!(node = %self.hub.id, reason = %text, "no node takes this emitter");
        }
        self.failed.send_replace(Some(Failed { text, refused }));
    }
}

/// Says goodbye to nodes that took this emitter too late, so that they keep no place for it. The node that was first may
/// be among them by another address: it keeps its place.
async fn decline(
    mut dials: JoinSet<(SocketAddr, Result<Greeted, LinkError>)>,
    id: NodeId,
    incarnation: Incarnation,
) {
    while let Some(done) = dials.join_next().await {
        if let Ok((_, Ok(late))) = done
            && (&late.theirs.id, late.theirs.incarnation) != (&id, incarnation)
        {
            CloseCode::Left.close(&late.conn, "another node was first");
        }
    }
}

/// The address as seeds give it: an IPv6 socket shows IPv4 addresses in a form of its own.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Closes the connections of an emitter with a goodbye.
pub(super) fn close(endpoint: &quinn::Endpoint) {
    endpoint.close(quinn::VarInt::from_u32(CloseCode::Left as u32), b"the emitter is closed");
}
