//! What a [`Cluster`] is made of, and how a test runs on it.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use roomcast::Node;

use super::cluster::Cluster;
use super::ground::{Ground, Settings};
use super::history::History;
use super::sim::Simulated;

/// Where the seed comes from when a test does not set it.
pub const SEED_VARIABLE: &str = "ROOMCAST_SEED";

/// Who is told of whom at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedNodes {
    /// Every node is told of all.
    All,
    /// Every node is told of the first one.
    First,
}

/// Builds a [`Cluster`].
pub struct ClusterBuilder {
    pub(super) nodes: usize,
    pub(super) seed: u64,
    pub(super) settings: Settings,
    pub(super) old: fn(u64, usize) -> bool,
    pub(super) seed_nodes: SeedNodes,
    pub(super) within: Duration,
    pub(super) replay: Option<String>,
    pub(super) lossless: bool,
    ground: GroundChoice,
}

enum GroundChoice {
    Simulated(Box<dyn FnOnce(u64) -> Simulated>),
    Given(Box<dyn Ground>),
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        let seed = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
        Self {
            nodes: 3,
            seed: seed.unwrap_or(1),
            settings: Settings::default(),
            old: |_, _| false,
            seed_nodes: SeedNodes::All,
            within: Duration::from_secs(20),
            replay: None,
            lossless: false,
            ground: GroundChoice::Simulated(Box::new(Simulated::new)),
        }
    }
}

impl ClusterBuilder {
    /// How many nodes. Default is 3.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// What the network does by chance, the jitter of the nodes and what the test picks. Default is the value of
    /// `ROOMCAST_SEED`, or 1.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Changes of the settings of roomcast. Default is none.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Which nodes speak protocol version 1 only, as one of a release before would, by the seed and the number of the
    /// node. Default is none.
    pub fn old(mut self, old: fn(u64, usize) -> bool) -> Self {
        self.old = old;
        self
    }

    /// Who is told of whom. Default is that every node is told of all.
    pub fn seed_nodes(mut self, seed_nodes: SeedNodes) -> Self {
        self.seed_nodes = seed_nodes;
        self
    }

    /// How long after the end of the test, when everything is healed, the nodes may take to be one cluster again.
    /// Default is 20 s.
    pub fn converges_within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// The command that repeats the run, for the message of a failure. Default names the variable `ROOMCAST_SEED`.
    pub fn replayed_by(mut self, command: impl Into<String>) -> Self {
        self.replay = Some(command.into());
        self
    }

    /// Also gaps that were reported, and messages that were dropped with a reason, are faults: for what every cluster must
    /// survive without a loss. Default is that they are not.
    pub fn lossless(mut self, lossless: bool) -> Self {
        self.lossless = lossless;
        self
    }

    /// Simulated ground: the default. Must not run inside a tokio runtime.
    pub fn simulated(mut self) -> Self {
        self.ground = GroundChoice::Simulated(Box::new(Simulated::new));
        self
    }

    /// Simulated ground, with an application that is run on every node at each start, beside the harness' own member. It
    /// ends with the run of its node. All of it must live on simulated time: no sockets, no threads of its own.
    pub fn application<F: Future<Output = ()> + 'static>(
        mut self,
        application: impl Fn(Node) -> F + 'static,
    ) -> Self {
        let make = move |seed| Simulated::new(seed).application(application);
        self.ground = GroundChoice::Simulated(Box::new(make));
        self
    }

    /// Another ground.
    pub fn on(mut self, ground: impl Ground + 'static) -> Self {
        self.ground = GroundChoice::Given(Box::new(ground));
        self
    }

    /// Starts the nodes, plays `scenario`, lets the cluster heal and checks the history, which it returns.
    ///
    /// # Panics
    /// When the scenario does, when the nodes do not become one cluster, or when the history is wrong; the story and the
    /// command that repeats it are printed.
    pub fn run(self, scenario: impl AsyncFnOnce(&mut Cluster)) -> History {
        let simulated = matches!(self.ground, GroundChoice::Simulated(_));
        let play = self.play(scenario);
        if simulated {
            let inside = tokio::runtime::Handle::try_current().is_ok();
            assert!(!inside, "simulated ground drives its nodes itself: use #[test], not #[tokio::test]");
            return ready(play);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("the system lets us have a runtime").block_on(play)
    }

    /// As [`run`](Self::run), in the runtime of the caller: for grounds other than the simulated one.
    pub async fn play(mut self, scenario: impl AsyncFnOnce(&mut Cluster)) -> History {
        let none = GroundChoice::Simulated(Box::new(Simulated::new));
        let ground: Box<dyn Ground> = match std::mem::replace(&mut self.ground, none) {
            GroundChoice::Simulated(make) => Box::new(make(self.seed)),
            GroundChoice::Given(ground) => ground,
        };
        let mut cluster = Cluster::start(self, ground).await;
        scenario(&mut cluster).await;
        cluster.finish().await
    }
}

/// The output of a future that is ready when it is first polled.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("on simulated ground, wait for nothing but the methods of the cluster"),
    }
}
