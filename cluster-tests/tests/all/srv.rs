//! Seeds that are SRV records, from a real name server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster_tests::cluster::formed;
use cluster_tests::process::Process;
use cluster_tests::wait::soon;
use cluster_tests::{Setup, eventually, requirement};
use roomcast::Emitter;
use roomcast::emitter::EmitterState;
use roomcast::gossip::discovery::{MAX_ADDRESSES, Resolver};
use roomcast::gossip::srv::SrvResolver;
use tokio::process::Command;

const NAME: &str = "_roomcast._udp.peers.test.";

/// A dnsmasq on loopback that knows these records and nothing else.
struct Dns {
    program: PathBuf,
    addr: SocketAddr,
    server: Option<Process>,
}

impl Dns {
    /// None where dnsmasq is missing.
    fn new() -> Option<Self> {
        let program = requirement::dnsmasq()?;
        // Free for both protocols; taken again a moment later.
        let addr = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let addr = udp.local_addr().unwrap();
            if TcpListener::bind(addr).is_ok() {
                break addr;
            }
        };
        Some(Self { program, addr, server: None })
    }

    /// Starts it, in place of the one before: `records` are options of dnsmasq. Waits until it answers.
    async fn serve(&mut self, records: &[String]) {
        self.stop().await;
        let mut command = Command::new(&self.program);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
        command.args([
            "--log-facility=-",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--local=/test/",
        ]);
        command.args([
            "--pid-file=",
            "--host-record=alive.test,127.0.0.1",
            "--srv-host=_alive._udp.test,alive.test,1",
        ]);
        command.arg(format!("--port={}", self.addr.port())).args(records);
        self.server = Some(Process::spawn("dnsmasq", command));
        let resolver = self.resolver();
        let answers = async {
            while resolver.resolve_srv("_alive._udp.test.").await.is_err() {
                assert!(self.server.as_ref().is_some_and(|server| !server.has_ended()), "it has ended");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("dnsmasq answers", answers).await;
    }

    async fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().await;
        }
    }

    fn resolver(&self) -> SrvResolver {
        SrvResolver::with_server(self.addr)
    }
}

/// An option of dnsmasq: a target of [`NAME`].
fn target(host: &str, port: u16, priority_and_weight: &str) -> String {
    format!("--srv-host={},{host}.test,{port},{priority_and_weight}", NAME.trim_end_matches('.'))
}

fn host(name: &str, addresses: &str) -> String {
    format!("--host-record={name}.test,{addresses}")
}

async fn found(dns: &Dns, name: &str) -> Vec<String> {
    let mut found = soon("an answer", dns.resolver().resolve_srv(name)).await.unwrap();
    found.sort_unstable();
    found.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_are_found_with_their_ports_and_addresses() {
    let Some(mut dns) = Dns::new() else { return };
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    dns.serve(&[
        host("a", &format!("127.0.0.1,{v6}")),
        host("b", "127.0.0.2"),
        // Answered when asked for, but not beside the record.
        "--address=/c.test/127.0.0.3".to_owned(),
        target("a", 1, "0,5"),
        target("b", 2, "10,0"),
        target("b", 3, "65535,65535"),
        target("c", 4, "0,0"),
        target("nowhere", 5, "0,0"),
        "--srv-host=_gone._udp.test".to_owned(),
        "--srv-host=_dead._udp.test,nowhere.test,5".to_owned(),
        "--txt-record=_text._udp.test,x".to_owned(),
    ])
    .await;
    let all = ["127.0.0.1:1", "127.0.0.2:2", "127.0.0.2:3", "127.0.0.3:4", "[::1]:1"];
    assert_eq!(found(&dns, NAME).await, all);
    assert_eq!(found(&dns, NAME.trim_end_matches('.')).await, all, "there are no search domains");
    assert_eq!(found(&dns, "_gone._udp.test.").await, [""; 0], "there is no such service, says the record");
    for name in ["_dead._udp.test.", "_text._udp.test.", "_unknown._udp.test."] {
        let error = soon("an answer", dns.resolver().resolve_srv(name)).await.unwrap_err();
        assert_eq!(error.to_string(), "no such record", "{name}");
    }
    dns.stop().await;
    let error = soon("an error", dns.resolver().resolve_srv(NAME)).await.unwrap_err();
    assert_ne!(error.to_string(), "no such record");
}

/// More than fit into a datagram: the answer comes over TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_comes_whole_up_to_the_limit() {
    let Some(mut dns) = Dns::new() else { return };
    for pods in [200, MAX_ADDRESSES + 50] {
        let records = (0..pods).flat_map(|pod| {
            let name = format!("pod-{pod}");
            [host(&name, &format!("127.1.{}.{}", pod / 250, 1 + pod % 250)), target(&name, 7946, "0,0")]
        });
        dns.serve(&records.collect::<Vec<_>>()).await;
        assert_eq!(found(&dns, NAME).await.len(), pods.min(MAX_ADDRESSES));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_by_an_srv_record() {
    let Some(mut dns) = Dns::new() else { return };
    let setup = Setup::new("srv").config(|config| {
        config.discovery.alone_interval = Duration::from_millis(100);
        config.discovery.interval = Duration::from_millis(200);
        config.ready_wait = roomcast::config::ReadyWait(Duration::from_secs(3600));
    });
    let (first, second) = (setup.seat(0), setup.seat(1));
    let resolver = || Arc::new(dns.resolver()) as Arc<dyn Resolver>;
    let node = setup.launch(&first, setup.builder(&first).seeds([NAME]).resolver(resolver())).await;
    let error = || node.report().discovery.first().and_then(|seed| seed.last_error.clone());
    eventually("nobody answers", || error().is_some()).await;
    assert!(!node.is_ready());

    let mut records = vec![host("pods", "127.0.0.1"), target("pods", first.addr().port(), "0,0")];
    dns.serve(&records).await;
    eventually("it is alone, says DNS", || node.is_ready() && error().is_none()).await;
    let report = node.report();
    assert_eq!(report.discovery[0].source, NAME);
    assert_eq!(report.discovery[0].addresses, [first.addr().to_string()]);
    assert_eq!(report.counters.dials_failed, 0, "its own address is no other node");

    // A node that looks for nobody: only the record leads to it. The other target is dead.
    let other = setup.start_at(&second, []).await;
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
    records.extend(
        [second.addr().port(), dead.local_addr().unwrap().port()].map(|port| target("pods", port, "9,9")),
    );
    dns.serve(&records).await;
    let nodes = [node, other];
    formed(&nodes).await;

    let emitter = Emitter::builder().cluster(&setup.cluster).secret(setup.secret.clone());
    let emitter = emitter.seeds([NAME]).resolver(Arc::new(dns.resolver())).connect().await.unwrap();
    assert!(matches!(emitter.state(), EmitterState::Linked(_)));
    emitter.close().await.unwrap();

    // What DNS no longer says evicts nobody.
    dns.stop().await;
    eventually("the look-up fails", || nodes[0].report().discovery[0].last_error.is_some()).await;
    assert_eq!(nodes[0].report().discovery[0].addresses.len(), 3, "they stay");
    assert!(nodes[0].is_linked_to(nodes[1].name()));
}
