//! Measures the goals of `docs/faults.md` on simulated ground, with so many seeds: `goals [SEEDS=20 [FIRST=1]]`.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use cluster_tests::harness::goals;

/// How long a node has been there when it is killed.
const AGES_MS: [u64; 4] = [0, 2_000, 10_000, 60_000];
/// How long a split is: below and above the resume window (15 s), and above the grace of gossip for the dead (120 s).
const SPLITS_MS: [u64; 5] = [500, 3_000, 8_000, 20_000, 150_000];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> = words.iter().map(|word| word.rsplit('=').next()?.parse().ok()).collect();
    let (seeds, first) = match numbers.as_deref() {
        Some([]) => (20, 1),
        Some(&[seeds]) => (seeds, 1),
        Some(&[seeds, first]) => (seeds, first),
        _ => {
            eprintln!("goals [SEEDS=20 [FIRST=1]]: how many seeds, and the first of them");
            return ExitCode::from(if words == ["--help"] { 0 } else { 2 });
        }
    };
    let seeds = first..first.saturating_add(seeds);
    println!(
        "Milliseconds of simulated time, the slowest of five nodes; {} seeds each.\n",
        seeds.end - first
    );
    println!("| what | median | 90 % | longest |\n|---|---:|---:|---:|");
    for age in AGES_MS.map(Duration::from_millis) {
        let all = each(seeds.clone(), |seed| goals::kill(seed, age));
        let after = format!("a node that joined {age:?} ago is killed");
        row(&format!("{after}: suspected"), all.iter().map(|noticed| noticed.suspected));
        row(&format!("{after}: evicted"), all.iter().map(|noticed| noticed.evicted));
        row(&format!("{after}: a question to it ends"), all.iter().map(|noticed| noticed.answered));
    }
    for length in SPLITS_MS.map(Duration::from_millis) {
        let all = each(seeds.clone(), |seed| goals::split(seed, length));
        row(
            &format!("after a split of {length:?}: members complete"),
            all.iter().map(|(members, _)| *members),
        );
        row(&format!("after a split of {length:?}: interest equal, more"), all.iter().map(|(_, more)| *more));
    }
    each(seeds, goals::leave);
    println!("\nA node left in order under traffic with each seed: nothing lost.");
    ExitCode::SUCCESS
}

/// Plays all seeds on two threads.
fn each<T: Send>(seeds: Range<u64>, play: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let (next, all) = (Mutex::new(seeds), Mutex::new(Vec::new()));
    let take = || next.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) = take() {
                    let one = play(seed);
                    if let Ok(mut all) = all.lock() {
                        all.push(one);
                    }
                }
            });
        }
    });
    all.into_inner().unwrap_or_default()
}

fn row(what: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
    let [median, most, longest] = [50, 90, 100].map(|part| at(part).map_or(0, Duration::as_millis));
    println!("| {what} | {median} | {most} | {longest} |");
}
