//! A node: builder, start, ready, drain, stop. The only file that knows the order of start and stop.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use quinn::AsyncUdpSocket;
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::actors::links::LinkTable;
use crate::actors::membership::{self, Drain};
use crate::actors::system::{self, Actors};
use crate::config::Config;
use crate::core::members::Member;
use crate::error::{AdvertiseError, IdError, StartError};
use crate::event::Events;
use crate::gossip::discovery::{self, DiscoveryShared, DiscoveryState, Resolver, Seed, SystemResolver};
use crate::gossip::{Gossip, transport};
use crate::hub::Hub;
use crate::ids::{Incarnation, NodeId};
use crate::plain::NamespaceHandle;
use crate::quic::endpoint::{self, BoundSocket};
use crate::quic::handshake::{Card, CloseCode};
use crate::quic::tls::{ClusterName, ClusterSecret, Identity, PemFiles};

/// Addresses that gossip and discovery want to reach and that wait to be dialled. More are dropped: both ask again.
const WANTED: usize = 256;
/// How often it is checked whether the certificate is due, or its files have changed.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);
/// How often [`Node::ready`] looks.
const READY_CHECK: Duration = Duration::from_millis(5);
/// What to do without a secret.
const NO_SECRET: &str = "a cluster secret is needed: pass ClusterSecret::from_env(\"ROOMCAST_SECRET\")? to .secret(); \
                         `roomcast keygen` makes one";

/// One member of a cluster. Cheap to clone; the node stops when the last clone is dropped.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    hub: Arc<Hub>,
    cluster: ClusterName,
    identity: Arc<Identity>,
    endpoint: quinn::Endpoint,
    gossip: Arc<Gossip>,
    actors: Actors,
    discovery: Arc<DiscoveryShared>,
    /// How many seeds were given.
    seeds: usize,
    namespaces: Mutex<HashMap<Arc<str>, std::sync::Weak<crate::plain::Inner>>>,
    local: SocketAddr,
    advertise: SocketAddr,
    udp_buffers: (usize, usize),
    started: SystemTime,
    state: watch::Sender<NodeState>,
    tasks: Vec<JoinHandle<()>>,
}

/// Where in its life a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeState {
    Running,
    Draining,
    Stopped,
}

/// Builds a [`Node`]. See the crate's first page for an example.
pub struct NodeBuilder {
    cluster: String,
    id: Option<String>,
    listen: String,
    advertise: Option<String>,
    seeds: Vec<String>,
    secret: Option<ClusterSecret>,
    accepted: Vec<ClusterSecret>,
    pem: Option<PemFiles>,
    config: Config,
    resolver: Arc<dyn Resolver>,
    socket: Option<Arc<dyn AsyncUdpSocket>>,
    actors_here: bool,
    random_seed: Option<u64>,
    incarnation: Option<Incarnation>,
}

impl Node {
    /// A builder with the defaults: cluster `roomcast`, any free UDP port on all interfaces, no seeds.
    pub fn builder() -> NodeBuilder {
        NodeBuilder {
            cluster: "roomcast".into(),
            id: None,
            listen: "0.0.0.0:0".into(),
            advertise: None,
            seeds: Vec::new(),
            secret: None,
            accepted: Vec::new(),
            pem: None,
            config: Config::default(),
            resolver: Arc::new(SystemResolver),
            socket: None,
            actors_here: false,
            random_seed: None,
            incarnation: None,
        }
    }

    /// The name of this node.
    pub fn id(&self) -> &NodeId {
        &self.inner.hub.id
    }

    /// This run of the node.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.hub.incarnation
    }

    /// The name of the cluster.
    pub fn cluster(&self) -> &str {
        self.inner.cluster.as_str()
    }

    /// The UDP address that this node listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// The UDP address that other nodes dial.
    pub fn advertise_addr(&self) -> SocketAddr {
        self.inner.advertise
    }

    /// Everyone in the cluster as this node sees it, this node first.
    pub fn members(&self) -> Vec<Member> {
        self.inner.actors.members.borrow().as_ref().clone()
    }

    /// Waits until `condition` holds for the members; looks again at each change.
    ///
    /// Ends too when the node stops: look at the members again where that matters. Cancel safe.
    pub async fn members_until(&self, mut condition: impl FnMut(&[Member]) -> bool) {
        let mut members = self.inner.actors.members.clone();
        let _ = members.wait_for(|members| condition(members)).await;
    }

    /// What happens from now on: membership, links, gaps.
    pub fn events(&self) -> Events {
        Events::new(self.inner.hub.events.subscribe())
    }

    /// The plain API for a namespace: connect members, join rooms, emit bytes.
    ///
    /// # Errors
    /// [`IdError`] when the path is empty or too long.
    pub fn namespace(&self, path: impl AsRef<str>) -> Result<NamespaceHandle, IdError> {
        NamespaceHandle::open(&self.inner.hub, &self.inner.namespaces, path.as_ref())
    }

    /// Whether the node takes part in its cluster: it listens, does not leave, and has looked at its seeds once.
    pub fn is_ready(&self) -> bool {
        let seeds = self.inner.discovery.snapshot();
        // Discovery lists the seeds when it begins, which may be a moment after the start.
        let looked = seeds.len() == self.inner.seeds && seeds.iter().all(|seed| seed.rounds > 0);
        *self.inner.state.borrow() == NodeState::Running && looked
    }

    /// Waits until [`is_ready`](Self::is_ready); for ever on a node that leaves before. Cancel safe.
    pub async fn ready(&self) {
        while !self.is_ready() {
            tokio::time::sleep(READY_CHECK).await;
        }
    }

    /// Whether the actors still work. Never depends on other nodes.
    pub fn is_live(&self) -> bool {
        *self.inner.state.borrow() != NodeState::Stopped && self.inner.actors.beat.is_live()
    }

    /// Whether this node is leaving or has left.
    pub fn is_draining(&self) -> bool {
        *self.inner.state.borrow() != NodeState::Running
    }

    /// Leaves the cluster without losing anything: tells the others, takes no new links, waits until they have
    /// acknowledged what was queued for them (at most [`crate::config::LinkConfig::drain_timeout`]), and closes the
    /// links. Calling it again waits for nothing. Afterwards call [`stop`](Self::stop) or drop the node.
    pub async fn drain(&self) {
        let was_running = self.inner.state.send_if_modified(|state| {
            let running = *state == NodeState::Running;
            if running {
                *state = NodeState::Draining;
            }
            running
        });
        if !was_running {
            return;
        }
        tracing::info!(node = %self.id(), "leaving the cluster");
        let _ = self.inner.actors.membership.send(Drain).await;
        self.inner.gossip.set_leaving().await;
        // Each for itself: one that is away or frozen must not cost the others their goodbye.
        let limit = self.inner.hub.config.link.drain_timeout;
        let mut goodbyes = tokio::task::JoinSet::new();
        for peer in self.inner.hub.peers() {
            goodbyes.spawn(tokio::time::timeout(limit, async move {
                peer.flushed().await;
                peer.say_goodbye().await;
            }));
        }
        let late = goodbyes.join_all().await.into_iter().filter(Result::is_err).count();
        if late > 0 {
            tracing::warn!(node = %self.id(), peers = late, "left before these peers had acknowledged everything");
        }
        for peer in self.inner.hub.peers() {
            peer.close_link(CloseCode::Left, "the node leaves");
        }
    }

    /// Stops at once: closes the links and the socket. What was queued and not sent is lost; [`drain`](Self::drain)
    /// first to lose nothing.
    pub async fn stop(&self) {
        self.inner.shut_down();
        // Peers learn at once that this node is gone.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.inner.endpoint.wait_idle()).await;
    }

    /// QUIC connections of any kind that are not fully closed yet: for tests of how two dials are settled.
    #[doc(hidden)]
    pub fn open_connections(&self) -> usize {
        self.inner.endpoint.open_connections()
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.inner.hub
    }

    /// Milliseconds since the Unix epoch at the start of this run.
    pub(crate) fn started_unix_ms(&self) -> u64 {
        micros(self.inner.started) / 1000
    }

    pub(crate) fn udp_buffers(&self) -> (usize, usize) {
        self.inner.udp_buffers
    }

    pub(crate) fn discovery(&self) -> Vec<DiscoveryState> {
        self.inner.discovery.snapshot()
    }

    pub(crate) fn certificate_expires(&self) -> SystemTime {
        self.inner.identity.not_after()
    }

    pub(crate) fn gossip_digest(&self) -> crate::gossip::DigestSize {
        self.inner.gossip.digest()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", self.id()).field("incarnation", &self.incarnation()).finish()
    }
}

impl Inner {
    fn shut_down(&self) {
        if self.state.send_replace(NodeState::Stopped) == NodeState::Stopped {
            return;
        }
        for task in &self.tasks {
            task.abort();
        }
        self.endpoint.close(quinn::VarInt::from_u32(CloseCode::Left as u32), b"the node stops");
        self.gossip.stop();
        self.actors.stop();
        self.hub.stop();
        for peer in self.hub.peers() {
            peer.close();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl NodeBuilder {
    /// The name of the cluster: 1 to 63 lower-case letters, digits and `-`. Default is `roomcast`. Nodes of other
    /// clusters are refused.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// The name of this node, unique in the cluster. Default is a random one. Give a stable one, for example the pod
    /// name, so that a restart replaces the earlier run at once.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The UDP address to listen on, as `ip:port`; port 0 takes a free one. Default is `0.0.0.0:0`.
    pub fn listen(mut self, addr: impl ToString) -> Self {
        self.listen = addr.to_string();
        self
    }

    /// The address that other nodes dial, as `ip:port` or `ip` (with the port listened on). Default is the address
    /// listened on; needed when that is `0.0.0.0` or `[::]` and the machine has no address of its own to find.
    pub fn advertise(mut self, addr: impl ToString) -> Self {
        self.advertise = Some(addr.to_string());
        self
    }

    /// Where to look for other nodes, each as `host:port`. Names are looked up again and again; an address that is
    /// this node's own is left out. Default is none: the node waits for others.
    pub fn seeds<S: ToString>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.seeds.extend(seeds.into_iter().map(|seed| seed.to_string()));
        self
    }

    /// The secret that all nodes of the cluster share: each node makes its own certificate from it. Required, unless
    /// [`certificates`](Self::certificates) are given.
    pub fn secret(mut self, secret: ClusterSecret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Another secret whose nodes are let in, too: for changing the secret without a break.
    pub fn also_accept(mut self, secret: ClusterSecret) -> Self {
        self.accepted.push(secret);
        self
    }

    /// Certificates from PEM files instead of a secret, for example those of cert-manager. They are read again every
    /// 10 s; when they are not good, the last good ones stay in use. The certificate must be good for
    /// `node.<cluster>.roomcast`, as client and as server.
    pub fn certificates(mut self, files: PemFiles) -> Self {
        self.pem = Some(files);
        self
    }

    /// Everything else.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// How seed names are looked up. Default is the system's resolver.
    pub fn resolver(mut self, resolver: Arc<dyn Resolver>) -> Self {
        self.resolver = resolver;
        self
    }

    /// Uses this socket instead of binding one: the seam where tests inject faults.
    #[doc(hidden)]
    pub fn socket(mut self, socket: Arc<dyn AsyncUdpSocket>) -> Self {
        self.socket = Some(socket);
        self
    }

    /// Runs the actors in the actix system of the calling thread instead of a thread of their own: for simulations
    /// of many nodes under one paused clock.
    #[doc(hidden)]
    pub fn actors_here(mut self, here: bool) -> Self {
        self.actors_here = here;
        self
    }

    /// Fixes the randomness (jitter, epochs) so that a run can be repeated.
    #[doc(hidden)]
    pub fn random_seed(mut self, seed: u64) -> Self {
        self.random_seed = Some(seed);
        self
    }

    /// Fixes the incarnation instead of taking the time.
    #[doc(hidden)]
    pub fn incarnation(mut self, incarnation: Incarnation) -> Self {
        self.incarnation = Some(incarnation);
        self
    }

    /// Starts the node: it listens, and looks for the others in the background. A node that finds nobody keeps
    /// looking for ever.
    ///
    /// Must be called in a tokio runtime, which the node's tasks then use.
    ///
    /// # Errors
    /// [`StartError`], when a setting is unusable or the address cannot be bound. Nothing is left running then.
    pub async fn start(self) -> Result<Node, StartError> {
        let random_seed = self.random_seed.map_or_else(random_seed, Ok)?;
        let cluster = ClusterName::new(&self.cluster)?;
        let id = NodeId::new(self.id.unwrap_or_else(|| format!("node-{:08x}", random_seed >> 32)))?;
        let seeds = self.seeds.iter().map(|seed| seed.parse()).collect::<Result<Vec<Seed>, _>>()?;
        let listen: SocketAddr = self.listen.parse().map_err(|_| {
            StartError::Config(format!("listen on {:?}: give ip:port, for example 0.0.0.0:7946", self.listen))
        })?;
        let started = wall_clock();
        let certificates = self.config.certificates.clone();
        let identity = match (self.secret, self.pem) {
            (Some(secret), None) => {
                Identity::from_secret(cluster.clone(), &secret, &self.accepted, certificates, started)?
            }
            (None, Some(files)) => Identity::from_pem_files(cluster.clone(), files, started)?,
            (Some(_), Some(_)) => {
                return Err(StartError::Config("give a secret or certificates, not both".into()));
            }
            (None, None) => return Err(StartError::Config(NO_SECRET.into())),
        };
        let (socket, udp_buffers) = match self.socket {
            Some(socket) => (socket, (0, 0)),
            None => {
                let BoundSocket { socket, recv_bytes, send_bytes } =
                    endpoint::bind(listen, &self.config.quic)?;
                (endpoint::async_socket(socket)?, (recv_bytes, send_bytes))
            }
        };
        let endpoint = endpoint::endpoint(socket, &self.config.quic, &identity)?;
        let local = endpoint.local_addr()?;
        let advertise = advertised(self.advertise.as_deref(), local)?;
        let incarnation = self.incarnation.unwrap_or_else(|| Incarnation(micros(started)));

        let mut config = self.config;
        config.discovery.jitter_seed = random_seed;
        let hub = Hub::new(id.clone(), incarnation, config);
        let (wanted_tx, wanted) = mpsc::channel(WANTED);
        let (arrived_tx, arrived) = mpsc::channel(transport::INCOMING_DEFAULT);
        let links = Arc::new(LinkTable::new(Arc::clone(&hub), wanted_tx.clone(), arrived_tx));
        let carrier = Arc::clone(&links) as Arc<dyn transport::Carrier>;
        let gossip_config = hub.config.gossip.clone();
        let gossip =
            Gossip::start(gossip_config, cluster.as_str(), &id, incarnation, advertise, carrier, arrived)
                .await?;
        let gossip = Arc::new(gossip);
        let card = Card { cluster: cluster.clone(), id, incarnation, advertise, nonce: 0 };
        let discovery = DiscoveryShared::new();
        let seed = system::Seed {
            hub: Arc::clone(&hub),
            gossip: Arc::clone(&gossip),
            endpoint: endpoint.clone(),
            card: card.clone(),
            links,
            discovery: Arc::clone(&discovery),
            wanted,
            random_seed,
        };
        let actors = system::start(seed, self.actors_here).await?;

        let identity = Arc::new(identity);
        let seed_count = seeds.len();
        let tasks = vec![
            tokio::spawn(membership::accept_all(
                Arc::clone(&hub),
                endpoint.clone(),
                card,
                actors.membership.clone(),
            )),
            tokio::spawn(discovery::run(
                hub.config.discovery.clone(),
                seeds,
                self.resolver,
                discovery::own_addresses(advertise, local),
                actors.alone.clone(),
                move |addr| {
                    // Full means that enough dials wait; discovery asks again.
                    let _ = wanted_tx.try_send(addr);
                },
                Arc::clone(&discovery),
            )),
            tokio::spawn(keep_certificates(Arc::clone(&identity), hub.id.clone())),
        ];
        tracing::info!(node = %hub.id, cluster = %cluster, %local, %advertise, %incarnation, "node started");
        Ok(Node {
            inner: Arc::new(Inner {
                hub,
                cluster,
                identity,
                endpoint,
                gossip,
                actors,
                discovery,
                seeds: seed_count,
                namespaces: Mutex::default(),
                local,
                advertise,
                udp_buffers,
                started,
                state: watch::channel(NodeState::Running).0,
                tasks,
            }),
        })
    }
}

async fn keep_certificates(identity: Arc<Identity>, node: NodeId) {
    let failing = Arc::new(AtomicBool::new(false));
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        let now = wall_clock();
        let (identity, node, failing) = (Arc::clone(&identity), node.clone(), Arc::clone(&failing));
        // Reads files, makes keys: not on a thread that must not wait.
        let kept = tokio::task::spawn_blocking(move || {
            let renewed = if identity.renew_due(now) {
                identity.renew(now).map(|()| true)
            } else {
                identity.reload_if_changed(now)
            };
            match renewed {
                Ok(renewed) => {
                    failing.store(false, Ordering::Relaxed);
                    if renewed {
                        tracing::info!(%node, "certificate renewed");
                    }
                }
                Err(error) if failing.swap(true, Ordering::Relaxed) => {
                    tracing::debug!(%node, %error, "the certificate is still not renewed");
                }
                Err(error) => {
                    tracing::error!(%node, %error, "failed to renew the certificate; the old one is kept");
                }
            }
        });
        let _ = kept.await;
    }
}

/// The address to advertise: the one given, or the one listened on.
fn advertised(given: Option<&str>, local: SocketAddr) -> Result<SocketAddr, StartError> {
    let addr = match given {
        None => local,
        Some(text) => text
            .parse::<SocketAddr>()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, local.port())))
            .map_err(|_| {
                StartError::Config(format!(
                    "advertise {text:?}: give ip:port or ip, for example 10.0.0.7:7946"
                ))
            })?,
    };
    let addr = if given.is_none() && addr.ip().is_unspecified() {
        SocketAddr::new(own_ip(addr).unwrap_or(addr.ip()), addr.port())
    } else {
        addr
    };
    if addr.ip().is_unspecified() || addr.port() == 0 {
        let reason =
            "nobody can dial it: pass the address of this machine to .advertise(), in Kubernetes the pod IP";
        return Err(StartError::Config(AdvertiseError { addr, reason: reason.into() }.to_string()));
    }
    Ok(addr)
}

/// The address of the interface that the default route uses. Asks the routing table; sends nothing.
fn own_ip(listen: SocketAddr) -> Option<IpAddr> {
    let (any, far): (SocketAddr, SocketAddr) = if listen.is_ipv4() {
        (([0, 0, 0, 0], 0).into(), ([192, 0, 2, 1], 9).into())
    } else {
        (([0u16; 8], 0).into(), ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9).into())
    };
    let probe = std::net::UdpSocket::bind(any).ok()?;
    probe.connect(far).ok()?;
    let ip = probe.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

fn random_seed() -> Result<u64, StartError> {
    SysRng
        .try_next_u64()
        .map_err(|error| StartError::Config(format!("the system gives no random numbers: {error}")))
}

#[expect(clippy::disallowed_methods, reason = "incarnations and certificates need the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_dial_an_unspecified_address() {
        let listen: SocketAddr = "0.0.0.0:7946".parse().unwrap();
        assert_eq!(advertised(Some("10.1.2.3"), listen).unwrap(), "10.1.2.3:7946".parse().unwrap());
        assert_eq!(advertised(Some("10.1.2.3:9"), listen).unwrap(), "10.1.2.3:9".parse().unwrap());
        let error = advertised(Some("0.0.0.0"), listen).unwrap_err().to_string();
        assert!(error.contains(".advertise()"), "{error}");
        assert!(advertised(Some("nonsense"), listen).unwrap_err().to_string().contains("give ip:port"));
    }

    #[tokio::test]
    async fn a_node_without_a_secret_says_what_to_do() {
        let error = Node::builder().start().await.unwrap_err().to_string();
        assert!(error.contains("roomcast keygen"), "{error}");
    }
}
