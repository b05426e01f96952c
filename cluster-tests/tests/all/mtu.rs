//! Networks that carry less than Ethernet does: `docs/operations.md`, "MTU". Two pods, of which one has a smaller interface:
//! what is too large for it is an error for itself, and lost without a word for the other.

use std::net::SocketAddr;

use cluster_tests::netns::{Net, Pod};
use cluster_tests::recorder::stamp_of;
use cluster_tests::{Recorder, Setup, eventually, requirement};
use roomcast::quic::endpoint::{self, QuicConfig};
use roomcast::status::Report;
use roomcast::{Member, Node};

const PORT: u16 = 7946;
const ROOM: &str = "lobby";
/// The least that carries the first packets of QUIC: 1,200 bytes, 8 of UDP and 20 of IPv4.
const LEAST: u32 = 1_228;
/// Far more than one packet.
const BYTES: usize = 300_000;

async fn node(setup: &Setup, index: usize, pod: &Pod, seed: SocketAddr) -> Node {
    let addr = (pod.ip(), PORT).into();
    let bound = pod.run(|| endpoint::bind(addr, &QuicConfig::default())).unwrap().unwrap();
    let builder = Node::builder().cluster(&setup.cluster).id(setup.id(index)).secret(setup.secret.clone());
    let builder = builder.socket(endpoint::async_socket(bound.socket).unwrap()).seeds([seed]);
    builder.start().await.unwrap()
}

/// Two nodes, the second on an interface of so many bytes.
async fn two(name: &str, mtu: u32) -> (Net, [Node; 2]) {
    let net = Net::new(name, "10.0.0.0/24").unwrap();
    let pods = [net.add().unwrap(), net.add().unwrap()];
    pods[1].ip_command(&["link", "set", "eth0", "mtu", &mtu.to_string()]).unwrap();
    let setup = Setup::new(name);
    let [first, second] = [&pods[0], &pods[1]].map(|pod| SocketAddr::from((pod.ip(), PORT)));
    let nodes = [node(&setup, 0, &pods[0], second).await, node(&setup, 1, &pods[1], first).await];
    (net, nodes)
}

fn is_up(node: &Node) -> bool {
    let links = Report::collect(node).links;
    links.iter().any(|link| link.state == "up")
}

fn listener(node: &Node) -> (Recorder, Member) {
    let heard = Recorder::new();
    let member = node.namespace("/mtu").unwrap().connect(heard.clone());
    member.join(ROOM).unwrap();
    (heard, member)
}

async fn large_messages_pass(name: &str, mtu: u32) {
    let (_net, nodes) = two(name, mtu).await;
    eventually(format!("two nodes link over {mtu} bytes"), || nodes.iter().all(is_up)).await;
    let members = nodes.each_ref().map(listener);
    for (_, member) in &members {
        member.settled().await;
    }
    for number in 1..=20 {
        for (index, node) in nodes.iter().enumerate() {
            let message = stamp_of(&index.to_string(), number, BYTES);
            node.namespace("/mtu").unwrap().to(ROOM).emit(message).unwrap();
        }
    }
    for (index, (heard, _)) in members.iter().enumerate() {
        let other = (1 - index).to_string();
        eventually(format!("{index} has all over {mtu} bytes"), || heard.has(&other, 20)).await;
        heard.check_all(&other, 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_that_quic_allows_is_enough() {
    let Some(()) = requirement::namespaces() else { return };
    large_messages_pass("mtu-least", LEAST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_pass_an_overlay_network() {
    let Some(()) = requirement::namespaces() else { return };
    large_messages_pass("mtu-vxlan", 1_450).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_it_there_is_no_link() {
    let Some(()) = requirement::namespaces() else { return };
    let (_net, nodes) = two("mtu-small", LEAST - 1).await;
    let failed = |node: &Node| Report::collect(node).counters.dials_failed;
    eventually("neither reaches the other", || nodes.iter().all(|node| failed(node) > 0)).await;
    assert!(nodes.iter().all(|node| node.members().len() == 1));
}
