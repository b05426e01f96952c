//! Plays scenarios on simulated ground.
//!
//! ```sh
//! scenario                    # lists them
//! scenario NAME [SEED=7]      # plays one and prints its story
//! scenario --all [SEEDS=20 [FIRST=1]]   # plays all with so many seeds, on all processors; prints what failed
//! ```

use std::collections::VecDeque;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::harness::scenarios::{self, Scenario};
use cluster_tests::harness::story::story;
use cluster_tests::logs;
use tokio::time::Instant;

fn main() -> ExitCode {
    // With RUST_LOG, what the nodes log is shown.
    logs::capture();
    let mut words = std::env::args().skip(1);
    let name = words.next();
    let Some(numbers) = words.map(|word| number_of(&word)).collect::<Option<Vec<u64>>>() else {
        return usage("give a number, as SEED=7");
    };
    match (name.as_deref(), &numbers[..]) {
        (None, _) => usage("give the name of a scenario"),
        (Some("--help"), []) => {
            usage("scenario NAME [SEED=1], or scenario --all [SEEDS=20 [FIRST=1]]");
            ExitCode::SUCCESS
        }
        (Some("--all"), [] | [_] | [_, _]) => {
            all(numbers.first().copied().unwrap_or(20), numbers.get(1).copied().unwrap_or(1))
        }
        (Some(name), [] | [_]) => match scenarios::find(name) {
            Some(scenario) => play(scenario, numbers.first().copied().unwrap_or(1)),
            None => usage("there is no such scenario"),
        },
        _ => usage("give one seed only"),
    }
}

/// `7`, or `SEED=7`.
fn number_of(word: &str) -> Option<u64> {
    word.rsplit('=').next()?.parse().ok()
}

fn usage(wrong: &str) -> ExitCode {
    eprintln!("{wrong}; the scenarios are:");
    for scenario in scenarios::ALL {
        eprintln!("  {:<18} {}", scenario.name, scenario.about);
    }
    ExitCode::from(2)
}

fn play(scenario: &Scenario, seed: u64) -> ExitCode {
    let begin = Instant::now();
    // A failure panics, and prints its story.
    let history = scenario.simulate(seed);
    let ids: Vec<String> = (0..scenario.nodes).map(|node| format!("n{node}")).collect();
    println!("{}", story(&history, &ids));
    let time = history.entries.last().map_or(Duration::ZERO, |entry| entry.at);
    println!("{} with seed {seed}: nothing is wrong; {time:.1?} in {:.1?}", scenario.name, begin.elapsed());
    ExitCode::SUCCESS
}

fn all(seeds: u64, first: u64) -> ExitCode {
    let work = scenarios::ALL.iter().filter(|scenario| scenario.name != "thousand_restarts");
    let work =
        work.flat_map(|scenario| (first..first.saturating_add(seeds)).map(move |seed| (scenario, seed)));
    let work: VecDeque<_> = work.collect();
    let (left, work, failed) = (AtomicUsize::new(work.len()), Mutex::new(work), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = || work.lock().ok()?.pop_front();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((scenario, seed)) = next() {
                    let good = catch_unwind(|| scenario.simulate(seed)).is_ok();
                    let left = left.fetch_sub(1, Ordering::Relaxed) - 1;
                    if left.is_multiple_of(100) {
                        eprintln!("{left} left");
                    }
                    if !good && let Ok(mut failed) = failed.lock() {
                        failed.push(format!("just partition {} SEED={seed}", scenario.name));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    println!(
        "{} scenarios with {seeds} seeds from {first} on: {} failed",
        scenarios::ALL.len() - 1,
        failed.len()
    );
    for command in &failed {
        println!("  {command}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
