//! What is done to the cluster, over and over.

use std::sync::PoisonError;
use std::time::Duration;

use cluster_tests::Cluster;
use cluster_tests::harness::check::Tally;

use crate::memory::Running;
use crate::{NODES, STEADY};

/// The room of the steady traffic, 50 messages a second from each node.
const ROOM: &str = "lobby";
const EVERY: Duration = Duration::from_millis(20);
/// The rooms that are joined and left all the time.
const ROOMS: u64 = 300;
/// How many rooms are joined at once, and left again, in each round.
const CROWD: usize = 200;
/// The pause between two changes of rooms.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the nodes may take to be one cluster again: the machine may have much else to do.
const MENDED: Duration = Duration::from_secs(60);

/// The churn, and what it has done so far.
pub(crate) struct Churn {
    length: Duration,
    running: Running,
    total: Tally,
    rounds: u64,
    joins_and_leaves: u64,
    kills: u64,
    leaves: u64,
    splits: u64,
    freezes: u64,
    wrong: Vec<String>,
}

impl Churn {
    /// For so long.
    pub(crate) fn new(length: Duration, running: Running) -> Self {
        let (total, wrong) = (Tally::default(), Vec::new());
        let (rounds, joins_and_leaves, kills, leaves, splits, freezes) = (0, 0, 0, 0, 0, 0);
        Self { length, running, total, rounds, joins_and_leaves, kills, leaves, splits, freezes, wrong }
    }

    /// Whether something happened that must not.
    pub(crate) fn is_wrong(&self) -> bool {
        self.total.is_wrong() || !self.wrong.is_empty() || self.rounds == 0
    }

    /// What was done and what came of it.
    pub(crate) fn table(&self) -> String {
        let Tally { emitted, delivered, missed, uncounted, duplicated, reordered } = self.total;
        let rows = [
            ("rounds", self.rounds),
            ("joins and leaves", self.joins_and_leaves),
            ("kills with a restart", self.kills),
            ("leaves in order with a restart", self.leaves),
            ("splits", self.splits),
            ("freezes", self.freezes),
            ("messages sent", emitted),
            ("delivered", delivered),
            ("lost and counted", missed - uncounted),
            ("lost and not counted", uncounted),
            ("duplicated", duplicated),
            ("reordered", reordered),
        ];
        let rows = rows.iter().map(|(name, number)| format!("| {name} | {number} |\n"));
        rows.fold("| what | number |\n|---|---:|\n".to_owned(), |table, row| table + &row)
    }

    /// Goes on until the time is over.
    pub(crate) async fn play(&mut self, cluster: &mut Cluster) {
        for node in cluster.nodes() {
            self.note(cluster, node);
            cluster.join(node, ROOM).await;
            cluster.settle(node).await;
        }
        let end = cluster.now() + self.length;
        while cluster.now() < end {
            self.round(cluster).await;
            let (wrong, tally) = cluster.checkpoint().await;
            for words in &wrong {
                println!("WRONG in round {}: {words}", self.rounds);
            }
            self.total += tally;
            self.wrong.extend(wrong);
            println!("round {} at {:.0?}: {tally:?}", self.rounds, cluster.now());
        }
    }

    async fn round(&mut self, cluster: &mut Cluster) {
        self.rounds += 1;
        for node in cluster.nodes() {
            cluster.traffic(node, ROOM, EVERY).await;
        }
        let all: Vec<usize> = cluster.nodes().collect();
        self.rooms(cluster, &all, 2_000).await;
        self.crowd(cluster).await;
        match self.rounds % 5 {
            1 => self.kill(cluster).await,
            2 | 4 => self.split(cluster).await,
            3 => self.leave(cluster).await,
            _ => self.freeze(cluster).await,
        }
        cluster.heal().await;
        cluster.converged(MENDED).await;
        self.rooms(cluster, &all, 1_000).await;
    }

    /// Members join and leave rooms for so long, and messages go to rooms.
    async fn rooms(&mut self, cluster: &mut Cluster, nodes: &[usize], ms: u64) {
        let end = cluster.now() + Duration::from_millis(ms);
        while cluster.now() < end {
            let node = nodes[cluster.pick(0..nodes.len() as u64) as usize];
            let room = format!("room-{}", cluster.pick(0..ROOMS));
            match cluster.pick(0..3) {
                0 => cluster.join(node, &room).await,
                1 => cluster.leave(node, &room).await,
                _ => cluster.emit(node, &room, 3).await,
            }
            self.joins_and_leaves += 1;
            cluster.settle(node).await;
            cluster.sleep(PAUSE).await;
        }
    }

    /// One member joins many new rooms, and leaves them.
    async fn crowd(&mut self, cluster: &mut Cluster) {
        let node = cluster.pick(0..NODES as u64) as usize;
        let prefix = format!("crowd-{}", self.rounds);
        cluster.join_many(node, &prefix, CROWD).await;
        cluster.settle(node).await;
        cluster.sleep(PAUSE).await;
        for number in 0..CROWD {
            cluster.leave(node, &format!("{prefix}-{number}")).await;
        }
        self.joins_and_leaves += 2 * CROWD as u64;
    }

    async fn kill(&mut self, cluster: &mut Cluster) {
        let (node, others) = mortal(cluster);
        cluster.kill(node).await;
        self.forget(node);
        // Before anybody has noticed, or when it is dead for all.
        let ms = cluster.pick(0..9_000);
        self.rooms(cluster, &others, ms).await;
        cluster.restart(node).await;
        self.note(cluster, node);
        self.kills += 1;
    }

    async fn leave(&mut self, cluster: &mut Cluster) {
        let (node, others) = mortal(cluster);
        self.forget(node);
        cluster.retire(node).await;
        let ms = cluster.pick(0..3_000);
        self.rooms(cluster, &others, ms).await;
        cluster.restart(node).await;
        self.note(cluster, node);
        self.leaves += 1;
    }

    async fn split(&mut self, cluster: &mut Cluster) {
        let first = cluster.pick(0..NODES as u64) as usize;
        let size = cluster.pick(1..NODES as u64) as usize;
        let turned = |index: usize| (first + index) % NODES;
        let (one, other): (Vec<_>, Vec<_>) =
            ((0..size).map(turned).collect(), (size..NODES).map(turned).collect());
        cluster.partition(&one, &other).await;
        // Every fourth is longer than the resume window (15 s).
        let ms = if self.splits % 4 == 3 { 20_000 } else { cluster.pick(500..8_000) };
        let all: Vec<usize> = cluster.nodes().collect();
        self.rooms(cluster, &all, ms).await;
        self.splits += 1;
    }

    async fn freeze(&mut self, cluster: &mut Cluster) {
        let node = cluster.pick(0..NODES as u64) as usize;
        let others: Vec<usize> = cluster.nodes().filter(|other| *other != node).collect();
        cluster.freeze(node).await;
        let ms = cluster.pick(500..6_000);
        self.rooms(cluster, &others, ms).await;
        cluster.thaw(node).await;
        self.freezes += 1;
    }

    fn note(&self, cluster: &Cluster, node: usize) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = cluster.process(node) {
            running.insert(node, process);
        }
    }

    fn forget(&self, node: usize) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}

/// One of those that are restarted, and the others.
fn mortal(cluster: &mut Cluster) -> (usize, Vec<usize>) {
    let node = cluster.pick(STEADY as u64..NODES as u64) as usize;
    (node, cluster.nodes().filter(|other| *other != node).collect())
}
