//! `cargo bench -p cluster-tests --bench scale`: what a cluster costs as it grows. Whole nodes in one thread under simulated
//! time: bytes and times are exact and the same in each run, whatever the machine has to do; CPU and memory are of this
//! process, which has the simulated network in it, too. `docs/scale.md` says what follows.

#[expect(dead_code, reason = "not every bench needs all of it")]
mod common;

use std::collections::HashMap;
use std::time::Duration;

use cluster_tests::harness::ground::{Answer, Ask, Ground, Plan, Settings};
use cluster_tests::harness::sim::{Simulated, Traffic};
use cluster_tests::scale::{Burden, Costs, Line, Shape, burden};
use common::{Outcome, save};
use futures_util::FutureExt;
use roomcast::status::Report;
use serde_json::{Value, json};

const HELP: &str = "\
cargo bench -p cluster-tests --bench scale -- [options]

  --nodes 3,10       only these sizes; default 3,10,30,100 (100 takes minutes)
  --gossip-ms 1000   another gossip.interval; default 250
  --quick            3 and 10 nodes, one second of idleness: to see that it works";

/// What is simulated between two looks at a cluster.
const LOOK: Duration = Duration::from_millis(50);
/// More than two interest ticks.
const TICK: Duration = Duration::from_millis(100);
/// From the last change until the cluster counts as idle, and gossips as in calm.
const SETTLE: Duration = Duration::from_secs(30);
/// The longest that anything may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of the headers of UDP and IPv4.
const HEADERS: u64 = 28;
/// Emits whose frames are counted.
const EMITS: u64 = 100;
/// Rooms whose only members are on one node, which leaves: they come back on the others.
const STORM: usize = 10_000;
/// Rooms of all nodes together, each on one of them.
const MILLION: usize = 1_000_000;
/// The limits of the goals: bytes a second of a node, and its part of a core.
const RATE_GOAL: f64 = 20.0 * 1024.0;
const CPU_GOAL: f64 = 0.01;
/// Memory of a row of the table, measured by `--bench registry`.
const ROW_BYTES: f64 = 35.1;

struct Options {
    sizes: Vec<usize>,
    gossip_ms: u64,
    window: Duration,
}

fn options() -> Result<Option<Options>, String> {
    let mut options =
        Options { sizes: vec![3, 10, 30, 100], gossip_ms: 250, window: Duration::from_secs(10) };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match &*arg {
            // cargo says so to each bench.
            "--bench" => {}
            "--quick" => (options.sizes, options.window) = (vec![3, 10], Duration::from_secs(1)),
            "--nodes" => {
                let sizes = value()?.split(',').map(|size| size.parse().ok()).collect::<Option<Vec<_>>>();
                let sizes = sizes.filter(|sizes| sizes.iter().all(|size| (3..=200).contains(size)));
                options.sizes = sizes.ok_or("--nodes needs numbers from 3 to 200")?;
            }
            "--gossip-ms" => {
                let ms = value()?.parse().ok().filter(|ms| (10..=10_000).contains(ms));
                options.gossip_ms = ms.ok_or("--gossip-ms needs a number from 10 to 10000")?;
            }
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("what is {other:?}? See --help")),
        }
    }
    Ok(Some(options))
}

fn main() -> Outcome<()> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(());
    };
    let mut sizes = Vec::new();
    for &nodes in &options.sizes {
        eprintln!("{nodes} nodes");
        sizes.push(Cluster::start(nodes, options.gossip_ms).measure(&options)?);
    }
    for size in &mut sizes {
        eprintln!("{} nodes and a million rooms", size.nodes);
        size.million = Some(Cluster::start(size.nodes, options.gossip_ms).million(&options)?);
    }
    println!("\ngossip.interval {} ms\n\n{}", options.gossip_ms, Size::HEAD);
    sizes.iter().for_each(|size| println!("{}", size.row()));
    println!("\n{}", Size::EVENTS_HEAD);
    sizes.iter().for_each(|size| println!("{}", size.events_row()));
    println!("\n{}", Size::MILLION_HEAD);
    sizes.iter().for_each(|size| println!("{}", size.million_row().unwrap_or_default()));
    println!();
    let growth = growth(&sizes);
    let model = model(&sizes);
    let sizes: Vec<Value> = sizes.iter().map(Size::json).collect();
    save(
        "scale",
        &json!({ "gossip_ms": options.gossip_ms, "sizes": sizes, "growth": growth, "model": model }),
    )
}

/// What was measured at one size.
struct Size {
    nodes: usize,
    /// Until all links stood, in simulated seconds.
    formed: f64,
    digest_bytes: u64,
    /// Bytes a second that a node sends when nothing is said, headers included; those of them in data streams.
    rate: f64,
    stream_rate: f64,
    packets: f64,
    /// Part of a core of a node.
    cpu: f64,
    /// Memory of one end of a link, in KiB.
    link_kib: f64,
    frames_per_emit: f64,
    /// Bytes of interest of one join, for each peer.
    join_bytes: f64,
    /// Until all others knew the rooms of the storm, in seconds; bytes of interest for each room and peer.
    storm: f64,
    storm_bytes: f64,
    /// Until the slowest of the others suspected a node that was killed, and gave it up, in seconds.
    suspected: f64,
    evicted: f64,
    /// Measured when all else has been: what a million rooms took is not given back to the system at once.
    million: Option<Million>,
}

/// A million rooms, evenly on all nodes, and then one node more.
struct Million {
    /// Until all knew them after they were joined at once, in seconds, and what the process had to compute for that, for each
    /// node.
    joined: f64,
    joined_cpu: f64,
    /// Until a node that starts then has all links and knows all rooms; what the process had to compute; bytes of interest
    /// sent to it for each room.
    newcomer: f64,
    newcomer_cpu: f64,
    newcomer_bytes: f64,
}

impl Size {
    const HEAD: &str = "| nodes | formed after | a node sends, idle | in data streams | packets a second | CPU of a node | memory of an end of a link | gossip digest |\n|---:|---:|---:|---:|---:|---:|---:|---:|";
    const EVENTS_HEAD: &str = "| nodes | frames of an emit, 2 nodes concerned | bytes of a join, each peer | 10,000 rooms move: known after | bytes a room and peer | killed: suspected after | evicted after |\n|---:|---:|---:|---:|---:|---:|---:|";

    const MILLION_HEAD: &str = "| nodes | 1,000,000 rooms joined at once: known after | CPU of each node for it | a node starts then: knows all after | CPU of the cluster for it | bytes a room sent to it |\n|---:|---:|---:|---:|---:|---:|";

    fn million_row(&self) -> Option<String> {
        let million = self.million.as_ref()?;
        Some(format!(
            "| {} | {:.2} s | {:.2} s | {:.2} s | {:.2} s | {:.1} |",
            self.nodes,
            million.joined,
            million.joined_cpu,
            million.newcomer,
            million.newcomer_cpu,
            million.newcomer_bytes,
        ))
    }

    fn row(&self) -> String {
        format!(
            "| {} | {:.1} s | {:.1} KiB/s | {:.1} KiB/s | {:.0} | {:.2} % | {:.0} KiB | {} B |",
            self.nodes,
            self.formed,
            self.rate / 1024.0,
            self.stream_rate / 1024.0,
            self.packets,
            100.0 * self.cpu,
            self.link_kib,
            self.digest_bytes,
        )
    }

    fn events_row(&self) -> String {
        format!(
            "| {} | {} | {:.1} | {:.2} s | {:.1} | {:.1} s | {:.1} s |",
            self.nodes,
            self.frames_per_emit,
            self.join_bytes,
            self.storm,
            self.storm_bytes,
            self.suspected,
            self.evicted,
        )
    }

    fn json(&self) -> Value {
        json!({
            "nodes": self.nodes,
            "formed_s": self.formed,
            "digest_bytes": self.digest_bytes,
            "idle_bytes_per_s": self.rate,
            "idle_stream_bytes_per_s": self.stream_rate,
            "idle_packets_per_s": self.packets,
            "idle_cpu": self.cpu,
            "kib_per_link_end": self.link_kib,
            "frames_per_emit": self.frames_per_emit,
            "join_bytes_per_peer": self.join_bytes,
            "storm_s": self.storm,
            "storm_bytes_per_room_and_peer": self.storm_bytes,
            "suspected_s": self.suspected,
            "evicted_s": self.evicted,
            "million_joined_s": self.million.as_ref().map(|million| million.joined),
            "million_joined_cpu_s": self.million.as_ref().map(|million| million.joined_cpu),
            "million_newcomer_s": self.million.as_ref().map(|million| million.newcomer),
            "million_newcomer_cpu_s": self.million.as_ref().map(|million| million.newcomer_cpu),
            "million_newcomer_bytes_per_room": self.million.as_ref().map(|million| million.newcomer_bytes),
        })
    }
}

/// A simulated cluster.
struct Cluster {
    ground: Simulated,
    nodes: usize,
    /// Those that run.
    running: Vec<usize>,
    /// Memory of this process before there was a node, in bytes.
    alone: u64,
}

impl Cluster {
    fn start(nodes: usize, gossip_ms: u64) -> Self {
        let alone = anonymous();
        let mut ground = Simulated::new(1);
        for node in 0..nodes {
            let plan = plan(&ground, node, 0, gossip_ms);
            now(ground.start(node, &plan));
        }
        Self { ground, nodes, running: (0..nodes).collect(), alone }
    }

    fn measure(mut self, options: &Options) -> Outcome<Size> {
        let formed = self.formed()?;
        self.ask_all(&Ask::CountOnly);
        self.sleep(SETTLE);
        let link_ends = (self.nodes * (self.nodes - 1)) as f64;
        let link_kib = (anonymous() - self.alone.min(anonymous())) as f64 / 1024.0 / link_ends;
        let digest_bytes = self.reports()[0].gossip.digest_bytes;

        let (before, stream, cpu) = (self.ground.traffic(), self.stream_bytes(), cpu_s());
        self.sleep(options.window);
        let (after, node_seconds) = (self.ground.traffic(), options.window.as_secs_f64() * self.nodes as f64);
        let cpu = (cpu_s() - cpu) / node_seconds;
        let stream_rate = (self.stream_bytes() - stream) as f64 / node_seconds;

        let frames_per_emit = self.emit()?;
        let join_bytes = self.join()?;
        let (storm, storm_bytes) = self.storm()?;
        let (suspected, evicted) = self.kill()?;
        Ok(Size {
            nodes: self.nodes,
            formed,
            digest_bytes,
            rate: wire(&before, &after) / node_seconds,
            stream_rate,
            packets: (after.sent - before.sent) as f64 / node_seconds,
            cpu,
            link_kib,
            frames_per_emit,
            join_bytes,
            storm,
            storm_bytes,
            suspected,
            evicted,
            million: None,
        })
    }

    /// Waits until all links stand; says how long, in simulated seconds.
    fn formed(&mut self) -> Outcome<f64> {
        self.until("all links", |cluster| {
            let others = cluster.nodes - 1;
            cluster.reports().iter().all(|report| up(report) == others)
        })
    }

    /// Frames of one emit for a room with members on two other nodes.
    fn emit(&mut self) -> Outcome<f64> {
        for node in [1, 2] {
            now(self.ground.ask(node, Ask::Join("two".into())));
        }
        self.known("the room")?;
        let frames = |cluster: &mut Self| -> u64 {
            cluster.reports().iter().map(|report| report.counters.frames_sent).sum()
        };
        let before = frames(self);
        now(self.ground.ask(0, Ask::Emit("two".into(), EMITS, 256)));
        self.sleep(Duration::from_secs(1));
        let sent = frames(self) - before;
        if sent != 2 * EMITS {
            return Err(format!("{EMITS} emits for two nodes made {sent} frames").into());
        }
        Ok(sent as f64 / EMITS as f64)
    }

    /// Bytes of interest of a join that is alone in its tick.
    fn join(&mut self) -> Outcome<f64> {
        let before = self.interest_bytes();
        now(self.ground.ask(0, Ask::Join("alone".into())));
        self.known("the join")?;
        Ok((self.interest_bytes() - before) as f64 / (self.nodes - 1) as f64)
    }

    /// Rooms of one node come back on the others when it leaves. Until all know, in seconds, and bytes a room and peer.
    fn storm(&mut self) -> Outcome<(f64, f64)> {
        now(self.ground.ask(0, Ask::JoinMany("moves".into(), STORM)));
        self.known("the rooms")?;
        now(self.ground.leave(0));
        self.running.retain(|node| *node != 0);
        let before = self.interest_bytes();
        let others = self.running.clone();
        for (at, node) in others.iter().enumerate() {
            // All of them, whatever the number of nodes.
            let count = STORM / others.len() + usize::from(at < STORM % others.len());
            now(self.ground.ask(*node, Ask::JoinMany(format!("moved-{node}"), count)));
        }
        let took = self.known("the moved rooms")?;
        let bytes = self.interest_bytes() - before;
        Ok((took, bytes as f64 / STORM as f64 / (others.len() - 1) as f64))
    }

    /// A node is killed: until all others suspect it, and until it is dead for all.
    fn kill(&mut self) -> Outcome<(f64, f64)> {
        self.sleep(SETTLE);
        now(self.ground.kill(1));
        self.running.retain(|node| *node != 1);
        let is = |cluster: &mut Self, wanted: &[&str]| {
            cluster.reports().iter().all(|report| {
                let member = report.members.iter().find(|member| member.id == id(1));
                member.is_none_or(|member| wanted.contains(&&*member.state))
            })
        };
        let suspected = self.until("it is suspected", |cluster| is(cluster, &["suspect", "dead"]))?;
        Ok((suspected, suspected + self.until("it is evicted", |cluster| is(cluster, &["dead"]))?))
    }

    /// A million rooms, and a node that comes when they are there.
    fn million(mut self, options: &Options) -> Outcome<Million> {
        self.formed()?;
        self.sleep(SETTLE);
        let running = self.running.clone();
        let cpu = cpu_s();
        for (at, node) in running.iter().enumerate() {
            let count = MILLION / running.len() + usize::from(at < MILLION % running.len());
            now(self.ground.ask(*node, Ask::JoinMany(format!("one-of-a-million-{node}"), count)));
        }
        let joined = self.known("a million rooms")?;
        let joined_cpu = (cpu_s() - cpu) / running.len() as f64;
        let (bytes, cpu) = (self.interest_bytes(), cpu_s());
        let newcomer = self.nodes;
        let plan = plan(&self.ground, newcomer, 0, options.gossip_ms);
        now(self.ground.start(newcomer, &plan));
        self.running.push(newcomer);
        let newcomer = self.until("the new node knows the million rooms", Self::agree)?;
        Ok(Million {
            joined,
            joined_cpu,
            newcomer,
            newcomer_cpu: cpu_s() - cpu,
            newcomer_bytes: (self.interest_bytes() - bytes) as f64 / MILLION as f64,
        })
    }

    /// Waits until all know what was joined; says how long, in simulated seconds.
    fn known(&mut self, what: &str) -> Outcome<f64> {
        // A node's digest changes with its next interest tick.
        self.sleep(TICK);
        Ok(TICK.as_secs_f64() + self.until(&format!("{what} is known"), Self::agree)?)
    }

    /// Whether all hold of each other what each has.
    fn agree(&mut self) -> bool {
        let reports = self.reports();
        let own: HashMap<&str, &str> =
            reports.iter().map(|report| (&*report.node.id, &*report.interest.digest)).collect();
        reports.iter().all(|report| {
            let links = report.links.iter().filter(|link| own.contains_key(&*link.peer));
            links.clone().count() + 1 == own.len()
                && links.clone().all(|link| Some(&&*link.interest_digest) == own.get(&*link.peer))
        })
    }

    /// Lets time pass until it holds; says how long, in simulated seconds.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) -> Outcome<f64> {
        let begun = self.ground.now();
        while !holds(self) {
            if self.ground.now() - begun > PATIENCE {
                return Err(format!("{} nodes: waited too long until {what}", self.nodes).into());
            }
            self.sleep(LOOK);
        }
        Ok((self.ground.now() - begun).as_secs_f64())
    }

    fn reports(&mut self) -> Vec<Report> {
        let running = self.running.clone();
        let mut report = |node| match now(self.ground.ask(node, Ask::Report)) {
            Some(Answer::Report(report)) => *report,
            _ => panic!("node {node} does not answer"),
        };
        running.into_iter().map(&mut report).collect()
    }

    fn ask_all(&mut self, ask: &Ask) {
        for node in self.running.clone() {
            now(self.ground.ask(node, ask.clone()));
        }
    }

    fn stream_bytes(&mut self) -> u64 {
        self.reports().iter().flat_map(|report| &report.links).map(|link| link.bytes_sent).sum()
    }

    fn interest_bytes(&mut self) -> u64 {
        self.reports().iter().flat_map(|report| &report.links).map(|link| link.interest_bytes_sent).sum()
    }

    fn sleep(&mut self, time: Duration) {
        now(self.ground.sleep(time));
    }
}

fn plan(ground: &Simulated, node: usize, seed: usize, gossip_ms: u64) -> Plan {
    let settings = Settings { gossip_interval_ms: Some(gossip_ms), ..Settings::default() };
    Plan { id: id(node), seeds: vec![ground.seed(seed)], settings }
}

/// What is asked of simulated ground is done when it is first polled.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("simulated ground waits for nobody")
}

fn id(node: usize) -> String {
    format!("n{node}")
}

fn up(report: &Report) -> usize {
    report.links.iter().filter(|link| link.state == "up").count()
}

/// All bytes between two moments, with headers.
fn wire(before: &Traffic, after: &Traffic) -> f64 {
    ((after.sent_bytes - before.sent_bytes) + HEADERS * (after.sent - before.sent)) as f64
}

/// RssAnon of this process, in bytes; 0 where there is no procfs.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or_default() * 1024
}

/// User and system time of this process, in seconds; 0 where there is no procfs.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may have spaces. utime and stime are fields 14 and 15 of proc(5), in hundredths.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (field(11) + field(12)) / 100.0
}

/// Prints where costs pass the goals.
fn growth(sizes: &[Size]) -> Value {
    let line = |cost: fn(&Size) -> f64| {
        Line::through(&sizes.iter().map(|size| (size.nodes as f64, cost(size))).collect::<Vec<_>>())
    };
    let mut growth = serde_json::Map::new();
    for (name, cost, limit, unit, scale) in [
        ("a node sends, idle", (|size| size.rate) as fn(&Size) -> f64, RATE_GOAL, "KiB/s", 1.0 / 1024.0),
        ("CPU of a node, idle", |size| size.cpu, CPU_GOAL, "%", 100.0),
        ("gossip digest", |size| size.digest_bytes as f64, 60_000.0, "B", 1.0),
    ] {
        let Some(line) = line(cost) else { continue };
        let passes = line.passes(limit);
        println!(
            "{name}: {:.2} + {:.3} {unit} a node; {:.1} {unit} is passed at {} nodes",
            line.fixed * scale,
            line.each * scale,
            limit * scale,
            passes.map_or("no".into(), |nodes| format!("{nodes:.0}")),
        );
        growth.insert(name.into(), json!({ "fixed": line.fixed, "each": line.each, "passes": passes }));
    }
    growth.into()
}

/// Prints what other shapes would cost, from what was measured at the largest size.
fn model(sizes: &[Size]) -> Value {
    let Some(size) = sizes.last() else { return Value::Null };
    let links = (size.nodes - 1) as f64;
    // What a node sends it also gets. Beside the data streams there are gossip and what QUIC needs for both.
    let costs = Costs {
        link_bytes: size.link_kib * 1024.0,
        link_rate: 2.0 * size.stream_rate / links,
        gossip_rate: 2.0 * (size.rate - size.stream_rate) / size.nodes as f64,
        row_bytes: ROW_BYTES,
    };
    const ROOMS: f64 = 1_000.0;
    println!("\n{ROOMS} rooms a node; the busiest node of a cluster:\n");
    println!(
        "| nodes | shape | links | their memory | idle, both ways | rooms of others | hops |\n|---:|---|---:|---:|---:|---:|---:|"
    );
    let mut rows = Vec::new();
    for nodes in [100.0, 300.0, 1_000.0] {
        let groups = |size: f64| Shape::Groups { size, relays: 2.0, bits: 10.0 };
        for (name, shape) in
            [("mesh", Shape::Mesh), ("groups of 30", groups(30.0)), ("groups of 50", groups(50.0))]
        {
            let all: Burden = burden(shape, nodes, ROOMS, &costs);
            println!(
                "| {nodes} | {name} | {:.0} | {:.0} MiB | {:.0} KiB/s | {:.1} MiB | {} |",
                all.links,
                all.link_memory / f64::from(1 << 20),
                all.rate / 1024.0,
                all.table / f64::from(1 << 20),
                all.hops,
            );
            rows.push(json!({
                "nodes": nodes,
                "shape": name,
                "links": all.links,
                "link_memory": all.link_memory,
                "bytes_per_s": all.rate,
                "table_bytes": all.table,
                "hops": all.hops,
            }));
        }
    }
    rows.into()
}
