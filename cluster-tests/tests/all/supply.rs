//! What `cargo deny check bans licenses sources` says of the dependency tree, in short and without that tool: the rules are
//! those of `deny.toml`. It looks at what this platform builds; the tool looks at all platforms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The packages of the whole tree, with all features. Cargo uses the network only for one that was never downloaded.
fn packages() -> Vec<Value> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "metadata",
        "--format-version=1",
        "--all-features",
        "--locked",
        "--filter-platform",
        &host(),
    ]);
    let output = cargo.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Value::Array(packages) = metadata["packages"].take() else { panic!("no packages") };
    packages
}

/// The platform, as Cargo names it.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

/// The strings of the list `name = [...]` in `deny.toml`.
fn allowed(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let list = text.split_once(&format!("\n{name} = [")).unwrap().1.split_once("\n]").unwrap().0.to_owned();
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Whether a licence expression (SPDX) can be met with these licences.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (met, rest) = any(&words, allowed);
    assert!(rest.is_empty(), "{expression:?} is not understood");
    met
}

fn any<'w>(words: &'w [&'w str], allowed: &[String]) -> (bool, &'w [&'w str]) {
    let (mut met, mut rest) = all(words, allowed);
    while let Some((&"OR", next)) = rest.split_first() {
        let (this, after) = all(next, allowed);
        (met, rest) = (met | this, after);
    }
    (met, rest)
}

fn all<'w>(words: &'w [&'w str], allowed: &[String]) -> (bool, &'w [&'w str]) {
    let (mut met, mut rest) = one(words, allowed);
    while let Some((&"AND", next)) = rest.split_first() {
        let (this, after) = one(next, allowed);
        (met, rest) = (met & this, after);
    }
    (met, rest)
}

fn one<'w>(words: &'w [&'w str], allowed: &[String]) -> (bool, &'w [&'w str]) {
    match words.split_first() {
        Some((&"(", inner)) => {
            let (met, rest) = any(inner, allowed);
            (met, rest.split_first().filter(|(end, _)| **end == ")").map_or(rest, |(_, rest)| rest))
        }
        // An exception allows more, not less, but it has to be looked at: then it is written in `deny.toml`.
        Some((name, [with, exception, rest @ ..])) if *with == "WITH" => {
            (allowed.contains(&format!("{name} WITH {exception}")), rest)
        }
        Some((name, rest)) => (allowed.iter().any(|one| one == name), rest),
        None => (false, words),
    }
}

#[test]
fn every_dependency_has_an_allowed_licence_and_comes_from_the_registry() {
    let (allowed, mut wrong) = (allowed("allow"), Vec::new());
    assert!(allowed.iter().any(|licence| licence == "MIT"), "{allowed:?}");
    for package in packages() {
        let name = format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        let source = package["source"].as_str();
        if source.is_some_and(|source| source != REGISTRY) {
            wrong.push(format!("{name} comes from {source:?}"));
        }
        match package["license"].as_str() {
            Some(licence) if is_met(licence, &allowed) => {}
            licence => wrong.push(format!("{name} has the licence {licence:?}")),
        }
        if source.is_none() {
            // A crate of this workspace. No version is "*": that takes whatever comes.
            let dependencies = package["dependencies"].as_array().unwrap();
            let wild = dependencies.iter().filter(|d| d["req"] == "*" && d["path"].is_null());
            wrong.extend(wild.map(|d| format!("{name} takes any version of {}", d["name"])));
        }
    }
    assert!(wrong.is_empty(), "see deny.toml:\n{}", wrong.join("\n"));
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("GPL-3.0 OR (MIT AND Zlib)", false),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("Apache-2.0 WITH Other AND MIT", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}
