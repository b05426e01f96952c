//! The way of an emit through this node: fronts hand messages in, links take them out, and the other way round.
//!
//! Shared by fronts, links and actors. Nothing here waits: an emit is one look into a published snapshot and one
//! bounded enqueue per interested peer.

pub(crate) mod cluster_rooms;
pub(crate) mod feed;
pub(crate) mod guests;
pub(crate) mod handlers;
#[cfg_attr(not(feature = "status"), expect(dead_code, reason = "read by the metrics alone"))]
pub(crate) mod numbers;
pub(crate) mod peer;
pub(crate) mod requests;
pub(crate) mod rooms;
mod settle;
pub(crate) mod summary;
pub(crate) mod trace;
pub(crate) mod waits;

use std::any::Any;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use arc_swap::{ArcSwap, Cache};
use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use smallvec::SmallVec;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::core::frame::{BroadcastHead, FrameLimits, LENGTH_BYTES, TraceFrame, encode_broadcast};
use crate::core::interest::RoomMode;
use crate::core::refusals::{Line, Refusals};
use crate::core::routes::{PeerMask, Routes, RoutesConfig};
use crate::error::{DropReason, IdError, LinkError};
use crate::event::Event;
use crate::ids::{Incarnation, Namespace, NodeId, PeerSlot, RoomKey};
use crate::trace::{TraceContext, Tracer};
use feed::InterestFeed;
use guests::Guests;
use handlers::Handlers;
use numbers::{EmitCounts, Mailbox, Scope};
use peer::PeerQueue;
use requests::{MissingReason, Reply, Request, RequestTable};
use rooms::{PathRooms, RoomFeed};
use summary::Census;

/// The pseudo namespace whose rooms are the ids of Socket.IO servers: a message for one server is routed like a
/// message for one room. Socket.IO paths begin with `/`, so it cannot clash.
pub(crate) const SERVERS: &str = "!server";

/// A front: delivers what came from other nodes to the members of this one.
pub(crate) trait Inbound: Send + Sync + 'static {
    /// Delivers to the members here. Runs on the task that reads the link: must not wait.
    fn deliver(&self, head: &BroadcastHead<'_>, payload: &Bytes);

    /// As [`deliver`](Self::deliver), with a payload that nobody else needs. `kept` is what this front kept when it
    /// delivered the last message, of the same head and a moment ago; none when there was none.
    fn deliver_next(&self, head: &BroadcastHead<'_>, payload: Bytes, kept: &mut Kept) {
        let _ = kept;
        self.deliver(head, &payload);
    }

    /// Does what another node asks or orders, with the members here. Runs on the task that reads the link: must not
    /// wait. What takes longer keeps a clone of `reply`; when the last one is dropped, this node has answered.
    fn request(&self, request: &Request<'_, '_>, reply: &Reply) {
        let _ = (request, reply);
    }

    /// Every room of the front here, with its number of members. `each` is called under the lock under which the front
    /// says who joined and who left: what it is told, and the room events from then on, fit together. It must not come
    /// back to the front.
    fn rooms_here(&self, each: &mut dyn FnMut(&str, usize)) {
        let _ = each;
    }

    /// How many clients and rooms are here, as far as that is cheap to say. Default is none.
    fn census(&self) -> Census {
        Census::default()
    }
}

/// What a front may keep from one message to the next, with a version of its own to tell whether it still holds.
pub(crate) type Kept = Option<(u64, Arc<dyn Any + Send + Sync>)>;

/// What became of a broadcast, as far as this node can tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Other nodes that the message is for: those with members of the rooms, and those whose rooms are not known.
    pub targeted: usize,
    /// Of these, how many have it in their queue (or on the wire, for a volatile message).
    pub queued: usize,
    /// Of these, which do not, and why.
    pub dropped: Vec<(NodeId, DropReason)>,
}

/// Counts of this node, since its start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Broadcasts handed in by fronts.
    pub(crate) emits: EmitCounts,
    /// Frames that were not queued, any reason.
    pub(crate) drops: AtomicU64,
    /// Messages from other nodes that were handed to a front here.
    pub(crate) delivered: AtomicU64,
    /// Messages from other nodes for a namespace that is not here.
    pub(crate) no_namespace: AtomicU64,
    /// Questions of other nodes that were answered with "busy".
    pub(crate) requests_refused: AtomicU64,
    /// Events of other servers that were refused because too many were being handled here.
    pub(crate) server_events_refused: AtomicU64,
    /// Answers that nobody waited for any more.
    pub(crate) late_answers: AtomicU64,
    /// Links refused or ended for a protocol violation.
    pub(crate) violations: AtomicU64,
    /// Incoming connections that were refused: too many under way, or for a reason.
    pub(crate) refused_busy: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Dials that did not end in a link; and of these, those that were refused, were not needed, reached nobody.
    pub(crate) dials_failed: AtomicU64,
    pub(crate) dials_refused: AtomicU64,
    pub(crate) dials_needless: AtomicU64,
    pub(crate) dials_unreachable: AtomicU64,
    /// Dials that ended in a link.
    pub(crate) dials_linked: AtomicU64,
    /// Questions of this node whose time was over before everyone had answered.
    pub(crate) requests_timed_out: AtomicU64,
    /// What became of members: see [`Hub::event`].
    pub(crate) members_joined: AtomicU64,
    pub(crate) members_restarted: AtomicU64,
    pub(crate) members_left: AtomicU64,
    pub(crate) members_suspected: AtomicU64,
    pub(crate) members_dead: AtomicU64,
    pub(crate) members_leaving: AtomicU64,
    pub(crate) members_recovered: AtomicU64,
    /// Links that came up and went down.
    pub(crate) links_up: AtomicU64,
    pub(crate) links_down: AtomicU64,
    /// Lost frames of all peers, also of those that have gone.
    pub(crate) gaps_sent: AtomicU64,
    pub(crate) gaps_received: AtomicU64,
    /// Gossip messages that were dropped because too many were under way.
    pub(crate) gossip_drops: AtomicU64,
    /// Snapshots of this node's interest that were sent because a peer held something else.
    pub(crate) interest_repairs: AtomicU64,
    /// Links that stood, got nothing done and were replaced.
    pub(crate) stalls: AtomicU64,
    /// Refusals for a new reason that were not logged, because too many were.
    pub(crate) refusals_unlogged: AtomicU64,
    /// Connections to the status endpoint that were one too many, and those there are now.
    pub(crate) status_refused: AtomicU64,
    #[cfg(feature = "status")]
    pub(crate) status_connections: AtomicU64,
}

impl Counters {
    /// Broadcasts handed in by fronts for other nodes, also those that no other node was interested in.
    pub(crate) fn emits(&self) -> u64 {
        self.emits.total()
    }

    /// Heads encoded: one for each of these that other nodes were interested in, whatever their number.
    pub(crate) fn encoded(&self) -> u64 {
        self.emits.total().saturating_sub(self.emits.unwanted())
    }
}

impl Counters {
    fn count_event(&self, event: &Event) {
        use crate::core::members::MemberState;
        let (counter, by) = match event {
            Event::MemberJoined { .. } => (&self.members_joined, 1),
            Event::MemberRestarted { .. } => (&self.members_restarted, 1),
            Event::MemberLeft { .. } => (&self.members_left, 1),
            Event::MemberState { state, .. } => match state {
                MemberState::Live => (&self.members_recovered, 1),
                MemberState::Suspect => (&self.members_suspected, 1),
                MemberState::Leaving => (&self.members_leaving, 1),
                MemberState::Dead => (&self.members_dead, 1),
            },
            Event::LinkUp { .. } => (&self.links_up, 1),
            Event::LinkDown { .. } => (&self.links_down, 1),
            Event::Gap { frames, outgoing: true, .. } => (&self.gaps_sent, *frames),
            Event::Gap { frames, outgoing: false, .. } => (&self.gaps_received, *frames),
            Event::LinkSynced { .. } | Event::Missed(_) => return,
        };
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

pub(crate) struct Hub {
    /// This node.
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) config: Config,
    pub(crate) limits: FrameLimits,
    /// Everyone's rooms. Read by every emit, written by the registry.
    pub(crate) routes: Routes,
    /// The peers by slot.
    peers: Arc<ArcSwap<Peers>>,
    /// The fronts by namespace path.
    fronts: ArcSwap<HashMap<Arc<str>, SmallVec<[Front; 1]>>>,
    /// Guards changes of `peers` and `fronts`.
    changes: Mutex<u64>,
    /// Joins and leaves that the registry has not taken yet.
    pending: Mutex<Pending>,
    /// Wakes the registry when `pending` is no longer empty.
    pub(crate) pending_wake: Notify,
    /// How much of what was `pending` is in this node's interest.
    flushed: watch::Sender<settle::Flushed>,
    /// This node's interest, encoded for links.
    pub(crate) feed: InterestFeed,
    pub(crate) counters: Counters,
    /// What waits for the actors.
    pub(crate) registry_mailbox: Mailbox,
    pub(crate) membership_mailbox: Mailbox,
    /// The digest of this node's interest, at the version of `feed` or one that is about to be published.
    pub(crate) interest_digest: AtomicU64,
    /// Questions to other nodes.
    pub(crate) requests: RequestTable,
    /// What this node last said of itself, and when.
    summary: Mutex<Option<(u64, Bytes)>>,
    /// What the others said of themselves.
    #[cfg(feature = "status")]
    summaries: summary::ask::Summaries,
    /// Handlers of the events of other servers.
    pub(crate) handlers: Handlers,
    /// The emitters that are linked to this node.
    pub(crate) guests: Guests,
    /// Connects this node to traces, when it is to be.
    tracer: OnceLock<Box<dyn Tracer>>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Room events, for whoever listens.
    pub(crate) room_feed: Arc<RoomFeed>,
    /// Why incoming connections were refused, as it was logged.
    refusals: Mutex<Refusals<IpAddr>>,
    /// The node has stopped: nobody takes what is pending any more.
    stopped: AtomicBool,
    started: Instant,
}

/// The fronts of the namespace that a message came for last. Of use among messages that came together: a front that
/// attaches later must not be missed, and one that goes must not be kept.
#[derive(Default)]
pub(crate) struct Recent {
    path: Option<Arc<str>>,
    fronts: SmallVec<[Arc<dyn Inbound>; 1]>,
    /// What the last of them kept; whoever calls forgets it when the head changes.
    pub(crate) kept: Kept,
    /// Messages that are not in [`Counters::delivered`] yet.
    delivered: u64,
}

#[derive(Clone)]
struct Front {
    id: u64,
    inbound: Weak<dyn Inbound>,
    /// What the fronts of one path have in common.
    rooms: Arc<PathRooms>,
}

/// What happened to this node's interest since the registry last looked: bounded by the number of distinct rooms,
/// because a join and a leave of the same room cancel out.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) namespaces: Vec<(Namespace, NamespaceOp)>,
    pub(crate) rooms: HashMap<Namespace, HashMap<RoomKey, i64>>,
    /// Counts how often it was taken: see `settle.rs`.
    pub(crate) generation: u64,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.rooms.is_empty()
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum NamespaceOp {
    Attach(RoomMode),
    Detach(RoomMode),
    Flood,
}

/// The peers by slot.
type Peers = Vec<Option<Arc<PeerQueue>>>;

/// What an emit needs and a thread keeps for the next one.
struct Scratch {
    /// Where heads are encoded, so that an emit allocates nothing.
    head: BytesMut,
    /// The last lookup, in the routes of the same node as `peers`.
    memo: Memo,
    /// The peers of the node that this thread sent for last: checked by one look at a pointer, with no counter that the
    /// threads would share. Keeps the queues of peers that have gone, which are empty, until the next emit.
    peers: Option<Cache<Arc<ArcSwap<Peers>>, Arc<Peers>>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { head: BytesMut::with_capacity(1024), memo: Memo::default(), peers: None });
}

impl Scratch {
    fn parts(&mut self, peers: &Arc<ArcSwap<Peers>>) -> (&mut BytesMut, &mut Memo, &Peers) {
        let same = |cache: &&mut Cache<Arc<ArcSwap<Peers>>, _>| std::ptr::eq(cache.arc_swap(), &**peers);
        if self.peers.as_mut().filter(same).is_none() {
            (self.peers, self.memo) = (None, Memo::default());
        }
        let cache = self.peers.get_or_insert_with(|| Cache::new(Arc::clone(peers)));
        (&mut self.head, &mut self.memo, cache.load())
    }
}

/// The last lookup of this thread: who emits to a room often emits to it again.
#[derive(Default)]
struct Memo {
    /// The count of edits of the route table before the lookup, and what was looked up.
    of: Option<(u64, Namespace, RoomKey)>,
    mask: PeerMask,
}

impl Memo {
    fn lookup(&mut self, routes: &Routes, ns: &Namespace, rooms: &[RoomKey]) -> &PeerMask {
        let edits = routes.edits();
        let [room] = rooms else {
            self.of = None;
            routes.lookup(ns, rooms, &mut self.mask);
            return &self.mask;
        };
        let known = self.of.as_ref().is_some_and(|of| of.0 == edits && of.2 == *room && of.1 == *ns);
        if !known {
            routes.lookup(ns, rooms, &mut self.mask);
            self.of = Some((edits, ns.clone(), *room));
        }
        &self.mask
    }
}

impl Hub {
    pub(crate) fn new(id: NodeId, incarnation: Incarnation, config: Config) -> Arc<Self> {
        let limits = FrameLimits {
            max_frame_bytes: config.link.max_frame_bytes,
            max_room_bytes: config.link.max_room_bytes,
        };
        let routes = Routes::new(RoutesConfig {
            max_rooms_per_peer: config.link.max_rooms_per_peer,
            max_namespaces_per_peer: config.link.max_namespaces_per_peer,
        });
        Arc::new(Self {
            id,
            incarnation,
            limits,
            routes,
            peers: Arc::default(),
            fronts: ArcSwap::default(),
            changes: Mutex::new(0),
            pending: Mutex::default(),
            pending_wake: Notify::new(),
            flushed: watch::channel(settle::Flushed::default()).0,
            feed: InterestFeed::new(config.link.interest_log_bytes),
            counters: Counters::default(),
            registry_mailbox: Mailbox::default(),
            membership_mailbox: Mailbox::default(),
            interest_digest: AtomicU64::new(0),
            requests: RequestTable::new(config.link.max_requests),
            summary: Mutex::default(),
            #[cfg(feature = "status")]
            summaries: summary::ask::Summaries::default(),
            handlers: Handlers::new(config.link.max_server_events),
            guests: Guests::default(),
            tracer: OnceLock::new(),
            events: broadcast::channel(config.event_buffer.0).0,
            room_feed: RoomFeed::new(config.room_event_buffer.0),
            refusals: Mutex::default(),
            stopped: AtomicBool::new(false),
            started: Instant::now(),
            config,
        })
    }

    /// Milliseconds since the node started: the clock that `core` is given.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Microseconds since the Unix epoch by the wall clock: what other nodes can compare with theirs.
    #[expect(
        clippy::disallowed_methods,
        reason = "the times of two nodes have only the wall clock in common"
    )]
    pub(crate) fn wall_us(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Counts it and tells whoever listens. Nobody listening is normal.
    pub(crate) fn event(&self, event: Event) {
        self.counters.count_event(&event);
        let _ = self.events.send(event);
    }

    /// Logs why an incoming connection was refused: each reason of an address once, not at every attempt, and not as many as
    /// an insider may think up.
    pub(crate) fn log_refusal(&self, remote: SocketAddr, error: &LinkError) {
        let line = lock(&self.refusals).note(remote.ip(), &error.to_string(), self.now_ms());
        match line {
            Line::Known => {}
            Line::LeftOut => peer::count(&self.counters.refusals_unlogged, 1),
            Line::Due { left_out: 0 } => {
                tracing::warn!(node = %self.id, %remote, %error, "incoming connection refused");
            }
            Line::Due { left_out } => {
                tracing::warn!(node = %self.id, %remote, %error, left_out, "incoming connection refused");
            }
        }
    }

    /// Checks a room name that a user gave.
    #[inline]
    pub(crate) fn check_room(&self, room: &str) -> Result<(), IdError> {
        let limit = self.limits.max_room_bytes;
        if room.len() > limit { Err(IdError::Room { len: room.len(), limit }) } else { Ok(()) }
    }

    /// Sends a message to every other node that is interested in one of `rooms` of `ns` (in anyone, when there are
    /// none). Never waits; the head is encoded once.
    pub(crate) fn send(
        &self,
        ns: &Namespace,
        rooms: &[RoomKey],
        head: &BroadcastHead<'_>,
        payload: &Bytes,
        volatile: bool,
    ) -> Receipt {
        self.send_on(ns, rooms, head, payload, volatile, None)
    }

    /// As [`send`](Self::send), for what came from an emitter, with the trace that it brought: see
    /// [`carried`](Self::carried).
    fn send_on(
        &self,
        ns: &Namespace,
        rooms: &[RoomKey],
        head: &BroadcastHead<'_>,
        payload: &Bytes,
        volatile: bool,
        carried: Option<TraceContext>,
    ) -> Receipt {
        if carried.is_none() && self.tracer.get().is_none() {
            return self.send_under(ns, rooms, head, payload, volatile, None);
        }
        let trace = self.trace_out(carried, head.ns, trace::BROADCAST, || self.wants(ns, rooms));
        self.send_under(ns, rooms, head, payload, volatile, trace.as_ref().map(|trace| &trace.frame))
    }

    /// Sends it, as a part of this trace.
    fn send_under(
        &self,
        ns: &Namespace,
        rooms: &[RoomKey],
        head: &BroadcastHead<'_>,
        payload: &Bytes,
        volatile: bool,
        trace: Option<&TraceFrame>,
    ) -> Receipt {
        self.send_by(ns, rooms, head, payload, volatile.then_some(trace), |peer, head| {
            peer.push(trace, head, payload, || self.now_ms()).map(|_| true)
        })
    }

    /// As [`send`](Self::send), with the way into the queue of a peer: `push` says whether the frame, whose encoded head it
    /// is given, is queued; else it waits. What is `volatile` takes another way, with its trace.
    #[inline]
    fn send_by(
        &self,
        ns: &Namespace,
        rooms: &[RoomKey],
        head: &BroadcastHead<'_>,
        payload: &Bytes,
        volatile: Option<Option<&TraceFrame>>,
        mut push: impl FnMut(&Arc<PeerQueue>, &[u8]) -> Result<bool, DropReason>,
    ) -> Receipt {
        SCRATCH.with_borrow_mut(|scratch| {
            let (scratch, memo, peers) = scratch.parts(&self.peers);
            let mask = memo.lookup(&self.routes, ns, rooms);
            let scope = scope(ns, rooms);
            if mask.is_empty() {
                self.counters.emits.count(scope, 0);
                return Receipt::default();
            }
            scratch.clear();
            let encoded = encode_broadcast(head, payload.len(), scratch);
            let frame_bytes = scratch.len() + payload.len() - LENGTH_BYTES.min(scratch.len());
            let fits = encoded.is_ok() && frame_bytes <= self.limits.max_frame_bytes;
            let mut receipt = Receipt::default();
            for slot in mask.iter() {
                let Some(Some(peer)) = peers.get(usize::from(slot.0)) else { continue };
                receipt.targeted += 1;
                let outcome = match (fits, volatile) {
                    (false, _) => Err(DropReason::TooLarge),
                    (true, Some(trace)) => peer.send_volatile(trace, scratch, payload).map(|()| true),
                    (true, None) => push(peer, scratch),
                };
                match outcome {
                    Ok(queued) => receipt.queued += usize::from(queued),
                    Err(reason) => {
                        self.counters.drops.fetch_add(1, Ordering::Relaxed);
                        peer.count_drop(reason);
                        receipt.dropped.push((peer.id.clone(), reason));
                    }
                }
            }
            self.counters.emits.count(scope, receipt.targeted);
            receipt
        })
    }

    /// Hands a message from another node to the fronts of its namespace here.
    pub(crate) fn deliver(&self, head: &BroadcastHead<'_>, payload: &Bytes) {
        let mut recent = Recent::default();
        self.deliver_recent(&mut recent, head, payload.clone());
        self.count_delivered(&mut recent);
    }

    /// Ends a run of [`deliver_recent`](Self::deliver_recent): counts what was delivered and forgets the fronts.
    pub(crate) fn count_delivered(&self, recent: &mut Recent) {
        let recent = std::mem::take(recent);
        self.counters.delivered.fetch_add(recent.delivered, Ordering::Relaxed);
    }

    /// As [`deliver`](Self::deliver), for messages that came together: `recent` keeps what the last one looked up.
    pub(crate) fn deliver_recent(&self, recent: &mut Recent, head: &BroadcastHead<'_>, payload: Bytes) {
        if recent.path.as_deref() != Some(head.ns) {
            let fronts = self.fronts.load();
            let Some((path, fronts)) = fronts.get_key_value(head.ns) else {
                self.counters.no_namespace.fetch_add(1, Ordering::Relaxed);
                return;
            };
            recent.path = Some(Arc::clone(path));
            recent.fronts = fronts.iter().filter_map(|front| front.inbound.upgrade()).collect();
        }
        recent.delivered += 1;
        let Some((last, others)) = recent.fronts.split_last() else { return };
        others.iter().for_each(|front| front.deliver(head, &payload));
        last.deliver_next(head, payload, &mut recent.kept);
    }

    /// The fronts of a namespace here.
    fn fronts_of(&self, path: &str) -> SmallVec<[Arc<dyn Inbound>; 1]> {
        let fronts = self.fronts.load();
        let fronts = fronts.get(path).into_iter().flatten();
        fronts.filter_map(|front| front.inbound.upgrade()).collect()
    }

    /// Every room here, with its path. `each` is called under the lock under which the events of the path are told: what
    /// it is told, and the room events from then on, fit together. It must not come back to the hub or a front.
    pub(crate) fn each_room(&self, mut each: impl FnMut(&Arc<str>, &str)) {
        let fronts = self.fronts.load();
        for (path, list) in fronts.iter() {
            let Some(Front { rooms, .. }) = list.first() else { continue };
            let alive: Vec<_> = list.iter().filter_map(|front| front.inbound.upgrade()).collect();
            rooms.each(&alive, &mut |room| each(path, room));
        }
    }

    /// Whether a namespace may be attached: it is, or there is room for one more.
    pub(crate) fn has_room_for(&self, ns: &Namespace) -> bool {
        let fronts = self.fronts.load();
        fronts.len() < self.config.link.max_namespaces || fronts.contains_key(ns.path())
    }

    /// Whether any other node would get a message for `rooms` of `ns`.
    pub(crate) fn wants(&self, ns: &Namespace, rooms: &[RoomKey]) -> bool {
        let mut mask = PeerMask::default();
        self.routes.lookup(ns, rooms, &mut mask);
        !mask.is_empty()
    }

    /// Adds a front for a namespace: other nodes now learn that `ns` is here. The front has no rooms yet, and the caller
    /// holds no lock of any front.
    pub(crate) fn attach(
        self: &Arc<Self>,
        ns: &Namespace,
        mode: RoomMode,
        inbound: Weak<dyn Inbound>,
    ) -> Attachment {
        let (id, rooms, others) = {
            let mut next_id = lock(&self.changes);
            *next_id += 1;
            let id = *next_id;
            let others = self.fronts.load().get(ns.path()).cloned().unwrap_or_default();
            let rooms = others.first().map(|front| Arc::clone(&front.rooms));
            let rooms = rooms.unwrap_or_else(|| PathRooms::new(ns.shared_path(), &self.room_feed));
            self.fronts.rcu(|fronts| {
                let mut fronts = HashMap::clone(fronts);
                let front = Front { id, inbound: inbound.clone(), rooms: Arc::clone(&rooms) };
                fronts.entry(Arc::clone(ns.shared_path())).or_default().push(front);
                fronts
            });
            (id, rooms, others)
        };
        // The servers of a node have no rooms that anybody joins.
        if !others.is_empty() && ns.path() != SERVERS {
            let alive = |front: Front| Some((front.id, front.inbound.upgrade()?));
            rooms.share(&others.into_iter().filter_map(alive).collect::<Vec<_>>());
        }
        self.note(|pending| pending.namespaces.push((ns.clone(), NamespaceOp::Attach(mode))));
        Attachment { hub: Arc::clone(self), ns: ns.clone(), mode: Mutex::new(mode), id, rooms }
    }

    /// Takes what the registry has not seen yet. What is noted from now on is in the next generation.
    pub(crate) fn take_pending(&self) -> Pending {
        let mut pending = lock(&self.pending);
        let next = Pending { generation: pending.generation + 1, ..Pending::default() };
        std::mem::replace(&mut *pending, next)
    }

    /// The node stops: what fronts still say about their rooms is for nobody.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.handlers.stop();
        self.take_pending();
        self.flush_no_more();
        self.room_feed.stop();
    }

    fn note(&self, change: impl FnOnce(&mut Pending)) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        let was_empty = {
            let mut pending = lock(&self.pending);
            let was_empty = pending.is_empty();
            change(&mut pending);
            was_empty
        };
        if was_empty {
            self.pending_wake.notify_one();
        }
    }

    fn adjust(&self, ns: &Namespace, room: RoomKey, by: i64) {
        self.note(|pending| {
            // The entry stays when it cancels out: an empty change is cheaper than a map that flips.
            *pending.rooms.entry_ref(ns).or_default().entry(room).or_default() += by;
        });
    }

    /// Adds a peer in a free slot: from now on it gets every broadcast, until its interest is known.
    pub(crate) fn add_peer(&self, make: impl FnOnce(PeerSlot) -> Arc<PeerQueue>) -> Arc<PeerQueue> {
        let _changes = lock(&self.changes);
        let mut peers = Vec::clone(&self.peers.load());
        let index = peers.iter().position(Option::is_none).unwrap_or(peers.len());
        let slot = PeerSlot(u16::try_from(index).unwrap_or(u16::MAX));
        let peer = make(slot);
        if index == peers.len() {
            peers.push(Some(Arc::clone(&peer)));
        } else {
            peers[index] = Some(Arc::clone(&peer));
        }
        // First the queue, then the route: a lookup that finds the slot finds the queue.
        self.peers.store(Arc::new(peers));
        self.routes.add_peer(slot);
        peer
    }

    /// Removes a peer; returns how many frames it was still owed.
    pub(crate) fn remove_peer(&self, peer: &PeerQueue) -> u64 {
        let _changes = lock(&self.changes);
        self.routes.remove_peer(peer.slot);
        let mut peers = Vec::clone(&self.peers.load());
        if let Some(place) = peers.get_mut(usize::from(peer.slot.0)) {
            *place = None;
        }
        self.peers.store(Arc::new(peers));
        let owed = peer.close();
        // After the close: a question that was queued until then is among those that are settled here.
        self.requests.gone(peer.slot, MissingReason::Left);
        self.routes.expect_nothing(peer.slot);
        owed
    }

    /// The peers, in the order of their slots.
    pub(crate) fn peers(&self) -> Vec<Arc<PeerQueue>> {
        self.peers.load().iter().flatten().cloned().collect()
    }

    /// The number of peers that could get frames.
    pub(crate) fn peer_count(&self) -> usize {
        self.peers.load().iter().flatten().count()
    }
}

/// A front's place in its namespace. Dropping it takes the namespace back.
pub(crate) struct Attachment {
    hub: Arc<Hub>,
    ns: Namespace,
    mode: Mutex<RoomMode>,
    id: u64,
    rooms: Arc<PathRooms>,
}

impl Attachment {
    /// The node's hub.
    #[inline]
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// The namespace.
    #[inline]
    pub(crate) fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// A room got its first member here (`by` 1) or lost its last (`by` -1).
    pub(crate) fn adjust(&self, room: RoomKey, by: i64) {
        self.hub.adjust(&self.ns, room, by);
    }

    /// A member of the front joined a room, as the `first` there or not. To be called under the lock that made the change.
    #[inline]
    pub(crate) fn joined(&self, room: &Arc<str>, first: bool, member: impl FnOnce() -> Arc<str>) {
        self.rooms.joined(self.id, room, first, member);
    }

    /// A member of the front left a room, as the `last` there or not. To be called under the lock that made the change.
    #[inline]
    pub(crate) fn left(&self, room: &Arc<str>, last: bool, member: impl FnOnce() -> Arc<str>) {
        self.rooms.left(self.id, room, last, member);
    }

    /// The front can be asked for its rooms from now on. To be called before its first room by a front that could not
    /// when it was attached.
    pub(crate) fn placed(&self) {
        self.rooms.placed();
    }

    /// Gives up exact rooms: from now on every broadcast of the namespace comes here. Returns whether that is new.
    pub(crate) fn flood(&self) -> bool {
        let mut mode = lock(&self.mode);
        if *mode == RoomMode::Flood {
            return false;
        }
        *mode = RoomMode::Flood;
        self.hub.note(|pending| pending.namespaces.push((self.ns.clone(), NamespaceOp::Flood)));
        true
    }

    /// Whether rooms are exact.
    pub(crate) fn mode(&self) -> RoomMode {
        *lock(&self.mode)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mode = self.mode();
        let _changes = lock(&self.hub.changes);
        self.hub.fronts.rcu(|fronts| {
            let mut fronts = HashMap::clone(fronts);
            if let Some(list) = fronts.get_mut(self.ns.path()) {
                list.retain(|front| front.id != self.id);
                if list.is_empty() {
                    fronts.remove(self.ns.path());
                }
            }
            fronts
        });
        self.hub.note(|pending| pending.namespaces.push((self.ns.clone(), NamespaceOp::Detach(mode))));
    }
}

/// Whom a broadcast is for, by what selects its nodes.
#[inline]
pub(crate) fn scope(ns: &Namespace, rooms: &[RoomKey]) -> Scope {
    if ns.path() == SERVERS {
        return Scope::Server;
    }
    if rooms.is_empty() { Scope::All } else { Scope::Rooms }
}

/// Locks. A panic while a lock of ours is held leaves plain data behind, so the lock stays usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
