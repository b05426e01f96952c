//! Emitters at this node. An emitter is no member: it has no rooms, and what it sends is for the whole cluster, so this
//! node passes it on as if it were its own. What comes from a member is never passed on, so nothing goes in circles.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::core::frame::{BroadcastHead, EndStatus, Op, Relayed, RequestHead};
use crate::error::{DropReason, LinkError};
use crate::hub::peer::{PeerQueue, PeerRole};
use crate::hub::requests::{ANSWER_GRACE, Ask, Asked, Missing, MissingReason, Reply, Targets};
use crate::hub::summary::SUMMARY;
use crate::hub::{Hub, Recent, SERVERS, lock, trace};
use crate::ids::{Incarnation, Namespace, NodeId, PeerSlot, RoomKey};
use crate::quic::handshake::Card;
use crate::trace::TraceContext;

/// The bit of a volatile message in the flags of a frame.
pub(super) const VOLATILE: u8 = 0x04;
/// All emitters together may have this part of the questions of a node, each the same: the node itself keeps the rest.
const SHARE_OF_REQUESTS: usize = 2;

/// The emitters that are linked to this node, and those whose link broke a moment ago.
#[derive(Default)]
pub(crate) struct Guests {
    table: Mutex<Table>,
    /// Emitters that ever came: makes epochs differ.
    came: AtomicU64,
}

#[derive(Default)]
struct Table {
    by_run: HashMap<(NodeId, Incarnation), Entry>,
    /// The node leaves: it takes no more.
    closed: bool,
}

struct Entry {
    guest: Arc<Guest>,
    /// Connections that are the link, or wait to be.
    links: usize,
    /// Since when there is none.
    away_since_ms: Option<u64>,
    /// When it came first, in milliseconds of the node's clock.
    came_ms: u64,
}

/// An emitter, as the status shows it.
pub(crate) struct GuestState {
    pub(crate) queue: Arc<PeerQueue>,
    /// When it came first, in milliseconds of the node's clock.
    pub(crate) came_ms: u64,
    /// Whether it has a link now.
    pub(crate) linked: bool,
}

/// One run of an emitter.
pub(crate) struct Guest {
    pub(crate) queue: Arc<PeerQueue>,
    /// Held by the connection that is the link: one reads at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// The latest of its dials: an earlier one that is still on its way is not used.
    pub(crate) nonce: AtomicU64,
}

impl Guests {
    /// Takes in an emitter that has greeted.
    ///
    /// # Errors
    /// [`LinkError::Stopping`] and [`LinkError::TooManyEmitters`].
    pub(crate) fn admit(&self, hub: &Hub, card: &Card) -> Result<Arc<Guest>, LinkError> {
        let mut table = lock(&self.table);
        if table.closed {
            return Err(LinkError::Stopping);
        }
        let run = (card.id.clone(), card.incarnation);
        let limit = hub.config.link.max_emitters;
        if !table.by_run.contains_key(&run) && table.by_run.len() >= limit {
            return Err(LinkError::TooManyEmitters { limit });
        }
        let entry = table.by_run.entry(run).or_insert_with(|| {
            let seed = hub.incarnation.0 ^ self.came.fetch_add(1, Ordering::Relaxed).rotate_left(48);
            let epoch = xxh3_64_with_seed(hub.id.as_str().as_bytes(), seed) | 1;
            let limit = hub.config.link.outbox_bytes;
            let queue = PeerQueue::new(
                card.id.clone(),
                card.incarnation,
                PeerSlot::GUEST,
                card.advertise,
                epoch,
                limit,
            );
            let (turn, nonce) = (tokio::sync::Mutex::default(), AtomicU64::new(0));
            let guest = Guest {
                queue: Arc::new(queue.with_role(PeerRole::Guest).with_policy(&hub.config.link)),
                turn,
                nonce,
            };
            Entry { guest: Arc::new(guest), links: 0, away_since_ms: None, came_ms: hub.now_ms() }
        });
        entry.links += 1;
        entry.away_since_ms = None;
        entry.guest.nonce.fetch_max(card.nonce, Ordering::AcqRel);
        Ok(Arc::clone(&entry.guest))
    }

    /// A connection of an emitter has ended; with `for_good` the emitter has said goodbye.
    pub(crate) fn ended(&self, guest: &Guest, now_ms: u64, for_good: bool) {
        let mut table = lock(&self.table);
        let run = (guest.queue.id.clone(), guest.queue.incarnation);
        let Some(entry) = table.by_run.get_mut(&run) else { return };
        entry.links -= 1;
        if entry.links > 0 {
            return;
        }
        entry.away_since_ms = Some(now_ms);
        if for_good {
            table.by_run.remove(&run);
            drop(table);
            guest.queue.close();
        }
    }

    /// Forgets those that have been away for longer than `window`.
    pub(crate) fn tick(&self, now_ms: u64, window_ms: u64) {
        let gone: Vec<Entry> = {
            let mut table = lock(&self.table);
            let is_over = |entry: &Entry| {
                entry.away_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= window_ms)
            };
            table.by_run.extract_if(|_, entry| is_over(entry)).map(|(_, entry)| entry).collect()
        };
        for entry in gone {
            entry.guest.queue.close();
        }
    }

    /// Takes no more from now on. Returns those that are here.
    pub(crate) fn close(&self) -> Vec<Arc<PeerQueue>> {
        let mut table = lock(&self.table);
        table.closed = true;
        table.by_run.values().map(|entry| Arc::clone(&entry.guest.queue)).collect()
    }

    /// Those that are here, at most [`crate::config::LinkConfig::max_emitters`].
    pub(crate) fn list(&self) -> Vec<GuestState> {
        let state = |entry: &Entry| GuestState {
            queue: Arc::clone(&entry.guest.queue),
            came_ms: entry.came_ms,
            linked: entry.links > 0,
        };
        lock(&self.table).by_run.values().map(state).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.table).by_run.len()
    }
}

impl Hub {
    /// A broadcast came over a link, with the trace that it is a part of: of a member for those here, of an emitter for the
    /// whole cluster.
    #[inline]
    pub(crate) fn arrived(
        &self,
        from: &PeerQueue,
        recent: &mut Recent,
        trace: Option<TraceContext>,
        head: &BroadcastHead<'_>,
        payload: Bytes,
    ) {
        self.traced(trace, &from.id, head.ns, trace::BROADCAST, || {
            if from.role == PeerRole::Guest {
                self.relay(head, &payload, self.carried(trace));
            } else {
                self.deliver_recent(recent, head, payload);
            }
        });
    }

    /// As [`arrived`](Self::arrived), for one that came alone.
    pub(crate) fn arrived_alone(
        &self,
        from: &PeerQueue,
        trace: Option<TraceContext>,
        head: &BroadcastHead<'_>,
        payload: &Bytes,
    ) {
        if self.summary_arrived(from, head.ns, payload) {
            return;
        }
        self.traced(trace, &from.id, head.ns, trace::BROADCAST, || {
            if from.role == PeerRole::Guest {
                self.relay(head, payload, self.carried(trace));
            } else {
                self.deliver(head, payload);
            }
        });
    }

    /// Delivers a broadcast of an emitter here, and sends it to the nodes that need it.
    fn relay(&self, head: &BroadcastHead<'_>, payload: &Bytes, carried: Option<TraceContext>) {
        self.deliver(head, payload);
        let Some(route) = Route::of(head) else { return };
        // What nodes say to each other is not for emitters to say.
        if head.ns == SUMMARY {
            return;
        }
        // What a queue had no room for is counted as for a broadcast of this node.
        let _ = self.send_on(&route.ns, &route.rooms, head, payload, head.flags & VOLATILE != 0, carried);
    }

    /// Does here what an emitter asks or orders, and passes it on. Must not wait.
    pub(super) fn relay_request(
        self: &Arc<Self>,
        from: &Arc<PeerQueue>,
        head: &RequestHead<'_>,
        payload: &Bytes,
        carried: Option<TraceContext>,
    ) {
        let link = &self.config.link;
        let share = link.max_requests / SHARE_OF_REQUESTS / link.max_emitters.max(1);
        let limit = link.max_serving_per_peer.min(share.max(1));
        let Some(reply) = self.reply_to(from, head, limit) else { return };
        let Some(route) = Route::of(&head.to) else { return reply.end_as(EndStatus::NoNamespace) };
        let targets = match head.op {
            // Servers have no rooms: each looks whether it has a handler.
            Op::ServerEvent => Targets::All,
            // It has no end: for nodes.
            Op::WatchRooms => return reply.end_as(EndStatus::Failed),
            _ => Targets::Rooms(&route.ns, &route.rooms),
        };
        if head.id == 0 {
            self.order_on(targets, head, payload, true, carried);
            return;
        }
        // The emitter waits longer than those who answer, and this node in between.
        let timeout = Duration::from_millis(head.timeout_ms.into()).saturating_sub(ANSWER_GRACE);
        let timeout = (head.timeout_ms > 0).then(|| timeout.max(Duration::from_millis(1)));
        match self.ask_on(Ask { targets, head: same(head), timeout, here: true }, payload, carried) {
            Ok(asked) => drop(tokio::spawn(pass_on(asked, reply))),
            Err(_) => reply.end_as(EndStatus::Busy),
        }
    }
}

/// Where something of an emitter goes.
struct Route {
    ns: Namespace,
    rooms: SmallVec<[RoomKey; 4]>,
}

impl Route {
    /// None when the namespace cannot be one.
    fn of(head: &BroadcastHead<'_>) -> Option<Self> {
        if let Some(server) = head.server {
            let ns = Namespace::new(SERVERS).ok()?;
            let rooms = std::iter::once(ns.room(server)).collect();
            return Some(Self { ns, rooms });
        }
        let ns = Namespace::new(head.ns).ok()?;
        let rooms = head.rooms.iter().map(|room| ns.room(room)).collect();
        Some(Self { ns, rooms })
    }
}

/// The same head, for as long as it is needed.
fn same<'s>(head: &'s RequestHead<'_>) -> RequestHead<'s> {
    let to = &head.to;
    RequestHead {
        names: head.names.iter().copied().collect(),
        to: BroadcastHead {
            ns: to.ns,
            kind: to.kind,
            flags: to.flags,
            rooms: to.rooms.iter().copied().collect(),
            except: to.except.iter().copied().collect(),
            server: to.server,
            socket: to.socket,
            attachments: to.attachments.clone(),
        },
        ..*head
    }
}

/// Passes answers on to the emitter that asked, each with the name of its node, and at the end who is missing.
async fn pass_on(mut asked: Asked, reply: Reply) {
    loop {
        let answer = tokio::select! {
            biased;
            // The emitter has given up, or is gone: what is dropped here is taken back from the others.
            () = reply.unwanted() => return,
            answer = asked.next() => answer,
        };
        let Some(answer) = answer else { break };
        let relayed = Relayed::Answer { node: answer.node.as_str().to_owned(), body: answer.body };
        let Ok(payload) = relayed.encode() else { return reply.end_as(EndStatus::Failed) };
        if reply.answer(payload).await.is_err() {
            return;
        }
    }
    let missing: Vec<_> = asked.missing().into_iter().map(numbered).collect();
    if missing.is_empty() {
        return;
    }
    match Relayed::Missing(missing).encode() {
        Ok(payload) => drop(reply.answer(payload).await),
        Err(_) => reply.end_as(EndStatus::Failed),
    }
}

/// The reasons, by their number on the wire.
const REASONS: [MissingReason; 8] = [
    MissingReason::Left,
    MissingReason::TimedOut,
    MissingReason::NotAsked(DropReason::QueueFull),
    MissingReason::NotAsked(DropReason::TooLarge),
    MissingReason::NotAsked(DropReason::PeerGone),
    MissingReason::Lost,
    MissingReason::Busy,
    MissingReason::Failed,
];

fn numbered(missing: Missing) -> (String, u8) {
    let place = REASONS.iter().position(|reason| *reason == missing.reason);
    let number = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX);
    (missing.node.as_str().to_owned(), number)
}

/// Reads what [`pass_on`] said of a node; a reason of a later version is [`MissingReason::Failed`].
pub(crate) fn missing_from(node: &str, reason: u8) -> Option<Missing> {
    let node = NodeId::new(node).ok()?;
    let reason = REASONS.get(usize::from(reason)).copied().unwrap_or(MissingReason::Failed);
    Some(Missing { node, reason })
}

#[cfg(test)]
mod tests;
