//! A running process, seen from the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child as Running, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde::Serialize;

use super::clock::holds;
use super::wire::Said;
use crate::afterwards::Afterwards;
use crate::harness::ground::Answer;
use crate::harness::history::Entry;
use crate::wait::DEADLINE;

/// The last lines of what a process prints that are kept.
const PRINTED_LINES: usize = 500;

/// What all processes of a cluster recorded and nobody has looked at yet.
pub(super) type Entries = Arc<Mutex<Vec<Entry>>>;

/// A process. It is killed when it is dropped or the test is, with all that it started; what it printed is shown when the
/// test has failed.
pub(super) struct Child {
    name: String,
    process: Running,
    /// Kills its group. None once that was done.
    killer: Option<Afterwards>,
    /// None once it was closed.
    input: Option<ChildStdin>,
    answers: Receiver<Answer>,
    printed: Arc<Mutex<Printed>>,
    readers: Vec<JoinHandle<()>>,
    /// Whether the test has stopped it.
    pub(super) frozen: bool,
    /// Answers that it owes from when it was frozen.
    owed: usize,
}

/// What a process printed beside what it was asked for.
#[derive(Default)]
struct Printed {
    lines: std::collections::VecDeque<String>,
    /// A line that says nothing.
    nonsense: Option<String>,
}

impl Child {
    /// Starts a process. With `entries` its output is what [`Said`] is, without it is only kept.
    ///
    /// # Panics
    /// When it cannot be started.
    pub(super) fn spawn(name: String, mut command: Command, entries: Option<Entries>) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // In a group of its own, so that what it starts can be stopped and killed with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut process =
            command.spawn().unwrap_or_else(|error| panic!("failed to start {name}: {command:?}: {error}"));
        let killer = Afterwards::kill_group(process.id());
        if let Err(error) = &killer {
            let _ = process.kill();
            panic!("failed to start the shell that ends {name}: {error}");
        }
        let (out, err) = (process.stdout.take(), process.stderr.take());
        let (out, err) = (out.expect("it is piped"), err.expect("it is piped"));
        let (sender, answers) = mpsc::channel();
        let printed = Arc::new(Mutex::new(Printed::default()));
        let (kept, noted) = (Arc::clone(&printed), Arc::clone(&printed));
        let readers = vec![
            std::thread::spawn(move || match entries {
                Some(entries) => listen(out, &entries, &sender, &kept),
                None => keep(out, &kept),
            }),
            std::thread::spawn(move || keep(err, &noted)),
        ];
        let input = process.stdin.take();
        Self { name, process, killer: killer.ok(), input, answers, printed, readers, frozen: false, owed: 0 }
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Says a line to it.
    ///
    /// # Panics
    /// When it does not read any more.
    pub(super) fn tell(&mut self, line: &impl Serialize) {
        let line = serde_json::to_string(line).expect("it is plain data") + "\n";
        let input = self.input.as_mut().expect("it is open until the end");
        if let Err(error) = input.write_all(line.as_bytes()) {
            self.fail(&format!("does not read: {error}"));
        }
    }

    /// The next answer.
    ///
    /// # Panics
    /// When it ends or says nonsense before, and after [`DEADLINE`].
    pub(super) fn answer(&mut self) -> Answer {
        match self.answers.recv_timeout(DEADLINE) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Timeout) => self.fail(&format!("did not answer in {DEADLINE:?}")),
            Err(mpsc::RecvTimeoutError::Disconnected) => self.fail("ended without an answer"),
        }
    }

    /// The answer to what it was told last; those before it are taken, too. None when it is frozen.
    pub(super) fn answer_unless_frozen(&mut self) -> Option<Answer> {
        if self.frozen {
            self.owed += 1;
            return None;
        }
        for _ in 0..std::mem::take(&mut self.owed) {
            self.answer();
        }
        Some(self.answer())
    }

    /// Checks that it runs and has said nothing but what it should.
    ///
    /// # Panics
    /// Otherwise.
    pub(super) fn check(&mut self) {
        if let Some(nonsense) = lock(&self.printed).nonsense.clone() {
            self.fail(&format!("said {nonsense:?}"));
        }
        if let Some(status) = self.process.try_wait().expect("it is our child") {
            self.killer.take();
            self.join();
            self.fail(&format!("has ended by itself: {status}"));
        }
    }

    /// Stops it and what it started from running, and waits until it has stopped.
    ///
    /// # Panics
    /// When it does not.
    pub(super) fn freeze(&mut self) {
        self.signal("STOP", &self.group());
        let stopped = || self.state().is_none_or(|state| state == 'T');
        assert!(holds(stopped), "{} does not stop", self.name);
        self.frozen = true;
    }

    /// Lets it run again.
    pub(super) fn thaw(&mut self) {
        self.signal("CONT", &self.group());
        self.frozen = false;
    }

    /// Asks it to end in its own way.
    pub(super) fn terminate(&self) {
        self.signal("TERM", &self.id().to_string());
    }

    /// Kills it and what it started, and takes all that it has said.
    pub(super) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        self.killer.take();
        let _ = self.process.wait();
        self.join();
    }

    /// Waits for its own end, and takes all that it has said.
    ///
    /// # Panics
    /// After [`DEADLINE`].
    pub(super) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = holds(|| {
            status = self.process.try_wait().expect("it is our child");
            status.is_some()
        });
        if !ended {
            self.fail(&format!("did not end in {DEADLINE:?}"));
        }
        self.killer.take();
        self.join();
        status.expect("it has ended")
    }

    /// Fails the test with what it printed.
    pub(super) fn fail(&self, how: &str) -> ! {
        let lines: Vec<String> = lock(&self.printed).lines.iter().cloned().collect();
        panic!("{} {how}\n--- it printed:\n{}", self.name, lines.join("\n"))
    }

    fn group(&self) -> String {
        format!("-{}", self.id())
    }

    fn join(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    /// Signals the process with this number, or with a minus before it its group.
    fn signal(&self, signal: &str, whom: &str) {
        // Built into every shell; not every system has it as a program.
        let status = Command::new("sh").args(["-c", r#"kill -s "$0" -- "$1""#, signal, whom]).status();
        assert!(status.is_ok_and(|status| status.success()), "failed to signal {}", self.name);
    }

    /// The state of the process as Linux names it; none on other systems.
    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).ok()?;
        // The name of the program is in parentheses and may contain anything.
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines: Vec<String> = lock(&self.printed).lines.iter().cloned().collect();
            eprintln!("--- {} printed:\n{}", self.name, lines.join("\n"));
        }
    }
}

/// Reads what our own program says, until it ends.
fn listen(out: impl Read, entries: &Entries, answers: &Sender<Answer>, printed: &Mutex<Printed>) {
    for line in BufReader::new(out).lines() {
        let Ok(line) = line else { return };
        match serde_json::from_str(&line) {
            Ok(Said::Entry(entry)) => entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry),
            // Nobody waits any more: the test is over.
            Ok(Said::Answer(answer)) => drop(answers.send(answer)),
            // The last line of one that was killed may be cut short; it is looked at only while it runs.
            Err(_) => lock(printed).nonsense = Some(line),
        }
    }
}

fn keep(output: impl Read, printed: &Mutex<Printed>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        let mut printed = lock(printed);
        if printed.lines.len() == PRINTED_LINES {
            printed.lines.pop_front();
        }
        printed.lines.push_back(line);
    }
}

fn lock(printed: &Mutex<Printed>) -> MutexGuard<'_, Printed> {
    printed.lock().unwrap_or_else(PoisonError::into_inner)
}
