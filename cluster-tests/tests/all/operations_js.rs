//! The official JavaScript client through every operation of socketioxide, over three real nodes. The clients come 200
//! ms after the servers have started, however far the cluster is formed then.

mod server;

use std::path::Path;
use std::time::Duration;

use cluster_tests::process::Process;
use cluster_tests::requirement::{self, JS};
use cluster_tests::wait::within;
use cluster_tests::{Seeds, Setup, eventually};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

use self::server::Server;
use super::sockets::Parser;

/// When the clients connect, after the start of the servers.
const HEAD_START: Duration = Duration::from_millis(200);
/// Far more than the run takes; each condition in it has a deadline of its own.
const RUN: Duration = Duration::from_secs(180);
/// What the script goes through.
const OPERATIONS: [&str; 21] = [
    "connect by each transport",
    "emit while the cluster is formed",
    "fetch sockets",
    "broadcast to selections",
    "volatile",
    "emit to one remote socket",
    "large and empty attachments",
    "acknowledgements of selections",
    "acknowledgement of one remote socket",
    "one socket never answers",
    "join and leave by selections",
    "join and leave of one remote socket",
    "rooms",
    "counts",
    "server-side emit",
    "settled join",
    "room events",
    "disconnect a room",
    "disconnect one remote socket",
    "reconnect to another node",
    "reconnect after a broken connection",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_in_exact_namespaces() {
    every_operation("js-json-exact", Parser::Json, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_in_flood_namespaces() {
    every_operation("js-json-flood", Parser::Json, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn msgpack_in_exact_namespaces() {
    every_operation("js-msgpack-exact", Parser::MsgPack, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn msgpack_in_flood_namespaces() {
    every_operation("js-msgpack-flood", Parser::MsgPack, false).await;
}

async fn every_operation(name: &str, parser: Parser, exact: bool) {
    let Some(node) = requirement::node() else { return };
    let mut command = Command::new(node);
    command.arg(Path::new(JS).join("operations.mjs"));
    // Before the servers: what Node.js takes to start is not to give them time.
    let script = Process::spawn("operations.mjs", command);
    script.line("ready").await;

    let nodes = Setup::new(name).start(3, Seeds::First).await;
    let mut servers = Vec::new();
    for node in &nodes {
        servers.push(Server::start(node, parser, exact).await);
    }
    let clients_come = Instant::now() + HEAD_START;
    let options = json!({
        "urls": servers.iter().map(|server| &server.url).collect::<Vec<_>>(),
        "nodes": nodes.iter().map(|node| node.name()).collect::<Vec<_>>(),
        "parser": if parser == Parser::MsgPack { "msgpack" } else { "common" },
        "exact": exact,
    });
    sleep_until(clients_come).await;
    script.write(&options.to_string()).await;

    within(RUN, format!("{name}: the script ends"), || script.has_ended()).await;
    let lines = script.lines_from(1);
    let reports: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    if let Some(report) = reports.iter().find(|report| !report["fault"].is_null()) {
        panic!("{name}: {}: {}", report["operation"], report["fault"].as_str().unwrap_or_default());
    }
    let done: Vec<&str> = reports.iter().filter_map(|report| report["operation"].as_str()).collect();
    assert_eq!(done, OPERATIONS, "{name}");
    let times: Vec<String> = reports.iter().map(|report| report["ms"].to_string()).collect();
    println!("{name}: {} ms", times.join(" + "));
    // Each watch of rooms is a question to the others as long as its server lives.
    drop(servers);
    for node in &nodes {
        eventually("nothing is pending", || node.pending_requests() == (0, 0)).await;
    }
    for node in nodes {
        node.stop().await;
    }
}
