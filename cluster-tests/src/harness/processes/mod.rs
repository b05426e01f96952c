//! Real ground: every node is a process, on loopback or in a network namespace of its own ([`namespaces`]).
//!
//! The processes are killed with SIGKILL and frozen with SIGSTOP. Packets are lost, delayed, doubled and overtaken at the
//! socket of the node that sends them; in network namespaces they are cut between the nodes. Whoever waits for a process
//! blocks the calling thread: every future is ready when it is first polled. A process that fails, ends by itself or says
//! what it should not fails the test, with what it printed.
//!
//! [`Processes::program`] runs a program of yours instead of the one of the harness:
//!
//! ```no_run
//! use cluster_tests::Cluster;
//! use cluster_tests::harness::processes::Processes;
//! use std::time::Duration;
//!
//! let words = ["target/debug/my-server", "--id", "{id}", "--listen", "{listen}", "--admin", "{admin}", "--seed={seed}"];
//! Cluster::builder().nodes(3).on(Processes::program(words)).run(async |cluster| {
//!     cluster.freeze(2).await;
//!     cluster.sleep(Duration::from_secs(10)).await;
//!     cluster.thaw(2).await;
//!     cluster.converged(Duration::from_secs(40)).await;
//! });
//! ```
//!
//! [`namespaces`]: super::namespaces

mod child;
mod clock;
mod http;
mod node;
mod program;
mod site;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use roomcast::ClusterSecret;
use roomcast::status::Report;

use self::child::{Child, Entries};
use self::clock::{Clock, holds, pause};
use self::program::{Filling, Program};
use self::site::Loopback;
use self::wire::{Order, Start};
use super::ground::{Answer, Ask, Ground, Plan, Rule};
use super::history::{Entry, History, What};
use super::namespaces::Pods;
use crate::wait::DEADLINE;

pub(crate) use http::get;
pub use node::{serve, serve_if_told};
pub(crate) use site::Site;

/// The cluster of the nodes, where the harness names it.
pub const CLUSTER: &str = "test";

/// Set in the environment of a process that has to be a node.
const NODE_VARIABLE: &str = "ROOMCAST_HARNESS_NODE";

/// Set in the environment of every process that the harness starts. Not with the prefix of settings: a server refuses those
/// that it does not know.
const STARTED_VARIABLE: &str = "CLUSTER_TESTS_STARTED";

/// A ground on which every node is a process.
pub struct Processes {
    program: Program,
    environment: Vec<(String, String)>,
    secret: ClusterSecret,
    site: Box<dyn Site>,
    clock: Clock,
    /// The process of each node that runs, and its id.
    children: BTreeMap<usize, Child>,
    rules: BTreeMap<(usize, usize), Rule>,
    entries: Entries,
    history: History,
}

impl Processes {
    /// Nodes with the agents of the harness, on loopback. `program` is that of `cluster-node`: in a test of this
    /// package `env!("CARGO_BIN_EXE_cluster-node")`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self::with(Program::Ours(program.into()))
    }

    /// Nodes with the agents of the harness, on loopback, each in a process of the program that runs now: its `main`
    /// begins with [`serve_if_told`].
    ///
    /// # Panics
    /// When the system does not say which program that is, and in a process that the harness started: a `main` that does
    /// not begin so would start processes without end.
    pub fn of_this_program() -> Self {
        let program = std::env::current_exe().expect("the system knows which program this is");
        Self::new(program).env(NODE_VARIABLE, "1")
    }

    /// Nodes that are a program of yours, on loopback. `words` are its command line: `{id}`, `{listen}` (a UDP address),
    /// `{ip}` (the one in it), `{admin}` (a TCP address for [`roomcast::status`]) and `{seeds}` (with commas in
    /// between) are replaced in each word, and a word with `{seed}` is there once for each seed. The environment has
    /// `ROOMCAST_SECRET`, `ROOMCAST_ID`, `ROOMCAST_LISTEN`, `ROOMCAST_ADMIN` and `ROOMCAST_SEEDS`.
    ///
    /// A node has started when its status endpoint answers at `{admin}`. It leaves when it gets SIGTERM. The settings of
    /// the cluster do not reach it. Of what can be asked only the status is answered, so there is no traffic but your own.
    /// It is killed with all that it started, unless that has left its process group.
    /// On loopback its network cannot be disturbed: take [`in_namespaces`](Self::in_namespaces).
    pub fn program(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::with(Program::Theirs(words.into_iter().map(Into::into).collect()))
    }

    fn with(program: Program) -> Self {
        // It would start processes that start processes, without end.
        assert!(
            std::env::var_os(STARTED_VARIABLE).is_none(),
            "this process is a node that the harness started, and starts a cluster itself: let its main begin with \
             serve_if_told, or give the harness the program of a server"
        );
        Self {
            program,
            environment: Vec::new(),
            secret: ClusterSecret::generate().expect("the system has random numbers"),
            site: Box::new(Loopback::new()),
            clock: Clock::begin(),
            children: BTreeMap::new(),
            rules: BTreeMap::new(),
            entries: Entries::default(),
            history: History::default(),
        }
    }

    /// Puts every node into a network namespace of its own. `prefix` begins the names of the namespaces; see
    /// [`Net::new`](crate::netns::Net::new). Ask [`requirement::namespaces`](crate::requirement::namespaces) first.
    ///
    /// # Panics
    /// When the system does not let us have one.
    pub fn in_namespaces(self, prefix: &str) -> Self {
        self.at(Box::new(Pods::new(prefix)))
    }

    /// Puts the nodes into another place.
    pub(crate) fn at(mut self, site: Box<dyn Site>) -> Self {
        self.site = site;
        self
    }

    /// Sets a variable of the environment of every process.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The secret of the cluster. Default is a random one.
    pub fn secret(mut self, secret: ClusterSecret) -> Self {
        self.secret = secret;
        self
    }

    /// Does an order in a process that is ours and runs.
    fn order(&mut self, node: usize, order: &Order) -> Option<Answer> {
        if !self.program.is_ours() {
            return None;
        }
        let child = self.children.get_mut(&node)?;
        child.tell(order);
        // A frozen one does it when it runs again.
        child.answer_unless_frozen()
    }

    /// What stands for the packets of a node.
    fn rules_of(&self, node: usize) -> Vec<Order> {
        let rules = self.rules.iter().map(|((from, to), rule)| (*from, *to, rule));
        rules.filter_map(|(from, to, rule)| self.order_for(node, from, to, rule)).collect()
    }

    /// What a node has to do for a rule: the one that sends does all, and the one that receives hears nothing after a cut.
    fn order_for(&self, node: usize, from: usize, to: usize, rule: &Rule) -> Option<Order> {
        if node == from {
            Some(Order::RuleTo(self.site.address(to), rule.clone()))
        } else if node == to {
            Some(Order::CutFrom(self.site.address(from), rule.cut))
        } else {
            None
        }
    }

    fn report(&self, node: usize) -> Option<Report> {
        let (code, body) = self.site.get(node, "/status").ok()?;
        (code == 200).then(|| serde_json::from_str(&body).ok()).flatten()
    }

    /// Writes down what the test did.
    fn did(&self, node: usize, what: What) {
        self.write(node, 0, what);
    }

    fn write(&self, node: usize, run: u64, what: What) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(Entry { at: self.clock.now(), node, run, what });
    }

    fn running(&mut self, node: usize) -> &mut Child {
        self.children.get_mut(&node).unwrap_or_else(|| panic!("node {node} does not run"))
    }

    fn check(&mut self) {
        self.children.values_mut().for_each(Child::check);
    }

    /// Waits until the status of a user's program answers, and writes down which run it is.
    fn has_started(&mut self, node: usize) {
        let mut report = None;
        let answered = holds(|| {
            if let Some(child) = self.children.get_mut(&node) {
                child.check();
            }
            report = self.report(node);
            report.is_some()
        });
        if !answered {
            let admin = self.site.admin(node);
            self.running(node).fail(&format!("does not answer at http://{admin}/status in {DEADLINE:?}"));
        }
        let run = report.expect("it has answered").node.incarnation;
        self.write(node, run, What::Started);
    }
}

#[async_trait(?Send)]
impl Ground for Processes {
    async fn start(&mut self, node: usize, plan: &Plan) {
        assert!(!self.children.contains_key(&node), "node {node} runs already");
        let (listen, admin) = (self.site.address(node), self.site.admin(node));
        let filling = Filling { plan, listen, admin };
        let mut command = self.program.command(&*self.site, node, &filling);
        command.env("ROOMCAST_SECRET", self.secret.to_text());
        command.env(STARTED_VARIABLE, "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let ours = self.program.is_ours();
        let entries = ours.then(|| self.entries.clone());
        let mut child = Child::spawn(format!("node {node} ({})", plan.id), command, entries);
        if ours {
            let rules = self.rules_of(node);
            let (plan, cluster, begun_us) = (plan.clone(), CLUSTER.to_owned(), self.clock.begun_us());
            child.tell(&Start { index: node, plan, cluster, listen, begun_us, rules });
            // When it answers, it has started.
            child.tell(&Order::Ask(Ask::Quiet));
            child.answer();
        }
        self.children.insert(node, child);
        if !ours {
            self.has_started(node);
        }
    }

    async fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children.remove(&node) {
            self.did(node, What::Killed);
            child.kill();
        }
    }

    async fn leave(&mut self, node: usize) {
        let ours = self.program.is_ours();
        let child = self.running(node);
        if ours {
            child.tell(&Order::Leave);
            assert!(child.answer_unless_frozen().is_some(), "node {node} is frozen");
        } else {
            child.terminate();
        }
        let status = child.end();
        if !status.success() {
            child.fail(&format!("did not leave in order: {status}"));
        }
        self.children.remove(&node);
        self.did(node, What::Left);
    }

    async fn freeze(&mut self, node: usize) {
        self.check();
        self.did(node, What::Frozen);
        self.running(node).freeze();
    }

    async fn thaw(&mut self, node: usize) {
        self.running(node).thaw();
        self.did(node, What::Thawed);
    }

    async fn rule(&mut self, from: usize, to: usize, rule: Rule) {
        let outside = self.site.cut(from, to, rule.cut);
        let mut inside = rule;
        inside.cut &= !outside;
        let orders = [from, to].map(|node| self.order_for(node, from, to, &inside));
        let is_clear = inside == Rule::clear();
        if is_clear {
            self.rules.remove(&(from, to));
        } else {
            self.rules.insert((from, to), inside);
        }
        if self.program.is_ours() {
            for (node, order) in [from, to].into_iter().zip(orders) {
                order.and_then(|order| self.order(node, &order));
            }
        } else {
            assert!(is_clear, "only network namespaces can disturb the network of your program, by cuts");
        }
    }

    async fn readdress(&mut self, node: usize) {
        assert!(!self.children.contains_key(&node), "node {node} runs");
        self.site.readdress(node);
        // The others know it by its address.
        for other in self.children.keys().copied().collect::<Vec<_>>() {
            for rule in self.rules_of(other) {
                self.order(other, &rule);
            }
        }
    }

    fn address(&self, node: usize) -> SocketAddr {
        self.site.address(node)
    }

    async fn ask(&mut self, node: usize, ask: Ask) -> Option<Answer> {
        self.check();
        let child = self.children.get(&node)?;
        if child.frozen {
            return None;
        }
        if self.program.is_ours() {
            return self.order(node, &Order::Ask(ask));
        }
        match ask {
            Ask::Report => self.report(node).map(|report| Answer::Report(Box::new(report))),
            _ => None,
        }
    }

    async fn sleep(&mut self, time: Duration) {
        pause(time);
        self.check();
    }

    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn process(&self, node: usize) -> Option<u32> {
        self.children.get(&node).map(Child::id)
    }

    fn history(&mut self) -> &mut History {
        let new = std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner));
        self.history.entries.extend(new);
        self.history.entries.sort_by_key(|entry| entry.at);
        &mut self.history
    }
}
