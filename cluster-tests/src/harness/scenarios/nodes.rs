//! Scenarios of the nodes themselves.

use std::time::Duration;

use super::{Cluster, ROOM, mended, one, pause, sides, steady};

pub(super) async fn frozen(cluster: &mut Cluster) {
    steady(cluster).await;
    for _ in 0..2 {
        let node = one(cluster);
        cluster.freeze(node).await;
        pause(cluster, 500..14_000).await;
        cluster.thaw(node).await;
        pause(cluster, 500..4000).await;
    }
}

pub(super) async fn kill_and_restart(cluster: &mut Cluster) {
    steady(cluster).await;
    for _ in 0..3 {
        let node = one(cluster);
        cluster.kill(node).await;
        pause(cluster, 0..9000).await;
        cluster.restart(node).await;
        pause(cluster, 100..4000).await;
    }
}

/// Nothing is kept for it in the end: what it was owed is given up and counted.
pub(super) async fn gone_for_good(cluster: &mut Cluster) {
    steady(cluster).await;
    let node = one(cluster);
    cluster.kill(node).await;
    // To find it dead, and the resume window (15 s).
    pause(cluster, 25_000..35_000).await;
    cluster.converged(Duration::from_secs(1)).await;
}

pub(super) async fn restart_in_split(cluster: &mut Cluster) {
    steady(cluster).await;
    let (away, others) = sides(cluster);
    cluster.partition(&away, &others).await;
    pause(cluster, 0..8000).await;
    cluster.restart(away[0]).await;
    pause(cluster, 0..8000).await;
    cluster.restart(others[0]).await;
    pause(cluster, 0..3000).await;
    mended(cluster).await;
}

pub(super) async fn rolling_restart(cluster: &mut Cluster) {
    steady(cluster).await;
    for node in cluster.nodes() {
        // The last of it is on its way when the node is told to leave.
        cluster.emit(node, ROOM, 300).await;
        pause(cluster, 1..10).await;
        cluster.retire(node).await;
        pause(cluster, 0..1000).await;
        cluster.restart(node).await;
        pause(cluster, 500..3000).await;
    }
}

pub(super) async fn rolling_kill(cluster: &mut Cluster) {
    steady(cluster).await;
    for node in cluster.nodes() {
        cluster.kill(node).await;
        pause(cluster, 0..2000).await;
        cluster.restart(node).await;
        pause(cluster, 0..2000).await;
    }
}

pub(super) async fn all_at_once(cluster: &mut Cluster) {
    steady(cluster).await;
    for node in cluster.nodes() {
        cluster.kill(node).await;
    }
    pause(cluster, 0..6000).await;
    for node in cluster.nodes() {
        cluster.restart(node).await;
        pause(cluster, 0..200).await;
    }
    pause(cluster, 1000..3000).await;
}

pub(super) async fn new_addresses(cluster: &mut Cluster) {
    steady(cluster).await;
    let (one, other) = sides(cluster);
    cluster.partition(&one, &other).await;
    pause(cluster, 8_000..14_000).await;
    for node in one {
        cluster.replace_address(node).await;
        cluster.restart(node).await;
    }
    pause(cluster, 1000..8000).await;
    mended(cluster).await;
}

pub(super) async fn clocks_ahead(cluster: &mut Cluster) {
    steady(cluster).await;
    for _ in 0..6 {
        let node = one(cluster);
        let ms = cluster.pick(100..60_000);
        cluster.jump_clock(node, Duration::from_millis(ms));
        pause(cluster, 100..5000).await;
    }
}

/// The others listen to the run with the newer incarnation, also when that one is over: the new run is refused until gossip
/// has forgotten the old one, and says so.
pub(super) async fn clock_back(cluster: &mut Cluster) {
    steady(cluster).await;
    let node = one(cluster);
    cluster.kill(node).await;
    pause(cluster, 0..4000).await;
    cluster.set_wall_clock(node, -3_600_000);
    cluster.restart(node).await;
    cluster
        .eventually(Duration::from_secs(20), async |cluster| {
            cluster.report(node).await.is_some_and(|report| report.conflict.is_some())
        })
        .await;
    cluster.converged(Duration::from_secs(150)).await;
}

pub(super) async fn hundred_restarts(cluster: &mut Cluster) {
    restarts(cluster, 100).await;
}

pub(super) async fn thousand_restarts(cluster: &mut Cluster) {
    restarts(cluster, 1000).await;
}

/// Old runs do not pile up: in each digest are no more than those of half the grace of gossip for the dead.
async fn restarts(cluster: &mut Cluster, times: u64) {
    steady(cluster).await;
    let (node, mut most) = (one(cluster), 0);
    for _ in 0..times {
        cluster.restart(node).await;
        pause(cluster, 300..1300).await;
        for other in cluster.nodes() {
            let nodes = cluster.report(other).await.map_or(0, |report| report.gossip.digest_nodes);
            most = nodes.max(most);
        }
    }
    cluster.note(format!("at most {most} runs were in a digest"));
    let grace_ms = cluster.settings().dead_node_grace_ms.unwrap_or(120_000);
    // Four seconds to notice, half of the grace, a restart in 800 ms; twice of that, and those that run.
    let limit = 2 * (4_000 + grace_ms / 2) / 800 + cluster.len() as u64;
    assert!(most <= limit, "old runs pile up: {most} in a digest, not more than {limit} were expected");
    cluster.emit(node, ROOM, 10).await;
}
