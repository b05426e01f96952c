//! This node's interest as frames, written once and sent to every peer.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};

use crate::core::frame::{FrameError, Head, InterestHead, InterestPart, WireMode, encode_head, encode_keys};
use crate::core::interest::{InterestChange, InterestDelta, RoomMode};
use crate::hub::lock;

/// The most keys in one frame: 64 KiB of payload.
pub(crate) const KEYS_PER_FRAME: usize = 8192;

/// The latest deltas. A link that is behind them is sent a snapshot, so a slow peer costs no memory.
pub(crate) struct InterestFeed {
    state: Mutex<Log>,
    limit_bytes: usize,
}

#[derive(Default)]
struct Log {
    version: u64,
    deltas: VecDeque<Bytes>,
    bytes: usize,
}

/// What a link has to send next.
pub(crate) enum Next {
    /// It is up to date.
    Nothing,
    /// These frames, which lead to that version.
    Deltas(Vec<Bytes>, u64),
    /// The deltas it lacks are gone: it needs a snapshot.
    Snapshot,
}

/// The whole interest at one version, as frames.
#[derive(Debug, Clone)]
pub(crate) struct InterestSnapshot {
    pub(crate) version: u64,
    pub(crate) frames: Vec<Bytes>,
}

impl InterestFeed {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { state: Mutex::default(), limit_bytes }
    }

    /// The newest version.
    pub(crate) fn version(&self) -> u64 {
        lock(&self.state).version
    }

    /// Adds a delta. Returns its size on the wire.
    pub(crate) fn publish(&self, delta: &InterestDelta) -> Result<usize, FrameError> {
        let frames =
            encode_parts(delta.version, &delta.changes, InterestPart::Delta, InterestPart::DeltaEnd)?;
        let frames = Bytes::from(frames.concat());
        let mut log = lock(&self.state);
        log.version = delta.version;
        log.bytes += frames.len();
        let size = frames.len();
        log.deltas.push_back(frames);
        while log.bytes > self.limit_bytes {
            let Some(oldest) = log.deltas.pop_front() else { break };
            log.bytes -= oldest.len();
        }
        Ok(size)
    }

    /// What a link that has sent `version` (none when it has sent nothing) has to send next.
    pub(crate) fn next(&self, sent: Option<u64>) -> Next {
        let log = lock(&self.state);
        let Some(sent) = sent else { return Next::Snapshot };
        let Ok(behind) = usize::try_from(log.version.saturating_sub(sent)) else { return Next::Snapshot };
        if behind == 0 {
            return Next::Nothing;
        }
        if behind > log.deltas.len() {
            return Next::Snapshot;
        }
        let from = log.deltas.len() - behind;
        Next::Deltas(log.deltas.range(from..).cloned().collect(), log.version)
    }
}

/// Encodes a snapshot, part by part.
pub(crate) fn encode_snapshot(
    version: u64,
    chunks: &[Vec<InterestChange>],
) -> Result<InterestSnapshot, FrameError> {
    let changes: Vec<InterestChange> = chunks.iter().flatten().cloned().collect();
    let frames = encode_parts(version, &changes, InterestPart::Snapshot, InterestPart::SnapshotEnd)?;
    Ok(InterestSnapshot { version, frames })
}

fn encode_parts(
    version: u64,
    changes: &[InterestChange],
    more: InterestPart,
    end: InterestPart,
) -> Result<Vec<Bytes>, FrameError> {
    let mut frames = Vec::with_capacity(changes.len() + 1);
    for change in changes {
        let mode = match change.mode {
            None => WireMode::Gone,
            Some(RoomMode::Flood) => WireMode::Flood,
            Some(RoomMode::Exact) => WireMode::Exact,
        };
        let mut added = change.added.chunks(KEYS_PER_FRAME);
        let mut removed = change.removed.chunks(KEYS_PER_FRAME);
        let mut first = true;
        loop {
            let (plus, minus) = match added.next() {
                Some(plus) if added.len() == 0 && plus.len() + change.removed.len() <= KEYS_PER_FRAME => {
                    (plus, removed.next().unwrap_or_default())
                }
                Some(plus) => (plus, Default::default()),
                None => match removed.next() {
                    Some(minus) => (Default::default(), minus),
                    None if first => (Default::default(), Default::default()),
                    None => break,
                },
            };
            first = false;
            frames.push((change.ns.path(), mode, plus, minus));
        }
    }
    if frames.is_empty() {
        frames.push(("", WireMode::Exact, &[], &[]));
    }
    let last = frames.len() - 1;
    frames
        .into_iter()
        .enumerate()
        .map(|(index, (ns, mode, plus, minus))| {
            let part = if index == last { end } else { more };
            let added = u32::try_from(plus.len()).unwrap_or(u32::MAX);
            let head = Head::Interest(InterestHead { version, part, ns, mode, added });
            let mut frame = BytesMut::new();
            encode_head(&head, (plus.len() + minus.len()) * 8, &mut frame)?;
            encode_keys(plus, &mut frame);
            encode_keys(minus, &mut frame);
            Ok(frame.freeze())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::frame::{FrameLimits, decode_stream};
    use crate::ids::{Namespace, RoomKey};

    fn delta(version: u64, added: usize, removed: usize) -> InterestDelta {
        let keys = |n: usize| (0..n as u64).map(RoomKey).collect::<Vec<_>>();
        let change = InterestChange {
            ns: Namespace::new("/").unwrap(),
            mode: Some(RoomMode::Exact),
            added: keys(added),
            removed: keys(removed),
        };
        InterestDelta { version, changes: vec![change] }
    }

    #[test]
    fn a_link_behind_the_log_needs_a_snapshot() {
        let feed = InterestFeed::new(200);
        assert!(matches!(feed.next(None), Next::Snapshot));
        assert!(matches!(feed.next(Some(0)), Next::Nothing));
        for version in 1..=20 {
            feed.publish(&delta(version, 1, 0)).unwrap();
        }
        assert!(matches!(feed.next(Some(0)), Next::Snapshot));
        assert!(matches!(feed.next(Some(19)), Next::Deltas(frames, 20) if frames.len() == 1));
        assert!(matches!(feed.next(Some(20)), Next::Nothing));
    }

    #[test]
    fn large_deltas_are_cut_into_frames_within_the_limit() {
        let limits = FrameLimits { max_frame_bytes: 80 * 1024, max_room_bytes: 256 };
        for (added, removed, frames) in [(0, 0, 1), (3, 3, 1), (20_000, 9_000, 5), (0, 8_193, 2)] {
            let delta = delta(1, added, removed);
            let parts = encode_parts(1, &delta.changes, InterestPart::Delta, InterestPart::DeltaEnd).unwrap();
            assert_eq!(decode_stream(&parts.concat(), &limits), Ok(frames), "{added} {removed}");
        }
    }

    #[test]
    fn a_join_costs_at_most_16_bytes_when_joins_come_together() {
        let feed = InterestFeed::new(1 << 20);
        let bytes = feed.publish(&delta(1, 1000, 0)).unwrap();
        assert!(bytes <= 16 * 1000, "{bytes}");
    }
}
