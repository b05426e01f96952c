//! A stand-in for Kubernetes: pods are network namespaces, found by the headless name that a real DNS server serves.
//!
//! * [`Space`]: the network, its DNS server, and the addresses that the name has.
//! * [`kube`]: pods with a node of the `chat` example, started, probed and ended as the kubelet does.
//! * [`service`]: what clients connect to: it hands connections to the pods that are ready.
//! * [`flow`]: what clients of the official library sent and got, and the check that nothing is missing.
//! * [`counters`]: pods with the node of the harness, whose numbered messages its checker checks.
//!
//! Needs what [`requirement::dns`](crate::requirement::dns) looks for. All of it is removed when the last part is dropped,
//! also after a panic. The functions block for some milliseconds.

pub mod counters;
pub mod flow;
pub mod kube;
pub mod service;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::netns::{Net, Pod};

/// The domain that the DNS server knows; it says NXDOMAIN for what is missing in it.
const DOMAIN: &str = "pods.test";
/// The port of every node.
pub const PORT: u16 = 7946;
/// The addresses of pods: those of other tests may be the same.
const SUBNET: &str = "10.96.0.0/24";

/// The network of a cluster of pods.
pub struct Space {
    // Before the network, so that it ends first.
    dns: Mutex<Dns>,
    net: Net,
}

/// The DNS server and what it says.
struct Dns {
    server: Child,
    pod: Pod,
    /// The file with the addresses; the server reads it when it is told to.
    hosts: PathBuf,
    /// Name and address.
    records: BTreeSet<(String, Ipv4Addr)>,
}

impl Space {
    /// A network with a DNS server, and no pods. `prefix` begins the names of the namespaces, see [`Net::new`].
    ///
    /// `program` is `dnsmasq`. The names `empty` exist, but have no address until they are listed; all others do not
    /// exist until then.
    ///
    /// # Panics
    /// When the system does not let us have one.
    pub fn new(prefix: &str, program: &Path, empty: &[&str]) -> Self {
        let net = works(Net::new(prefix, SUBNET));
        let pod = works(net.add());
        let hosts = works(pod.put_file("hosts", ""));
        let dns = Dns { server: serve(&pod, program, &hosts, empty), pod, hosts, records: BTreeSet::new() };
        Self { dns: Mutex::new(dns), net }
    }

    /// The host and port of a headless service, for `--seed`. The dot at the end is part of it.
    pub fn seed(service: &str) -> String {
        format!("{service}.{DOMAIN}.:{PORT}")
    }

    /// Adds a pod that asks the DNS server. No name has its address yet.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn add(&self) -> Pod {
        let pod = works(self.net.add());
        let server = self.dns().pod.ip();
        // As Kubernetes writes it, but that it gives up after a second and not after five.
        let content = format!(
            "nameserver {server}\nsearch default.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\n\
             options ndots:5 timeout:1 attempts:1\n"
        );
        works(pod.put_file("resolv.conf", &content));
        pod
    }

    /// From now on the name of a service has this address, too.
    pub fn list(&self, service: &str, ip: Ipv4Addr) {
        self.change(|records| records.insert((service.to_owned(), ip)));
    }

    /// From now on the name of a service does not have this address.
    pub fn unlist(&self, service: &str, ip: Ipv4Addr) {
        self.change(|records| records.remove(&(service.to_owned(), ip)));
    }

    /// The DNS server does not answer from now on: it takes what comes and says nothing.
    pub fn silence(&self) {
        self.dns().signal("STOP");
    }

    /// It answers again.
    pub fn speak(&self) {
        self.dns().signal("CONT");
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<(String, Ipv4Addr)>) -> bool) {
        let mut dns = self.dns();
        if change(&mut dns.records) {
            let lines = dns.records.iter().map(|(service, ip)| format!("{ip} {service}.{DOMAIN}\n"));
            works(std::fs::write(&dns.hosts, lines.collect::<String>()));
            dns.signal("HUP");
        }
    }

    fn dns(&self) -> MutexGuard<'_, Dns> {
        self.dns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dns {
    fn signal(&self, signal: &str) {
        // Built into every shell; not every system has it as a program.
        let id = self.server.id().to_string();
        let status = Command::new("sh").args(["-c", "kill -$1 $0", &id, signal]).status();
        assert!(status.is_ok_and(|status| status.success()), "failed to signal the DNS server");
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Starts the DNS server, and waits until it serves.
fn serve(pod: &Pod, program: &Path, hosts: &Path, empty: &[&str]) -> Child {
    let mut command = pod.command(program);
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root"]);
    command.args(["--log-facility=-", "--no-resolv", "--no-hosts", "--bind-interfaces", "--local-ttl=1"]);
    command.arg(format!("--addn-hosts={}", hosts.display()));
    command.arg(format!("--local=/{DOMAIN}/"));
    command.arg(format!("--listen-address={}", pod.ip()));
    for service in empty {
        command.arg(format!("--txt-record={service}.{DOMAIN},headless"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = works(command.spawn());
    let mut lines = BufReader::new(server.stderr.take().expect("it is piped")).lines();
    let mut said = Vec::new();
    for line in lines.by_ref().map_while(Result::ok) {
        if line.contains("started") {
            // It must never wait for somebody to read.
            std::thread::spawn(move || lines.for_each(drop));
            return server;
        }
        said.push(line);
    }
    let ended = server.kill().and_then(|()| server.wait());
    panic!("the DNS server does not start, {ended:?}: {said:?}")
}

fn works<T>(result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("failed to make the network of the pods: {error}"))
}
