//! One fault of one system, from the start of its nodes to a row of the table.

use std::fmt;
use std::time::Duration;

use cluster_tests::heal::evaluate::{Life, Verdict, healed, noticed, verdict};
use cluster_tests::heal::record::micros;
use tokio::time::sleep;

use crate::options::{Fault, System};
use crate::stage::{NODES, Programs, Stage, VICTIM};
use crate::{BoxError, needs_pods};

/// How long messages flow before the fault, and after it has healed: who notices later than that never does.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(8);
/// How long healing may take. TCP that met a cut of 60 s tries again up to 42 s after it.
const HEAL_LIMIT: Duration = Duration::from_secs(90);

/// A row of the table.
pub(crate) struct Row {
    system: &'static str,
    fault: String,
    outcome: Result<Outcome, String>,
}

struct Outcome {
    /// Microseconds until the first sign.
    notice: Option<u64>,
    /// Microseconds until messages flowed.
    heal: Option<u64>,
    verdict: Verdict,
    told: u64,
}

/// What happened, for the evaluation.
struct Played {
    start: u64,
    end: u64,
    /// Runs that are over.
    lives: Vec<Life>,
    /// The nodes whose signs count.
    witnesses: Vec<&'static str>,
}

/// Runs the faults one after the other, each with nodes of its own.
pub(crate) async fn all(
    system: System,
    faults: &[(&'static str, Fault)],
    programs: &Programs,
    in_pods: bool,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (_, fault) in faults {
        if needs_pods(*fault) && !in_pods {
            rows.push(Row::left_out(system, fault.title(), "needs root and iproute2".into()));
            continue;
        }
        eprintln!("{}: {}", system.title(), fault.title());
        // A task of its own: what goes wrong in one fault costs that row.
        let (fault, programs) = (*fault, programs.clone());
        let played = tokio::spawn(async move { one(system, fault, &programs, in_pods).await }).await;
        let outcome = match played {
            Ok(outcome) => outcome.map_err(|error| format!("failed to {error}")),
            Err(_) => Err("failed; what was printed on standard error says why".into()),
        };
        rows.push(Row { system: system.title(), fault: fault.title(), outcome });
    }
    rows
}

async fn one(system: System, fault: Fault, programs: &Programs, in_pods: bool) -> Result<Outcome, BoxError> {
    let mut stage = Stage::start(system, programs, in_pods).await?;
    sleep(BEFORE).await;
    let played = play(&mut stage, fault).await?;
    // That it does not heal is a result: the notes say so.
    let _ = stage.flows_since(played.end, HEAL_LIMIT).await;
    sleep(AFTER).await;
    let stopped = stage.quiet().await;
    let mut lives = played.lives;
    for seat in &mut stage.nodes {
        let (node, run, from) = (seat.node().to_owned(), seat.run(), seat.from);
        lives.push(Life { node, run, from, until: None, record: seat.leave().await? });
    }
    let sign = noticed(&lives, &played.witnesses, played.start..stopped);
    let what = sign.map_or("nothing", |(_, what)| what);
    eprintln!("{}: {}: first sign: {what}", system.title(), fault.title());
    Ok(Outcome {
        notice: sign.map(|(after, _)| after),
        heal: healed(&lives, played.end),
        verdict: verdict(&lives),
        told: lives.iter().filter_map(|life| life.record.as_ref()).map(|record| record.told).sum(),
    })
}

async fn play(stage: &mut Stage, fault: Fault) -> Result<Played, BoxError> {
    let start = micros();
    let others = || NODES.into_iter().filter(|name| *name != NODES[VICTIM]).collect();
    let mut played = Played { start, end: start, lives: Vec::new(), witnesses: others() };
    match fault {
        Fault::Kill => stage.nodes[VICTIM].kill().await,
        Fault::Cut(time) => {
            stage.cut()?;
            sleep(time).await;
            played.end = micros();
            stage.mend()?;
            played.witnesses = NODES.into();
        }
        Fault::Freeze(time) => {
            stage.nodes[VICTIM].signal("STOP").await;
            sleep(time).await;
            played.end = micros();
            stage.nodes[VICTIM].signal("CONT").await;
        }
        Fault::Restart => {
            for index in 0..NODES.len() {
                let until = Some(micros());
                let seat = &mut stage.nodes[index];
                let (node, run, from) = (seat.node().to_owned(), seat.run(), seat.from);
                let record = seat.leave().await?;
                played.lives.push(Life { node, run, from, until, record });
                played.end = stage.restart(index).await?;
            }
            played.witnesses = NODES.into();
        }
    }
    Ok(played)
}

impl Row {
    pub(crate) const HEAD: &str = "\
| system | fault | noticed after | healed after | due | lost | reported | duplicated | reordered |
|---|---|---:|---:|---:|---:|---:|---:|---:|";

    /// A row that says what is missing.
    pub(crate) fn left_out(system: System, fault: impl Into<String>, why: String) -> Self {
        Self { system: system.title(), fault: fault.into(), outcome: Err(format!("not measured: {why}")) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | ", self.system, self.fault)?;
        match &self.outcome {
            Err(why) => write!(f, "{why} | | | | | | |"),
            Ok(Outcome { notice, heal, verdict, told }) => {
                let seconds = |time: Option<u64>, none: &str| {
                    time.map_or(none.to_owned(), |time| format!("{:.2} s", time as f64 / 1e6))
                };
                let heal = seconds(*heal, &format!("not in {} s", HEAL_LIMIT.as_secs()));
                let Verdict { due, lost, duplicated, reordered } = verdict;
                let notice = seconds(*notice, "never");
                write!(f, "{notice} | {heal} | {due} | {lost} | {told} | {duplicated} | {reordered} |")
            }
        }
    }
}
