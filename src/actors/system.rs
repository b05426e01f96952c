//! Where the actors run: a thread of their own, because users have no actix `System`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::{Actor, Addr, System};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::actors::links::LinkTable;
use crate::actors::membership::{Begin, Membership, Parts, Stop, own_member};
use crate::actors::registry::RoomRegistry;
use crate::core::members::Member;
use crate::error::StartError;
use crate::gossip::Gossip;
use crate::gossip::discovery::DiscoveryShared;
use crate::hub::Hub;
use crate::quic::handshake::Card;

/// Shows that the actors still work: each writes down when it last ran.
#[derive(Debug, Default)]
pub(crate) struct Beat {
    registry_ms: AtomicU64,
    membership_ms: AtomicU64,
    clock: Option<tokio::time::Instant>,
}

impl Beat {
    /// How often the actors write down that they run.
    pub(crate) const INTERVAL: Duration = Duration::from_millis(500);
    /// An actor that has not run for so long hangs.
    const LIMIT_MS: u64 = 5_000;

    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { clock: Some(tokio::time::Instant::now()), ..Self::default() })
    }

    fn now_ms(&self) -> u64 {
        self.clock.map_or(0, |clock| u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn registry(&self) {
        self.registry_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(crate) fn membership(&self) {
        self.membership_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Whether both actors ran within the limit.
    pub(crate) fn is_live(&self) -> bool {
        let oldest = self.registry_ms.load(Ordering::Relaxed).min(self.membership_ms.load(Ordering::Relaxed));
        self.now_ms().saturating_sub(oldest) < Self::LIMIT_MS
    }
}

/// The running actors.
pub(crate) struct Actors {
    pub(crate) membership: Addr<Membership>,
    registry: Addr<RoomRegistry>,
    pub(crate) members: watch::Receiver<Arc<Vec<Member>>>,
    /// Whether no other node is linked.
    pub(crate) alone: watch::Receiver<bool>,
    pub(crate) beat: Arc<Beat>,
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
    let beat = Beat::new();
    let registry = RoomRegistry::new(Arc::clone(&seed.hub), Arc::clone(&beat)).start();
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
        beat: Arc::clone(&beat),
        random_seed: seed.random_seed,
    };
    let membership = Membership::new(parts).start();
    // The mailbox is empty: the message fits.
    let _ = membership.try_send(Begin(seed.wanted));
    Actors { membership, registry, members, alone, beat, system }
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
