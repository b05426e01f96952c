//! A cut under load, on real ground: five nodes, each a process, emit to a room that all are in; two of them are cut off
//! from the others for a while. Every message is counted where it comes.
//!
//! ```sh
//! cargo run --release -p cluster-tests --bin cut -- [--rate 10000] [--seconds 9] [--bytes 256]
//! ```
//!
//! `--rate` is that of all nodes together, in messages a second. Ends with 1 when a message was lost, came twice or out of order.

use std::process::ExitCode;
use std::time::Duration;

use cluster_tests::Cluster;
use cluster_tests::harness::counts::Counts;
use cluster_tests::harness::processes::{Processes, serve_if_told};

const NODES: usize = 5;
const ROOM: &str = "room";
/// How long the load lasts before the cut, and after all is well again.
const AROUND: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
struct Options {
    rate: u64,
    seconds: u64,
    bytes: usize,
}

fn main() -> ExitCode {
    if let Some(code) = serve_if_told() {
        return code;
    }
    let Some(options) = options(std::env::args().skip(1)) else {
        eprintln!("cut [--rate 10000] [--seconds 9] [--bytes 256]");
        return ExitCode::from(if std::env::args().any(|word| word == "--help") { 0 } else { 2 });
    };
    let mut good = false;
    let cluster = Cluster::builder().nodes(NODES).on(Processes::of_this_program()).converges_within(PATIENCE);
    cluster.run(async |cluster: &mut Cluster| good = cut(cluster, options).await);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn options(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options { rate: 10_000, seconds: 9, bytes: 256 };
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--rate" => options.rate = value.parse().ok()?,
            "--seconds" => options.seconds = value.parse().ok()?,
            "--bytes" => options.bytes = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(options)
}

async fn cut(cluster: &mut Cluster, options: Options) -> bool {
    for node in cluster.nodes() {
        cluster.join(node, ROOM).await;
        cluster.count_only(node).await;
    }
    cluster.converged(PATIENCE).await;
    let begin = cluster.now();
    for node in cluster.nodes() {
        cluster.load(node, ROOM, options.rate / NODES as u64, options.bytes).await;
    }
    cluster.sleep(AROUND).await;
    cluster.partition([0, 1], [2, 3, 4]).await;
    cluster.sleep(Duration::from_secs(options.seconds)).await;
    let before = counts(cluster).await;
    cluster.heal().await;
    let healed = cluster.now();
    cluster.converged(PATIENCE).await;
    let took = cluster.now() - healed;
    cluster.sleep(AROUND).await;
    cluster.quiet().await;
    let loaded = cluster.now() - begin;
    // What is lost never comes: that is said below.
    let end = cluster.now() + PATIENCE;
    let mut all = counts(cluster).await;
    while lost(&all) > 0 && cluster.now() < end {
        cluster.sleep(Duration::from_millis(200)).await;
        all = counts(cluster).await;
    }
    let emitted: u64 = all.iter().map(|counts| counts.emitted).sum();
    let sum = |of: fn(&Counts) -> u64| all.iter().map(of).sum::<u64>();
    let behind = sum(|counts| counts.heard.iter().map(|heard| heard.behind).sum());
    let rate = emitted as f64 / loaded.as_secs_f64();
    println!("| what | number |\n|---|---:|");
    println!("| messages a second, all nodes together | {rate:.0} |");
    println!("| bytes of a message | {} |", options.bytes);
    println!("| length of the cut between two and three nodes | {} s |", options.seconds);
    println!("| owed to other nodes when it ended | {} |", lost(&before));
    println!("| one cluster again after | {:.2} s |", took.as_secs_f64());
    println!("| messages sent | {emitted} |");
    println!("| deliveries due | {} |", emitted * NODES as u64);
    println!("| lost | {} |", lost(&all));
    println!("| duplicated or out of order | {behind} |");
    println!(
        "| dropped by receipts, and frames in gaps | {} |",
        sum(|counts| counts.dropped + counts.gap_frames)
    );
    lost(&all) + behind == 0
}

async fn counts(cluster: &mut Cluster) -> Vec<Counts> {
    let mut all = Vec::new();
    for node in cluster.nodes() {
        all.push(cluster.counts(node).await.expect("it runs"));
    }
    all
}

/// Messages that have not come to all nodes, once for each.
fn lost(all: &[Counts]) -> u64 {
    let emitted: u64 = all.iter().map(|counts| counts.emitted).sum();
    let came = all.iter().flat_map(|counts| &counts.heard).map(|heard| heard.came).sum();
    (emitted * all.len() as u64).saturating_sub(came)
}
