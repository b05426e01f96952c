//! What a node is started with.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quinn::AsyncUdpSocket;

use crate::config::{Config, env};
use crate::error::{AdvertiseError, EnvError, StartError};
use crate::gossip::discovery::{Resolver, Seed, default_resolver};
use crate::ids::{Incarnation, NodeId};
use crate::quic::tls::{ClusterName, ClusterSecret, PemFiles};
use crate::trace::Tracer;

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
    pub(super) tracer: Option<Box<dyn Tracer>>,
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
            resolver: default_resolver(),
            tracer: None,
            socket: None,
            actors_here: false,
            random_seed: None,
            incarnation: None,
        }
    }

    /// Takes everything from the environment: `ROOMCAST_ID` (default: `POD_NAME`), `ROOMCAST_CLUSTER`, `ROOMCAST_LISTEN`,
    /// `ROOMCAST_ADVERTISE` (default: `POD_IP`), `ROOMCAST_SEEDS`, `ROOMCAST_SECRET` or `ROOMCAST_SECRET_FILE` or the three
    /// `ROOMCAST_CERT_CA`, `ROOMCAST_CERT`, `ROOMCAST_CERT_KEY`, and one variable for each field of [`Config`]:
    /// `ROOMCAST_LINK_OUTBOX_BYTES=64MiB` for `link.outbox_bytes`. `docs/operations.md` lists all of them.
    ///
    /// What is not set, or empty, has its default; methods called on the result come after.
    ///
    /// ```no_run
    /// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// let node = roomcast::NodeBuilder::from_env()?.start().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`EnvError`], when a value cannot be used, or a variable that begins with `ROOMCAST_` is not known. The variables
    /// that Kubernetes sets for a service are left alone. For variables of your own with that prefix see
    /// [`from_env_beside`](Self::from_env_beside).
    pub fn from_env() -> Result<Self, EnvError> {
        Self::from_env_beside(&[])
    }

    /// As [`from_env`](Self::from_env), where the variables named in `others` are read by somebody else.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_env_beside(others: &[&str]) -> Result<Self, EnvError> {
        Self::from_vars(std::env::vars_os(), others)
    }

    fn from_vars(
        vars: impl IntoIterator<Item = (OsString, OsString)>,
        others: &[&str],
    ) -> Result<Self, EnvError> {
        let mut config = Config::default();
        let names = env::read(vars, others, &mut config)?;
        let get = |wanted: &str| names.iter().find(|(name, _)| name == wanted).map(|(_, value)| &**value);
        let either = |wanted, other| {
            let first = get(wanted).map(|value| (wanted, value));
            first.or_else(|| get(other).map(|value| (other, value)))
        };
        let mut builder = Self::new().config(config);
        if let Some((name, id)) = either("ROOMCAST_ID", "POD_NAME") {
            NodeId::new(id).map_err(|_| bad(name, id, "give 1 to 63 letters, digits, '-', '_' or '.'"))?;
            builder = builder.id(id);
        }
        if let Some(cluster) = get("ROOMCAST_CLUSTER") {
            let wants = "give 1 to 63 of a-z, 0-9 and '-', not '-' at the ends, like \"chat-prod\"";
            ClusterName::new(cluster).map_err(|_| bad("ROOMCAST_CLUSTER", cluster, wants))?;
            builder = builder.cluster(cluster);
        }
        if let Some(listen) = get("ROOMCAST_LISTEN") {
            let parsed = listen.parse::<SocketAddr>();
            parsed.map_err(|_| {
                bad("ROOMCAST_LISTEN", listen, "give ip:port, for example 0.0.0.0:7946 or [::]:7946")
            })?;
            builder = builder.listen(listen);
        }
        if let Some((name, advertise)) = either("ROOMCAST_ADVERTISE", "POD_IP") {
            builder = builder.advertise(dialled(name, advertise)?);
        }
        for seed in get("ROOMCAST_SEEDS").into_iter().flat_map(|seeds| seeds.split(',')).map(str::trim) {
            seed.parse::<Seed>()
                .map_err(|error| bad("ROOMCAST_SEEDS", seed, &format!("failed to {error}")))?;
            builder = builder.seeds([seed]);
        }
        builder.trust(get)
    }

    /// Takes the secrets or the certificates.
    fn trust<'a>(mut self, get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, EnvError> {
        let parse =
            |name: &str, text: &str| ClusterSecret::parse_from(text, format!("environment variable {name}"));
        match (get("ROOMCAST_SECRET"), get("ROOMCAST_SECRET_FILE")) {
            (Some(_), Some(_)) => {
                return Err(EnvError::Together("ROOMCAST_SECRET and ROOMCAST_SECRET_FILE: set one of them"));
            }
            (Some(text), None) => self.secret = Some(parse("ROOMCAST_SECRET", text)?),
            (None, Some(file)) => self.secret = Some(ClusterSecret::from_file(file)?),
            (None, None) => {}
        }
        for text in get("ROOMCAST_ALSO_ACCEPT").into_iter().flat_map(|texts| texts.split(',')) {
            self.accepted.push(parse("ROOMCAST_ALSO_ACCEPT", text)?);
        }
        if let Some(file) = get("ROOMCAST_ALSO_ACCEPT_FILE") {
            self.accepted.push(ClusterSecret::from_file(file)?);
        }
        match ["ROOMCAST_CERT_CA", "ROOMCAST_CERT", "ROOMCAST_CERT_KEY"].map(get) {
            [None, None, None] => {}
            [Some(ca), Some(cert), Some(key)] => {
                self.pem = Some(PemFiles { ca: ca.into(), cert: cert.into(), key: key.into() });
            }
            _ => {
                let all = "ROOMCAST_CERT_CA, ROOMCAST_CERT and ROOMCAST_CERT_KEY: set all three or none";
                return Err(EnvError::Together(all));
            }
        }
        if self.pem.is_some() && (self.secret.is_some() || !self.accepted.is_empty()) {
            return Err(EnvError::Together("a secret and certificates together: set one or the other"));
        }
        Ok(self)
    }

    /// Forgets the seeds given so far, for example those of the environment.
    pub fn clear_seeds(mut self) -> Self {
        self.seeds.clear();
        self
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

    /// Where to look for other nodes, each as `host:port` or, with the feature `srv`, the name of an SRV record like
    /// `_roomcast._udp.peers.example.` (or `srv:` and any name). Names are looked up again and again; an address that is this
    /// node's own is left out. Default is none: the node waits for others.
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

    /// Takes part in traces: what is emitted here in a sampled trace, and what comes from other nodes as a part of one. Default
    /// is none: nothing is sent along, and what others send along is not looked at. See [`crate::trace`].
    pub fn tracer(mut self, tracer: impl Tracer) -> Self {
        self.tracer = Some(Box::new(tracer));
        self
    }

    /// How seed names are looked up. Default is the system's resolver, with the feature `srv` a `SrvResolver`.
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

fn bad(name: &str, value: &str, reason: &str) -> EnvError {
    let value = value.chars().take(100).collect();
    EnvError::Value { name: name.to_owned(), value, reason: reason.to_owned() }
}

/// Checks an address that others are to dial.
fn dialled<'a>(name: &str, text: &'a str) -> Result<&'a str, EnvError> {
    let ip = text.parse::<SocketAddr>().map(|addr| addr.ip()).or_else(|_| text.parse::<IpAddr>());
    match ip {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => Err(bad(
            name,
            text,
            "nobody can dial it: give the address of this machine, in Kubernetes the pod IP",
        )),
        Ok(_) => Ok(text),
        Err(_) => Err(bad(name, text, "give ip or ip:port, for example 10.0.0.7, [fd00::7]:7946 or fd00::7")),
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
    if local.is_ipv4() && addr.ip().to_canonical().is_ipv6() {
        let reason =
            "nobody can reach it there: it listens on IPv4 only; listen on [::] to be reached on both";
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

    #[test]
    fn who_listens_on_one_family_is_not_dialled_on_the_other() {
        let v4: SocketAddr = "0.0.0.0:7946".parse().unwrap();
        let v6: SocketAddr = "[::]:7946".parse().unwrap();
        assert_eq!(advertised(Some("fd00::7"), v6).unwrap(), "[fd00::7]:7946".parse().unwrap());
        assert_eq!(advertised(Some("10.0.0.7"), v6).unwrap(), "10.0.0.7:7946".parse().unwrap());
        assert!(advertised(Some("fd00::7"), v4).unwrap_err().to_string().contains("listen on [::]"));
    }

    fn from(vars: &[(&str, &str)]) -> Result<NodeBuilder, EnvError> {
        let vars = vars.iter().map(|(name, value)| (name.into(), value.into()));
        NodeBuilder::from_vars(vars.collect::<Vec<_>>(), &["ROOMCAST_HTTP"])
    }

    const SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[tokio::test]
    async fn a_pod_is_described_by_its_environment() {
        let builder = from(&[
            ("POD_NAME", "chat-7d4b-x2x"),
            ("POD_IP", "127.0.0.1"),
            ("ROOMCAST_CLUSTER", "chat"),
            ("ROOMCAST_LISTEN", "127.0.0.1:0"),
            ("ROOMCAST_SEEDS", "peers.example.:7946, [fd00::7]:7946"),
            ("ROOMCAST_SECRET", SECRET),
            ("ROOMCAST_ALSO_ACCEPT", SECRET),
            ("ROOMCAST_LINK_MAX_DIALS", "7"),
            ("ROOMCAST_HTTP", "0.0.0.0:80"),
        ]);
        let builder = builder.unwrap();
        assert_eq!(builder.seeds, ["peers.example.:7946", "[fd00::7]:7946"]);
        assert_eq!((builder.config.link.max_dials, builder.accepted.len()), (7, 1));
        let node = builder.clear_seeds().start().await.unwrap();
        assert_eq!((node.id().as_str(), node.cluster()), ("chat-7d4b-x2x", "chat"));
        assert_eq!(node.advertise_addr(), node.local_addr());
        node.stop().await;
        let named = from(&[("POD_NAME", "pod"), ("ROOMCAST_ID", "given"), ("POD_IP", "fd00::9")]).unwrap();
        assert_eq!((named.id.as_deref(), named.advertise.as_deref()), (Some("given"), Some("fd00::9")));
        let pem = [("ROOMCAST_CERT_CA", "/a"), ("ROOMCAST_CERT", "/b"), ("ROOMCAST_CERT_KEY", "/c")];
        assert_eq!(from(&pem).unwrap().pem.unwrap().key, std::path::Path::new("/c"));
    }

    #[test]
    fn what_is_wrong_in_the_environment_is_named() {
        for (vars, part) in [
            (&[("ROOMCAST_ID", "a b")][..], "ROOMCAST_ID=\"a b\""),
            (&[("POD_NAME", "a b")], "POD_NAME"),
            (&[("ROOMCAST_CLUSTER", "Chat")], "a-z"),
            (&[("ROOMCAST_LISTEN", "7946")], "0.0.0.0:7946"),
            (&[("ROOMCAST_ADVERTISE", "0.0.0.0")], "nobody can dial it"),
            (&[("ROOMCAST_ADVERTISE", "[::]:7946")], "nobody can dial it"),
            (&[("POD_IP", "pod")], "POD_IP=\"pod\""),
            (&[("ROOMCAST_SEEDS", "a:1,b")], "\"b\""),
            (&[("ROOMCAST_SECRET", "xyz-is-secret")], "ROOMCAST_SECRET"),
            (&[("ROOMCAST_SECRET", SECRET), ("ROOMCAST_SECRET_FILE", "/a")], "set one"),
            (&[("ROOMCAST_SECRET_FILE", "/does/not/exist")], "/does/not/exist"),
            (&[("ROOMCAST_CERT", "/a")], "all three"),
        ] {
            let error = from(vars).err().unwrap_or_else(|| panic!("{vars:?}")).to_string();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("xyz"), "a secret is never shown: {error}");
        }
    }

    #[tokio::test]
    async fn a_node_without_a_secret_says_what_to_do() {
        let error = NodeBuilder::new().start().await.unwrap_err().to_string();
        assert!(error.contains("roomcast keygen"), "{error}");
    }
}
