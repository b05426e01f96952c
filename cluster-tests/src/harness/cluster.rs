//! A cluster that a test disturbs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::Location;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomcast::Node;
use roomcast::status::{LinkReport, Report};

use super::builder::{ClusterBuilder, SEED_VARIABLE, SeedNodes};
use super::check::{self, Tally};
use super::counts::Counts;
use super::ground::{Answer, Ask, Ground, Plan, Rule, Settings};
use super::history::{Entry, History, What};
use super::sim::Simulated;
use super::story::story;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the first meeting may take.
const MEET: Duration = Duration::from_secs(40);
/// How long the queues may take to empty when all is well.
const EMPTY: Duration = Duration::from_secs(60);
/// How long a future may take on a node.
const ON_NODE: Duration = Duration::from_secs(120);

/// A running cluster. Nodes are counted from 0 and have the ids `n0`, `n1` and so on.
///
/// * Time: [`sleep`](Self::sleep), [`eventually`](Self::eventually), [`converged`](Self::converged), [`now`](Self::now).
/// * The network: [`partition`](Self::partition), [`one_way`](Self::one_way), [`lossy`](Self::lossy),
///   [`delay`](Self::delay), [`reorder`](Self::reorder), [`duplicate`](Self::duplicate), [`heal`](Self::heal).
/// * Nodes: [`freeze`](Self::freeze), [`thaw`](Self::thaw), [`kill`](Self::kill), [`restart`](Self::restart),
///   [`retire`](Self::retire), [`replace_address`](Self::replace_address); on simulated ground
///   [`jump_clock`](Self::jump_clock), [`set_wall_clock`](Self::set_wall_clock).
/// * What the members of the harness do: [`join`](Self::join), [`leave`](Self::leave), [`settle`](Self::settle),
///   [`emit`](Self::emit), [`traffic`](Self::traffic), [`quiet`](Self::quiet). A restarted node joins and emits again what
///   it did before.
/// * To look: [`report`](Self::report), [`history`](Self::history), [`story`](Self::story); on simulated ground
///   [`on`](Self::on).
pub struct Cluster {
    ground: Box<dyn Ground>,
    seed: u64,
    dice: StdRng,
    settings: Settings,
    /// Which nodes speak version 1 only.
    old: fn(u64, usize) -> bool,
    seed_nodes: SeedNodes,
    within: Duration,
    replay: String,
    ids: Vec<String>,
    seats: Vec<Seat>,
    rules: BTreeMap<(usize, usize), Rule>,
    /// Whether reported losses are faults, too.
    lossless: bool,
    finished: bool,
}

/// What the test did to a node.
#[derive(Debug, Default)]
struct Seat {
    running: bool,
    frozen: bool,
    /// The rooms that its member is in, and what it emits: done again after a restart.
    rooms: Vec<String>,
    traffic: Option<Ask>,
}

impl Cluster {
    /// A builder: three nodes on simulated ground.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    pub(super) async fn start(builder: ClusterBuilder, ground: Box<dyn Ground>) -> Self {
        let seed = builder.seed;
        let replay = builder.replay.unwrap_or_else(|| format!("{SEED_VARIABLE}={seed} and the same test"));
        let mut cluster = Self {
            ground,
            seed,
            dice: StdRng::seed_from_u64(seed),
            settings: builder.settings,
            old: builder.old,
            seed_nodes: builder.seed_nodes,
            within: builder.within,
            replay,
            ids: (0..builder.nodes).map(|node| format!("n{node}")).collect(),
            seats: (0..builder.nodes).map(|_| Seat::default()).collect(),
            rules: BTreeMap::new(),
            lossless: builder.lossless,
            finished: false,
        };
        for node in 0..cluster.len() {
            cluster.begin(node).await;
        }
        cluster.converged(MEET).await;
        cluster
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The nodes.
    pub fn nodes(&self) -> Range<usize> {
        0..self.len()
    }

    /// The id of a node.
    pub fn id(&self, node: usize) -> &str {
        &self.ids[node]
    }

    /// Whether it stands on simulated ground.
    pub fn is_simulated(&mut self) -> bool {
        self.ground.simulated().is_some()
    }

    /// The settings that its nodes have.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A number from a range, picked by the seed.
    pub fn pick(&mut self, range: Range<u64>) -> u64 {
        self.dice.random_range(range)
    }

    /// The time since the cluster began.
    pub fn now(&self) -> Duration {
        self.ground.now()
    }

    /// Lets time pass.
    pub async fn sleep(&mut self, time: Duration) {
        self.ground.sleep(time).await;
    }

    /// Lets time pass until `condition` holds.
    ///
    /// # Panics
    /// After `within`, with the line of the caller.
    #[track_caller]
    pub fn eventually(
        &mut self,
        within: Duration,
        mut condition: impl AsyncFnMut(&mut Cluster) -> bool,
    ) -> impl Future<Output = ()> {
        let caller = Location::caller();
        async move {
            let end = self.now() + within;
            while !condition(self).await {
                assert!(self.now() < end, "{caller}: not within {within:?}");
                self.sleep(LOOK).await;
            }
        }
    }

    /// Lets time pass until the running nodes are one cluster, and returns how long that took: everyone lists exactly
    /// those that run, has a link to each, and holds its newest interest ([`check::convergence`]).
    ///
    /// # Panics
    /// After `within`, with what is missing.
    #[track_caller]
    pub fn converged(&mut self, within: Duration) -> impl Future<Output = Duration> {
        self.agreed(within, "one cluster", check::convergence)
    }

    /// Lets time pass until the running nodes list each other, each with a link, and nobody else, and returns how long that
    /// took ([`check::membership`]). What they know of rooms may come later.
    ///
    /// # Panics
    /// After `within`, with what is missing.
    #[track_caller]
    pub fn complete(&mut self, within: Duration) -> impl Future<Output = Duration> {
        self.agreed(within, "complete", check::membership)
    }

    #[track_caller]
    fn agreed(
        &mut self,
        within: Duration,
        what: &str,
        check: fn(&BTreeMap<String, Report>) -> Vec<String>,
    ) -> impl Future<Output = Duration> {
        let caller = Location::caller();
        async move {
            let begin = self.now();
            loop {
                let wrong = check(&self.reports().await);
                let took = self.now() - begin;
                if wrong.is_empty() {
                    self.note(format!("all running nodes are {what}, after {took:?}"));
                    return took;
                }
                assert!(took < within, "{caller}: not {what} within {within:?}:\n{}", wrong.join("\n"));
                self.sleep(LOOK).await;
            }
        }
    }

    /// Cuts the network between each node of `one` and each of `other`, both ways.
    pub async fn partition(&mut self, one: impl AsRef<[usize]>, other: impl AsRef<[usize]>) {
        let (one, other) = (one.as_ref(), other.as_ref());
        self.note(format!("no packets between {one:?} and {other:?}"));
        for (a, b) in pairs(one, other) {
            self.change(a, b, |rule| rule.cut = true).await;
            self.change(b, a, |rule| rule.cut = true).await;
        }
    }

    /// Cuts the way from one node to another; the other way stays open.
    pub async fn one_way(&mut self, from: usize, to: usize) {
        self.note(format!("no packets from {from} to {to}"));
        self.change(from, to, |rule| rule.cut = true).await;
    }

    /// Loses a part of the packets between two nodes, from 0 to 1.
    pub async fn lossy(&mut self, a: usize, b: usize, loss: f64) {
        self.note(format!("between {a} and {b} {loss} of the packets are lost"));
        self.both_ways(a, b, |rule| rule.loss = loss).await;
    }

    /// Delays the packets between two nodes, each by a time in between.
    pub async fn delay(&mut self, a: usize, b: usize, delay: Range<Duration>) {
        self.note(format!("between {a} and {b} packets take {delay:?} longer"));
        self.both_ways(a, b, |rule| rule.delay = delay.clone()).await;
    }

    /// Holds back a part of the packets between two nodes, so that later ones overtake them.
    pub async fn reorder(&mut self, a: usize, b: usize, part: f64) {
        self.note(format!("between {a} and {b} {part} of the packets are overtaken"));
        self.both_ways(a, b, |rule| rule.reorder = part).await;
    }

    /// Delivers a part of the packets between two nodes twice.
    pub async fn duplicate(&mut self, a: usize, b: usize, part: f64) {
        self.note(format!("between {a} and {b} {part} of the packets come twice"));
        self.both_ways(a, b, |rule| rule.duplicate = part).await;
    }

    /// The network is as it was at the start.
    pub async fn heal(&mut self) {
        self.note("the network is healed");
        let rules = std::mem::take(&mut self.rules);
        for (from, to) in rules.into_keys() {
            self.ground.rule(from, to, Rule::clear()).await;
        }
    }

    /// Stops a node from running, as SIGSTOP does.
    pub async fn freeze(&mut self, node: usize) {
        self.seats[node].frozen = self.seats[node].running;
        self.ground.freeze(node).await;
    }

    /// Lets it run again.
    pub async fn thaw(&mut self, node: usize) {
        self.seats[node].frozen = false;
        self.ground.thaw(node).await;
    }

    /// Ends a node without a word, as SIGKILL does.
    pub async fn kill(&mut self, node: usize) {
        (self.seats[node].running, self.seats[node].frozen) = (false, false);
        self.ground.kill(node).await;
    }

    /// Starts a node again that does not run, under the same id; one that runs is killed before. Its member joins the rooms
    /// it was in and emits what it emitted.
    pub async fn restart(&mut self, node: usize) {
        self.kill(node).await;
        self.begin(node).await;
        let rooms = self.seats[node].rooms.clone();
        let settle = (!rooms.is_empty()).then_some(Ask::Settle);
        for ask in rooms.into_iter().map(Ask::Join).chain(settle) {
            self.ask(node, ask).await;
        }
        if let Some(traffic) = self.seats[node].traffic.clone() {
            self.ask(node, traffic).await;
        }
    }

    /// Lets a node leave the cluster in order (`Node::drain`), and ends it.
    pub async fn retire(&mut self, node: usize) {
        let at = self.ground.now();
        self.ground.history().add(Entry { at, node, run: 0, what: What::Leaving });
        self.ground.leave(node).await;
        (self.seats[node].running, self.seats[node].frozen) = (false, false);
    }

    /// Kills a node and gives it another address; [`restart`](Self::restart) starts it there.
    pub async fn replace_address(&mut self, node: usize) {
        self.kill(node).await;
        self.ground.readdress(node).await;
        self.note(format!("{} has another address: {}", self.ids[node], self.ground.address(node)));
    }

    /// The monotonic clock of a running node jumps ahead. On simulated ground only.
    pub fn jump_clock(&mut self, node: usize, by: Duration) {
        self.simulated().jump_clock(node, by);
    }

    /// The wall clock of a node is off by so many milliseconds when it is started the next time. On simulated ground only.
    pub fn set_wall_clock(&mut self, node: usize, off_ms: i64) {
        self.simulated().set_wall_clock(node, off_ms);
    }

    /// The member of a node joins a room.
    pub async fn join(&mut self, node: usize, room: &str) {
        if !self.seats[node].rooms.iter().any(|joined| joined == room) {
            self.seats[node].rooms.push(room.to_owned());
        }
        self.ask(node, Ask::Join(room.to_owned())).await;
    }

    /// The member of a node joins so many rooms, named `prefix-number`; not again after a restart.
    pub async fn join_many(&mut self, node: usize, prefix: &str, count: usize) {
        self.ask(node, Ask::JoinMany(prefix.to_owned(), count)).await;
    }

    /// The member of a node leaves a room.
    pub async fn leave(&mut self, node: usize, room: &str) {
        self.seats[node].rooms.retain(|joined| joined != room);
        self.ask(node, Ask::Leave(room.to_owned())).await;
    }

    /// From when the joins so far are known everywhere, messages that are missed are a fault. Does not wait.
    pub async fn settle(&mut self, node: usize) {
        self.ask(node, Ask::Settle).await;
    }

    /// Emits so many numbered messages of 100 bytes from a node to a room, at once.
    pub async fn emit(&mut self, node: usize, room: &str, count: u64) {
        self.ask(node, Ask::Emit(room.to_owned(), count, 100)).await;
    }

    /// Emits a message of 100 bytes from a node to a room each time that `every` has passed.
    pub async fn traffic(&mut self, node: usize, room: &str, every: Duration) {
        let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let traffic = Ask::Traffic(room.to_owned(), every_ms, 100);
        self.seats[node].traffic = Some(traffic.clone());
        self.ask(node, traffic).await;
    }

    /// Emits so many messages a second, of so many bytes, from a node to a room, until [`quiet`](Self::quiet); not again
    /// after a restart.
    pub async fn load(&mut self, node: usize, room: &str, per_second: u64, bytes: usize) {
        self.ask(node, Ask::Load(room.to_owned(), per_second, bytes)).await;
    }

    /// From now on the messages of this run are counted, not recorded: the checker does not see them.
    pub async fn count_only(&mut self, node: usize) {
        self.ask(node, Ask::CountOnly).await;
    }

    /// What was counted since [`count_only`](Self::count_only). None when the node does not run or is frozen.
    pub async fn counts(&mut self, node: usize) -> Option<Counts> {
        match self.ground.ask(node, Ask::Counts).await? {
            Answer::Counts(counts) => Some(counts),
            Answer::Done | Answer::Report(_) => None,
        }
    }

    /// Ends the traffic of all nodes.
    pub async fn quiet(&mut self) {
        for node in self.nodes() {
            self.seats[node].traffic = None;
            let _ = self.ground.ask(node, Ask::Quiet).await;
        }
    }

    /// Ends all traffic, waits until nothing is on its way, checks the history so far, and forgets its messages: for
    /// runs that are too long to keep all. Returns what is wrong, in words, and the history in numbers. The network has to
    /// be healed, no node frozen.
    ///
    /// # Panics
    /// When the queues do not empty, or joins do not settle.
    pub async fn checkpoint(&mut self) -> (Vec<String>, Tally) {
        self.quiet().await;
        for node in self.nodes().filter(|node| self.seats[*node].running).collect::<Vec<_>>() {
            self.settle(node).await;
        }
        self.emptied().await;
        let mut left = None;
        self.eventually(EMPTY, async |cluster| {
            let (at, ids) = (cluster.now(), cluster.ids.clone());
            left = check::forget(cluster.history(), &ids, at);
            left.is_some()
        })
        .await;
        let ids = self.ids.clone();
        let history = std::mem::replace(self.ground.history(), left.unwrap_or_default());
        (check::history(&history, &ids), check::tally(&history, &ids))
    }

    /// The process of a node that runs. On real ground only.
    pub fn process(&self, node: usize) -> Option<u32> {
        self.ground.process(node)
    }

    /// The status of a node. None when it does not run or is frozen.
    pub async fn report(&mut self, node: usize) -> Option<Report> {
        match self.ground.ask(node, Ask::Report).await? {
            Answer::Report(report) => Some(*report),
            Answer::Done | Answer::Counts(_) => None,
        }
    }

    /// Runs a future on a node while time goes on, and returns its output. On simulated ground only.
    ///
    /// # Panics
    /// When the node does not run, or after two minutes of simulated time.
    #[track_caller]
    pub fn on<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        node: usize,
        work: impl FnOnce(Node) -> F,
    ) -> impl Future<Output = T> {
        let output = self.simulated().on(node, ON_NODE, work);
        std::future::ready(output.expect("the node runs, and the work ends within two minutes"))
    }

    /// What happened so far.
    pub fn history(&mut self) -> &History {
        self.ground.history()
    }

    /// What happened so far, in words.
    pub fn story(&mut self) -> String {
        story(self.ground.history(), &self.ids)
    }

    /// Writes something into the story.
    pub fn note(&mut self, words: impl Into<String>) {
        let at = self.ground.now();
        self.ground.history().add(Entry { at, node: 0, run: 0, what: What::Fault(words.into()) });
    }

    /// Heals everything, waits until the running nodes are one cluster and have delivered what is queued, and checks the history.
    pub(super) async fn finish(mut self) -> History {
        self.note("the end: everything is healed");
        self.heal().await;
        for node in self.nodes().filter(|node| self.seats[*node].frozen).collect::<Vec<_>>() {
            self.thaw(node).await;
        }
        self.converged(self.within).await;
        self.quiet().await;
        self.emptied().await;
        let mut wrong = check::history(self.ground.history(), &self.ids);
        if self.lossless {
            wrong.extend(check::losses(self.ground.history(), &self.ids));
        }
        assert!(wrong.is_empty(), "the history is wrong:\n{}", wrong.join("\n"));
        self.finished = true;
        std::mem::take(self.ground.history())
    }

    /// Waits until what is in the queues now has gone: acknowledged, or given up. An application goes on emitting.
    async fn emptied(&mut self) {
        let due = frames_of(&self.reports().await, |link| link.frames_sent);
        self.eventually(EMPTY, async |cluster| {
            let gone = frames_of(&cluster.reports().await, |link| {
                link.frames_sent.saturating_sub(link.queue_frames)
            });
            due.iter().all(|(link, sent)| gone.get(link).is_none_or(|gone| gone >= sent))
        })
        .await;
        // What was acknowledged is delivered; on real ground its record is on its way.
        self.sleep(Duration::from_secs(1)).await;
    }

    async fn begin(&mut self, node: usize) {
        let nodes = if self.seed_nodes == SeedNodes::First { 0..1 } else { self.nodes() };
        let seeds = nodes.map(|seed| self.ground.seed(seed)).collect();
        let mut settings = self.settings.clone();
        if (self.old)(self.seed, node) {
            settings.protocol_max = Some(1);
        }
        let plan = Plan { id: self.ids[node].clone(), seeds, settings };
        self.ground.start(node, &plan).await;
        self.seats[node].running = true;
    }

    async fn reports(&mut self) -> BTreeMap<String, Report> {
        let mut reports = BTreeMap::new();
        for node in self.nodes().filter(|node| self.seats[*node].running).collect::<Vec<_>>() {
            if let Some(report) = self.report(node).await {
                reports.insert(self.ids[node].clone(), report);
            }
        }
        reports
    }

    async fn ask(&mut self, node: usize, ask: Ask) {
        let id = &self.ids[node];
        let answer = self.ground.ask(node, ask).await;
        assert!(answer.is_some(), "{id} does not run or is frozen: nothing can be asked of it");
    }

    async fn both_ways(&mut self, a: usize, b: usize, change: impl Fn(&mut Rule)) {
        self.change(a, b, &change).await;
        self.change(b, a, &change).await;
    }

    async fn change(&mut self, from: usize, to: usize, change: impl Fn(&mut Rule)) {
        let rule = self.rules.entry((from, to)).or_insert_with(Rule::clear);
        change(rule);
        let rule = rule.clone();
        self.ground.rule(from, to, rule).await;
    }

    fn simulated(&mut self) -> &mut Simulated {
        self.ground.simulated().expect("this can be done on simulated ground only")
    }
}

/// A number of each link, by the node, its peer and the run of that.
fn frames_of(
    reports: &BTreeMap<String, Report>,
    number: impl Fn(&LinkReport) -> u64,
) -> BTreeMap<(String, String, u64), u64> {
    let links = reports.iter().flat_map(|(id, report)| report.links.iter().map(move |link| (id, link)));
    links.map(|(id, link)| ((id.clone(), link.peer.clone(), link.incarnation), number(link))).collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.finished {
            let (story, seed, replay) = (self.story(), self.seed, &self.replay);
            eprintln!("{story}\nseed {seed}; the same again: {replay}");
        }
    }
}

fn pairs<'a>(one: &'a [usize], other: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
    one.iter().flat_map(|a| other.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b)
}
