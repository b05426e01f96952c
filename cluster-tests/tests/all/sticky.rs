//! The official client behind a load balancer: long-polling needs one that keeps a client at its node.

use std::path::Path;

use cluster_tests::chat::{ChatCluster, linked};
use cluster_tests::process::Process;
use cluster_tests::requirement::{self, JS};
use serde_json::{Value, json};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_polling_needs_a_balancer_that_keeps_a_client_at_its_node() {
    let Some(program) = requirement::node() else { return };
    let cluster = ChatCluster::new("common");
    let a = cluster.start("a", &[]).await;
    let b = cluster.start("b", &[a.listen]).await;
    linked(&[&a, &b]).await;
    let mut command = Command::new(program);
    command.arg(Path::new(JS).join("sticky.mjs"));
    let script = Process::spawn("sticky.mjs", command);
    script.write(&json!({ "urls": [a.url(), b.url()] }).to_string()).await;
    let said = async |name: &str| -> Value { serde_json::from_str(&script.line(name).await).unwrap() };

    // Each request goes to the next node: the session is at the other one.
    let lost = said("next-polling ").await;
    assert_eq!(lost["connected"], 0, "{lost}");
    for error in lost["errors"].as_array().unwrap() {
        assert_eq!(error["status"], 400, "{lost}");
        assert!(error["body"].as_str().unwrap().contains("Session ID unknown"), "{lost}");
    }
    // A WebSocket is one connection, so it stays where it is; a cookie keeps the others.
    for (name, transport) in
        [("next-websocket ", "websocket"), ("sticky-polling ", "polling"), ("sticky-websocket ", "websocket")]
    {
        let through = said(name).await;
        assert_eq!(through["transports"], json!([transport, transport]), "{name}: {through}");
        let mut nodes: Vec<&str> =
            through["nodes"].as_array().unwrap().iter().map(|node| node.as_str().unwrap()).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, ["a", "b"], "{name}: {through}");
        assert_eq!(through["errors"], 0, "{name}: {through}");
    }
}
