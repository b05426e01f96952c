//! Gossip: who is in the cluster. chitchat, run over the authenticated links of the node.

pub mod discovery;
mod pace;
#[cfg(feature = "srv")]
pub mod srv;
pub mod transport;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::ids::{Incarnation, NodeId};
use transport::{Carrier, Incoming, LinkTransport, MAX_COUNT, Shared, count};

/// The key under which a node says how it stands. Short, as every key is carried to every node.
const STATE_KEY: &str = "s";
/// The value of [`STATE_KEY`] of a node that is leaving; a node without the key is not.
const LEAVING: &str = "l";

/// How long to wait before chitchat is started again after it ended by itself.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// How often to gossip and when to call a node dead.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// How often to gossip with up to three nodes. Cost: three messages out and three in each time, of up to
    /// 120 bytes per incarnation known, as far as [`calm_bytes_per_second`](Self::calm_bytes_per_second) allows.
    /// Default is 250 ms.
    pub interval: Duration,
    /// What this node spends on lists of all nodes that it sends by itself while all is well: every member is live and its link
    /// up for 10 s. When they would cost more than one and a half times this (about 16 nodes with short names), exchanges are
    /// left out, down to one a second. At the first sign that something is wrong all take place again. Answers cost as much
    /// again. Cost of less: a node that hangs while its link goes on is suspected later. Default is 6 KiB.
    pub calm_bytes_per_second: usize,
    /// What the failure detector takes for the usual time between two signs of life of a node it has seen
    /// little of. Default is 200 ms: a little above what it is, so that a young node is suspected as soon as an old one.
    pub initial_interval: Duration,
    /// A node is called dead when it was silent for this many times the usual time between two signs of life.
    /// With steady gossip that time is about an eighth of a second: 8 notices silence after 1 s, 16 after
    /// 2 s, 32 after 4 s. Default is 16.
    pub phi_threshold: f64,
    /// How long a dead incarnation is remembered; it stays in every digest for half of that. Short, so that
    /// the old incarnations of restarting nodes do not pile up there. Default is 120 s.
    pub dead_node_grace: Duration,
    /// The longest message taken or sent, in bytes. chitchat makes them up to 64 KiB. Default is 66,560.
    pub max_message_bytes: usize,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(250),
            calm_bytes_per_second: 6 << 10,
            initial_interval: Duration::from_millis(200),
            phi_threshold: 16.0,
            dead_node_grace: Duration::from_secs(120),
            max_message_bytes: 65 * 1024,
        }
    }
}

/// One incarnation that gossip knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipMember {
    /// The name of the node.
    pub id: NodeId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// The address it advertises.
    pub addr: SocketAddr,
    /// Whether the failure detector calls it alive. False too before there are samples enough to say.
    pub alive: bool,
    /// Whether nobody had news of it for as long as is death at full pace, while this node asked for them at full pace. The
    /// failure detector has its measure from calmer times then, and says so later.
    pub missed: bool,
    /// Whether it said that it is leaving.
    pub leaving: bool,
}

/// The size of the digest, the list of all incarnations in each message.
///
/// chitchat 0.11 fails when it comes near 64 KiB (about 600 to 900 incarnations): from 300 incarnations on a
/// warning is logged, and a message that would bring the digest over 60,000 bytes is refused and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestSize {
    /// Incarnations in it, this node included.
    pub nodes: usize,
    /// Bytes on the wire.
    pub bytes: usize,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GossipStats {
    /// Messages given to the carrier.
    pub sent: u64,
    /// Messages taken in.
    pub received: u64,
    /// Messages that were not chitchat's or had impossible numbers; ignored.
    pub junk: u64,
    /// Messages over [`GossipConfig::max_message_bytes`], in or out; dropped.
    pub oversized: u64,
    /// Messages that would have brought the digest over its limit; ignored.
    pub refused: u64,
    /// How often chitchat ended by itself and was started again.
    pub restarts: u64,
    /// Lines of a view left out because their name is no [`NodeId`] or their address cannot be dialled; a
    /// line counts each time a view is taken.
    pub unusable_names: u64,
}

/// Why gossip did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GossipError {
    /// A setting cannot be used. Nothing was started.
    #[error("start gossip: {0}")]
    Config(&'static str),
    /// chitchat refused. Nothing was started.
    #[error("start gossip: {0}")]
    Start(String),
}

/// The running gossip of one node.
///
/// Should chitchat end by itself (a peer with the cluster's secret can make it panic), it is logged, counted
/// and, after a second, started again with the same incarnation, heartbeat and state. For about a second
/// after that nobody is called alive, so members with a link are suspect for a moment and none is evicted.
///
/// Dropping it stops everything at once; [`shutdown`](Self::shutdown) does it in order.
pub struct Gossip {
    shared: Arc<Shared>,
    own: ChitchatId,
    supervisor: JoinHandle<()>,
}

impl Gossip {
    /// Starts gossip as the incarnation of `id` that is reached at `advertise`. It talks to nobody before
    /// [`contact`](Self::contact) or a message from `incoming`.
    ///
    /// The addresses in `incoming` are where answers go: the advertised address of the peer of that link.
    ///
    /// # Errors
    /// [`GossipError`] when a setting cannot be used.
    pub async fn start(
        config: GossipConfig,
        cluster: &str,
        id: &NodeId,
        incarnation: Incarnation,
        advertise: SocketAddr,
        carrier: Arc<dyn Carrier>,
        incoming: Incoming,
    ) -> Result<Self, GossipError> {
        check(&config, cluster, advertise)?;
        let own = ChitchatId::new(id.as_str(), incarnation.0, advertise);
        let shared = Arc::new(Shared::new(carrier, incoming, &config));
        let launcher =
            Launcher { config, cluster: cluster.to_owned(), own: own.clone(), shared: Arc::clone(&shared) };
        let handle = launcher.launch(None).await.map_err(|error| GossipError::Start(error.to_string()))?;
        shared.install(handle);
        let supervisor = tokio::spawn(launcher.supervise());
        Ok(Self { shared, own, supervisor })
    }

    /// Every incarnation that gossip knows, those not yet alive too, without this one.
    ///
    /// Left out: names and addresses that cannot be used (counted), and incarnations dead for half the grace.
    pub async fn view(&self) -> Vec<GossipMember> {
        let Some(handle) = self.shared.handle() else { return Vec::new() };
        let view = handle.with_chitchat(|chitchat| read_view(chitchat, &self.own, &self.shared)).await;
        let (members, unusable) = view;
        self.shared.counters.unusable_names.fetch_add(unusable, Ordering::Relaxed);
        members
    }

    /// Gossips with an address now, a seed for example. An own address is left out.
    pub fn contact(&self, addr: SocketAddr) {
        if addr == self.own.gossip_advertise_addr {
            return;
        }
        if let Some(handle) = self.shared.handle() {
            self.shared.pace().ask(addr);
            // It fails only while chitchat is started again; discovery asks again.
            let _ = handle.gossip(addr);
        }
    }

    /// Gossips at full pace from now on, as something is wrong or new; or only as often as
    /// [`GossipConfig::calm_bytes_per_second`] allows. It begins at full pace.
    pub fn set_alert(&self, alert: bool) {
        self.shared.pace().set_alert(alert, Instant::now());
    }

    /// Says that the view may have changed: whoever waits takes it again.
    pub(crate) fn look_again(&self) {
        self.shared.changed.send_modify(|version| *version += 1);
    }

    /// A number that grows when the view may have changed: `changed().await` on the receiver, then take the
    /// view.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Tells the cluster that this node is leaving. It cannot be taken back.
    pub async fn set_leaving(&self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
        if let Some(handle) = self.shared.handle() {
            handle.with_chitchat(say_leaving).await;
        }
    }

    /// Grows with each turn of chitchat's loop, at least one in each interval: shows that it runs.
    pub(crate) fn turns(&self) -> &AtomicU64 {
        &self.shared.turns
    }

    /// The size of the digest at the last message or tick.
    pub fn digest(&self) -> DigestSize {
        self.shared.digest()
    }

    /// Counts since the start.
    pub fn stats(&self) -> GossipStats {
        let counters = &self.shared.counters;
        GossipStats {
            sent: counters.sent.load(Ordering::Relaxed),
            received: counters.received.load(Ordering::Relaxed),
            junk: counters.junk.load(Ordering::Relaxed),
            oversized: counters.oversized.load(Ordering::Relaxed),
            refused: counters.refused.load(Ordering::Relaxed),
            restarts: counters.restarts.load(Ordering::Relaxed),
            unusable_names: counters.unusable_names.load(Ordering::Relaxed),
        }
    }

    /// Stops gossip and waits until it has stopped. Cancelling it stops gossip at once.
    pub async fn shutdown(self) {
        self.supervisor.abort();
        if let Some(handle) = self.shared.close() {
            let _ = handle.initiate_shutdown();
            let _ = handle.termination_watcher().await;
        }
    }
}

impl Gossip {
    /// Stops everything at once; nothing can be started again. For a node that stops while others still hold it.
    pub fn stop(&self) {
        self.supervisor.abort();
        if let Some(handle) = self.shared.close() {
            handle.abort();
        }
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts chitchat, again and again if need be.
struct Launcher {
    config: GossipConfig,
    cluster: String,
    own: ChitchatId,
    shared: Arc<Shared>,
}

impl Launcher {
    async fn supervise(self) {
        while let Some(handle) = self.shared.handle() {
            let ended = handle.termination_watcher().await;
            let error = ended.err().map_or_else(|| "it stopped".to_owned(), |error| error.to_string());
            count(&self.shared.counters.restarts);
            tracing::error!(node = %self.own.node_id, error, "gossip ended and is started again");
            tokio::time::sleep(RESTART_DELAY).await;
            match self.launch(Some(&handle)).await {
                Ok(new) => {
                    if !self.shared.install(new) {
                        return;
                    }
                    self.meet_again(&handle).await;
                }
                Err(error) => tracing::error!(node = %self.own.node_id, %error, "gossip did not start again"),
            }
        }
    }

    async fn launch(&self, before: Option<&ChitchatHandle>) -> anyhow::Result<ChitchatHandle> {
        let config = ChitchatConfig {
            chitchat_id: self.own.clone(),
            cluster_id: self.cluster.clone(),
            gossip_interval: self.config.interval,
            listen_addr: self.own.gossip_advertise_addr,
            // Discovery is ours: chitchat would resolve names once a minute and know nothing of failures.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: self.config.phi_threshold,
                initial_interval: self.config.initial_interval,
                dead_node_grace_period: self.config.dead_node_grace,
                // 8 bytes a sample and incarnation.
                sampling_window_size: 200,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: self.config.dead_node_grace,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let handle = spawn_chitchat(config, Vec::new(), &LinkTransport(self.shared.clone())).await?;
        if let Some(before) = before {
            // Heartbeat and version must go on from where they were: others ignore smaller ones.
            let (heartbeat, version) = before
                .with_chitchat(|old| (old.self_node_state().heartbeat(), old.self_node_state().max_version()))
                .await;
            let leaving = self.shared.leaving.load(Ordering::Relaxed);
            let carry_on = |new: &mut Chitchat| {
                new.self_node_state().try_set_heartbeat(heartbeat);
                new.self_node_state().set_max_version(version.min(MAX_COUNT));
                if leaving {
                    say_leaving(new);
                }
            };
            handle.with_chitchat(carry_on).await;
        }
        Ok(handle)
    }

    /// Contacts everyone the server before knew.
    async fn meet_again(&self, before: &ChitchatHandle) {
        let own = self.own.gossip_advertise_addr;
        let known: HashSet<SocketAddr> = before
            .with_chitchat(|old| old.live_nodes().map(|id| id.gossip_advertise_addr).collect::<HashSet<_>>())
            .await;
        if let Some(handle) = self.shared.handle() {
            for addr in known.into_iter().filter(|addr| *addr != own) {
                self.shared.pace().ask(addr);
                let _ = handle.gossip(addr);
            }
        }
    }
}

fn say_leaving(chitchat: &mut Chitchat) {
    // A peer may have written any version into our state, and `set` would overflow.
    if chitchat.self_node_state().max_version() <= MAX_COUNT {
        chitchat.self_node_state().set(STATE_KEY, LEAVING);
    }
}

/// The members, and how many lines could not be used.
fn read_view(chitchat: &Chitchat, own: &ChitchatId, shared: &Shared) -> (Vec<GossipMember>, u64) {
    let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
    let doomed: HashSet<&ChitchatId> = chitchat.scheduled_for_deletion_nodes().collect();
    let mut unusable = 0;
    let mut members = Vec::with_capacity(chitchat.node_states().len());
    for (known, state) in chitchat.node_states() {
        if known == own || doomed.contains(known) {
            continue;
        }
        let addr = known.gossip_advertise_addr;
        let (alive, missed) = shared.verdict(known, live.contains(known));
        match NodeId::new(&known.node_id) {
            Ok(id) if can_be_dialled(addr) => members.push(GossipMember {
                id,
                incarnation: Incarnation(known.generation_id),
                addr,
                alive,
                missed,
                leaving: state.get(STATE_KEY) == Some(LEAVING),
            }),
            _ => unusable += 1,
        }
    }
    (members, unusable)
}

fn can_be_dialled(addr: SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()
}

fn check(config: &GossipConfig, cluster: &str, advertise: SocketAddr) -> Result<(), GossipError> {
    let bad = |what| Err(GossipError::Config(what));
    if cluster.is_empty() || cluster.len() > 255 {
        return bad("the cluster name must have 1 to 255 bytes");
    }
    if !can_be_dialled(advertise) {
        return bad("the advertised address must be one that others can dial, for example 10.0.0.7:7946");
    }
    if config.calm_bytes_per_second == 0 {
        return bad("gossip needs some bytes a second in calm, too");
    }
    if config.interval.is_zero() || config.initial_interval.is_zero() || config.dead_node_grace.is_zero() {
        return bad("intervals and the dead-node grace must be longer than zero");
    }
    if !(config.phi_threshold.is_finite() && config.phi_threshold > 0.0) {
        return bad("the phi threshold must be a number greater than zero");
    }
    if config.max_message_bytes < 1024 {
        return bad("gossip messages need at least 1024 bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
