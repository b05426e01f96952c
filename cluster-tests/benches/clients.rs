//! `cargo bench -p cluster-tests --bench clients`: the whole way, from WebSocket client to WebSocket client over several
//! servers: socketioxide with roomcast beside socketioxide with socketioxide-redis, in rounds that take turns.
//! `docs/performance.md` says what is measured, and how.
//!
//! Each server is a process, all clients are one, and none of them is this one: they are the worker of the bench `peers`
//! (`cluster-tests/peers`), which this builds and starts.

#[path = "common/programs.rs"]
mod programs;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use cluster_tests::peers::Results;
use cluster_tests::requirement::in_path;
use programs::{Running, broker, build, free, save, start_broker, target};
use serde_json::{Value, json};

/// What the bench ends with when something is not as it must be.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Where the results go, in the target directory.
const FILE: &str = "bench/clients.json";
/// What is compared.
const SYSTEMS: [&str; 2] = ["roomcast", "socketioxide-redis"];

/// Servers, rooms and who is in them.
struct Case {
    name: &'static str,
    servers: usize,
    rooms: usize,
    /// Members of a room, and on how many servers they are.
    members: usize,
    spread: usize,
    /// Messages a second where it is measured how long they take.
    rate: f64,
}

const CASES: [Case; 3] = [
    Case { name: "3 servers, rooms of 3", servers: 3, rooms: 100, members: 3, spread: 3, rate: 2000.0 },
    Case { name: "3 servers, rooms of 30", servers: 3, rooms: 20, members: 30, spread: 3, rate: 300.0 },
    Case {
        name: "10 servers, rooms of 4 on 2",
        servers: 10,
        rooms: 100,
        members: 4,
        spread: 2,
        rate: 2000.0,
    },
];
/// Servers that the idle clients are on.
const IDLE_SERVERS: usize = 3;

const HELP: &str = "\
cargo bench -p cluster-tests --bench clients -- [options]

  --systems a,b  only these: roomcast, socketioxide-redis
  --rounds N     how often each is measured; default 3
  --case TEXT    only cases with this in their name, as in the table
  --idle N       clients that only connect; default 9000 (each takes three open files, of a limit for each process)
  --quick        one short round: to see that it works, not to compare";

/// What was asked for.
struct Options {
    systems: Vec<&'static str>,
    rounds: usize,
    case: String,
    idle: usize,
    seconds: f64,
}

impl Options {
    /// Nothing when help was asked for.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options =
            Self { systems: SYSTEMS.to_vec(), rounds: 3, case: String::new(), idle: 9000, seconds: 4.0 };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            let number = |text: String| {
                let number = text.parse().ok().filter(|number| (1..=100_000).contains(number));
                number.ok_or(format!("{text:?} is not a number from 1 to 100000"))
            };
            match &*arg {
                // cargo says so to each bench.
                "--bench" => {}
                "--quick" => (options.rounds, options.idle, options.seconds) = (1, 300, 1.0),
                "--systems" => {
                    let wanted = value()?;
                    let known = |name: &str| SYSTEMS.into_iter().find(|system| *system == name);
                    let systems = wanted.split(',').map(known).collect::<Option<_>>();
                    options.systems = systems.ok_or(format!("what is {wanted:?}? See --help"))?;
                }
                "--case" => options.case = value()?,
                "--rounds" => options.rounds = number(value()?)?,
                "--idle" => options.idle = number(value()?)?,
                "--help" | "-h" => return Ok(None),
                other => return Err(format!("what is {other:?}? See --help")),
            }
        }
        Ok(Some(options))
    }
}

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => match run(options) {
            Ok(true) => return ExitCode::SUCCESS,
            Ok(false) => {}
            Err(error) => eprintln!("clients: failed to {error}"),
        },
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => eprintln!("clients: {error}"),
    }
    ExitCode::FAILURE
}

/// Says whether nothing failed.
fn run(mut options: Options) -> Outcome<bool> {
    let target = target()?;
    let mut missing: Vec<String> = Vec::new();
    options.systems.retain(|system| {
        let lacks = broker(system).filter(|program| in_path(&[program]).is_none());
        missing.extend(
            lacks.map(|program| format!("{system}: install {program} (Debian's package has its name)")),
        );
        lacks.is_none()
    });
    eprintln!("building the worker; the first time that takes minutes");
    let worker = build(&target, &["clients"])?;
    let (mut results, mut failed) = (Results::default(), false);
    for round in 1..=options.rounds {
        let cases = CASES.iter().map(Some).chain([None]);
        let cases = cases.filter(|case| name(*case).contains(&options.case));
        for (case, system) in cases.flat_map(|case| options.systems.iter().map(move |system| (case, *system)))
        {
            eprintln!("round {round} of {}: {system}, {}", options.rounds, name(case));
            if let Err(error) = measure(&worker, system, case, &options, &mut results) {
                failed = true;
                missing.push(format!("{system}, part of a round: failed to {error}"));
            }
        }
        save(&target, FILE, &results)?;
    }
    println!("\n{} rounds, medians; in brackets what roomcast has of it\n", options.rounds);
    println!("{}", results.table());
    missing.iter().for_each(|line| println!("missing: {line}"));
    println!("\nwritten to {}", target.join(FILE).display());
    Ok(!failed)
}

fn name(case: Option<&Case>) -> &'static str {
    case.map_or("idle clients", |case| case.name)
}

/// One system in one case, once; without a case, what idle clients take.
fn measure(
    worker: &Path,
    system: &str,
    case: Option<&Case>,
    options: &Options,
    results: &mut Results,
) -> Outcome<()> {
    let address = free()?;
    let broker = start_broker(system, address)?;
    let (mut servers, mut lines) = (Vec::new(), Vec::<Value>::new());
    for at in 0..case.map_or(IDLE_SERVERS, |case| case.servers) {
        let mut command = Command::new(worker);
        command.args(["serve", system, &format!("server-{at}"), &address.to_string()]);
        command.args(lines.first().and_then(|first| first["node"].as_str()));
        let mut server = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().ok_or("read what a server says")?).read_line(&mut line)?;
        lines.push(serde_json::from_str(&line).map_err(|_| "start a server")?);
        servers.push(server);
    }
    let all = |name: &str| lines.iter().map(|line| line[name].clone()).collect::<Value>();
    let (rooms, members, spread, rate) =
        case.map_or((0, 0, 0, 1.0), |case| (case.rooms, case.members, case.spread, case.rate));
    let plan = json!({
        "servers": {
            "http": all("http"),
            "numbers": all("numbers"),
            "processes": all("process"),
            "broker": broker.as_ref().map(|broker| (broker.0.id(), address.to_string())),
        },
        "rooms": rooms,
        "members": members,
        "spread": spread,
        "rate": rate,
        "payload": 256,
        "seconds": options.seconds,
        "idle": case.is_none().then_some(options.idle),
    });
    let output =
        Command::new(worker).args(["clients", &plan.to_string()]).stderr(Stdio::inherit()).output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut value: Value = serde_json::from_str(line)?;
        let metric = value["metric"].as_str().unwrap_or_default();
        value["metric"] = format!("{}: {metric}", name(case)).into();
        results.take(system, &value.to_string());
    }
    if output.status.success() { Ok(()) } else { Err(format!("measure {system}").into()) }
}
