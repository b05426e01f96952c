//! A cluster as Kubernetes runs it: found by a headless name, pods that come and go, clients behind a service.

mod counting;
mod left;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster_tests::pods::Space;
use cluster_tests::pods::flow::{Flow, Record};
use cluster_tests::pods::kube::{ChatPod, Ended, Kube, formed};
use cluster_tests::requirement;
use roomcast::status::Report;

/// How long the DNS is silent, in seconds; the environment may say another number.
const OUTAGE_S: u64 = 10;
const OUTAGE_VARIABLE: &str = "PODS_OUTAGE_S";

/// What tests with clients need: dnsmasq and Node.js.
fn tools() -> Option<(PathBuf, PathBuf)> {
    Some((requirement::dns()?, requirement::node()?))
}

/// Makes pods, and waits until they are one cluster and clients may come.
async fn deployed(kube: &mut Kube, count: usize) -> Vec<ChatPod> {
    let pods: Vec<ChatPod> = (0..count).map(|_| kube.create()).collect();
    kube.all_ready(&pods).await;
    formed(&pods).await;
    pods
}

/// Waits until so many clients are connected and hear each other.
async fn in_touch(flow: &Flow, clients: usize) {
    let holds = |record: &Record| record.open() == clients && record.all_hear_all();
    flow.until(&format!("{clients} clients hear each other"), holds).await;
}

/// Waits until some more messages have been acknowledged.
async fn goes_on(flow: &Flow, what: &str) {
    let before = std::cell::OnceCell::new();
    let more = |record: &Record| record.sent() >= before.get_or_init(|| record.sent()) + 50;
    flow.until(&format!("messages flow {what}"), more).await;
}

fn no_gap(report: &Report, peers: &[ChatPod]) {
    for link in report.links.iter().filter(|link| peers.iter().any(|pod| pod.id == link.peer)) {
        let lost =
            [link.gap_frames_sent, link.gap_frames_received, link.drops.queue_full, link.drops.peer_gone];
        assert_eq!(lost, [0; 4], "{} to {}", report.node.id, link.peer);
    }
}

/// Nothing was lost between these pods.
async fn lossless(pods: &[ChatPod]) {
    for pod in pods {
        no_gap(&pod.until("it answers", |_| true).await, pods);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_pods_start_while_the_name_is_empty() {
    let Some(dnsmasq) = requirement::dns() else { return };
    let space = Arc::new(Space::new("pods-cold", &dnsmasq, &["peers"]));
    let mut kube = Kube::new(&space, "chat", "peers");
    let places: Vec<_> = (0..5).map(|_| kube.place()).collect();
    let pods: Vec<ChatPod> = places.iter().map(|place| kube.run(place.clone())).collect();
    for pod in &pods {
        let report = pod.until("it looks and finds nothing", |report| report.discovery[0].rounds >= 3).await;
        assert!(report.live && report.discovery[0].addresses.is_empty(), "{:?}", report.discovery);
        assert_eq!(report.members.len(), 1);
        let told = pod.process.printed().matches("a seed leads nowhere yet").count();
        assert_eq!(told, 1, "only a change is logged");
    }
    for place in &places {
        kube.publish(place);
    }
    kube.all_ready(&pods).await;
    formed(&pods).await;
    for pod in &pods {
        pod.until("it has all addresses", |report| {
            report.discovery[0].addresses.len() == 5 && report.discovery[0].last_error.is_none()
        })
        .await;
    }
    lossless(&pods).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_start_while_the_name_does_not_exist() {
    let Some(dnsmasq) = requirement::dns() else { return };
    let mut kube = Kube::alone("pods-nx", &dnsmasq);
    let places = [kube.place(), kube.place()];
    let pods: Vec<ChatPod> = places.iter().map(|place| kube.run(place.clone())).collect();
    for pod in &pods {
        let report = pod.until("it looks again", |report| report.discovery[0].rounds >= 2).await;
        assert!(report.discovery[0].last_error.is_some(), "{:?}", report.discovery);
        assert!(pod.probe("/livez").await.is_some_and(|(code, _)| code == 200));
    }
    // One by one, as a rollout does: an address that is listed late is found all the same.
    for place in &places {
        kube.publish(place);
    }
    kube.all_ready(&pods).await;
    formed(&pods).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_pods_become_ten_and_three_again() {
    let Some((dnsmasq, node)) = tools() else { return };
    let mut kube = Kube::alone("pods-scale", &dnsmasq);
    let mut pods = deployed(&mut kube, 3).await;
    let (service, flow) = (kube.service(), Flow::start(kube.edge(), node));
    flow.open(service.url(), 0..3).await;
    in_touch(&flow, 3).await;

    pods.extend((0..7).map(|_| kube.create()));
    kube.all_ready(&pods).await;
    formed(&pods).await;
    flow.open(service.url(), 3..10).await;
    in_touch(&flow, 10).await;

    // All at once, as a deployment that is scaled down does.
    let ends = pods.split_off(3);
    for pod in &ends {
        kube.begin_delete(pod).await;
    }
    for pod in ends {
        assert_eq!(kube.end_delete(pod).await, Ended::ByItself(Some(0)));
    }
    formed(&pods).await;
    in_touch(&flow, 10).await;
    flow.settle().await;
    lossless(&pods).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_loses_no_message_of_any_client() {
    let Some((dnsmasq, node)) = tools() else { return };
    let mut kube = Kube::alone("pods-roll", &dnsmasq);
    let mut pods = deployed(&mut kube, 3).await;
    let (service, flow) = (kube.service(), Flow::start(kube.edge(), node));
    flow.open(service.url(), 0..6).await;
    in_touch(&flow, 6).await;
    for _ in 0..3 {
        // maxSurge 1, maxUnavailable 0.
        let new = kube.create();
        kube.ready(&new).await;
        pods.push(new);
        assert_eq!(kube.delete(pods.remove(0)).await, Ended::ByItself(Some(0)));
        goes_on(&flow, "while pods are replaced").await;
    }
    formed(&pods).await;
    // In turn to all that are ready now.
    flow.open(service.url(), 6..9).await;
    in_touch(&flow, 9).await;
    let record = flow.settle().await;
    let nodes: Vec<&str> = record.nodes().iter().map(String::as_str).collect();
    assert_eq!(
        nodes,
        ["chat-0", "chat-1", "chat-2", "chat-3", "chat-4", "chat-5"],
        "clients of every node sent"
    );
    assert!(record.sessions() >= 6 + 6 + 3, "every client of an old pod came back");
    lossless(&pods).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_killed_is_replaced() {
    let Some((dnsmasq, node)) = tools() else { return };
    let mut kube = Kube::alone("pods-kill", &dnsmasq);
    let mut pods = deployed(&mut kube, 3).await;
    let (service, flow) = (kube.service(), Flow::start(kube.edge(), node));
    flow.open(service.url(), 0..3).await;
    in_touch(&flow, 3).await;

    let mut dead = pods.remove(1);
    flow.killed(&dead.id);
    kube.crash(&mut dead).await;
    // Its address stays in the DNS: nobody may be held up by it.
    let new = kube.create();
    kube.ready(&new).await;
    pods.push(new);
    formed(&pods).await;
    in_touch(&flow, 3).await;
    kube.forget(&dead);
    for pod in &pods {
        let ip = dead.pod.ip().to_string();
        pod.until("the address is forgotten", |report| {
            !report.discovery[0].addresses.iter().any(|address| address.starts_with(&format!("{ip}:")))
        })
        .await;
    }
    flow.settle().await;
    lossless(&pods).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_another_cluster_gets_the_address_of_one_that_died() {
    let Some((dnsmasq, node)) = tools() else { return };
    let mut kube = Kube::alone("pods-reuse", &dnsmasq);
    let mut pods = deployed(&mut kube, 3).await;
    let (service, flow) = (kube.service(), Flow::start(kube.edge(), node));
    flow.open(service.url(), 0..2).await;
    in_touch(&flow, 2).await;

    let mut dead = pods.remove(2);
    flow.killed(&dead.id);
    kube.crash(&mut dead).await;
    // With the same secret, so that only the name of the cluster tells them apart. The name of this cluster still has the
    // address, and the name of the other one has one of this.
    let mut other = Kube::new(&kube.space, "shop", "shop-peers");
    other.secret = kube.secret.clone();
    let place = other.place();
    place.readdress(dead.pod.ip()).unwrap();
    other.publish(&place);
    other.publish(&pods[0].pod);
    let stranger = other.run(place);
    stranger.until("it serves and has looked", |report| report.discovery[0].rounds >= 2).await;

    formed(&pods).await;
    // A new pod finds the stranger by the name and dials it; the stranger dials the first one.
    pods.push(kube.create());
    kube.ready(&pods[2]).await;
    formed(&pods).await;
    pods[2].until("the stranger was dialled", |report| report.counters.dials_failed > 0).await;
    pods[2].process.says(&["WARN", &dead.pod.ip().to_string()]).await;
    let alone = stranger.until("it was refused", |report| report.counters.dials_failed > 0).await;
    let known: Vec<&str> = alone.members.iter().map(|member| &*member.id).collect();
    assert_eq!((known, alone.links.len()), (vec!["shop-0"], 0));
    for pod in &pods {
        let report = pod.until("it knows nobody of the other cluster", |report| {
            report.members.iter().all(|member| member.id.starts_with("chat-"))
        });
        assert_eq!(report.await.counters.violations, 0);
    }
    flow.open(service.url(), 2..5).await;
    in_touch(&flow, 5).await;
    flow.settle().await;
    lossless(&pods).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dns_is_down_for_a_while() {
    let Some((dnsmasq, node)) = tools() else { return };
    let outage = std::env::var(OUTAGE_VARIABLE).map_or(OUTAGE_S, |text| text.parse().unwrap());
    let mut kube = Kube::alone("pods-dns", &dnsmasq);
    let mut pods = deployed(&mut kube, 3).await;
    let (service, flow) = (kube.service(), Flow::start(kube.edge(), node));
    flow.open(service.url(), 0..3).await;
    in_touch(&flow, 3).await;

    for pod in &pods {
        pod.until("it has all addresses", |report| report.discovery[0].addresses.len() == 3).await;
    }
    kube.space.silence();
    let late = kube.place();
    let late = kube.run(late);
    tokio::time::sleep(Duration::from_secs(outage)).await;
    for pod in &pods {
        let report = pod.until("it notices", |report| report.discovery[0].last_error.is_some()).await;
        assert_eq!(report.discovery[0].addresses.len(), 3, "what it knew stays");
        assert!(pod.probe("/readyz").await.is_some_and(|(code, _)| code == 200));
    }
    let report = late.until("it looks", |report| report.discovery[0].rounds > 0).await;
    assert!(report.live && report.members.len() == 1);
    formed(&pods).await;
    goes_on(&flow, "without DNS").await;

    kube.space.speak();
    kube.publish(&late.pod);
    kube.ready(&late).await;
    pods.push(late);
    formed(&pods).await;
    for pod in &pods {
        pod.until("it has all addresses", |report| {
            report.discovery[0].addresses.len() == 4 && report.discovery[0].last_error.is_none()
        })
        .await;
    }
    let record = flow.settle().await;
    assert_eq!(record.sessions(), 3, "no client lost its connection");
    lossless(&pods).await;
}
