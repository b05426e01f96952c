//! What must hold of a history, whatever was done to the cluster, and of the status of its nodes when all is well again.
//! Pure.
//!
//! Of the history ([`history`]):
//!
//! 1. **No duplicate, nothing invented.** A run gets each message of a run at most once, and only what was emitted, to a
//!    room that it joined.
//! 2. **Order.** Messages of one run come to each other run in the order in which they were emitted.
//! 3. **No miss outside counted gaps.** A message that was emitted to a room when the receiver had the room settled and
//!    the emitter had a queue for the receiver is delivered; or it was dropped with a reason in its receipt; or a gap
//!    between the two was reported, of at least so many frames. Where the receiver or the emitter ended, or the receiver left
//!    the room, the last messages may be missing, none before one that came, and none that was emitted before the emitter was
//!    told to leave. The member of the emitting run itself gets all.
//! 6. **Both sides know of a gap.** Who received knows of no more lost frames than who sent, unless a run of that one ended.
//!    Nor of fewer, where both ran all the time and neither found the other dead: else it may have forgotten what it was owed.
//!
//! Where nothing may be lost at all, [`losses`] says what was.
//!
//! Of the status ([`convergence`]):
//!
//! 4. **No ghosts.** Each node lists exactly the running nodes with their newest runs, all live and linked, and has links
//!    to no other run. Who does not run may still be listed as dead.
//! 5. **Interest is equal.** Of each peer a node holds the newest version of its interest, knows that the peer holds its own,
//!    and holds as many rooms of it as everyone else does; where nodes tell the digest of their interest, with the same digest.

mod runs;
mod tally;

use std::collections::{BTreeMap, BTreeSet};

use roomcast::status::Report;
use serde_json::{Value, json};

use super::history::{History, What};
use runs::{Emit, RunKey, Runs, Window};

pub use tally::{Tally, forget, tally};

/// At most so many numbers are named in one complaint.
const NAMED: usize = 10;

/// What is wrong with a history, in words; empty when all holds. `ids` are the ids of the nodes by their index.
pub fn history(history: &History, ids: &[String]) -> Vec<String> {
    let runs = Runs::read(history, ids);
    let mut wrong = Vec::new();
    wrong.extend(runs.strange.iter().cloned());
    for (receiver, run) in &runs.runs {
        for (sender, numbers) in &run.delivered {
            wrong.extend(once_in_order_and_emitted(&runs, *receiver, *sender, numbers));
        }
        wrong.extend(own_member_gets_all(&runs, *receiver));
        for sender in runs.runs.keys().filter(|sender| *sender != receiver) {
            wrong.extend(no_miss(&runs, *sender, *receiver));
            wrong.extend(gaps_agree(&runs, *sender, *receiver));
        }
    }
    wrong
}

/// What was lost although it was said, in words; for what must be survived without a loss.
pub fn losses(history: &History, ids: &[String]) -> Vec<String> {
    let name = |node: usize| ids.get(node).map_or("?", String::as_str);
    let lost = history.entries.iter().filter_map(|entry| match &entry.what {
        What::Gap { peer, frames, outgoing } => {
            let way = if *outgoing { "to" } else { "from" };
            Some(format!("loss: {} counted {frames} frames {way} {peer} as lost", name(entry.node)))
        }
        What::Emitted { number, dropped, .. } if !dropped.is_empty() => {
            Some(format!("loss: message {number} of {} was dropped: {dropped:?}", name(entry.node)))
        }
        _ => None,
    });
    lost.take(NAMED).collect()
}

/// Rule 6.
fn gaps_agree(runs: &Runs, sender: RunKey, receiver: RunKey) -> Option<String> {
    let stayed = |key| runs.runs[&key].end.is_none() && runs.is_only(key);
    if !stayed(sender) {
        return None;
    }
    let (said, heard) = runs.gaps(sender, receiver);
    let knew = stayed(receiver) && !runs.was_dead_to(sender, receiver) && !runs.was_dead_to(receiver, sender);
    (heard > said || (knew && heard < said)).then(|| {
        let (to, from) = (runs.name(receiver), runs.name(sender));
        format!("gap: {to} counted {heard} frames of {from} as lost, which knows of {said}")
    })
}

/// Rules 1 and 2.
fn once_in_order_and_emitted(runs: &Runs, receiver: RunKey, sender: RunKey, numbers: &[u64]) -> Vec<String> {
    let mut wrong = Vec::new();
    let (to, from) = (runs.name(receiver), runs.name(sender));
    let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
    if distinct.len() < numbers.len() {
        let twice: Vec<u64> =
            distinct.iter().copied().filter(|number| times(numbers, *number) > 1).take(NAMED).collect();
        wrong.push(format!("duplicate: {to} got messages of {from} more than once: {twice:?}"));
    }
    if let Some(pair) = numbers.windows(2).find(|pair| pair[1] < pair[0]) {
        wrong.push(format!("order: {to} got message {} of {from} after message {}", pair[1], pair[0]));
    }
    let Some(source) = runs.runs.get(&sender) else {
        return vec![format!("invented: {to} got messages of a run that never was: {sender:?}")];
    };
    let joined = &runs.runs[&receiver].windows;
    for number in distinct {
        match source.emits.get(&number) {
            Some(emit) if joined.contains_key(&emit.room) => {}
            Some(emit) => {
                wrong.push(format!(
                    "invented: {to} got message {number} of {from}, and never joined {}",
                    emit.room
                ));
            }
            // It may have been emitted a moment before the end, and its record be lost with the process.
            None if source.end.is_some() && number > source.last_emitted() => {}
            None => {
                wrong.push(format!("invented: {to} got message {number} of {from}, which was never emitted"))
            }
        }
    }
    wrong
}

fn times(numbers: &[u64], wanted: u64) -> usize {
    numbers.iter().filter(|number| **number == wanted).count()
}

/// Rule 3, of the member on the emitting node.
fn own_member_gets_all(runs: &Runs, key: RunKey) -> Option<String> {
    let run = &runs.runs[&key];
    let got: BTreeSet<u64> = run.delivered.get(&key).into_iter().flatten().copied().collect();
    let in_room = |emit: &&Emit| {
        let windows = run.windows.get(&emit.room).map_or(&[][..], Vec::as_slice);
        windows.iter().any(|window| {
            window.joined < emit.place
                && window.joined_at <= emit.began
                && window.quit.is_none_or(|quit| emit.place < quit.place)
        })
    };
    let missing: Vec<u64> = run
        .emits
        .values()
        .filter(in_room)
        .map(|emit| emit.number)
        .filter(|number| !got.contains(number))
        .collect();
    let named = &missing[..missing.len().min(NAMED)];
    (!missing.is_empty()).then(|| format!("miss: the member of {} itself missed {named:?}", runs.name(key)))
}

/// Rule 3, of one run that emitted and one that should have got it.
fn no_miss(runs: &Runs, sender: RunKey, receiver: RunKey) -> Option<String> {
    let mut missing = missing(runs, sender, receiver);
    let counted = runs.counted(sender, receiver);
    if missing.len() as u64 <= counted {
        return None;
    }
    missing.sort_unstable();
    Some(format!(
        "miss: {} missed {} messages of {}, {} were counted as lost; the first are {:?}",
        runs.name(receiver),
        missing.len(),
        runs.name(sender),
        counted,
        &missing[..missing.len().min(NAMED)]
    ))
}

/// The messages of one run that another one should have got and did not, whether they were counted or not.
fn missing(runs: &Runs, sender: RunKey, receiver: RunKey) -> Vec<u64> {
    let (source, target) = (&runs.runs[&sender], &runs.runs[&receiver]);
    let got: BTreeSet<u64> = target.delivered.get(&sender).into_iter().flatten().copied().collect();
    let may_end = source.end.is_some() || target.end.is_some();
    let peer = (runs.id(receiver).to_owned(), receiver.1);
    let mut missing = Vec::new();
    for (room, windows) in &target.windows {
        for window in windows {
            let meant: Vec<&Emit> = source
                .emits
                .values()
                .filter(|emit| emit.room == *room && emit.peers.contains(&peer) && is_meant(window, emit))
                .collect();
            let last = meant.iter().map(|emit| emit.number).filter(|number| got.contains(number)).max();
            let ends = may_end || window.quit.is_some();
            // Who leaves in order waits until those who stay have what it emitted before.
            let left = !source.killed && target.end.is_none() && window.quit.is_none();
            let owed = |emit: &Emit| left && source.told.is_some_and(|told| emit.at < told);
            missing.extend(
                meant
                    .iter()
                    .filter(|emit| !got.contains(&emit.number) && !emit.dropped.contains(&peer.0))
                    .filter(|emit| !ends || owed(emit) || last.is_some_and(|last| emit.number < last))
                    .map(|emit| emit.number),
            );
        }
    }
    missing
}

/// Whether the room was settled when the message was emitted.
fn is_meant(window: &Window, emit: &Emit) -> bool {
    window.settled.is_some_and(|settled| settled < emit.began)
        && window.quit.is_none_or(|quit| emit.at < quit.at)
}

/// What keeps the nodes from listing each other, in words; empty when they do. Rule 4 without what is kept for runs that are over.
pub fn membership(reports: &BTreeMap<String, Report>) -> Vec<String> {
    reports.iter().flat_map(|(id, report)| listed(reports, id, report)).collect()
}

/// What keeps the nodes from being one cluster, in words; empty when they are. `reports` are those of the nodes that run,
/// by their ids. Rules 4 and 5.
pub fn convergence(reports: &BTreeMap<String, Report>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, report) in reports {
        wrong.extend(listed(reports, id, report));
        wrong.extend(ghosts(reports, id, report));
        for link in &report.links {
            let Some(peer) = reports.get(&link.peer) else { continue };
            let (held, own) = (link.interest_version_held, peer.interest.version);
            if held != own {
                wrong.push(format!(
                    "{id} holds version {held} of the interest of {}, which is at {own}",
                    link.peer
                ));
            }
            let (acknowledged, own) = (link.interest_version_acknowledged, report.interest.version);
            if acknowledged != own {
                wrong.push(format!(
                    "{} acknowledged version {acknowledged} of {id}, which is at {own}",
                    link.peer
                ));
            }
        }
    }
    wrong.extend(unequal_rooms(reports));
    if wrong.is_empty() {
        wrong.extend(unequal_digests(reports));
    }
    wrong
}

/// Rule 4, of the members.
fn listed(reports: &BTreeMap<String, Report>, id: &str, report: &Report) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(conflict) = &report.conflict {
        wrong.push(format!("{id} is refused: {conflict}"));
    }
    if !report.live {
        wrong.push(format!("{id} says that it is not live"));
    }
    let listed: BTreeMap<&str, _> = report.members.iter().map(|member| (&*member.id, member)).collect();
    for (peer, running) in reports {
        match listed.get(&**peer) {
            None => wrong.push(format!("{id} does not list {peer}")),
            Some(member) if member.incarnation != running.node.incarnation => {
                wrong.push(format!("{id} lists an old run of {peer}"));
            }
            Some(member) if member.state != "live" || !member.linked => {
                let linked = if member.linked { "linked" } else { "not linked" };
                wrong.push(format!("{id} lists {peer} as {} and {linked}", member.state));
            }
            Some(_) => {}
        }
    }
    for member in report.members.iter().filter(|member| !reports.contains_key(&member.id)) {
        if member.state != "dead" {
            wrong.push(format!("{id} lists {} as {}, and it does not run", member.id, member.state));
        }
    }
    wrong
}

/// Rule 4, of the links.
fn ghosts(reports: &BTreeMap<String, Report>, id: &str, report: &Report) -> Vec<String> {
    let mut wrong = Vec::new();
    for peer in reports.keys().filter(|peer| *peer != id) {
        if !report.links.iter().any(|link| link.peer == *peer && link.state == "up") {
            wrong.push(format!("{id} has no link to {peer} that is up"));
        }
    }
    for link in &report.links {
        if reports.get(&link.peer).is_none_or(|peer| peer.node.incarnation != link.incarnation) {
            wrong.push(format!("{id} keeps something for a run of {} that is over", link.peer));
        }
    }
    wrong
}

/// Rule 5: everyone holds as many rooms of a node as the others do.
fn unequal_rooms(reports: &BTreeMap<String, Report>) -> Vec<String> {
    let mut held: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for link in reports.values().flat_map(|report| &report.links) {
        held.entry(&link.peer).or_default().insert(link.rooms);
    }
    let unequal = held.into_iter().filter(|(_, counts)| counts.len() > 1);
    unequal.map(|(id, counts)| format!("of {id} different numbers of rooms are held: {counts:?}")).collect()
}

/// Rule 5: what is held of a node has the digest that the node itself has. Read from the status as it is sent, because a
/// node may be too old to say it.
fn unequal_digests(reports: &BTreeMap<String, Report>) -> Vec<String> {
    let status: BTreeMap<&str, Value> = reports.iter().map(|(id, report)| (&**id, json!(report))).collect();
    let mut wrong = Vec::new();
    for (id, report) in &status {
        for link in report["links"].as_array().into_iter().flatten() {
            let (peer, held) = (link["peer"].as_str().unwrap_or_default(), &link["interest_digest"]);
            let own = status.get(peer).map_or(&Value::Null, |peer| &peer["interest"]["digest"]);
            if own.is_string() && held.is_string() && own != held {
                wrong.push(format!("{id} holds interest of {peer} with the digest {held}, its own is {own}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests;
