//! What a cluster stands on: whole nodes in one thread under simulated time, or processes under real time.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use roomcast::status::Report;
use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::history::History;
use super::sim::Simulated;

/// The ground of a cluster. Nodes are counted from 0. Every future is driven by the ground itself: on simulated ground it
/// is ready when it is first polled.
///
/// What cannot be done (no such node, a process that does not start) is a panic: these are tests.
#[async_trait(?Send)]
pub trait Ground {
    /// Starts a node in its place: a new run if it ran before.
    async fn start(&mut self, node: usize, plan: &Plan);
    /// Ends a node without a word, as SIGKILL does. Nothing when it does not run.
    async fn kill(&mut self, node: usize);
    /// Lets a node leave the cluster (`Node::drain`), and ends it.
    async fn leave(&mut self, node: usize);
    /// Stops a node from running, as SIGSTOP does: its connections stand, and packets wait in its socket.
    async fn freeze(&mut self, node: usize);
    /// Lets it run again.
    async fn thaw(&mut self, node: usize);
    /// Sets what happens to packets from one node to another, from now on.
    async fn rule(&mut self, from: usize, to: usize, rule: Rule);
    /// Gives a node that does not run another address.
    async fn readdress(&mut self, node: usize);
    /// The address of a node: where it listens and is dialled.
    fn address(&self, node: usize) -> SocketAddr;
    /// How others are told of a node: its address, or a name that stays when the address changes.
    fn seed(&self, node: usize) -> String {
        self.address(node).to_string()
    }
    /// Asks the agent of a running node. None when it does not answer: it does not run, or is frozen.
    async fn ask(&mut self, node: usize, ask: Ask) -> Option<Answer>;
    /// Lets time pass.
    async fn sleep(&mut self, time: Duration);
    /// The time since the cluster began.
    fn now(&self) -> Duration;
    /// What was recorded so far.
    fn history(&mut self) -> &mut History;
    /// The process of a node that runs, where it has one of its own.
    fn process(&self, _node: usize) -> Option<u32> {
        None
    }
    /// The simulated ground, where this is it: for what only that can do.
    fn simulated(&mut self) -> Option<&mut Simulated> {
        None
    }
}

/// What a node is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Its id.
    pub id: String,
    /// The seeds, as `host:port`.
    pub seeds: Vec<String>,
    /// Changes of the settings.
    pub settings: Settings,
}

/// The settings that scenarios change; none is the default of roomcast. Times are in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `link.resume_window`.
    pub resume_window_ms: Option<u64>,
    /// `link.outbox_bytes`.
    pub outbox_bytes: Option<usize>,
    /// `members.dead_linger_ms`.
    pub dead_linger_ms: Option<u64>,
    /// `gossip.dead_node_grace`.
    pub dead_node_grace_ms: Option<u64>,
    /// `gossip.interval`; the failure detector takes four fifths of it for the usual time between two signs of life.
    pub gossip_interval_ms: Option<u64>,
    /// `protocol.max`.
    pub protocol_max: Option<u16>,
}

/// What happens to the packets from one node to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// None arrives.
    pub cut: bool,
    /// The part that is lost, from 0 to 1.
    pub loss: f64,
    /// The part that comes twice, from 0 to 1.
    pub duplicate: f64,
    /// The part that is held back for a while, so that later ones overtake it, from 0 to 1.
    pub reorder: f64,
    /// How long one takes; each takes a time in between. On real ground this is added to what the way takes by itself.
    pub delay: Range<Duration>,
}

/// What a test asks of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// The member joins a room.
    Join(String),
    /// The member joins so many rooms, named `prefix-number`.
    JoinMany(String, usize),
    /// The member leaves a room.
    Leave(String),
    /// Records when all joins so far are known everywhere; answers at once.
    Settle,
    /// Emits numbered messages of so many bytes to a room, at once.
    Emit(String, u64, usize),
    /// Emits a message of so many bytes to a room each time that so many milliseconds have passed, until
    /// [`Ask::Quiet`].
    Traffic(String, u64, usize),
    /// Emits so many messages a second, of so many bytes, to a room until [`Ask::Quiet`].
    Load(String, u64, usize),
    /// Ends [`Ask::Traffic`] and [`Ask::Load`].
    Quiet,
    /// Messages are counted and no longer recorded.
    CountOnly,
    /// What was counted.
    Counts,
    /// The status.
    Report,
}

/// The answer of an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// The status.
    Report(Box<Report>),
    /// What was counted since [`Ask::CountOnly`].
    Counts(Counts),
}

impl Rule {
    /// The usual way: nothing is lost, and nothing is added to what the ground takes by itself.
    pub fn clear() -> Self {
        Self { cut: false, loss: 0.0, duplicate: 0.0, reorder: 0.0, delay: Duration::ZERO..Duration::ZERO }
    }

    /// Nothing arrives.
    pub fn cut() -> Self {
        Self { cut: true, ..Self::clear() }
    }
}

impl Settings {
    /// The settings of roomcast with these changes.
    pub fn config(&self) -> roomcast::Config {
        let mut config = roomcast::Config::default();
        if let Some(ms) = self.resume_window_ms {
            config.link.resume_window = Duration::from_millis(ms);
        }
        if let Some(bytes) = self.outbox_bytes {
            config.link.outbox_bytes = bytes;
        }
        if let Some(ms) = self.dead_linger_ms {
            config.members.dead_linger_ms = ms;
        }
        if let Some(ms) = self.dead_node_grace_ms {
            config.gossip.dead_node_grace = Duration::from_millis(ms);
        }
        if let Some(ms) = self.gossip_interval_ms {
            config.gossip.interval = Duration::from_millis(ms);
            config.gossip.initial_interval = config.gossip.interval * 4 / 5;
        }
        if let Some(max) = self.protocol_max {
            config.protocol.max = max;
        }
        config
    }
}
