//! `Membership`: who is in the cluster, whom to dial, which peers run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message};
use hashbrown::HashMap;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::actors::dials::{Alone, Dials};
use crate::actors::incoming::offer;
use crate::actors::links::LinkTable;
use crate::actors::peer::{Peer, PeerContext, Retire};
use crate::actors::registry::RoomRegistry;
use crate::actors::watch::Watch;
use crate::core::acquaintances::{Acquaintances, Visits};
use crate::core::link::{Run, compare_run};
use crate::core::members::{Conflict, Gossiped, Member, MemberChange, MemberState, Members};
use crate::error::LinkError;
use crate::event::Event;
use crate::gossip::Gossip;
use crate::gossip::discovery::DiscoveryShared;
use crate::hub::Hub;
use crate::hub::peer::{PeerQueue, count};
use crate::hub::requests::MissingReason;
use crate::ids::{Incarnation, NodeId};
use crate::quic::handshake::{self, Card, CloseCode};

/// Results of dials, links that come and go, views: about the number of peers at worst.
const MAILBOX: usize = 1024;
/// How often what is due is looked for.
const TICK: Duration = Duration::from_millis(100);
/// Seeds are looked over every so many ticks; each address has its own pauses between dials.
const SEED_TICKS: u64 = 20;
/// A node that was forgotten is visited every so many ticks at most, one each time.
const VISIT_TICKS: u64 = 5;
/// A view is not taken more often than this.
const VIEW_PAUSE: Duration = Duration::from_millis(20);
/// How long a connection that was closed as a duplicate is given until the other one is the link.
const REPLACEMENT_TIME: Duration = Duration::from_millis(500);
/// News of a member is gossiped at once to so many linked nodes.
const SPREAD: usize = 3;
/// A link counts as quiet after so many ticks in which its reader called it that: 2 s after the last byte with the defaults.
const QUIET_TICKS: u32 = 10;
/// Gossip goes at full pace for so long after the last change of a member.
const ALERT_MS: u64 = 10_000;
/// While it does, its view is looked at again every so many ticks: what it says of a node has another meaning when its link is
/// lost.
const LOOK_TICKS: u64 = 5;
/// A link that came up after the last sign of a newer run of this node and stands for so long shows that there is none
/// any more: who knows of one closes the link at once.
const ACCEPTED_MS: u64 = 5_000;

/// What the actor is made from.
pub(crate) struct Parts {
    pub(crate) hub: Arc<Hub>,
    pub(crate) gossip: Arc<Gossip>,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) card: Card,
    pub(crate) links: Arc<LinkTable>,
    pub(crate) discovery: Arc<DiscoveryShared>,
    pub(crate) runtime: Handle,
    pub(crate) registry: Addr<RoomRegistry>,
    pub(crate) published: watch::Sender<Arc<Vec<Member>>>,
    pub(crate) alone: watch::Sender<bool>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) random_seed: u64,
}

/// Keeps the members and their peers.
pub(crate) struct Membership {
    parts: Parts,
    members: Members,
    peers: HashMap<NodeId, Entry>,
    dials: Dials,
    acquaintances: Acquaintances,
    rng: StdRng,
    /// The node leaves: it dials only to mend links.
    leaving: bool,
    /// And takes no more links at all.
    draining: bool,
    alone: Alone,
    /// The conflict that is published, and when there was the last sign of it.
    conflict: Option<Conflict>,
    conflict_seen_ms: u64,
    /// The newest other run of this node's id that was logged.
    conflict_logged: Incarnation,
    ticks: u64,
    /// Until when this node gossips at full pace, whatever the members are like.
    alert_until_ms: u64,
}

/// The peer actor of one run.
struct Entry {
    incarnation: Incarnation,
    actor: Addr<Peer>,
    queue: Arc<PeerQueue>,
    /// The number of the link that is up.
    link: Option<u64>,
    /// Since when the member is dead or unknown.
    gone_since_ms: Option<u64>,
    /// Whether gossip knows this run.
    heard: bool,
    /// For how many ticks its link has been quiet.
    quiet_ticks: u32,
}

impl Membership {
    pub(crate) fn new(parts: Parts) -> Self {
        let members =
            Members::new(parts.hub.id.clone(), parts.hub.incarnation, parts.hub.config.members.clone());
        let rng = StdRng::seed_from_u64(parts.random_seed);
        Self {
            parts,
            members,
            peers: HashMap::new(),
            dials: Dials::default(),
            acquaintances: Acquaintances::default(),
            rng,
            leaving: false,
            draining: false,
            alone: Alone::default(),
            conflict: None,
            conflict_seen_ms: 0,
            conflict_logged: Incarnation::default(),
            ticks: 0,
            alert_until_ms: ALERT_MS,
        }
    }

    fn now_ms(&self) -> u64 {
        self.parts.hub.now_ms()
    }

    /// Dials an address unless it is linked, being dialled, our own, or was tried a moment ago; when too many dials are under
    /// way, it waits for its turn. A `known` node goes before hints.
    fn dial(&mut self, addr: SocketAddr, known: bool, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        let limit = self.parts.hub.config.link.max_dials;
        if !self.is_unwanted(addr) && self.dials.begin(addr, known, limit, now) {
            self.begin_dial(addr, ctx);
        }
    }

    /// Dials whose turn it is.
    fn dial_waiting(&mut self, ctx: &mut Context<Self>) {
        let limit = self.parts.hub.config.link.max_dials;
        let mut dials = std::mem::take(&mut self.dials);
        while let Some(addr) = dials.next(limit, |addr| self.is_unwanted(addr)) {
            self.begin_dial(addr, ctx);
        }
        self.dials = dials;
    }

    fn is_unwanted(&self, addr: SocketAddr) -> bool {
        let mends = || self.peers.values().any(|entry| entry.queue.advertise == addr);
        self.draining || self.parts.links.is_linked(addr) || (self.leaving && !mends())
    }

    fn begin_dial(&mut self, addr: SocketAddr, ctx: &mut Context<Self>) {
        tracing::debug!(node = %self.parts.hub.id, %addr, "dialling");
        self.parts.card.nonce += 1;
        let (hub, endpoint) = (Arc::clone(&self.parts.hub), self.parts.endpoint.clone());
        let (card, me) = (self.parts.card.clone(), ctx.address());
        self.parts.runtime.spawn(async move {
            let limit = hub.config.link.handshake_timeout;
            let greeted = tokio::time::timeout(limit, handshake::dial(&endpoint, addr, &card, hub.limits));
            let result = match greeted.await {
                Err(_) => Err(LinkError::Lost(format!("no answer within {} s", limit.as_secs()))),
                Ok(Err(error)) => Err(error),
                Ok(Ok(greeted)) => offer(greeted, &hub, &me).await,
            };
            let _letter = hub.membership_mailbox.letter();
            let _ = me.send(Dialled { addr, result }).await;
        });
    }

    /// Dials known nodes that have no link. The node with the larger id first leaves it to the other to dial.
    fn dial_candidates(&mut self, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        let patience = u64::try_from(self.parts.hub.config.link.dial_yield.as_millis()).unwrap_or(u64::MAX);
        for (id, incarnation, addr) in self.members.candidates() {
            let leaving = self.members.get(&id).is_some_and(|member| member.state == MemberState::Leaving);
            let linked = self
                .peers
                .get(&id)
                .is_some_and(|entry| entry.incarnation == incarnation && entry.link.is_some());
            if leaving || linked {
                continue;
            }
            let since = self.dials.since_ms(addr, now);
            if self.parts.hub.id < id || now.saturating_sub(since) >= patience {
                self.dial(addr, true, ctx);
            }
        }
    }

    /// Suspects who is quiet, and sets the pace of gossip: full while there is any doubt.
    fn look_for_quiet(&mut self, now_ms: u64) {
        let mut changes = Vec::new();
        let mut doubt = false;
        for (id, entry) in &mut self.peers {
            let quiet = entry.link.is_some() && entry.queue.is_quiet();
            let was = entry.quiet_ticks >= QUIET_TICKS;
            entry.quiet_ticks = if quiet { entry.quiet_ticks.saturating_add(1) } else { 0 };
            doubt |= quiet;
            let is = entry.quiet_ticks >= QUIET_TICKS;
            if was != is {
                changes.extend(self.members.link_quiet(id, entry.incarnation, is, now_ms));
            }
        }
        if !changes.is_empty() {
            self.apply(changes);
        }
        let calm = |member: &Member| match member.state {
            MemberState::Live => member.linked,
            MemberState::Suspect => false,
            MemberState::Leaving | MemberState::Dead => true,
        };
        doubt |= now_ms < self.alert_until_ms || !self.members.iter().all(calm);
        self.parts.gossip.set_alert(doubt);
        if doubt && self.ticks.is_multiple_of(LOOK_TICKS) {
            self.parts.gossip.look_again();
        }
    }

    fn apply(&mut self, changes: Vec<MemberChange>) {
        if !changes.is_empty() {
            self.alert_until_ms = self.now_ms() + ALERT_MS;
        }
        let node = self.parts.hub.id.clone();
        let mut news = false;
        for change in changes {
            match change {
                MemberChange::Joined(member) => {
                    news = true;
                    tracing::info!(%node, peer = %member.id, addr = %member.addr, incarnation = %member.incarnation, "member joined");
                    let Member { id, incarnation, addr, .. } = member;
                    self.parts.hub.event(Event::MemberJoined { id, incarnation, addr });
                }
                MemberChange::StateChanged { member, was } => {
                    tracing::info!(%node, peer = %member.id, state = ?member.state, ?was, "member state changed");
                    let Member { id, incarnation, state, linked, .. } = member;
                    self.found(&id, incarnation, state == MemberState::Dead);
                    if state == MemberState::Suspect && linked {
                        self.suspected(&id, incarnation);
                    }
                    self.parts.hub.event(Event::MemberState { id, incarnation, state });
                }
                MemberChange::Moved { member, was } => {
                    tracing::info!(%node, peer = %member.id, addr = %member.addr, %was, "member moved");
                }
                MemberChange::Restarted { old, new } => {
                    news = true;
                    tracing::info!(%node, peer = %new.id, addr = %new.addr, incarnation = %new.incarnation, was = %old.incarnation, "member restarted");
                    self.retire(&old.id, Some(old.incarnation), CloseCode::Stale);
                    let Member { id, incarnation, addr, .. } = new;
                    self.parts.hub.event(Event::MemberRestarted { id, incarnation, addr });
                }
                MemberChange::Left(member) => {
                    tracing::info!(%node, peer = %member.id, "member left");
                    let Member { id, incarnation, .. } = member;
                    self.retire(&id, Some(incarnation), CloseCode::Stale);
                    self.parts.hub.event(Event::MemberLeft { id, incarnation });
                }
            }
        }
        if news {
            self.spread();
        }
        self.publish();
    }

    /// Gossips news at once instead of at the next interval.
    fn spread(&mut self) {
        let mut linked: Vec<_> = self
            .peers
            .values()
            .filter(|entry| entry.link.is_some())
            .map(|entry| entry.queue.advertise)
            .collect();
        for _ in 0..SPREAD.min(linked.len()) {
            let index = self.rng.random_range(0..linked.len());
            self.parts.gossip.contact(linked.swap_remove(index));
        }
    }

    /// Publishes the members, this node first.
    fn publish(&mut self) {
        let own = own_member(&self.parts.hub, &self.parts.card, self.leaving);
        let own = Member { conflict: self.conflict.clone(), ..own };
        let members = std::iter::once(own).chain(self.members.iter().cloned()).collect();
        self.parts.published.send_replace(Arc::new(members));
        let alone = !self.peers.values().any(|entry| entry.link.is_some());
        self.parts.alone.send_if_modified(|was| std::mem::replace(was, alone) != alone);
    }

    /// A newer run of this node's id was heard of.
    fn heard_of_rival(&mut self, incarnation: Incarnation, addr: Option<SocketAddr>) {
        self.conflict_seen_ms = self.now_ms();
        self.members.own_run(incarnation, addr);
        self.show_conflict();
    }

    /// As [`heard_of_rival`](Self::heard_of_rival), if that is why the other side refused this node.
    fn heard_refusal(&mut self, error: &LinkError) {
        if let Some(newer) = error.newer_run(&self.parts.hub.id, self.parts.hub.incarnation) {
            self.heard_of_rival(newer, None);
        }
    }

    /// Publishes a conflict that began, changed or ended. Each is logged once.
    fn show_conflict(&mut self) {
        if self.members.conflict() == self.conflict.as_ref() {
            return;
        }
        self.conflict = self.members.conflict().cloned();
        let hub = &self.parts.hub;
        match &self.conflict {
            Some(conflict) => {
                self.conflict_seen_ms = hub.now_ms();
                if conflict.incarnation > self.conflict_logged {
                    self.conflict_logged = conflict.incarnation;
                    tracing::error!(node = %hub.id, "{}", conflict.reason(&hub.id, hub.incarnation));
                }
            }
            None => {
                tracing::info!(node = %hub.id, "the cluster takes this run of the node id for the newest again")
            }
        }
        self.publish();
    }

    /// Ends a conflict when another node has let this run in since the last sign of it, and kept it.
    fn look_for_acceptance(&mut self, now_ms: u64) {
        if self.conflict.is_none() {
            return;
        }
        let stands = |entry: &Entry| {
            let since = entry.queue.link_since_ms.load(std::sync::atomic::Ordering::Relaxed);
            entry.link.is_some()
                && since > self.conflict_seen_ms
                && now_ms.saturating_sub(since) >= ACCEPTED_MS
        };
        if self.peers.values().any(stands) {
            self.members.own_accepted();
            self.show_conflict();
        }
    }

    /// Says that the node stays alone although it has seeds, and that it is no longer.
    fn look_around(&mut self, now_ms: u64) {
        let node = &self.parts.hub.id;
        if self.peers.values().any(|entry| entry.link.is_some()) {
            if self.alone.over(now_ms) {
                tracing::info!(%node, "no longer alone");
            }
            return;
        }
        let asks = self.ticks.is_multiple_of(SEED_TICKS);
        if !asks || self.leaving || self.conflict.is_some() || !self.alone.is_due(now_ms) {
            return;
        }
        let own = self.parts.card.advertise;
        if let Some(tried) = self.dials.tried(&self.parts.discovery.snapshot(), own) {
            self.alone.said();
            tracing::warn!(%node, addr = %own, tried,
                "still alone: no other node was reached for 10 s; UDP may be blocked, or the address or the port of the \
                 seeds wrong (see `discovery` in the status, and `listen` in that of the others; RUST_LOG=roomcast=debug \
                 shows each dial); it goes on trying");
        }
    }

    /// Makes the peer of a run that was greeted, or finds it.
    fn admit(&mut self, card: &Card, ctx: &mut Context<Self>) -> Result<Addr<Peer>, LinkError> {
        if self.draining {
            return Err(LinkError::Stopping);
        }
        let hub = Arc::clone(&self.parts.hub);
        let stale = |known| LinkError::Stale { id: card.id.clone(), got: card.incarnation, known };
        if let Some(newest) = self.members.newest(&card.id).filter(|newest| card.incarnation < *newest) {
            return Err(stale(newest));
        }
        if card.id == hub.id {
            self.heard_of_rival(card.incarnation, Some(card.advertise));
            return Err(LinkError::Taken(card.id.clone()));
        }
        let known = self.peers.get(&card.id).map(|entry| entry.incarnation);
        match compare_run(known, card.incarnation) {
            Run::Older => return Err(stale(known.unwrap_or_default())),
            Run::Same => {
                if let Some(entry) = self.peers.get(&card.id) {
                    return Ok(entry.actor.clone());
                }
            }
            Run::Newer => self.retire(&card.id, None, CloseCode::Stale),
            Run::New => {}
        }
        let epoch = self.rng.random::<u64>() | 1;
        let limit = hub.config.link.outbox_bytes;
        let queue = hub.add_peer(|slot| {
            let (id, run) = (card.id.clone(), card.incarnation);
            let queue = PeerQueue::new(id, run, slot, card.advertise, epoch, limit);
            Arc::new(queue.with_policy(&hub.config.link))
        });
        let context = PeerContext {
            hub,
            runtime: self.parts.runtime.clone(),
            registry: self.parts.registry.clone(),
            membership: ctx.address(),
            links: Arc::clone(&self.parts.links),
        };
        let actor = Peer::new(context, Arc::clone(&queue)).start();
        let entry = Entry {
            incarnation: card.incarnation,
            actor: actor.clone(),
            queue,
            link: None,
            gone_since_ms: None,
            heard: false,
            quiet_ticks: 0,
        };
        self.peers.insert(card.id.clone(), entry);
        Ok(actor)
    }

    /// Gives a peer up: what it was still owed is a gap.
    fn retire(&mut self, id: &NodeId, only: Option<Incarnation>, code: CloseCode) {
        if only.is_some_and(|only| self.peers.get(id).is_none_or(|entry| entry.incarnation != only)) {
            return;
        }
        let Some(entry) = self.peers.remove(id) else { return };
        let frames = entry.queue.close();
        // Its slot is free only when its link has ended, which may take a moment.
        self.parts.hub.requests.gone(entry.queue.slot, MissingReason::Left);
        if frames > 0 {
            tracing::warn!(node = %self.parts.hub.id, peer = %id, frames, "frames for a peer that is gone were lost");
            self.parts.hub.event(Event::Gap { peer: id.clone(), frames, outgoing: true });
        }
        let actor = entry.actor;
        actix::spawn(async move {
            let _ = actor.send(Retire(code)).await;
        });
    }

    /// A peer is dead: nobody waits for its answers any more, and nobody begins to. What is queued for it is kept, should
    /// it come back. Or it is no longer.
    fn found(&self, id: &NodeId, incarnation: Incarnation, dead: bool) {
        let Some(entry) = self.peers.get(id).filter(|entry| entry.incarnation == incarnation) else { return };
        entry.queue.set_dead(dead);
        if dead {
            self.parts.hub.no_answers(&entry.queue, MissingReason::Left);
        }
    }

    /// Gossip no longer hears a peer whose link stands. When its link is silent, too, nobody waits any longer for the answers
    /// that it owes. When the link is not, they may come at any moment: gossip alone errs, for one after a pause of this
    /// process. Nor is one given up whose link has just ended: a link that comes back brings them.
    fn suspected(&self, id: &NodeId, incarnation: Incarnation) {
        let Some(entry) = self.peers.get(id).filter(|entry| entry.incarnation == incarnation) else { return };
        if entry.queue.is_quiet() {
            self.parts.hub.no_answers(&entry.queue, MissingReason::Left);
        }
    }

    /// Whether a dial of that address reached a node that is linked, maybe by another address: a dial would only
    /// replace the link.
    fn is_alias(&self, addr: SocketAddr) -> bool {
        let reached = self.dials.reached(addr);
        reached.and_then(|id| self.peers.get(id)).is_some_and(|entry| entry.link.is_some())
    }

    /// Dials seeds that have no link, for ever: after a long split both sides have forgotten each other.
    fn dial_seeds(&mut self, ctx: &mut Context<Self>) {
        for seed in self.parts.discovery.snapshot() {
            for addr in seed.addresses {
                if addr != self.parts.card.advertise && !self.is_alias(addr) {
                    self.dial(addr, false, ctx);
                }
            }
        }
    }

    /// Dials where a node once was that is linked no more: seeds may lead nowhere, and members are forgotten.
    fn visit(&mut self, ctx: &mut Context<Self>) {
        let config = &self.parts.hub.config.members;
        let visits = Visits { remember_ms: config.remember_ms, revisit_ms: config.revisit_ms };
        let (now, jitter) = (self.now_ms(), self.rng.random::<f64>());
        let peers = &self.peers;
        let is_linked = |id: &NodeId| peers.get(id).is_some_and(|entry| entry.link.is_some());
        if let Some(addr) = self.acquaintances.next(&visits, now, jitter, is_linked)
            && !self.is_alias(addr)
        {
            self.dial(addr, false, ctx);
        }
    }

    fn link_down(&mut self, down: LinkDown, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        let LinkDown { id, incarnation, link, error } = down;
        let Some(entry) = self.peers.get_mut(&id) else { return };
        if entry.incarnation != incarnation || entry.link != Some(link) {
            return;
        }
        entry.link = None;
        tracing::info!(node = %self.parts.hub.id, peer = %id, reason = %error, "link down");
        // Who lets this node in before it looks at the other side's hello refuses it afterwards.
        self.heard_refusal(&error);
        self.parts.hub.event(Event::LinkDown { peer: id.clone(), reason: error.to_string() });
        if error == LinkError::Left {
            self.acquaintances.left(&id);
            self.retire(&id, Some(incarnation), CloseCode::Left);
            let changes = self.members.said_goodbye(&id, incarnation, now);
            self.apply(changes);
        } else {
            let changes = self.members.link_down(&id, incarnation, now);
            self.apply(changes);
            self.dial_candidates(ctx);
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        self.parts.watch.membership();
        let changes = self.members.tick(now);
        if !changes.is_empty() {
            self.apply(changes);
        }
        self.look_for_quiet(now);
        self.dial_candidates(ctx);
        self.look_for_acceptance(now);
        self.ticks += 1;
        self.look_around(now);
        if self.ticks.is_multiple_of(SEED_TICKS) {
            self.dial_seeds(ctx);
        }
        if self.ticks.is_multiple_of(VISIT_TICKS) {
            self.visit(ctx);
        }
        let link = &self.parts.hub.config.link;
        let window = u64::try_from(link.resume_window.as_millis()).unwrap_or(u64::MAX);
        let oldest = link.max_queue_age.and_then(|age| now.checked_sub(u64::try_from(age.as_millis()).ok()?));
        let mut gone = Vec::new();
        for (id, entry) in &mut self.peers {
            if entry.link.is_some() {
                entry.gone_since_ms = None;
                if let Some(oldest) = oldest {
                    entry.queue.expire_unsent(oldest);
                }
                if !entry.heard {
                    // The first message may have been dropped: a link without gossip would hide the peer's friends.
                    self.parts.gossip.contact(entry.queue.advertise);
                }
                continue;
            }
            entry.queue.expire(now, window);
            let listed = self
                .members
                .get(id)
                .is_some_and(|m| m.incarnation == entry.incarnation && m.state != MemberState::Dead);
            let since = *entry.gone_since_ms.get_or_insert(now);
            if listed {
                entry.gone_since_ms = None;
            } else if now.saturating_sub(since) >= window {
                gone.push(id.clone());
            }
        }
        for id in gone {
            self.retire(&id, None, CloseCode::Stale);
        }
        self.parts.hub.guests.tick(now, window);
    }
}

/// This node, as it lists itself.
pub(crate) fn own_member(hub: &Hub, card: &Card, draining: bool) -> Member {
    Member {
        id: hub.id.clone(),
        incarnation: hub.incarnation,
        addr: card.advertise,
        state: if draining { MemberState::Leaving } else { MemberState::Live },
        linked: true,
        since_ms: 0,
        conflict: None,
    }
}

impl Actor for Membership {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.publish();
        ctx.run_interval(TICK, |membership, ctx| membership.tick(ctx));
        let (gossip, hub, me) = (Arc::clone(&self.parts.gossip), Arc::clone(&self.parts.hub), ctx.address());
        actix::spawn(async move {
            let mut changed = gossip.changed();
            while changed.changed().await.is_ok() {
                let view = View(gossip.view().await);
                let letter = hub.membership_mailbox.letter();
                if me.send(view).await.is_err() {
                    break;
                }
                drop(letter);
                tokio::time::sleep(VIEW_PAUSE).await;
            }
        });
    }
}

/// The addresses to reach, from gossip and discovery.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Begin(pub(crate) mpsc::Receiver<SocketAddr>);

impl Handler<Begin> for Membership {
    type Result = ();

    fn handle(&mut self, Begin(mut wanted): Begin, ctx: &mut Self::Context) {
        let (me, hub) = (ctx.address(), Arc::clone(&self.parts.hub));
        actix::spawn(async move {
            while let Some(addr) = wanted.recv().await {
                let _letter = hub.membership_mailbox.letter();
                if me.send(Wanted(addr)).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// An address is to be reached.
#[derive(Message)]
#[rtype(result = "()")]
struct Wanted(SocketAddr);

impl Handler<Wanted> for Membership {
    type Result = ();

    fn handle(&mut self, Wanted(addr): Wanted, ctx: &mut Self::Context) {
        self.dial(addr, false, ctx);
    }
}

/// What gossip knows now.
#[derive(Message)]
#[rtype(result = "()")]
struct View(Vec<crate::gossip::GossipMember>);

impl Handler<View> for Membership {
    type Result = ();

    fn handle(&mut self, View(view): View, ctx: &mut Self::Context) {
        let mut news = false;
        for member in &view {
            if let Some(entry) = self.peers.get_mut(&member.id) {
                let heard = entry.incarnation == member.incarnation;
                news |= heard && !entry.heard;
                entry.heard |= heard;
            }
        }
        if news {
            // Only now does gossip have something to tell the others of a peer that linked.
            self.spread();
        }
        // Who is heard over its link is not missed.
        let is_heard = |m: &crate::gossip::GossipMember| {
            let entry = self.peers.get(&m.id).filter(|entry| entry.incarnation == m.incarnation);
            entry.is_some_and(|entry| entry.link.is_some() && !entry.queue.is_quiet())
        };
        let gossiped = |m: crate::gossip::GossipMember| Gossiped {
            alive: m.alive && (!m.missed || is_heard(&m)),
            id: m.id,
            incarnation: m.incarnation,
            addr: m.addr,
            leaving: m.leaving,
        };
        let view: Vec<Gossiped> = view.into_iter().map(gossiped).collect();
        let changes = self.members.gossip(&view, self.now_ms());
        if !changes.is_empty() {
            self.apply(changes);
        }
        self.show_conflict();
        self.dial_candidates(ctx);
    }
}

/// Someone said who they are: is a link with them wanted?
#[derive(Message)]
#[rtype(result = "Result<Addr<Peer>, LinkError>")]
pub(crate) struct Offer(pub(crate) Card);

impl Handler<Offer> for Membership {
    type Result = Result<Addr<Peer>, LinkError>;

    fn handle(&mut self, Offer(card): Offer, ctx: &mut Self::Context) -> Self::Result {
        self.admit(&card, ctx)
    }
}

/// A dial ended.
#[derive(Message)]
#[rtype(result = "()")]
struct Dialled {
    addr: SocketAddr,
    result: Result<NodeId, LinkError>,
}

impl Handler<Dialled> for Membership {
    type Result = ();

    fn handle(&mut self, Dialled { addr, result }: Dialled, ctx: &mut Self::Context) {
        let (now, jitter) = (self.now_ms(), self.rng.random::<f64>());
        match &result {
            Ok(id) => self.acquaintances.found(addr, id),
            Err(error) => self.heard_refusal(error),
        }
        self.dials.end(addr, result, &self.parts.hub, now, jitter);
        self.dial_waiting(ctx);
    }
}

/// A link is up.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct LinkUp {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) addr: SocketAddr,
    /// The number of the link, growing with each link of that run.
    pub(crate) link: u64,
}

impl Handler<LinkUp> for Membership {
    type Result = ();

    fn handle(&mut self, up: LinkUp, _: &mut Self::Context) {
        let now = self.now_ms();
        let Some(entry) = self.peers.get_mut(&up.id).filter(|entry| entry.incarnation == up.incarnation)
        else {
            return;
        };
        entry.link = Some(up.link);
        entry.gone_since_ms = None;
        entry.queue.link_since_ms.store(now, std::sync::atomic::Ordering::Relaxed);
        tracing::info!(node = %self.parts.hub.id, peer = %up.id, addr = %up.addr, "link up");
        self.acquaintances.met(&up.id, up.addr, now);
        let changes = self.members.link_up(up.id.clone(), up.incarnation, up.addr, now);
        self.parts.gossip.contact(up.addr);
        self.apply(changes);
        self.parts.hub.event(Event::LinkUp { peer: up.id, incarnation: up.incarnation });
    }
}

/// A link ended and no other took its place at once.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct LinkDown {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) link: u64,
    pub(crate) error: LinkError,
}

impl Handler<LinkDown> for Membership {
    type Result = ();

    fn handle(&mut self, down: LinkDown, ctx: &mut Self::Context) {
        if matches!(down.error, LinkError::Violation(_)) {
            count(&self.parts.hub.counters.violations, 1);
        }
        if down.error == LinkError::Duplicate {
            // The other connection is about to take its place: nothing is down unless it does not.
            ctx.run_later(REPLACEMENT_TIME, |membership, ctx| membership.link_down(down, ctx));
            return;
        }
        self.link_down(down, ctx);
    }
}

/// The node has stopped: the actor ends, with its timers.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Stop;

impl Handler<Stop> for Membership {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        let ids: Vec<_> = self.peers.keys().cloned().collect();
        for id in ids {
            self.retire(&id, None, CloseCode::Left);
        }
        ctx.stop();
    }
}

/// The node leaves: it looks for nobody any more, and keeps its links.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Leave;

impl Handler<Leave> for Membership {
    type Result = ();

    fn handle(&mut self, _: Leave, _: &mut Self::Context) {
        self.leaving = true;
        self.publish();
    }
}

/// No more new links: the node leaves.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Drain;

impl Handler<Drain> for Membership {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.draining = true;
    }
}
