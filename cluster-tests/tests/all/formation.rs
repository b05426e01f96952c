//! Nodes find each other.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cluster_tests::cluster::formed;
use cluster_tests::gate::Gate;
use cluster_tests::logs::{self, logged};
use cluster_tests::{Seat, Seeds, Setup, eventually};
use roomcast::gossip::discovery::Resolver;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_that_all_know_each_other() {
    formed(&Setup::new("form-all").start(3, Seeds::All).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_that_know_one_and_that_one_itself() {
    formed(&Setup::new("form-first").start(3, Seeds::First).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_in_a_chain() {
    formed(&Setup::new("form-chain").start(5, Seeds::Chain).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_only_seed_is_itself_waits_for_others() {
    let setup = Setup::new("form-self");
    let seat = setup.seat(0);
    let node = setup.start_at(&seat, [seat.addr()]).await;
    assert_eq!(node.members().len(), 1, "it lists itself from the first moment");
    eventually("it is ready", || node.is_ready()).await;
    let report = node.report();
    assert!(report.links.is_empty() && report.counters.dials_failed == 0, "{report:?}");
    let other = setup.start_at(&setup.seat(1), [seat.addr()]).await;
    formed(&[node, other]).await;
}

/// 127.0.0.2 reaches the node, too, but discovery cannot know that: only the hello tells. The address may be that of a
/// load balancer, so it is tried again, but not soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_turns_out_to_be_the_node_itself_is_left_alone_for_a_while() {
    let setup = quick("form-mirror");
    let gate = Gate::bind(([0, 0, 0, 0], 0).into()).unwrap();
    let port = gate.addr().port();
    let seat = Seat { id: setup.id(0), gate };
    let mirror = SocketAddr::from(([127, 0, 0, 2], port));
    let builder = setup.builder(&seat).advertise("127.0.0.1").seeds([mirror]);
    let node = setup.launch(&seat, builder).await;
    eventually("it has dialled itself", || node.report().counters.dials_failed > 0).await;
    let rounds = node.report().discovery[0].rounds;
    eventually("discovery came by again", || node.report().discovery[0].rounds > rounds + 5).await;
    let report = node.report();
    let pauses = report.node.uptime_ms / 30_000;
    assert!((1..=1 + pauses).contains(&report.counters.dials_failed), "{report:?}");
    assert_eq!((report.links.len(), report.members.len()), (0, 1), "{report:?}");

    let other = setup.start_at(&setup.seat(1), [SocketAddr::from(([127, 0, 0, 1], port))]).await;
    formed(&[node, other]).await;
}

/// Seeds may be other addresses of a member: of a load balancer, of a second interface, or IPv6 beside IPv4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_addresses_of_a_linked_node_do_not_disturb_the_link() {
    let setup = quick("form-alias");
    let seat = Seat { id: setup.id(0), gate: Gate::bind(([0, 0, 0, 0], 0).into()).unwrap() };
    let port = seat.addr().port();
    let builder = setup.builder(&seat).advertise("127.0.0.1");
    let node = setup.launch(&seat, builder).await;
    let seeds = [1, 2, 3].map(|last| SocketAddr::from(([127, 0, 0, last], port)));
    let other = setup.start_at(&setup.seat(1), seeds).await;
    let nodes = [node, other];
    formed(&nodes).await;
    // Each address is dialled once, and the one link that is left stands for longer than seeds are left alone.
    eventually("the link stands for a while", || {
        nodes[1].link("form-alias-0").is_some_and(|link| link.uptime_ms > Some(5_000))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_alone_finds_one_that_comes_later() {
    let setup = quick("form-alone");
    let (early, late) = (setup.seat(0), setup.seat(1));
    let alone = setup.start_at(&early, [late.addr()]).await;
    eventually("it has tried and failed", || alone.report().counters.dials_failed >= 2).await;
    assert!(alone.is_live(), "nobody there is no reason to be down");
    eventually("it is ready all the same", || alone.is_ready()).await;
    let other = setup.start_at(&late, []).await;
    formed(&[alone, other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stays_alone_says_so_once_and_when_it_is_over() {
    let setup = quick("form-still");
    let (early, late) = (setup.seat(0), setup.seat(1));
    let alone = setup.start_at(&early, [early.addr(), late.addr()]).await;
    // One that has nobody to look for has nothing to complain about.
    let first = setup.start_at(&setup.seat(2), []).await;
    let tried = format!("{} (connection lost: no answer within 1 s)", late.addr());
    logged(alone.name(), &["still alone", &tried, "UDP may be blocked"]).await;
    assert_eq!(logs::count(alone.name(), &["no longer alone"]), 0);
    assert_eq!(
        logs::count(alone.name(), &[&format!("{} (", early.addr())]),
        0,
        "itself is no address to try"
    );

    let nodes = [alone, setup.start_at(&late, []).await];
    formed(&nodes).await;
    logged(nodes[0].name(), &["no longer alone"]).await;
    for (node, times) in [(&nodes[0], 1), (&nodes[1], 0), (&first, 0)] {
        assert_eq!(logs::count(node.name(), &["still alone"]), times, "{}", node.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_name_that_means_nothing_at_first() {
    let setup = quick("form-name");
    let names = Arc::new(Names(Mutex::new(Answer::Late)));
    let seat = setup.seat(0);
    let builder =
        setup.builder(&seat).seeds(["peers.example.:7946"]).resolver(Arc::clone(&names) as Arc<dyn Resolver>);
    let node = setup.launch(&seat, builder).await;
    assert!(!node.is_ready(), "it has not looked at its seed yet");
    *names.0.lock().unwrap() = Answer::Unknown;
    let error =
        || node.report().discovery.first().and_then(|seed| seed.last_error.clone()).unwrap_or_default();
    eventually("the name is unknown", || error().contains("no such name")).await;
    eventually("it is ready all the same", || node.is_ready()).await;

    *names.0.lock().unwrap() = Answer::Addresses(vec![]);
    eventually("the name has no addresses", || error().contains("no addresses")).await;

    // A headless service lists the node that asks, too.
    let other = setup.start_at(&setup.seat(1), []).await;
    *names.0.lock().unwrap() = Answer::Addresses(vec![seat.addr(), other.addr()]);
    let nodes = [node, other];
    formed(&nodes).await;

    // A name that fails later evicts nobody.
    *names.0.lock().unwrap() = Answer::Unknown;
    let rounds = nodes[0].report().discovery[0].rounds;
    eventually("the name failed again", || nodes[0].report().discovery[0].rounds > rounds + 3).await;
    assert!(nodes[0].is_linked_to(nodes[1].name()));
    // Each change is a line, and what stays as it was is none.
    for line in ["a seed leads nowhere yet", "seed resolved", "failed to resolve a seed"] {
        assert_eq!(logs::count(nodes[0].name(), &[line]), 1, "{:?}", logs::lines(nodes[0].name()));
    }
}

/// Looks for others more often than usual, so that a test sees several rounds soon.
fn quick(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.discovery.alone_interval = Duration::from_millis(50);
        config.discovery.interval = Duration::from_millis(100);
        config.discovery.resolve_timeout = Duration::from_secs(600);
        config.link.handshake_timeout = Duration::from_secs(1);
    })
}

/// A resolver that answers what the test wants.
struct Names(Mutex<Answer>);

#[derive(Clone)]
enum Answer {
    /// Not before it is another one.
    Late,
    Unknown,
    Addresses(Vec<SocketAddr>),
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!((host, port), ("peers.example.", 7946));
        let answer = || self.0.lock().unwrap().clone();
        eventually("an answer", || !matches!(answer(), Answer::Late)).await;
        match answer() {
            Answer::Late => unreachable!("waited for another one"),
            Answer::Unknown => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
            Answer::Addresses(addresses) => Ok(addresses),
        }
    }
}
