//! `cargo bench -p cluster-tests --bench settled`: how long a join takes to get around: until the first message that another
//! node emits arrives, and until `settled()` resolves. Once with nothing else going on, and once among other joins.
//! Arguments behind `--` choose parts by name: `quiet`, `busy`.

#[expect(dead_code, reason = "not every bench needs all of it")]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Filter, Outcome, PATIENCE, median, quantile, rounds, save, start, until};
use roomcast::status::Report;
use roomcast::{ClusterSecret, Config, Namespace, Node};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

/// Joins that are measured, of each kind.
const JOINS: usize = 1_000;
/// Other joins a second on the same node.
const OTHER_JOINS: u64 = 1_000;
/// How often the other node emits.
const PAUSE: Duration = Duration::from_micros(50);

fn main() -> Outcome<()> {
    let filter = Filter::from_args();
    common::run(async move {
        let secret = ClusterSecret::generate()?;
        let a = start("a", &secret, &[], Config::default()).await?;
        let b = start("b", &secret, &[&a], Config::default()).await?;
        let c = start("c", &secret, &[&a, &b], Config::default()).await?;
        let nodes = [a, b, c];
        let linked = |node: &Node| {
            let links = Report::collect(node).links;
            links.len() == 2 && links.iter().all(|link| link.state == "up")
        };
        until("three linked nodes", || nodes.iter().all(linked)).await?;
        let mut results = Map::new();
        println!("\n| measure | p50 | p99 |\n|---|---:|---:|");
        if filter.wants("quiet") {
            results.insert("quiet".into(), measure(&nodes, "a join alone").await?);
        }
        if filter.wants("busy") {
            let stop = Arc::new(AtomicBool::new(false));
            let others = tokio::spawn(join_often(nodes[0].namespace("/bench")?, Arc::clone(&stop)));
            let busy = measure(&nodes, &format!("among {OTHER_JOINS} joins a second")).await;
            stop.store(true, Ordering::Release);
            others.await??;
            results.insert("busy".into(), busy?);
        }
        save("settled", &Value::Object(results))
    })
}

/// Joins and leaves other rooms of the node until told to stop.
async fn join_often(ns: Namespace, stop: Arc<AtomicBool>) -> Outcome<()> {
    let member = ns.connect(|_| ());
    for number in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        member.join(format!("other-{number}"))?;
        sleep(Duration::from_micros(1_000_000 / OTHER_JOINS)).await;
    }
    Ok(())
}

async fn measure(nodes: &[Node; 3], what: &str) -> Outcome<Value> {
    let [here, there] = [nodes[0].namespace("/bench")?, nodes[1].namespace("/bench")?];
    let (mut known, mut settled) = (Vec::new(), Vec::new());
    for join in 0..rounds(JOINS) {
        known.push(time_to_first(&here, &there, &format!("{what} {join}")).await?);
        // Not in step with the ticks of the node.
        sleep(Duration::from_micros(7_000 + (join as u64 * 7_919) % 10_000)).await;
        let member = here.connect(|_| ());
        let begun = Instant::now();
        member.join(format!("{what} {join} again"))?;
        member.settled().await;
        settled.push(begun.elapsed().as_secs_f64() * 1e6);
        // Before the pause: a leave takes its turn in a tick, too.
        drop(member);
        sleep(Duration::from_micros(7_000 + (join as u64 * 6_101) % 10_000)).await;
    }
    let mut entry = Map::new();
    for (name, times) in [("until the first message from another node", &known), ("until settled", &settled)]
    {
        let (p50, p99) = (median(times), quantile(times, 0.99));
        println!("| {what}: {name} | {p50:.0} us | {p99:.0} us |");
        entry.insert(name.into(), json!({ "p50_us": p50, "p99_us": p99 }));
    }
    Ok(Value::Object(entry))
}

/// Microseconds from a join to the arrival of the first message for it from another node, which emits every
/// [`PAUSE`] or so, on a thread of its own: the timer of tokio is too coarse for that.
async fn time_to_first(here: &Namespace, there: &Namespace, room: &str) -> Outcome<f64> {
    let arrived = Arc::new(AtomicU64::new(0));
    let emitter = tokio::task::spawn_blocking({
        let (there, room, arrived) = (there.clone(), room.to_owned(), Arc::clone(&arrived));
        move || -> Outcome<()> {
            let begun = Instant::now();
            while arrived.load(Ordering::Acquire) == 0 {
                if begun.elapsed() > PATIENCE {
                    return Err("no message arrived".into());
                }
                there.to(&room).emit("x")?;
                std::thread::park_timeout(PAUSE);
            }
            Ok(())
        }
    });
    sleep(Duration::from_millis(1)).await;
    let begun = Instant::now();
    let first = Arc::clone(&arrived);
    let member = here.connect(move |_| {
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let _ = first.compare_exchange(0, nanos, Ordering::AcqRel, Ordering::Relaxed);
    });
    member.join(room)?;
    emitter.await??;
    Ok(arrived.load(Ordering::Acquire) as f64 / 1e3)
}
