//! The memory of processes over time: what the system gives them, and what they count themselves.

use std::alloc::System;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cap::Cap;
use tokio::time::Instant;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);

/// How often a node tells what it has in use.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Set in the environment of a node: the folder into which it tells that, in a file with the number of its process.
pub(crate) const FOLDER: &str = "SOAK_MEMORY";

/// Counts the bytes that are allocated and not freed. What the system gives is more and never shrinks to that: the
/// allocator keeps what lies between, and gaps.
#[global_allocator]
static IN_USE: Cap<System> = Cap::new(System, usize::MAX);

/// In a node: tells what it has in use for as long as it runs, if whoever started it wants to know.
pub(crate) fn tell() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    std::thread::spawn(move || {
        let (_never, end) = mpsc::channel::<()>();
        let file = folder.join(std::process::id().to_string());
        while end.recv_timeout(TOLD_EVERY) == Err(RecvTimeoutError::Timeout) {
            // Who reads it finds the old number, the new one or none. The folder may be gone before us.
            let _ = std::fs::write(&file, (IN_USE.allocated() / 1024).to_string());
        }
    });
}

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
    /// What it has allocated and not freed. None before it has said so.
    pub in_use_kib: Option<u64>,
}

/// Looks at the processes in a thread of its own, and prints what it sees.
pub(crate) struct Watch {
    running: Running,
    stop: Sender<()>,
    thread: JoinHandle<Vec<Sample>>,
    folder: PathBuf,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// When there can be no folder for temporary files.
    pub(crate) fn start() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("soak-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let told = folder.clone();
        let running = Running::default();
        let (stop, stopped) = mpsc::channel();
        let seen = Arc::clone(&running);
        let thread = std::thread::spawn(move || {
            let (begin, mut samples) = (Instant::now(), Vec::new());
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let running = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let new = running.into_iter().filter_map(|(node, process)| look(begin, &told, node, process));
                let new: Vec<_> = new.collect();
                let words = new.iter().map(|sample| {
                    let in_use = sample.in_use_kib.map_or("?".to_owned(), |kib| kib.to_string());
                    format!(" n{}={}/{}/{in_use}", sample.node, sample.resident_kib, sample.anonymous_kib)
                });
                let words: String = words.collect();
                println!("{:>7.1} s  KiB resident/anonymous/in use:{words}", begin.elapsed().as_secs_f64());
                samples.extend(new);
            }
            samples
        });
        Ok(Self { running, stop, thread, folder })
    }

    /// Whom it looks at; the caller keeps it up to date.
    pub(crate) fn processes(&self) -> Running {
        Arc::clone(&self.running)
    }

    /// Where nodes tell what they have in use: the value of [`FOLDER`] for them.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends, and returns what it has seen, in the order of time.
    pub(crate) fn end(self) -> Vec<Sample> {
        drop(self.stop);
        let samples = self.thread.join().unwrap_or_default();
        let _ = std::fs::remove_dir_all(self.folder);
        samples
    }
}

fn look(begin: Instant, told: &Path, node: usize, process: u32) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let (resident_kib, anonymous_kib) = (kib(&status, "VmRSS:")?, kib(&status, "RssAnon:")?);
    let in_use_kib =
        std::fs::read_to_string(told.join(process.to_string())).ok().and_then(|kib| kib.parse().ok());
    Some(Sample { at: begin.elapsed(), node, process, resident_kib, anonymous_kib, in_use_kib })
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
