//! A history as lines to read.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use super::history::{Entry, History, What};

/// What was done to the cluster and what its nodes said, in the order of time; messages as counts at the end.
pub fn story(history: &History, ids: &[String]) -> String {
    let mut entries: Vec<&Entry> = history.entries.iter().collect();
    entries.sort_by_key(|entry| entry.at);
    let mut ordinals: HashMap<(usize, u64), usize> = HashMap::new();
    let mut runs: BTreeMap<usize, usize> = BTreeMap::new();
    let mut counts: BTreeMap<(usize, usize), (u64, u64)> = BTreeMap::new();
    let mut text = String::new();
    for entry in entries {
        if entry.what == What::Started {
            let ordinal = runs.entry(entry.node).or_default();
            *ordinal += 1;
            ordinals.insert((entry.node, entry.run), *ordinal);
        }
        let ordinal = ordinals.get(&(entry.node, entry.run)).copied().unwrap_or(0);
        let count = counts.entry((entry.node, ordinal)).or_default();
        match &entry.what {
            What::Emitted { .. } => count.0 += 1,
            What::Delivered { .. } => count.1 += 1,
            what => line(&mut text, entry, ids, ordinal, what),
        }
    }
    for ((node, ordinal), (emitted, got)) in counts.into_iter().filter(|(_, count)| *count != (0, 0)) {
        let id = ids.get(node).map_or("?", String::as_str);
        let _ = writeln!(text, "{id} (run {ordinal}) emitted {emitted} messages and got {got}");
    }
    text
}

fn line(text: &mut String, entry: &Entry, ids: &[String], ordinal: usize, what: &What) {
    let id = ids.get(entry.node).map_or("?", String::as_str);
    let words = match what {
        What::Fault(words) => {
            let _ = writeln!(text, "{:>9.3}  * {words}", entry.at.as_secs_f64());
            return;
        }
        What::Started => "starts".to_owned(),
        What::Killed => "* is killed".to_owned(),
        What::Leaving => "* is told to leave".to_owned(),
        What::Left => "* has left".to_owned(),
        What::Frozen => "* is frozen".to_owned(),
        What::Thawed => "* runs again".to_owned(),
        What::Joined(room) => format!("joins {room}"),
        What::Settled { joins } => format!("{joins} joins are settled"),
        What::Quit(room) => format!("leaves {room}"),
        What::Gap { peer, frames, outgoing: true } => format!("lost {frames} frames for {peer}"),
        What::Gap { peer, frames, outgoing: false } => format!("lost {frames} frames from {peer}"),
        What::Dead { peer } => format!("found {peer} dead"),
        What::Event(words) => words.clone(),
        What::Before { rooms, .. } => format!("is in {} rooms; what was before is forgotten", rooms.len()),
        What::Emitted { .. } | What::Delivered { .. } => return,
    };
    let run = if ordinal == 0 { String::new() } else { format!(" (run {ordinal})") };
    let _ = writeln!(text, "{:>9.3}  {id}{run} {words}", entry.at.as_secs_f64());
}
