//! The process of one node: it does what it is told on its standard input, and says what happens on its output.

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use roomcast::{ClusterSecret, Node};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tracing_subscriber::EnvFilter;

use super::clock::Clock;
use super::wire::{Order, Said, Start};
use crate::gate::Gate;
use crate::harness::agent::{Agent, Record};
use crate::harness::ground::Answer;
use crate::harness::history::{Entry, What};

/// The process could not do what it was told.
const FAILED: u8 = 101;

/// The `main` of the program: one node with its agent, until its standard input ends.
pub fn serve() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        // A task that fails must not leave half a node behind.
        std::process::exit(FAILED.into());
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster-node: failed to {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// [`serve`], in a process that [`Processes::of_this_program`](super::Processes::of_this_program) started; None in others.
pub fn serve_if_told() -> Option<ExitCode> {
    std::env::var_os(super::NODE_VARIABLE).map(|_| serve())
}

async fn run() -> Result<(), String> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let Some(line) = next(&mut lines).await? else { return Ok(()) };
    let start: Start = serde_json::from_str(&line).map_err(|error| format!("read {line:?}: {error}"))?;
    let gate = Gate::bind(start.listen).map_err(|error| format!("listen on {}: {error}", start.listen))?;
    for rule in &start.rules {
        apply(rule, &gate);
    }
    let secret = ClusterSecret::from_env("ROOMCAST_SECRET").map_err(|error| error.to_string())?;
    let plan = start.plan;
    let node = Node::builder()
        .cluster(start.cluster)
        .id(plan.id)
        .seeds(plan.seeds)
        .secret(secret)
        .config(plan.settings.config())
        .socket(Arc::clone(&gate) as Arc<_>)
        .start()
        .await
        .map_err(|error| format!("start: {error}"))?;
    let (out, writer) = Out::open(Clock::of(start.begun_us), start.index, node.incarnation().0);
    let (clock, recorder) = (out.clock, Arc::clone(&out));
    let record = Record::new(move || clock.now(), move |what| recorder.entry(what));
    let mut agent = Agent::new(node.clone(), start.index, record);
    let mut left = false;
    while let Some(line) = next(&mut lines).await? {
        let order = serde_json::from_str(&line).map_err(|error| format!("read {line:?}: {error}"))?;
        let answer = match order {
            Order::Ask(ask) => agent.ask(ask),
            Order::Leave => {
                node.drain().await;
                node.stop().await;
                left = true;
                Answer::Done
            }
            rule => {
                apply(&rule, &gate);
                Answer::Done
            }
        };
        out.say(&Said::Answer(answer));
        if left {
            break;
        }
    }
    if !left {
        // The test is gone: as if it had killed this process.
        std::process::exit(0);
    }
    out.close();
    let _ = tokio::task::spawn_blocking(move || writer.join()).await;
    std::process::exit(0);
}

async fn next(lines: &mut Lines<BufReader<Stdin>>) -> Result<Option<String>, String> {
    lines.next_line().await.map_err(|error| format!("read: {error}"))
}

fn apply(rule: &Order, gate: &Gate) {
    match rule {
        Order::RuleTo(to, rule) => gate.rule_to(*to, rule.clone()),
        Order::CutFrom(from, cut) => gate.cut_from(*from, *cut),
        Order::Ask(_) | Order::Leave => unreachable!("no rule"),
    }
}

/// What is said. Whoever says something never waits for the test to read it.
struct Out {
    clock: Clock,
    index: usize,
    run: u64,
    /// Held while the time is taken, so that times grow from line to line. None at the end.
    lines: Mutex<Option<Sender<String>>>,
}

impl Out {
    fn open(clock: Clock, index: usize, run: u64) -> (Arc<Self>, JoinHandle<()>) {
        let (sender, lines) = mpsc::channel::<String>();
        let writer = std::thread::spawn(move || {
            let mut out = std::io::stdout().lock();
            for line in lines {
                // Nobody reads any more: the end of the input is near.
                let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
            }
        });
        (Arc::new(Self { clock, index, run, lines: Mutex::new(Some(sender)) }), writer)
    }

    fn entry(&self, what: What) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry { at: self.clock.now(), node: self.index, run: self.run, what };
        send(lines.as_ref(), &Said::Entry(entry));
    }

    fn say(&self, said: &Said) {
        send(self.lines.lock().unwrap_or_else(PoisonError::into_inner).as_ref(), said);
    }

    fn close(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn send(lines: Option<&Sender<String>>, said: &Said) {
    if let Some(lines) = lines {
        let line = serde_json::to_string(said).expect("it is plain data");
        let _ = lines.send(line + "\n");
    }
}
