//! `cargo bench -p cluster-tests --bench large`: what large messages to one room cost the small ones to another room on the
//! same peer. A emits small messages to B, steadily, in turns alone and beside a stream of messages of 1 MiB.

#[expect(dead_code, reason = "not every bench needs all of it")]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use common::{Outcome, PATIENCE, median, quantile, rounds, save, start};
use roomcast::{ClusterSecret, Config, Namespace};
use serde_json::json;
use tokio::time::Instant;

/// Small messages of one turn, and the time between two.
const MESSAGES: usize = 2_000;
const PAUSE: Duration = Duration::from_millis(1);
const SMALL: usize = 256;
/// Large ones, and the time between two: 25 MiB a second.
const LARGE: usize = 1 << 20;
const LARGE_PAUSE: Duration = Duration::from_millis(40);

/// Percentiles of one turn, in microseconds, and the large messages beside it.
struct Turn {
    p50: f64,
    p99: f64,
    large: u64,
}

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // On this thread, which waits for messages without letting go of it.
    runtime.block_on(bench())
}

async fn bench() -> Outcome<()> {
    let secret = ClusterSecret::generate()?;
    let a = start("a", &secret, &[], Config::default()).await?;
    let b = start("b", &secret, &[&a], Config::default()).await?;
    let (sender, arrivals) = channel();
    let there = b.namespace("/bench")?;
    let small = there.connect(move |_| {
        let _ = sender.send(Instant::now());
    });
    small.join("small")?;
    let came = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&came);
    let large = there.connect(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    large.join("large")?;
    small.settled().await;
    large.settled().await;
    let ns = a.namespace("/bench")?;
    let begun = Instant::now();
    while ns.to("small").emit(Bytes::new())?.targeted == 0 {
        if begun.elapsed() > PATIENCE {
            return Err("the nodes did not link".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    arrivals.recv_timeout(PATIENCE)?;

    turn(&ns, &arrivals, &came, false)?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..rounds(7) {
        alone.push(turn(&ns, &arrivals, &came, false)?);
        beside.push(turn(&ns, &arrivals, &came, true)?);
    }
    if beside.iter().any(|turn| turn.large == 0) {
        return Err("no large message came".into());
    }
    println!("\n| small messages | alone | beside 1 MiB messages | ratio |\n|---|---:|---:|---:|");
    let mut results = serde_json::Map::new();
    for (name, pick) in [("p50", (|turn| turn.p50) as fn(&Turn) -> f64), ("p99", |turn| turn.p99)] {
        let of = |turns: &[Turn]| median(&turns.iter().map(pick).collect::<Vec<_>>());
        let (alone, beside) = (of(&alone), of(&beside));
        println!("| {name} | {alone:.0} us | {beside:.0} us | {:.2} |", beside / alone);
        results
            .insert(name.into(), json!({ "alone_us": alone, "beside_us": beside, "ratio": beside / alone }));
    }
    save("large", &results.into())
}

/// Emits all small messages of a turn, and takes the time of each until it has come.
fn turn(ns: &Namespace, arrivals: &Receiver<Instant>, came: &AtomicU64, beside: bool) -> Outcome<Turn> {
    let before = came.load(Ordering::Relaxed);
    let stop = AtomicBool::new(!beside);
    let sent = std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let message = Bytes::from(vec![b'.'; LARGE]);
            while !stop.load(Ordering::Relaxed) {
                ns.to("large").emit(message.clone()).map_err(|error| error.to_string())?;
                std::thread::park_timeout(LARGE_PAUSE);
            }
            Ok::<_, String>(())
        });
        let message = Bytes::from(vec![b'.'; SMALL]);
        let mut sent = Vec::with_capacity(MESSAGES);
        for _ in 0..MESSAGES {
            sent.push(Instant::now());
            ns.to("small").emit(message.clone())?;
            std::thread::park_timeout(PAUSE);
        }
        stop.store(true, Ordering::Relaxed);
        stream.thread().unpark();
        stream.join().map_err(|_| "emit large messages")??;
        Outcome::Ok(sent)
    })?;
    // They come in order.
    let mut times = Vec::with_capacity(MESSAGES);
    for sent in sent {
        times.push(arrivals.recv_timeout(PATIENCE)?.duration_since(sent).as_secs_f64() * 1e6);
    }
    let large = came.load(Ordering::Relaxed) - before;
    Ok(Turn { p50: median(&times), p99: quantile(&times, 0.99), large })
}
