//! What has to be done when a test is over, in whatever way: also when its process is killed.

use std::io;
use std::process::{Child, Command, Stdio};

/// Its input ends when whoever started it has dropped it or does not run any more.
const WAIT: &str = "trap '' HUP INT TERM\nread -r _\n";

/// Kills what runs in a process group, frozen or not. Nobody in it any more is no failure.
const KILL: &str = r#"kill -s KILL -- "-$1""#;

/// A shell that waits until it is dropped or its process has ended in whatever way, and runs a script then.
#[derive(Debug)]
pub(crate) struct Afterwards(Child);

impl Afterwards {
    /// Runs `script` then, with these arguments.
    ///
    /// # Errors
    /// When the shell does not start.
    pub(crate) fn run(script: &str, args: &[&str]) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{WAIT}{script}")).arg("sh").args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // In a group of its own: what ends the whole group of a test, as Ctrl-C does, must not end it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map(Self)
    }

    /// Kills the process group `id` then: a program that leads it, and what that program started.
    ///
    /// # Errors
    /// When the shell does not start.
    pub(crate) fn kill_group(id: u32) -> io::Result<Self> {
        Self::run(KILL, &[&id.to_string()])
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        // Closes its input first.
        let _ = self.0.wait();
    }
}
