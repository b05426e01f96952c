//! The memory of processes over time.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);

/// The process of each node that runs, by its index.
pub(crate) type Running = Arc<Mutex<BTreeMap<usize, u32>>>;

/// The memory of one process at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Since the watch began.
    pub at: Duration,
    /// The node.
    pub node: usize,
    /// Its process: another one after a restart.
    pub process: u32,
    /// VmRSS.
    pub resident_kib: u64,
    /// RssAnon: of it what is not backed by files. The rest is parts of the program, which the system loads and drops.
    pub anonymous_kib: u64,
}

/// Looks at the processes in a thread of its own, and prints what it sees.
pub(crate) struct Watch {
    running: Running,
    stop: Sender<()>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Watch {
    /// Begins.
    pub(crate) fn start() -> Self {
        let running = Running::default();
        let (stop, stopped) = mpsc::channel();
        let seen = Arc::clone(&running);
        let thread = std::thread::spawn(move || {
            let (begin, mut samples) = (Instant::now(), Vec::new());
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let running = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let new = running.into_iter().filter_map(|(node, process)| look(begin, node, process));
                let new: Vec<_> = new.collect();
                let words = new.iter().map(|sample| {
                    format!(" n{}={}/{}", sample.node, sample.resident_kib, sample.anonymous_kib)
                });
                let words: String = words.collect();
                println!("{:>7.1} s  KiB resident/anonymous:{words}", begin.elapsed().as_secs_f64());
                samples.extend(new);
            }
            samples
        });
        Self { running, stop, thread }
    }

    /// Whom it looks at; the caller keeps it up to date.
    pub(crate) fn processes(&self) -> Running {
        Arc::clone(&self.running)
    }

    /// Ends, and returns what it has seen, in the order of time.
    pub(crate) fn end(self) -> Vec<Sample> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

fn look(begin: Instant, node: usize, process: u32) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let (resident_kib, anonymous_kib) = (kib(&status, "VmRSS:")?, kib(&status, "RssAnon:")?);
    Some(Sample { at: begin.elapsed(), node, process, resident_kib, anonymous_kib })
}

/// The number of a line such as `VmRSS:     1234 kB`.
fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_the_status_of_a_process() {
        let status = "Name:\tx\nVmRSS:\t    1234 kB\nRssAnon:\t     567 kB\n";
        assert_eq!((kib(status, "VmRSS:"), kib(status, "RssAnon:")), (Some(1234), Some(567)));
        assert_eq!(kib(status, "VmSwap:"), None);
    }
}
