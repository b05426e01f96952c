//! When everyone knows what was joined here: what `settled()` of the node and the fronts waits for.
//!
//! Fronts note joins in `Pending`, which has a generation. The registry takes a generation at a time, and says when it is
//! in this node's interest, and at which version; peers acknowledge versions that they have applied.
//!
//! A peer that has acknowledged a version counts for good. It applied it before it said so, and from then on it holds
//! that version or a newer one, or none: when its link breaks, when a delta is missing and while a snapshot comes in, it
//! treats this node as unknown and sends it everything ([`Routes`](crate::core::routes::Routes)). The next snapshot is
//! made after that and holds every room that is held here at the time.

use std::sync::atomic::Ordering;

use super::{Hub, lock};

/// How far the registry is with what fronts noted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flushed {
    /// Every generation of `Pending` below this one is in the interest.
    below: u64,
    /// The version of the interest that they are all in.
    version: u64,
}

impl Hub {
    /// The registry has put a generation of what was noted into the interest, which has `version` now.
    pub(crate) fn flushed(&self, generation: u64, version: u64) {
        self.flushed.send_modify(|flushed| {
            let below = flushed.below.max(generation.saturating_add(1));
            *flushed = Flushed { below, version };
        });
    }

    /// Nothing will be put into the interest any more: nobody need wait for that.
    pub(super) fn flush_no_more(&self) {
        self.flushed.send_modify(|flushed| flushed.below = u64::MAX);
    }

    /// Resolves when every peer of this moment has applied an interest of this node that holds everything that was noted
    /// before the call, or is gone. Resolves at once when the node has stopped. Cancel safe; holds nothing of the hub but
    /// these peers.
    pub(crate) fn settled(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let below = {
            let pending = lock(&self.pending);
            // What is empty waits for nobody, but the generation before it may be in the hands of the registry.
            pending.generation + u64::from(!pending.is_empty())
        };
        let mut flushed = self.flushed.subscribe();
        let peers = self.peers.load_full();
        // After the look at the peers: a node that stops later closes all of them.
        let stopped = self.stopped.load(Ordering::Acquire);
        async move {
            if stopped {
                return;
            }
            let done = flushed.wait_for(|flushed| flushed.below >= below).await;
            let Ok(version) = done.map(|flushed| flushed.version) else { return };
            for peer in peers.iter().flatten() {
                peer.knows_interest(version).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use super::*;
    use crate::config::Config;
    use crate::hub::peer::PeerQueue;
    use crate::ids::{Incarnation, Namespace, NodeId};

    fn hub() -> Arc<Hub> {
        Hub::new(NodeId::new("a").unwrap(), Incarnation(1), Config::default())
    }

    fn add(hub: &Hub, id: &str) -> Arc<PeerQueue> {
        let (id, addr) = (NodeId::new(id).unwrap(), ([127, 0, 0, 1], 1).into());
        hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(1), slot, addr, 1, 1 << 20)))
    }

    fn join(hub: &Hub, room: &str) {
        let ns = Namespace::new("/chat").unwrap();
        hub.adjust(&ns, ns.room(room), 1);
    }

    /// As the registry does it.
    fn flush(hub: &Hub, version: u64) {
        let pending = hub.take_pending();
        hub.flushed(pending.generation, version);
    }

    struct Wait(Pin<Box<dyn Future<Output = ()>>>);

    fn settle(hub: &Hub) -> Wait {
        Wait(Box::pin(hub.settled()))
    }

    impl Wait {
        fn is_over(&mut self) -> bool {
            self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        }
    }

    #[test]
    fn a_join_is_settled_when_every_peer_has_its_version() {
        let hub = hub();
        assert!(settle(&hub).is_over(), "nothing was joined, and nobody is there");
        join(&hub, "alone");
        let mut alone = settle(&hub);
        assert!(!alone.is_over(), "who comes next would not hear of it");
        flush(&hub, 1);
        assert!(alone.is_over());

        let (b, c) = (add(&hub, "b"), add(&hub, "c"));
        assert!(!settle(&hub).is_over(), "they know nothing yet");
        b.interest_applied(1);
        c.interest_applied(1);
        assert!(settle(&hub).is_over());
        join(&hub, "lobby");
        let mut wait = settle(&hub);
        b.interest_applied(2);
        assert!(!wait.is_over(), "the join is in no version yet");
        flush(&hub, 2);
        assert!(!wait.is_over(), "one of two has it");
        join(&hub, "later");
        c.interest_applied(1);
        assert!(!wait.is_over(), "that was known");
        c.interest_applied(2);
        assert!(wait.is_over(), "what was joined later is another matter");
        assert!(!settle(&hub).is_over());
    }

    #[test]
    fn what_the_registry_has_taken_is_waited_for() {
        let hub = hub();
        let b = add(&hub, "b");
        join(&hub, "lobby");
        let taken = hub.take_pending();
        let mut wait = settle(&hub);
        b.interest_applied(6);
        assert!(!wait.is_over(), "nothing is pending, and nothing is published");
        join(&hub, "later");
        let mut later = settle(&hub);
        hub.flushed(taken.generation, 7);
        assert!(!wait.is_over());
        b.interest_applied(7);
        assert!(wait.is_over());
        assert!(!later.is_over(), "noted while the registry was at work: it is in the next generation");
        // It is advertised already, so the version stays.
        flush(&hub, 7);
        assert!(later.is_over());
    }

    #[test]
    fn peers_that_go_and_a_node_that_stops_are_not_waited_for() {
        let hub = hub();
        let (b, c) = (add(&hub, "b"), add(&hub, "c"));
        join(&hub, "lobby");
        flush(&hub, 1);
        let (mut wait, mut other) = (settle(&hub), settle(&hub));
        hub.remove_peer(&b);
        assert!(!wait.is_over());
        add(&hub, "d");
        c.interest_applied(1);
        assert!(wait.is_over(), "who comes later gets a snapshot that has it all");
        assert!(other.is_over());

        join(&hub, "attic");
        let mut wait = settle(&hub);
        hub.stop();
        for peer in hub.peers() {
            peer.close();
        }
        assert!(wait.is_over());
        join(&hub, "cellar");
        assert!(settle(&hub).is_over());
    }
}
