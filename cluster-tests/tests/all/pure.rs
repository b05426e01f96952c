//! What `src/core` must not name, and where some crates may only be named.

use std::fs;
use std::path::{Path, PathBuf};

/// Clocks, sockets, threads, randomness, the crates that bring them, and the parts that use them.
const FORBIDDEN: &[&str] = &[
    "tokio",
    "actix",
    "quinn",
    "chitchat",
    "rustls",
    "rand::",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "Instant::now",
    "SystemTime",
    "std::thread",
    "std::fs",
    "std::env",
    "thread_local",
    // What stands above it.
    "crate::actors",
    "crate::error",
    "crate::gossip",
    "crate::hub",
    "crate::node",
    "crate::plain",
    "crate::quic",
    "crate::socketioxide",
    "crate::status",
];

#[test]
fn the_core_names_no_clock_no_socket_and_no_randomness() {
    let mut found = mentions("src/core", FORBIDDEN);
    found.extend(mentions("src/ids.rs", FORBIDDEN));
    assert!(found.is_empty(), "src/core is pure: take it in as a value instead:\n{}", found.join("\n"));
}

#[test]
fn crates_that_may_have_to_be_replaced_stay_in_their_place() {
    let outside = |found: Vec<String>, inside: &str| -> Vec<String> {
        found.into_iter().filter(|line| !line.starts_with(inside)).collect()
    };
    let actix = outside(mentions("src", &["actix::", "use actix"]), "src/actors/");
    assert!(actix.is_empty(), "actix stays in src/actors:\n{}", actix.join("\n"));
    let bincode = outside(mentions("src", &["bincode::"]), "src/core/frame");
    assert!(bincode.is_empty(), "bincode stays in src/core/frame.rs:\n{}", bincode.join("\n"));
    let chitchat = outside(mentions("src", &["chitchat::"]), "src/gossip/");
    assert!(chitchat.is_empty(), "chitchat stays in src/gossip:\n{}", chitchat.join("\n"));
}

/// The lines of code of a file or under a folder that contain one of `words`, as `file:line: code`. Comments and tests, which stand
/// at the end of a file or in a `tests.rs`, may name anything.
fn mentions(folder: &str, words: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    sources(&root.join(folder), &mut files);
    assert!(!files.is_empty(), "no sources in {folder}");
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
        for (number, line) in code.enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                found.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    if folder.is_file() {
        return files.push(folder.to_owned());
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
}
