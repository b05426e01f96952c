//! Nothing is left of a test, however it ends.

use std::io::{Read, Write};
use std::path::Path;

use cluster_tests::pods::flow::Flow;
use cluster_tests::pods::kube::{Kube, formed};
use cluster_tests::process::{Process, with_variable};
use cluster_tests::wait::eventually;
use tokio::process::Command;

use super::{in_touch, tools};

const PREFIX: &str = "pods-left";
/// What this program is when it is the test that ends: a mark that all its processes inherit.
const MARK: &str = "PODS_LEFT_MARK";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_test_that_fails_or_is_killed() {
    if std::env::var_os(MARK).is_some() {
        return ends_in_the_middle().await;
    }
    let Some(_) = tools() else { return };
    // Side by side: none of them touches what the others have.
    tokio::join!(leaves_nothing("panic"), leaves_nothing("abort"), leaves_nothing("kill"));
}

/// Starts this program once more for this test alone, ends it in the middle, and looks for what it had.
async fn leaves_nothing(how: &str) {
    let mark = format!("{how}-{}", std::process::id());
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = "pods::left::nothing_is_left_of_a_test_that_fails_or_is_killed";
    command.args([test, "--exact", "--nocapture"]).env(MARK, &mark);
    let mut copy = Process::spawn(how, command);
    let id: u32 = copy.line("in the middle of ").await.parse().unwrap();
    let start = format!("{PREFIX}.{id}.");
    let begins = |folder: &str| begin_with(Path::new(folder), &start);
    // The switch, the pod of the DNS server, the one of clients, two of the deployment; all but the switch have files.
    assert_eq!((begins("/run/netns"), begins("/etc/netns")), (5, 4), "{how}");
    // This copy, its guard, the DNS server, two nodes, the clients.
    assert_eq!(with_variable(MARK, &mark), 6, "{how}");
    match how {
        "kill" => copy.kill().await,
        _ => copy.write(how).await,
    }
    assert!(!copy.end().await.success());
    eventually(format!("nothing is left after {how}"), || {
        (begins("/run/netns"), begins("/etc/netns"), with_variable(MARK, &mark)) == (0, 0, 0)
    })
    .await;
}

/// The test that does not come to its end.
async fn ends_in_the_middle() {
    let (dnsmasq, node) = tools().unwrap();
    let mut kube = Kube::alone(PREFIX, &dnsmasq);
    let pods = [kube.create(), kube.create()];
    kube.all_ready(&pods).await;
    formed(&pods).await;
    let (service, flow) = (kube.service(), Flow::start(kube.edge(), node));
    flow.open(service.url(), 0..2).await;
    in_touch(&flow, 2).await;
    // Whoever runs the tests may have written half a line.
    let told = format!("\nin the middle of {}\n", std::process::id());
    std::io::stdout().write_all(told.as_bytes()).unwrap();
    let mut how = [0; 5];
    std::io::stdin().read_exact(&mut how).unwrap();
    match &how {
        b"abort" => std::process::abort(),
        how => panic!("as it was told: {}", String::from_utf8_lossy(how)),
    }
}

/// How many names in a folder begin so.
fn begin_with(folder: &Path, start: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(start)).count()
}
