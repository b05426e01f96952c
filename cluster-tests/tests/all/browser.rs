//! Pages in a headless browser: the one of the example `chat`, where two pages on two nodes talk to each other, and the
//! dashboard.

use std::path::{Path, PathBuf};

use cluster_tests::chat::{ChatCluster, linked};
use cluster_tests::process::Process;
use cluster_tests::requirement::{self, JS};
use serde_json::json;
use tokio::process::Command;

/// What happens in the pages stands in the script, which asks for what it cannot do itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pages_on_two_nodes_talk_to_each_other() {
    let (Some(node), Some(chromium)) = (requirement::node(), requirement::chromium()) else { return };
    let [a, mut b, c] = ChatCluster::new("common").three().await;
    let mut script = Command::new(node);
    let options = json!({
        "chromium": chromium,
        "first": a.url(),
        "second": b.url(),
        "screenshots": screenshots(),
    });
    script.arg(Path::new(JS).join("page.mjs")).arg(options.to_string());
    let mut script = Process::spawn("page.mjs", script);

    // Each step has its own deadline.
    for step in ["opened", "talked", "kept rooms apart", "stop the second node"] {
        script.line(step).await;
    }
    b.kill().await;
    script.write("stopped").await;
    script.line("start the second node").await;
    b.restart().await;
    linked(&[&a, &b, &c]).await;
    script.write("started").await;
    script.line("done").await;
    let status = script.end().await;
    assert!(status.success(), "{status}");
}

/// The dashboard of a cluster in which a node is killed, started again, and another one frozen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_shows_what_happens_to_nodes() {
    let (Some(node), Some(chromium)) = (requirement::node(), requirement::chromium()) else { return };
    let [a, mut b, c] = ChatCluster::new("common").three().await;
    let mut script = Command::new(node);
    let options = json!({
        "chromium": chromium,
        "first": format!("http://{}", a.admin),
        "second": format!("http://{}", b.admin),
        "screenshots": screenshots(),
    });
    script.arg(Path::new(JS).join("dashboard.mjs")).arg(options.to_string());
    let mut script = Process::spawn("dashboard.mjs", script);

    script.line("shown").await;
    script.line("kill the second node").await;
    b.kill().await;
    script.write("killed").await;
    script.line("start the second node").await;
    b.restart().await;
    script.write("started").await;
    script.line("freeze the third node").await;
    c.process.signal("STOP").await;
    script.write("frozen").await;
    script.line("wake the third node").await;
    c.process.signal("CONT").await;
    script.write("awake").await;
    for step in ["frozen", "accessible", "done"] {
        script.line(step).await;
    }
    let status = script.end().await;
    assert!(status.success(), "{status}");
}

/// Beside the program of this test, which is not in git.
fn screenshots() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().join("screenshots")
}
