//! `GET /metrics`: what a cluster with traffic and losses says about itself, and that the text is what Prometheus reads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::{Live, RawPeer, Recorder, Setup, eventually, stamp};
use roomcast::config::QueuePolicy;
use roomcast::core::frame::Head;
use roomcast::status::{self, StatusServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A room whose name must not be found in the metrics.
const ROOM: &str = "secretroom";
/// A namespace, the same.
const NAMESPACE: &str = "/secretspace";

/// A scrape: each series with its value.
#[derive(Debug)]
struct Page {
    kinds: BTreeMap<String, String>,
    series: BTreeMap<String, f64>,
    text: String,
}

impl Page {
    /// Reads the text format.
    ///
    /// # Panics
    /// When it is not as the format, and the rules of names, want it.
    fn parse(text: String) -> Self {
        let (mut kinds, mut series) = (BTreeMap::new(), BTreeMap::new());
        let mut helped = BTreeSet::new();
        assert!(text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(helped.contains(name), "help comes first: {line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "a type twice: {line}");
            } else {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                let family = family(name, &kinds);
                let kind = kinds.get(&family).unwrap_or_else(|| panic!("no type: {line}"));
                assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
                assert!(family.starts_with("roomcast_"), "{line}");
                assert!(kind == "gauge" || value >= 0.0, "{line}");
                assert!(series.insert(name.to_owned(), value).is_none(), "a series twice: {line}");
            }
        }
        Self { kinds, series, text }
    }

    /// The sum of all series of a metric (without what a histogram adds) whose labels hold all of these.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of = |(series, value): (&String, &f64)| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            (found == name && labels.iter().all(|label| rest.contains(label))).then_some(*value)
        };
        self.series.iter().filter_map(of).sum()
    }

    /// The values of the label `peer`.
    fn peers(&self) -> BTreeSet<String> {
        let peer = |series: &String| Some(series.split_once("peer=\"")?.1.split_once('"')?.0.to_owned());
        self.series.keys().filter_map(peer).collect()
    }

    /// Those that only grow: counters, and all that belongs to a histogram.
    fn growing(&self) -> impl Iterator<Item = (&String, f64)> {
        let grows =
            |name: &str| self.kinds.get(&family(name, &self.kinds)).is_some_and(|kind| kind != "gauge");
        self.series.iter().filter(move |(name, _)| grows(name)).map(|(name, value)| (name, *value))
    }
}

fn family(series: &str, kinds: &BTreeMap<String, String>) -> String {
    let name = series.split('{').next().unwrap_or_default();
    let stripped = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    let histogram = |name: &&str| kinds.get(*name).is_some_and(|kind| kind == "histogram");
    stripped.filter(histogram).unwrap_or(name).to_owned()
}

async fn serve(node: &Live) -> StatusServer {
    status::serve(node, SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap()
}

async fn scrape(server: &StatusServer) -> Page {
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(head.starts_with("http/1.0 200"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    Page::parse(body.to_owned())
}

/// Waits for a scrape that is as wanted.
async fn scraped(server: &StatusServer, what: &str, wanted: impl Fn(&Page) -> bool) -> Page {
    let deadline = tokio::time::Instant::now() + cluster_tests::wait::DEADLINE;
    loop {
        let page = scrape(server).await;
        if wanted(&page) {
            return page;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}\n{}", page.text);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every metric of the table in `docs/operations.md`.
fn listed() -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `roomcast_"));
    rows.filter_map(|row| Some(format!("roomcast_{}", row.split_once('`')?.0))).collect()
}

/// A file of the repository.
fn file(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn every_alert_has_a_row_that_says_what_to_do() {
    let rules = file("examples/kubernetes/components/prometheus/rules.yaml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let operations = file("docs/operations.md");
    let rows: Vec<Vec<&str>> = operations
        .lines()
        .filter(|line| line.starts_with("| `Roomcast"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for row in &rows {
        assert!(row.len() == 3 && row.iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
    let listed: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(listed, alerts, "in the order of rules.yaml");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_traffic_and_losses_shows_every_metric() {
    let setup = Setup::new("metrics").config(|config| {
        config.link.outbox_bytes = 64 * 1024;
        config.link.queue_policy = QueuePolicy::DropNewest;
        config.link.request_timeout = Duration::from_millis(500);
        config.link.resume_window = Duration::from_secs(2);
        config.members.dead_linger_ms = 1_000;
    });
    let mut nodes = setup.formed(3).await;
    let server = serve(&nodes[0]).await;
    let recorder = Recorder::new();
    let spaces: Vec<_> = nodes.iter().map(|node| node.namespace(NAMESPACE).unwrap()).collect();
    let members: Vec<_> = spaces.iter().map(|space| space.connect(recorder.clone())).collect();
    members.iter().for_each(|member| member.join(ROOM).unwrap());
    for node in &nodes {
        node.settled().await;
    }

    // Traffic of each scope, both ways, and a question.
    for number in 0..100 {
        spaces[0].to(ROOM).emit(stamp("a", number)).unwrap();
        spaces[1].to(ROOM).emit(stamp("b", number)).unwrap();
    }
    spaces[0].all().emit(stamp("a", 100)).unwrap();
    spaces[0].to(ROOM).local().emit(stamp("a", 101)).unwrap();
    assert_eq!(*spaces[0].room_size(ROOM).await.unwrap(), 3);
    let peer = |index: usize| format!("peer=\"{}\"", nodes[index].name());
    let (near, far) = (peer(1), peer(2));
    let page = scraped(&server, "traffic", |page| {
        page.sum("roomcast_frames_total", &[&near, "received", "broadcast"]) >= 100.0
            && page.sum("roomcast_delivery_latency_seconds_count", &[&near]) >= 1.0
            // All that came over a link that never broke is of some type. Not at the moment at which more comes in.
            && page.sum("roomcast_frame_bytes_total", &[&near, "direction=\"received\""])
                == page.sum("roomcast_stream_bytes_total", &[&near, "direction=\"received\""])
    });
    let first = page.await;
    assert_eq!(first.sum("roomcast_members", &["live"]), 3.0);
    assert_eq!(first.sum("roomcast_link_state", &["state=\"up\""]), 2.0);
    assert_eq!(first.sum("roomcast_emits_total", &["rooms"]), 100.0);
    assert_eq!(first.sum("roomcast_emits_total", &["all"]), 1.0);
    assert_eq!(first.sum("roomcast_emits_total", &["local"]), 1.0);
    assert_eq!(first.sum("roomcast_emit_fanout_nodes_sum", &["rooms"]), 200.0);
    assert_eq!(first.sum("roomcast_frames_total", &[&far, "sent", "broadcast"]), 101.0);
    assert_eq!(first.sum("roomcast_frames_total", &[&far, "sent", "request"]), 1.0);
    for (peer, direction) in [(&near, "direction=\"received\""), (&far, "direction=\"sent\"")] {
        let bytes = first.sum("roomcast_frame_bytes_total", &[peer, direction, "broadcast"]);
        let all = first.sum("roomcast_frame_bytes_total", &[peer, direction]);
        assert!(bytes > 100.0 * stamp("b", 0).len() as f64 && bytes < all, "{}", first.text);
    }
    assert_eq!(first.sum("roomcast_drops_total", &[]), 0.0);
    assert_eq!(first.sum("roomcast_requests_timed_out_total", &[]), 0.0);
    assert!(first.sum("roomcast_delivered_total", &[]) >= 100.0);
    assert!(first.sum("roomcast_dials_total", &["linked"]) + first.sum("roomcast_links_total", &[]) >= 2.0);

    // A node that is cut off: its queue grows old, fills and drops, and a question ends without it.
    nodes[2].gate.cut();
    let kilobyte = Bytes::from(vec![b'x'; 1024]);
    for _ in 0..6 {
        for _ in 0..32 {
            spaces[0].to(ROOM).emit(kilobyte.clone()).unwrap();
        }
        let empty = || nodes[0].link(nodes[1].name()).is_some_and(|link| link.queue_bytes == 0);
        eventually("the other node has it all", empty).await;
    }
    assert!(!spaces[0].room_size(ROOM).await.unwrap().missing.is_empty());
    let second = scraped(&server, "drops", |page| {
        page.sum("roomcast_outbox_oldest_seconds", &[&far]) > 0.0
            && page.sum("roomcast_peer_drops_total", &[&far, "queue_full"]) > 0.0
    });
    let second = second.await;
    assert!(second.sum("roomcast_drops_total", &[]) > 0.0);
    assert!(second.sum("roomcast_outbox_bytes", &[&far]) <= 64.0 * 1024.0);
    assert_eq!(second.sum("roomcast_peer_drops_total", &[&near, "queue_full"]), 0.0);

    // It never comes back: what was queued for it is a gap, and its series vanish.
    let gone = nodes.pop().unwrap();
    let name = gone.name().to_owned();
    let third = scraped(&server, "the dead are forgotten", |page| {
        page.sum("roomcast_gap_frames_total", &["sent"]) > 0.0 && !page.peers().contains(&name)
    });
    let third = third.await;
    assert!(third.sum("roomcast_member_changes_total", &["dead"]) >= 1.0);
    assert!(third.sum("roomcast_link_changes_total", &["down"]) >= 1.0);
    assert_eq!(third.peers().len(), 1);

    // Every metric is there, and nothing names a room.
    let kinds: BTreeSet<String> = first.kinds.keys().cloned().collect();
    let missing: Vec<_> = listed().difference(&kinds).cloned().collect();
    assert!(missing.is_empty(), "not in the scrape: {missing:?}");
    for page in [&first, &second, &third] {
        assert!(!page.text.contains("secret"), "a room or a namespace is named");
    }
    for (before, after) in [(&first, &second), (&second, &third)] {
        for (name, value) in before.growing() {
            let later = after.series.get(name);
            assert!(later.is_none_or(|later| *later >= value), "{name} went from {value} to {later:?}");
        }
    }
    gone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_and_restarts_leave_one_series_for_a_peer() {
    let setup = Setup::new("series").config(|config| config.members.dead_linger_ms = 1_000);
    let mut nodes = setup.formed(2).await;
    let server = serve(&nodes[0]).await;
    let name = nodes[1].name().to_owned();
    let peer = format!("peer=\"{name}\"");
    let before = scrape(&server).await;
    assert_eq!(before.sum("roomcast_link_resumes_total", &[&peer]), 0.0);

    nodes[1].gate.cut();
    eventually("the link is noticed to be lost", || !nodes[0].is_linked_to(&name)).await;
    nodes[1].gate.heal();
    scraped(&server, "a resume", |page| page.sum("roomcast_link_resumes_total", &[&peer]) >= 1.0).await;

    let series = |page: &Page| page.series.keys().filter(|name| name.contains(&peer)).count();
    let mut counts = BTreeSet::new();
    for _ in 0..3 {
        let seat = setup.seat(1);
        let seeds = [nodes[0].addr()];
        nodes.pop().unwrap().kill().await;
        nodes.push(setup.start_at(&seat, seeds).await);
        eventually("the new run is linked", || {
            nodes[0].is_linked_to(&name) && nodes[1].is_linked_to(nodes[0].name())
        })
        .await;
        let page = scraped(&server, "one link that is up", |page| {
            page.sum("roomcast_link_state", &[&peer, "state=\"up\""]) == 1.0
        });
        let page = page.await;
        assert_eq!(page.peers(), BTreeSet::from([name.clone()]));
        counts.insert(series(&page));
    }
    assert_eq!(counts.len(), 1, "{counts:?}");
    assert!(scrape(&server).await.sum("roomcast_member_changes_total", &["restarted"]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_another_clock_or_none_does_no_harm() {
    let setup = Setup::new("clocks");
    let nodes = setup.formed(2).await;
    let server = serve(&nodes[0]).await;
    let raw = RawPeer::new(&setup, 9);
    let mut link = raw.link(nodes[0].addr(), NAMESPACE).await;
    eventually("it is linked", || nodes[0].is_linked_to(&raw.id)).await;
    // Long ago, in a far future, and with numbers behind it that a later version may send.
    let head = Head::Received { seq: 0, interest: 0 };
    for stamp in [0, u64::MAX] {
        link.say(&head, [0u64, 0, stamp, 7].map(u64::to_le_bytes).as_flattened()).await;
    }
    // Too short for a time.
    link.say(&head, &[1; 20]).await;
    let peer = format!("peer=\"{}\"", raw.id);
    let page = scraped(&server, "both are noted", |page| {
        page.sum("roomcast_delivery_latency_seconds_count", &[&peer]) == 2.0
    });
    let page = page.await;
    assert_eq!(page.sum("roomcast_delivery_latency_seconds_sum", &[&peer]), 3600.0, "at most an hour each");
    assert_eq!(page.sum("roomcast_delivery_clock_backwards_total", &[&peer]), 1.0);
    assert!(nodes[0].is_linked_to(&raw.id));
}
