//! Who is not let in: another secret, another cluster, an older run.

use std::time::Duration;

use cluster_tests::cluster::formed;
use cluster_tests::logs::{self, logged};
use cluster_tests::{Live, RawPeer, Setup, eventually};
use roomcast::{ClusterSecret, Incarnation};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_secret_never_gets_in_and_both_say_why() {
    let ours = Setup::new("secret-ours");
    let mut theirs = Setup::new("secret-theirs");
    theirs.cluster = ours.cluster.clone();
    strangers(&ours, &theirs, "another cluster secret").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_with_the_same_secret_never_gets_in_and_both_say_why() {
    let ours = Setup::new("cluster-ours");
    let mut theirs = Setup::new("cluster-theirs");
    theirs.secret = ours.secret.clone();
    theirs.cluster = "other".into();
    strangers(&ours, &theirs, "another cluster name").await;
}

async fn strangers(ours: &Setup, theirs: &Setup, reason: &str) {
    let nodes = ours.formed(2).await;
    let stranger = theirs.start_at(&theirs.seat(0), [nodes[0].addr(), nodes[1].addr()]).await;
    logged(stranger.name(), &["failed to link", reason]).await;
    logged(nodes[0].name(), &["incoming connection refused", reason]).await;
    logged(nodes[1].name(), &["incoming connection refused", reason]).await;
    // It keeps trying, and is not logged again each time.
    let tries = stranger.report().counters.dials_failed;
    eventually("it tries again", || stranger.report().counters.dials_failed > tries + 2).await;
    assert_eq!(logs::count(nodes[0].name(), &["incoming connection refused"]), 1);
    assert!(stranger.report().links.is_empty());
    assert_eq!(stranger.members().len(), 1);
    formed(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_secrets_are_accepted_while_the_secret_is_changed() {
    let old = Setup::new("rotate");
    let mut new = old.clone();
    new.secret = ClusterSecret::generate().unwrap();
    let (first, second) = (old.seat(0), new.seat(1));
    let builder = old.builder(&first).also_accept(new.secret.clone());
    let a = old.launch(&first, builder).await;
    let builder = new.builder(&second).also_accept(old.secret.clone()).seeds([first.addr()]);
    let b = new.launch(&second, builder).await;
    formed(&[a, b]).await;
}

/// The certificate is right, the hello says another cluster: what a node of a later version could do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_in_the_hello_is_refused() {
    let setup = Setup::new("hello-cluster");
    let nodes = setup.formed(1).await;
    let mut peer = RawPeer::new(&setup, 9);
    peer.cluster = "other".into();
    refused(&nodes[0], &peer, "wrong cluster").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_protocol_version_is_refused() {
    let setup = Setup::new("hello-version");
    let nodes = setup.formed(1).await;
    let mut peer = RawPeer::new(&setup, 9);
    peer.protocol = (99, 100);
    refused(&nodes[0], &peer, "no common protocol version: ours 1 to 2, theirs 99 to 100").await;
    // A later version that still speaks ours is welcome.
    peer.protocol = (1, 100);
    let mut link = peer.link(nodes[0].addr(), "/x").await;
    assert!(link.next().await.is_some());
}

async fn refused(node: &Live, peer: &RawPeer, reason: &str) {
    let mut link = peer.open(node.addr()).await;
    peer.hello(&mut link).await;
    let answer = link.next().await.expect("the reason is sent before the connection is closed");
    let head = cluster_tests::raw::read(&answer);
    let roomcast::core::frame::Head::Refused(refusal) = head else { panic!("not refused: {head:?}") };
    assert!(refusal.text.contains(reason), "{refusal:?}");
    link.conn.close(0u32.into(), b"read the reason");
    logged(node.name(), &["incoming connection refused", reason]).await;
    assert!(node.report().links.is_empty() && node.members().len() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_of_a_member_is_refused() {
    let setup = Setup::new("older");
    let base = setup.start_at(&setup.seat(0), []).await;
    let seat = setup.seat(1);
    let builder = setup.builder(&seat).incarnation(Incarnation(100)).seeds([base.addr()]);
    let newer = setup.launch(&seat, builder).await;
    let nodes = [base, newer];
    formed(&nodes).await;

    let seat = setup.seat(1);
    let builder = setup.builder(&seat).incarnation(Incarnation(50)).seeds([nodes[0].addr(), nodes[1].addr()]);
    let older = setup.launch(&seat, builder).await;
    let reason = "older incarnation 50 of node older-1: incarnation 100 is known";
    logged(nodes[0].name(), &["incoming connection refused", reason]).await;
    // Both runs have the name `older-1`: what the older logs about its dials, the newer never does.
    logged("older-1", &["failed to link", reason]).await;
    logged("older-1", &["incoming connection refused", reason]).await;
    assert!(older.report().links.is_empty());
    assert_eq!(nodes[0].link("older-1").unwrap().links, 1, "the link of the newer run was not touched");
    formed(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_with_one_id_the_newer_wins_and_the_older_hears_of_it() {
    let setup = Setup::new("twins");
    let base = setup.start_at(&setup.seat(0), []).await;
    let seat = setup.seat(1);
    let older = setup.start_at(&seat, [base.addr()]).await;
    eventually("the older is linked", || base.is_linked_to("twins-1")).await;

    let newer = setup.start_at(&setup.seat(1), [base.addr(), older.addr()]).await;
    assert!(newer.incarnation() > older.incarnation());
    let run = newer.incarnation().0;
    eventually("the newer has taken over", || {
        base.link("twins-1").is_some_and(|link| link.incarnation == run)
    })
    .await;
    logged("twins-1", &["failed to link", "is in use by this node, too; give each node its own id"]).await;
    let known =
        format!("older incarnation {} of node twins-1: incarnation {run} is known", older.incarnation());
    logged(base.name(), &["incoming connection refused", &known]).await;
    eventually("the older has no link", || older.report().links.iter().all(|link| link.state == "down"))
        .await;
    // Both have the name `twins-1`, but only the older has something to tell.
    let conflict = ["another process uses the node id twins-1 and is newer", "stop one of the two"];
    logged("twins-1", &conflict).await;
    eventually("the older shows the conflict", || {
        let report = older.report();
        let reason = report.unready_reason().unwrap_or_default();
        !report.ready
            && report.conflict == Some(reason.clone())
            && reason.contains(&format!("incarnation {run} "))
    })
    .await;
    let tries = older.report().counters.dials_failed;
    eventually("it is refused again", || older.report().counters.dials_failed > tries + 2).await;
    assert_eq!(logs::count("twins-1", &conflict), 1);
    assert_eq!(logs::count("twins-1", &["closed by the peer: closed by the peer"]), 0);
    assert_eq!(newer.report().conflict, None);
    formed(&[base, newer]).await;
}

/// As when the clock went back between two runs: nobody else is there, and the others forget the newer run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_refused_as_older_is_let_in_when_the_newer_run_is_forgotten() {
    let setup = Setup::new("back").config(|config| {
        config.gossip.dead_node_grace = Duration::from_secs(2);
        config.members.dead_linger_ms = 500;
    });
    let base = setup.start_at(&setup.seat(0), []).await;
    let newer = setup.start_at(&setup.seat(1), [base.addr()]).await;
    eventually("the newer is linked", || base.is_linked_to("back-1")).await;
    let seat = setup.seat(1);
    let builder = setup.builder(&seat).incarnation(Incarnation(5)).seeds([base.addr()]);
    let older = setup.launch(&seat, builder).await;
    eventually("the older has heard of it", || older.report().conflict.is_some()).await;
    newer.kill().await;
    eventually("there is no conflict any more", || older.report().conflict.is_none()).await;
    assert!(older.is_linked_to("back-0") && older.report().ready);
    logged("back-1", &["takes this run of the node id for the newest again"]).await;
    formed(&[base, older]).await;
}
