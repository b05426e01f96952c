//! The settings of an emitter, and its start.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use quinn::AsyncUdpSocket;
use tokio::sync::watch;

use super::link::{Failed, Link, NOBODY};
use super::{ConnectError, Emitter, EmitterState, Inner, Parser};
use crate::config::Config;
use crate::core::version::Protocols;
use crate::error::StartError;
use crate::gossip::discovery::{Resolver, Seed, default_resolver};
use crate::hub::Hub;
use crate::hub::peer::{PeerQueue, PeerRole};
use crate::ids::{Incarnation, NodeId};
use crate::node::{keep_certificates, micros, random_seed, wall_clock};
use crate::quic::endpoint::{self, BindError};
use crate::quic::handshake::Card;
use crate::quic::tls::{ClusterName, ClusterSecret, Identity, PemFiles};
use crate::trace::Tracer;

/// What stands for the other end of the link where a name is needed: the frames may be for any node.
const CLUSTER: &str = "cluster";

/// Builds an [`Emitter`].
pub struct EmitterBuilder {
    cluster: String,
    seeds: Vec<String>,
    secret: Option<ClusterSecret>,
    accepted: Vec<ClusterSecret>,
    pem: Option<PemFiles>,
    parser: Parser,
    connect_timeout: Duration,
    move_after: Duration,
    request_timeout: Duration,
    config: Config,
    tracer: Option<Box<dyn Tracer>>,
    resolver: Arc<dyn Resolver>,
    socket: Option<Arc<dyn AsyncUdpSocket>>,
}

impl EmitterBuilder {
    pub(super) fn new() -> Self {
        Self {
            cluster: "roomcast".into(),
            seeds: Vec::new(),
            secret: None,
            accepted: Vec::new(),
            pem: None,
            parser: Parser::Common,
            connect_timeout: Duration::from_secs(10),
            move_after: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
            config: Config::default(),
            resolver: default_resolver(),
            tracer: None,
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

    /// Another secret whose nodes are linked to, too: while the secret is changed, as for a node.
    pub fn also_accept(mut self, secret: ClusterSecret) -> Self {
        self.accepted.push(secret);
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

    /// How long questions ([`Selection::sockets`](super::Selection::sockets) and the like) wait for answers. Default is 5 s.
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

    /// Takes part in traces: what is emitted in a sampled one takes its place in it along. Default is none. See
    /// [`crate::trace`].
    pub fn tracer(mut self, tracer: impl Tracer) -> Self {
        self.tracer = Some(Box::new(tracer));
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
        let last = last.unwrap_or_else(|| NOBODY.to_owned());
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
        let protocols = Protocols::up_to(self.config.protocol.max).map_err(|error| start(error.into()))?;
        let seed = random_seed()?;
        let started = wall_clock();
        let certificates = self.config.certificates.clone();
        let identity = match (&self.secret, self.pem) {
            (Some(secret), None) => {
                Identity::from_secret(cluster.clone(), secret, &self.accepted, certificates, started)
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
        hub.set_tracer(self.tracer);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let limit = hub.config.link.outbox_bytes;
        let queue = hub.add_peer(|slot| {
            let queue = PeerQueue::new(peer, Incarnation(0), slot, nowhere, seed | 1, limit);
            Arc::new(queue.with_role(PeerRole::Host).with_policy(&hub.config.link))
        });
        let state = watch::channel(EmitterState::Searching).0;
        let (failed_tx, failed) = watch::channel(None);
        let link = Link {
            hub: Arc::clone(&hub),
            queue: Arc::clone(&queue),
            endpoint: endpoint.clone(),
            card: Card {
                cluster,
                id: id.clone(),
                incarnation,
                advertise: nowhere,
                nonce: 0,
                emitter: true,
                protocols,
            },
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
