//! `cargo bench -p cluster-tests --bench isolation`: what a frozen peer costs the others. Node A emits steadily to B, in this
//! process, and to C, a process of its own; how long messages take from A to B, in turns while C runs and while it is stopped
//! (SIGSTOP) and its link still stands.

#[expect(dead_code, reason = "not every bench needs all of it")]
mod common;

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cluster_tests::harness::ground::{Answer, Ask, Ground, Plan, Settings};
use cluster_tests::harness::processes::{CLUSTER, Processes};
use common::{Outcome, PATIENCE, median, quantile, rounds, save, until};
use roomcast::status::Report;
use roomcast::{ClusterSecret, Namespace, Node};
use serde_json::json;
use tokio::time::Instant;

/// Messages of one turn, and the time between two.
const MESSAGES: usize = 4_000;
const PAUSE: Duration = Duration::from_micros(500);
/// Their size, in bytes.
const BYTES: usize = 256;
/// Where all nodes have members: that of C is the agent of the harness.
const NAMESPACE: &str = "/agent";
const ROOM: &str = "lobby";
const C: usize = 0;

/// Percentiles of one turn, in microseconds.
struct Turn {
    p50: f64,
    p99: f64,
}

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // On this thread: the ground of C blocks the thread that it is used on.
    runtime.block_on(bench())
}

async fn bench() -> Outcome<()> {
    let secret = ClusterSecret::generate()?;
    let a = start("a", &secret, &[]).await?;
    let b = start("b", &secret, &[&a]).await?;
    let mut ground = Processes::new(env!("CARGO_BIN_EXE_cluster-node")).secret(secret);
    let seeds = vec![a.local_addr().to_string()];
    ground.start(C, &Plan { id: "c".into(), seeds, settings: Settings::default() }).await;
    ground.ask(C, Ask::Join(ROOM.into())).await.ok_or("C does not answer")?;
    let (sender, arrivals) = channel();
    let member = b.namespace(NAMESPACE)?.connect(move |_| {
        let _ = sender.send(Instant::now());
    });
    member.join(ROOM)?;
    let all_well = |node: &Node| {
        let links = Report::collect(node).links;
        links.len() == 2 && links.iter().all(|link| link.state == "up" && link.queue_frames == 0)
    };
    until("three linked nodes", || all_well(&a) && all_well(&b)).await?;
    member.settled().await;

    let ns = a.namespace(NAMESPACE)?;
    turn(&ns, &arrivals)?;
    let (mut free, mut frozen) = (Vec::new(), Vec::new());
    for round in 1..=rounds(9) {
        until("C has caught up", || all_well(&a) && all_well(&b)).await?;
        free.push(turn(&ns, &arrivals)?);
        ground.freeze(C).await;
        frozen.push(turn(&ns, &arrivals)?);
        let waiting =
            Report::collect(&a).links.iter().map(|link| link.queue_frames).max().unwrap_or_default();
        ground.thaw(C).await;
        eprintln!("round {round}: {waiting} frames waited for C when it went on");
        if waiting < MESSAGES as u64 {
            return Err("C was not stopped".into());
        }
    }
    until("C has caught up", || all_well(&a) && all_well(&b)).await?;
    match ground.ask(C, Ask::Report).await {
        Some(Answer::Report(report)) => println!("C got {} messages in the end", report.counters.delivered),
        _ => return Err("C does not answer".into()),
    }

    println!("\n| A to B | C runs | C is frozen | ratio |\n|---|---:|---:|---:|");
    let mut results = serde_json::Map::new();
    for (name, pick) in [("p50", (|turn| turn.p50) as fn(&Turn) -> f64), ("p99", |turn| turn.p99)] {
        let of = |turns: &[Turn]| median(&turns.iter().map(pick).collect::<Vec<_>>());
        let (free, frozen) = (of(&free), of(&frozen));
        println!("| {name} | {free:.0} us | {frozen:.0} us | {:.2} |", frozen / free);
        results.insert(name.into(), json!({ "free_us": free, "frozen_us": frozen, "ratio": frozen / free }));
    }
    save("isolation", &results.into())
}

async fn start(id: &str, secret: &ClusterSecret, seeds: &[&Node]) -> Outcome<Node> {
    let seeds = seeds.iter().map(|node| node.local_addr());
    let builder = Node::builder().cluster(CLUSTER).id(id).listen("127.0.0.1:0").seeds(seeds);
    Ok(builder.secret(secret.clone()).start().await?)
}

/// Emits all messages of a turn, and takes the time of each until it has come to B.
fn turn(ns: &Namespace, arrivals: &Receiver<Instant>) -> Outcome<Turn> {
    let message = bytes::Bytes::from(vec![b'.'; BYTES]);
    let mut sent = Vec::with_capacity(MESSAGES);
    for _ in 0..MESSAGES {
        sent.push(Instant::now());
        ns.to(ROOM).emit(message.clone())?;
        std::thread::park_timeout(PAUSE);
    }
    // They come in order.
    let mut times = Vec::with_capacity(MESSAGES);
    for sent in sent {
        let came = arrivals.recv_timeout(PATIENCE)?;
        times.push(came.duration_since(sent).as_secs_f64() * 1e6);
    }
    Ok(Turn { p50: median(&times), p99: quantile(&times, 0.99) })
}
