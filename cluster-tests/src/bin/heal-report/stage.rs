//! Where a fault plays: three nodes of one system and its broker, each in a pod or all on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster_tests::heal::record::{Record, micros};
use cluster_tests::netns::{Net, Pod};
use cluster_tests::process::Process;
use tokio::process::Command;

use crate::BoxError;
use crate::options::System;

/// The nodes of each system.
pub(crate) const NODES: [&str; 3] = ["a", "b", "c"];
/// The node to which something happens.
pub(crate) const VICTIM: usize = 1;
/// How long until messages flow at first, and after each step of a rolling restart.
const FLOW: Duration = Duration::from_secs(30);
/// How long nothing may have come when all is taken to have come, and the longest wait for that.
const STILL: Duration = Duration::from_secs(3);
const STILL_LIMIT: Duration = Duration::from_secs(40);

/// The programs of the nodes.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) report: PathBuf,
    /// Nothing when no broker is there.
    pub(crate) peer: Option<PathBuf>,
}

/// Nodes that run.
pub(crate) struct Stage {
    system: System,
    programs: Programs,
    /// One for each node and one for the broker; nothing on loopback.
    pods: Vec<Pod>,
    net: Option<Net>,
    /// What each node listens on, and the broker.
    addrs: Vec<SocketAddr>,
    _broker: Option<Process>,
    pub(crate) nodes: Vec<Seat>,
}

/// A node that runs, or did.
pub(crate) struct Seat {
    name: &'static str,
    number: u32,
    /// When it said that it is ready.
    pub(crate) from: u64,
    /// Nothing once it was killed.
    process: Option<Process>,
}

impl Seat {
    pub(crate) fn node(&self) -> &'static str {
        self.name
    }

    /// The name of this run of the node.
    pub(crate) fn run(&self) -> String {
        format!("{}.{}", self.name, self.number)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) async fn signal(&self, signal: &str) {
        if let Some(process) = &self.process {
            process.signal(signal).await;
        }
    }

    pub(crate) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await;
        }
    }

    /// Tells it to leave, and waits for its notes and its end. None of one that was killed.
    pub(crate) async fn leave(&mut self) -> Result<Option<Record>, BoxError> {
        let Some(process) = &mut self.process else { return Ok(None) };
        process.write("leave").await;
        let record = process.line("record ").await;
        process.end().await;
        Ok(Some(serde_json::from_str(&record)?))
    }

    /// How many messages have come, and when the newest of `run` was sent.
    fn progress(&self, run: &str) -> (u64, u64) {
        let last = self.process.as_ref().and_then(|process| process.newest("progress ")).unwrap_or_default();
        let mut words = last.split(' ');
        let count = words.next().and_then(|count| count.parse().ok()).unwrap_or_default();
        let newest = words.filter_map(|word| word.split_once('=')).find(|(of, _)| *of == run);
        (count, newest.and_then(|(_, sent)| sent.parse().ok()).unwrap_or_default())
    }
}

impl Stage {
    /// Starts the broker and the nodes, and waits until messages flow between all of them.
    pub(crate) async fn start(system: System, programs: &Programs, in_pods: bool) -> Result<Self, BoxError> {
        let mut stage = Self {
            system,
            programs: programs.clone(),
            pods: Vec::new(),
            net: None,
            addrs: Vec::new(),
            _broker: None,
            nodes: Vec::new(),
        };
        if in_pods {
            let net = Net::new("heal", "10.20.0.0/24")?;
            for _ in 0..=NODES.len() {
                stage.pods.push(net.add()?);
            }
            stage.addrs = stage.pods.iter().map(|pod| (pod.ip(), 7946).into()).collect();
            stage.net = Some(net);
        } else {
            // Held until all are taken, so that all differ.
            let ports = (0..=NODES.len()).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
            let ports: Vec<_> = ports.collect::<Result<_, _>>()?;
            stage.addrs = ports.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        }
        if let Some((program, args, ready)) = system.broker(stage.addrs[NODES.len()]) {
            let mut command = stage.command(NODES.len(), Path::new(program));
            command.args(args);
            let broker = Process::spawn(program, command);
            broker.says(&[ready]).await;
            stage._broker = Some(broker);
        }
        for (index, name) in NODES.into_iter().enumerate() {
            let process = Some(stage.spawn(index, 1));
            stage.nodes.push(Seat { name, number: 1, from: 0, process });
        }
        for index in 0..NODES.len() {
            stage.go(index).await;
        }
        stage.flows_since(1, FLOW).await?;
        Ok(stage)
    }

    /// Cuts the link of the victim to the broker, or to another node where there is none.
    pub(crate) fn cut(&self) -> Result<(), BoxError> {
        let (net, other) = self.link()?;
        Ok(net.cut(&self.pods[VICTIM], other)?)
    }

    /// Ends the cut.
    pub(crate) fn mend(&self) -> Result<(), BoxError> {
        let (net, other) = self.link()?;
        Ok(net.heal(&self.pods[VICTIM], other)?)
    }

    fn link(&self) -> Result<(&Net, &Pod), BoxError> {
        let other = if self.system == System::Roomcast { 0 } else { NODES.len() };
        Ok((self.net.as_ref().ok_or("cut a link: that needs pods")?, &self.pods[other]))
    }

    /// Starts a node that has left again, as another run. Returns when it was started; it is back when messages flow.
    pub(crate) async fn restart(&mut self, index: usize) -> Result<u64, BoxError> {
        let number = self.nodes[index].number + 1;
        let started = micros();
        let process = Some(self.spawn(index, number));
        self.nodes[index] = Seat { name: NODES[index], number, from: 0, process };
        self.go(index).await;
        self.flows_since(started, FLOW).await?;
        Ok(started)
    }

    /// Waits until a message sent after `since` has come from each living node to each other one.
    pub(crate) async fn flows_since(&self, since: u64, limit: Duration) -> Result<(), BoxError> {
        let alive = || self.nodes.iter().filter(|seat| seat.is_alive());
        let flows = || {
            alive().all(|to| alive().all(|from| from.name == to.name || to.progress(&from.run()).1 >= since))
        };
        self.until(flows, limit).await.ok_or_else(|| format!("see messages flow within {limit:?}").into())
    }

    /// Stops all traffic, and waits for what is under way. Returns when it was stopped.
    pub(crate) async fn quiet(&self) -> u64 {
        let stopped = micros();
        for process in self.nodes.iter().filter_map(|seat| seat.process.as_ref()) {
            process.write("quiet").await;
            process.line("quiet").await;
        }
        let count = || self.nodes.iter().map(|seat| seat.progress("").0).sum::<u64>();
        let (mut last, mut changed) = (count(), micros());
        let still = || {
            let now = count();
            if now != last {
                (last, changed) = (now, micros());
            }
            u128::from(micros() - changed) > STILL.as_micros()
        };
        // What comes later than that is lost to whoever waits for it.
        let _ = self.until(still, STILL_LIMIT).await;
        stopped
    }

    /// Waits for a condition; none when it does not hold in time.
    async fn until(&self, mut condition: impl FnMut() -> bool, limit: Duration) -> Option<()> {
        let mut tries = tokio::time::interval(Duration::from_millis(50));
        let end = tokio::time::Instant::now() + limit;
        while tries.tick().await < end {
            if condition() {
                return Some(());
            }
        }
        None
    }

    /// Waits until a node is ready, and lets it emit.
    async fn go(&mut self, index: usize) {
        let seat = &mut self.nodes[index];
        let Some(process) = &seat.process else { return };
        process.line("ready").await;
        seat.from = micros();
        process.write("go").await;
    }

    fn spawn(&self, index: usize, number: u32) -> Process {
        let run = format!("{}.{number}", NODES[index]);
        let nodes = &self.addrs[..NODES.len()];
        let mut command = match (&self.programs.peer, self.system) {
            (Some(peer), System::Redis | System::Fred | System::Nats) => {
                let mut command = self.command(index, peer);
                command.args([self.system.name(), &run, &self.addrs[NODES.len()].to_string()]);
                command
            }
            _ => {
                let others = nodes.iter().filter(|addr| **addr != nodes[index]).map(SocketAddr::to_string);
                let mut command = self.command(index, &self.programs.report);
                command.args([
                    "node",
                    &run,
                    &nodes[index].to_string(),
                    &others.collect::<Vec<_>>().join(","),
                ]);
                command
            }
        };
        command.env_remove("RUST_LOG");
        Process::spawn(format!("{} {run}", self.system.name()), command)
    }

    /// A command in the pod with this index, or on loopback.
    fn command(&self, index: usize, program: &Path) -> Command {
        self.pods.get(index).map_or_else(|| Command::new(program), |pod| pod.command(program).into())
    }
}
