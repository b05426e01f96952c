//! Where the actors run: a thread of their own, because users have no actix `System`.

use std::sync::Arc;

use actix::{Actor, Addr, System};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::actors::links::LinkTable;
use crate::actors::membership::{Begin, Membership, Parts, Stop, own_member};
use crate::actors::registry::RoomRegistry;
use crate::actors::watch::Watch;
use crate::core::members::Member;
use crate::error::StartError;
use crate::gossip::Gossip;
use crate::gossip::discovery::DiscoveryShared;
use crate::hub::Hub;
use crate::quic::handshake::Card;

/// The running actors.
pub(crate) struct Actors {
    pub(crate) membership: Addr<Membership>,
    pub(crate) registry: Addr<RoomRegistry>,
    pub(crate) members: watch::Receiver<Arc<Vec<Member>>>,
    /// Whether no other node is linked.
    pub(crate) alone: watch::Receiver<bool>,
    pub(crate) watch: Arc<Watch>,
    /// The system of the thread; none when the actors run in the caller's system.
    system: Option<System>,
}

/// What the actors are made from.
pub(crate) struct Seed {
    pub(crate) hub: Arc<Hub>,
    pub(crate) gossip: Arc<Gossip>,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) card: Card,
    pub(crate) links: Arc<LinkTable>,
    pub(crate) discovery: Arc<DiscoveryShared>,
    /// Addresses that gossip or discovery wants to reach.
    pub(crate) wanted: mpsc::Receiver<std::net::SocketAddr>,
    /// For jitter and epochs.
    pub(crate) random_seed: u64,
}

/// Starts the actors on a thread of their own, or, when `here`, in the actix system of the calling thread.
pub(crate) async fn start(seed: Seed, here: bool) -> Result<Actors, StartError> {
    let runtime = Handle::current();
    if here {
        return Ok(launch(seed, runtime, None));
    }
    let (ready_tx, ready) = oneshot::channel();
    let name = format!("roomcast-{}", seed.hub.id);
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let runner = System::new();
            runner.block_on(async move {
                let actors = launch(seed, runtime, System::try_current());
                let _ = ready_tx.send(actors);
            });
            let _ = runner.run();
        })
        .map_err(|error| StartError::Actors(error.to_string()))?;
    ready.await.map_err(|_| StartError::Actors("it ended before it was ready".into()))
}

fn launch(seed: Seed, runtime: Handle, system: Option<System>) -> Actors {
    let watch = Watch::new(&seed.hub, &seed.gossip);
    let registry = RoomRegistry::new(Arc::clone(&seed.hub), Arc::clone(&watch)).start();
    // The node lists itself from the first moment.
    let (members_tx, members) = watch::channel(Arc::new(vec![own_member(&seed.hub, &seed.card, false)]));
    let (alone_tx, alone) = watch::channel(true);
    let parts = Parts {
        hub: seed.hub,
        gossip: seed.gossip,
        endpoint: seed.endpoint,
        card: seed.card,
        links: seed.links,
        discovery: seed.discovery,
        runtime,
        registry: registry.clone(),
        published: members_tx,
        alone: alone_tx,
        watch: Arc::clone(&watch),
        random_seed: seed.random_seed,
    };
    let membership = Membership::new(parts).start();
    // The mailbox is empty: the message fits.
    let _ = membership.try_send(Begin(seed.wanted));
    Actors { membership, registry, members, alone, watch, system }
}

impl Actors {
    /// Ends the actors, and their thread where they have one.
    pub(crate) fn stop(&self) {
        match &self.system {
            Some(system) => system.stop(),
            None => {
                // A full mailbox is that of an actor whose thread hangs: nothing can be done for it.
                let _ = self.membership.try_send(Stop);
                let _ = self.registry.try_send(Stop);
            }
        }
    }
}
