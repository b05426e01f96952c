//! The heal report: the same faults under the same traffic for roomcast and for what else joins servers, as one table.
//! `docs/faults.md` says how each number is defined.

mod node;
mod options;
mod run;
mod stage;

use std::path::{Path, PathBuf};

use cluster_tests::process::build_to;
use cluster_tests::requirement::{in_path, namespaces};
use options::{Fault, HELP, Options, System};
use run::Row;
use stage::Programs;
use tokio::task::JoinSet;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ended = match args.split_first() {
        Some((first, rest)) if first == "node" => node::start(rest),
        _ => match Options::parse(args) {
            Ok(Some(options)) => report(&options),
            Ok(None) => {
                println!("{HELP}");
                Ok(())
            }
            Err(error) => {
                eprintln!("heal-report: {error}");
                std::process::exit(2);
            }
        },
    };
    if let Err(error) = ended {
        eprintln!("heal-report: failed to {error}");
        std::process::exit(1);
    }
}

#[tokio::main]
async fn report(options: &Options) -> Result<(), BoxError> {
    let in_pods = namespaces().is_some();
    let ready = |system: &System| system.broker_program().is_none_or(|broker| in_path(&[broker]).is_some());
    let (there, missing): (Vec<System>, Vec<System>) =
        options.systems.iter().partition(|system| ready(system));
    let report = std::env::current_exe()?;
    let peer = there.iter().any(|system| system.broker_program().is_some()).then(|| build_peer(&report));
    let programs = Programs { report, peer: peer.transpose()? };

    // Beside each other: they hardly load the machine.
    let mut tasks = JoinSet::new();
    for (order, system) in there.into_iter().enumerate() {
        let (programs, faults) = (programs.clone(), options.faults.clone());
        tasks.spawn(async move { (order, run::all(system, &faults, &programs, in_pods).await) });
    }
    let mut tables = tasks.join_all().await;
    tables.sort_by_key(|(order, _)| *order);

    let ground =
        if in_pods { "network namespaces" } else { "loopback; as root with iproute2 links can be cut, too" };
    println!("3 nodes, 200 messages of 128 bytes a second from each, {ground}\n");
    println!("{}", Row::HEAD);
    for (_, rows) in &tables {
        rows.iter().for_each(|row| println!("{row}"));
    }
    for system in missing {
        let broker = system.broker_program().unwrap_or_default();
        let row =
            Row::left_out(system, "all", format!("install {broker} (the package of that name in Debian)"));
        println!("{row}");
    }
    Ok(())
}

/// Builds the nodes of the other systems into the folder of this program's target. Takes minutes the first time.
fn build_peer(report: &Path) -> Result<PathBuf, BoxError> {
    eprintln!("building the nodes of the other systems (heal-peer); the first time that takes minutes");
    // <target>/<profile>/heal-report
    let profile = report.parent().ok_or("find the folder of this program")?;
    let target = profile.parent().ok_or("find the folder of this program")?;
    let release: &[&str] = if profile.ends_with("debug") { &[] } else { &["--release"] };
    let args = [&["-p", "cluster-tests", "--features", "peers"], release].concat();
    Ok(build_to(target, "bin", "heal-peer", &args)?)
}

/// Whether a fault needs pods.
fn needs_pods(fault: Fault) -> bool {
    matches!(fault, Fault::Cut(_))
}
