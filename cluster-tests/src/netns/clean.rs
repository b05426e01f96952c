//! What is left of namespaces when they are not wanted any more: programs in them, their files, themselves.
//!
//! A shell does it, because it must be done as well when the process that made them is killed.

use std::collections::BTreeSet;
use std::io;
use std::process::{Command, Stdio};

use super::{FILES, NAMES};
use crate::afterwards::Afterwards;

/// Arguments: the folder of the namespaces, the folder of their files, what their names begin with. That something is gone
/// already is no failure. More than one try, for programs that start others and for those that take a moment to die.
const SCRIPT: &str = r#"
for path in "$1/$3"*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    for try in 1 2 3 4 5 6 7 8 9 10; do
        pids=$(ip netns pids "$name")
        [ -n "$pids" ] || break
        kill -KILL $pids
        [ "$try" = 1 ] || sleep 0.1
    done
    rm -rf "$2/$name"
    ip netns delete "$name"
done
rmdir "$2"
"#;

/// Removes the namespaces whose names begin with `start` when it is dropped, or its process has ended in whatever way.
///
/// # Errors
/// When the shell that does it does not start.
pub(super) fn guard(start: &str) -> io::Result<Afterwards> {
    Afterwards::run(SCRIPT, &[NAMES, FILES, start])
}

/// Removes what processes left that do not run any more, and whose guards did not get to it either.
///
/// # Errors
/// When the namespaces cannot be listed, or the shell does not start.
pub(super) fn sweep(prefix: &str) -> io::Result<()> {
    let names = names()?;
    let left: BTreeSet<String> = names.iter().filter_map(|name| start_of_the_dead(prefix, name)).collect();
    for start in left {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", NAMES, FILES, &start]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    }
    Ok(())
}

/// What the names of a process begin with, if this is one of them and it does not run any more.
fn start_of_the_dead(prefix: &str, name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(prefix)?.strip_prefix('.')?.split('.');
    let (pid, then) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u64>().ok()?);
    (started(pid) != Some(then)).then(|| format!("{prefix}.{pid}.{then}."))
}

/// When a process was started, in ticks since the machine was: with its id it names it for ever. None when there is no
/// such process.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses and may contain anything; field 22 is the 20th after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The names of all namespaces of this machine.
fn names() -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(NAMES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_id_and_start() {
        let (pid, then) = (std::process::id(), started(std::process::id()).unwrap());
        assert_eq!(started(pid), Some(then));
        assert_eq!(started(u32::MAX), None);
        let dead = |name: &str| start_of_the_dead("test", name);
        assert_eq!(dead(&format!("test.{pid}.{then}.0.switch")), None, "it runs");
        assert_eq!(dead(&format!("test.{pid}.7.0.switch")).unwrap(), format!("test.{pid}.7."));
        for other in ["test", "test-2.1.7.0", "test.switch", "test.1", "other.1.7.0"] {
            assert_eq!(dead(other), None, "{other}");
        }
    }
}
