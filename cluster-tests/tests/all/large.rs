//! Clusters of thirty nodes, in simulated time: they gossip less often than small ones while all is well, and notice as soon
//! when it is not.

use std::time::Duration;

use cluster_tests::harness::ground::{Answer, Ask, Ground, Plan, Rule, Settings};
use cluster_tests::harness::sim::{Simulated, Traffic};
use futures_util::FutureExt;
use roomcast::status::Report;

const NODES: usize = 30;
const LOOK: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// From when on a cluster in which nothing happens gossips as in calm, with some time for what is under way.
const CALM: Duration = Duration::from_secs(15);
/// The limits of `docs/contract.md`.
const SUSPECTED: Duration = Duration::from_secs(3);
const EVICTED: Duration = Duration::from_secs(6);

struct Large {
    ground: Simulated,
    running: Vec<usize>,
}

#[test]
fn gossip_slows_down_in_calm_and_nobody_is_suspected_for_it() {
    let mut cluster = Large::start(7);
    let (begun, sent) = (cluster.ground.now(), cluster.ground.traffic());
    cluster.sleep(Duration::from_secs(5));
    let busy = rate(&sent, &cluster.ground.traffic(), cluster.ground.now() - begun);
    cluster.sleep(CALM);
    let (begun, sent) = (cluster.ground.now(), cluster.ground.traffic());
    for _ in 0..60 {
        cluster.sleep(SECOND);
        cluster.all_live();
    }
    let calm = rate(&sent, &cluster.ground.traffic(), cluster.ground.now() - begun);
    assert!(calm < busy * 0.6, "{calm:.0} bytes a second in calm, {busy:.0} before");
    // What is news is told at once all the same.
    cluster.begin(NODES);
    let took = cluster.until(|reports| reports.iter().all(|report| report.members.len() == NODES + 1));
    assert!(took <= Duration::from_secs(1), "a new node is known to all after {took:?}");
}

#[test]
fn a_killed_node_is_noticed_by_all_as_soon_as_in_a_small_cluster() {
    for seed in 1..=2 {
        let mut cluster = Large::start(seed);
        cluster.sleep(2 * CALM);
        let victim = cluster.running.remove(1);
        cluster.ground.kill(victim).now_or_never().unwrap();
        let is = |reports: &[Report], wanted: &[&str]| {
            reports.iter().all(|report| wanted.contains(&&*state(report, victim)))
        };
        let suspected = cluster.until(|reports| is(reports, &["suspect", "dead"]));
        let evicted = suspected + cluster.until(|reports| is(reports, &["dead"]));
        assert!(suspected <= SUSPECTED, "seed {seed}: suspected after {suspected:?}");
        assert!(evicted <= EVICTED, "seed {seed}: evicted after {evicted:?}");
        for report in cluster.reports() {
            let mut others = report.members.iter().filter(|member| member.id != name(victim));
            assert!(others.all(|member| member.state == "live"), "seed {seed}: {:?}", report.members);
        }
    }
}

#[test]
fn who_cannot_be_reached_but_is_heard_of_is_suspected_and_kept() {
    let mut cluster = Large::start(5);
    cluster.sleep(2 * CALM);
    let (a, b) = (3, 4);
    for (from, to) in [(a, b), (b, a)] {
        cluster.ground.rule(from, to, Rule::cut()).now_or_never().unwrap();
    }
    let took =
        cluster.until(|reports| state(&reports[a], b) == "suspect" && state(&reports[b], a) == "suspect");
    assert!(took <= SUSPECTED, "suspected after {took:?}");
    // The failure detector's measure is from calm times, and this node asks at full pace: both must hear of it all the time.
    for _ in 0..60 {
        cluster.sleep(SECOND);
        let reports = cluster.reports();
        assert_eq!((state(&reports[a], b), state(&reports[b], a)), ("suspect".into(), "suspect".into()));
    }
    for (from, to) in [(a, b), (b, a)] {
        cluster.ground.rule(from, to, Rule::clear()).now_or_never().unwrap();
    }
    cluster.until(|reports| state(&reports[a], b) == "live" && state(&reports[b], a) == "live");
    cluster.sleep(LOOK);
    cluster.all_live();
}

impl Large {
    fn start(seed: u64) -> Self {
        let mut cluster = Self { ground: Simulated::new(seed), running: Vec::new() };
        (0..NODES).for_each(|node| cluster.begin(node));
        cluster.until(|reports| {
            reports
                .iter()
                .all(|report| report.links.iter().filter(|link| link.state == "up").count() == NODES - 1)
        });
        cluster
    }

    fn begin(&mut self, node: usize) {
        let plan = Plan { id: name(node), seeds: vec![self.ground.seed(0)], settings: Settings::default() };
        self.ground.start(node, &plan).now_or_never().unwrap();
        self.running.push(node);
    }

    fn reports(&mut self) -> Vec<Report> {
        let mut report = |node: &usize| match self.ground.ask(*node, Ask::Report).now_or_never() {
            Some(Some(Answer::Report(report))) => *report,
            other => panic!("node {node} does not answer: {other:?}"),
        };
        self.running.iter().map(&mut report).collect()
    }

    fn all_live(&mut self) {
        let now = self.ground.now();
        for report in self.reports() {
            let live = report.members.iter().all(|member| member.state == "live");
            assert!(
                live && report.members.len() == NODES,
                "{}: {now:?}: {:?}",
                report.node.id,
                report.members
            );
        }
    }

    /// Lets time pass until it holds; says how long.
    fn until(&mut self, holds: impl Fn(&[Report]) -> bool) -> Duration {
        let begun = self.ground.now();
        while !holds(&self.reports()) {
            assert!(self.ground.now() - begun < Duration::from_secs(60), "waited too long");
            self.sleep(LOOK);
        }
        self.ground.now() - begun
    }

    fn sleep(&mut self, time: Duration) {
        self.ground.sleep(time).now_or_never().unwrap();
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn state(report: &Report, node: usize) -> String {
    let member = report.members.iter().find(|member| member.id == name(node));
    member.map_or("dead".into(), |member| member.state.to_string())
}

fn rate(before: &Traffic, after: &Traffic, time: Duration) -> f64 {
    (after.sent_bytes - before.sent_bytes) as f64 / time.as_secs_f64()
}
