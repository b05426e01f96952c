//! The fuzz targets on the stable toolchain: each decoder gets its corpus, then mutations of it for a fixed time.
//!
//! `ROOMCAST_FUZZ_SECONDS` sets the time for each target (2 s), `ROOMCAST_FUZZ_SEED` repeats a run.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomcast::fuzz::TARGETS;
use tokio::time::Instant;

/// No input grows beyond this.
const MAX_BYTES: usize = 4096;
/// Inputs that mutations begin from, the corpus among them.
const POOL: usize = 256;
/// What decoders treat in a way of its own: ends of integers, the marks of bincode's longer integers, of text and of HTTP.
const BYTES: &[u8] =
    &[0, 1, 2, 7, 8, 63, 64, 127, 128, 250, 251, 252, 253, 254, 255, b'/', b' ', b'\r', b'\n', b':'];

#[test]
fn frames() {
    fuzz("frame");
}

#[test]
fn hellos() {
    fuzz("hello");
}

#[test]
fn interest() {
    fuzz("interest");
}

#[test]
fn gossip() {
    fuzz("gossip");
}

#[test]
fn requests() {
    fuzz("request");
}

#[test]
fn answers() {
    fuzz("answer");
}

#[test]
fn admin_requests() {
    fuzz("admin");
}

#[test]
fn each_target_has_its_corpus_and_its_binary() {
    let (mut files, folder) = (0, Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz"));
    for (name, _) in TARGETS {
        assert!(folder.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
        let corpus = corpus(name);
        files += corpus.len();
        assert!(corpus.iter().all(|input| input.len() <= 2048), "{name}: inputs are small");
    }
    assert!(files < 100, "{files} files");
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let corpus: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!corpus.is_empty(), "{name} has no corpus");
    corpus
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

fn fuzz(name: &str) {
    let (_, target) = TARGETS.iter().find(|(other, _)| *other == name).unwrap();
    let seed = setting("ROOMCAST_FUZZ_SEED").unwrap_or_else(|| rand::make_rng::<StdRng>().random());
    let time = Duration::from_secs(setting("ROOMCAST_FUZZ_SECONDS").unwrap_or(2));
    println!("fuzz target {name}: ROOMCAST_FUZZ_SEED={seed}");
    let run = |input: &[u8], number: u64| match catch_unwind(AssertUnwindSafe(|| target(input))) {
        Ok(read) => read,
        Err(_) => panic!(
            "target {name}, input {number} of ROOMCAST_FUZZ_SEED={seed}; put it into the corpus: printf '{}'",
            input.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>()
        ),
    };
    let mut pool = corpus(name);
    let of_corpus = pool.len();
    assert!(pool.iter().filter(|input| run(input, 0)).count() > 0, "{name}: nothing in the corpus is good");
    let mut dice = StdRng::seed_from_u64(seed);
    let (end, mut number, mut good) = (Instant::now() + time, 0, 0u64);
    while Instant::now() < end {
        for _ in 0..16 {
            number += 1;
            let mut input = pool[dice.random_range(0..pool.len())].clone();
            for _ in 0..dice.random_range(1..6) {
                mutate(&mut input, &pool, &mut dice);
            }
            input.truncate(MAX_BYTES);
            let read = run(&input, number);
            good += u64::from(read);
            // What could be read leads on to more that can be.
            if read && dice.random_ratio(1, 8) {
                if pool.len() < POOL {
                    pool.push(input);
                } else {
                    let at = dice.random_range(of_corpus..POOL);
                    pool[at] = input;
                }
            }
        }
    }
    println!("fuzz target {name}: {number} inputs, {good} of them readable");
}

/// One change of the kinds that break decoders: of a bit, a byte, an integer, a length, an order.
fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], dice: &mut StdRng) {
    let len = input.len();
    let at = dice.random_range(0..=len);
    let end = dice.random_range(at..=len.min(at + 64));
    match dice.random_range(0..9) {
        0 if at < len => input[at] ^= 1 << dice.random_range(0..8),
        1 if at < len => input[at] = BYTES[dice.random_range(0..BYTES.len())],
        2 if at < len => input[at] = dice.random(),
        3 if at < len => input[at] = input[at].wrapping_add(dice.random_range(0..5)).wrapping_sub(2),
        4 => input.insert(at, BYTES[dice.random_range(0..BYTES.len())]),
        5 => drop(input.drain(at..end)),
        6 => {
            let part = input[at..end].to_vec();
            let times = dice.random_range(1..20);
            input.splice(at..at, part.repeat(times));
        }
        7 => {
            let number: u64 = [u64::MAX, 1 << 62, 1 << 32, 0][dice.random_range(0..4)];
            let bytes = number.to_le_bytes();
            let width = [1, 2, 4, 8][dice.random_range(0..4)];
            let over = at..len.min(at + width);
            input.splice(over, bytes[..width].iter().copied());
        }
        _ => {
            let other = &pool[dice.random_range(0..pool.len())];
            let from = dice.random_range(0..=other.len());
            let to = dice.random_range(from..=other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
    }
}
