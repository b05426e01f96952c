//! Splits that are longer than every memory heal, and then everyone knows the same rooms.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cluster_tests::cluster::formed;
use cluster_tests::raw::read;
use cluster_tests::wait::soon;
use cluster_tests::{Live, RawPeer, Recorder, Seat, Seeds, Setup, eventually, stamp};
use roomcast::core::frame::{Head, InterestPart};
use roomcast::gossip::discovery::Resolver;
use roomcast::{Member, Namespace};
use tokio::time::Instant;

/// Nodes that forget each other within seconds: links, members, and in gossip.
fn forgetful(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.link.resume_window = Duration::from_secs(1);
        config.link.handshake_timeout = Duration::from_secs(2);
        config.gossip.interval = Duration::from_millis(100);
        config.gossip.initial_interval = Duration::from_millis(200);
        config.gossip.dead_node_grace = Duration::from_secs(2);
        config.members.dead_linger_ms = 500;
        config.members.unheard_ms = 1_000;
        config.members.revisit_ms = 200;
        config.interest.linger_ms = 0;
    })
}

/// Waits until a node has forgotten everyone. Gossip says nothing of whom it has buried, but it goes on writing to them
/// until they are deleted.
async fn has_forgotten_all(node: &Live) {
    let mut writes = (u64::MAX, Instant::now());
    eventually(format!("{} has forgotten everyone", node.name()), || {
        let report = node.report();
        if writes.0 != report.counters.gossip_drops {
            writes = (report.counters.gossip_drops, Instant::now());
        }
        report.members.len() == 1
            && report.links.is_empty()
            && report.gossip.digest_nodes == 1
            && writes.1.elapsed() > Duration::from_secs(1)
    })
    .await;
}

/// Waits until all are linked, hear each other in gossip, and hold of each what that one says itself.
async fn healed(nodes: &[Live]) {
    formed(nodes).await;
    eventually("gossip hears everyone", || {
        nodes.iter().all(|node| node.report().gossip.digest_nodes == nodes.len() as u64)
    })
    .await;
    eventually("interest is equal everywhere", || {
        nodes.iter().all(|node| {
            let own = node.report().interest;
            let held = nodes.iter().filter_map(|other| other.link(node.name()));
            held.filter(|link| {
                (link.interest_version_held, &link.interest_digest) == (own.version, &own.digest)
            })
            .count()
                == nodes.len() - 1
        })
    })
    .await;
    formed(nodes).await;
    for node in nodes {
        assert_eq!(node.report().counters.interest_repairs, 0);
    }
}

fn member(node: &Live, rooms: &[&str]) -> (Namespace, Member, Recorder) {
    let recorder = Recorder::new();
    let ns = node.namespace("/chat").unwrap();
    let member = ns.connect(recorder.clone());
    rooms.iter().for_each(|room| member.join(room).unwrap());
    (ns, member, recorder)
}

/// The only seed is dead, so nothing but what the two knew of each other can bring them together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_forgot_each_other_and_have_no_seed_meet_again() {
    let setup = forgetful("noseed");
    let mut nodes = setup.formed(3).await;
    nodes.remove(0).kill().await;
    let people = [member(&nodes[0], &["a"]), member(&nodes[1], &["b"])];
    formed(&nodes).await;
    nodes[0].gate.cut();
    for node in &nodes {
        has_forgotten_all(node).await;
    }
    people[0].1.join("new").unwrap();
    people[1].1.leave("b");
    nodes[0].gate.heal();
    healed(&nodes).await;
    assert_eq!(people[1].0.to("new").emit(stamp("one", 1)).unwrap().targeted, 1);
    eventually("it arrives", || people[0].2.has("one", 1)).await;
    assert_eq!(people[0].0.to("b").emit(stamp("zero", 1)).unwrap().targeted, 0);
}

/// The node that all others have as their seed is away for longer than anything is remembered; rooms change meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_long_split_everyone_knows_the_rooms_of_everyone() {
    let setup = forgetful("long");
    let nodes = setup.start(4, Seeds::First).await;
    formed(&nodes).await;
    let people: Vec<_> = nodes.iter().map(|node| member(node, &["lobby", "first"])).collect();
    healed(&nodes).await;
    for round in 0..2 {
        nodes[0].gate.cut();
        has_forgotten_all(&nodes[0]).await;
        eventually("the others have forgotten it", || {
            nodes[1..]
                .iter()
                .all(|node| node.member(nodes[0].name()).is_none() && node.link(nodes[0].name()).is_none())
        })
        .await;
        for (at, (_, member, _)) in people.iter().enumerate() {
            for number in 0..50 {
                member.join(format!("{at}-{round}-{number}")).unwrap();
            }
            member.leave(if round == 0 { "first" } else { "0-0-7" });
        }
        nodes[0].gate.heal();
        healed(&nodes).await;
        let digests: Vec<String> = nodes.iter().map(|node| node.report().interest.digest).collect();
        assert!(digests.iter().all(|digest| digest.len() == 16), "{digests:?}");
    }
    let receipt = people[3].0.to("lobby").emit(stamp("three", 1)).unwrap();
    assert_eq!((receipt.targeted, receipt.queued), (3, 3));
}

/// A peer that says it holds something else than this node has is sent everything again, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_other_rooms_is_sent_all_of_them_again() {
    let setup = Setup::new("differs");
    let nodes = setup.formed(2).await;
    let _people = member(&nodes[0], &["lobby"]);
    // From then on the version does not change.
    soon("the join is settled", nodes[0].settled()).await;
    let own = nodes[0].report().interest;
    let peer = RawPeer::new(&setup, 9);
    let mut link = peer.link(nodes[0].addr(), "/chat").await;
    let right = u64::from_str_radix(&own.digest, 16).unwrap();
    let (mut snapshots, mut heartbeats) = (0, 0);
    while heartbeats < 6 {
        let frame = link.next().await.expect("the link stands");
        match read(&frame) {
            Head::Interest(head) if head.part == InterestPart::SnapshotEnd => {
                assert_eq!(head.version, own.version);
                snapshots += 1;
            }
            Head::Received { .. } => {
                heartbeats += 1;
                let digest = if heartbeats == 1 { right } else { right ^ 1 };
                let payload = [0, digest].map(u64::to_le_bytes);
                link.say(&Head::Received { seq: 0, interest: own.version }, payload.as_flattened()).await;
            }
            _ => {}
        }
    }
    assert_eq!((snapshots, nodes[0].report().counters.interest_repairs), (2, 1));
    assert_eq!(nodes[1].report().counters.interest_repairs, 0);
}

/// The addresses of a name, which a test changes.
struct Names(Mutex<Vec<SocketAddr>>);

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(self.0.lock().unwrap().clone())
    }
}

/// Everyone else restarts at another address while one node is cut off: only the name of the seeds tells it where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_addresses_change_during_a_split() {
    let setup = forgetful("moved").config(|config| config.discovery.interval = Duration::from_secs(1));
    let seats: Vec<_> = (0..3).map(|index| setup.seat(index)).collect();
    let names = Arc::new(Names(Mutex::new(seats.iter().map(|seat| seat.addr()).collect())));
    let start = |seat: Seat| {
        let builder = setup.builder(&seat).seeds(["peers.test.:7946"]).resolver(Arc::clone(&names) as Arc<_>);
        let setup = &setup;
        async move { setup.launch(&seat, builder).await }
    };
    let mut nodes = Vec::new();
    // Who starts takes the seat along: it holds the socket.
    for seat in seats {
        nodes.push(start(seat).await);
    }
    formed(&nodes).await;
    nodes[0].gate.cut();
    for node in nodes.drain(1..) {
        node.kill().await;
    }
    let moved: Vec<_> = (1..3).map(|index| setup.seat(index)).collect();
    *names.0.lock().unwrap() = moved.iter().map(|seat| seat.addr()).collect();
    for seat in moved {
        nodes.push(start(seat).await);
    }
    formed(&nodes[1..]).await;
    let _people: Vec<_> = nodes.iter().map(|node| member(node, &["lobby"])).collect();
    has_forgotten_all(&nodes[0]).await;
    nodes[0].gate.heal();
    healed(&nodes).await;
}
