//! What a cluster has to survive, by name: used by the tests, and by `just partition SCENARIO` and `just sim`.
//!
//! Each scenario begins with all members in one room and every node emitting to it, and ends wherever it likes: the harness
//! heals what is left, waits until the nodes are one cluster, and checks the history. Times are picked by the seed, and so is
//! which nodes speak an older version of the protocol. Those marked as for any ground can run on real ground, too; in those
//! marked as lossless nothing may be lost, not even with a word.

mod network;
mod nodes;

use std::pin::Pin;
use std::time::Duration;

use super::builder::ClusterBuilder;
use super::cluster::Cluster;
use super::ground::Settings;
use super::history::History;

/// A scenario at work.
pub type Play<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Something that a cluster has to survive.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// How many nodes it is made for.
    pub nodes: usize,
    /// The settings it is made for.
    pub settings: fn() -> Settings,
    /// Whether it can run on real ground: it needs nothing that only a simulation can do, and not too long.
    pub any_ground: bool,
    /// Whether nothing may be lost, not even with a word: it is shorter than the resume window, and nobody restarts.
    pub lossless: bool,
    /// Plays it on a running cluster.
    pub play: for<'a> fn(&'a mut Cluster) -> Play<'a>,
}

/// The room of the steady traffic.
pub const ROOM: &str = "lobby";

/// How long it may take from the healing of the network until all nodes list each other.
const COMPLETE: Duration = Duration::from_secs(3);
/// How long from then on until all hold the same interest.
const EQUAL: Duration = Duration::from_secs(1);

impl Scenario {
    /// Plays it on simulated ground and checks what happened.
    ///
    /// # Panics
    /// When something is wrong, with the story and the command that repeats it.
    pub fn simulate(&self, seed: u64) -> History {
        let play = self.play;
        self.builder(seed).run(async |cluster: &mut Cluster| play(cluster).await)
    }

    /// A builder for its cluster, on simulated ground unless another is chosen.
    pub fn builder(&self, seed: u64) -> ClusterBuilder {
        Cluster::builder()
            .nodes(self.nodes)
            .seed(seed)
            .settings((self.settings)())
            .old(|seed, node| (seed + node as u64).is_multiple_of(4))
            .lossless(self.lossless)
            .replayed_by(format!("just partition {} SEED={seed}", self.name))
    }
}

/// The scenario of a name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// Makes a line of the table.
macro_rules! scenario {
    ($play:path, $nodes:literal, $settings:path, $ground:ident, $about:literal) => {
        Scenario {
            name: name_of(stringify!($play)),
            about: $about,
            nodes: $nodes,
            settings: $settings,
            any_ground: is_any_ground(stringify!($ground)),
            lossless: is_lossless(stringify!($ground)),
            play: |cluster| Box::pin($play(cluster)),
        }
    };
}

/// All scenarios.
pub static ALL: &[Scenario] = &[
    scenario!(network::split, 5, usual, any_lossless, "two sides do not hear each other for some seconds"),
    scenario!(network::blip, 5, usual, any_lossless, "two sides do not hear each other for less than 9 s"),
    scenario!(network::one_way_split, 5, usual, any, "one side hears the other and is not heard"),
    scenario!(network::bridge, 3, usual, any, "two nodes hear a third one, but not each other"),
    scenario!(network::flapping, 5, usual, simulated_lossless, "a split comes and goes every second"),
    scenario!(
        network::long_split,
        5,
        short,
        any,
        "a split outlasts the resume window and all memory of the dead"
    ),
    scenario!(network::split_of_minutes, 5, usual, simulated, "the same for minutes, with the defaults"),
    scenario!(network::half_open, 3, usual, any_lossless, "one direction dies while data flows"),
    scenario!(network::loss, 5, usual, any_lossless, "a third of all packets is lost"),
    scenario!(network::disorder, 5, usual, any_lossless, "packets come late, twice and out of order"),
    scenario!(network::join_storm, 5, usual, any, "rooms are joined on both sides of a split, and left"),
    scenario!(
        network::late_joins,
        5,
        usual,
        any_lossless,
        "rooms are joined on slow ways, and messages follow at once"
    ),
    scenario!(nodes::frozen, 5, usual, any_lossless, "a process stands still and goes on"),
    scenario!(nodes::kill_and_restart, 5, usual, any, "a node is killed and comes back under its name"),
    scenario!(nodes::gone_for_good, 4, usual, simulated, "a node is killed and never comes back"),
    scenario!(nodes::restart_in_split, 5, usual, any, "a node restarts while the others cannot see it"),
    scenario!(nodes::rolling_restart, 5, usual, any, "all nodes restart one after the other, in order"),
    scenario!(
        nodes::rolling_kill,
        5,
        usual,
        simulated,
        "all nodes are killed and restarted one after the other"
    ),
    scenario!(nodes::all_at_once, 5, usual, any, "all nodes are killed and come back"),
    scenario!(
        nodes::new_addresses,
        5,
        short,
        simulated,
        "every node of a side has another address after a split"
    ),
    scenario!(nodes::clocks_ahead, 5, usual, simulated, "clocks jump ahead"),
    scenario!(nodes::clock_back, 3, forgetful, simulated, "a node restarts with its wall clock set back"),
    scenario!(nodes::hundred_restarts, 3, short, simulated, "one node restarts a hundred times"),
    scenario!(nodes::thousand_restarts, 3, short, simulated, "one node restarts a thousand times"),
];

fn usual() -> Settings {
    Settings::default()
}

/// Everything is forgotten soon, so that a long split is a short test.
fn short() -> Settings {
    Settings {
        resume_window_ms: Some(2_000),
        dead_linger_ms: Some(3_000),
        dead_node_grace_ms: Some(10_000),
        ..Settings::default()
    }
}

/// Only dead nodes are forgotten soon.
fn forgetful() -> Settings {
    Settings { dead_node_grace_ms: Some(20_000), ..Settings::default() }
}

/// Whether the word is `any` or `any_lossless`, not `simulated` or `simulated_lossless`.
const fn is_any_ground(word: &str) -> bool {
    word.as_bytes()[0] == b'a'
}

/// Whether the word ends with `lossless`: those are the longer ones.
const fn is_lossless(word: &str) -> bool {
    word.len() > "simulated".len()
}

/// The name of a function without its module.
const fn name_of(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut at = bytes.len();
    while at > 0 && bytes[at - 1] != b':' && bytes[at - 1] != b' ' {
        at -= 1;
    }
    path.split_at(at).1
}

/// All members join the room, and every node emits to it.
pub(super) async fn steady(cluster: &mut Cluster) {
    for node in cluster.nodes() {
        cluster.join(node, ROOM).await;
        cluster.settle(node).await;
    }
    cluster.sleep(Duration::from_millis(500)).await;
    for node in cluster.nodes() {
        cluster.traffic(node, ROOM, Duration::from_millis(100)).await;
    }
    pause(cluster, 200..1000).await;
}

/// Heals the network. Members are complete within 3 s, and interest is equal after 1 s more; on real ground, whose
/// machine may have much else to do, it may take longer. A link that only one side has given up may stand for the other when
/// members seem complete: such a cluster has the rest of the 3 s, too. Returns how long the two took.
pub(super) async fn mended(cluster: &mut Cluster) -> (Duration, Duration) {
    cluster.heal().await;
    let far = Duration::from_secs(40);
    let (complete, equal) = if cluster.is_simulated() { (COMPLETE, EQUAL) } else { (far, far) };
    let members = cluster.complete(complete).await;
    let interest = cluster.converged(complete.saturating_sub(members) + equal).await;
    pause(cluster, 100..2000).await;
    (members, interest)
}

/// Lets so many milliseconds pass, picked by the seed.
pub(super) async fn pause(cluster: &mut Cluster, ms: std::ops::Range<u64>) {
    let ms = cluster.pick(ms);
    cluster.sleep(Duration::from_millis(ms)).await;
}

/// One of the nodes, picked by the seed.
fn one(cluster: &mut Cluster) -> usize {
    let nodes = cluster.len() as u64;
    cluster.pick(0..nodes) as usize
}

/// The nodes in two sides, picked by the seed; none is empty.
pub(super) fn sides(cluster: &mut Cluster) -> (Vec<usize>, Vec<usize>) {
    let first = one(cluster);
    let size = cluster.pick(1..cluster.len() as u64) as usize;
    let nodes = cluster.len();
    let turned = |index: usize| (first + index) % nodes;
    ((0..size).map(turned).collect(), (size..nodes).map(turned).collect())
}
