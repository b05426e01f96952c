//! `cargo bench -p cluster-tests --bench peers`: roomcast beside raw quinn, raw TCP, Redis, NATS, Zenoh and
//! socketioxide-redis, in rounds that take turns. `docs/performance.md` says what is measured, and how.
//!
//! The systems run in a program of its own (`cluster-tests/peers`), which this builds and starts: a process that emits
//! and one or more that receive, the same for all.

mod measure;
mod options;
#[path = "../common/programs.rs"]
mod programs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cluster_tests::peers::{Results, SYSTEMS};
use cluster_tests::requirement::in_path;
use measure::{feature, measure};
use options::{HELP, Options};
use programs::{broker, build, save, target};

/// What the bench ends with when something is not as it must be.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Where the results go, in the target directory.
const FILE: &str = "bench/peers.json";
/// How many nodes an emit goes to, where that is what is measured; with messages of so many bytes.
const FAN_OUT: ([usize; 3], usize) = ([2, 5, 10], 256);

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => match run(&options) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => eprintln!("peers: failed to {error}"),
        },
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => eprintln!("peers: {error}"),
    }
    ExitCode::FAILURE
}

fn run(options: &Options) -> Outcome<()> {
    let target = target()?;
    let mut missing: Vec<String> = Vec::new();
    let mut systems: Vec<&str> =
        SYSTEMS.into_iter().filter(|system| options.systems.contains(system)).collect();
    systems.retain(|system| match broker(system).filter(|program| in_path(&[program]).is_none()) {
        Some(program) => {
            missing.push(format!("{system}: install {program} (the package of that name in Debian)"));
            false
        }
        None => true,
    });
    let worker = build_worker(&target, &mut systems, &mut missing)?;

    let mut results = Results::default();
    for round in 1..=options.rounds {
        for &system in &systems {
            eprintln!("round {round} of {}: {system}", options.rounds);
            let plan = (1, &*options.payloads, options.seconds);
            note(measure(&worker, system, plan, false, &mut results), system, &mut missing);
            for receivers in FAN_OUT.0.into_iter().filter(|_| options.fan_out) {
                let plan = (receivers, &[FAN_OUT.1][..], options.seconds);
                note(measure(&worker, system, plan, true, &mut results), system, &mut missing);
            }
        }
        save(&target, FILE, &results)?;
    }
    println!("\n{} rounds, medians; in brackets what roomcast has of it\n", options.rounds);
    println!("{}", results.table());
    missing.iter().for_each(|line| println!("missing: {line}"));
    println!("\nwritten to {}", target.join(FILE).display());
    Ok(())
}

/// The worker for these systems; those that cannot be built are taken out.
fn build_worker(target: &Path, systems: &mut Vec<&str>, missing: &mut Vec<String>) -> Outcome<PathBuf> {
    eprintln!("building the worker; the first time that takes minutes");
    let mut features: Vec<&str> = systems.iter().filter_map(|system| feature(system)).collect();
    features.dedup();
    if let Ok(worker) = build(target, &features) {
        return Ok(worker);
    }
    features.retain(|feature| build(target, &[feature]).is_ok());
    systems.retain(|system| {
        let there = feature(system).is_none_or(|feature| features.contains(&feature));
        if !there {
            missing.push(format!("{system}: its client cannot be built here"));
        }
        there
    });
    build(target, &features)
}

/// A system that fails is named, and the others go on.
fn note(outcome: Outcome<()>, system: &str, missing: &mut Vec<String>) {
    if let Err(error) = outcome {
        missing.push(format!("{system}, part of a round: failed to {error}"));
    }
}
