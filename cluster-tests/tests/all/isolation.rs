//! A peer that does not read, or hardly, costs nobody but itself (contract 9). What it costs in time: `just bench-isolation`.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster_tests::harness::ground::Settings;
use cluster_tests::harness::history::{History, What};
use cluster_tests::harness::processes::Processes;
use cluster_tests::raw::read;
use cluster_tests::wait::DEADLINE;
use cluster_tests::{Cluster, RawLink, RawPeer, Setup};
use roomcast::core::frame::Head;
use roomcast::status::LinkReport;

const ROOM: &str = "lobby";
/// What may be queued for one peer.
const OUTBOX: usize = 256 << 10;
/// More than one frame of these tests has.
const FRAME: u64 = 1 << 10;
/// Messages that are emitted at once.
const BATCH: u64 = 500;

fn processes() -> Processes {
    Processes::new(env!("CARGO_BIN_EXE_cluster-node"))
}

/// A small queue, and a peer that is away is not given up.
fn settings() -> Settings {
    Settings {
        outbox_bytes: Some(OUTBOX),
        resume_window_ms: Some(600_000),
        dead_linger_ms: Some(600_000),
        ..Settings::default()
    }
}

/// Nodes 0 and 1 know each other's members, and those of 2 when it is there.
async fn joined(cluster: &mut Cluster) {
    for node in cluster.nodes() {
        cluster.join(node, ROOM).await;
        cluster.settle(node).await;
    }
    let nodes = cluster.len();
    cluster
        .eventually(DEADLINE, async |cluster| {
            let entries = &cluster.history().entries;
            entries.iter().filter(|entry| matches!(entry.what, What::Settled { .. })).count() >= nodes
        })
        .await;
}

/// What node 0 keeps for a peer.
async fn link(cluster: &mut Cluster, peer: &str) -> LinkReport {
    let report = cluster.report(0).await.expect("it runs");
    report.links.into_iter().find(|link| link.peer == peer).expect("it is known")
}

/// The numbers of node 0 that were emitted, in order, and those that were dropped for a peer.
fn emitted(history: &History, peer: &str) -> (Vec<u64>, BTreeSet<u64>) {
    let (mut all, mut dropped) = (Vec::new(), BTreeSet::new());
    for entry in history.entries.iter().filter(|entry| entry.node == 0) {
        if let What::Emitted { number, dropped: not_queued, .. } = &entry.what {
            all.push(*number);
            if not_queued.iter().any(|(id, _)| id == peer) {
                dropped.insert(*number);
            }
        }
    }
    (all, dropped)
}

/// The numbers of node 0 that came to a node, in order.
fn delivered(history: &History, at: usize) -> Vec<u64> {
    let entries = history.entries.iter().filter(|entry| entry.node == at);
    entries
        .filter_map(|entry| match entry.what {
            What::Delivered { from: 0, number, .. } => Some(number),
            _ => None,
        })
        .collect()
}

/// Emits until the queue for `peer` is full and messages were dropped; node 1 gets all of them all the while.
async fn fill(cluster: &mut Cluster, peer: &str) {
    let mut emitted = delivered(cluster.history(), 1).len();
    let end = cluster.now() + DEADLINE;
    while link(cluster, peer).await.drops.queue_full < BATCH {
        assert!(cluster.now() < end, "the queue does not become full: {:?}", link(cluster, peer).await);
        cluster.emit(0, ROOM, BATCH).await;
        emitted += BATCH as usize;
        cluster.eventually(DEADLINE, async |cluster| delivered(cluster.history(), 1).len() == emitted).await;
        // It acknowledges now and then; until it does, what it has got counts.
        let other = cluster.id(1).to_owned();
        cluster.eventually(DEADLINE, async |cluster| link(cluster, &other).await.queue_frames == 0).await;
        let bytes = link(cluster, peer).await.queue_bytes;
        assert!(bytes <= OUTBOX as u64 + FRAME, "{bytes} bytes are queued");
    }
    let other = cluster.id(1).to_owned();
    assert_eq!(link(cluster, &other).await.drops.queue_full, 0);
}

/// It is stopped, its queue fills up to the bound, it goes on, and gets all but what was dropped.
#[test]
fn a_frozen_process_costs_only_itself() {
    let ground = Cluster::builder().on(processes()).settings(settings()).converges_within(DEADLINE);
    let history = ground.run(async |cluster: &mut Cluster| {
        joined(cluster).await;
        cluster.freeze(2).await;
        fill(cluster, "n2").await;
        cluster.thaw(2).await;
        cluster.converged(DEADLINE).await;
        cluster.eventually(DEADLINE, async |cluster| link(cluster, "n2").await.queue_frames == 0).await;
        cluster.emit(0, ROOM, 10).await;
        // Nothing but what the receipts say; the history is checked for repeats and order.
        let (all, dropped) = emitted(cluster.history(), "n2");
        let counted = link(cluster, "n2").await;
        assert_eq!((counted.drops.queue_full, counted.gap_frames_sent), (dropped.len() as u64, 0));
        assert!(all[all.len() - 10..].iter().all(|number| !dropped.contains(number)));
    });
    let (all, dropped) = emitted(&history, "n2");
    assert_eq!(delivered(&history, 1), all);
    let rest: Vec<u64> = all.into_iter().filter(|number| !dropped.contains(number)).collect();
    assert_eq!(delivered(&history, 2), rest);
}

/// A peer that reads one frame a second and acknowledges it stays linked, with a full queue.
#[test]
fn a_peer_that_reads_a_frame_a_second_costs_only_itself() {
    let setup = Setup::new("isolation-slow");
    let secret = setup.secret.clone();
    let ground = Cluster::builder().nodes(2).on(processes().secret(secret)).settings(settings());
    ground.converges_within(DEADLINE).run(async move |cluster: &mut Cluster| {
        joined(cluster).await;
        let peer = RawPeer::new(&setup, 9);
        let addr = cluster.report(0).await.expect("it runs").node.address;
        let slow = peer.link(addr.parse().expect("an address"), "/agent").await;
        let conn = slow.conn.clone();
        let reader = tokio::spawn(read_slowly(slow));
        let id = peer.id.clone();
        cluster
            .eventually(DEADLINE, async |cluster| {
                let report = cluster.report(0).await.expect("it runs");
                report.links.iter().any(|link| link.peer == id && link.state == "up")
            })
            .await;
        fill(cluster, &peer.id).await;
        assert_eq!(link(cluster, &peer.id).await.state, "up", "it is slow, and not gone");
        assert_eq!(link(cluster, &peer.id).await.links, 1);
        reader.abort();
        // It leaves in order, so that it is no ghost.
        conn.close(1u32.into(), b"");
    });
}

async fn read_slowly(mut link: RawLink) {
    let mut seq = 0;
    while let Some(frame) = link.next().await {
        match read(&frame) {
            Head::Start { first } => seq = first.saturating_sub(1),
            Head::Broadcast(_) | Head::Again => seq += 1,
            _ => {}
        }
        link.say(&Head::Received { seq, interest: 0 }, &[]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// On simulated ground nothing but the nodes takes time, so the latency of the others must be what it is without the frozen
/// one.
#[test]
fn a_frozen_node_delays_nobody() {
    let latencies = |freeze: bool| {
        let history = Cluster::builder().nodes(3).seed(7).run(async |cluster: &mut Cluster| {
            joined(cluster).await;
            if freeze {
                cluster.freeze(2).await;
            }
            let begin = cluster.now();
            cluster.traffic(0, ROOM, Duration::from_millis(5)).await;
            // Before, while and after the others give it up.
            cluster.sleep(Duration::from_secs(20)).await;
            cluster.quiet().await;
            cluster.note(format!("traffic since {begin:?}"));
        });
        let mut latencies: Vec<Duration> = history
            .entries
            .iter()
            .filter_map(|entry| match entry.what {
                What::Emitted { number, .. } if entry.node == 0 => Some((number, entry.at)),
                _ => None,
            })
            .zip(delivery_times(&history))
            .map(|((number, emitted), (came, at))| {
                assert_eq!(number, came);
                at - emitted
            })
            .collect();
        assert!(latencies.len() > 3_000, "{} messages", latencies.len());
        latencies.sort_unstable();
        latencies
    };
    let (free, frozen) = (latencies(false), latencies(true));
    let at = |latencies: &[Duration], percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    // A packet takes 4 to 8 ms, and nodes are driven 4 ms at a time: a quantum is allowed.
    let quantum = Duration::from_millis(4);
    for percent in [0, 50, 90, 99, 100] {
        let (free, frozen) = (at(&free, percent), at(&frozen, percent));
        assert!(frozen <= free + quantum, "{percent} %: {frozen:?} beside a frozen node, {free:?} without");
    }
}

/// When messages of node 0 came to node 1.
fn delivery_times(history: &History) -> Vec<(u64, Duration)> {
    let entries = history.entries.iter().filter(|entry| entry.node == 1);
    entries
        .filter_map(|entry| match entry.what {
            What::Delivered { from: 0, number, .. } => Some((number, entry.at)),
            _ => None,
        })
        .collect()
}
