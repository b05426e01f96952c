//! The goals of `docs/faults.md` that the simulation can tell: its times are exact, whatever the machine has to do. More
//! seeds: `just goals`.

use std::time::Duration;

use cluster_tests::harness::goals;

#[test]
fn a_killed_node_is_suspected_within_3_s_and_evicted_within_6_s() {
    for (seed, age_ms) in [(1, 2_000), (2, 5_000), (3, 30_000)] {
        let noticed = goals::kill(seed, Duration::from_millis(age_ms));
        assert!(noticed.suspected <= goals::SUSPECTED, "seed {seed}: {noticed:?}");
        assert!(noticed.evicted <= goals::EVICTED, "seed {seed}: {noticed:?}");
        assert!(
            noticed.answered <= goals::SUSPECTED,
            "seed {seed}: a question ends when it is suspected: {noticed:?}"
        );
    }
}

#[test]
fn members_are_complete_3_s_after_a_split_and_interest_is_equal_1_s_later() {
    for (seed, split_ms) in [(1, 3_000), (2, 8_000), (3, 20_000), (4, 60_000)] {
        goals::split(seed, Duration::from_millis(split_ms));
    }
}

#[test]
fn who_leaves_in_order_loses_nothing() {
    (1..=3).for_each(goals::leave);
}
