//! Whether the parts of this node still run. Each counts its beats; whoever runs looks at the others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::core::watchdog::{WatchChange, Watchdog, Watched};
use crate::gossip::Gossip;
use crate::hub::{Hub, lock};

/// The beats of the parts, and who watches them.
///
/// There is no thread for it: the actors look at the runtime, the runtime at the actors, and who asks whether the node is
/// live looks as well.
pub(crate) struct Watch {
    hub: Arc<Hub>,
    gossip: Arc<Gossip>,
    registry: AtomicU64,
    membership: AtomicU64,
    runtime: AtomicU64,
    dog: Mutex<Watchdog>,
    /// The node stops: nothing has to run any more.
    stopped: AtomicBool,
}

impl Watch {
    /// How often a part beats at least, and looks at the others.
    pub(crate) const INTERVAL: Duration = Duration::from_millis(250);
    /// The shortest limit.
    const LEAST: Duration = Duration::from_secs(1);

    pub(crate) fn new(hub: &Arc<Hub>, gossip: &Arc<Gossip>) -> Arc<Self> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let limit = hub.config.watchdog_limit.0.max(Self::LEAST);
        // Gossip runs once in each interval, and may be started again.
        let of_gossip = limit.max(hub.config.gossip.interval.saturating_mul(4));
        let parts = vec![
            Watched::new("registry", ms(limit)),
            Watched::new("membership", ms(limit)),
            Watched::new("gossip", ms(of_gossip)),
            Watched::new("runtime", ms(limit)),
        ];
        Arc::new(Self {
            hub: Arc::clone(hub),
            gossip: Arc::clone(gossip),
            registry: AtomicU64::new(0),
            membership: AtomicU64::new(0),
            runtime: AtomicU64::new(0),
            dog: Mutex::new(Watchdog::new(2 * ms(Self::INTERVAL), parts)),
            stopped: AtomicBool::new(false),
        })
    }

    /// The registry runs.
    pub(crate) fn registry(&self) {
        self.registry.fetch_add(1, Ordering::Relaxed);
        self.look();
    }

    /// The membership runs.
    pub(crate) fn membership(&self) {
        self.membership.fetch_add(1, Ordering::Relaxed);
    }

    /// Beats for the runtime that it is spawned on, until it is dropped.
    pub(crate) async fn beat_of_runtime(self: Arc<Self>) {
        loop {
            self.runtime.fetch_add(1, Ordering::Relaxed);
            self.look();
            tokio::time::sleep(Self::INTERVAL).await;
        }
    }

    /// From now on nothing hangs.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// The parts as they are now.
    pub(crate) fn parts(&self) -> Vec<Watched> {
        self.look();
        lock(&self.dog).parts().to_vec()
    }

    /// How often each part has run.
    #[cfg(feature = "status")]
    pub(crate) fn beats(&self) -> [(&'static str, u64); 4] {
        [
            ("registry", &self.registry),
            ("membership", &self.membership),
            ("gossip", self.gossip.turns()),
            ("runtime", &self.runtime),
        ]
        .map(|(part, beats)| (part, beats.load(Ordering::Relaxed)))
    }

    /// What hangs, for an operator; none when nothing does.
    pub(crate) fn hangs(&self) -> Option<String> {
        let parts = self.parts();
        let hangs = parts.iter().filter(|part| part.hangs);
        let texts: Vec<String> =
            hangs.map(|part| format!("{} has not run for {} ms", part.name, part.quiet_ms)).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    fn look(&self) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        let beats = [&self.registry, &self.membership, self.gossip.turns(), &self.runtime]
            .map(|beats| beats.load(Ordering::Relaxed));
        let changes = lock(&self.dog).look(&beats, self.hub.now_ms());
        let node = &self.hub.id;
        for change in changes {
            match change {
                WatchChange::Hangs(part, ms) => {
                    tracing::error!(%node, part, ms, "a part of this node hangs");
                }
                WatchChange::Runs(part, ms) => {
                    tracing::info!(%node, part, ms, "a part of this node that hung runs again");
                }
            }
        }
    }
}

/// Blocks the thread of the actors: for tests.
#[cfg(test)]
#[derive(actix::Message)]
#[rtype(result = "()")]
pub(crate) struct Block(pub(crate) std::sync::mpsc::Receiver<()>);

#[cfg(test)]
impl actix::Handler<Block> for crate::actors::membership::Membership {
    type Result = ();

    fn handle(&mut self, Block(until): Block, _: &mut Self::Context) {
        let _ = until.recv();
    }
}
