//! What a node is started with.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quinn::AsyncUdpSocket;

use crate::config::Config;
use crate::error::{AdvertiseError, StartError};
use crate::gossip::discovery::{Resolver, SystemResolver};
use crate::ids::Incarnation;
use crate::quic::tls::{ClusterSecret, PemFiles};

/// Builds a [`Node`](crate::Node). See the crate's first page for an example.
pub struct NodeBuilder {
    pub(super) cluster: String,
    pub(super) id: Option<String>,
    pub(super) listen: String,
    pub(super) advertise: Option<String>,
    pub(super) seeds: Vec<String>,
    pub(super) secret: Option<ClusterSecret>,
    pub(super) accepted: Vec<ClusterSecret>,
    pub(super) pem: Option<PemFiles>,
    pub(super) config: Config,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) socket: Option<Arc<dyn AsyncUdpSocket>>,
    pub(super) actors_here: bool,
    pub(super) random_seed: Option<u64>,
    pub(super) incarnation: Option<Incarnation>,
}

impl NodeBuilder {
    pub(super) fn new() -> Self {
        Self {
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
}

/// The address to advertise: the one given, or the one listened on.
pub(super) fn advertised(given: Option<&str>, local: SocketAddr) -> Result<SocketAddr, StartError> {
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
        let error = NodeBuilder::new().start().await.unwrap_err().to_string();
        assert!(error.contains("roomcast keygen"), "{error}");
    }
}
