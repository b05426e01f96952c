//! Programs in processes of their own: what they print is kept, and they end with the test.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::wait::{eventually, soon};

/// A running program. Dropping it kills it, and shows what it printed when the test has failed.
pub struct Process {
    name: String,
    child: Child,
    /// Nothing once it was closed.
    input: tokio::sync::Mutex<Option<ChildStdin>>,
    printed: Arc<Mutex<Printed>>,
}

/// What a program printed, oldest first.
#[derive(Default)]
struct Printed {
    /// Lines of standard output.
    out: Vec<String>,
    /// Lines of both outputs, as they came.
    all: Vec<String>,
    /// How many of the two outputs have ended.
    ended: u8,
}

impl Process {
    /// Starts a program. `name` stands for it in messages.
    ///
    /// # Panics
    /// When the program cannot be started, or outside of a tokio runtime.
    pub fn spawn(name: impl Into<String>, mut command: Command) -> Self {
        let name = name.into();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("failed to start {name}: {error}"),
        };
        let printed = Arc::new(Mutex::new(Printed::default()));
        let out = child.stdout.take().expect("it is piped");
        let err = child.stderr.take().expect("it is piped");
        tokio::spawn(keep(out, Arc::clone(&printed), true));
        tokio::spawn(keep(err, Arc::clone(&printed), false));
        let input = tokio::sync::Mutex::new(child.stdin.take());
        Self { name, child, input, printed }
    }

    /// The lines of standard output from line `from` on.
    pub fn lines_from(&self, from: usize) -> Vec<String> {
        lock(&self.printed).out.get(from..).unwrap_or_default().to_vec()
    }

    /// The rest of the newest line of standard output that begins with `start`.
    pub fn newest(&self, start: &str) -> Option<String> {
        lock(&self.printed).out.iter().rev().find_map(|line| line.strip_prefix(start).map(str::to_owned))
    }

    /// Waits for a line of standard output that begins with `start`, and returns the rest of it.
    ///
    /// # Panics
    /// After the deadline, and at once when the program has ended without it.
    pub async fn line(&self, start: &str) -> String {
        let mut found = None;
        eventually(format!("{} prints {start:?}", self.name), || {
            // Looked at first: what was printed before the end has come when it is seen.
            let ended = self.has_ended();
            let printed = lock(&self.printed);
            found = printed.out.iter().find_map(|line| line.strip_prefix(start).map(str::to_owned));
            assert!(found.is_some() || !ended, "{} ended without printing {start:?}", self.name);
            found.is_some()
        })
        .await;
        found.expect("the condition holds")
    }

    /// Waits for a line of either output that contains all `parts`.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn says(&self, parts: &[&str]) {
        eventually(format!("{} says {parts:?}", self.name), || {
            lock(&self.printed).all.iter().any(|line| parts.iter().all(|part| line.contains(part)))
        })
        .await;
    }

    /// What it printed so far, both outputs.
    pub fn printed(&self) -> String {
        lock(&self.printed).all.join("\n")
    }

    /// Whether both its outputs have ended: it has too, or is about to.
    pub fn has_ended(&self) -> bool {
        lock(&self.printed).ended == 2
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// When it does not read any more.
    pub async fn write(&self, line: &str) {
        let mut input = self.input.lock().await;
        let input = input.as_mut().expect("it is open until the process ends");
        if let Err(error) = input.write_all(format!("{line}\n").as_bytes()).await {
            panic!("failed to write to {}: {error}", self.name);
        }
    }

    /// Kills it with SIGKILL, and waits for its end.
    ///
    /// # Panics
    /// When the system does not let it go.
    pub async fn kill(&mut self) {
        soon(format!("{} is killed", self.name), self.child.kill()).await.expect("it is ours to kill");
    }

    /// Sends SIGTERM: the program is to end in its own way.
    ///
    /// # Panics
    /// When it has ended already.
    pub async fn terminate(&self) {
        self.signal("TERM").await;
    }

    /// Sends a signal by its name, for example `STOP` to freeze it and `CONT` to let it go on.
    ///
    /// # Panics
    /// When it has ended already.
    pub async fn signal(&self, signal: &str) {
        let id = self.child.id().expect("it runs").to_string();
        // Built into every shell; not every system has it as a program.
        let status = Command::new("sh").args(["-c", "kill -$1 $0", &id, signal]).status().await;
        assert!(status.is_ok_and(|status| status.success()), "failed to signal {}", self.name);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn end(&mut self) -> ExitStatus {
        self.input.lock().await.take();
        let status = soon(format!("{} ends", self.name), self.child.wait()).await.expect("it is our child");
        eventually(format!("the output of {} ends", self.name), || self.has_ended()).await;
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}", self.name, self.printed());
        }
    }
}

async fn keep(output: impl AsyncRead + Unpin, printed: Arc<Mutex<Printed>>, is_out: bool) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut printed = lock(&printed);
        printed.all.push(line.clone());
        if is_out {
            printed.out.push(line);
        }
    }
    lock(&printed).ended += 1;
}

fn lock(printed: &Mutex<Printed>) -> MutexGuard<'_, Printed> {
    printed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many processes of this machine have this variable in their environment: how many a test has, when it marks itself
/// before it starts any. Zero where the system does not show environments as Linux does.
pub fn with_variable(name: &str, value: &str) -> usize {
    let line = format!("{name}={value}");
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let environments =
        processes.flatten().filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    environments.filter(|bytes| bytes.split(|byte| *byte == 0).any(|one| one == line.as_bytes())).count()
}

/// The program of the example `chat`, built with the same profile and into the same folder as the running test, once
/// per process. Blocks while cargo runs.
///
/// # Panics
/// When cargo fails; what it says is in the message.
pub fn chat_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| example_program("chat"))
}

/// The program of an example, as [`chat_program`]; cargo looks each time whether it is built.
///
/// # Panics
/// When cargo fails; what it says is in the message.
pub fn example_program(example: &str) -> PathBuf {
    build("example", example, &[])
}
/// The `roomcast` command line, built as [`chat_program`].
///
/// # Panics
/// When cargo fails; what it says is in the message.
pub fn command_line() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("bin", "roomcast", &["--features", "roomcast/cli"]))
}

fn build(kind: &str, name: &str, more: &[&str]) -> PathBuf {
    // <target>/<profile>/deps/<test>
    let test = env::current_exe().expect("a test knows its program");
    let profile = test.parent().and_then(Path::parent).expect("cargo puts tests into folders");
    let target = profile.parent().expect("cargo puts tests into folders");
    let profile = match profile.file_name().and_then(OsStr::to_str) {
        None | Some("debug") => "dev",
        Some(name) => name,
    };
    // The whole workspace, because `cargo test --workspace` builds it with the same features: nothing is left to do.
    let built = build_to(target, kind, name, &[&["--workspace", "--profile", profile], more].concat());
    built.unwrap_or_else(|error| panic!("{error}"))
}

/// Builds a program of the kind `bin` or `example` of this workspace into a target folder, with these arguments to
/// `cargo build`. Blocks while cargo runs.
///
/// # Errors
/// When cargo fails; what it says is in the error.
pub fn build_to(target: &Path, kind: &str, name: &str, more: &[&str]) -> Result<PathBuf, String> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["build", &format!("--{kind}"), name, "--message-format=json"])
        .args(more)
        .arg("--target-dir")
        .arg(target);
    // Cargo tells a test which package it is of; ring would be built anew for each answer, and all that needs it.
    for (variable, _) in env::vars_os() {
        let text = variable.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|start| text.starts_with(start)) {
            cargo.env_remove(variable);
        }
    }
    let output = cargo.output().map_err(|error| format!("failed to start cargo: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("failed to build the {kind} {name}: {said}"));
    }
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let executable = messages.filter_map(|line| serde_json::from_slice(line).ok()).find_map(|line: Value| {
        let is_ours = line["target"]["name"] == name && line["target"]["kind"][0] == kind;
        line["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
    });
    executable.ok_or_else(|| format!("cargo names no program of the {kind} {name}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("sh", command)
    }

    #[tokio::test]
    async fn output_is_kept_and_input_is_read() {
        let mut process = shell("echo ready 1; echo no >&2; read word; echo got $word; exit 3");
        assert_eq!(process.line("ready ").await, "1");
        process.says(&["n", "o"]).await;
        process.write("this").await;
        assert_eq!(process.end().await.code(), Some(3));
        assert_eq!(process.lines_from(1), ["got this"]);
    }

    #[tokio::test]
    async fn a_process_ends_by_either_signal() {
        let mut process = shell("trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done");
        process.line("ready").await;
        process.terminate().await;
        assert_eq!(process.end().await.code(), Some(4));
        // Not a child of the shell, which would keep its output open.
        let mut process = shell("exec sleep 60");
        process.kill().await;
        assert_eq!(process.end().await.code(), None);
    }
}
