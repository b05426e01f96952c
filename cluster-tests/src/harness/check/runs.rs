//! A history sorted by the runs of its nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::harness::agent::STRANGE;
use crate::harness::history::{History, What};

/// A run: the index of its node and its incarnation.
pub(super) type RunKey = (usize, u64);

/// All runs of a history.
pub(super) struct Runs<'a> {
    ids: &'a [String],
    pub(super) runs: BTreeMap<RunKey, Run>,
    /// Entries that should not be, in words.
    pub(super) strange: Vec<String>,
}

/// What one run did and got.
#[derive(Default)]
pub(super) struct Run {
    /// Which run of its node, from 1.
    ordinal: usize,
    /// When it ended.
    pub(super) end: Option<Duration>,
    pub(super) killed: bool,
    /// When it was told to leave.
    pub(super) told: Option<Duration>,
    /// By their number.
    pub(super) emits: BTreeMap<u64, Emit>,
    /// The numbers in the order in which they came, by the run that emitted them.
    pub(super) delivered: BTreeMap<RunKey, Vec<u64>>,
    /// The times in which the member was in a room, by the room.
    pub(super) windows: BTreeMap<String, Vec<Window>>,
    /// Frames that were lost on the way to a peer, by its id.
    lost_to: BTreeMap<String, u64>,
    /// Frames that were lost on the way from a peer, by its id.
    lost_from: BTreeMap<String, u64>,
    /// The ids of those that it found dead.
    dead: BTreeSet<String>,
    /// The room of each join so far.
    joins: Vec<String>,
    /// How many of them are settled.
    settled_joins: usize,
}

/// A message that was emitted.
pub(super) struct Emit {
    pub(super) number: u64,
    /// When the call began, and when it had returned.
    pub(super) began: Duration,
    pub(super) at: Duration,
    /// Its place in the history.
    pub(super) place: usize,
    pub(super) room: String,
    pub(super) peers: Vec<(String, u64)>,
    /// The ids of those that it was not queued for.
    pub(super) dropped: Vec<String>,
}

/// A time in which a member was in a room.
pub(super) struct Window {
    /// The place of the join in the history.
    pub(super) joined: usize,
    /// When it was recorded.
    pub(super) joined_at: Duration,
    /// Since when it is known everywhere.
    pub(super) settled: Option<Duration>,
    /// Where and when the member left.
    pub(super) quit: Option<Quit>,
}

#[derive(Clone, Copy)]
pub(super) struct Quit {
    pub(super) place: usize,
    pub(super) at: Duration,
}

impl<'a> Runs<'a> {
    pub(super) fn read(history: &History, ids: &'a [String]) -> Self {
        let mut runs = Self { ids, runs: BTreeMap::new(), strange: Vec::new() };
        let mut entries: Vec<_> = history.entries.iter().collect();
        entries.sort_by_key(|entry| entry.at);
        let mut newest: BTreeMap<usize, (RunKey, usize)> = BTreeMap::new();
        for (place, entry) in entries.into_iter().enumerate() {
            let key = (entry.node, entry.run);
            match &entry.what {
                What::Started => {
                    let ordinal = newest.get(&entry.node).map_or(1, |(_, ordinal)| ordinal + 1);
                    newest.insert(entry.node, (key, ordinal));
                    runs.runs.entry(key).or_default().ordinal = ordinal;
                }
                What::Killed | What::Left => {
                    let run = newest.get(&entry.node).and_then(|(key, _)| runs.runs.get_mut(key));
                    if let Some(run) = run {
                        run.end = run.end.or(Some(entry.at));
                        run.killed = entry.what == What::Killed;
                    }
                }
                What::Leaving => {
                    let run = newest.get(&entry.node).and_then(|(key, _)| runs.runs.get_mut(key));
                    if let Some(run) = run {
                        run.told.get_or_insert(entry.at);
                    }
                }
                What::Frozen | What::Thawed | What::Fault(_) => {}
                what => {
                    let run = runs.runs.entry(key).or_default();
                    if let Some(strange) = run.add(place, entry.at, what) {
                        runs.strange.push(format!("node {}: {strange}", entry.node));
                    }
                }
            }
        }
        runs
    }

    /// The id of the node of a run.
    pub(super) fn id(&self, key: RunKey) -> &str {
        self.ids.get(key.0).map_or("?", String::as_str)
    }

    /// A run for a reader.
    pub(super) fn name(&self, key: RunKey) -> String {
        let ordinal = self.runs.get(&key).map_or(0, |run| run.ordinal);
        format!("{} (run {ordinal})", self.id(key))
    }

    /// How many frames were reported as lost on the way from one run to another, by the one that says more.
    pub(super) fn counted(&self, sender: RunKey, receiver: RunKey) -> u64 {
        let (said, heard) = self.gaps(sender, receiver);
        said.max(heard)
    }

    /// The same, by the one that sent and by the one that received.
    pub(super) fn gaps(&self, sender: RunKey, receiver: RunKey) -> (u64, u64) {
        let lost = |lost: &BTreeMap<String, u64>, id| lost.get(id).copied().unwrap_or(0);
        let said = lost(&self.runs[&sender].lost_to, self.id(receiver));
        (said, lost(&self.runs[&receiver].lost_from, self.id(sender)))
    }

    /// Whether one run ever found the node of the other dead.
    pub(super) fn was_dead_to(&self, key: RunKey, other: RunKey) -> bool {
        self.runs[&key].dead.contains(self.id(other))
    }

    /// Whether its node had no other run.
    pub(super) fn is_only(&self, key: RunKey) -> bool {
        self.runs.keys().filter(|(node, _)| *node == key.0).count() == 1
    }
}

impl Run {
    /// What is left of the run when its messages are forgotten. None while a room that its member is in is not settled.
    pub(super) fn before(&self) -> Option<What> {
        let open = |windows: &Vec<Window>| windows.last().is_some_and(|window| window.quit.is_none());
        let rooms = || self.windows.iter().filter(|(_, windows)| open(windows));
        let settled = |windows: &Vec<Window>| windows.last().is_some_and(|window| window.settled.is_some());
        if !rooms().all(|(_, windows)| settled(windows)) {
            return None;
        }
        let rooms = rooms().map(|(room, _)| room.clone()).collect();
        Some(What::Before { joins: self.joins.len() as u64, rooms })
    }

    /// The number of the last message that is known to have been emitted.
    pub(super) fn last_emitted(&self) -> u64 {
        self.emits.keys().next_back().copied().unwrap_or(0)
    }

    /// Takes an entry. Returns what is strange about it.
    fn add(&mut self, place: usize, at: Duration, what: &What) -> Option<String> {
        match what {
            What::Joined(room) => self.join(room, place, at),
            What::Settled { joins } => {
                let joins = usize::try_from(*joins).unwrap_or(usize::MAX).min(self.joins.len());
                // Those before are settled, or were left: joined again they have a place behind.
                for room in &self.joins[self.settled_joins.min(joins)..joins] {
                    // A room that was left and joined again after the question is not settled by it.
                    let again = self.joins[joins..].contains(room);
                    let window = self.windows.get_mut(room).and_then(|windows| windows.last_mut());
                    if let Some(window) = window.filter(|_| !again) {
                        window.settled.get_or_insert(at);
                    }
                }
                self.settled_joins = self.settled_joins.max(joins);
            }
            What::Quit(room) => {
                let window = self.windows.get_mut(room).and_then(|windows| windows.last_mut());
                if let Some(window) = window {
                    window.quit.get_or_insert(Quit { place, at });
                }
            }
            What::Emitted { number, began, room, peers, dropped } => {
                let dropped = dropped.iter().map(|(id, _)| id.clone()).collect();
                let (room, peers) = (room.clone(), peers.clone());
                let (number, began) = (*number, *began);
                self.emits.insert(number, Emit { number, began, at, place, room, peers, dropped });
            }
            What::Delivered { from, run, number } => {
                self.delivered.entry((*from, *run)).or_default().push(*number);
            }
            What::Gap { peer, frames, outgoing } => {
                let lost = if *outgoing { &mut self.lost_to } else { &mut self.lost_from };
                *lost.entry(peer.clone()).or_default() += frames;
            }
            What::Dead { peer } => {
                self.dead.insert(peer.clone());
            }
            What::Before { joins, rooms } => {
                self.settled_joins = usize::try_from(*joins).unwrap_or(usize::MAX);
                self.joins = vec![String::new(); self.settled_joins];
                for room in rooms {
                    let window = Window { joined: place, joined_at: at, settled: Some(at), quit: None };
                    self.windows.insert(room.clone(), vec![window]);
                }
            }
            What::Event(words) if words.starts_with(STRANGE) => return Some(words.clone()),
            _ => {}
        }
        None
    }

    fn join(&mut self, room: &str, place: usize, joined_at: Duration) {
        self.joins.push(room.to_owned());
        let windows = self.windows.entry(room.to_owned()).or_default();
        if windows.last().is_none_or(|window| window.quit.is_some()) {
            windows.push(Window { joined: place, joined_at, settled: None, quit: None });
        }
    }
}
