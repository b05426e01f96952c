//! `cargo bench -p cluster-tests --bench sizing`: what to plan for: the memory, packets and CPU of idle links, and the memory of
//! rooms and clients of the plain API. Arguments behind `--` choose parts by name: `clients`, `links`, `rooms`.
//!
//! Packets are those of the loopback device: run it in a network namespace of its own (`unshare -n`, then `ip link set lo
//! up`), or what others send there counts, too.

#[expect(dead_code, reason = "not every bench needs all of it")]
mod common;

use std::time::Duration;

use cluster_tests::harness::ground::{Answer, Ask, Ground, Plan, Settings};
use cluster_tests::harness::processes::Processes;
use common::{Filter, Outcome, PATIENCE, save, start};
use roomcast::status::Report;
use roomcast::{ClusterSecret, Config, Member};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

/// Nodes of the clusters that are measured.
const CLUSTERS: [usize; 4] = [1, 3, 10, 30];
/// From when all links are up until they count as idle.
const SETTLE: Duration = Duration::from_secs(10);
/// How long idle links are looked at.
const WINDOW: Duration = Duration::from_secs(20);
/// Rooms that one member joins.
const ROOMS: usize = 500_000;
/// Clients, and how many of them are in one room.
const CLIENTS: usize = 100_000;
const TOGETHER: usize = 100;

fn main() -> Outcome<()> {
    // What takes its measure in this process comes first: nothing else has grown the heap yet.
    let filter = Filter::from_args();
    let mut results = Map::new();
    println!("\n| measure | value |\n|---|---:|");
    // On this thread: the ground of the processes blocks the thread that it is used on.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if filter.wants("clients") {
            results.insert("clients".into(), clients().await?);
        }
        if filter.wants("rooms") {
            results.insert("rooms".into(), rooms().await?);
        }
        if filter.wants("links") {
            println!("{LINKS}");
            let (mut clusters, mut alone) = (Vec::new(), 0);
            for nodes in CLUSTERS {
                let idle = links(nodes).await?;
                alone = if nodes == 1 { idle.anonymous } else { alone };
                clusters.push(row(&idle, alone));
            }
            results.insert("links".into(), Value::Array(clusters));
        }
        save("sizing", &Value::Object(results))
    })
}

fn line(measure: &str, value: impl std::fmt::Display) {
    println!("| {measure} | {value} |");
}

/// Members that are connected, then each of them in a room.
async fn clients() -> Outcome<Value> {
    let node = start("clients", &ClusterSecret::generate()?, &[], Config::default()).await?;
    let ns = node.namespace("/bench")?;
    let before = anonymous("self")?;
    let members: Vec<Member> = (0..CLIENTS).map(|_| ns.connect(|_| {})).collect();
    let connected = anonymous("self")?;
    for (number, member) in members.iter().enumerate() {
        member.join(format!("room-{}", number / TOGETHER))?;
    }
    ns.settled().await;
    let joined = anonymous("self")?;
    let each = |from: u64, to: u64| to.saturating_sub(from) as f64 / CLIENTS as f64;
    let (client, membership) = (each(before, connected), each(connected, joined));
    line(&format!("bytes a client of the plain API, {CLIENTS} of them"), format!("{client:.0}"));
    line(&format!("bytes more when it is in a room, {TOGETHER} in each"), format!("{membership:.0}"));
    drop(members);
    node.stop().await;
    Ok(json!({ "bytes_per_client": client, "bytes_per_membership": membership }))
}

/// Rooms of this node: one member in all of them.
async fn rooms() -> Outcome<Value> {
    let node = start("rooms", &ClusterSecret::generate()?, &[], Config::default()).await?;
    let ns = node.namespace("/bench")?;
    let member = ns.connect(|_| {});
    let before = anonymous("self")?;
    for room in 0..ROOMS {
        member.join(format!("room-{room}"))?;
    }
    ns.settled().await;
    let room = anonymous("self")?.saturating_sub(before) as f64 / ROOMS as f64;
    line(&format!("bytes a room of this node, {ROOMS} of one member"), format!("{room:.0}"));
    drop(member);
    node.stop().await;
    Ok(json!({ "bytes_per_room": room }))
}

/// What one node of an idle cluster takes.
struct Idle {
    nodes: usize,
    /// Bytes of memory that no file backs.
    anonymous: u64,
    /// Open file descriptors.
    files: usize,
    /// Share of a core.
    cpu: f64,
    /// Bytes a second of the data streams of one link, both directions.
    stream: f64,
    /// Bytes and packets a second of one link, both directions, with all headers.
    wire: f64,
    packets: f64,
    /// Until all links were up.
    formed: Duration,
}

/// Starts a process for each node, and looks at the first one when all are linked and nothing is to be said.
async fn links(nodes: usize) -> Outcome<Idle> {
    let mut ground = Processes::new(env!("CARGO_BIN_EXE_cluster-node"));
    let begun = Instant::now();
    for node in 0..nodes {
        let seeds = vec![ground.seed(0)];
        ground.start(node, &Plan { id: format!("n{node}"), seeds, settings: Settings::default() }).await;
    }
    for node in 0..nodes {
        let limit = Instant::now() + PATIENCE;
        while report(&mut ground, node).await?.links.iter().filter(|link| link.state == "up").count() + 1
            < nodes
        {
            if Instant::now() > limit {
                return Err(format!("{nodes} nodes did not link").into());
            }
            ground.sleep(Duration::from_millis(50)).await;
        }
    }
    let formed = begun.elapsed();
    ground.sleep(SETTLE).await;
    let process = ground.process(0).ok_or("the node has no process")?.to_string();
    let before =
        (stream_bytes(&report(&mut ground, 0).await?), loopback()?, ticks(&process)?, Instant::now());
    ground.sleep(WINDOW).await;
    let seconds = before.3.elapsed().as_secs_f64();
    let after = (stream_bytes(&report(&mut ground, 0).await?), loopback()?, ticks(&process)?);
    // Of one node, and of all of them.
    let (own, all) = ((nodes - 1).max(1) as f64, (nodes * (nodes - 1) / 2).max(1) as f64);
    let idle = Idle {
        nodes,
        anonymous: anonymous(&process)?,
        files: std::fs::read_dir(format!("/proc/{process}/fd"))?.count(),
        cpu: (after.2 - before.2) as f64 / TICKS_A_SECOND / seconds,
        stream: (after.0 - before.0) as f64 / seconds / own,
        wire: (after.1.0 - before.1.0) as f64 / seconds / all,
        packets: (after.1.1 - before.1.1) as f64 / seconds / all,
        formed,
    };
    for node in 0..nodes {
        ground.kill(node).await;
    }
    Ok(idle)
}

/// The head of the table of idle clusters.
const LINKS: &str = "\n| nodes | formed after | RssAnon of a node | more for each link | files | CPU of a node | packets a second \
                     and link | bytes a second and link | of these in the data stream |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

/// Prints a row of that table. `alone` is the memory of a node without others.
fn row(idle: &Idle, alone: u64) -> Value {
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    let each = kib(idle.anonymous.saturating_sub(alone)) / (idle.nodes - 1).max(1) as f64;
    println!(
        "| {} | {:.1} s | {:.0} KiB | {each:.0} KiB | {} | {:.2} % | {:.1} | {:.0} | {:.0} |",
        idle.nodes,
        idle.formed.as_secs_f64(),
        kib(idle.anonymous),
        idle.files,
        100.0 * idle.cpu,
        idle.packets,
        idle.wire,
        idle.stream,
    );
    json!({
        "nodes": idle.nodes,
        "formed_s": idle.formed.as_secs_f64(),
        "anonymous_kib": kib(idle.anonymous),
        "anonymous_kib_per_link": each,
        "files": idle.files,
        "cpu": idle.cpu,
        "packets_per_second_and_link": idle.packets,
        "wire_bytes_per_second_and_link": idle.wire,
        "stream_bytes_per_second_and_link": idle.stream,
    })
}

async fn report(ground: &mut Processes, node: usize) -> Outcome<Report> {
    match ground.ask(node, Ask::Report).await {
        Some(Answer::Report(report)) => Ok(*report),
        _ => Err(format!("node {node} does not answer").into()),
    }
}

fn stream_bytes(report: &Report) -> u64 {
    report.links.iter().map(|link| link.bytes_sent + link.bytes_received).sum()
}

/// RssAnon of a process, in bytes.
fn anonymous(process: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon in the status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Bytes and packets that the loopback device of this network namespace has passed on.
fn loopback() -> Outcome<(u64, u64)> {
    let devices = std::fs::read_to_string("/proc/self/net/dev")?;
    let line =
        devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).ok_or("no loopback device")?;
    let mut fields = line.split_whitespace().map(str::parse::<u64>);
    let mut next = || fields.next().ok_or("the line of lo is short");
    Ok((next()??, next()??))
}

/// What Linux tells every program, whatever its own clock is (`sysconf(_SC_CLK_TCK)`).
const TICKS_A_SECOND: f64 = 100.0;

/// CPU time of a process, in ticks.
fn ticks(process: &str) -> Outcome<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may have spaces. utime and stime are fields 14 and 15 of proc(5).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).ok_or("the stat of the process is short");
    Ok(field(11)?.parse::<u64>()? + field(12)?.parse::<u64>()?)
}
