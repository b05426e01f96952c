//! What the goals of `docs/faults.md` ask for, measured on simulated ground: times are those of the simulation, so that
//! they can be asserted whatever the machine has to do. Used by the tests, and by `just goals`.

use std::time::Duration;

use super::cluster::Cluster;
use super::history::{Entry, History, What};
use super::scenarios::{ROOM, mended, pause, sides, steady};

/// A killed node is suspected by everyone within this time.
pub const SUSPECTED: Duration = Duration::from_secs(3);
/// And evicted within this.
pub const EVICTED: Duration = Duration::from_secs(6);
/// The longest that a question waits in these measurements: far more than anything that is measured.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the others took to notice that a node was killed: the time of the slowest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noticed {
    /// Until it was suspect or dead.
    pub suspected: Duration,
    /// Until it was dead.
    pub evicted: Duration,
    /// Until a question that was asked at the moment of the kill ended, with the node named as missing.
    pub answered: Duration,
}

/// Kills a node of five that has been there for so long, and asks for the size of a room at once.
///
/// # Panics
/// When it is not noticed, or something else is wrong.
pub fn kill(seed: u64, age: Duration) -> Noticed {
    let (mut killed_at, mut victim, mut answered) = (Duration::ZERO, 0, Duration::ZERO);
    let history = Cluster::builder().nodes(5).seed(seed).replayed_by(replay(seed)).run(
        async |cluster: &mut Cluster| {
            steady(cluster).await;
            victim = cluster.pick(0..5) as usize;
            cluster.restart(victim).await;
            cluster.converged(Duration::from_secs(20)).await;
            cluster.sleep(age).await;
            pause(cluster, 0..1000).await;
            let id = cluster.id(victim).to_owned();
            killed_at = cluster.now();
            cluster.kill(victim).await;
            let missing = cluster.on((victim + 1) % 5, |node| async move {
                let ns = node.namespace(super::agent::NAMESPACE).expect("a short path");
                let size = ns.to(ROOM).timeout(PATIENCE).count().await.expect("it can be asked");
                size.missing.into_iter().map(|missing| missing.node.to_string()).collect::<Vec<_>>()
            });
            assert_eq!(missing.await, [id], "the killed node is named");
            answered = cluster.now() - killed_at;
            cluster.sleep(Duration::from_secs(20)).await;
        },
    );
    let slowest = |states: &[&str]| {
        let others = (0..5).filter(|node| *node != victim);
        let first = others.map(|node| heard_state(&history, node, victim, killed_at, states));
        first.max().unwrap_or_default().saturating_sub(killed_at)
    };
    Noticed { suspected: slowest(&["Suspect", "Dead"]), evicted: slowest(&["Dead"]), answered }
}

/// When a node said first that another one is in one of these states, after `from`.
fn heard_state(history: &History, node: usize, of: usize, from: Duration, states: &[&str]) -> Duration {
    let is_said = |what: &What| match what {
        What::Dead { peer } => *peer == format!("n{of}") && states.contains(&"Dead"),
        What::Event(words) => {
            words.starts_with(&format!("MemberState {{ id: n{of},"))
                && states.iter().any(|state| words.ends_with(&format!("state: {state} }}")))
        }
        _ => false,
    };
    let said = |entry: &&Entry| entry.node == node && entry.at >= from && is_said(&entry.what);
    let first = history.entries.iter().filter(said).map(|entry| entry.at).min();
    first.unwrap_or_else(|| panic!("node {node} never said that n{of} is {states:?}"))
}

/// How long the nodes took after the end of a split until they all listed each other, and from then on until interest was
/// equal everywhere.
///
/// # Panics
/// When it takes longer than the goals say, or something else is wrong.
pub fn split(seed: u64, length: Duration) -> (Duration, Duration) {
    let mut took = (Duration::ZERO, Duration::ZERO);
    Cluster::builder().nodes(5).seed(seed).replayed_by(replay(seed)).run(async |cluster: &mut Cluster| {
        steady(cluster).await;
        let (one, other) = sides(cluster);
        cluster.partition(one, other).await;
        for node in cluster.nodes() {
            cluster.traffic(node, ROOM, Duration::from_secs(1)).await;
        }
        pause(cluster, 0..1000).await;
        cluster.sleep(length).await;
        took = mended(cluster).await;
    });
    took
}

/// A node of five leaves in order under traffic; the checker demands that everything that it emitted before comes to all
/// who stay, and nothing is counted as lost on its way.
///
/// # Panics
/// When something is lost.
pub fn leave(seed: u64) {
    let mut gone = String::new();
    let history = Cluster::builder().nodes(5).seed(seed).replayed_by(replay(seed)).run(
        async |cluster: &mut Cluster| {
            steady(cluster).await;
            let node = cluster.pick(0..5) as usize;
            gone = cluster.id(node).to_owned();
            // More than fits one packet is on its way.
            cluster.emit(node, ROOM, 300).await;
            cluster.retire(node).await;
            pause(cluster, 1000..5000).await;
        },
    );
    let lost =
        |entry: &&Entry| matches!(&entry.what, What::Gap { peer, outgoing: false, .. } if *peer == gone);
    assert_eq!(history.entries.iter().filter(lost).count(), 0, "what it sent is lost");
}

fn replay(seed: u64) -> String {
    format!("cargo run -q --release -p cluster-tests --bin goals -- 1 {seed}")
}
