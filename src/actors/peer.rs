//! `Peer`: one per remote run. Owns which connection is the link to it.

use std::sync::Arc;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::actors::links::LinkTable;
use crate::actors::membership::{LinkDown, LinkUp, Membership};
use crate::actors::registry::{LinkLost, RoomRegistry, TakeSnapshot, Update};
use crate::core::link::{Dialled, Settle, settle};
use crate::error::LinkError;
use crate::hub::Hub;
use crate::hub::feed::InterestSnapshot;
use crate::hub::peer::{PeerQueue, count};
use crate::ids::NodeId;
use crate::quic::connection::{self, Applied, InterestUpdate, LinkHost};
use crate::quic::handshake::{CloseCode, Greeted};

/// Connections and ends of links of one peer: a handful at a time.
const MAILBOX: usize = 64;

/// What every peer needs of the node.
#[derive(Clone)]
pub(crate) struct PeerContext {
    pub(crate) hub: Arc<Hub>,
    pub(crate) runtime: Handle,
    pub(crate) registry: Addr<RoomRegistry>,
    pub(crate) membership: Addr<Membership>,
    pub(crate) links: Arc<LinkTable>,
}

/// One run of another node.
pub(crate) struct Peer {
    node: PeerContext,
    queue: Arc<PeerQueue>,
    /// The connection that is the link now.
    standing: Option<Dialled>,
    /// The connection that becomes the link when the standing one has ended.
    waiting: Option<Greeted>,
    /// Why the peer goes, once it does.
    retired: bool,
    links: u64,
}

impl Peer {
    pub(crate) fn new(node: PeerContext, queue: Arc<PeerQueue>) -> Self {
        Self { node, queue, standing: None, waiting: None, retired: false, links: 0 }
    }

    fn start(&mut self, greeted: Greeted, ctx: &mut Context<Self>) {
        self.standing = Some(dialled(&greeted));
        self.links += 1;
        let (link, node, queue, addr) =
            (self.links, self.node.clone(), Arc::clone(&self.queue), ctx.address());
        count(&queue.counters.links, 1);
        // Not in the task: what closes the link from now on must find it.
        connection::open(&greeted, &queue, self.node.runtime.clone());
        self.node.runtime.spawn(async move {
            let remote = greeted.conn.remote_address();
            let host = Host {
                hub: Arc::clone(&node.hub),
                registry: node.registry.clone(),
                links: Arc::clone(&node.links),
            };
            node.links.add(&queue, remote);
            let up =
                LinkUp { id: queue.id.clone(), incarnation: queue.incarnation, addr: queue.advertise, link };
            let letter = node.hub.membership_mailbox.letter();
            let _ = node.membership.send(up).await;
            drop(letter);
            let error =
                connection::run(greeted, Arc::clone(&queue), Arc::clone(&node.hub), Arc::new(host)).await;
            node.links.remove(&queue, remote);
            let letter = node.hub.registry_mailbox.letter();
            let _ = node.registry.send(LinkLost(Arc::clone(&queue))).await;
            drop(letter);
            // A link that is replaced at once does not count as lost.
            let replaced = addr.send(LinkEnded).await.unwrap_or(false);
            if !replaced {
                let (id, incarnation) = (queue.id.clone(), queue.incarnation);
                let _letter = node.hub.membership_mailbox.letter();
                let _ = node.membership.send(LinkDown { id, incarnation, link, error }).await;
            }
        });
    }

    fn finish(&self, ctx: &mut Context<Self>) {
        self.node.hub.remove_peer(&self.queue);
        ctx.stop();
    }
}

fn dialled(greeted: &Greeted) -> Dialled {
    Dialled { by_us: greeted.by_us, nonce: greeted.nonce }
}

impl Actor for Peer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

/// A connection to this peer was greeted.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct NewLink(pub(crate) Greeted);

impl Handler<NewLink> for Peer {
    type Result = ();

    fn handle(&mut self, NewLink(greeted): NewLink, ctx: &mut Self::Context) {
        if self.retired {
            CloseCode::Stale.close(&greeted.conn, "this run was replaced or has left");
            return;
        }
        let rival = self.waiting.as_ref().map(dialled).or(self.standing);
        let Some(rival) = rival else { return self.start(greeted, ctx) };
        let own: &NodeId = &self.node.hub.id;
        // A peer that dials although its link stands and is silent has given that link up, and its last word did not come:
        // QUIC sends none while what was sent before waits for acknowledgements.
        let given_up = self.waiting.is_none() && self.queue.is_quiet();
        if !given_up && settle(own, &self.queue.id, rival, dialled(&greeted)) == Settle::Keep {
            CloseCode::Duplicate.close(&greeted.conn, "another link is kept");
            return;
        }
        if let Some(waiting) = self.waiting.replace(greeted) {
            CloseCode::Duplicate.close(&waiting.conn, "another link is kept");
        } else {
            self.queue.close_link(CloseCode::Duplicate, "another link is kept");
        }
    }
}

/// The link ended, with all its tasks. Answers whether another takes its place at once.
#[derive(Message)]
#[rtype(result = "bool")]
struct LinkEnded;

impl Handler<LinkEnded> for Peer {
    type Result = bool;

    fn handle(&mut self, _: LinkEnded, ctx: &mut Self::Context) -> bool {
        self.standing = None;
        if self.retired {
            self.finish(ctx);
            return false;
        }
        let Some(greeted) = self.waiting.take() else { return false };
        if greeted.conn.close_reason().is_some() {
            return false;
        }
        self.start(greeted, ctx);
        true
    }
}

/// The peer is gone, for good: its link is closed and its queue given up.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Retire(pub(crate) CloseCode);

impl Handler<Retire> for Peer {
    type Result = ();

    fn handle(&mut self, Retire(code): Retire, ctx: &mut Self::Context) {
        if std::mem::replace(&mut self.retired, true) {
            return;
        }
        if let Some(waiting) = self.waiting.take() {
            code.close(&waiting.conn, "the peer is retired");
        }
        if self.standing.is_some() {
            // The slot is free only when no task of the link can use it any more: see `LinkEnded`.
            self.queue.close_link(code, "the peer is retired");
        } else {
            self.finish(ctx);
        }
    }
}

/// What links ask of the node.
struct Host {
    hub: Arc<Hub>,
    registry: Addr<RoomRegistry>,
    links: Arc<LinkTable>,
}

#[async_trait]
impl LinkHost for Host {
    async fn interest(&self, peer: &Arc<PeerQueue>, update: InterestUpdate) -> Result<Applied, LinkError> {
        let update = Update { peer: Arc::clone(peer), update };
        let _letter = self.hub.registry_mailbox.letter();
        self.registry.send(update).await.unwrap_or(Err(LinkError::Stopping))
    }

    async fn snapshot(&self) -> Result<InterestSnapshot, LinkError> {
        let _letter = self.hub.registry_mailbox.letter();
        self.registry.send(TakeSnapshot).await.unwrap_or(Err(LinkError::Stopping))
    }

    fn gossip(&self, from: std::net::SocketAddr, message: Bytes) {
        self.links.gossip_arrived(from, message);
    }
}
