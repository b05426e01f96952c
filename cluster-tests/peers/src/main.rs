//! One node of `cargo bench -p cluster-tests --bench peers`, which builds and starts it.
//!
//! `peers-worker receive SYSTEM CONTROL ADDRESS` takes messages; `peers-worker emit SYSTEM CONTROL ADDRESS PLAN` sends
//! them, and prints what it measured as lines of JSON. `CONTROL` is where the emitter listens for its receivers,
//! `ADDRESS` the broker, or where the emitter listens for the system. All systems share these processes and this loop.

#[cfg(feature = "clients")]
mod clients;
mod control;
mod emitter;
mod measure;
mod message;
mod receiver;
#[cfg(feature = "clients")]
mod serve;
mod wires;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control::{Receivers, Standing};
use message::Message;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use wires::{Place, Wire};

/// What ends the program when something is not as it must be.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long anything may take that should take moments.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the emitter measures.
#[derive(Deserialize)]
pub(crate) struct Plan {
    /// How many receivers.
    receivers: usize,
    /// Sizes of messages, in bytes.
    payloads: Vec<usize>,
    /// How long each measurement takes.
    seconds: f64,
    /// Only how many messages a second go to all receivers.
    fan_out: bool,
    /// The broker's process, if the system has one.
    broker: Option<u32>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Err(error) = start(&words) {
        eprintln!("peers-worker: {}: failed to {error}", words.join(" "));
        std::process::exit(1);
    }
    // What a system has running in the background has no say in how this ends.
    std::process::exit(0);
}

fn start(words: &[&str]) -> Outcome<()> {
    #[cfg(target_os = "linux")]
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    // What sends and measures is on the thread of `main`, all else on two others.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    #[cfg(feature = "clients")]
    match words {
        ["serve", system, name, address, seed @ ..] => {
            return runtime.block_on(serve::run(system, name, address.parse()?, seed));
        }
        ["clients", plan] => return runtime.block_on(clients::run(serde_json::from_str(plan)?)),
        _ => {}
    }
    let [role, system, control, address, more @ ..] = words else {
        return Err("read the arguments: this is started by the bench".into());
    };
    let plan = more.first().map(|plan| serde_json::from_str::<Plan>(plan)).transpose()?;
    if plan.is_some() != (*role == "emit") {
        return Err(format!("be {role:?}").into());
    }
    let job = Job { control: control.parse()?, address: address.parse()?, plan };
    runtime.block_on(async {
        match *system {
            "tcp" => job.run::<wires::tcp::Tcp>("").await,
            "quinn" => job.run::<wires::quic::Quic>("").await,
            "roomcast" => job.run::<wires::roomcast::Roomcast>("").await,
            #[cfg(feature = "redis")]
            "redis" => job.run::<wires::redis::Redis>("").await,
            #[cfg(feature = "nats")]
            "nats" => job.run::<wires::nats::Nats>("").await,
            #[cfg(feature = "zenoh")]
            "zenoh-tcp" => job.run::<wires::zenoh::Zenoh>("tcp").await,
            #[cfg(feature = "zenoh")]
            "zenoh-quic" => job.run::<wires::zenoh::Zenoh>("quic").await,
            #[cfg(feature = "socketioxide")]
            "socketioxide-redis" => job.run::<wires::socketio::SocketIo>("").await,
            other => Err(format!("run {other:?}: it was not built in").into()),
        }
    })
}

/// What this process is for.
struct Job {
    control: SocketAddr,
    address: SocketAddr,
    /// Only the emitter has one.
    plan: Option<Plan>,
}

impl Job {
    async fn run<W: Wire>(self, variant: &'static str) -> Outcome<()> {
        match &self.plan {
            Some(plan) => self.emit::<W>(variant, plan).await,
            None => self.receive::<W>(variant).await,
        }
    }

    async fn emit<W: Wire>(&self, variant: &'static str, plan: &Plan) -> Outcome<()> {
        let listener = TcpListener::bind(self.control).await?;
        let (bound, notice) = oneshot::channel();
        let accepting = tokio::spawn(Receivers::accept(listener, plan.receivers, notice));
        let echoes = Arc::new(emitter::Echoes::default());
        let sink = Arc::clone(&echoes);
        let place = Place {
            address: self.address,
            variant,
            peers: plan.receivers,
            at: usize::MAX,
            notice: String::new(),
            bound: Some(bound),
        };
        let wire = W::open(place, Arc::new(move |message: Message| sink.take(message)));
        let wire = timeout(PATIENCE, wire).await??;
        let receivers = accepting.await??;
        emitter::Bench::ready(wire, receivers, echoes, plan.broker).await?.run(plan).await
    }

    async fn receive<W: Wire>(&self, variant: &'static str) -> Outcome<()> {
        let control = control::Emitter::dial(self.control).await?;
        let place = Place {
            address: self.address,
            variant,
            peers: 1,
            at: control.at,
            notice: control.notice.clone(),
            bound: None,
        };
        let (tell, standing) = watch::channel(Standing::default());
        let (back, answers) = mpsc::unbounded_channel();
        let arrivals = receiver::Arrivals::new(W::ORDERED, control.at == 0, tell, back);
        let wire = W::open(place, Arc::new(move |message: Message| arrivals.take(message)));
        let wire = timeout(PATIENCE, wire).await??;
        tokio::select! {
            told = control.tell(standing) => told,
            ended = receiver::answer(wire, answers) => ended,
        }
    }
}
