//! Scenarios of the network.

use std::time::Duration;

use super::{Cluster, ROOM, mended, one, pause, sides, steady};

pub(super) async fn split(cluster: &mut Cluster) {
    steady(cluster).await;
    let (one, other) = sides(cluster);
    cluster.partition(one, other).await;
    pause(cluster, 500..14_000).await;
    mended(cluster).await;
}

pub(super) async fn blip(cluster: &mut Cluster) {
    steady(cluster).await;
    for _ in 0..2 {
        let (one, other) = sides(cluster);
        cluster.partition(one, other).await;
        pause(cluster, 100..9_000).await;
        mended(cluster).await;
    }
}

pub(super) async fn one_way_split(cluster: &mut Cluster) {
    steady(cluster).await;
    let (silent, others) = sides(cluster);
    for from in silent {
        for to in &others {
            cluster.one_way(from, *to).await;
        }
    }
    pause(cluster, 500..20_000).await;
    mended(cluster).await;
}

pub(super) async fn bridge(cluster: &mut Cluster) {
    steady(cluster).await;
    cluster.partition([0], [1]).await;
    pause(cluster, 5_000..25_000).await;
    // What the bridge emits reaches both sides all the time.
    cluster.emit(2, ROOM, 10).await;
    pause(cluster, 100..1000).await;
    mended(cluster).await;
}

pub(super) async fn flapping(cluster: &mut Cluster) {
    steady(cluster).await;
    let (one, other) = sides(cluster);
    for _ in 0..15 {
        cluster.partition(&one, &other).await;
        pause(cluster, 200..800).await;
        cluster.heal().await;
        pause(cluster, 200..800).await;
    }
}

pub(super) async fn long_split(cluster: &mut Cluster) {
    steady(cluster).await;
    let (one, other) = sides(cluster);
    cluster.partition(one, other).await;
    // Longer than the idle timeout (5 s), and than all that the settings of the scenario remember.
    pause(cluster, 14_000..20_000).await;
    mended(cluster).await;
}

pub(super) async fn split_of_minutes(cluster: &mut Cluster) {
    steady(cluster).await;
    let (one, other) = sides(cluster);
    cluster.partition(one, other).await;
    // Less of it, so that the simulation of minutes takes seconds.
    for node in cluster.nodes() {
        cluster.traffic(node, ROOM, Duration::from_secs(1)).await;
    }
    // Longer than the grace of gossip for the dead (120 s).
    pause(cluster, 130_000..200_000).await;
    mended(cluster).await;
}

pub(super) async fn half_open(cluster: &mut Cluster) {
    steady(cluster).await;
    let from = one(cluster);
    let to = (from + 1) % cluster.len();
    let mut whole = cluster.now();
    for _ in 0..6 {
        cluster.emit(from, ROOM, 200).await;
        cluster.sleep(Duration::from_millis(10)).await;
        cluster.one_way(from, to).await;
        cluster.emit(from, ROOM, 200).await;
        pause(cluster, 200..9000).await;
        cluster.heal().await;
        pause(cluster, 100..1500).await;
        // That may be too short for the link to come back. Within each window it gets the time.
        if cluster.now() - whole > Duration::from_secs(4) {
            mended(cluster).await;
            whole = cluster.now();
        }
    }
}

pub(super) async fn loss(cluster: &mut Cluster) {
    steady(cluster).await;
    for (a, b) in all_pairs(cluster) {
        cluster.lossy(a, b, 0.3).await;
    }
    pause(cluster, 10_000..20_000).await;
    mended(cluster).await;
}

pub(super) async fn disorder(cluster: &mut Cluster) {
    steady(cluster).await;
    for (a, b) in all_pairs(cluster) {
        cluster.reorder(a, b, 0.2).await;
        cluster.duplicate(a, b, 0.2).await;
        let slow = cluster.pick(1..100);
        cluster.delay(a, b, Duration::from_millis(slow)..Duration::from_millis(2 * slow)).await;
    }
    for _ in 0..10 {
        let node = one(cluster);
        cluster.emit(node, ROOM, 100).await;
        pause(cluster, 200..1500).await;
    }
}

pub(super) async fn join_storm(cluster: &mut Cluster) {
    steady(cluster).await;
    let (one, other) = sides(cluster);
    cluster.partition(one, other).await;
    for round in 0..5 {
        for node in cluster.nodes() {
            cluster.join_many(node, &format!("storm-{round}"), 100).await;
            cluster.join(node, &format!("room-{round}")).await;
            cluster.settle(node).await;
        }
        pause(cluster, 100..4000).await;
        if round > 0 {
            for node in cluster.nodes() {
                cluster.leave(node, &format!("room-{}", round - 1)).await;
                cluster.emit(node, &format!("room-{round}"), 5).await;
            }
        }
    }
    mended(cluster).await;
    for node in cluster.nodes() {
        cluster.settle(node).await;
        cluster.emit(node, "room-4", 5).await;
    }
}

/// From when a join is settled, nobody misses anything: also of what is emitted a moment later, far away.
pub(super) async fn late_joins(cluster: &mut Cluster) {
    steady(cluster).await;
    for (a, b) in all_pairs(cluster) {
        let slow = cluster.pick(5..60);
        cluster.delay(a, b, Duration::from_millis(slow)..Duration::from_millis(slow + 5)).await;
    }
    for round in 0..20 {
        let (joins, room) = (one(cluster), format!("late-{round}"));
        cluster.join(joins, &room).await;
        cluster.settle(joins).await;
        for _ in 0..10 {
            for node in cluster.nodes() {
                cluster.emit(node, &room, 1).await;
            }
            pause(cluster, 1..30).await;
        }
    }
}

fn all_pairs(cluster: &Cluster) -> Vec<(usize, usize)> {
    cluster.nodes().flat_map(|a| (0..a).map(move |b| (a, b))).collect()
}
