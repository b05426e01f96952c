//! SRV records: what the resolver of the operating system does not look up.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};
use tokio::task::JoinSet;

use super::discovery::{MAX_ADDRESSES, Resolver, SystemResolver};

/// The most targets whose addresses are looked up at the same time.
const LOOKUPS: usize = 16;
/// How long one question to a name server may take: a lost packet must not cost all of
/// [`DiscoveryConfig::resolve_timeout`](super::discovery::DiscoveryConfig::resolve_timeout).
const QUESTION_TIME: Duration = Duration::from_millis(1_500);

/// The resolver of the operating system, and SRV records beside it (seeds like `_roomcast._udp.peers.example.`), from the
/// name servers of `/etc/resolv.conf` or from one of your choice. The default of nodes and emitters with the feature `srv`.
///
/// Of a record only target and port count: priorities and weights are for clients that choose one server, and a node looks for
/// all others. At most [`MAX_ADDRESSES`] targets are used. Addresses come with the answer, or are looked up. Nothing is kept
/// from one lookup to the next: what is set in `/etc/resolv.conf` counts at once, and no answer is older than the name
/// server gives it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SrvResolver {
    server: Option<SocketAddr>,
}

impl SrvResolver {
    /// Asks the name servers of the system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks this name server for SRV records and the addresses of their targets, for example Consul at `127.0.0.1:8600`. Names
    /// in other seeds are still looked up by the system.
    pub fn with_server(server: SocketAddr) -> Self {
        Self { server: Some(server) }
    }

    fn dns(&self) -> Result<TokioResolver, NetError> {
        let mut builder = match self.server {
            None => TokioResolver::builder_tokio()?,
            Some(server) => {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = server.port();
                    connection
                });
                let server = NameServerConfig::new(server.ip(), true, connections.into());
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options: &mut ResolverOpts = builder.options_mut();
        options.timeout = options.timeout.min(QUESTION_TIME);
        options.edns0 = true;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // It is asked again to hear what is new.
        options.cache_size = 0;
        builder.build()
    }
}

#[async_trait]
impl Resolver for SrvResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        SystemResolver.resolve(host, port).await
    }

    async fn resolve_srv(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let dns = self.dns().map_err(|error| failed(&error))?;
        let answer = dns.srv_lookup(name).await.map_err(|error| failed(&error))?;
        let (mut found, unknown) = sorted(&answer);
        let error = look_up(&dns, unknown, &mut found).await;
        match error {
            // As with a name that has addresses of one family only.
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found.into_iter().collect()),
        }
    }
}

/// The addresses that came with the answer, and the targets without one, with their ports.
fn sorted(answer: &Lookup) -> (BTreeSet<SocketAddr>, Vec<(Name, u16)>) {
    let targets: BTreeSet<(&Name, u16)> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // A target that is the root says that there is no such service.
            RData::SRV(srv) if srv.port != 0 && !srv.target.is_root() => Some((&srv.target, srv.port)),
            _ => None,
        })
        .take(MAX_ADDRESSES)
        .collect();
    let (mut found, mut unknown) = (BTreeSet::new(), Vec::new());
    for (target, port) in targets {
        let named = answer.additionals().iter().filter(|record| record.name == *target);
        let ips = named.filter_map(|record| record.data.ip_addr());
        let before = found.len();
        found.extend(ips.filter(is_usable).map(|ip| SocketAddr::new(ip, port)));
        if found.len() == before {
            let mut target = target.clone();
            // It is a whole name, whatever search domains there are.
            target.set_fqdn(true);
            unknown.push((target, port));
        }
    }
    (found, unknown)
}

/// Looks up the addresses of targets, some at a time. Returns the last error: a target without an address costs only itself.
async fn look_up(
    dns: &TokioResolver,
    targets: Vec<(Name, u16)>,
    found: &mut BTreeSet<SocketAddr>,
) -> Option<io::Error> {
    let mut targets = targets.into_iter();
    let (mut lookups, mut failure) = (JoinSet::new(), None);
    loop {
        while lookups.len() < LOOKUPS
            && let Some((target, port)) = targets.next()
        {
            let dns = dns.clone();
            lookups.spawn(async move { (dns.lookup_ip(target).await, port) });
        }
        match lookups.join_next().await {
            None => return failure,
            Some(Ok((Ok(ips), port))) => {
                found.extend(ips.iter().filter(is_usable).map(|ip| SocketAddr::new(ip, port)));
            }
            Some(Ok((Err(error), _))) => failure = Some(failed(&error)),
            Some(Err(error)) => failure = Some(io::Error::other(error)),
        }
    }
}

fn is_usable(ip: &IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast()
}

/// A negative answer in words of ours: those of the library name the whole question.
fn failed(error: &NetError) -> io::Error {
    if error.is_no_records_found() {
        return io::Error::new(io::ErrorKind::NotFound, "no such record");
    }
    io::Error::other(error.to_string())
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::rdata::SRV;
    use hickory_resolver::proto::rr::{Record, RecordType};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn answer(records: &[(&str, u16)], addresses: &[(&str, &str)]) -> Lookup {
        let service = name("_roomcast._udp.peers.");
        let record = |(number, (target, port)): (usize, &(&str, u16))| {
            // Whatever they are, each counts.
            let (priority, weight) = (number as u16, u16::MAX - number as u16);
            Record::from_rdata(
                service.clone(),
                5,
                RData::SRV(SRV::new(priority, weight, *port, name(target))),
            )
        };
        let query = Query::query(service.clone(), RecordType::SRV);
        let mut lookup = Lookup::new_with_max_ttl(query, records.iter().enumerate().map(record));
        let additional = |(host, ip): &(&str, &str)| {
            Record::from_rdata(name(host), 5, ip.parse::<IpAddr>().unwrap().into())
        };
        lookup.extend_additionals(addresses.iter().map(additional));
        lookup
    }

    #[test]
    fn addresses_come_with_the_answer_or_are_to_be_looked_up() {
        let answer = answer(
            &[("a.peers.", 1), ("A.peers.", 2), ("b.peers.", 3), ("c.peers.", 4), (".", 5), ("d.peers.", 0)],
            &[("a.peers.", "10.0.0.1"), ("a.peers.", "fd00::1"), ("c.peers.", "0.0.0.0"), ("e.", "10.0.0.9")],
        );
        let (found, unknown) = sorted(&answer);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:1", "10.0.0.1:2", "[fd00::1]:1", "[fd00::1]:2"]);
        assert_eq!(unknown, [(name("b.peers."), 3), (name("c.peers."), 4)]);
    }

    #[test]
    fn targets_have_a_limit() {
        let hosts: Vec<String> = (0..1_000).map(|number| format!("pod-{number}.peers.")).collect();
        let records: Vec<(&str, u16)> = hosts.iter().map(|host| (host.as_str(), 7946)).collect();
        assert_eq!(sorted(&answer(&records, &[])).1.len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn other_names_are_for_the_system() {
        let resolver = SrvResolver::with_server(([127, 0, 0, 1], 9).into());
        assert!(!resolver.resolve("localhost", 7).await.unwrap().is_empty());
    }
}
