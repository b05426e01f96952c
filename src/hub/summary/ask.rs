//! Asking the others for their summaries, while somebody looks: at most once a second, whoever looks.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hashbrown::HashMap;

use super::Summary;
use crate::core::link::LinkState;
use crate::hub::{Hub, lock};
use crate::ids::NodeId;

/// The shortest time between two rounds, in milliseconds.
const INTERVAL_MS: u64 = 1_000;
/// So many questions in a row may stay without an answer: it may have been dropped on the way.
const MAX_MISSES: u32 = 2;
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
    /// It was asked and has not answered. Only then an answer is read: whoever sends more of them costs nothing.
    awaited: bool,
    /// Questions in a row without an answer.
    misses: u32,
    /// There was no link to ask it over.
    away: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    /// There is no link to the node.
    NoLink,
    /// It was asked and does not answer.
    NoAnswer,
}

impl Said {
    /// An answer.
    pub(crate) fn told(summary: Summary, now_ms: u64) -> Self {
        Self { summary: Some((now_ms, Arc::new(summary))), ..Self::default() }
    }

    /// Why the last answer is missing or old; none when it is not.
    pub(crate) fn silent(&self) -> Option<Silent> {
        if self.away {
            return Some(Silent::NoLink);
        }
        (self.misses >= MAX_MISSES).then_some(Silent::NoAnswer)
    }
}

impl Hub {
    /// What the others said last; asks them again if the last time is long enough ago. Never waits: what they answer is in what
    /// the next call returns.
    pub(crate) fn summaries(&self) -> HashMap<NodeId, Said> {
        let (now_ms, peers) = (self.now_ms(), self.peers());
        let mut asked = Vec::new();
        let said = {
            let mut state = lock(&self.summaries.state);
            if state.begun_ms.is_none_or(|begun| now_ms.saturating_sub(begun) >= INTERVAL_MS) {
                state.begun_ms = Some(now_ms);
                state.said.retain(|node, _| peers.iter().any(|peer| peer.id == *node));
                asked.extend(peers.iter().filter(|peer| peer.state() != LinkState::Down));
                for peer in &peers {
                    let said = state.said.entry(peer.id.clone()).or_default();
                    said.away = !asked.iter().any(|asked| asked.id == peer.id);
                }
                // Each node once, also where two runs of it are held for a moment.
                let mut ids: Vec<&NodeId> = asked.iter().map(|peer| &peer.id).collect();
                ids.sort_unstable();
                ids.dedup();
                for id in ids {
                    let said = state.said.entry(id.clone()).or_default();
                    said.misses += u32::from(said.awaited);
                    said.awaited = true;
                }
            }
            state.said.clone()
        };
        asked.iter().for_each(|peer| self.say_summary(peer, Bytes::new()));
        said
    }

    /// An answer of a node.
    pub(super) fn note_summary(&self, node: &NodeId, body: &[u8]) {
        let take = |said: &mut Said| std::mem::take(&mut said.awaited);
        if !lock(&self.summaries.state).said.get_mut(node).is_some_and(take) {
            return;
        }
        let (summary, now_ms) = (read(body), self.now_ms());
        let mut state = lock(&self.summaries.state);
        let Some(said) = state.said.get_mut(node) else { return };
        match summary {
            Some(summary) => *said = Said::told(summary, now_ms),
            // What cannot be read is no answer.
            None => said.misses += 1,
        }
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
        let summary = Summary {
            incarnation: 1 << 60,
            version: "1.2.3".into(),
            links: vec![link],
            ..Summary::default()
        };
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
        let link =
            LinkSummary { peer: "n".repeat(63), state: "syncing".into(), round_trip_us: Some(u64::MAX) };
        let all = Summary { links: vec![link; super::super::MAX_LINKS], ..Summary::default() };
        assert!(serde_json::to_vec(&all).unwrap().len() < MAX_BODY_BYTES);
    }
}
