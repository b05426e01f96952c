//! `cargo bench -p cluster-tests --bench registry`: what a million rooms cost: memory, snapshots, the bytes of a join,
//! and lookups while others join. Arguments behind `--` choose parts by name: `memory`, `snapshot`, `join`, `lookup`.

mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Filter, Outcome, PATIENCE, knows, median, quantile, rounds, save, start, until};
use roomcast::core::interest::{Interest, InterestChange, InterestConfig, InterestDelta, RoomMode};
use roomcast::core::routes::{PeerMask, Routes, RoutesConfig};
use roomcast::ids::{Namespace, PeerSlot, RoomKey};
use roomcast::status::Report;
use roomcast::{ClusterSecret, Config, Event, Node};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

/// Rooms of the cluster, and the peers that they are spread over.
const ROOMS: usize = 1_000_000;
const PEERS: u16 = 10;
/// Rooms of one chunk of a snapshot, as on a link.
const CHUNK: usize = 8_192;
/// Lookups that are timed one by one.
const TIMED: usize = 500_000;

fn main() -> Outcome<()> {
    // First, and alone in the process: nothing else has grown the heap yet.
    let filter = Filter::from_args();
    let mut results = Map::new();
    println!("\n| measure | value | goal |\n|---|---:|---|");
    if filter.wants("memory") {
        results.insert("memory".into(), memory()?);
    }
    common::run(async move {
        if filter.wants("snapshot") {
            results.insert("snapshot_apply".into(), snapshot_apply()?);
            results.insert("snapshot_link".into(), snapshot_link().await?);
        }
        if filter.wants("join") {
            results.insert("join".into(), join().await?);
        }
        if filter.wants("lookup") {
            results.insert("lookup".into(), lookup()?);
        }
        save("registry", &Value::Object(results))
    })
}

fn line(measure: &str, value: impl std::fmt::Display, goal: &str) {
    println!("| {measure} | {value} | {goal} |");
}

fn namespace() -> Outcome<Namespace> {
    Ok(Namespace::new("/bench")?)
}

/// The interest of a node with rooms `from..to`.
fn interest(ns: &Namespace, from: usize, to: usize) -> Interest {
    let mut interest = Interest::new(InterestConfig::default());
    interest.attach(ns, RoomMode::Exact);
    (from..to).for_each(|room| interest.adjust(ns, ns.room(&room.to_string()), 1));
    interest.flush(0);
    interest
}

/// Takes a whole snapshot of one peer over.
fn take(routes: &Routes, slot: PeerSlot, version: u64, chunks: Vec<Vec<InterestChange>>) -> Outcome<()> {
    routes.snapshot_begin(slot, version)?;
    for chunk in chunks {
        routes.snapshot_chunk(slot, chunk)?;
    }
    Ok(routes.snapshot_end(slot)?)
}

/// Routes to rooms that are spread over the peers, each room at `copies` of them.
fn routes(ns: &Namespace, copies: usize) -> Outcome<Routes> {
    let routes = Routes::new(RoutesConfig::default());
    let share = ROOMS / usize::from(PEERS);
    for slot in 0..PEERS {
        routes.add_peer(PeerSlot(slot));
        for copy in 0..copies {
            let from = (usize::from(slot) + copy) % usize::from(PEERS) * share;
            // Part by part, so that the sender's side takes little memory and goes before the next peer's.
            if copy == 0 {
                let part = interest(ns, from, from + share);
                take(&routes, PeerSlot(slot), 1, part.snapshot(CHUNK).collect())?;
            } else {
                let added = (from..from + share).map(|room| ns.room(&room.to_string())).collect();
                let changes = vec![change(ns, added, Vec::new())];
                routes.apply_delta(PeerSlot(slot), &InterestDelta { version: 1 + copy as u64, changes })?;
            }
        }
    }
    Ok(routes)
}

fn change(ns: &Namespace, added: Vec<RoomKey>, removed: Vec<RoomKey>) -> InterestChange {
    InterestChange { ns: ns.clone(), mode: Some(RoomMode::Exact), added, removed }
}

/// Memory of the process, in bytes, as the system counts it.
fn resident() -> Outcome<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in the status")?;
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Bytes per (room, peer).
fn memory() -> Outcome<Value> {
    let ns = namespace()?;
    let mut results = Map::new();
    for (copies, name) in [(1, "each room at 1 peer"), (usize::from(PEERS), "each room at all 10 peers")] {
        let before = resident()?;
        let routes = routes(&ns, copies)?;
        let (rows, grown) = (routes.rows() as f64, resident()?.saturating_sub(before) as f64);
        let (table, process) = (routes.bytes() as f64 / rows, grown / rows);
        line(&format!("bytes a row, {name}: the table"), format!("{table:.1}"), "at most 64");
        if copies == 1 {
            line(
                &format!("bytes a row, {name}: growth of the process"),
                format!("{process:.1}"),
                "at most 64",
            );
        }
        // The second table goes where the first was, so the process says little about it.
        let process = (copies == 1).then_some(process);
        let entry = json!({ "rows": rows, "table_bytes_per_row": table, "process_bytes_per_row": process });
        results.insert(format!("copies_{copies}"), entry);
        black_box(&routes);
    }
    Ok(Value::Object(results))
}

/// A snapshot of a million rooms of one peer: from the interest of one side to the routes of the other.
fn snapshot_apply() -> Outcome<Value> {
    let ns = namespace()?;
    let whole = interest(&ns, 0, ROOMS);
    let (mut list, mut apply) = (Vec::new(), Vec::new());
    for _ in 0..rounds(5) {
        let routes = Routes::new(RoutesConfig::default());
        routes.add_peer(PeerSlot(0));
        let begun = Instant::now();
        let chunks: Vec<_> = whole.snapshot(CHUNK).collect();
        list.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        take(&routes, PeerSlot(0), whole.version(), chunks)?;
        apply.push(begun.elapsed().as_secs_f64() * 1e3);
        if routes.rooms(PeerSlot(0)) != ROOMS || routes.digest(PeerSlot(0)) != whole.digest() {
            return Err("the routes are not what the snapshot said".into());
        }
    }
    let goal = "under 2000 in all";
    line("snapshot of 1 M rooms: list, ms", format!("{:.0}", median(&list)), goal);
    line("snapshot of 1 M rooms: apply, ms", format!("{:.0}", median(&apply)), goal);
    Ok(json!({ "list_ms": median(&list), "apply_ms": median(&apply) }))
}

/// The same over a real link: from "link up" to "synced" at a node that has just started.
async fn snapshot_link() -> Outcome<Value> {
    let secret = ClusterSecret::generate()?;
    let a = start("a", &secret, &[], Config::default()).await?;
    let rooms = a.namespace("/bench")?;
    let member = rooms.connect(|_| {});
    let begun = Instant::now();
    for room in 0..ROOMS {
        member.join(room.to_string())?;
    }
    let joined = begun.elapsed().as_secs_f64() * 1e3;
    let (mut times, mut bytes) = (Vec::new(), 0);
    for round in 0..rounds(5) {
        // A snapshot is kept until something changes: what counts is one that has to be made.
        member.join(format!("another {round}"))?;
        let (b, time) = synced_after(&secret, &a, &format!("b{round}")).await?;
        times.push(time.as_secs_f64() * 1e3);
        let held = Report::collect(&b).links.iter().map(|link| link.rooms).sum::<u64>();
        if held != (ROOMS + 1 + round + 1) as u64 {
            return Err(format!("{held} rooms are held after round {round}").into());
        }
        let id = b.id().to_string();
        let sent = Report::collect(&a).links.into_iter().filter(|link| link.peer == id);
        bytes = sent.map(|link| link.interest_bytes_sent).sum();
        b.drain().await;
        b.stop().await;
    }
    let per_room = bytes as f64 / ROOMS as f64;
    line(
        "snapshot of 1 M rooms over a link: link up to synced, ms",
        format!("{:.0}", median(&times)),
        "under 2000",
    );
    line("snapshot of 1 M rooms over a link: bytes a room", format!("{per_room:.2}"), "");
    line("1 M joins of one member, ms", format!("{joined:.0}"), "");
    drop(member);
    a.stop().await;
    Ok(
        json!({ "link_up_to_synced_ms": median(&times), "rounds_ms": times, "bytes_per_room": per_room, "join_ms": joined }),
    )
}

/// Starts a node beside `a` and says how long it took from link to synced.
async fn synced_after(secret: &ClusterSecret, a: &Node, id: &str) -> Outcome<(Node, Duration)> {
    let b = start(id, secret, &[a], Config::default()).await?;
    let mut events = b.events();
    let mut up = Instant::now();
    loop {
        match timeout(PATIENCE, events.recv()).await?.ok_or("the node has stopped")? {
            Event::LinkUp { peer, .. } if peer == *a.id() => up = Instant::now(),
            Event::LinkSynced { peer } if peer == *a.id() => return Ok((b, up.elapsed())),
            _ => {}
        }
    }
}

/// Bytes of interest on the wire per join: joins that come together, and one alone.
async fn join() -> Outcome<Value> {
    let secret = ClusterSecret::generate()?;
    let a = start("a", &secret, &[], Config::default()).await?;
    let b = start("b", &secret, &[&a], Config::default()).await?;
    let rooms = a.namespace("/bench")?;
    let member = rooms.connect(|_| {});
    knows(&b, 1).await?;
    let sent = || Report::collect(&a).links.iter().map(|link| link.interest_bytes_sent).sum::<u64>();
    let held = || Report::collect(&b).links.iter().map(|link| link.rooms).sum::<u64>();
    let mut results = Map::new();
    for together in [1u64, 10, 100, 1000, 10_000] {
        let mut per_join = Vec::new();
        for round in 0..rounds(5) {
            let (before, rooms_before) = (sent(), held());
            for room in 0..together {
                member.join(format!("{together} {round} {room}"))?;
            }
            until("the joins are known elsewhere", || held() == rooms_before + together).await?;
            per_join.push((sent() - before) as f64 / together as f64);
        }
        let bytes = median(&per_join);
        line(
            &format!("bytes on the wire per join, {together} at a time"),
            format!("{bytes:.1}"),
            "at most 16",
        );
        results.insert(format!("bytes_per_join_{together}"), json!(bytes));
    }
    drop(member);
    a.stop().await;
    b.stop().await;
    Ok(Value::Object(results))
}

/// Lookups on a thread of their own, idle and while the writer applies joins and leaves as fast as it can.
fn lookup() -> Outcome<Value> {
    let ns = namespace()?;
    let routes = Arc::new(routes(&ns, 1)?);
    let mut results = Map::new();
    for (name, batch) in [("idle", 0), ("one join a delta", 1), ("100 joins a delta", 100)] {
        let running = AtomicBool::new(true);
        let (measured, deltas) = std::thread::scope(|scope| {
            let writer =
                scope.spawn(|| if batch > 0 { churn(&routes, &ns, batch, &running) } else { Ok(0.0) });
            let measured = look(&routes, &ns);
            running.store(false, Ordering::Relaxed);
            (measured, writer.join())
        });
        let (per_second, p50, p999, slowest) = measured;
        let deltas = deltas.map_err(|_| "the writer panicked")??;
        let text = format!("{:.1} M/s, p50 {p50:.0} ns, p99.9 {p999:.0} ns", per_second / 1e6);
        line(&format!("lookups, {name}"), text, "never wait for writers");
        if batch > 0 {
            line(&format!("joins and leaves a second meanwhile, {name}"), format!("{deltas:.0}"), "");
        }
        results.insert(
            name.replace(' ', "_"),
            json!({ "per_second": per_second, "p50_ns": p50, "p999_ns": p999, "slowest_ns": slowest, "changes_per_second": deltas }),
        );
    }
    Ok(Value::Object(results))
}

/// Lookups per second, and the time of one: median, 99.9th percentile, slowest, in nanoseconds.
fn look(routes: &Routes, ns: &Namespace) -> (f64, f64, f64, f64) {
    let keys: Vec<RoomKey> = (0..ROOMS).step_by(7).map(|room| ns.room(&room.to_string())).collect();
    let mut mask = PeerMask::default();
    let begun = Instant::now();
    for key in keys.iter().cycle().take(10 * TIMED) {
        routes.lookup(ns, &[*key], &mut mask);
        black_box(&mask);
    }
    let per_second = (10 * TIMED) as f64 / begun.elapsed().as_secs_f64();
    let times: Vec<f64> = keys
        .iter()
        .cycle()
        .take(TIMED)
        .map(|key| {
            let begun = Instant::now();
            routes.lookup(ns, &[*key], &mut mask);
            black_box(&mask);
            begun.elapsed().as_nanos() as f64
        })
        .collect();
    (per_second, median(&times), quantile(&times, 0.999), quantile(&times, 1.0))
}

/// Joins and leaves per second: peer 0 joins `batch` rooms and leaves them again, until it is told to stop.
fn churn(routes: &Routes, ns: &Namespace, batch: usize, running: &AtomicBool) -> Outcome<f64> {
    let slot = PeerSlot(0);
    let begun = Instant::now();
    let (mut version, mut changes, mut next) =
        (routes.version(slot).ok_or("the peer is not known")?, 0, ROOMS);
    while running.load(Ordering::Relaxed) {
        let keys: Vec<RoomKey> = (next..next + batch).map(|room| ns.room(&room.to_string())).collect();
        next += batch;
        for part in [change(ns, keys.clone(), Vec::new()), change(ns, Vec::new(), keys)] {
            version += 1;
            routes.apply_delta(slot, &InterestDelta { version, changes: vec![part] })?;
            changes += batch;
        }
    }
    Ok(changes as f64 / begun.elapsed().as_secs_f64())
}
