//! What runs beside each node: one member that joins, emits numbered messages, and records what it gets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use roomcast::status::Report;
use roomcast::{Event, Events, Member, MemberState, Node};
use tokio::task::JoinHandle;

use super::counts::Counter;
use super::ground::{Answer, Ask};
use super::history::What;

/// The namespace of the member.
pub const NAMESPACE: &str = "/agent";

/// How often a load looks how many messages are due.
const LOAD_TICK: Duration = Duration::from_millis(2);

/// How the record of a message begins that no agent emitted.
pub(super) const STRANGE: &str = "a message that nobody emitted";

/// Takes what happened, and adds the time that the ground has.
#[derive(Clone)]
pub struct Record {
    now: Arc<dyn Fn() -> Duration + Send + Sync>,
    add: Arc<dyn Fn(What) + Send + Sync>,
    /// None while messages are recorded.
    counter: Arc<Mutex<Option<Counter>>>,
}

/// The agent of one run of a node.
pub struct Agent {
    node: Node,
    member: Member,
    record: Record,
    /// How many joins were recorded.
    joins: u64,
    emitter: Arc<Emitter>,
    traffic: Option<JoinHandle<()>>,
    events: JoinHandle<()>,
}

/// Emits messages whose numbers grow in the order in which they are emitted.
struct Emitter {
    node: Node,
    number: Mutex<u64>,
    index: usize,
    record: Record,
}

impl Record {
    /// From the clock of the ground, and what writes an entry with its time.
    pub fn new(
        now: impl Fn() -> Duration + Send + Sync + 'static,
        add: impl Fn(What) + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), add: Arc::new(add), counter: Arc::default() }
    }

    fn add(&self, what: What) {
        (self.add)(what);
    }

    /// Counts, if messages are only counted.
    fn count(&self, count: impl FnOnce(&mut Counter)) -> bool {
        let mut counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        counter.as_mut().map(count).is_some()
    }
}

impl Agent {
    /// Connects the member and records from now on. Must be called on the runtime of the node.
    pub fn new(node: Node, index: usize, record: Record) -> Self {
        let ns = node.namespace(NAMESPACE).expect("a short path");
        let heard = record.clone();
        let member = ns.connect(move |message: Bytes| match unstamp(&message) {
            Some((from, run, number)) => {
                if !heard.count(|counter| counter.heard(from, run, number)) {
                    heard.add(What::Delivered { from, run, number });
                }
            }
            None => heard.add(What::Event(format!("{STRANGE}: {message:?}"))),
        });
        let emitter = Emitter { node: node.clone(), number: Mutex::new(0), index, record: record.clone() };
        record.add(What::Started);
        let events = tokio::spawn(record_events(node.events(), record.clone()));
        Self { node, member, record, joins: 0, emitter: Arc::new(emitter), traffic: None, events }
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Does what a test asks. Never waits for other nodes.
    pub fn ask(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::Join(room) => self.join(room),
            Ask::JoinMany(prefix, count) => {
                (0..count).for_each(|number| self.join(format!("{prefix}-{number}")))
            }
            Ask::Leave(room) => {
                // Before it: of what is emitted meanwhile, nobody can say who has it.
                self.record.add(What::Quit(room.clone()));
                self.member.leave(&room);
            }
            Ask::Settle => {
                let (settled, record) = (self.member.settled(), self.record.clone());
                let joins = self.joins;
                tokio::spawn(async move {
                    settled.await;
                    record.add(What::Settled { joins });
                });
            }
            Ask::Emit(room, count, bytes) => (0..count).for_each(|_| self.emitter.emit(&room, bytes)),
            Ask::Traffic(room, every_ms, bytes) => {
                let emitter = Arc::clone(&self.emitter);
                let traffic = tokio::spawn(async move {
                    // After a freeze, what was not emitted meanwhile is not made up for.
                    let mut tick = tokio::time::interval(Duration::from_millis(every_ms.max(1)));
                    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                    loop {
                        tick.tick().await;
                        emitter.emit(&room, bytes);
                    }
                });
                self.quiet();
                self.traffic = Some(traffic);
            }
            Ask::Load(room, per_second, bytes) => {
                let load = tokio::spawn(load(Arc::clone(&self.emitter), room, per_second, bytes));
                self.quiet();
                self.traffic = Some(load);
            }
            Ask::CountOnly => {
                let mut counter = self.record.counter.lock().unwrap_or_else(PoisonError::into_inner);
                counter.get_or_insert_default();
            }
            Ask::Counts => {
                let counter = self.record.counter.lock().unwrap_or_else(PoisonError::into_inner);
                let counts = counter.as_ref().map(|counter| counter.counts.clone());
                return Answer::Counts(counts.unwrap_or_default());
            }
            Ask::Quiet => self.quiet(),
            Ask::Report => return Answer::Report(Box::new(Report::collect(&self.node))),
        }
        Answer::Done
    }

    fn join(&mut self, room: String) {
        self.member.join(&room).expect("a short name");
        self.record.add(What::Joined(room));
        self.joins += 1;
    }

    fn quiet(&mut self) {
        if let Some(traffic) = self.traffic.take() {
            traffic.abort();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.quiet();
        self.events.abort();
    }
}

impl Emitter {
    fn emit(&self, room: &str, bytes: usize) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        *number += 1;
        let began = (self.record.now)();
        let run = self.node.incarnation().0;
        let message = stamp(self.index, run, *number, bytes);
        let ns = self.node.namespace(NAMESPACE).expect("a short path");
        if self.record.count(|counter| counter.counts.emitted = *number) {
            let receipt = ns.to(room).emit(message).expect("a short room");
            self.record.count(|counter| counter.counts.dropped += receipt.dropped.len() as u64);
            return;
        }
        let before = self.node.peers();
        let receipt = ns.to(room).emit(message).expect("a short room");
        let after = self.node.peers();
        let peers = before.into_iter().filter(|peer| after.contains(peer));
        let peers = peers.map(|(id, run)| (id.to_string(), run.0)).collect();
        let dropped =
            receipt.dropped.iter().map(|(id, reason)| (id.to_string(), reason.to_string())).collect();
        self.record.add(What::Emitted { number: *number, began, room: room.to_owned(), peers, dropped });
    }
}

/// Emits so many messages a second.
async fn load(emitter: Arc<Emitter>, room: String, per_second: u64, bytes: usize) {
    let mut tick = tokio::time::interval(LOAD_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (begin, mut done) = (tokio::time::Instant::now(), 0);
    loop {
        tick.tick().await;
        let due = begin.elapsed().as_millis() as u64 * per_second / 1000;
        // What a pause of the process made late is made up for, but not at once.
        let now = (due - done).min(per_second / 10 + 1);
        (0..now).for_each(|_| emitter.emit(&room, bytes));
        done += now;
    }
}

async fn record_events(mut events: Events, record: Record) {
    while let Some(event) = events.recv().await {
        if let Event::Gap { frames, .. } = &event {
            record.count(|counter| counter.counts.gap_frames += frames);
        }
        record.add(match event {
            Event::Gap { peer, frames, outgoing } => What::Gap { peer: peer.to_string(), frames, outgoing },
            Event::MemberState { id, state: MemberState::Dead, .. } => What::Dead { peer: id.to_string() },
            other => What::Event(format!("{other:?}")),
        });
    }
}

/// The message `number` of a run of a node, filled up to `bytes` bytes.
fn stamp(node: usize, run: u64, number: u64, bytes: usize) -> Bytes {
    let mut message = format!("{node} {run} {number} ").into_bytes();
    message.resize(bytes.max(message.len()), b'.');
    message.into()
}

/// What [`stamp`] wrote.
fn unstamp(message: &[u8]) -> Option<(usize, u64, u64)> {
    let text = std::str::from_utf8(message).ok()?;
    let mut words = text.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
