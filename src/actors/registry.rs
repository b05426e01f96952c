//! `RoomRegistry`: owns this node's interest and is the only writer of the route table.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message};

use crate::actors::membership::Stop;
use crate::actors::watch::Watch;
use crate::core::frame::KEYS_PER_FRAME;
use crate::core::interest::Interest;
use crate::core::link::LinkState;
use crate::core::routes::RouteError;
use crate::error::LinkError;
use crate::event::Event;
use crate::hub::feed::InterestSnapshot;
use crate::hub::peer::PeerQueue;
use crate::hub::{Hub, NamespaceOp};
use crate::quic::connection::{Applied, InterestUpdate};

/// Interest updates of many links may wait here; each link waits for its own, so this is about the number of peers.
const MAILBOX: usize = 1024;

/// Keeps the rooms of this node and of everyone else.
pub(crate) struct RoomRegistry {
    hub: Arc<Hub>,
    interest: Interest,
    /// The last snapshot, as long as it is the newest: links that come up together share it.
    snapshot: Option<InterestSnapshot>,
    watch: Arc<Watch>,
    lingering: bool,
}

impl RoomRegistry {
    pub(crate) fn new(hub: Arc<Hub>, watch: Arc<Watch>) -> Self {
        let interest = Interest::new(hub.config.interest.clone());
        Self { hub, interest, snapshot: None, watch, lingering: false }
    }

    /// Takes what joined and left, and publishes what changes for other nodes.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        let pending = self.hub.take_pending();
        for (ns, op) in &pending.namespaces {
            match op {
                NamespaceOp::Attach(mode) => self.interest.attach(ns, *mode),
                NamespaceOp::Flood => self.interest.switch_to_flood(ns),
                NamespaceOp::Detach(_) => {}
            }
        }
        for (ns, rooms) in &pending.rooms {
            for (room, by) in rooms.iter().filter(|(_, by)| **by != 0) {
                self.interest.adjust(ns, *room, *by);
            }
        }
        // A namespace goes after its rooms: leaving them was noted before it.
        for (ns, op) in &pending.namespaces {
            if let NamespaceOp::Detach(mode) = op {
                self.interest.detach(ns, *mode);
            }
        }
        if let Some(delta) = self.interest.flush(self.hub.now_ms()) {
            self.snapshot = None;
            self.hub.interest_digest.store(self.interest.digest(), Ordering::Release);
            match self.hub.feed.publish(&delta) {
                Ok(_) => {
                    for peer in self.hub.peers() {
                        peer.wake.notify_one();
                    }
                }
                Err(error) => tracing::error!(node = %self.hub.id, %error, "failed to encode interest"),
            }
        }
        // Also when nothing changes for others: what was taken is advertised already.
        self.hub.flushed(pending.generation, self.interest.version());
        for ns in self.interest.take_overflowed() {
            tracing::warn!(node = %self.hub.id, %ns, "too many rooms: every broadcast of the namespace comes here now");
        }
        self.schedule(ctx);
    }

    /// Looks again when a room that is only advertised for a little longer runs out.
    fn schedule(&mut self, ctx: &mut Context<Self>) {
        let Some(next) = self.interest.next_flush_ms() else { return };
        if std::mem::replace(&mut self.lingering, true) {
            return;
        }
        let wait = next.saturating_sub(self.hub.now_ms()).max(1);
        ctx.run_later(Duration::from_millis(wait), |registry, ctx| {
            registry.lingering = false;
            registry.flush(ctx);
        });
    }

    fn apply(&self, peer: &PeerQueue, update: InterestUpdate) -> Result<Applied, LinkError> {
        let routes = &self.hub.routes;
        let slot = peer.slot;
        let outcome = match update {
            InterestUpdate::Begin(version) => routes.snapshot_begin(slot, version),
            InterestUpdate::Chunk(change) => routes.snapshot_chunk(slot, vec![change]),
            InterestUpdate::End => routes.snapshot_end(slot).inspect(|()| {
                peer.set_state(LinkState::Up);
                self.hub.event(Event::LinkSynced { peer: peer.id.clone() });
            }),
            InterestUpdate::Delta(delta) => routes.apply_delta(slot, &delta),
        };
        match outcome {
            Ok(()) => Ok(Applied::Yes),
            Err(RouteError::VersionGap { .. } | RouteError::NoSnapshot(_)) => {
                peer.set_state(LinkState::Syncing);
                Ok(Applied::Resync)
            }
            Err(RouteError::NoPeer(_)) => Err(LinkError::Stopping),
            Err(error) => Err(LinkError::Violation(error.to_string())),
        }
    }
}

impl Actor for RoomRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(Watch::INTERVAL, |registry, _| registry.watch.registry());
        let (hub, addr) = (Arc::clone(&self.hub), ctx.address());
        actix::spawn(async move {
            // The first join goes out at once; those within a tick of it go together.
            loop {
                hub.pending_wake.notified().await;
                let letter = hub.registry_mailbox.letter();
                if addr.send(Flush).await.is_err() {
                    break;
                }
                drop(letter);
                tokio::time::sleep(hub.config.link.interest_tick).await;
            }
        });
    }
}

/// Publish what changed.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Flush;

impl Handler<Flush> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        self.flush(ctx);
    }
}

/// The node leaves: publish at once what is not wanted any more. Returns the version of that.
#[derive(Message)]
#[rtype(result = "u64")]
pub(crate) struct StopLingering;

impl Handler<StopLingering> for RoomRegistry {
    type Result = u64;

    fn handle(&mut self, _: StopLingering, ctx: &mut Self::Context) -> Self::Result {
        self.interest.stop_lingering();
        self.flush(ctx);
        self.interest.version()
    }
}

/// A part of a peer's interest arrived.
#[derive(Message)]
#[rtype(result = "Result<Applied, LinkError>")]
pub(crate) struct Update {
    pub(crate) peer: Arc<PeerQueue>,
    pub(crate) update: InterestUpdate,
}

impl Handler<Update> for RoomRegistry {
    type Result = Result<Applied, LinkError>;

    fn handle(&mut self, message: Update, _: &mut Self::Context) -> Self::Result {
        self.apply(&message.peer, message.update)
    }
}

/// A peer's link ended: what is known of its rooms may be out of date from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct LinkLost(pub(crate) Arc<PeerQueue>);

impl Handler<LinkLost> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, LinkLost(peer): LinkLost, _: &mut Self::Context) {
        self.hub.routes.set_unknown(peer.slot);
        // A last part of its interest may have been in the mailbox before this.
        peer.set_state(LinkState::Down);
    }
}

impl Handler<Stop> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// This node's whole interest, as frames.
#[derive(Message)]
#[rtype(result = "Result<InterestSnapshot, LinkError>")]
pub(crate) struct TakeSnapshot;

impl Handler<TakeSnapshot> for RoomRegistry {
    type Result = Result<InterestSnapshot, LinkError>;

    fn handle(&mut self, _: TakeSnapshot, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        if let Some(snapshot) = &self.snapshot {
            return Ok(snapshot.clone());
        }
        let chunks: Vec<_> = self.interest.snapshot(KEYS_PER_FRAME).collect();
        let snapshot = self.hub.feed.snapshot(self.interest.version(), &chunks)?;
        self.snapshot = Some(snapshot.clone());
        Ok(snapshot)
    }
}
