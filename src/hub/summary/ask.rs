//! Asking the others for their summaries, while somebody looks: at most once a second, whoever looks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::smallvec;

use super::{SUMMARY, Summary};
use crate::core::frame::{Op, PayloadKind, RequestHead};
use crate::core::link::LinkState;
use crate::hub::requests::{Ask, MissingReason, Targets, everyone};
use crate::hub::{Hub, lock};
use crate::ids::NodeId;

/// The shortest time between two rounds, in milliseconds.
const INTERVAL_MS: u64 = 1_000;
/// How long a round waits for answers: it is over before the next one begins.
const PATIENCE: Duration = Duration::from_millis(900);
/// How long a node is left alone that has not answered: its queue is not to fill with questions. In milliseconds.
const QUIET_MS: u64 = 5_000;
/// The longest answer that is read, in bytes: 512 links with the longest names fit.
const MAX_BODY_BYTES: usize = 96 * 1024;
/// The longest text of an answer that is kept, in bytes: longer than any node id.
const MAX_TEXT_BYTES: usize = 64;

/// What the others said.
#[derive(Default)]
pub(crate) struct Summaries {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the last round began; none before the first.
    begun_ms: Option<u64>,
    said: HashMap<NodeId, Said>,
}

/// What became of asking one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    /// The last answer, and when it came (the clock of [`Hub::now_ms`]).
    pub(crate) summary: Option<(u64, Arc<Summary>)>,
    /// Why the last question was not answered; none when it was.
    pub(crate) silent: Option<Silent>,
    /// It is not asked before.
    not_before_ms: u64,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    /// The node does not know the question, or its answer could not be read.
    Unknown,
    /// It did not answer.
    Missing(MissingReason),
}

impl Hub {
    /// What the others said last; begins a round of questions if the last one is long enough ago. Never waits. To be called
    /// in a tokio runtime.
    pub(crate) fn summaries(self: &Arc<Self>) -> HashMap<NodeId, Said> {
        let now_ms = self.now_ms();
        let peers = self.peers();
        let mut state = lock(&self.summaries.state);
        let due = state.begun_ms.is_none_or(|begun| now_ms.saturating_sub(begun) >= INTERVAL_MS);
        if due {
            state.begun_ms = Some(now_ms);
            state.said.retain(|node, _| peers.iter().any(|peer| peer.id == *node));
            let rests = |node: &NodeId| state.said.get(node).is_some_and(|said| said.not_before_ms > now_ms);
            let nodes: Vec<NodeId> = peers
                .iter()
                .filter(|peer| peer.state() != LinkState::Down && !peer.is_dead() && !rests(&peer.id))
                .map(|peer| peer.id.clone())
                .collect();
            if !nodes.is_empty() {
                tokio::spawn(round(Arc::clone(self), nodes));
            }
        }
        state.said.clone()
    }

    fn note_summary(&self, node: &NodeId, body: &[u8]) {
        let (now_ms, summary) = (self.now_ms(), read(body));
        let mut state = lock(&self.summaries.state);
        let said = state.said.entry(node.clone()).or_default();
        match summary {
            Some(summary) => {
                *said = Said::told(summary, now_ms);
            }
            None => said.be_silent(Silent::Unknown, now_ms),
        }
    }

    fn note_silent(&self, node: &NodeId, why: Silent) {
        let now_ms = self.now_ms();
        lock(&self.summaries.state).said.entry(node.clone()).or_default().be_silent(why, now_ms);
    }
}

impl Said {
    /// An answer.
    pub(crate) fn told(summary: Summary, now_ms: u64) -> Self {
        Self { summary: Some((now_ms, Arc::new(summary))), ..Self::default() }
    }

    fn be_silent(&mut self, why: Silent, now_ms: u64) {
        self.silent = Some(why);
        self.not_before_ms = now_ms + QUIET_MS;
    }
}

/// Asks these nodes once.
async fn round(hub: Arc<Hub>, nodes: Vec<NodeId>) {
    let head = RequestHead {
        id: 0,
        op: Op::ServerEvent,
        timeout_ms: 0,
        credit: 1,
        names: smallvec!["summary"],
        to: everyone(SUMMARY, PayloadKind::Plain),
    };
    // Without a timeout of its own: it is no fault of a question to count when nobody may answer while a node is frozen.
    let ask = Ask { targets: Targets::Nodes(&nodes), head, timeout: None, here: false };
    // As many questions wait as may: those of the application go first.
    let Ok(mut asked) = hub.ask(ask, &Bytes::new()) else { return };
    let mut silent = asked.nodes();
    let mut over = std::pin::pin!(tokio::time::sleep(PATIENCE));
    let mut waits = true;
    loop {
        tokio::select! {
            answer = asked.next() => {
                let Some(answer) = answer else { break };
                silent.retain(|node| *node != answer.node);
                hub.note_summary(&answer.node, &answer.body);
            }
            () = &mut over, if waits => {
                waits = false;
                asked.give_up(MissingReason::TimedOut);
            }
        }
    }
    let missing = asked.missing();
    for node in silent {
        let reason = missing.iter().find(|missing| missing.node == node).map(|missing| missing.reason);
        hub.note_silent(&node, reason.map_or(Silent::Unknown, Silent::Missing));
    }
}

/// What another node says, within limits: the bytes come from the network.
fn read(body: &[u8]) -> Option<Summary> {
    if body.len() > MAX_BODY_BYTES {
        return None;
    }
    let mut summary: Summary = serde_json::from_slice(body).ok()?;
    for text in std::iter::once(&mut summary.version)
        .chain(summary.links.iter_mut().flat_map(|link| [&mut link.peer, &mut link.state]))
    {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    }
    summary.links.truncate(super::MAX_LINKS);
    Some(summary)
}

#[cfg(test)]
mod tests {
    use super::super::LinkSummary;
    use super::*;

    #[test]
    fn a_summary_is_read_as_it_was_written_and_more_or_less_than_that() {
        let link = LinkSummary { peer: "b".into(), state: "up".into(), round_trip_us: Some(7) };
        let summary = Summary { incarnation: 1 << 60, version: "1.2.3".into(), links: vec![link], ..Summary::default() };
        let body = serde_json::to_vec(&summary).unwrap();
        assert_eq!(read(&body), Some(summary));
        let other = read(br#"{"clients": 3, "links": [{"peer": "c"}], "later": {"x": [1]}}"#).unwrap();
        assert_eq!((other.clients, other.rooms, &*other.links[0].peer), (3, 0, "c"));
        assert_eq!(other.links[0].round_trip_us, None);
    }

    #[test]
    fn what_is_no_summary_or_over_a_limit_is_not_taken() {
        for bad in [&b""[..], b"[]x", b"{\"clients\": -1}", b"\xff", b"{\"links\": [7]}", b"\0{}"] {
            assert_eq!(read(bad), None, "{}", bad.escape_ascii());
        }
        assert_eq!(read(&vec![b' '; MAX_BODY_BYTES + 1]), None);
        let links = vec![LinkSummary::default(); 1000];
        let many = Summary { version: "\u{e4}".repeat(100), links, ..Summary::default() };
        let read = read(&serde_json::to_vec(&many).unwrap()).unwrap();
        assert_eq!(read.links.len(), super::super::MAX_LINKS);
        assert_eq!(read.version, "\u{e4}".repeat(MAX_TEXT_BYTES / 2));
    }

    #[test]
    fn the_largest_summary_fits() {
        let link = LinkSummary { peer: "n".repeat(63), state: "syncing".into(), round_trip_us: Some(u64::MAX) };
        let all = Summary { links: vec![link; super::super::MAX_LINKS], ..Summary::default() };
        assert!(serde_json::to_vec(&all).unwrap().len() < MAX_BODY_BYTES);
    }
}
