//! Whole gossip nodes joined by channels instead of links, on paused time.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;
use chitchat::Serializable;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::*;

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn name(port: u16) -> NodeId {
    NodeId::new(format!("node-{port}")).unwrap()
}

/// Every node's queue, by the address it advertises. A cut node neither sends nor gets anything.
#[derive(Default)]
struct Net {
    queues: Mutex<HashMap<SocketAddr, mpsc::Sender<(SocketAddr, Bytes)>>>,
    bytes: Mutex<usize>,
    /// The latest message of each kind.
    kinds: Mutex<HashMap<u8, Bytes>>,
}

struct Port(Arc<Net>, SocketAddr);

impl Carrier for Port {
    fn send_gossip(&self, to: SocketAddr, message: Bytes) {
        let queues = self.0.queues.lock().unwrap();
        if queues.contains_key(&self.1)
            && let Some(queue) = queues.get(&to)
        {
            *self.0.bytes.lock().unwrap() += message.len();
            self.0.kinds.lock().unwrap().insert(message[3], message.clone());
            let _ = queue.try_send((self.1, message));
        }
    }
}

impl Net {
    async fn start(self: &Arc<Self>, port: u16, incarnation: u64) -> Gossip {
        let (sender, incoming) = mpsc::channel(transport::INCOMING_DEFAULT);
        self.queues.lock().unwrap().insert(addr(port), sender);
        let carrier = Arc::new(Port(self.clone(), addr(port)));
        let run = Incarnation(incarnation);
        let config = GossipConfig::default();
        Gossip::start(config, "test", &name(port), run, addr(port), carrier, incoming).await.unwrap()
    }

    /// Nodes at the ports 1 to `count`, all contacting the first, once all are alive to each other.
    async fn cluster(self: &Arc<Self>, count: u16) -> Vec<Gossip> {
        let mut nodes = Vec::new();
        for port in 1..=count {
            let node = self.start(port, 1).await;
            node.contact(addr(1));
            nodes.push(node);
        }
        for node in &nodes {
            until(node, |view| view.iter().filter(|member| member.alive).count() + 1 == nodes.len()).await;
        }
        nodes
    }

    fn cut(&self, port: u16) {
        self.queues.lock().unwrap().remove(&addr(port));
    }

    fn inject(&self, to: u16, message: Vec<u8>) {
        let queues = self.queues.lock().unwrap();
        queues[&addr(to)].try_send((addr(99), message.into())).unwrap();
    }
}

/// Waits, by `changed` alone, until the view is as wanted; fails after a virtual minute.
async fn until(node: &Gossip, wanted: impl Fn(&[GossipMember]) -> bool) {
    let mut changed = node.changed();
    let all = async {
        while !wanted(&node.view().await) {
            changed.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(60), all).await.unwrap();
}

fn find(view: &[GossipMember], port: u16) -> Option<&GossipMember> {
    view.iter().find(|member| member.id == name(port))
}

#[tokio::test(start_paused = true)]
async fn nodes_find_each_other_through_one_contact() {
    let net = Arc::<Net>::default();
    let begin = Instant::now();
    let nodes = net.cluster(5).await;
    println!("5 nodes alive to each other after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5));
    let view = nodes[4].view().await;
    assert_eq!(view.iter().map(|member| member.addr.port()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    sleep(Duration::from_secs(1)).await;
    let own = ChitchatId::new("node-1", 1, addr(1)).serialized_len();
    assert_eq!(nodes[0].digest(), DigestSize { nodes: 5, bytes: 2 + 5 * (own + 24) });
    nodes[2].set_leaving().await;
    until(&nodes[4], |view| find(view, 3).is_some_and(|member| member.leaving)).await;
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn changed_is_quiet_while_nothing_changes() {
    let net = Arc::<Net>::default();
    let nodes = net.cluster(3).await;
    sleep(Duration::from_secs(5)).await;
    let changed = nodes[0].changed();
    sleep(Duration::from_secs(60)).await;
    assert!(!changed.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed_and_the_dead_are_forgotten() {
    for count in [2, 3, 10] {
        let net = Arc::<Net>::default();
        let nodes = net.cluster(count).await;
        sleep(Duration::from_secs(60)).await;
        net.cut(count);
        let cut = Instant::now();
        until(&nodes[0], |view| find(view, count).is_some_and(|member| !member.alive)).await;
        let silent = cut.elapsed();
        println!("{count} nodes: dead after {silent:?}");
        assert!(silent < Duration::from_secs(10), "{count} nodes: {silent:?}");
        // Half the grace of 120 s after its death it is in no digest any more.
        assert!(find(&nodes[0].view().await, count).is_some());
        sleep(Duration::from_secs(62)).await;
        assert_eq!(find(&nodes[0].view().await, count), None);
        assert_eq!(nodes[0].digest().nodes, usize::from(count) - 1);
    }
}

#[tokio::test(start_paused = true)]
async fn many_restarts_do_not_fill_the_digest() {
    let net = Arc::<Net>::default();
    let nodes = net.cluster(2).await;
    let mut most = DigestSize { nodes: 0, bytes: 0 };
    // A node that crashes and restarts every two seconds: old runs stay in the digest for a minute.
    for incarnation in 2..102 {
        let node = net.start(3, incarnation).await;
        node.contact(addr(1));
        sleep(Duration::from_secs(2)).await;
        net.cut(3);
        drop(node);
        if nodes[0].digest().bytes > most.bytes {
            most = nodes[0].digest();
        }
    }
    println!("100 restarts: at most {most:?}, {:?}", nodes[0].stats());
    assert!(most.nodes < 60 && most.bytes < 6_000);
    assert_eq!(nodes[0].stats().restarts, 0);
}

/// The start of a message, up to what follows its kind.
fn head(kind: u8) -> Vec<u8> {
    vec![0x53, 0xb0, 0, kind]
}

/// A digest that names `count` incarnations.
fn digest(first: u64, count: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    count.serialize(&mut bytes);
    for generation in first..first + u64::from(count) {
        ChitchatId::new("a-pod-name-0", generation, addr(98)).serialize(&mut bytes);
        for number in [1u64, 0, 0] {
            number.serialize(&mut bytes);
        }
    }
    bytes
}

fn syn(digest: Vec<u8>) -> Vec<u8> {
    let mut bytes = [head(0), digest].concat();
    "test".serialize(&mut bytes);
    bytes
}

#[tokio::test(start_paused = true)]
async fn junk_and_floods_are_counted_and_nothing_else() {
    let net = Arc::<Net>::default();
    let nodes = net.cluster(2).await;
    for junk in [
        Vec::new(),
        b"junk".to_vec(),
        head(0),
        [head(2), vec![9]].concat(),
        [head(2), vec![1, 4, 0]].concat(),
    ] {
        net.inject(1, junk);
    }
    net.inject(1, vec![0; 70_000]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((nodes[0].stats().junk, nodes[0].stats().oversized), (5, 1));
    // 2,100 incarnations of 53 bytes each are more than an answer has room for.
    for part in 0..3 {
        net.inject(1, syn(digest(part * 700, 700)));
    }
    sleep(Duration::from_secs(20)).await;
    let (stats, digest) = (nodes[0].stats(), nodes[0].digest());
    assert!(stats.refused > 0 && stats.restarts == 0 && digest.bytes <= 60_000, "{stats:?} {digest:?}");
    assert!(find(&nodes[0].view().await, 2).is_some_and(|member| member.alive));
    assert!(find(&nodes[1].view().await, 1).is_some_and(|member| member.alive));
}

/// A delta that is well formed and trips an assertion of chitchat: a maximum version below that of its own
/// key.
fn poison(about: &ChitchatId) -> Vec<u8> {
    let mut ops = vec![0];
    about.serialize(&mut ops);
    0u64.serialize(&mut ops);
    0u64.serialize(&mut ops);
    ops.push(1);
    "k".serialize(&mut ops);
    "v".serialize(&mut ops);
    9u64.serialize(&mut ops);
    0u8.serialize(&mut ops);
    ops.push(2);
    1u64.serialize(&mut ops);
    let mut bytes = [head(2), vec![2]].concat();
    (ops.len() as u16).serialize(&mut bytes);
    [bytes, ops, vec![0]].concat()
}

#[tokio::test(start_paused = true)]
async fn gossip_starts_again_when_chitchat_panics() {
    let net = Arc::<Net>::default();
    let nodes = net.cluster(3).await;
    sleep(Duration::from_secs(30)).await;
    nodes[0].set_leaving().await;
    until(&nodes[1], |view| find(view, 1).is_some_and(|member| member.leaving)).await;
    net.inject(1, poison(&ChitchatId::new("node-2", 1, addr(2))));
    sleep(Duration::from_millis(900)).await;
    assert_eq!(nodes[0].stats().restarts, 1);
    until(&nodes[0], |view| view.iter().filter(|member| member.alive).count() == 2).await;
    let back = Instant::now();
    for node in &nodes[1..] {
        until(node, |view| find(view, 1).is_some_and(|member| member.alive && member.leaving)).await;
    }
    println!("alive to the others again after {:?} more", back.elapsed());
    sleep(Duration::from_secs(30)).await;
    assert!(find(&nodes[1].view().await, 1).is_some_and(|member| member.alive));
    assert_eq!((nodes[0].stats().restarts, nodes[0].view().await.len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn names_that_are_none_of_ours_are_left_out() {
    let net = Arc::<Net>::default();
    let node = net.start(1, 1).await;
    let mut bytes = Vec::new();
    2u16.serialize(&mut bytes);
    for (name, port) in [("a b", 3), ("no-port", 0)] {
        ChitchatId::new(name, 1, addr(port)).serialize(&mut bytes);
        for number in [1u64, 0, 0] {
            number.serialize(&mut bytes);
        }
    }
    net.inject(1, syn(bytes));
    sleep(Duration::from_secs(1)).await;
    assert_eq!((node.view().await, node.stats().unusable_names), (vec![], 2));
}

#[tokio::test(start_paused = true)]
async fn dropping_it_ends_it() {
    let net = Arc::<Net>::default();
    let nodes = net.cluster(2).await;
    let shared = Arc::downgrade(&nodes[0].shared);
    drop(nodes);
    sleep(Duration::from_secs(1)).await;
    assert!(shared.upgrade().is_none());
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let start = async |config, cluster: &'static str, port| {
        let net = Arc::<Net>::default();
        let (_sender, incoming) = mpsc::channel(1);
        let carrier = Arc::new(Port(net, addr(1)));
        Gossip::start(config, cluster, &name(1), Incarnation(1), addr(port), carrier, incoming).await.err()
    };
    let zero = GossipConfig { interval: Duration::ZERO, ..GossipConfig::default() };
    assert!(start(zero, "test", 1).await.is_some());
    assert!(start(GossipConfig::default(), "", 1).await.is_some());
    assert!(start(GossipConfig::default(), "test", 0).await.is_some());
    let error = GossipError::Config("x").to_string();
    assert_eq!(error, "start gossip: x");
}

/// The corpus of the fuzz target: what chitchat sends. `ROOMCAST_WRITE_SEEDS=1` writes it anew; times differ each time, so it is
/// not compared.
#[tokio::test(start_paused = true)]
async fn fuzz_seeds_are_real_messages() {
    let net = Arc::<Net>::default();
    let nodes = net.cluster(3).await;
    nodes[2].set_leaving().await;
    until(&nodes[1], |view| find(view, 3).is_some_and(|member| member.leaving)).await;
    let kinds = net.kinds.lock().unwrap().clone();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-tests/fuzz/corpus/gossip");
    for (kind, name) in [(0, "syn"), (1, "syn-ack"), (2, "ack")] {
        let message = &kinds[&kind];
        assert!(crate::fuzz::run("gossip", message), "{name}");
        if std::env::var_os("ROOMCAST_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(name), message).unwrap();
        }
        assert!(crate::fuzz::run("gossip", &std::fs::read(folder.join(name)).unwrap()), "stored {name}");
    }
    for node in nodes {
        node.shutdown().await;
    }
}
