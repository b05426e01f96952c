//! A node: start, ready, drain, stop (`node/builder.rs`: what it is started with; `node/servers.rs`: events for other nodes). The only file that knows the order of start and stop.

mod builder;
mod servers;
mod slices;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::actors::incoming;
use crate::actors::links::LinkTable;
use crate::actors::listeners::{self, Recipient};
use crate::actors::membership::{Drain, Leave};
use crate::actors::registry::StopLingering;
use crate::actors::system::{self, Actors};
use crate::core::link::LinkState;
use crate::core::members::Member;
use crate::core::slices::Slices;
use crate::core::version::Protocols;
use crate::core::watchdog::Watched;
use crate::error::{IdError, StartError};
use crate::event::{Event, Events, RoomEvent, RoomEvents};
use crate::gossip::discovery::{self, DiscoveryShared, DiscoveryState, Seed};
use crate::gossip::{Gossip, transport};
use crate::hub::Hub;
use crate::hub::cluster_rooms::{self, RoomWatch};
use crate::hub::peer::PeerQueue;
use crate::hub::requests::MissingReason;
use crate::ids::{Incarnation, NodeId};
use crate::plain::NamespaceHandle;
use crate::quic::endpoint::{self, BoundSocket};
use crate::quic::handshake::{Card, CloseCode};
use crate::quic::tls::{ClusterName, Identity};
pub use builder::NodeBuilder;
use builder::advertised;
pub use slices::ClientSlices;

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
    /// Whether the node has found another one, or does not wait for one any more. Stays true.
    settled_in: AtomicBool,
    namespaces: Mutex<HashMap<Arc<str>, std::sync::Weak<crate::plain::Inner>>>,
    local: SocketAddr,
    advertise: SocketAddr,
    udp_buffers: (usize, usize),
    started: SystemTime,
    state: watch::Sender<NodeState>,
    tasks: Vec<JoinHandle<()>>,
    /// Where the node was started: for tasks that begin later.
    runtime: tokio::runtime::Handle,
}

/// Where in its life a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeState {
    Running,
    /// It has said that it leaves; its links stand.
    Leaving,
    /// No new links: what is queued goes out.
    Draining,
    Stopped,
}

impl Node {
    /// A builder with the defaults: cluster `roomcast`, any free UDP port on all interfaces, no seeds.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
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

    /// The emitters that are linked to this node, or were within [`crate::config::LinkConfig::resume_window`]. They are no
    /// members.
    pub fn emitters(&self) -> usize {
        self.inner.hub.guests.len()
    }

    /// What happens to the rooms of this node from now on, in all namespaces: a stream of [`RoomEvent`]s. For one
    /// namespace use [`RoomEvents::only`].
    ///
    /// Covers members of the plain API and sockets that join and leave with `roomcast::socketioxide::Socket` or are moved
    /// by the adapter (`io.local().join("room")`). Joins with socketioxide's own `SocketRef` are seen by no adapter.
    /// Without a listener, rooms cost nothing more.
    ///
    /// ```no_run
    /// # async fn doc(node: roomcast::Node) {
    /// let mut events = node.room_events().only("/chat");
    /// while let Some(event) = events.recv().await {
    ///     println!("{}: {event:?}", event.name());
    /// }
    /// # }
    /// ```
    pub fn room_events(&self) -> RoomEvents {
        self.inner.hub.room_feed.listen()
    }

    /// The rooms of the whole cluster, in all namespaces, as this node sees it: [`RoomEvent::RoomOpened`] for each room that
    /// has a member anywhere, at first for those that have one now, and [`RoomEvent::RoomClosed`] when the last member is
    /// gone, also because its node died or is on the other side of a split. Of one room they alternate, each exactly once
    /// for each transition that this node sees; after a split is healed, only what differs is said.
    ///
    /// Each watch asks every node for the names of its rooms and holds them (see
    /// [`Config::watched_rooms`](crate::Config::watched_rooms)): watch on the few nodes that need it. A node
    /// that is asked lists its rooms at first and whenever the watch has fallen behind; joins and leaves there wait while one
    /// front is listed. Rooms of socketioxide
    /// are those that [`room_events`](Self::room_events) covers.
    ///
    /// ```no_run
    /// # async fn doc(node: roomcast::Node) {
    /// use roomcast::RoomEvent;
    ///
    /// let mut watch = node.watch_rooms();
    /// while let Some(event) = watch.recv().await {
    ///     match event {
    ///         RoomEvent::RoomOpened { ns, room } => println!("{ns} {room}: somebody is there"),
    ///         RoomEvent::RoomClosed { ns, room } => println!("{ns} {room}: empty everywhere"),
    ///         other => println!("{}", other.name()),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn watch_rooms(&self) -> RoomWatch {
        let (watch, run) = cluster_rooms::watch(&self.inner.hub);
        self.until_stopped(run);
        watch
    }

    /// As [`watch_rooms`](Self::watch_rooms), as messages to an actor: see [`room_events_to`](Self::room_events_to).
    pub fn watch_rooms_to(&self, recipient: Recipient<RoomEvent>) {
        self.until_stopped(listeners::forward(self.watch_rooms(), recipient));
    }

    /// As [`room_events`](Self::room_events), as messages to an actor (of actix 0.13, in any system). May be called from
    /// any thread.
    ///
    /// Ends when the actor or the node stops; until then it keeps the actor alive. While the mailbox is full, events wait
    /// in the buffer of the node ([`Config::room_event_buffer`](crate::Config::room_event_buffer)); what does not fit
    /// there either is counted, and the actor is told how many it missed as soon as its mailbox has room.
    pub fn room_events_to(&self, recipient: Recipient<RoomEvent>) {
        self.until_stopped(listeners::forward(self.room_events(), recipient));
    }

    /// As [`events`](Self::events), as messages to an actor: see [`room_events_to`](Self::room_events_to), with
    /// [`Config::event_buffer`](crate::Config::event_buffer) as the buffer.
    pub fn events_to(&self, recipient: Recipient<Event>) {
        self.until_stopped(listeners::forward(self.events(), recipient));
    }

    /// The plain API for a namespace: connect members, join rooms, emit bytes.
    ///
    /// # Errors
    /// [`IdError`] when the path is empty, too long or begins with `!`, or the node has as many namespaces as it may have.
    pub fn namespace(&self, path: impl AsRef<str>) -> Result<NamespaceHandle, IdError> {
        NamespaceHandle::open(&self.inner.hub, &self.inner.namespaces, path.as_ref())
    }

    /// Whether the node takes part in its cluster and can be sent clients: it listens, does not leave, is not refused because
    /// another process with its id is newer, and has found its place: it has a link to another node and knows its rooms, or
    /// its seeds lead to nobody else, or it has waited for [`Config::ready_wait`](crate::Config::ready_wait). Once it has
    /// found its place, it is ready without other nodes, too.
    pub fn is_ready(&self) -> bool {
        *self.inner.state.borrow() == NodeState::Running && self.has_settled_in() && self.conflict().is_none()
    }

    fn has_settled_in(&self) -> bool {
        let inner = &self.inner;
        if inner.settled_in.load(Ordering::Relaxed) {
            return true;
        }
        let waited = || u128::from(inner.hub.now_ms()) >= inner.hub.config.ready_wait.0.as_millis();
        let linked = || inner.hub.peers().iter().any(|peer| peer.state() == LinkState::Up);
        let own = || discovery::own_addresses(inner.advertise, inner.local);
        let settled = linked() || inner.discovery.only_own(inner.seeds, &own()) || waited();
        inner.settled_in.fetch_or(settled, Ordering::Relaxed);
        settled
    }

    /// Whether the node listens: from its start until it has stopped, whatever becomes of its links.
    pub fn is_listening(&self) -> bool {
        *self.inner.state.borrow() != NodeState::Stopped
    }

    /// Why the cluster refuses this node for another process with its id, by its own line in the list of members.
    pub(crate) fn conflict(&self) -> Option<String> {
        let members = self.inner.actors.members.borrow();
        let own = members.iter().find(|member| member.id == *self.id())?;
        own.conflict.as_ref().map(|conflict| conflict.reason(&own.id, own.incarnation))
    }

    /// Waits until [`is_ready`](Self::is_ready); for ever on a node that leaves before, or whose id stays taken. Cancel
    /// safe.
    pub async fn ready(&self) {
        while !self.is_ready() {
            tokio::time::sleep(READY_CHECK).await;
        }
    }

    /// Resolves when every other node has heard of everything that was joined on this node before the call, in any
    /// namespace and by any front: a message that is emitted anywhere from then on reaches who joined.
    ///
    /// Takes about a round trip, and at most the interest tick (5 ms by default) before it. "Every node" is each that this
    /// node knows at the time of the call. One whose link is down for the moment is waited for until it is back or is
    /// given up, so put a limit around it ([`tokio::time::timeout`]) where the wait must be short. The other side of a
    /// split cluster is given up like a dead node. Resolves at once on a node that has stopped.
    ///
    /// A peer that refuses this node's rooms because they are over its limits
    /// ([`max_rooms_per_peer`](crate::config::LinkConfig::max_rooms_per_peer),
    /// [`max_namespaces_per_peer`](crate::config::LinkConfig::max_namespaces_per_peer)) never hears of the join, and is
    /// waited for until it is given up, which need not come: with different limits on the nodes of a cluster, always put a
    /// limit around it.
    ///
    /// Cancel safe: nothing is kept of a future that is dropped.
    ///
    /// ```no_run
    /// # async fn doc(node: roomcast::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// let chat = node.namespace("/chat")?;
    /// let member = chat.connect(|message| println!("{message:?}"));
    /// member.join("lobby")?;
    /// node.settled().await;
    /// // From now on no message for the lobby is missed, whoever emits it.
    /// # Ok(())
    /// # }
    /// ```
    pub fn settled(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.inner.hub.settled()
    }

    /// Whether the parts of this node still run: its actors, its gossip, the runtime that it was started on. Never depends
    /// on other nodes. See [`crate::Config::watchdog_limit`].
    pub fn is_live(&self) -> bool {
        self.why_not_live().is_none()
    }

    /// Why this node is not live, for an operator; none when it is.
    pub(crate) fn why_not_live(&self) -> Option<String> {
        if *self.inner.state.borrow() == NodeState::Stopped {
            return Some("the node has stopped".to_owned());
        }
        self.inner.actors.watch.hangs()
    }

    /// The parts that are watched.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        self.inner.actors.watch.parts()
    }

    /// How often each of them has run.
    #[cfg(feature = "status")]
    pub(crate) fn beats(&self) -> [(&'static str, u64); 4] {
        self.inner.actors.watch.beats()
    }

    /// Blocks the thread of the actors until the other end of `until` is dropped.
    #[cfg(test)]
    pub(crate) fn block_actors(&self, until: std::sync::mpsc::Receiver<()>) {
        let _ = self.inner.actors.membership.try_send(crate::actors::watch::Block(until));
    }

    /// Whether this node is leaving or has left.
    pub fn is_draining(&self) -> bool {
        *self.inner.state.borrow() != NodeState::Running
    }

    /// Says that this node leaves: it is unready at once, other nodes list it as leaving, and it looks for nobody any more. Its
    /// links stand, and are made anew should they break, so that everything goes on until [`drain`](Self::drain). In between,
    /// let your clients go: [`client_slices`](Self::client_slices). Calling it again does nothing.
    ///
    /// ```no_run
    /// # async fn doc(node: roomcast::Node) -> std::io::Result<()> {
    /// use tokio::signal::unix::{SignalKind, signal};
    ///
    /// let mut terminate = signal(SignalKind::terminate())?;
    /// terminate.recv().await;
    /// let leave = async {
    ///     node.leave().await;
    ///     // Let the clients go, then:
    ///     node.drain().await;
    ///     node.stop().await;
    /// };
    /// tokio::select! {
    ///     () = leave => Ok(()),
    ///     // Whoever asks twice does not want to wait.
    ///     _ = terminate.recv() => std::process::exit(1),
    /// }
    /// # }
    /// ```
    pub async fn leave(&self) {
        if self.step(NodeState::Running, NodeState::Leaving) {
            tracing::info!(node = %self.id(), "leaving the cluster");
            let _ = self.inner.actors.membership.send(Leave).await;
            self.inner.gossip.set_leaving().await;
        }
    }

    /// When to close how many of so many clients, as [`Config::drain`](crate::Config::drain) says: a few at a time, so that
    /// they do not all come to the other nodes at once. For servers on axum
    /// `roomcast::connections::Connections` does it.
    ///
    /// ```no_run
    /// # async fn doc(node: roomcast::Node, mut clients: Vec<roomcast::Member>) {
    /// node.leave().await;
    /// let mut slices = node.client_slices(clients.len());
    /// while let Some(slice) = slices.next().await {
    ///     // Tell them to come back elsewhere. A member that is dropped is disconnected.
    ///     clients.truncate(clients.len() - slice);
    /// }
    /// node.drain().await;
    /// # }
    /// ```
    pub fn client_slices(&self, clients: usize) -> ClientSlices {
        let config = &self.inner.hub.config;
        ClientSlices::new(Slices::new(&config.drain, clients), config.discovery.jitter_seed)
    }

    /// Leaves the cluster without losing anything: tells the others ([`leave`](Self::leave)), takes no new links, waits
    /// until they have acknowledged what was queued for them and know which rooms have no members here any more (at most
    /// [`crate::config::LinkConfig::drain_timeout`]), and closes the links. Calling it again waits for nothing. Afterwards
    /// call [`stop`](Self::stop) or drop the node.
    ///
    /// Let clients and members go before: who is still here when a link closes misses what was under way, and the other
    /// node reports that as a gap.
    pub async fn drain(&self) {
        self.leave().await;
        if !self.step(NodeState::Leaving, NodeState::Draining) {
            return;
        }
        let letter = self.inner.hub.membership_mailbox.letter();
        let _ = self.inner.actors.membership.send(Drain).await;
        drop(letter);
        // Each for itself: one that is away or frozen must not cost the others their goodbye.
        let (begun, limit) = (tokio::time::Instant::now(), self.inner.hub.config.link.drain_timeout);
        // First the emitters: what still comes from them is for the others. They get half of the time.
        let guests = self.inner.hub.guests.close();
        let late = say_goodbye(guests.clone(), None, begun + limit / 2).await;
        let letter = self.inner.hub.registry_mailbox.letter();
        let interest = self.inner.actors.registry.send(StopLingering).await.ok();
        drop(letter);
        let late = late + say_goodbye(self.inner.hub.peers(), interest, begun + limit).await;
        if late > 0 {
            tracing::warn!(node = %self.id(), peers = late, "left before these peers had acknowledged everything");
        }
        for peer in guests.into_iter().chain(self.inner.hub.peers()) {
            peer.close_link(CloseCode::Left, "the node leaves");
        }
    }

    /// Goes from one state to the next; returns whether it was in that state.
    fn step(&self, from: NodeState, to: NodeState) -> bool {
        self.inner.state.send_if_modified(|state| {
            let steps = *state == from;
            if steps {
                *state = to;
            }
            steps
        })
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

    /// Ends when the node has stopped; keeps it from nothing.
    #[cfg(feature = "status")]
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut state = self.inner.state.subscribe();
        async move {
            let _ = state.wait_for(|state| *state == NodeState::Stopped).await;
        }
    }

    /// Runs a task until it ends or the node stops.
    pub(crate) fn until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.inner.state.subscribe();
        self.inner.runtime.spawn(async move {
            tokio::select! {
                () = task => {}
                _ = state.wait_for(|state| *state == NodeState::Stopped) => {}
            }
        });
    }

    /// The runs of other nodes that something is queued for: for tests that follow every message.
    #[doc(hidden)]
    pub fn peers(&self) -> Vec<(NodeId, Incarnation)> {
        self.inner.hub.peers().iter().map(|peer| (peer.id.clone(), peer.incarnation)).collect()
    }

    /// Questions of this node that wait for answers, and questions that are being answered here: for tests that nothing is
    /// left behind.
    #[doc(hidden)]
    pub fn pending_requests(&self) -> (usize, usize) {
        self.inner.hub.pending_requests()
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
        self.actors.watch.stop();
        for task in &self.tasks {
            task.abort();
        }
        self.endpoint.close(quinn::VarInt::from_u32(CloseCode::Left as u32), b"the node stops");
        self.gossip.stop();
        self.actors.stop();
        self.hub.stop();
        for guest in self.hub.guests.close() {
            guest.close();
        }
        for peer in self.hub.peers() {
            peer.close();
            self.hub.requests.gone(peer.slot, MissingReason::Left);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl NodeBuilder {
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
        let protocols = Protocols::up_to(self.config.protocol.max)?;
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
        config.discovery.node = id.to_string();
        let hub = Hub::new(id.clone(), incarnation, config);
        hub.set_tracer(self.tracer);
        let (wanted_tx, wanted) = mpsc::channel(WANTED);
        let (arrived_tx, arrived) = mpsc::channel(transport::INCOMING_DEFAULT);
        let links = Arc::new(LinkTable::new(Arc::clone(&hub), wanted_tx.clone(), arrived_tx));
        let carrier = Arc::clone(&links) as Arc<dyn transport::Carrier>;
        let gossip_config = hub.config.gossip.clone();
        let gossip =
            Gossip::start(gossip_config, cluster.as_str(), &id, incarnation, advertise, carrier, arrived)
                .await?;
        let gossip = Arc::new(gossip);
        let card = Card {
            cluster: cluster.clone(),
            id,
            incarnation,
            advertise,
            nonce: 0,
            emitter: false,
            protocols,
        };
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
            tokio::spawn(incoming::accept_all(
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
            tokio::spawn(Arc::clone(&actors.watch).beat_of_runtime()),
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
                settled_in: AtomicBool::new(false),
                namespaces: Mutex::default(),
                local,
                advertise,
                udp_buffers,
                started,
                state: watch::channel(NodeState::Running).0,
                tasks,
                runtime: tokio::runtime::Handle::current(),
            }),
        })
    }
}

/// Says goodbye to all of them, each for itself, once they know this version of the interest. Returns to how many it did not
/// come in time.
async fn say_goodbye(
    peers: Vec<Arc<PeerQueue>>,
    interest: Option<u64>,
    deadline: tokio::time::Instant,
) -> usize {
    let mut goodbyes = tokio::task::JoinSet::new();
    for peer in peers {
        goodbyes.spawn(tokio::time::timeout_at(deadline, async move {
            peer.flushed().await;
            if let Some(version) = interest {
                // Afterwards it sends nothing for members that have gone: of that, nothing is under way when the link ends.
                // Half of the time that is left, for the goodbye needs some, too.
                let now = tokio::time::Instant::now();
                let until = now + deadline.saturating_duration_since(now) / 2;
                let _ = tokio::time::timeout_at(until, peer.link_knows_interest(version)).await;
            }
            peer.say_goodbye().await;
        }));
    }
    goodbyes.join_all().await.into_iter().filter(Result::is_err).count()
}

pub(crate) async fn keep_certificates(identity: Arc<Identity>, node: NodeId) {
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

pub(crate) fn random_seed() -> Result<u64, StartError> {
    SysRng
        .try_next_u64()
        .map_err(|error| StartError::Config(format!("the system gives no random numbers: {error}")))
}

#[expect(clippy::disallowed_methods, reason = "incarnations and certificates need the wall clock")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

pub(crate) fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
