//! Scenarios on simulated ground. More seeds: `just sim`.

use cluster_tests::harness::scenarios;

/// The seeds that every scenario is played with.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

fn play(name: &str) {
    let scenario = scenarios::find(name).unwrap_or_else(|| panic!("there is no scenario {name}"));
    for seed in SEEDS {
        scenario.simulate(seed);
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
    one_way_split,
    bridge,
    flapping,
    long_split,
    split_of_minutes,
    half_open,
    loss,
    disorder,
    join_storm,
    frozen,
    kill_and_restart,
    restart_in_split,
    rolling_restart,
    rolling_kill,
    all_at_once,
    new_addresses,
    clocks_ahead,
    clock_back,
    hundred_restarts,
);
