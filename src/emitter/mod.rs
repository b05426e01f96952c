//! Publishing from a process that is no server: a job, a cron script, an API that has no clients of its own.
//!
//! An [`Emitter`] holds one link to some node of the cluster, which passes on what it sends. It is no member: it is in
//! nobody's list of members, counts as no server and needs no port that others reach.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use roomcast::{ClusterSecret, Emitter};
//!
//! let secret = ClusterSecret::from_env("ROOMCAST_SECRET")?;
//! let emitter = Emitter::connect(["10.0.0.7:7946", "10.0.0.8:7946"], secret).await?;
//! emitter.of("/chat").to("lobby").except("muted").emit("message", "the shop opens")?;
//! emitter.flush().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! * Messages are accepted at once into a bounded outbox and sent in order, each applied by a node at most once.
//!   [`Emitter::flush`] says when everything is applied, or how many messages may be lost.
//! * A link that breaks and comes back to the same run of its node within [`EmitterBuilder::move_after`] loses nothing.
//! * A node that leaves with [`drain`](crate::Node::drain) says what it has applied: the next node gets the rest, and
//!   nothing is lost.
//! * A node that dies may or may not have applied what it had not acknowledged. That is not sent again; it is reported by
//!   [`Emitter::flush`] and as [`Event::Gap`](crate::Event::Gap). What had not been sent goes to the next node.
//! * What one node applied for the emitter before it went can reach other nodes after what the next node applies.
//!
//! Files: `mod.rs` the emitter and its settings, `selection.rs` whom something is for and what it is, `link.rs` the link,
//! `encode.rs` the forms that clients of socketioxide understand.

mod encode;
mod link;
mod selection;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::AsyncUdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::Config;
use crate::error::{IdError, StartError};
use crate::event::Events;
use crate::gossip::discovery::{Resolver, Seed, SystemResolver};
use crate::hub::Hub;
use crate::hub::peer::{PeerQueue, PeerRole};
use crate::ids::{Incarnation, NodeId};
use crate::node::{keep_certificates, micros, random_seed, wall_clock};
use crate::plain::Rooms;
use crate::quic::endpoint::{self, BindError};
use crate::quic::handshake::Card;
use crate::quic::tls::{ClusterName, ClusterSecret, Identity, PemFiles};

pub use encode::Parser;
use link::{Failed, Link};
pub use selection::{Answers, RemoteSocket, Selection};

/// What stands for the other end of the link where a name is needed: the frames may be for any node.
const CLUSTER: &str = "cluster";

/// Publishes from a process that is no server. Cheap to clone; the last clone that is dropped closes the link at once, so
/// call [`close`](Self::close) first to lose nothing. See [the module](self) for what is promised.
#[derive(Clone)]
pub struct Emitter {
    inner: Arc<Inner>,
}

struct Inner {
    /// Without fronts, and with one peer: whatever node the link goes to.
    hub: Arc<Hub>,
    queue: Arc<PeerQueue>,
    endpoint: quinn::Endpoint,
    parser: Parser,
    request_timeout: Duration,
    state: watch::Sender<EmitterState>,
    /// Lost frames that [`Emitter::flush`] has reported.
    reported: AtomicU64,
    tasks: Vec<JoinHandle<()>>,
}

/// Where the link of an emitter goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmitterState {
    /// Nowhere: a node is looked for. What is emitted waits in the outbox; volatile messages are dropped.
    Searching,
    /// To this node.
    Linked(NodeId),
    /// The emitter was closed.
    Closed,
}

/// Why there is no emitter. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Neither a secret nor certificates were given, or both. Nothing was started.
    #[error("connect: give the secret of the cluster, or certificates, and not both")]
    Secret,
    /// No seed was given. Nothing was started.
    #[error("connect: give the address of at least one node as host:port")]
    NoSeeds,
    /// A setting is unusable, or the system refuses a socket. Nothing was started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Every node refused, for a reason that waiting does not mend: another secret, another cluster name, the limit of
    /// emitters. Nothing is left running.
    #[error("connect: refused by {0}")]
    Refused(String),
    /// No node took the emitter in time. Nothing is left running.
    #[error("connect: no node within {} s: {last}", within.as_secs_f32())]
    Unreachable {
        /// The time given.
        within: Duration,
        /// What each address said last.
        last: String,
    },
}

/// Why something was not sent. Nobody gets it; what was accepted before is not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitterError {
    /// The namespace or a room name is unusable. Nothing was sent.
    #[error(transparent)]
    Id(#[from] IdError),
    /// More rooms than one frame can name. Nothing was sent.
    #[error("emit to, except, join or leave {got} rooms at once: the limit is {limit}")]
    TooManyRooms {
        /// The rooms given.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The data cannot be encoded for the parser. Nothing was sent.
    #[error("encode the data: {0}")]
    Encode(String),
    /// The message is over the limit of a frame. Nothing was sent.
    #[error("emit a message of {bytes} bytes: the limit is {limit}")]
    TooLarge {
        /// The size of the payload.
        bytes: usize,
        /// [`LinkConfig::max_frame_bytes`](crate::config::LinkConfig::max_frame_bytes).
        limit: usize,
    },
    /// The outbox is full, because the node is slow or there is none: [`Emitter::flush`], or try later. Nothing was sent.
    #[error("emit: {limit} bytes wait to be sent or acknowledged, which is the limit")]
    Full {
        /// [`LinkConfig::outbox_bytes`](crate::config::LinkConfig::outbox_bytes).
        limit: usize,
    },
    /// As many questions wait for answers as may. Nothing was sent.
    #[error("ask: {limit} questions wait for answers, which is the limit")]
    TooManyRequests {
        /// [`LinkConfig::max_requests`](crate::config::LinkConfig::max_requests).
        limit: usize,
    },
    /// The emitter was closed. Nothing was sent.
    #[error("emit: the emitter is closed")]
    Closed,
}

/// Messages that may be lost: sent to a node that went before it acknowledged them, or given up by closing. They were
/// reported once and are not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("deliver {frames} messages: the node went, or the emitter was closed, before they were acknowledged")]
pub struct Lost {
    /// How many messages, orders and questions: each may have been applied or not.
    pub frames: u64,
}

impl Emitter {
    /// Links to a node of the cluster `roomcast` with the defaults; [`builder`](Self::builder) for the rest.
    ///
    /// # Errors
    /// [`ConnectError`]. Cancel safe: nothing is left running.
    pub async fn connect<S: ToString>(
        seeds: impl IntoIterator<Item = S>,
        secret: ClusterSecret,
    ) -> Result<Self, ConnectError> {
        Self::builder().seeds(seeds).secret(secret).connect().await
    }

    /// A builder with the defaults: cluster `roomcast`, the common parser, no seeds.
    pub fn builder() -> EmitterBuilder {
        EmitterBuilder::new()
    }

    /// Everyone in a namespace; narrow it down with [`Selection::to`] and the like. An unusable path is an error of what
    /// is done next.
    pub fn of(&self, path: impl AsRef<str>) -> Selection<'_> {
        Selection::new(self, path.as_ref())
    }

    /// The members of some rooms of the namespace `/`.
    pub fn to<'r>(&self, rooms: impl Rooms<'r>) -> Selection<'_> {
        self.of("/").to(rooms)
    }

    /// An event for the servers themselves, not for clients: those that handle it with `Node::on_server_event`. Data is
    /// JSON.
    ///
    /// # Errors
    /// [`EmitterError`]; nobody gets it.
    pub fn server_side_emit<T: serde::Serialize + ?Sized>(
        &self,
        name: &str,
        data: &T,
    ) -> Result<(), EmitterError> {
        // The pseudo namespace of events that are for whole nodes.
        self.of("!node").server_side_emit(name, data)
    }

    /// Waits until everything that was accepted before this call is applied: by the node of the link and by those that
    /// need it, but for at most 2 s by a node that is slow or away. Takes about as long as the nodes' `heartbeat` (500 ms).
    /// Waits for as long as no node is found. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`], with the number of frames that may be lost and that no flush has reported before.
    pub async fn flush(&self) -> Result<(), Lost> {
        self.inner.queue.caught_up().await;
        self.inner.lost()
    }

    /// Flushes, for at most [`LinkConfig::drain_timeout`](crate::config::LinkConfig::drain_timeout), and says goodbye.
    /// What is emitted from now on is an error.
    ///
    /// # Errors
    /// As [`flush`](Self::flush), what had to be given up included.
    pub async fn close(&self) -> Result<(), Lost> {
        let inner = &self.inner;
        let goodbye = async {
            inner.queue.caught_up().await;
            inner.queue.say_goodbye().await;
        };
        let _ = timeout(inner.hub.config.link.drain_timeout, goodbye).await;
        inner.shut_down();
        let _ = timeout(Duration::from_secs(1), inner.endpoint.wait_idle()).await;
        inner.lost()
    }

    /// Where the link goes now.
    pub fn state(&self) -> EmitterState {
        self.inner.state.borrow().clone()
    }

    /// What happens from now on: [`Event::LinkUp`](crate::Event::LinkUp) and [`LinkDown`](crate::Event::LinkDown) with the
    /// node of the link, and [`Gap`](crate::Event::Gap) with the peer `cluster` for frames that may be lost.
    pub fn events(&self) -> Events {
        Events::new(self.inner.hub.events.subscribe())
    }

    /// Frames that may be lost, since the start: the sum of what [`flush`](Self::flush) reports.
    pub fn lost(&self) -> u64 {
        self.inner.queue.counters.gap_sent.load(Ordering::Relaxed)
    }

    /// Frames and bytes that wait to be sent or acknowledged.
    pub fn backlog(&self) -> (u64, usize) {
        self.inner.queue.depth()
    }
}

impl fmt::Debug for Emitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitter").field("id", &self.inner.hub.id).field("state", &self.state()).finish()
    }
}

impl Inner {
    fn lost(&self) -> Result<(), Lost> {
        let all = self.queue.counters.gap_sent.load(Ordering::Relaxed);
        let frames = all - self.reported.fetch_max(all, Ordering::AcqRel).min(all);
        if frames == 0 { Ok(()) } else { Err(Lost { frames }) }
    }

    fn shut_down(&self) {
        if self.state.send_replace(EmitterState::Closed) == EmitterState::Closed {
            return;
        }
        for task in &self.tasks {
            task.abort();
        }
        link::close(&self.endpoint);
        let frames = self.hub.remove_peer(&self.queue);
        if frames > 0 {
            tracing::warn!(node = %self.hub.id, frames, "closed before these frames were acknowledged");
        }
        self.hub.stop();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Builds an [`Emitter`].
pub struct EmitterBuilder {
    cluster: String,
    seeds: Vec<String>,
    secret: Option<ClusterSecret>,
    pem: Option<PemFiles>,
    parser: Parser,
    connect_timeout: Duration,
    move_after: Duration,
    request_timeout: Duration,
    config: Config,
    resolver: Arc<dyn Resolver>,
    socket: Option<Arc<dyn AsyncUdpSocket>>,
}

impl EmitterBuilder {
    fn new() -> Self {
        Self {
            cluster: "roomcast".into(),
            seeds: Vec::new(),
            secret: None,
            pem: None,
            parser: Parser::Common,
            connect_timeout: Duration::from_secs(10),
            move_after: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
            config: Config::default(),
            resolver: Arc::new(SystemResolver),
            socket: None,
        }
    }

    /// The name of the cluster. Default is `roomcast`.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// Where nodes are, each as `host:port`: one name that resolves to all of them, or some addresses. The emitter moves
    /// among these only. Required.
    pub fn seeds<S: ToString>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.seeds.extend(seeds.into_iter().map(|seed| seed.to_string()));
        self
    }

    /// The secret of the cluster. Required, unless [`certificates`](Self::certificates) are given.
    pub fn secret(mut self, secret: ClusterSecret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Certificates from PEM files instead of a secret, as for a node.
    pub fn certificates(mut self, files: PemFiles) -> Self {
        self.pem = Some(files);
        self
    }

    /// The parser of the Socket.IO servers. Default is [`Parser::Common`]. A message of another parser than theirs is
    /// dropped there, with a warning in their log.
    pub fn parser(mut self, parser: Parser) -> Self {
        self.parser = parser;
        self
    }

    /// How long [`connect`](Self::connect) looks for a node. Default is 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a node whose link broke is dialled again before the emitter moves to another one, when there is something
    /// that it has not acknowledged. Default is 3 s; of use is at most the nodes' `resume_window`. Longer loses less when
    /// a network hangs, and delays the rest when a node has died.
    pub fn move_after(mut self, time: Duration) -> Self {
        self.move_after = time;
        self
    }

    /// How long questions ([`Selection::sockets`] and the like) wait for answers. Default is 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Everything else, as for a node, as far as it applies: `link.outbox_bytes` and the other limits of a link,
    /// `quic`, `certificates`.
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

    /// Links to a node. Must be called in a tokio runtime, which the emitter's tasks then use.
    ///
    /// # Errors
    /// [`ConnectError`], when a setting is unusable, every node refuses, or none answers in time. Cancel safe: nothing is
    /// left running.
    pub async fn connect(self) -> Result<Emitter, ConnectError> {
        let within = self.connect_timeout;
        let (emitter, mut failed) = self.start()?;
        let mut state = emitter.inner.state.subscribe();
        let refused = failed.wait_for(|failed| failed.as_ref().is_some_and(|failed| failed.refused));
        tokio::select! {
            biased;
            linked = state.wait_for(|state| matches!(state, EmitterState::Linked(_))) => {
                drop(linked);
                return Ok(emitter);
            }
            // The task that could say more has ended only when the emitter has.
            Ok(failed) = refused => {
                let text = failed.as_ref().map(|failed| failed.text.clone()).unwrap_or_default();
                return Err(ConnectError::Refused(text));
            }
            () = tokio::time::sleep(within) => {}
        }
        let last = failed.borrow().as_ref().map(|failed| failed.text.clone());
        let last = last.unwrap_or_else(|| "nobody answered".to_owned());
        Err(ConnectError::Unreachable { within, last })
    }

    fn start(self) -> Result<(Emitter, watch::Receiver<Option<Failed>>), ConnectError> {
        if self.seeds.is_empty() {
            return Err(ConnectError::NoSeeds);
        }
        let start = |error: StartError| ConnectError::Start(error);
        let seeds: Vec<Seed> = self
            .seeds
            .iter()
            .map(|seed| seed.parse::<Seed>())
            .collect::<Result<_, _>>()
            .map_err(|error| start(error.into()))?;
        let cluster = ClusterName::new(&self.cluster).map_err(|error| start(error.into()))?;
        let seed = random_seed()?;
        let started = wall_clock();
        let certificates = self.config.certificates.clone();
        let identity = match (&self.secret, self.pem) {
            (Some(secret), None) => {
                Identity::from_secret(cluster.clone(), secret, &[], certificates, started)
            }
            (None, Some(files)) => Identity::from_pem_files(cluster.clone(), files, started),
            _ => return Err(ConnectError::Secret),
        };
        let identity = Arc::new(identity.map_err(|error| start(error.into()))?);
        let socket = match self.socket {
            Some(socket) => socket,
            None => bind(&self.config).map_err(start)?,
        };
        let endpoint =
            endpoint::dialer(socket, &self.config.quic, &identity).map_err(|error| start(error.into()))?;

        let id = NodeId::new(format!("emitter-{:08x}", seed >> 32)).map_err(|error| start(error.into()))?;
        let peer = NodeId::new(CLUSTER).map_err(|error| start(error.into()))?;
        let incarnation = Incarnation(micros(started));
        let hub = Hub::new(id.clone(), incarnation, self.config);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let limit = hub.config.link.outbox_bytes;
        let queue = hub.add_peer(|slot| {
            let queue = PeerQueue::new(peer, Incarnation(0), slot, nowhere, seed | 1, limit);
            Arc::new(queue.with_role(PeerRole::Host))
        });
        let state = watch::channel(EmitterState::Searching).0;
        let (failed_tx, failed) = watch::channel(None);
        let link = Link {
            hub: Arc::clone(&hub),
            queue: Arc::clone(&queue),
            endpoint: endpoint.clone(),
            card: Card { cluster, id: id.clone(), incarnation, advertise: nowhere, nonce: 0, emitter: true },
            seeds,
            resolver: self.resolver,
            move_after: self.move_after,
            state: state.clone(),
            failed: failed_tx,
            rng: Link::generator(seed),
            last: None,
        };
        let tasks = vec![tokio::spawn(link.run()), tokio::spawn(keep_certificates(identity, id))];
        let inner = Inner {
            hub,
            queue,
            endpoint,
            parser: self.parser,
            request_timeout: self.request_timeout,
            state,
            reported: AtomicU64::new(0),
            tasks,
        };
        Ok((Emitter { inner: Arc::new(inner) }, failed))
    }
}

/// A socket for IPv6 and IPv4, or for IPv4 alone where the machine has no IPv6.
fn bind(config: &Config) -> Result<Arc<dyn AsyncUdpSocket>, StartError> {
    let any = |ip: std::net::IpAddr| endpoint::bind(SocketAddr::new(ip, 0), &config.quic);
    let bound =
        any(Ipv6Addr::UNSPECIFIED.into()).or_else(|_: BindError| any(Ipv4Addr::UNSPECIFIED.into()))?;
    Ok(endpoint::async_socket(bound.socket)?)
}

/// A payload of nothing.
fn nothing() -> Bytes {
    Bytes::new()
}
