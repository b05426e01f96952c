//! Numbered messages, and what a node notes of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// The length of a message, in bytes.
const MESSAGE_LEN: usize = 128;
/// The most signs that a node keeps: the first ones count.
const MAX_SIGNS: usize = 1_000;

/// What one run of a node noted. Times are microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When message 1, 2, ... was sent.
    pub sent: Vec<u64>,
    /// The runs from which messages came.
    pub senders: Vec<String>,
    /// What came from others, in the order in which it came.
    pub arrivals: Vec<Arrival>,
    /// What the API or the log said of trouble.
    pub signs: Vec<(u64, String)>,
    /// Messages of which the API said that they are lost, one for each node that they were for.
    pub told: u64,
}

/// A message came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The index of the run that sent it.
    pub sender: usize,
    /// Its number, from 1.
    pub number: u64,
    /// When it was sent.
    pub sent: u64,
    /// When it came.
    pub at: u64,
}

/// Where a node takes its notes. Clones share them.
#[derive(Debug, Clone)]
pub struct Book {
    /// The run that takes the notes.
    run: Arc<str>,
    notes: Arc<Mutex<Notes>>,
}

#[derive(Debug, Default)]
struct Notes {
    record: Record,
    index: HashMap<String, usize>,
    /// When the newest message of each run was sent.
    newest: Vec<u64>,
}

impl Book {
    /// An empty one. `run` names the run of the node in its messages: it is unique among all runs and has no space.
    pub fn new(run: &str) -> Self {
        Self { run: run.into(), notes: Arc::default() }
    }

    /// Numbers a message and notes that it is sent now.
    pub fn next_message(&self) -> Vec<u8> {
        let now = micros();
        let mut notes = self.lock();
        notes.record.sent.push(now);
        let mut message = format!("{} {} {now} ", self.run, notes.record.sent.len()).into_bytes();
        message.resize(MESSAGE_LEN.max(message.len()), b'.');
        message
    }

    /// Notes a message that came in; one of this run itself is passed over. Something else is a sign of trouble.
    pub fn arrived(&self, message: &[u8]) {
        let at = micros();
        let text = String::from_utf8_lossy(message);
        let mut words = text.split(' ');
        let run = words.next().unwrap_or_default();
        let mut number = || words.next()?.parse::<u64>().ok();
        match number().zip(number()) {
            Some(_) if *run == *self.run => {}
            Some((number, sent)) => self.lock().arrived(run, number, sent, at),
            None => self.sign(format!("not a numbered message: {text:?}")),
        }
    }

    /// Notes that the API or the log says of trouble.
    pub fn sign(&self, what: impl Into<String>) {
        let at = micros();
        let signs = &mut self.lock().record.signs;
        if signs.len() < MAX_SIGNS {
            signs.push((at, what.into()));
        }
    }

    /// Notes that the API says of so many messages that they are lost.
    pub fn told(&self, messages: u64) {
        self.lock().record.told += messages;
    }

    /// How far it is, in one line: the number of messages that came, and for each run when its newest was sent.
    pub fn progress(&self) -> String {
        let notes = self.lock();
        let runs = notes.record.senders.iter().zip(&notes.newest).map(|(run, sent)| format!(" {run}={sent}"));
        runs.fold(notes.record.arrivals.len().to_string(), |line, run| line + &run)
    }

    /// What was noted so far.
    pub fn record(&self) -> Record {
        self.lock().record.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes {
    fn arrived(&mut self, run: &str, number: u64, sent: u64, at: u64) {
        let sender = match self.index.get(run) {
            Some(index) => *index,
            None => {
                let index = self.newest.len();
                self.index.insert(run.to_owned(), index);
                self.newest.push(0);
                self.record.senders.push(run.to_owned());
                index
            }
        };
        self.newest[sender] = self.newest[sender].max(sent);
        self.record.arrivals.push(Arrival { sender, number, sent, at });
    }
}

/// A [`Book`] is a layer of the log: warnings and errors are signs of trouble.
impl<S: Subscriber> Layer<S> for Book {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= Level::WARN {
            let mut text = Text(format!("log of {}:", event.metadata().target()));
            event.record(&mut text);
            self.sign(text.0);
        }
    }
}

/// The fields of an event as text.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {}={value:?}", field.name());
    }
}

/// Microseconds since 1970: the processes of a report run on one machine, and compare.
pub fn micros() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the one clock that processes share")]
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_sends_the_other_notes() {
        let (a, b) = (Book::new("a.1"), Book::new("b.1"));
        for _ in 0..2 {
            let message = a.next_message();
            assert_eq!(message.len(), MESSAGE_LEN);
            a.arrived(&message);
            b.arrived(&message);
        }
        b.arrived(b"what is this");
        assert_eq!(a.record().arrivals, []);
        let (sent, got) = (a.record().sent, b.record());
        assert_eq!(got.senders, ["a.1"]);
        assert_eq!(got.arrivals.iter().map(|arrival| arrival.number).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(got.arrivals.iter().map(|arrival| arrival.sent).collect::<Vec<_>>(), sent);
        assert_eq!(got.signs.len(), 1);
        assert_eq!(b.progress(), format!("2 a.1={}", sent[1]));
        let json = serde_json::to_string(&got).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), got);
    }
}
