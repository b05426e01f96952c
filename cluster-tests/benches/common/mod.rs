//! What the benches share: nodes side by side, statistics, and where the results go.

use std::path::PathBuf;
use std::time::Duration;

use roomcast::status::{LinkReport, Report};
use roomcast::{ClusterSecret, Config, Node};
use tokio::time::{Instant, sleep};

/// What a bench ends with when something is not as it must be.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long a bench waits for nodes to come together, or for messages to arrive, before it gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a bench on two worker threads; the calling thread only waits.
pub(crate) fn run<F: Future<Output = Outcome<()>> + Send + 'static>(bench: F) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { tokio::spawn(bench).await? })
}

/// The parts of the bench that were asked for: those whose name contains one of the arguments, or all.
pub(crate) struct Filter(Vec<String>);

impl Filter {
    /// From the arguments behind `--`. What cargo adds begins with a dash.
    pub(crate) fn from_args() -> Self {
        Self(std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect())
    }

    /// Whether this part runs.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|part| name.contains(part.as_str()))
    }
}

/// How often each part is measured: `ROOMCAST_BENCH_ROUNDS`, or `default`.
pub(crate) fn rounds(default: usize) -> usize {
    std::env::var("ROOMCAST_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

/// Starts a node on loopback.
pub(crate) async fn start(
    id: &str,
    secret: &ClusterSecret,
    seeds: &[&Node],
    config: Config,
) -> Outcome<Node> {
    let seeds = seeds.iter().map(|node| node.local_addr());
    let builder = Node::builder().cluster("bench").id(id).listen("127.0.0.1:0").seeds(seeds);
    Ok(builder.secret(secret.clone()).config(config).start().await?)
}

/// Looks every few milliseconds until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Outcome<()> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("waited too long: {what}").into());
        }
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Waits until `node` knows of `rooms` rooms of its one peer. A namespace with members counts as a room more.
pub(crate) async fn knows(node: &Node, rooms: u64) -> Outcome<()> {
    let known = |links: &[LinkReport]| matches!(links, [link] if link.state == "up" && link.rooms == rooms);
    until("a link in sync", || known(&Report::collect(node).links)).await
}

/// The value in the middle; NaN when there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value at this share of the sorted values; NaN when there is none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Writes `target/bench/<name>.json`.
pub(crate) fn save(name: &str, results: &serde_json::Value) -> Outcome<()> {
    let dir = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from)
        .join("bench");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(name).with_extension("json");
    std::fs::write(&path, format!("{results:#}\n"))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}
