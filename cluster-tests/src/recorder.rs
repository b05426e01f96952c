//! A sink that records numbered messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use roomcast::Sink;

/// The message `number` of `sender`.
pub fn stamp(sender: &str, number: u64) -> Bytes {
    format!("{sender} {number}").into()
}

/// As [`stamp`], filled up to `len` bytes.
pub fn stamp_of(sender: &str, number: u64, len: usize) -> Bytes {
    let mut message = format!("{sender} {number} ").into_bytes();
    message.resize(len.max(message.len()), b'.');
    message.into()
}

/// A message that only asks who would get it: a [`Recorder`] ignores it.
pub fn probe() -> Bytes {
    Bytes::from_static(b"probe")
}

/// Records messages made by [`stamp`]. Clones share the record.
///
/// A sender numbers its messages in growing order, so a number that is not above the one before is out of order or a
/// repeat. That is noted as a fault; [`check`](Self::check) tells.
#[derive(Clone, Default)]
pub struct Recorder {
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    numbers: BTreeMap<String, Vec<u64>>,
    faults: Vec<String>,
}

impl Recorder {
    /// Nothing recorded.
    pub fn new() -> Self {
        Self::default()
    }

    /// The numbers that came from `sender`, in the order in which they came.
    pub fn numbers(&self, sender: &str) -> Vec<u64> {
        self.lock().numbers.get(sender).cloned().unwrap_or_default()
    }

    /// How many messages came.
    pub fn count(&self) -> usize {
        self.lock().numbers.values().map(Vec::len).sum()
    }

    /// How many messages came from `sender`.
    pub fn count_from(&self, sender: &str) -> usize {
        self.lock().numbers.get(sender).map_or(0, Vec::len)
    }

    /// Whether message `number` of `sender` came.
    pub fn has(&self, sender: &str, number: u64) -> bool {
        self.lock().numbers.get(sender).is_some_and(|numbers| numbers.contains(&number))
    }

    /// Checks that no message was out of order or came twice.
    ///
    /// # Panics
    /// When one was.
    #[track_caller]
    pub fn check(&self) {
        let record = self.lock();
        assert!(record.faults.is_empty(), "out of order or repeated: {:?}", record.faults);
    }

    /// Checks that the messages 1 to `last` of `sender` came, each once and in order.
    ///
    /// # Panics
    /// When one did not.
    #[track_caller]
    pub fn check_all(&self, sender: &str, last: u64) {
        self.check();
        let numbers = self.numbers(sender);
        let missing: Vec<u64> =
            (1..=last).filter(|number| numbers.binary_search(number).is_err()).take(20).collect();
        assert!(missing.is_empty(), "from {sender}: {} of {last} came; missing {missing:?}", numbers.len());
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Recorder {
    fn deliver(&self, message: Bytes) {
        let mut record = self.lock();
        if message == probe() {
            return;
        }
        let text = String::from_utf8_lossy(&message);
        let mut words = text.split_whitespace();
        let (Some(sender), Some(Ok(number))) = (words.next(), words.next().map(str::parse::<u64>)) else {
            let fault = format!("not a numbered message: {text:?}");
            record.faults.push(fault);
            return;
        };
        let numbers = record.numbers.entry(sender.to_owned()).or_default();
        let last = numbers.last().copied().unwrap_or(0);
        numbers.push(number);
        if number <= last {
            let fault = format!("{sender}: {number} after {last}");
            record.faults.push(fault);
        }
    }
}
