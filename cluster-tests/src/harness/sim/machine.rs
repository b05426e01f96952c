//! One run of a simulated node: a runtime with a paused clock, and the node on it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use roomcast::gossip::discovery::Resolver;
use roomcast::{ClusterSecret, Incarnation, Node};
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use super::network::Network;
use super::socket::{Clock, Socket};
use crate::harness::agent::{Agent, Record};
use crate::harness::ground::{Answer, Ask, Plan};

/// A future that stays on the thread of its node.
pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What is run on every node at each start.
pub(crate) type Application = Arc<dyn Fn(Node) -> LocalFuture>;

/// What a run is started with.
pub(crate) struct Birth<'a> {
    pub(crate) index: usize,
    pub(crate) plan: &'a Plan,
    pub(crate) addr: SocketAddr,
    pub(crate) incarnation: u64,
    pub(crate) secret: &'a ClusterSecret,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) network: &'a Arc<Network>,
    pub(crate) random_seed: u64,
    pub(crate) now: Duration,
    pub(crate) application: Option<&'a Application>,
}

/// A running node. Dropping it ends it without a word.
pub(crate) struct Machine {
    // In this order they are dropped; the runtime that all of them need comes last.
    agent: Option<Agent>,
    local: Option<LocalSet>,
    pub(crate) clock: Arc<Clock>,
    network: Arc<Network>,
    addr: SocketAddr,
    runtime: Runtime,
}

impl Machine {
    /// Starts a node; `record` makes its record from its clock.
    pub(crate) fn start(birth: &Birth<'_>, record: impl FnOnce(Arc<Clock>) -> Record) -> Self {
        // Without I/O: nothing of a simulation may wait for the system.
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("the system lets us have a runtime");
        let local = LocalSet::new();
        let clock = {
            let _on = runtime.enter();
            Arc::new(Clock::new(birth.now))
        };
        let network = Arc::clone(birth.network);
        network.bind(birth.addr, birth.index, birth.incarnation, birth.now);
        let socket = Socket {
            network: Arc::clone(&network),
            clock: Arc::clone(&clock),
            addr: birth.addr,
            run: birth.incarnation,
        };
        let record = record(Arc::clone(&clock));
        let agent = local.block_on(&runtime, async {
            let node = Node::builder()
                .cluster("simulated")
                .id(&birth.plan.id)
                .secret(birth.secret.clone())
                .seeds(&birth.plan.seeds)
                .config(birth.plan.settings.config())
                .resolver(Arc::clone(&birth.resolver))
                .socket(Arc::new(socket))
                .actors_here(true)
                .random_seed(birth.random_seed)
                .incarnation(Incarnation(birth.incarnation))
                .start()
                .await
                .expect("nothing stands in the way of a simulated node");
            assert_eq!(clock.now(), birth.now, "a start takes no time");
            if let Some(application) = birth.application {
                tokio::task::spawn_local(application(node.clone()));
            }
            Agent::new(node, birth.index, record)
        });
        Self { agent: Some(agent), local: Some(local), clock, network, addr: birth.addr, runtime }
    }

    /// Lets the node run up to a time of the ground.
    pub(crate) fn run_until(&self, until: Duration) {
        self.block_on(async {
            while let Some(arrival) = self.network.next_arrival(self.addr, until) {
                tokio::time::sleep_until(self.clock.at(arrival)).await;
                self.network.announce(self.addr, arrival);
            }
            tokio::time::sleep_until(self.clock.at(until)).await;
        });
    }

    /// The node did not run for a while, as after SIGSTOP: its clock goes on at once, and what was due fires once.
    pub(crate) fn skip_to(&self, now: Duration) {
        self.block_on(async {
            tokio::time::advance(now.saturating_sub(self.clock.now())).await;
            self.network.announce(self.addr, now);
        });
    }

    /// The clock of the node jumps ahead; that of the others does not.
    pub(crate) fn jump(&self, by: Duration) {
        self.block_on(async {
            self.clock.ahead(by);
            tokio::time::advance(by).await;
        });
    }

    /// Asks the agent.
    pub(crate) fn ask(&mut self, ask: Ask) -> Option<Answer> {
        let _on = self.runtime.enter();
        self.agent.as_mut().map(|agent| agent.ask(ask))
    }

    /// The node.
    pub(crate) fn node(&self) -> Option<Node> {
        self.agent.as_ref().map(|agent| agent.node().clone())
    }

    /// Runs something beside the node.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        if let Some(local) = &self.local {
            let _on = self.runtime.enter();
            drop(local.spawn_local(future));
        }
    }

    fn block_on(&self, future: impl Future<Output = ()>) {
        if let Some(local) = &self.local {
            local.block_on(&self.runtime, future);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _on = self.runtime.enter();
        // First the way out: a run that is killed says nothing more.
        self.network.unbind(self.addr, self.clock.now());
        self.agent = None;
        self.local = None;
    }
}
