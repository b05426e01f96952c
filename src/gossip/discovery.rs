//! Discovery: where other nodes may be. Seeds are addresses or names; names are resolved again and again.
//!
//! What it finds are hints whom to contact. An address that is no longer found evicts nobody.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

/// The most addresses used of one name; the rest is ignored. Cost: one dial each, every round while alone.
pub const MAX_ADDRESSES: usize = 256;

/// The longest host name, in bytes (RFC 1035, with a trailing dot).
const MAX_HOST_BYTES: usize = 254;

/// Where to look for other nodes: `10.0.0.7:7946`, `[fd00::7]:7946`, `peers.example.:7946` or, with the feature `srv`,
/// `_roomcast._udp.peers.example.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seed {
    /// An address.
    Addr(SocketAddr),
    /// A name, resolved every round. A trailing dot keeps the resolver from trying its search domains.
    Name {
        /// The host, with its trailing dot if it was given one.
        host: String,
        /// The port.
        port: u16,
    },
    /// An SRV record, looked up every round: it gives names and ports. All its targets are seeds, whatever their priority and
    /// weight.
    Srv {
        /// The name of the record, with its trailing dot if it was given one.
        name: String,
    },
}

/// Why a text is not a seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Nothing before the port, or nothing at all. Nothing was started.
    #[error("use {0:?} as a seed: it has no host; give host:port, for example \"10.0.0.7:7946\"")]
    NoHost(String),
    /// No port. Nothing was started.
    #[error("use {0:?} as a seed: it has no port; give host:port, for example \"peers.example.:7946\"")]
    NoPort(String),
    /// The port is not a number from 1 to 65535. Nothing was started.
    #[error("use {0:?} as a seed: the port must be 1 to 65535, for example \"peers.example.:7946\"")]
    BadPort(String),
    /// The name of an SRV record, and roomcast was built without the feature `srv`. Nothing was started.
    #[error(
        "use {0:?} as a seed: SRV records are looked up only with the feature `srv` of roomcast; build with it, or give the \
         name of the nodes and their port, for example \"peers.example.:7946\""
    )]
    Srv(String),
    /// An SRV record with a port beside it. Nothing was started.
    #[error(
        "use {0:?} as a seed: the port is in the SRV record; leave it out, for example \"_roomcast._udp.peers.example.\""
    )]
    SrvPort(String),
    /// The host cannot be a name or an address. Nothing was started.
    #[error(
        "use {0:?} as a seed: not a host; give for example \"peers.example.:7946\" or \"[fd00::7]:7946\""
    )]
    BadHost(String),
}

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        // A text in an error is cut, as it may be anything.
        let shown = || text.chars().take(300).collect::<String>();
        let text = text.trim();
        if text.is_empty() {
            return Err(SeedError::NoHost(shown()));
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(SeedError::BadHost(shown()));
        }
        if let Some(name) = srv_name(text) {
            return match name {
                _ if !cfg!(feature = "srv") => Err(SeedError::Srv(shown())),
                _ if name.contains(':') => Err(SeedError::SrvPort(shown())),
                _ if !is_name(name) => Err(SeedError::BadHost(shown())),
                _ => Ok(Self::Srv { name: name.to_owned() }),
            };
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(|| SeedError::BadHost(shown()))?;
                (host, after.strip_prefix(':').ok_or_else(|| SeedError::NoPort(shown()))?)
            }
            None => text.rsplit_once(':').ok_or_else(|| SeedError::NoPort(shown()))?,
        };
        if host.is_empty() {
            return Err(SeedError::NoHost(shown()));
        }
        if port.is_empty() {
            return Err(SeedError::NoPort(shown()));
        }
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port.parse() {
            Ok(port) if port != 0 && digits => port,
            _ => return Err(SeedError::BadPort(shown())),
        };
        if text.starts_with('[') {
            let ip = host.parse::<Ipv6Addr>().map_err(|_| SeedError::BadHost(shown()))?;
            return dialled(ip.into(), port).ok_or_else(|| SeedError::BadHost(shown()));
        }
        if let Ok(ip) = host.parse::<IpAddr>() {
            return dialled(ip, port).ok_or_else(|| SeedError::BadHost(shown()));
        }
        if !is_name(host) {
            return Err(SeedError::BadHost(shown()));
        }
        Ok(Self::Name { host: host.to_owned(), port })
    }
}

/// The name of an SRV record: behind `srv:`, or one that begins as such names do.
fn srv_name(text: &str) -> Option<&str> {
    match text.strip_prefix("srv:") {
        // The host `srv` with its port.
        Some(rest) if !rest.bytes().all(|byte| byte.is_ascii_digit()) => Some(rest),
        _ => {
            let service = text.contains("._udp.") || text.contains("._tcp.") || !text.contains(':');
            (text.starts_with('_') && service).then_some(text)
        }
    }
}

fn is_name(host: &str) -> bool {
    let label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !host.is_empty() && host.len() <= MAX_HOST_BYTES && !host.starts_with('.') && host.bytes().all(label)
}

impl Seed {
    /// Its addresses now.
    pub(crate) async fn addresses(&self, resolver: &dyn Resolver) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::Addr(addr) => Ok(vec![*addr]),
            Self::Name { host, port } => resolver.resolve(host, *port).await,
            Self::Srv { name } => resolver.resolve_srv(name).await,
        }
    }
}

fn dialled(ip: IpAddr, port: u16) -> Option<Seed> {
    (!ip.is_unspecified() && !ip.is_multicast()).then(|| Seed::Addr(SocketAddr::new(ip, port)))
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Srv { name } if name.starts_with('_') => f.write_str(name),
            Self::Srv { name } => write!(f, "srv:{name}"),
        }
    }
}

/// Turns names into addresses.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of a name, with the port. No address is not an error here.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;

    /// All addresses of all targets of an SRV record, each with its port. Of use only with the feature `srv`, without which
    /// no seed is one. By default it is an error.
    async fn resolve_srv(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let _ = name;
        Err(io::Error::new(io::ErrorKind::Unsupported, "this resolver does not look up SRV records"))
    }
}

/// What looks up names unless another one is given.
#[cfg(not(feature = "srv"))]
pub(crate) fn default_resolver() -> Arc<dyn Resolver> {
    Arc::new(SystemResolver)
}

/// What looks up names unless another one is given.
#[cfg(feature = "srv")]
pub(crate) fn default_resolver() -> Arc<dyn Resolver> {
    Arc::new(super::srv::SrvResolver::new())
}

/// The resolver of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// How often to look.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// The time between rounds while this node is alone. Default is 1 s.
    pub alone_interval: Duration,
    /// The time between rounds otherwise. Cost: one lookup per name. Default is 5 s.
    pub interval: Duration,
    /// By how much of it `interval` is varied up and down, so that nodes do not ask in step. From 0 to 1;
    /// default is 0.2.
    pub jitter: f64,
    /// How long a lookup may take. Default is 5 s.
    pub resolve_timeout: Duration,
    /// Seed of the generator behind the jitter: the node sets it.
    pub(crate) jitter_seed: u64,
    /// The id of the node, for the log: the node sets it.
    pub(crate) node: String,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            alone_interval: Duration::from_secs(1),
            interval: Duration::from_secs(5),
            jitter: 0.2,
            resolve_timeout: Duration::from_secs(5),
            jitter_seed: 0,
            node: String::new(),
        }
    }
}

/// What discovery knows of one seed, for the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryState {
    /// The seed as it was given.
    pub source: String,
    /// How long ago it last gave addresses, if it ever did.
    pub last_success: Option<Duration>,
    /// What went wrong the last time; none when it went well.
    pub last_error: Option<String>,
    /// The addresses it gave last, sorted, own ones included. They stay through errors.
    pub addresses: Vec<SocketAddr>,
    /// How often it was looked up.
    pub rounds: u64,
    /// Whether the last lookup was answered, be it without an address. True for an address.
    pub answered: bool,
}

/// The states of all seeds, shared by [`run`] and whoever reports them.
#[derive(Debug, Default)]
pub struct DiscoveryShared(Mutex<Vec<Source>>);

impl DiscoveryShared {
    /// Empty until [`run`] begins.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The state of each seed, in the order they were given.
    pub fn snapshot(&self) -> Vec<DiscoveryState> {
        let now = Instant::now();
        self.with(|sources| {
            let state = |source: &Source| DiscoveryState {
                source: source.seed.to_string(),
                last_success: source.last_success.map(|when| now.saturating_duration_since(when)),
                last_error: source.last_error.clone(),
                addresses: source.addresses.iter().copied().collect(),
                rounds: source.rounds,
                answered: source.answered,
            };
            sources.iter().map(state).collect()
        })
    }

    /// Whether all `seeds` were looked at and say that nobody else is there: each is an address of this node, or its lookup
    /// was answered and gave no other. Without seeds there is nobody to look for.
    pub(crate) fn only_own(&self, seeds: usize, own: &[SocketAddr]) -> bool {
        let own: Vec<SocketAddr> = own.iter().copied().map(canonical).collect();
        self.with(|sources| {
            let is_own = |source: &Source| {
                source.rounds > 0 && source.answered && source.addresses.iter().all(|addr| own.contains(addr))
            };
            // They are listed when discovery begins, which may be a moment after the start.
            sources.len() == seeds && sources.iter().all(is_own)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<Source>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct Source {
    seed: Seed,
    addresses: BTreeSet<SocketAddr>,
    last_success: Option<Instant>,
    last_error: Option<String>,
    rounds: u64,
    /// The last lookup gave an answer, be it an empty one.
    answered: bool,
    /// The lookup that was started last.
    lookup: Option<AbortHandle>,
}

/// The addresses to leave out: the advertised one, and the one listened on when it is that of one interface.
pub fn own_addresses(advertise: SocketAddr, listen: SocketAddr) -> Vec<SocketAddr> {
    let mut own = vec![advertise];
    if !listen.ip().is_unspecified() && listen != advertise {
        own.push(listen);
    }
    own
}

/// Looks for other nodes until it is dropped.
///
/// `contact` is called for each address that was not known before, and while `alone` for every address in
/// every round; never for one in `own`. A round takes up the seeds given as addresses and the last addresses
/// of the names at once, and starts a lookup of each name that has none under way: a slow name holds up
/// nobody. The first round is at once, the next follow the intervals of the configuration; when the node
/// becomes alone the next round comes at once, but not sooner than `alone_interval` after the last.
///
/// A name that fails keeps its last addresses. Each change (error or not, the set of addresses) is logged
/// once.
pub async fn run(
    config: DiscoveryConfig,
    seeds: Vec<Seed>,
    resolver: Arc<dyn Resolver>,
    own: Vec<SocketAddr>,
    mut alone: watch::Receiver<bool>,
    contact: impl Fn(SocketAddr) + Send + Sync + 'static,
    state: Arc<DiscoveryShared>,
) {
    state.with(|sources| *sources = seeds.into_iter().map(Source::new).collect());
    let own = own.into_iter().map(canonical).collect();
    let (node, asked, lookups) = (config.node.clone(), BTreeSet::new(), JoinSet::new());
    let mut search = Search { node, own, asked, contact, state, resolver, lookups };
    let mut generator = StdRng::seed_from_u64(config.jitter_seed);
    let mut sender_lives = true;
    loop {
        let start = Instant::now();
        search.round(*alone.borrow(), config.resolve_timeout);
        let spread = config.jitter.clamp(0.0, 1.0) * generator.random_range(-1.0..=1.0);
        let calm = config.interval.mul_f64(1.0 + spread).max(config.alone_interval);
        loop {
            let is_alone = *alone.borrow_and_update();
            let delay = if is_alone { config.alone_interval } else { calm };
            tokio::select! {
                biased;
                Some(lookup) = search.lookups.join_next() => search.answered(lookup, is_alone),
                changed = alone.changed(), if sender_lives => sender_lives = changed.is_ok(),
                () = tokio::time::sleep_until(start + delay) => break,
            }
        }
    }
}

/// What a lookup gave: which seed, and addresses or what went wrong.
type Lookup = (usize, Result<Vec<SocketAddr>, Failed>);

/// Why a lookup gave no address.
#[derive(Debug)]
enum Failed {
    /// There is an answer: none.
    Empty,
    /// There is no answer.
    Error(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name has no addresses"),
            Self::Error(error) => f.write_str(error),
        }
    }
}

struct Search<F> {
    node: String,
    own: BTreeSet<SocketAddr>,
    /// Contacted in this round: two seeds may give one address.
    asked: BTreeSet<SocketAddr>,
    contact: F,
    state: Arc<DiscoveryShared>,
    resolver: Arc<dyn Resolver>,
    lookups: JoinSet<Lookup>,
}

impl<F: Fn(SocketAddr)> Search<F> {
    fn round(&mut self, alone: bool, timeout: Duration) {
        self.asked.clear();
        let seeds: Vec<Seed> =
            self.state.with(|sources| sources.iter().map(|source| source.seed.clone()).collect());
        for (index, seed) in seeds.into_iter().enumerate() {
            match seed {
                Seed::Addr(addr) => self.found(index, Ok(vec![addr]), alone),
                name => self.look_up(index, name, alone, timeout),
            }
        }
    }

    /// Takes up the last addresses of a name and starts a lookup, if none is under way.
    fn look_up(&mut self, index: usize, seed: Seed, alone: bool, timeout: Duration) {
        let state = self.state.clone();
        state.with(|sources| {
            let Some(source) = sources.get_mut(index) else { return };
            if source.lookup.as_ref().is_none_or(AbortHandle::is_finished) {
                let resolver = self.resolver.clone();
                let lookup = async move { (index, resolve(&*resolver, &seed, timeout).await) };
                source.lookup = Some(self.lookups.spawn(lookup));
            }
        });
        if alone {
            let held = self.state.with(|sources| sources.get(index).map(|source| source.addresses.clone()));
            held.into_iter().flatten().for_each(|addr| self.ask(addr));
        }
    }

    fn answered(&mut self, lookup: Result<Lookup, JoinError>, alone: bool) {
        match lookup {
            Ok((index, found)) => self.found(index, found, alone),
            Err(error) => tracing::error!(node = %self.node, %error, "a resolver panicked"),
        }
    }

    /// Takes what one seed gave and contacts whom it should.
    fn found(&mut self, index: usize, found: Result<Vec<SocketAddr>, Failed>, alone: bool) {
        let wanted: BTreeSet<SocketAddr> = self.state.with(|sources| {
            let known: BTreeSet<SocketAddr> =
                sources.iter().flat_map(|source| &source.addresses).copied().collect();
            let Some(source) = sources.get_mut(index) else { return BTreeSet::new() };
            source.take(found, &self.node);
            source.addresses.iter().copied().filter(|addr| alone || !known.contains(addr)).collect()
        });
        wanted.into_iter().for_each(|addr| self.ask(addr));
    }

    fn ask(&mut self, addr: SocketAddr) {
        if !self.own.contains(&addr) && self.asked.insert(addr) {
            (self.contact)(addr);
        }
    }
}

impl Source {
    fn new(seed: Seed) -> Self {
        Self {
            seed,
            addresses: BTreeSet::new(),
            last_success: None,
            last_error: None,
            rounds: 0,
            answered: false,
            lookup: None,
        }
    }

    fn take(&mut self, found: Result<Vec<SocketAddr>, Failed>, node: &str) {
        self.rounds += 1;
        self.answered = !matches!(found, Err(Failed::Error(_)));
        let found: BTreeSet<SocketAddr> = match found {
            Ok(addresses) => addresses.into_iter().map(canonical).collect(),
            Err(error) => {
                let error = error.to_string();
                match (&self.last_error, self.last_success) {
                    (Some(_), _) => {}
                    // At a first start nobody may be registered yet.
                    (None, None) => {
                        tracing::info!(%node, seed = %self.seed, error, "a seed leads nowhere yet")
                    }
                    (None, Some(_)) => {
                        tracing::warn!(%node, seed = %self.seed, error, "failed to resolve a seed")
                    }
                }
                self.last_error = Some(error);
                return;
            }
        };
        let recovered = self.last_error.take().is_some();
        self.last_success = Some(Instant::now());
        let found: BTreeSet<SocketAddr> = found.into_iter().take(MAX_ADDRESSES).collect();
        if found != self.addresses || recovered {
            tracing::info!(%node, seed = %self.seed, addresses = ?found, "seed resolved");
        }
        self.addresses = found;
    }
}

async fn resolve(resolver: &dyn Resolver, seed: &Seed, timeout: Duration) -> Result<Vec<SocketAddr>, Failed> {
    match tokio::time::timeout(timeout, seed.addresses(resolver)).await {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(Failed::Empty),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(Failed::Error(error.to_string())),
        Err(_) => Err(Failed::Error(format!("no answer within {timeout:?}"))),
    }
}

/// An IPv4 address in IPv6 clothes is the IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use super::*;

    #[test]
    fn seeds_are_host_and_port() {
        let parsed = |text: &str| text.parse::<Seed>().unwrap();
        assert_eq!(parsed("10.0.0.7:7946"), Seed::Addr("10.0.0.7:7946".parse().unwrap()));
        assert_eq!(parsed("[fd00::7]:7946"), Seed::Addr("[fd00::7]:7946".parse().unwrap()));
        let name = |host: &str| Seed::Name { host: host.to_owned(), port: 7946 };
        assert_eq!(
            parsed(" peers.default.svc.cluster.local.:7946 "),
            name("peers.default.svc.cluster.local.")
        );
        assert_eq!(parsed("my_peer-0:7946").to_string(), "my_peer-0:7946");
        assert_eq!(parsed("[fd00::7]:7946").to_string(), "[fd00::7]:7946");
    }

    #[test]
    fn what_is_not_a_seed_says_why() {
        let refused = |text: &str| text.parse::<Seed>().unwrap_err();
        assert!(matches!(refused(""), SeedError::NoHost(_)));
        assert!(matches!(refused(":7946"), SeedError::NoHost(_)));
        for text in ["peer", "peer:", "10.0.0.7", "[fd00::7]", "[fd00::7]7946"] {
            assert!(matches!(refused(text), SeedError::NoPort(_)), "{text}");
        }
        for text in ["peer:0", "peer:65536", "peer:+80", "peer:http", "10.0.0.7:-1"] {
            assert!(matches!(refused(text), SeedError::BadPort(_)), "{text}");
        }
        let long = format!("{}:1", "x".repeat(255));
        for text in
            ["fd00::7", "fd00::7:1:http:7946", "[peer]:7946", "[fd00::7:1", "a b:1", "http://a:1", &long]
        {
            assert!(matches!(refused(text), SeedError::BadHost(_)), "{text}");
        }
        for text in ["0.0.0.0:7946", "[::]:7946", ".:1", "224.0.0.1:1"] {
            assert!(matches!(refused(text), SeedError::BadHost(_)), "{text}");
        }
        let text = refused("peer").to_string();
        assert!(text.contains("no port") && text.contains("example"), "{text}");
    }

    #[test]
    fn srv_records_are_told_from_names() {
        let parse = |text: &str| text.parse::<Seed>();
        let srv = |name: &str| Seed::Srv { name: name.to_owned() };
        let records = [
            ("_roomcast._udp.peers.example.", "_roomcast._udp.peers.example."),
            ("srv:_roomcast._udp.peers", "_roomcast._udp.peers"),
            (" srv:peers.example. ", "peers.example."),
            ("_peers", "_peers"),
        ];
        for (text, name) in records {
            if cfg!(feature = "srv") {
                assert_eq!(parse(text), Ok(srv(name)));
                let seed = srv(name);
                assert_eq!(parse(&seed.to_string()), Ok(seed), "it is shown as it can be given");
            } else {
                assert!(matches!(parse(text), Err(SeedError::Srv(_))), "{text}");
            }
        }
        let host = |host: &str, port| Ok(Seed::Name { host: host.to_owned(), port });
        assert_eq!((parse("srv:7946"), parse("_peer:7946")), (host("srv", 7946), host("_peer", 7946)));
        for text in ["_roomcast._udp.peers.example.:7946", "srv:peers.example.:7946", "srv:[::1]:7946"] {
            let error = parse(text).unwrap_err();
            let expected = if cfg!(feature = "srv") { "leave it out" } else { "feature `srv`" };
            assert!(error.to_string().contains(expected), "{error}");
        }
        for text in ["srv: ", "srv:.x", "srv:a b", "_a b", &format!("_{}", "x".repeat(254))] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    type Answers = VecDeque<Result<Vec<SocketAddr>, &'static str>>;

    /// Gives the answers of each name in turn, the last one for ever; none means it never answers.
    struct Script(Mutex<HashMap<String, Answers>>);

    #[async_trait]
    impl Resolver for Script {
        async fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
            let answer = {
                let mut names = self.0.lock().unwrap();
                let answers = names.get_mut(host).unwrap();
                if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
            };
            match answer {
                Some(answer) => answer.map_err(io::Error::other),
                None => std::future::pending().await,
            }
        }

        async fn resolve_srv(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
            self.resolve(name, 0).await
        }
    }

    struct Setup {
        alone: watch::Sender<bool>,
        state: Arc<DiscoveryShared>,
        contacts: Arc<Mutex<Vec<(u64, u16)>>>,
        _task: JoinSet<()>,
    }

    impl Setup {
        /// Ports contacted since the last call, with the second it was.
        fn contacts(&self) -> Vec<(u64, u16)> {
            std::mem::take(&mut *self.contacts.lock().unwrap())
        }
    }

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn start(seeds: &[&str], names: Vec<(&str, Answers)>) -> Setup {
        let config = DiscoveryConfig { jitter: 0.0, ..DiscoveryConfig::default() };
        start_with(config, seeds.iter().map(|text| text.parse().unwrap()).collect(), names)
    }

    fn start_with(config: DiscoveryConfig, seeds: Vec<Seed>, names: Vec<(&str, Answers)>) -> Setup {
        let names = names.into_iter().map(|(name, answers)| (name.to_owned(), answers)).collect();
        let (alone, receiver) = watch::channel(true);
        let (state, contacts) = (DiscoveryShared::new(), Arc::<Mutex<Vec<_>>>::default());
        let (begin, log) = (Instant::now(), contacts.clone());
        let contact =
            move |addr: SocketAddr| log.lock().unwrap().push((begin.elapsed().as_secs(), addr.port()));
        let mut task = JoinSet::new();
        let resolver = Arc::new(Script(Mutex::new(names)));
        task.spawn(run(config, seeds, resolver, vec![addr(9)], receiver, contact, state.clone()));
        Setup { alone, state, contacts, _task: task }
    }

    async fn pass(seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn everyone_is_asked_each_second_while_alone_and_only_the_new_later() {
        let names = VecDeque::from([
            Ok(vec![addr(9), addr(2)]),
            Ok(vec![addr(2)]),
            Ok(vec![addr(2)]),
            Ok(vec![addr(2), addr(3)]),
            Ok(vec![addr(3)]),
            Ok(vec![addr(2)]),
        ]);
        let setup = start(&["10.0.0.1:1", "10.0.0.1:9", "peers:5"], vec![("peers", names)]);
        pass(2.5).await;
        assert_eq!(setup.contacts(), [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]);
        setup.alone.send(false).unwrap();
        pass(15.0).await;
        // Rounds at 7, 12 and 17 s; an address that comes back is new.
        assert_eq!(setup.contacts(), [(7, 3), (17, 2)]);
        setup.alone.send(true).unwrap();
        pass(1.0).await;
        assert_eq!(setup.contacts(), [(18, 1), (18, 2)], "not sooner than a second after the last");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_fails_keeps_its_addresses_and_holds_up_nobody() {
        let flaky = VecDeque::from([Ok(vec![addr(2)]), Err("no such host"), Ok(vec![])]);
        let setup =
            start(&["flaky:1", "hung:1", "10.0.0.1:1"], vec![("flaky", flaky), ("hung", VecDeque::new())]);
        pass(0.5).await;
        assert_eq!(setup.contacts(), [(0, 1), (0, 2)]);
        pass(5.0).await;
        let every_second = (1..=5).flat_map(|second| [(second, 2), (second, 1)]).collect::<Vec<_>>();
        assert_eq!(setup.contacts(), every_second);
        let state = setup.state.snapshot();
        assert_eq!(state[0].source, "flaky:1");
        assert_eq!((state[0].addresses.clone(), state[0].rounds), (vec![addr(2)], 6));
        assert_eq!(state[0].last_error.as_deref(), Some("the name has no addresses"));
        assert_eq!(state[0].last_success.map(|age| age.as_millis()), Some(5_500));
        assert_eq!((state[1].rounds, state[1].last_success), (1, None), "one lookup at a time");
        assert_eq!(state[1].last_error.as_deref(), Some("no answer within 5s"));
        assert_eq!((state[2].rounds, state[2].last_error.clone()), (6, None));
    }

    #[tokio::test(start_paused = true)]
    async fn several_names_records_and_addresses_are_looked_up_side_by_side() {
        let names = vec![
            ("a.", VecDeque::from([Ok(vec![addr(1), addr(2)])])),
            ("b.", VecDeque::from([Err("no such host"), Ok(vec![addr(2), addr(3)])])),
            ("_roomcast._udp.c.", VecDeque::from([Err("no such record"), Ok(vec![addr(4), addr(5)])])),
        ];
        let mut seeds: Vec<Seed> =
            ["10.0.0.1:7", "a.:1", "b.:1"].iter().map(|text| text.parse().unwrap()).collect();
        seeds.push(Seed::Srv { name: "_roomcast._udp.c.".to_owned() });
        let config = DiscoveryConfig { jitter: 0.0, ..DiscoveryConfig::default() };
        let setup = start_with(config, seeds, names);
        pass(0.5).await;
        let in_second = |second: u64| {
            let mut ports: Vec<u16> =
                setup.contacts().iter().filter(|(when, _)| *when == second).map(|(_, port)| *port).collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(in_second(0), [1, 2, 7]);
        pass(1.0).await;
        assert_eq!(in_second(1), [1, 2, 3, 4, 5, 7], "each once, though two names have it");
        let state = setup.state.snapshot();
        let shown: Vec<_> = state.iter().map(|seed| (&*seed.source, seed.addresses.len())).collect();
        assert_eq!(shown, [("10.0.0.1:7", 1), ("a.:1", 2), ("b.:1", 2), ("_roomcast._udp.c.", 2)]);
        assert!(state.iter().all(|seed| seed.last_error.is_none() && seed.rounds == 2), "{state:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_of_two_nodes_drift_apart_and_stay_within_the_jitter() {
        let mut rounds = Vec::new();
        for jitter_seed in [1, 2] {
            let config = DiscoveryConfig { jitter_seed, ..DiscoveryConfig::default() };
            let setup = start_with(config, vec!["10.0.0.1:1".parse().unwrap()], vec![]);
            setup.alone.send(false).unwrap();
            let begin = Instant::now();
            let (mut seen, mut times) = (0, Vec::new());
            while times.len() < 20 {
                pass(0.01).await;
                let now = setup.state.snapshot()[0].rounds;
                if now > std::mem::replace(&mut seen, now) {
                    times.push(begin.elapsed().as_secs_f64());
                }
            }
            let pauses: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(pauses.iter().all(|pause| (3.98..=6.02).contains(pause)), "{pauses:?}");
            rounds.push(times);
        }
        assert!((rounds[0][19] - rounds[1][19]).abs() > 0.1, "{rounds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_name_with_very_many_addresses_the_first_are_taken() {
        let many = (1..=1_000).rev().map(addr).collect();
        let setup = start(&["many:1"], vec![("many", VecDeque::from([Ok(many)]))]);
        pass(0.5).await;
        let mut ports: Vec<u16> = setup.contacts().iter().map(|(_, port)| *port).collect();
        ports.sort_unstable();
        // One of the first 256 is the node itself.
        assert_eq!(ports, (1..=256).filter(|port| *port != 9).collect::<Vec<u16>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_alone_when_every_answer_says_so() {
        let own = own_addresses(addr(9), addr(9));
        let none = start(&[], vec![]);
        let itself = start(&["10.0.0.1:9", "peers:1"], vec![("peers", VecDeque::from([Ok(vec![addr(9)])]))]);
        let empty = start(&["peers:1"], vec![("peers", VecDeque::from([Ok(vec![])]))]);
        let other = start(&["10.0.0.1:8"], vec![]);
        let failing = start(&["peers:1"], vec![("peers", VecDeque::from([Err("no such host")]))]);
        let hung = start(&["peers:1"], vec![("peers", VecDeque::new())]);
        assert!(!itself.state.only_own(2, &own), "it has not begun");
        pass(0.5).await;
        assert!(none.state.only_own(0, &own));
        assert!(itself.state.only_own(2, &own) && !itself.state.only_own(3, &own));
        assert!(empty.state.only_own(1, &own));
        for setup in [&other, &failing, &hung] {
            assert!(!setup.state.only_own(1, &own), "{:?}", setup.state.snapshot());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_when_nobody_tells_whether_it_is_alone() {
        let Setup { alone, contacts, _task, .. } = start(&["10.0.0.1:1"], vec![]);
        drop(alone);
        pass(3.5).await;
        assert_eq!(contacts.lock().unwrap().len(), 4);
    }

    #[test]
    fn own_addresses_are_those_others_may_find() {
        let any = SocketAddr::from(([0, 0, 0, 0], 7));
        assert_eq!(own_addresses(addr(7), any), [addr(7)]);
        assert_eq!(own_addresses(addr(7), addr(8)), [addr(7), addr(8)]);
        assert_eq!(canonical("[::ffff:10.0.0.1]:7".parse().unwrap()), addr(7));
    }

    #[tokio::test]
    async fn the_system_resolver_knows_localhost() {
        let found = SystemResolver.resolve("localhost", 7).await.unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 7) && !found.is_empty());
    }
}
