//! Nodes of an old and a new protocol version in one cluster, as during a rolling upgrade. The old ones are new ones that
//! are held to version 1 (`protocol.max`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use cluster_tests::cluster::{event, formed};
use cluster_tests::logs::logged;
use cluster_tests::process::command_line;
use cluster_tests::raw::read;
use cluster_tests::wait::soon;
use cluster_tests::{Live, RawPeer, Recorder, Setup, eventually, probe, stamp};
use roomcast::core::frame::{Head, PROTOCOL, PROTOCOL_MIN};
use roomcast::{
    Config, Emitter, Event, Member, Namespace, Node, ServerAcks, ServerEvent, ServerEventHandler, Sink,
    StartError,
};

const OLD: u16 = PROTOCOL_MIN;
const NEW: u16 = PROTOCOL;
/// Longer than any test may take.
const LONG: Duration = Duration::from_secs(60);

/// Starts node `index` with this version as its newest.
async fn start(setup: &Setup, index: usize, max: u16, seeds: &[Live]) -> Live {
    let seat = setup.seat(index);
    let mut config = setup.config.clone();
    config.protocol.max = max;
    let builder = setup.builder(&seat).config(config).seeds(seeds.iter().map(Live::addr));
    setup.launch(&seat, builder).await
}

/// Nodes with these versions as their newest, linked.
async fn cluster(setup: &Setup, versions: &[u16]) -> Vec<Live> {
    let mut nodes = Vec::new();
    for (index, max) in versions.iter().enumerate() {
        nodes.push(start(setup, index, *max, &nodes).await);
    }
    formed(&nodes).await;
    nodes
}

fn brittle(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.link.resume_window = Duration::from_secs(600);
        config.members.dead_linger_ms = 600_000;
    })
}

/// A member in `lobby` on every node, each with what it got.
struct World {
    spaces: Vec<Namespace>,
    members: Vec<Member>,
    recorders: Vec<Recorder>,
    _handlers: Vec<ServerEventHandler>,
}

impl World {
    async fn new(nodes: &[Live]) -> Self {
        let spaces: Vec<Namespace> = nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect();
        let recorders: Vec<Recorder> = nodes.iter().map(|_| Recorder::new()).collect();
        let members = spaces.iter().zip(nodes).zip(&recorders).map(|((space, node), recorder)| {
            let (name, sink) = (node.name().to_owned(), recorder.clone());
            let member = space.connect_with_ack(move |message, ack| {
                sink.deliver(message);
                ack.send(name.clone());
            });
            member.join("lobby").unwrap();
            member
        });
        let members = members.collect();
        let handlers = nodes.iter().map(|node| {
            let name = node.name().to_owned();
            let echo = move |event: ServerEvent<u64>| {
                let name = name.clone();
                async move { (name, event.data) }
            };
            node.on_server_event("echo", echo).unwrap()
        });
        let _handlers = handlers.collect();
        let world = Self { spaces, members, recorders, _handlers };
        for (at, space) in world.spaces.iter().enumerate() {
            let all = || space.to("lobby").emit(probe()).unwrap().targeted == nodes.len() - 1;
            eventually(format!("node {at} knows the rooms of the others"), all).await;
        }
        world
    }

    /// Everything that nodes say to each other, from every node to every other.
    async fn everything_works(&self, nodes: &[Live], round: u64) {
        let names: BTreeSet<&str> = nodes.iter().map(Live::name).collect();
        for (node, space) in nodes.iter().zip(&self.spaces) {
            let receipt = space.to("lobby").emit(stamp(node.name(), round)).unwrap();
            assert_eq!((receipt.targeted, receipt.queued), (nodes.len() - 1, nodes.len() - 1));

            let mut acks = space.to("lobby").emit_with_ack(probe(), LONG).unwrap();
            let mut answered = BTreeSet::new();
            while let Some(ack) = soon("an acknowledgement", acks.next()).await {
                answered.insert(String::from_utf8(ack.result.unwrap().to_vec()).unwrap());
            }
            assert!(answered.iter().map(String::as_str).eq(names.iter().copied()), "{answered:?}");
            let sockets = space.to("lobby").sockets().await.unwrap();
            assert_eq!((sockets.len(), sockets.is_complete()), (nodes.len(), true));

            let acks: ServerAcks<(String, u64)> =
                node.server_side_emit_with_ack("echo", &round, LONG).await.unwrap();
            let answers = acks.answers.iter().map(|(_, answer)| answer.as_ref().unwrap().clone());
            let answers: BTreeSet<(String, u64)> = answers.collect();
            assert_eq!((answers.len(), acks.missing.len()), (nodes.len() - 1, 0), "{answers:?}");
            assert!(answers.iter().all(|(_, data)| *data == round));

            space.to("lobby").join("hall").unwrap();
            size_is(space, "hall", nodes.len()).await;
            space.to("hall").leave("hall").unwrap();
            size_is(space, "hall", 0).await;
        }
        for (at, member) in self.members.iter().enumerate() {
            member.join("attic").unwrap();
            soon("the join is known", member.settled()).await;
            for (space, _) in
                self.spaces.iter().zip(nodes).filter(|(_, node)| node.name() != nodes[at].name())
            {
                assert!(
                    space.to("attic").emit(probe()).unwrap().targeted >= 1,
                    "settled is known everywhere"
                );
            }
            member.leave("attic");
        }
        for (recorder, node) in self.recorders.iter().zip(nodes) {
            for from in nodes.iter().map(Live::name) {
                eventually(format!("{} got {round} from {from}", node.name()), || recorder.has(from, round))
                    .await;
            }
            recorder.check();
        }
    }
}

async fn size_is(space: &Namespace, room: &str, size: usize) {
    let wait = async {
        while *space.room_size(room).await.unwrap() != size as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(format!("{size} in {room}"), wait).await;
}

/// The version of each link is the newest that both of its ends speak.
fn versions_are(nodes: &[Live], versions: &[u16]) {
    for (node, own) in nodes.iter().zip(versions) {
        for (peer, theirs) in nodes.iter().zip(versions).filter(|(peer, _)| peer.name() != node.name()) {
            let link = node.link(peer.name()).unwrap();
            assert_eq!(link.protocol, Some(*own.min(theirs)), "{} to {}", node.name(), peer.name());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_new_nodes_are_one_cluster() {
    let setup = brittle("ver-mixed");
    let versions = [OLD, NEW, OLD, NEW];
    let nodes = cluster(&setup, &versions).await;
    versions_are(&nodes, &versions);
    let world = World::new(&nodes).await;
    world.everything_works(&nodes, 1).await;

    // Every pair loses its link for a while: what is said meanwhile arrives, once and in order.
    for (round, broken) in [(2, 1), (202, 2)] {
        let mut events = nodes[broken].events();
        nodes[broken].gate.cut();
        for _ in 1..nodes.len() {
            event(&mut events, "link down", |event| matches!(event, Event::LinkDown { .. })).await;
        }
        for number in round..round + 200 {
            for (node, space) in nodes.iter().zip(&world.spaces) {
                let receipt = space.to("lobby").emit(stamp(node.name(), number)).unwrap();
                assert_eq!((receipt.targeted, receipt.queued), (nodes.len() - 1, nodes.len() - 1));
            }
        }
        nodes[broken].gate.heal();
        formed(&nodes).await;
        versions_are(&nodes, &versions);
    }
    for recorder in &world.recorders {
        for from in nodes.iter().map(Live::name) {
            eventually("the last one came", || recorder.has(from, 401)).await;
            recorder.check_all(from, 401);
        }
    }
    world.everything_works(&nodes, 402).await;
    for node in &nodes {
        let (report, id) = (node.report(), node.name());
        assert_eq!(report.counters.violations, 0, "{id}");
        let lost = |link: &roomcast::status::LinkReport| link.gap_frames_sent + link.gap_frames_received;
        assert_eq!(report.links.iter().map(lost).sum::<u64>(), 0, "{id}");
    }
}

/// One node after the other leaves and comes back new, and the way back: the others are served all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_node_by_node_and_back() {
    let setup = brittle("ver-roll");
    let mut versions = [OLD; 3];
    let mut nodes = cluster(&setup, &versions).await;
    for (round, (index, max)) in [(0, NEW), (1, NEW), (2, NEW), (1, OLD)].into_iter().enumerate() {
        let old = nodes.remove(index);
        soon("the node leaves", old.node.drain()).await;
        drop(old);
        nodes.insert(index, start(&setup, index, max, &nodes).await);
        versions[index] = max;
        formed(&nodes).await;
        versions_are(&nodes, &versions);
        World::new(&nodes).await.everything_works(&nodes, round as u64 + 1).await;
    }
    assert_eq!(versions, [NEW, OLD, NEW]);
}

/// Emitters and nodes of every pair of versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emitters_speak_with_old_and_new_nodes() {
    let setup = Setup::new("ver-emit");
    let nodes = cluster(&setup, &[OLD, NEW]).await;
    let world = World::new(&nodes).await;
    let mut number = 0;
    for node in &nodes {
        for max in [OLD, NEW] {
            let mut config = Config::default();
            config.protocol.max = max;
            let builder = Emitter::builder().cluster(&setup.cluster).secret(setup.secret.clone());
            let emitter = builder.seeds([node.addr()]).config(config).connect().await.unwrap();
            number += 1;
            emitter.of("/chat").to("lobby").emit_bytes(stamp("emitter", number)).unwrap();
            let count = soon("an answer", emitter.of("/chat").to("lobby").count()).await.unwrap();
            assert_eq!((count.value, count.missing.len()), (2, 0));
            emitter.close().await.unwrap();
            for recorder in &world.recorders {
                eventually("it came", || recorder.has("emitter", number)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_common_version_both_sides_say_why() {
    let setup = Setup::new("ver-none");
    let node = start(&setup, 0, OLD, &[]).await;
    let mut peer = RawPeer::new(&setup, 9);
    peer.protocol = (NEW, NEW + 1);
    let reason = format!("no common protocol version: ours {OLD} to {OLD}, theirs {NEW} to {}", NEW + 1);
    let mut link = peer.open(node.addr()).await;
    peer.hello(&mut link).await;
    let answer = link.next().await.expect("the reason is sent");
    let Head::Refused(refusal) = read(&answer) else { panic!("not refused") };
    assert_eq!(refusal.text, reason);
    link.conn.close(0u32.into(), b"read the reason");
    logged(node.name(), &["incoming connection refused", &reason]).await;

    // A node that dials one that is too new for it: the other side refuses, and it logs what that said.
    let too_new = RawPeer::new(&setup, 8);
    let seat = setup.seat(1);
    let mut config = setup.config.clone();
    config.protocol.max = OLD;
    let builder = setup.builder(&seat).config(config).seeds([too_new.addr()]);
    let dialler = setup.launch(&seat, builder).await;
    let reason = format!("no common protocol version: ours {NEW} to {NEW}, theirs {OLD} to {OLD}");
    let mut link = soon("a dial", too_new.accept()).await;
    let hello = link.next().await.expect("a hello");
    let Head::Hello(hello) = read(&hello) else { panic!("no hello") };
    assert_eq!((hello.protocol_min, hello.protocol_max), (OLD, OLD));
    link.refuse(&reason).await;
    logged(dialler.name(), &["failed to link", &reason]).await;
}

#[tokio::test]
async fn a_version_that_this_build_does_not_speak_is_no_setting() {
    let setup = Setup::new("ver-bad");
    for max in [0, PROTOCOL + 1] {
        let mut config = Config::default();
        config.protocol.max = max;
        let builder = Node::builder().secret(setup.secret.clone()).listen("127.0.0.1:0").config(config);
        let error = builder.start().await.expect_err("it does not start");
        assert!(matches!(error, StartError::Protocol(_)), "{error}");
        assert!(error.to_string().contains("this build speaks 1 to 2 (protocol.max)"), "{error}");
    }
}

/// Operators see which version each link speaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_shows_the_version_of_each_link() {
    let setup = Setup::new("ver-status");
    let nodes = cluster(&setup, &[OLD, NEW, NEW]).await;
    let server =
        roomcast::status::serve(&nodes[1].node, SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let mut command = tokio::process::Command::new(command_line());
    command.args(["status", "--admin", &url]).kill_on_drop(true);
    let output = soon("roomcast status", command.output()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for (peer, version) in [(&nodes[0], "1"), (&nodes[2], "2")] {
        let row =
            text.lines().skip_while(|line| !line.starts_with("LINK")).find(|l| l.starts_with(peer.name()));
        let cells: Vec<&str> = row.unwrap().split_whitespace().collect();
        assert_eq!(cells[..3], [peer.name(), "up", version], "{text}");
    }
}
