//! Simulated ground: whole nodes in one thread, each on a runtime of its own whose clock is paused, with a network in
//! memory under QUIC.
//!
//! The nodes are driven in lockstep, a *quantum* at a time, one after the other. A quantum is not longer than the shortest
//! way of a packet, so nothing that a node does in a quantum can reach another one in the same quantum: the order in which
//! they are driven cannot be seen. Within a quantum a runtime jumps from timer to timer.
//!
//! Killing a node is dropping its runtime, freezing it is not driving it, restarting it is a new runtime with a greater
//! incarnation. All futures of this ground are ready when they are first polled: it drives the nodes itself, so it must
//! not be used inside a tokio runtime.

mod machine;
mod network;
mod socket;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use roomcast::gossip::discovery::Resolver;
use roomcast::{ClusterSecret, Node};

use super::agent::Record;
use super::ground::{Answer, Ask, Ground, Plan, Rule};
use super::history::{Entry, History, What};
use machine::{Application, Birth, Machine};
use network::Network;
pub use network::Traffic;

/// How long the nodes run one after the other.
const QUANTUM: Duration = network::BASE.start;
/// The wall clock when a cluster begins, in microseconds since the Unix epoch. Only incarnations are made from it.
const WALL_US: u64 = 1_700_000_000_000_000;
/// The port of every node.
const PORT: u16 = 7946;
/// How long a node may take to leave.
const LEAVE: Duration = Duration::from_secs(60);

/// The simulated ground.
pub struct Simulated {
    seed: u64,
    now: Duration,
    network: Arc<Network>,
    names: Arc<Names>,
    secret: ClusterSecret,
    places: Vec<Place>,
    application: Option<Application>,
    written: Arc<Mutex<Vec<Entry>>>,
    history: History,
}

/// The place of a node, over all its runs.
#[derive(Default)]
struct Place {
    machine: Option<Machine>,
    frozen: bool,
    /// How often its address was changed.
    moves: u8,
    /// How often it was started.
    starts: u64,
    incarnation: u64,
    /// How far its wall clock is off, in microseconds.
    wall_offset_us: i64,
}

/// The names of the nodes: `node-0.simulated` and so on, each with the address that it has now.
#[derive(Default)]
struct Names(Mutex<HashMap<String, SocketAddr>>);

impl Simulated {
    /// A ground whose network and jitter come from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            now: Duration::ZERO,
            network: Arc::new(Network::new(seed)),
            names: Arc::default(),
            secret: ClusterSecret::generate().expect("the system has random numbers"),
            places: Vec::new(),
            application: None,
            written: Arc::default(),
            history: History::default(),
        }
    }

    /// Runs a future on every node at each start, beside its agent. It ends with the run.
    pub fn application<F: Future<Output = ()> + 'static>(
        mut self,
        application: impl Fn(Node) -> F + 'static,
    ) -> Self {
        let application: Application = Arc::new(move |node| Box::pin(application(node)));
        self.application = Some(application);
        self
    }

    /// What became of all packets so far.
    pub fn traffic(&self) -> Traffic {
        self.network.traffic()
    }

    /// Runs a future on a node while time goes on, at most for `within`. None when it has not ended by then, and when the
    /// node does not run; it goes on then until its node ends.
    pub fn on<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        node: usize,
        within: Duration,
        work: impl FnOnce(Node) -> F,
    ) -> Option<T> {
        let machine = self.places.get(node).filter(|place| !place.frozen)?.machine.as_ref()?;
        let (result, work) = (Rc::new(RefCell::new(None)), work(machine.node()?));
        let slot = Rc::clone(&result);
        machine.spawn(async move {
            let output = work.await;
            *slot.borrow_mut() = Some(output);
        });
        let end = self.now + within;
        loop {
            self.step(end);
            let output = result.borrow_mut().take();
            if output.is_some() || self.now >= end {
                return output;
            }
        }
    }

    /// The monotonic clock of a running node jumps ahead by that; those of the others do not.
    pub fn jump_clock(&mut self, node: usize, by: Duration) {
        self.fault(format!("the clock of node {node} jumps ahead by {by:?}"));
        if let Some(machine) = &self.place(node).machine {
            machine.jump(by);
        }
    }

    /// The wall clock of a node is off by so many milliseconds from its next start on.
    pub fn set_wall_clock(&mut self, node: usize, off_ms: i64) {
        self.fault(format!("the wall clock of node {node} is off by {off_ms} ms"));
        self.place(node).wall_offset_us = off_ms * 1000;
    }

    fn fault(&mut self, words: String) {
        let at = self.now;
        self.note(Entry { at, node: 0, run: 0, what: What::Fault(words) });
    }

    fn note(&mut self, entry: Entry) {
        lock(&self.written).push(entry);
    }

    fn did(&mut self, node: usize, what: What) {
        let at = self.now;
        self.note(Entry { at, node, run: 0, what });
    }

    fn place(&mut self, node: usize) -> &mut Place {
        if self.places.len() <= node {
            self.places.resize_with(node + 1, Place::default);
        }
        &mut self.places[node]
    }

    /// Lets every node run for a quantum, not beyond `end`.
    fn step(&mut self, end: Duration) {
        let until = (self.now + QUANTUM).min(end);
        for place in &self.places {
            if let Some(machine) = place.machine.as_ref().filter(|_| !place.frozen) {
                machine.run_until(until);
            }
        }
        self.now = until;
    }

    /// The incarnation of the next run: its wall clock, in microseconds. Of two runs in the same microsecond the second
    /// has one more.
    fn incarnation(&mut self, node: usize) -> u64 {
        let now = self.now.as_micros() as u64;
        let place = self.place(node);
        let wall = (WALL_US + now).saturating_add_signed(place.wall_offset_us);
        place.incarnation = if wall == place.incarnation { wall + 1 } else { wall };
        place.incarnation
    }
}

#[async_trait(?Send)]
impl Ground for Simulated {
    async fn start(&mut self, node: usize, plan: &Plan) {
        let incarnation = self.incarnation(node);
        let addr = self.address(node);
        self.names.set(node, addr);
        let place = self.place(node);
        assert!(place.machine.is_none(), "node {node} runs already");
        place.starts += 1;
        let random_seed = self.seed ^ ((node as u64) << 48) ^ (self.place(node).starts << 16);
        let written = Arc::clone(&self.written);
        let record = |clock: Arc<socket::Clock>| -> Record {
            let now = Arc::clone(&clock);
            let add = move |what| {
                lock(&written).push(Entry { at: clock.now(), node, run: incarnation, what });
            };
            Record::new(move || now.now(), add)
        };
        let birth = Birth {
            index: node,
            plan,
            addr,
            incarnation,
            secret: &self.secret,
            resolver: Arc::clone(&self.names) as Arc<dyn Resolver>,
            network: &self.network,
            random_seed,
            now: self.now,
            application: self.application.as_ref(),
        };
        let machine = Machine::start(&birth, record);
        self.place(node).machine = Some(machine);
    }

    async fn kill(&mut self, node: usize) {
        let place = self.place(node);
        place.frozen = false;
        if place.machine.take().is_some() {
            self.did(node, What::Killed);
        }
    }

    async fn leave(&mut self, node: usize) {
        let left = self.on(node, LEAVE, |node| async move {
            node.drain().await;
            node.stop().await;
        });
        assert!(left.is_some(), "node {node} did not leave within {LEAVE:?}");
        self.place(node).machine = None;
        self.did(node, What::Left);
    }

    async fn freeze(&mut self, node: usize) {
        let place = self.place(node);
        if place.machine.is_some() && !place.frozen {
            place.frozen = true;
            self.did(node, What::Frozen);
        }
    }

    async fn thaw(&mut self, node: usize) {
        let now = self.now;
        let place = self.place(node);
        if place.frozen {
            place.frozen = false;
            if let Some(machine) = &place.machine {
                machine.skip_to(now);
            }
            self.did(node, What::Thawed);
        }
    }

    async fn rule(&mut self, from: usize, to: usize, rule: Rule) {
        self.network.rule(from, to, rule);
    }

    async fn readdress(&mut self, node: usize) {
        let place = self.place(node);
        assert!(place.machine.is_none(), "node {node} runs and keeps its address");
        place.moves += 1;
        let addr = self.address(node);
        self.names.set(node, addr);
    }

    fn address(&self, node: usize) -> SocketAddr {
        let moves = self.places.get(node).map_or(0, |place| place.moves);
        let node = u16::try_from(node + 1).expect("a simulation has fewer nodes");
        let [high, low] = node.to_be_bytes();
        SocketAddr::from(([10, moves, high, low], PORT))
    }

    fn seed(&self, node: usize) -> String {
        format!("{}:{PORT}", name(node))
    }

    async fn ask(&mut self, node: usize, ask: Ask) -> Option<Answer> {
        self.places.get_mut(node).filter(|place| !place.frozen)?.machine.as_mut()?.ask(ask)
    }

    async fn sleep(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn history(&mut self) -> &mut History {
        let mut new = std::mem::take(&mut *lock(&self.written));
        // The nodes ran one after the other in each quantum.
        new.sort_by_key(|entry| entry.at);
        self.history.entries.append(&mut new);
        &mut self.history
    }

    fn simulated(&mut self) -> Option<&mut Simulated> {
        Some(self)
    }
}

impl Names {
    fn set(&self, node: usize, addr: SocketAddr) {
        lock(&self.0).insert(name(node), addr);
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let addr = lock(&self.0).get(host).copied();
        Ok(addr.into_iter().filter(|addr| addr.port() == port).collect())
    }
}

fn name(node: usize) -> String {
    format!("node-{node}.simulated")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
