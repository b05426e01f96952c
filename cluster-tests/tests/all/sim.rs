//! Scenarios on simulated ground. More seeds: `just sim`.

use cluster_tests::harness::scenarios;

/// The seeds that every scenario is played with, but those that take seconds: one is enough of them.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=2;
const LONG: [&str; 2] = ["split_of_minutes", "hundred_restarts"];

/// Seeds that once found something wrong: a link that only one side had given up kept both apart for seconds.
const FOUND: [(&str, u64); 3] = [("split", 141), ("split", 229), ("split", 241)];

fn play(name: &str) {
    let scenario = scenarios::find(name).unwrap_or_else(|| panic!("there is no scenario {name}"));
    let seeds = if LONG.contains(&name) { 1..=1 } else { SEEDS };
    for seed in seeds {
        scenario.simulate(seed);
    }
    for (_, seed) in FOUND.iter().filter(|(found, _)| *found == name) {
        scenario.simulate(*seed);
    }
}

macro_rules! simulated {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            play(stringify!($name));
        })*

        #[test]
        fn every_scenario_is_played() {
            // A thousand restarts are for `just sim`.
            let played = [$(stringify!($name)),*, "thousand_restarts"];
            for scenario in scenarios::ALL {
                assert!(played.contains(&scenario.name), "{} is never played", scenario.name);
            }
        }
    };
}

simulated!(
    split,
    blip,
    one_way_split,
    bridge,
    flapping,
    long_split,
    split_of_minutes,
    half_open,
    loss,
    disorder,
    join_storm,
    late_joins,
    frozen,
    kill_and_restart,
    gone_for_good,
    restart_in_split,
    rolling_restart,
    rolling_kill,
    all_at_once,
    new_addresses,
    clocks_ahead,
    clock_back,
    hundred_restarts,
);

/// An application of a user, on every node: a member that counts what it gets in its own namespace.
mod application {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use cluster_tests::Cluster;

    #[test]
    fn an_application_goes_through_a_split() {
        let got = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&got);
        let application = move |node: roomcast::Node| {
            let counter = Arc::clone(&counter);
            async move {
                let chat = node.namespace("/chat").unwrap();
                let member = chat.connect(move |_| {
                    counter.fetch_add(1, Ordering::Relaxed);
                });
                member.join("news").unwrap();
                // The member is there as long as its node.
                std::future::pending::<()>().await;
            }
        };
        Cluster::builder().nodes(3).seed(7).application(application).run(async |cluster: &mut Cluster| {
            cluster.partition([0], [1, 2]).await;
            cluster.sleep(Duration::from_secs(2)).await;
            let receipt = cluster
                .on(0, |node| async move {
                    let chat = node.namespace("/chat").unwrap();
                    chat.to("news").emit("written during the split").unwrap()
                })
                .await;
            assert_eq!((receipt.targeted, receipt.queued), (2, 2));
            assert_eq!(got.load(Ordering::Relaxed), 1, "only the member here has it");
            cluster.heal().await;
            let all = Duration::from_secs(10);
            cluster.eventually(all, async |_| got.load(Ordering::Relaxed) == 3).await;
            // A node that restarts runs the application again.
            cluster.restart(2).await;
            cluster.converged(all).await;
            let size = cluster.on(0, |node| async move {
                *node.namespace("/chat").unwrap().room_size("news").await.unwrap()
            });
            assert_eq!(size.await, 3);
        });
    }

    #[test]
    fn an_application_may_emit_until_the_end() {
        let application = async |node: roomcast::Node| {
            let chat = node.namespace("/chat").unwrap();
            let member = chat.connect(|_| {});
            member.join("news").unwrap();
            loop {
                chat.to("news").emit("again").unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        Cluster::builder().nodes(3).seed(7).application(application).run(async |cluster: &mut Cluster| {
            cluster.partition([0], [1, 2]).await;
            cluster.sleep(Duration::from_secs(2)).await;
        });
    }
}

#[test]
fn by_the_seed_some_nodes_speak_an_older_version() {
    let blip = scenarios::find("blip").unwrap();
    blip.builder(4).run(async |cluster: &mut cluster_tests::Cluster| {
        for node in [0, 1] {
            let links = cluster.report(node).await.unwrap().links;
            assert_eq!(links.len(), 4);
            for link in links {
                // Nodes 0 and 4 of five.
                let old = node == 0 || ["n0", "n4"].contains(&link.peer.as_str());
                assert_eq!(link.protocol, Some(if old { 1 } else { 2 }), "n{node} and {}", link.peer);
            }
        }
    });
}
