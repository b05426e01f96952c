//! `cargo bench -p cluster-tests --bench instructions`: how many instructions a message takes on the hot path, counted by
//! callgrind, beside those of the stored baseline (`instructions.txt`). Times cannot be compared on a busy machine, counts can:
//! they differ by parts of a percent from run to run.
//!
//! Each step runs three times (`ROOMCAST_BENCH_ROUNDS`), the median counts. Ends with 1 when a step takes more than [`TOLERANCE`] above its baseline. `-- --update` writes a new baseline: with a
//! reason, in a commit of its own. The counts belong to the release profile and to the compiler, C library and processor that
//! the baseline names; elsewhere they are printed and not judged. Needs valgrind and a C library of GNU.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use common::{Filter, Outcome, knows, median, rounds, save, start, until};
use roomcast::core::frame::{
    BroadcastHead, FrameLimits, LENGTH_BYTES, LastHead, PayloadKind, encode_broadcast, frame_len,
};
use roomcast::core::inbox::{Inbox, Verdict};
use roomcast::core::interest::{InterestChange, RoomMode};
use roomcast::core::outbox::Outbox;
use roomcast::core::routes::{PeerMask, Routes, RoutesConfig};
use roomcast::ids::{PeerSlot, RoomKey, Seq};
use roomcast::{ClusterSecret, Config, Namespace};
use smallvec::smallvec;

/// What a step may take above its baseline: 3 %. Counts of one build vary by less than 1 %.
const TOLERANCE: f64 = 0.03;
/// Messages (lookups, frames) of one step.
const CALLS: u64 = 2_000;
/// The size of a message, in bytes.
const MESSAGE: usize = 128;
const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 1 << 20, max_room_bytes: 512 };

/// A step: its name, the function that callgrind counts (with what it calls), what it is.
type Step = (&'static str, &'static str, &'static str);

const STEPS: &[Step] = &[
    ("route", "measured_route", "one lookup of three rooms among 100,000 of ten peers"),
    ("queue", "measured_queue", "one head encoded, the frame pushed, taken and acknowledged"),
    ("read", "measured_read", "one frame cut from a block, decoded and told new"),
    ("emit", "measured_emit", "one emit of the plain API to the same room, into the queue of a linked peer"),
    ("emit-rooms", "measured_rooms", "the same, each to another of 64 rooms"),
    (
        "deliver",
        "Hub::deliver_recent",
        "one message handed from the reader of a link to the member it is for",
    ),
];

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--step", step] => step_alone(step),
        ["--update"] => compare(true),
        ref words if words.iter().all(|word| STEPS.iter().any(|(step, ..)| step.contains(word))) => {
            compare(false)
        }
        _ => Err("usage: [-- --update], or [-- STEP...] for some of them".into()),
    }
}

/// What the child process does, under callgrind.
fn step_alone(step: &str) -> Outcome<()> {
    match step {
        "route" => route(),
        "queue" => {
            let mut out = Vec::new();
            measured_queue(&mut Outbox::new(1, 1 << 30), &mut out);
        }
        "read" => read()?,
        "emit" | "emit-rooms" | "deliver" => {
            let step = step.to_owned();
            common::run(async move { linked(&step).await })?;
        }
        _ => return Err(format!("there is no step {step}").into()),
    }
    Ok(())
}

fn route() {
    let ns = roomcast::ids::Namespace::new("/bench").expect("a namespace");
    let room = |number: u64| ns.room(&format!("room-{number}"));
    let routes = Routes::new(RoutesConfig::default());
    for peer in 0..10 {
        let slot = PeerSlot(peer);
        let added = (0..10_000).map(|number| room(u64::from(peer) * 10_000 + number)).collect();
        let change =
            InterestChange { ns: ns.clone(), mode: Some(RoomMode::Exact), added, removed: Vec::new() };
        routes.add_peer(slot);
        routes.snapshot_begin(slot, 1).expect("the peer is there");
        routes.snapshot_chunk(slot, vec![change]).expect("a snapshot is begun");
        routes.snapshot_end(slot).expect("a snapshot is begun");
    }
    let asked: Vec<[RoomKey; 3]> =
        (0..CALLS).map(|call| [call * 7, call * 31 + 5, 200_000 + call].map(room)).collect();
    assert!(measured_route(&routes, &ns, &asked) >= CALLS);
}

#[inline(never)]
fn measured_route(routes: &Routes, ns: &roomcast::ids::Namespace, asked: &[[RoomKey; 3]]) -> u64 {
    let mut mask = PeerMask::new();
    let mut found = 0;
    for rooms in asked {
        routes.lookup(ns, rooms, &mut mask);
        found += (0..10).filter(|&slot| mask.contains(PeerSlot(slot))).count() as u64;
    }
    found
}

fn head(room: &str) -> BroadcastHead<'_> {
    BroadcastHead {
        ns: "/bench",
        kind: PayloadKind::Plain,
        flags: 0,
        rooms: smallvec![room],
        except: smallvec![],
        server: None,
        socket: None,
        attachments: smallvec![],
    }
}

/// Two rooms in turns, so that half of the heads are written and half are those of the frame before.
#[inline(never)]
fn measured_queue(outbox: &mut Outbox, out: &mut Vec<Bytes>) {
    let payload = Bytes::from(vec![7; MESSAGE]);
    let mut encoded = BytesMut::new();
    for call in 0..CALLS {
        encoded.clear();
        let head = head(if call % 4 < 2 { "lobby" } else { "garden" });
        encode_broadcast(black_box(&head), payload.len(), &mut encoded).expect("a small head");
        outbox.push(&encoded, &payload, call).expect("the outbox is large");
        if call % 50 == 49 {
            outbox.take(usize::MAX, out);
            outbox.ack(Seq(call + 1));
        }
    }
    assert_eq!(outbox.acked(), Seq(CALLS));
}

fn read() -> Outcome<()> {
    let mut out = Vec::new();
    measured_queue(&mut Outbox::new(1, 1 << 30), &mut out);
    let block: Vec<u8> = out.concat();
    let mut inbox = Inbox::new();
    inbox.start(1, Seq(1));
    let delivered = measured_read(&block, &mut inbox)?;
    if delivered != CALLS {
        return Err(format!("{delivered} of {CALLS} frames were read").into());
    }
    Ok(())
}

#[inline(never)]
fn measured_read(block: &[u8], inbox: &mut Inbox) -> Outcome<u64> {
    let mut last = LastHead::new(&[]);
    let (mut at, mut delivered) = (0, 0);
    while let Some(length) = frame_len(&block[at..], &LIMITS)? {
        let frame = at + LENGTH_BYTES..at + LENGTH_BYTES + length;
        at = frame.end;
        if let Some(message) = last.read(block, frame, &LIMITS)? {
            black_box(message.head);
            delivered += u64::from(inbox.accept() == Verdict::Deliver);
        }
    }
    Ok(delivered)
}

/// Two nodes with a link: what is counted runs on one of them, in this process.
async fn linked(step: &str) -> Outcome<()> {
    let secret = ClusterSecret::generate()?;
    let a = start("a", &secret, &[], Config::default()).await?;
    let b = start("b", &secret, &[&a], Config::default()).await?;
    let (from, to) = (a.namespace("/bench")?, b.namespace("/bench")?);
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    let member = to.connect(move |_: Bytes| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let rooms: Vec<String> = (0..64).map(|number| format!("room-{number}")).collect();
    for room in &rooms {
        member.join(room)?;
    }
    knows(&a, 65).await?;
    let payload = Bytes::from(vec![7; MESSAGE]);
    let sent = match step {
        "emit-rooms" => measured_rooms(&from, &rooms, &payload)?,
        _ => measured_emit(&from, &rooms[0], &payload)?,
    };
    until("the messages have arrived", || arrived.load(Ordering::Relaxed) == sent).await
}

#[inline(never)]
fn measured_emit(from: &Namespace, room: &str, payload: &Bytes) -> Outcome<u64> {
    let mut queued = 0;
    for _ in 0..CALLS {
        queued += from.to(room).emit(payload.clone())?.queued as u64;
    }
    Ok(queued)
}

#[inline(never)]
fn measured_rooms(from: &Namespace, rooms: &[String], payload: &Bytes) -> Outcome<u64> {
    let mut queued = 0;
    for room in rooms.iter().cycle().take(CALLS as usize) {
        queued += from.to(room).emit(payload.clone())?.queued as u64;
    }
    Ok(queued)
}

/// Counts every step and holds it against the baseline.
fn compare(update: bool) -> Outcome<()> {
    let toolchain = toolchain()?;
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt"));
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let (made_with, baseline) = parse(&stored)?;
    println!("| step | instructions | baseline | change | |\n|---|---:|---:|---:|---|");
    let mut counted = BTreeMap::new();
    let mut worse = Vec::new();
    let (filter, rounds) = (Filter::from_args(), rounds(3));
    for &(step, function, what) in STEPS.iter().filter(|(step, ..)| filter.wants(step)) {
        let counts = (0..rounds).map(|_| Ok(count(step, function)? as f64 / CALLS as f64));
        let each = median(&counts.collect::<Outcome<Vec<f64>>>()?);
        counted.insert(step, each);
        match baseline.get(step) {
            Some(before) => {
                let change = each / before - 1.0;
                println!("| {step} | {each:.1} | {before:.1} | {:+.1} % | {what} |", 100.0 * change);
                if change > TOLERANCE {
                    worse.push(format!("{step} {:+.1} %", 100.0 * change));
                }
            }
            None => println!("| {step} | {each:.1} | none | | {what} |"),
        }
    }
    save("instructions", &serde_json::json!({ "made_with": toolchain, "instructions_per_call": counted }))?;
    if update {
        let mut text = format!(
            "# Instructions a call, by `cargo bench -p cluster-tests --bench instructions -- --update`.\n# {toolchain}\n"
        );
        counted.iter().try_for_each(|(step, each)| writeln!(text, "{step} {each:.1}"))?;
        std::fs::write(&path, text)?;
        println!("\nwritten to {}", path.display());
        return Ok(());
    }
    if made_with.as_deref() != Some(&toolchain) {
        println!(
            "\nnot judged: this is {toolchain}, the baseline {}",
            made_with.as_deref().unwrap_or("none")
        );
        return Ok(());
    }
    match counted.keys().find(|step| !baseline.contains_key(**step)) {
        Some(step) => Err(format!("{step} has no baseline: run with `-- --update`").into()),
        None if worse.is_empty() => Ok(()),
        None => Err(format!(
            "more instructions than {:.0} % above the baseline: {}; where that is meant, run with `-- --update` and \
             commit the new baseline with the reason",
            100.0 * TOLERANCE,
            worse.join(", ")
        )
        .into()),
    }
}

/// What counts belong to beside the code: the compiler, and what is copied and allocated with.
fn toolchain() -> Outcome<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let (rustc, libc) =
        (said(Command::new(rustc).arg("--version"))?, said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let vectors = if cpuinfo.split_whitespace().any(|flag| flag == "avx2") { "avx2" } else { "no avx2" };
    Ok(format!("{rustc}, {libc}, {} {vectors}", std::env::consts::ARCH))
}

fn said(command: &mut Command) -> Outcome<String> {
    let output = command.output().map_err(|error| format!("failed to run {command:?}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The toolchain and the counts of a baseline.
fn parse(text: &str) -> Outcome<(Option<String>, BTreeMap<&str, f64>)> {
    let made_with =
        text.lines().filter_map(|line| line.strip_prefix("# ")).find(|line| line.starts_with("rustc"));
    let steps = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
        let (step, each) = line.split_once(' ').ok_or_else(|| format!("not a baseline: {line}"))?;
        Ok((step, each.parse()?))
    });
    Ok((made_with.map(str::to_owned), steps.collect::<Outcome<_>>()?))
}

/// Runs one step in a child process under callgrind: the instructions of that function and all that it calls.
fn count(step: &str, function: &str) -> Outcome<u64> {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg(format!("--toggle-collect=*{function}*"))
        .arg(std::env::current_exe()?)
        .args(["--step", step])
        .output()
        .map_err(|error| format!("failed to run valgrind (a package of that name in Debian): {error}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if !ran.status.success() {
        return Err(format!("{step} under valgrind: {}\n{said}", ran.status).into());
    }
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    match collected.and_then(|(_, number)| number.trim().parse().ok()) {
        Some(0) | None => Err(format!("{step}: callgrind counted nothing in {function}:\n{said}").into()),
        Some(collected) => Ok(collected),
    }
}
