//! What some tests need beyond Rust: Node.js, packages from npm, a browser, network namespaces.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::netns::Net;

/// The folder with the JavaScript of the tests and its packages.
pub const JS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/js");
/// The oldest Node.js on which all the pinned packages run.
const NODE_MAJOR: u32 = 20;

/// Says whether a test can run: `found` is what it needs, `what` names that, `install` says how to get it. Where it is
/// missing, the test is skipped, and a line on standard error says why.
///
/// # Panics
/// Where it is missing and `ROOMCAST_REQUIRE_ALL` is `1`: then nothing may be skipped.
pub fn require<T>(what: &str, install: &str, found: Option<T>) -> Option<T> {
    if found.is_none() {
        let all = std::env::var_os("ROOMCAST_REQUIRE_ALL").is_some_and(|value| value == "1");
        assert!(!all, "{what} is missing and ROOMCAST_REQUIRE_ALL is set: {install}");
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Not `eprintln`: what that prints is shown for tests that fail only.
        let _ = writeln!(std::io::stderr(), "{test}: skipped: needs {what}; {install}");
    }
    found
}

/// Node.js with the packages of [`JS`], as [`require`].
///
/// # Panics
/// As [`require`].
pub fn node() -> Option<PathBuf> {
    let node = in_path(&["node", "nodejs"]).filter(|node| node_major(node) >= Some(NODE_MAJOR));
    let node = require(
        &format!("Node.js {NODE_MAJOR} or newer"),
        "install it as `node`, for example the package nodejs of Debian 13",
        node,
    )?;
    let packages = ["axe-core", "socket.io-client", "socket.io-msgpack-parser", "playwright-core"];
    let modules = Path::new(JS).join("node_modules");
    let all = packages.iter().all(|package| modules.join(package).join("package.json").is_file());
    require("the npm packages of cluster-tests/js", "run `npm ci` in that folder", all.then_some(node))
}

/// Chromium, as [`require`].
///
/// # Panics
/// As [`require`].
pub fn chromium() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    require("chromium", "install it, for example the package chromium of Debian", in_path(&names))
}

/// Root and iproute2, on a machine that lets a process make network namespaces ([`netns`](crate::netns)), as
/// [`require`].
///
/// # Panics
/// As [`require`].
pub fn namespaces() -> Option<()> {
    static WORKS: OnceLock<bool> = OnceLock::new();
    // Tried: a container may have root without the right to this, or a kernel without bridges.
    let works = *WORKS.get_or_init(|| Net::new("try", "10.0.0.0/24").and_then(|net| net.add()).is_ok());
    require(
        "root, iproute2 and the right to make network namespaces",
        "run it as root, with the package iproute2 of Debian",
        works.then_some(()),
    )
}

/// [`namespaces`], and a DNS server for them, as [`require`].
///
/// # Panics
/// As [`require`].
pub fn dns() -> Option<PathBuf> {
    namespaces()?;
    // Where Debian has it is not in the path of everyone.
    let usual = PathBuf::from("/usr/sbin/dnsmasq");
    let found = in_path(&["dnsmasq"]).or_else(|| usual.is_file().then_some(usual));
    require("dnsmasq", "install it, for example the package dnsmasq-base of Debian", found)
}

/// The first program of one of these names in the folders of `PATH`.
pub fn in_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let files = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    files.into_iter().find(|file| file.is_file())
}

/// A DNS server for loopback, as [`require`].
///
/// # Panics
/// As [`require`].
pub fn dnsmasq() -> Option<PathBuf> {
    // Where Debian has it is not in the path of everyone.
    let usual = PathBuf::from("/usr/sbin/dnsmasq");
    let found = in_path(&["dnsmasq"]).or_else(|| usual.is_file().then_some(usual));
    require("dnsmasq", "install it, for example the package dnsmasq-base of Debian", found)
}

fn node_major(node: &Path) -> Option<u32> {
    let output = Command::new(node).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_handed_on() {
        assert_eq!(require("a number", "count", Some(1)), Some(1));
        assert!(in_path(&["sh"]).is_some());
        assert_eq!(in_path(&["no program has this name"]), None);
    }
}
