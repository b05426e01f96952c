//! What a test and the process of a node say to each other: a line of JSON each.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::harness::ground::{Answer, Ask, Plan, Rule};
use crate::harness::history::Entry;

/// The first line of a test.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// The number of the node.
    pub(super) index: usize,
    pub(super) plan: Plan,
    pub(super) cluster: String,
    /// Where it listens.
    pub(super) listen: SocketAddr,
    /// When the cluster began, in microseconds since the Unix epoch.
    pub(super) begun_us: u64,
    /// What stands for its packets from the first one on.
    pub(super) rules: Vec<Order>,
}

/// What the process is to do. It answers each, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Order {
    /// Asks the agent.
    Ask(Ask),
    /// What happens to packets that go to an address.
    RuleTo(SocketAddr, Rule),
    /// Whether packets from an address are lost.
    CutFrom(SocketAddr, bool),
    /// Leave the cluster and end.
    Leave,
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    /// Something happened.
    Entry(Entry),
    /// An order is done.
    Answer(Answer),
}
