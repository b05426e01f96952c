//! Requests: asking other nodes, and answering them.
//!
//! A question goes out as one frame to each node that may know something; each answers with any number of answers and
//! one end. Who owes what is kept by [`crate::core::requests`]; here are those who wait, their timeouts and the flow
//! control: a node sends no more answers than the asker has granted, so a slow asker holds a bounded number of them.

mod reply;
mod wait;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::runtime::Handle;

use crate::core::frame::{
    BroadcastHead, EndStatus, Head, LENGTH_BYTES, Op, RequestHead, TraceFrame, encode_head,
};
use crate::core::requests::TooManyRequests;
use crate::core::routes::PeerMask;
use crate::error::DropReason;
use crate::hub::peer::{PeerQueue, PeerRole, count};
use crate::hub::{Hub, Receipt, cluster_rooms, lock, trace};
use crate::ids::{Namespace, NodeId, PeerSlot, RoomKey, Seq};
use crate::trace::TraceContext;

use reply::ReplyTo;
pub(crate) use reply::{Reply, Serving, Unwanted};
#[cfg(feature = "socketioxide")]
pub(crate) use wait::Standing;
pub(crate) use wait::{Asked, RequestTable};
use wait::{Waiter, Waiting};

/// How much longer than its timeout a question waits for the answers of other nodes: those apply the timeout, too, and
/// what they say at its end has to get here.
pub(crate) const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// How much longer than an interest tick rooms are expected of a peer that has applied an order to join them. A peer
/// whose registry stands still for longer while its link works is missed; a longer margin costs unneeded frames.
const ORDER_MARGIN: Duration = Duration::from_secs(2);
/// The parts of a list that a node may send before they are taken here.
pub(crate) const LIST_CREDIT: u32 = 16;

/// Why the share of a node is missing in the answers to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum MissingReason {
    /// The node left, died or was started anew, is not a member, or is silent on its link and in gossip, so that it is
    /// suspected to have died. What it had not answered is missing.
    #[error("left")]
    Left,
    /// The node did not answer in time. It may have done what was asked.
    #[error("timed out")]
    TimedOut,
    /// The question did not get into the queue of the node. It was not asked.
    #[error("not asked: {0}")]
    NotAsked(DropReason),
    /// Frames to or from the node were lost in a long break of the link. It may have done what was asked.
    #[error("frames were lost")]
    Lost,
    /// The node answers as many requests as it may. It did nothing.
    #[error("busy")]
    Busy,
    /// The node could not do it; its log says why.
    #[error("failed")]
    Failed,
}

/// A node whose share is missing in the answers to a question, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Missing {
    /// The node.
    pub node: NodeId,
    /// Why.
    pub reason: MissingReason,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.reason)
    }
}

/// Which other nodes a frame is for.
#[derive(Clone, Copy)]
pub(crate) enum Targets<'a> {
    /// Those that may have members of these rooms; of anyone in the namespace when there are none.
    Rooms(&'a Namespace, &'a [RoomKey]),
    /// Every other node.
    All,
    /// These, by name; not this one.
    Nodes(&'a [NodeId]),
}

/// A question or an order, as fronts see it.
pub(crate) struct Request<'a, 'h> {
    /// The node that asks.
    pub(crate) from: &'a NodeId,
    pub(crate) head: &'a RequestHead<'h>,
    pub(crate) payload: &'a Bytes,
}

/// A question to other nodes.
pub(crate) struct Ask<'a> {
    pub(crate) targets: Targets<'a>,
    /// What is asked. Its `id` and `timeout_ms` are filled in.
    pub(crate) head: RequestHead<'a>,
    /// How long the sockets or handlers may take that answer; none for as long as it takes.
    pub(crate) timeout: Option<Duration>,
    /// Whether this node is asked as well.
    pub(crate) here: bool,
}

impl Hub {
    /// Asks other nodes, and this one where `here` says so.
    ///
    /// # Errors
    /// [`TooManyRequests`] when as many wait as may; nobody was asked.
    pub(crate) fn ask(self: &Arc<Self>, ask: Ask<'_>, payload: &Bytes) -> Result<Asked, TooManyRequests> {
        self.ask_on(ask, payload, None)
    }

    /// As [`ask`](Self::ask), for what came from an emitter, with the trace that it brought: see
    /// [`carried`](Self::carried).
    pub(super) fn ask_on(
        self: &Arc<Self>,
        ask: Ask<'_>,
        payload: &Bytes,
        carried: Option<TraceContext>,
    ) -> Result<Asked, TooManyRequests> {
        let Ask { targets, mut head, timeout, here } = ask;
        let (peers, strangers) = self.select(targets);
        let mut asked: SmallVec<[(PeerSlot, NodeId); 4]> =
            peers.iter().map(|peer| (peer.slot, peer.id.clone())).collect();
        asked.extend(here.then(|| (PeerSlot::SELF, self.id.clone())));
        let owing = asked.iter().map(|(slot, _)| *slot).collect();
        let missing =
            strangers.into_iter().map(|node| Missing { node, reason: MissingReason::Left }).collect();
        let over = asked.is_empty();
        let waiter =
            Arc::new(Waiter { state: Mutex::new(Waiting { asked, missing, over, ..Waiting::default() }) });
        let id = lock(&self.requests.pending).open(owing, Arc::clone(&waiter))?;
        head.id = id;
        head.timeout_ms = timeout.map_or(0, |t| u32::try_from(t.as_millis()).unwrap_or(u32::MAX).max(1));
        let grant_from = (head.credit / 2).max(1);
        let deadline =
            timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout.saturating_add(ANSWER_GRACE))));
        let asked = Asked {
            hub: Arc::clone(self),
            id,
            waiter: Arc::clone(&waiter),
            deadline,
            taken: SmallVec::new(),
            grant_from,
        };
        // Members here first, whatever becomes of the rest.
        if here {
            let reply = self.requests.here.begin(self, ReplyTo::Here(waiter), id, head.credit, usize::MAX);
            if let Some(reply) = reply {
                self.serve(&Request { from: &self.id, head: &head, payload }, &reply);
            }
        }
        // Who was found dead answers no more. After the question was opened: of whom it is found later settles it, too.
        let (dead, peers): (SmallVec<[_; 4]>, SmallVec<[_; 4]>) =
            peers.into_iter().partition(|peer| peer.is_dead());
        for peer in dead {
            self.requests.settle(id, peer.slot, Some(MissingReason::Left));
        }
        if !peers.is_empty() {
            let frame = Head::Request(head.clone());
            let trace = self.trace_out(carried, head.to.ns, trace::name(head.op), || true);
            let trace = trace.as_ref().map(|trace| &trace.frame);
            for (peer, reason) in self.push_all(&peers, trace, &frame, payload) {
                let reason = match reason {
                    DropReason::PeerGone => MissingReason::Left,
                    other => MissingReason::NotAsked(other),
                };
                self.requests.settle(id, peer.slot, Some(reason));
            }
        }
        Ok(asked)
    }

    /// Questions of this node that wait for answers, and questions that are being answered here.
    pub(crate) fn pending_requests(&self) -> (usize, usize) {
        let serving = self.peers().iter().map(|peer| peer.serving.len()).sum::<usize>();
        (self.requests.pending(), self.requests.here.len() + serving)
    }

    /// Orders something of other nodes, and of this one where `here` says so. Nobody waits for it. Names that are no peers
    /// are among what was dropped. From now on this node supposes those in a room whose members it orders to join it.
    pub(crate) fn order(
        self: &Arc<Self>,
        targets: Targets<'_>,
        head: &RequestHead<'_>,
        payload: &Bytes,
        here: bool,
    ) -> Receipt {
        self.order_on(targets, head, payload, here, None)
    }

    /// As [`order`](Self::order), for what came from an emitter, with the trace that it brought: see
    /// [`carried`](Self::carried).
    pub(super) fn order_on(
        self: &Arc<Self>,
        targets: Targets<'_>,
        head: &RequestHead<'_>,
        payload: &Bytes,
        here: bool,
        carried: Option<TraceContext>,
    ) -> Receipt {
        debug_assert_eq!(head.id, 0, "nobody waits for the answer to an order");
        if here {
            self.serve(&Request { from: &self.id, head, payload }, &Reply::nobody());
        }
        let (peers, strangers) = self.select(targets);
        let mut receipt = Receipt { targeted: peers.len() + strangers.len(), ..Receipt::default() };
        if !peers.is_empty() {
            let joined = joined(head);
            let frame = Head::Request(head.clone());
            let trace = self.trace_out(carried, head.to.ns, trace::name(head.op), || true);
            let trace = trace.as_ref().map(|trace| &trace.frame);
            let dropped = self.push_noting(&peers, trace, &frame, payload, |peer, order| {
                self.routes.expect(peer.slot, &joined, order, || !peer.is_closed());
            });
            receipt.queued = peers.len() - dropped.len();
            receipt.dropped = dropped.into_iter().map(|(peer, reason)| (peer.id.clone(), reason)).collect();
        }
        receipt.dropped.extend(strangers.into_iter().map(|node| (node, DropReason::PeerGone)));
        receipt
    }

    /// A peer has applied everything up to a frame: what orders of this node made members of it join is known soon.
    pub(crate) fn orders_applied(&self, peer: &PeerQueue, applied: Seq) {
        let margin = self.config.link.interest_tick.saturating_add(ORDER_MARGIN);
        let margin_ms = u64::try_from(margin.as_millis()).unwrap_or(u64::MAX);
        self.routes.applied(peer.slot, applied, self.now_ms(), margin_ms);
    }

    /// A request of a peer, with the trace that it is a part of. Runs on the task that reads the link: must not wait.
    pub(crate) fn request(
        self: &Arc<Self>,
        from: &Arc<PeerQueue>,
        trace: Option<TraceContext>,
        head: &RequestHead<'_>,
        payload: &Bytes,
    ) {
        self.traced(trace, &from.id, head.to.ns, trace::name(head.op), || {
            if from.role == PeerRole::Guest {
                self.relay_request(from, head, payload, self.carried(trace));
            } else {
                self.request_here(from, head, payload);
            }
        });
    }

    fn request_here(self: &Arc<Self>, from: &Arc<PeerQueue>, head: &RequestHead<'_>, payload: &Bytes) {
        let request = Request { from: &from.id, head, payload };
        let limit = self.config.link.max_serving_per_peer;
        if let Some(reply) = self.reply_to(from, head, limit) {
            self.serve(&request, &reply);
        }
    }

    /// The way back to who asked; none at the limit, which the asker is told.
    pub(super) fn reply_to(
        self: &Arc<Self>,
        from: &Arc<PeerQueue>,
        head: &RequestHead<'_>,
        limit: usize,
    ) -> Option<Reply> {
        if head.id == 0 {
            return Some(Reply::nobody());
        }
        let to = ReplyTo::Peer(Arc::clone(from));
        let reply = from.serving.begin(self, to, head.id, head.credit, limit);
        if reply.is_none() {
            count(&self.counters.requests_refused, 1);
            self.tell(from, &Head::End { id: head.id, status: EndStatus::Busy });
        }
        reply
    }

    /// Has the fronts of the namespace here do what is asked.
    fn serve(self: &Arc<Self>, request: &Request<'_, '_>, reply: &Reply) {
        if request.head.op == Op::WatchRooms {
            if let (true, Ok(runtime)) = (reply.is_wanted(), Handle::try_current()) {
                runtime.spawn(cluster_rooms::tell(Arc::clone(self), reply.clone()));
            }
            return;
        }
        let fronts = self.fronts_of(request.head.to.ns);
        if fronts.is_empty() {
            reply.end_as(EndStatus::NoNamespace);
        }
        fronts.iter().for_each(|front| front.request(request, reply));
    }

    /// The peers that are meant, and those names that are no peers.
    fn select(&self, targets: Targets<'_>) -> (SmallVec<[Arc<PeerQueue>; 4]>, Vec<NodeId>) {
        match targets {
            Targets::All => (self.peers().into(), Vec::new()),
            Targets::Rooms(ns, rooms) => {
                let mut mask = PeerMask::default();
                self.routes.lookup(ns, rooms, &mut mask);
                let peers = self.peers.load();
                let peer = |slot: PeerSlot| peers.get(usize::from(slot.0)).cloned().flatten();
                (mask.iter().filter_map(peer).collect(), Vec::new())
            }
            Targets::Nodes(nodes) => {
                let peers: SmallVec<[Arc<PeerQueue>; 4]> =
                    self.peers().into_iter().filter(|peer| nodes.contains(&peer.id)).collect();
                let known = |node: &&NodeId| peers.iter().all(|peer| peer.id != **node) && **node != self.id;
                let strangers = nodes.iter().filter(known).cloned().collect();
                (peers, strangers)
            }
        }
    }

    /// Queues one frame for several peers; its head is encoded once. Returns who does not get it.
    fn push_all<'p>(
        &self,
        peers: &'p [Arc<PeerQueue>],
        trace: Option<&TraceFrame>,
        head: &Head<'_>,
        payload: &Bytes,
    ) -> Vec<(&'p Arc<PeerQueue>, DropReason)> {
        self.push_noting(peers, trace, head, payload, |_, _| {})
    }

    /// As [`push_all`](Self::push_all); says the number of the frame for each peer that gets it.
    fn push_noting<'p>(
        &self,
        peers: &'p [Arc<PeerQueue>],
        trace: Option<&TraceFrame>,
        head: &Head<'_>,
        payload: &Bytes,
        queued: impl Fn(&PeerQueue, Seq),
    ) -> Vec<(&'p Arc<PeerQueue>, DropReason)> {
        let mut encoded = BytesMut::new();
        let fits = encode_head(head, payload.len(), &mut encoded).is_ok()
            && encoded.len() + payload.len() <= self.limits.max_frame_bytes + LENGTH_BYTES;
        let push = |peer: &'p Arc<PeerQueue>| {
            let pushed = if fits {
                peer.push(trace, &encoded, payload, || self.now_ms())
            } else {
                Err(DropReason::TooLarge)
            };
            let reason = match pushed {
                Ok(seq) => {
                    queued(peer, seq);
                    return None;
                }
                Err(reason) => reason,
            };
            self.count_drop(peer, reason);
            Some((peer, reason))
        };
        peers.iter().filter_map(push).collect()
    }

    /// Queues one frame for one peer; what is not queued is not counted.
    fn offer(&self, peer: &PeerQueue, head: &Head<'_>, payload: &Bytes) -> Result<(), DropReason> {
        let mut encoded = BytesMut::new();
        let fits = encode_head(head, payload.len(), &mut encoded).is_ok()
            && encoded.len() + payload.len() <= self.limits.max_frame_bytes + LENGTH_BYTES;
        if fits {
            peer.push(None, &encoded, payload, || self.now_ms()).map(drop)
        } else {
            Err(DropReason::TooLarge)
        }
    }

    fn count_drop(&self, peer: &PeerQueue, reason: DropReason) {
        count(&self.counters.drops, 1);
        peer.count_drop(reason);
    }

    /// Queues a small frame that must get there, without payload: when the queue is full, as soon as it has room.
    fn tell(self: &Arc<Self>, peer: &Arc<PeerQueue>, head: &Head<'_>) {
        let Err(mut reason) = self.offer(peer, head, &Bytes::new()) else { return };
        if reason == DropReason::QueueFull {
            let runtime = Handle::try_current();
            match (peer.tell_later(head, runtime.is_ok()), runtime) {
                (Ok(true), Ok(runtime)) => {
                    runtime.spawn(tell_late(Arc::clone(self), Arc::clone(peer)));
                    return;
                }
                (Ok(_), _) => return,
                (Err(full), _) => reason = full,
            }
        }
        self.count_drop(peer, reason);
    }

    /// As [`tell`](Self::tell), to the peer in a slot, if there is one.
    fn tell_slot(self: &Arc<Self>, slot: PeerSlot, head: &Head<'_>) {
        let peer = self.peers.load().get(usize::from(slot.0)).cloned().flatten();
        if let Some(peer) = peer {
            self.tell(&peer, head);
        }
    }

    /// The answers of a peer that is still there are not to be waited for: settles what it owes, and has it answer no more.
    pub(crate) fn no_answers(self: &Arc<Self>, peer: &Arc<PeerQueue>, reason: MissingReason) {
        for id in self.requests.gone(peer.slot, reason) {
            self.tell(peer, &Head::Cancel { id });
        }
    }
}

/// Queues what had no room, in order.
async fn tell_late(hub: Arc<Hub>, peer: Arc<PeerQueue>) {
    while let Some(frame) = peer.late() {
        peer.writable(frame.len()).await;
        let pushed = peer.push(None, &frame, &Bytes::new(), || hub.now_ms());
        // Who finds nothing waiting begins anew.
        if pushed != Err(DropReason::QueueFull) && !peer.told_late() {
            return;
        }
    }
}

/// The rooms that an order makes members join; none when it is another order.
fn joined(order: &RequestHead<'_>) -> SmallVec<[RoomKey; 4]> {
    // A path that is none is on no node.
    let Some(ns) = (order.op == Op::Join).then(|| Namespace::new(order.to.ns).ok()).flatten() else {
        return SmallVec::new();
    };
    order.names.iter().map(|room| ns.room(room)).collect()
}

/// What is asked about nobody in particular: everything in a namespace.
pub(crate) fn everyone(ns: &str, kind: crate::core::frame::PayloadKind) -> BroadcastHead<'_> {
    BroadcastHead {
        ns,
        kind,
        flags: 0x02,
        rooms: SmallVec::new(),
        except: SmallVec::new(),
        server: None,
        socket: None,
        attachments: SmallVec::new(),
    }
}

#[cfg(test)]
mod tests;
