//! Clusters on real ground: a process for each node, on loopback and in network namespaces. What happens here happens to
//! the simulated ones with many seeds; these show that processes, signals and real networks are no different.

use std::time::Duration;

use cluster_tests::harness::ground::Settings;
use cluster_tests::harness::history::{Entry, History, What};
use cluster_tests::harness::processes::Processes;
use cluster_tests::process::{Process, chat_program, with_variable};
use cluster_tests::wait::DEADLINE;
use cluster_tests::{Cluster, ClusterBuilder, eventually, requirement};

const ROOM: &str = "lobby";
/// How often each node emits.
const EVERY: Duration = Duration::from_millis(20);

fn processes() -> Processes {
    Processes::new(env!("CARGO_BIN_EXE_cluster-node"))
}

fn cluster(ground: Processes) -> ClusterBuilder {
    Cluster::builder().on(ground).converges_within(DEADLINE)
}

/// All members join the room, and every node emits to it until the end.
async fn steady(cluster: &mut Cluster) {
    for node in cluster.nodes() {
        cluster.join(node, ROOM).await;
        cluster.settle(node).await;
    }
    let nodes = cluster.len();
    let settled = |history: &History| count(history, |what| matches!(what, What::Settled { .. })) >= nodes;
    cluster.eventually(DEADLINE, async |cluster| settled(cluster.history())).await;
    for node in cluster.nodes() {
        cluster.traffic(node, ROOM, EVERY).await;
    }
    flows(cluster).await;
}

/// Waits until messages have come from every node to every other one from now on.
async fn flows(cluster: &mut Cluster) {
    let begin = cluster.now();
    cluster
        .eventually(DEADLINE, async |cluster| {
            let nodes = cluster.nodes();
            let later = |entry: &&Entry| entry.at > begin;
            let entries: Vec<_> = cluster.history().entries.iter().rev().take_while(later).collect();
            nodes.clone().all(|to| {
                nodes.clone().all(|from| {
                    entries.iter().any(|entry| {
                        entry.node == to
                            && matches!(entry.what, What::Delivered { from: sender, .. } if sender == from)
                    })
                })
            })
        })
        .await;
}

fn count(history: &History, wanted: impl Fn(&What) -> bool) -> usize {
    history.entries.iter().filter(|entry| wanted(&entry.what)).count()
}

/// Waits until `node` has no link to `peer` that is up.
async fn unlinked(cluster: &mut Cluster, node: usize, peer: usize) {
    let id = cluster.id(peer).to_owned();
    cluster
        .eventually(DEADLINE, async |cluster| {
            let report = cluster.report(node).await.expect("it runs");
            !report.links.iter().any(|link| link.peer == id && link.state == "up")
        })
        .await;
}

/// Waits until `node` lists `peer` in this state, or, without one, not at all.
async fn listed(cluster: &mut Cluster, node: usize, peer: usize, state: Option<&str>) {
    let id = cluster.id(peer).to_owned();
    cluster
        .eventually(DEADLINE, async |cluster| {
            let report = cluster.report(node).await.expect("it runs");
            report.members.iter().find(|member| member.id == id).map(|member| &*member.state) == state
        })
        .await;
}

/// The settings with which a cut of seconds is a long one.
fn short() -> Settings {
    Settings {
        resume_window_ms: Some(500),
        dead_linger_ms: Some(500),
        dead_node_grace_ms: Some(10_000),
        ..Settings::default()
    }
}

/// The other side is away until it is suspected, and comes back: nothing is lost but what is counted.
async fn split(cluster: &mut Cluster) {
    steady(cluster).await;
    cluster.partition([0], [1, 2]).await;
    for node in [1, 2] {
        unlinked(cluster, 0, node).await;
        unlinked(cluster, node, 0).await;
    }
    cluster.heal().await;
    cluster.converged(DEADLINE).await;
    flows(cluster).await;
}

#[test]
fn a_split_heals() {
    let history = cluster(processes()).run(split);
    assert_eq!(count(&history, |what| matches!(what, What::Gap { .. })), 0, "it was shorter than the window");
}

#[test]
fn a_way_that_is_cut_in_one_direction_heals() {
    cluster(processes()).run(async |cluster: &mut Cluster| {
        steady(cluster).await;
        cluster.one_way(0, 1).await;
        unlinked(cluster, 0, 1).await;
        unlinked(cluster, 1, 0).await;
        cluster.heal().await;
        cluster.converged(DEADLINE).await;
        flows(cluster).await;
    });
}

#[test]
fn a_split_that_outlasts_all_memory_heals() {
    cluster(processes()).settings(short()).run(async |cluster: &mut Cluster| {
        steady(cluster).await;
        cluster.partition([0], [1, 2]).await;
        for node in [1, 2] {
            listed(cluster, 0, node, None).await;
            listed(cluster, node, 0, None).await;
        }
        cluster.heal().await;
        cluster.converged(DEADLINE).await;
        flows(cluster).await;
    });
}

#[test]
fn a_frozen_process_comes_back() {
    cluster(processes()).run(async |cluster: &mut Cluster| {
        steady(cluster).await;
        cluster.freeze(2).await;
        unlinked(cluster, 0, 2).await;
        unlinked(cluster, 1, 2).await;
        assert!(cluster.report(2).await.is_none(), "it is frozen");
        cluster.thaw(2).await;
        cluster.converged(DEADLINE).await;
        flows(cluster).await;
    });
}

#[test]
fn a_process_that_is_killed_comes_back_under_its_name() {
    cluster(processes()).run(async |cluster: &mut Cluster| {
        steady(cluster).await;
        cluster.kill(1).await;
        unlinked(cluster, 0, 1).await;
        cluster.restart(1).await;
        cluster.converged(DEADLINE).await;
        flows(cluster).await;
        // Before anybody has noticed, and at another address.
        cluster.replace_address(2).await;
        cluster.restart(2).await;
        cluster.converged(DEADLINE).await;
        flows(cluster).await;
    });
}

#[test]
fn all_restart_one_after_the_other() {
    let history = cluster(processes()).run(async |cluster: &mut Cluster| {
        steady(cluster).await;
        for node in cluster.nodes() {
            cluster.retire(node).await;
            cluster.restart(node).await;
            cluster.converged(DEADLINE).await;
        }
        flows(cluster).await;
    });
    // What comes to a node after it has said goodbye is lost and counted; what it had sent is not.
    let missed = |what: &What| matches!(what, What::Gap { outgoing: false, .. });
    assert_eq!(count(&history, missed), 0, "they left in order");
}

#[test]
fn a_bad_network_loses_nothing() {
    let history = cluster(processes()).run(async |cluster: &mut Cluster| {
        steady(cluster).await;
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            cluster.lossy(a, b, 0.2).await;
            cluster.reorder(a, b, 0.1).await;
            cluster.duplicate(a, b, 0.1).await;
            cluster.delay(a, b, Duration::from_millis(1)..Duration::from_millis(20)).await;
        }
        for node in cluster.nodes() {
            cluster.emit(node, ROOM, 200).await;
        }
        for _ in 0..5 {
            flows(cluster).await;
        }
    });
    let delivered = count(&history, |what| matches!(what, What::Delivered { .. }));
    assert!(delivered >= 3 * 3 * 200, "{delivered}");
}

#[test]
fn nodes_in_namespaces_survive_a_split_and_new_addresses() {
    if requirement::namespaces().is_none() {
        return;
    }
    cluster(processes().in_namespaces("real-a")).run(async |cluster: &mut Cluster| {
        split(cluster).await;
        cluster.one_way(1, 2).await;
        unlinked(cluster, 1, 2).await;
        cluster.replace_address(0).await;
        cluster.restart(0).await;
        cluster.heal().await;
        cluster.converged(DEADLINE).await;
        flows(cluster).await;
    });
}

/// The example as the program of a user.
fn chat() -> Processes {
    let program = chat_program().to_str().expect("a path of text").to_owned();
    let words = "--node --id {id} --http {ip}:0 --admin {admin} --listen {listen} --seed={seed}";
    Processes::program(std::iter::once(program).chain(words.split(' ').map(str::to_owned)))
}

/// Its members as the others see them, while it is frozen, killed, restarted and asked to leave.
async fn disturb(cluster: &mut Cluster) {
    cluster.freeze(2).await;
    assert!(cluster.report(2).await.is_none(), "it is frozen");
    unlinked(cluster, 0, 2).await;
    cluster.thaw(2).await;
    cluster.converged(DEADLINE).await;
    let before = cluster.report(1).await.expect("it runs").node.incarnation;
    cluster.kill(1).await;
    listed(cluster, 0, 1, Some("dead")).await;
    cluster.restart(1).await;
    cluster.converged(DEADLINE).await;
    assert!(cluster.report(1).await.expect("it runs").node.incarnation > before);
    cluster.retire(2).await;
    listed(cluster, 0, 2, None).await;
}

#[test]
fn a_program_of_a_user_is_frozen_and_killed() {
    cluster(chat()).run(disturb);
}

#[test]
fn a_program_of_a_user_is_cut_off() {
    if requirement::namespaces().is_none() {
        return;
    }
    cluster(chat().in_namespaces("real-b")).run(async |cluster: &mut Cluster| {
        cluster.partition([0], [1, 2]).await;
        listed(cluster, 0, 2, Some("dead")).await;
        listed(cluster, 1, 0, Some("dead")).await;
        cluster.heal().await;
        cluster.converged(DEADLINE).await;
    });
}

/// What the copies of this program for [`nothing_is_left_of_a_user_s_program`] have in their environment.
const MARK: &str = "REAL_LEFT_MARK";

/// A server that is started by a script, as npm does it, hears nothing of its input, and is in the background of the script.
fn wrapped() -> Processes {
    let program = chat_program().to_str().expect("a path of text");
    let server =
        format!("{program} --node --id {{id}} --http {{ip}}:0 --admin {{admin}} --listen {{listen}}");
    Processes::program(["sh", "-c", &format!("{server} </dev/null & wait")])
}

#[test]
fn nothing_is_left_of_a_user_s_program() {
    if std::env::var_os(MARK).is_some() {
        cluster(wrapped()).nodes(1).run(async |cluster: &mut Cluster| {
            cluster.freeze(0).await;
            println!("\nin the middle of it");
            let mut how = String::new();
            std::io::stdin().read_line(&mut how).unwrap();
            assert_ne!(how.trim(), "panic", "as it was told");
            cluster.thaw(0).await;
        });
        return;
    }
    if !std::path::Path::new("/proc/self/environ").exists() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::join!(leaves_nothing("panic"), leaves_nothing("kill"), leaves_nothing("return"));
    });
}

/// Starts this program once more for the test above alone, and ends it in the middle.
async fn leaves_nothing(how: &str) {
    let mark = format!("{how}-{}", std::process::id());
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["real::nothing_is_left_of_a_user_s_program", "--exact", "--nocapture"]).env(MARK, &mark);
    let mut copy = Process::spawn(how, command);
    copy.line("in the middle of it").await;
    // This copy, the shell that ends the node, the script, the server in it.
    assert_eq!(with_variable(MARK, &mark), 4, "{how}");
    match how {
        "kill" => copy.kill().await,
        _ => copy.write(how).await,
    }
    assert_eq!(copy.end().await.success(), how == "return");
    eventually(format!("nothing is left after {how}"), || with_variable(MARK, &mark) == 0).await;
}

/// A program that starts a cluster is told so when it is a node of one itself, and starts nothing.
#[test]
fn nodes_do_not_start_nodes_without_end() {
    const ITSELF: &str = "REAL_NODES_OF_NODES";
    let name = "real::nodes_do_not_start_nodes_without_end";
    if std::env::var_os(ITSELF).is_some() {
        // Its main does not begin with `serve_if_told`: as a node it comes here again.
        let program = std::env::current_exe().unwrap();
        let words = [program.to_str().expect("a path of text"), name, "--exact", "--nocapture"];
        cluster(Processes::program(words)).run(async |_: &mut Cluster| {});
        return;
    }
    let copy = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(ITSELF, "1")
        .output()
        .unwrap();
    assert!(!copy.status.success());
    let said = String::from_utf8_lossy(&copy.stderr);
    assert!(said.contains("starts a cluster itself: let its main begin with serve_if_told"), "{said}");
}
