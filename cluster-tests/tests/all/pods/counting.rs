//! A rolling update under the eyes of the harness: every message between nodes is in its record.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster_tests::harness::check;
use cluster_tests::harness::ground::{Answer, Ask, Ground, Plan, Settings};
use cluster_tests::harness::history::{Entry, What};
use cluster_tests::harness::processes::Processes;
use cluster_tests::pods::Space;
use cluster_tests::pods::counters::counters;
use cluster_tests::requirement;
use roomcast::status::Report;

/// Nodes of the harness in pods, each with a member in one room that emits all the time.
struct Counting {
    space: Arc<Space>,
    ground: Processes,
    ids: Vec<String>,
    running: Vec<usize>,
}

impl Counting {
    const ROOM: &str = "all";

    async fn start(&mut self) {
        let node = self.ids.len();
        let id = format!("counter-{node}");
        self.ids.push(id.clone());
        self.running.push(node);
        let IpAddr::V4(ip) = self.ground.address(node).ip() else { unreachable!() };
        self.space.list("counters", ip);
        let plan = Plan { id, seeds: vec![Space::seed("counters")], settings: Settings::default() };
        self.ground.start(node, &plan).await;
    }

    async fn counts(&mut self, node: usize) {
        for ask in
            [Ask::Join(Self::ROOM.to_owned()), Ask::Settle, Ask::Traffic(Self::ROOM.to_owned(), 10, 64)]
        {
            self.ground.ask(node, ask).await;
        }
    }

    async fn leave(&mut self, node: usize) {
        // It emits until it has left: what it was given before it was told must come.
        let at = self.ground.now();
        self.ground.history().add(Entry { at, node, run: 0, what: What::Leaving });
        self.ground.leave(node).await;
        let IpAddr::V4(ip) = self.ground.address(node).ip() else { unreachable!() };
        self.space.unlist("counters", ip);
        self.running.retain(|running| *running != node);
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Report, usize) -> bool) {
        for _ in 0..800 {
            let mut all = true;
            for node in self.running.clone() {
                let report = self.ground.ask(node, Ask::Report).await;
                all &= matches!(report, Some(Answer::Report(report)) if holds(&report, self.running.len()));
            }
            if all {
                return;
            }
            self.ground.sleep(Duration::from_millis(50)).await;
        }
        panic!("it never is so that {what}");
    }

    async fn formed(&mut self) {
        self.until("all are linked to all", |report, count| {
            let live = report.members.iter().filter(|member| member.state == "live");
            live.count() == count
                && report.links.iter().filter(|link| link.state == "up").count() == count - 1
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_loses_no_message_between_nodes() {
    let Some(dnsmasq) = requirement::dns() else { return };
    let space = Arc::new(Space::new("pods-count", &dnsmasq, &["counters"]));
    let ground = counters(&space, env!("CARGO_BIN_EXE_cluster-node"));
    let mut counting = Counting { space, ground, ids: Vec::new(), running: Vec::new() };
    for _ in 0..3 {
        counting.start().await;
    }
    counting.formed().await;
    for node in 0..3 {
        counting.counts(node).await;
    }
    for old in 0..3 {
        counting.start().await;
        counting.formed().await;
        counting.counts(old + 3).await;
        // So that messages flow to and from the new one while the old one leaves.
        counting.ground.sleep(Duration::from_millis(500)).await;
        counting.leave(old).await;
    }
    counting.formed().await;
    for node in counting.running.clone() {
        counting.ground.ask(node, Ask::Quiet).await;
    }
    counting.until("nothing waits", |report, _| report.links.iter().all(|link| link.queue_frames == 0)).await;
    let history = counting.ground.history().clone();
    let mut wrong = check::history(&history, &counting.ids);
    for entry in &history.entries {
        let What::Gap { peer, .. } = &entry.what else { continue };
        let lives = |id: &String| counting.running.iter().any(|node| counting.ids[*node] == *id);
        if lives(peer) && counting.running.contains(&entry.node) {
            wrong.push(format!("a gap between living nodes: {entry:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let delivered =
        history.entries.iter().filter(|entry| matches!(entry.what, What::Delivered { .. })).count();
    assert!(delivered > 1_000, "only {delivered} messages");
}
