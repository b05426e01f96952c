//! The record of what a cluster did.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, since the cluster began.
    pub at: Duration,
    /// At which node.
    pub node: usize,
    /// In which run of it: its incarnation; 0 for what the test did to it.
    pub run: u64,
    /// What.
    pub what: What,
}

/// What happened. Runs of other nodes are named by their incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The run began.
    Started,
    /// The test ended it without a word.
    Killed,
    /// The test told it to leave.
    Leaving,
    /// It has left.
    Left,
    /// The test stopped it from running.
    Frozen,
    /// It runs again.
    Thawed,
    /// The test did something to the network, or said something, in words.
    Fault(String),
    /// The member joined a room.
    Joined(String),
    /// Joins are known everywhere.
    Settled {
        /// How many: the first so many that this run recorded.
        joins: u64,
    },
    /// The member left a room.
    Quit(String),
    /// A message was emitted.
    Emitted {
        /// Its number, from 1 in each run.
        number: u64,
        /// When the call began; the time of the entry is when it had returned.
        began: Duration,
        /// To which room.
        room: String,
        /// The runs that this node had a queue for before and after: (id, incarnation).
        peers: Vec<(String, u64)>,
        /// For whom it was not queued, and why.
        dropped: Vec<(String, String)>,
    },
    /// A message was delivered to the member.
    Delivered {
        /// The node that emitted it.
        from: usize,
        /// The run of that node.
        run: u64,
        /// Its number.
        number: u64,
    },
    /// Frames were lost for good.
    Gap {
        /// The peer.
        peer: String,
        /// How many.
        frames: u64,
        /// Whether they were on their way to the peer.
        outgoing: bool,
    },
    /// A peer was found dead: what it is owed may be given up.
    Dead {
        /// The peer.
        peer: String,
    },
    /// Another event of the node, in words.
    Event(String),
    /// What was before was checked and is forgotten: see [`check::forget`](super::check::forget).
    Before {
        /// How many joins the run had recorded.
        joins: u64,
        /// The rooms that its member is in; they are known everywhere.
        rooms: Vec<String>,
    },
}

/// All that happened, in the order of its times as far as these are known.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The entries.
    pub entries: Vec<Entry>,
}

impl History {
    /// Adds an entry.
    pub fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }
}
