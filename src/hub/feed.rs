//! This node's interest as frames, written once and sent to every peer.

mod log;

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;

use crate::core::frame::{
    FrameError, Head, InterestHead, InterestPart, KEYS_PER_FRAME, WireMode, encode_head, encode_keys,
};
use crate::core::interest::{InterestChange, InterestDelta, RoomMode};
use crate::hub::lock;
use crate::ids::Namespace;

use self::log::Log;
pub(crate) use self::log::{FeedLink, Next};

/// The deltas that a link has yet to send. When all links have sent the newest, none is kept, however many there were.
/// A link that is behind by more than `limit_bytes` is sent a snapshot, so a slow peer costs no more than that.
pub(crate) struct InterestFeed {
    state: Arc<Mutex<Log>>,
    /// Locked before `state`, by who publishes; links do not wait for it.
    names: Mutex<Names>,
    /// The most that is kept, in bytes of memory: each delta with [`DELTA_BYTES`] more.
    limit_bytes: usize,
}

/// The numbers of the namespaces that are advertised: on the wire they stand for the paths.
#[derive(Default)]
struct Names {
    held: HashMap<Namespace, Named>,
    /// The last number given; none is given twice.
    last: u32,
}

struct Named {
    /// 0 for none, when the numbers are used up.
    number: u32,
    mode: RoomMode,
}

impl Names {
    /// Takes note of a change and says its number.
    fn note(&mut self, change: &InterestChange) -> u32 {
        let Some(mode) = change.mode else {
            return self.held.remove(&change.ns).map_or(0, |named| named.number);
        };
        if let Some(named) = self.held.get_mut(&change.ns) {
            named.mode = mode;
            return named.number;
        }
        let number = self.last.checked_add(1).unwrap_or(0);
        self.last = self.last.max(number);
        self.held.insert(change.ns.clone(), Named { number, mode });
        number
    }

    /// The number of the namespace, if it is the only one of the delta, stays exact, and has few changes.
    fn rooms_of<'d>(&self, delta: &'d InterestDelta) -> Option<(u32, &'d InterestChange)> {
        let [change] = &delta.changes[..] else { return None };
        let named = self.held.get(&change.ns)?;
        let stays = named.mode == RoomMode::Exact && change.mode == Some(RoomMode::Exact);
        let fits = change.added.len() + change.removed.len() <= KEYS_PER_FRAME;
        (stays && fits && named.number != 0).then_some((named.number, change))
    }
}

/// The whole interest at one version, as frames.
#[derive(Debug, Clone)]
pub(crate) struct InterestSnapshot {
    pub(crate) version: u64,
    pub(crate) frames: Vec<Bytes>,
}

impl InterestFeed {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { state: Arc::default(), names: Mutex::default(), limit_bytes }
    }

    /// A new link, which has sent nothing yet.
    pub(crate) fn link(&self) -> FeedLink {
        FeedLink::new(&self.state)
    }

    /// The newest version.
    pub(crate) fn version(&self) -> u64 {
        lock(&self.state).version
    }

    /// Adds a delta. Returns its size on the wire. When it cannot be encoded, links are sent a snapshot instead.
    pub(crate) fn publish(&self, delta: &InterestDelta) -> Result<usize, FrameError> {
        let mut names = lock(&self.names);
        // Versions that are not written out are counted by both sides: not after one that was left out.
        let follows = self.version() + 1 == delta.version;
        let short = names.rooms_of(delta).filter(|_| follows);
        let frames = match short {
            Some((number, change)) => encode_rooms(number, change),
            None => {
                let parts = (InterestPart::Delta, InterestPart::DeltaEnd);
                encode_parts(&mut names, delta.version, &delta.changes, parts)
                    .map(|frames| frames.concat().into())
            }
        };
        let frames: Result<Bytes, _> = frames;
        let mut log = lock(&self.state);
        log.add(delta.version, frames.as_ref().ok().cloned(), self.limit_bytes);
        frames.map(|frames| frames.len())
    }

    /// Encodes a snapshot of what was published, part by part.
    pub(crate) fn snapshot(
        &self,
        version: u64,
        chunks: &[Vec<InterestChange>],
    ) -> Result<InterestSnapshot, FrameError> {
        let changes: Vec<InterestChange> = chunks.iter().flatten().cloned().collect();
        let parts = (InterestPart::Snapshot, InterestPart::SnapshotEnd);
        let frames = encode_parts(&mut lock(&self.names), version, &changes, parts)?;
        Ok(InterestSnapshot { version, frames })
    }
}

/// A whole delta of one namespace.
fn encode_rooms(number: u32, change: &InterestChange) -> Result<Bytes, FrameError> {
    let added = u32::try_from(change.added.len()).unwrap_or(u32::MAX);
    let mut frame = BytesMut::new();
    let keys = change.added.len() + change.removed.len();
    encode_head(&Head::Rooms { number, added }, keys * 8, &mut frame)?;
    encode_keys(&change.added, &mut frame);
    encode_keys(&change.removed, &mut frame);
    Ok(frame.freeze())
}

fn encode_parts(
    names: &mut Names,
    version: u64,
    changes: &[InterestChange],
    (more, end): (InterestPart, InterestPart),
) -> Result<Vec<Bytes>, FrameError> {
    let mut frames = Vec::with_capacity(changes.len() + 1);
    for change in changes {
        let number = names.note(change);
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
            frames.push((change.ns.path(), number, mode, plus, minus));
        }
    }
    if frames.is_empty() {
        frames.push(("", 0, WireMode::Exact, &[], &[]));
    }
    let last = frames.len() - 1;
    frames
        .into_iter()
        .enumerate()
        .map(|(index, (ns, number, mode, plus, minus))| {
            let part = if index == last { end } else { more };
            let added = u32::try_from(plus.len()).unwrap_or(u32::MAX);
            let head = Head::Interest(InterestHead { version, part, ns, number, mode, added });
            let mut frame = BytesMut::new();
            encode_head(&head, (plus.len() + minus.len()) * 8, &mut frame)?;
            encode_keys(plus, &mut frame);
            encode_keys(minus, &mut frame);
            Ok(frame.freeze())
        })
        .collect()
}

#[cfg(test)]
mod tests;
