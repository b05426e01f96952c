//! Clients of the official library that send numbered messages, and the check of what they got.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::netns::Pod;
use crate::process::Process;
use crate::requirement::JS;
use crate::wait::{DEADLINE, eventually};

/// How often the record is checked.
const PAUSE: Duration = Duration::from_millis(200);
/// At most so many numbers are named in one complaint.
const NAMED: usize = 10;

/// Clients in one process. Each joins one room, and sends it numbered messages, one after the other, while it is connected.
pub struct Flow {
    process: Process,
    heard: Mutex<(usize, Record)>,
}

/// What the clients did. A session is one connection of a client, named by its socket id.
///
/// What must hold ([`complaints`](Self::complaints)): no session gets a message twice. Once a session has got a message of
/// another one, it gets all that the server has acknowledged to that one since, up to the last that it got, and up to the
/// very last when it is still open and the node of the other one was not [killed](Flow::killed). Of each session that is
/// open at the end, every other open one has got something.
#[derive(Debug, Clone, Default)]
pub struct Record {
    sessions: BTreeMap<String, Session>,
    /// The nodes on which messages were sent.
    nodes: BTreeSet<String>,
    killed: BTreeSet<String>,
    twice: Vec<String>,
    quiet: bool,
}

#[derive(Debug, Clone, Default)]
struct Session {
    client: String,
    open: bool,
    /// On which node it was, once somebody has got something of it.
    node: String,
    /// The numbers that the server has acknowledged.
    sent: BTreeSet<u64>,
    /// What it got of each session.
    got: BTreeMap<String, BTreeSet<u64>>,
}

impl Flow {
    /// Starts the process in a pod; `node` is Node.js.
    pub fn start(edge: &Pod, node: PathBuf) -> Self {
        let mut command = edge.command(node);
        command.arg(Path::new(JS).join("pods.mjs"));
        let process = Process::spawn("pods.mjs", Command::from(command));
        Self { process, heard: Mutex::default() }
    }

    /// Connects clients named from `first` on.
    pub async fn open(&self, url: &str, clients: std::ops::Range<usize>) {
        for client in clients {
            let order = json!({ "op": "open", "client": format!("client-{client}"), "url": url });
            self.process.write(&order.to_string()).await;
        }
    }

    /// Waits until the record is as `holds` says.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn until(&self, what: &str, holds: impl Fn(&Record) -> bool) {
        eventually(what, || self.see(&holds)).await;
    }

    /// A node is killed now: what it acknowledged last may be lost with it.
    pub fn killed(&self, node: &str) {
        lock(&self.heard).1.killed.insert(node.to_owned());
    }

    /// Ends the sending, waits until all that was sent has arrived, and returns the record.
    ///
    /// # Panics
    /// When something is missing after the deadline, or came twice.
    pub async fn settle(&self) -> Record {
        self.process.write(&json!({ "op": "quiet" }).to_string()).await;
        self.until("all messages are acknowledged", |record| record.quiet).await;
        let end = Instant::now() + DEADLINE;
        loop {
            let record = self.see(Record::clone);
            let complaints = record.complaints();
            if complaints.is_empty() {
                return record;
            }
            assert!(Instant::now() < end, "not within {DEADLINE:?}:\n{}", complaints.join("\n"));
            sleep(PAUSE).await;
        }
    }

    fn see<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        let mut heard = lock(&self.heard);
        let (lines, record) = &mut *heard;
        for line in self.process.lines_from(*lines) {
            *lines += 1;
            record.take(&serde_json::from_str(&line).expect("the script prints JSON"));
        }
        look(record)
    }
}

impl Record {
    /// Adds a line of the script.
    fn take(&mut self, line: &Value) {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let number = line["number"].as_u64().unwrap_or_default();
        let session = self.sessions.entry(text("sid")).or_default();
        match line["is"].as_str() {
            Some("connected") => (session.client, session.open) = (text("client"), true),
            Some("disconnected") => session.open = false,
            Some("sent") => drop(session.sent.insert(number)),
            Some("got") => {
                self.nodes.insert(text("node"));
                if !session.got.entry(text("from")).or_default().insert(number) {
                    self.twice.push(line.to_string());
                }
                self.sessions.entry(text("from")).or_default().node = text("node");
            }
            Some("quiet") => self.quiet = true,
            _ => panic!("nobody expects {line}"),
        }
    }

    /// What is wrong, in words; empty when all holds.
    pub fn complaints(&self) -> Vec<String> {
        let twice = self.twice.iter().take(NAMED).map(|line| format!("came twice: {line}"));
        let pairs = self.sessions.iter().flat_map(|to| self.sessions.iter().map(move |from| (to, from)));
        let misses = |to: &Session, sid: &str, from: &Session| {
            to.misses(sid, from, to.open && !self.killed.contains(&from.node))
        };
        twice.chain(pairs.filter_map(|((_, to), (sid, from))| misses(to, sid, from))).collect()
    }

    /// The nodes on which messages were sent.
    pub fn nodes(&self) -> &BTreeSet<String> {
        &self.nodes
    }

    /// How many messages the servers have acknowledged.
    pub fn sent(&self) -> usize {
        self.sessions.values().map(|session| session.sent.len()).sum()
    }

    /// How many sessions are open.
    pub fn open(&self) -> usize {
        self.sessions.values().filter(|session| session.open).count()
    }

    /// How many sessions there were.
    pub fn sessions(&self) -> usize {
        self.sessions.values().filter(|session| !session.client.is_empty()).count()
    }

    /// Whether every open session has got something of every open session.
    pub fn all_hear_all(&self) -> bool {
        let open = || self.sessions.iter().filter(|(_, session)| session.open);
        open().all(|(_, to)| open().all(|(sid, _)| to.got.contains_key(sid)))
    }
}

impl Session {
    /// What this one should have got of another one and has not; `to_the_last` says whether the last ones count, too.
    fn misses(&self, sid: &str, from: &Self, to_the_last: bool) -> Option<String> {
        let Some(got) = self.got.get(sid) else {
            let unheard = self.open && from.open && !from.sent.is_empty();
            return unheard.then(|| format!("{} never heard {} ({sid})", self.client, from.client));
        };
        let first = *got.first()?;
        let last = if to_the_last { u64::MAX } else { *got.last()? };
        let missing: Vec<u64> =
            from.sent.range(first..=last).filter(|number| !got.contains(number)).copied().collect();
        let named = &missing[..missing.len().min(NAMED)];
        (!missing.is_empty()).then(|| {
            format!("{} misses {} messages of {} ({sid}): {named:?}", self.client, missing.len(), from.client)
        })
    }
}

fn lock(heard: &Mutex<(usize, Record)>) -> MutexGuard<'_, (usize, Record)> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lines: &[Value]) -> Record {
        let mut record = Record::default();
        lines.iter().for_each(|line| record.take(line));
        record
    }

    fn connected(sid: &str) -> Value {
        json!({ "client": sid, "is": "connected", "sid": sid })
    }

    fn sent(sid: &str, number: u64) -> Value {
        json!({ "client": sid, "is": "sent", "sid": sid, "number": number })
    }

    fn got(sid: &str, number: u64) -> Value {
        json!({ "client": sid, "is": "got", "sid": sid, "from": "a", "node": "n", "number": number })
    }

    #[test]
    fn what_is_missing_between_two_that_came_is_found() {
        let begin = [connected("a"), connected("b"), sent("a", 1), sent("a", 2), sent("a", 3), sent("a", 4)];
        let own = [1, 2, 3, 4].map(|number| got("a", number));
        let of = |more: &[Value]| record(&[&begin[..], &own, more].concat()).complaints();
        // The first one was sent before it had joined.
        assert_eq!(of(&[got("b", 2), got("b", 3), got("b", 4)]), [""; 0]);
        assert_eq!(of(&[got("b", 2), got("b", 4)]), ["b misses 1 messages of a (a): [3]"]);
        assert_eq!(of(&[got("b", 2), got("b", 3)]), ["b misses 1 messages of a (a): [4]"]);
        assert_eq!(of(&[]), ["b never heard a (a)"]);
        // It had gone.
        let gone = json!({ "client": "b", "is": "disconnected", "sid": "b" });
        assert_eq!(of(&[got("b", 2), got("b", 3), gone.clone()]), [""; 0]);
        assert_eq!(of(&[got("b", 2), got("b", 4), gone]).len(), 1);
        assert!(of(&[got("b", 2), got("b", 2), got("b", 3), got("b", 4)])[0].starts_with("came twice"));
        // Its node was killed.
        let killed = |more: &[Value]| {
            let mut record = record(&[&begin[..], &own, more].concat());
            record.killed.insert("n".to_owned());
            record.complaints().len()
        };
        assert_eq!(killed(&[got("b", 2), got("b", 3)]), 0);
        assert_eq!(killed(&[got("b", 2), got("b", 4)]), 1);
    }
}
