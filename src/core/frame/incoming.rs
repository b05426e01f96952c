//! A peer's interest, put together from the frames of one link.

use std::collections::BTreeMap;

use super::{FrameError, InterestHead, InterestPart, KEYS_PER_FRAME, WireMode, decode_keys, split_keys};
use crate::core::interest::{InterestChange, InterestDelta, RoomMode};
use crate::ids::Namespace;

/// What one link may make this node gather.
#[derive(Debug, Clone, Copy)]
pub struct InterestLimits {
    /// The most rooms in one delta. Cost: 8 bytes for each until the delta is complete.
    pub max_rooms: usize,
    /// The most namespaces that have a number. Cost: about 100 bytes and the path for each.
    pub max_namespaces: usize,
}

impl Default for InterestLimits {
    fn default() -> Self {
        Self { max_rooms: 2_000_000, max_namespaces: 65_536 }
    }
}

/// What a frame about interest comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum InterestStep {
    /// A part of a delta of which more follows.
    More,
    /// A part of a snapshot.
    Snapshot {
        /// The version that the frame gives.
        version: u64,
        /// Whether it is the first part.
        begins: bool,
        /// What it says; nothing in an empty snapshot.
        change: Option<InterestChange>,
        /// Whether it is the last part.
        ends: bool,
    },
    /// A whole delta.
    Delta(InterestDelta),
}

/// Reads the frames about interest of one link, in their order: [`part`](Self::part) and [`rooms`](Self::rooms). Counts
/// versions as the sender does, whether an update could be applied or not.
#[derive(Debug)]
pub struct InterestReader {
    limits: InterestLimits,
    /// The last version, since a whole snapshot came.
    version: Option<u64>,
    /// The version of the snapshot that is coming in.
    snapshot: Option<u64>,
    /// The parts of a delta so far, and how many keys are in them.
    gathered: Vec<InterestChange>,
    gathered_keys: usize,
    /// The namespaces by the sender's number.
    names: BTreeMap<u32, Namespace>,
}

impl InterestReader {
    /// For a new link.
    pub fn new(limits: InterestLimits) -> Self {
        let (gathered, names) = (Vec::new(), BTreeMap::new());
        Self { limits, version: None, snapshot: None, gathered, gathered_keys: 0, names }
    }

    /// A frame with [`super::Head::Interest`].
    ///
    /// # Errors
    /// [`FrameError::Payload`]; [`FrameError::Interest`] over a limit or with an unusable namespace.
    pub fn part(&mut self, head: &InterestHead<'_>, payload: &[u8]) -> Result<InterestStep, FrameError> {
        let (added, removed) = decode_keys(head, payload)?;
        let (snapshot, ends) = match head.part {
            InterestPart::Snapshot => (true, false),
            InterestPart::SnapshotEnd => (true, true),
            InterestPart::Delta => (false, false),
            InterestPart::DeltaEnd => (false, true),
        };
        let begins = snapshot && self.snapshot.is_none();
        if snapshot && self.snapshot.is_some_and(|version| version != head.version) {
            // One of them would be held and the other one counted on from.
            return Err(FrameError::Interest("a snapshot of several versions".into()));
        }
        if begins {
            self.names.clear();
            (self.gathered, self.gathered_keys) = (Vec::new(), 0);
        }
        let change = match namespace(head)? {
            None => None,
            Some(ns) => {
                let mode = mode(head.mode);
                self.name(head.number, &ns, mode);
                Some(InterestChange { ns, mode, added, removed })
            }
        };
        // Within a delta a namespace may come before another one goes; a delta is bounded as a whole.
        let (names, most) = (self.names.len(), self.limits.max_namespaces);
        if names > most && (snapshot || ends) {
            return Err(FrameError::Interest(format!("{names} numbered namespaces, the limit is {most}")));
        }
        if snapshot {
            self.snapshot = (!ends).then_some(head.version);
            if ends {
                self.version = Some(head.version);
            }
            return Ok(InterestStep::Snapshot { version: head.version, begins, change, ends });
        }
        self.gather(change)?;
        if !ends {
            return Ok(InterestStep::More);
        }
        self.gathered_keys = 0;
        self.version = self.version.and(Some(head.version));
        let changes = std::mem::take(&mut self.gathered);
        Ok(InterestStep::Delta(InterestDelta { version: head.version, changes }))
    }

    /// A frame with [`super::Head::Rooms`]: always a whole delta.
    ///
    /// # Errors
    /// [`FrameError::Payload`]; [`FrameError::Interest`] before a whole snapshot, within another update, with an unknown
    /// number or over a limit.
    pub fn rooms(&mut self, number: u32, added: u32, payload: &[u8]) -> Result<InterestDelta, FrameError> {
        let out_of_order = |what: &str| FrameError::Interest(what.into());
        let (added, removed) = split_keys(added, payload)?;
        if self.snapshot.is_some() || !self.gathered.is_empty() {
            return Err(out_of_order("rooms within another update"));
        }
        let version = self.version.ok_or_else(|| out_of_order("rooms before a snapshot"))?;
        let version = version.checked_add(1).ok_or_else(|| out_of_order("the versions are used up"))?;
        let Some(ns) = self.names.get(&number) else {
            return Err(FrameError::Interest(format!(
                "rooms of a namespace with the unknown number {number}"
            )));
        };
        let change = InterestChange { ns: ns.clone(), mode: Some(RoomMode::Exact), added, removed };
        self.check(1, change.added.len() + change.removed.len())?;
        self.version = Some(version);
        Ok(InterestDelta { version, changes: vec![change] })
    }

    /// Keeps the number of a namespace as long as the sender does.
    fn name(&mut self, number: u32, ns: &Namespace, mode: Option<RoomMode>) {
        if number == 0 {
            return;
        }
        if mode.is_none() {
            self.names.remove(&number);
        } else if self.names.get(&number) != Some(ns) {
            self.names.insert(number, ns.clone());
        }
    }

    fn gather(&mut self, change: Option<InterestChange>) -> Result<(), FrameError> {
        self.gathered_keys += change.as_ref().map_or(0, |c| c.added.len() + c.removed.len());
        self.gathered.extend(change);
        self.check(self.gathered.len(), self.gathered_keys)
    }

    fn check(&self, parts: usize, keys: usize) -> Result<(), FrameError> {
        let InterestLimits { max_rooms, max_namespaces } = self.limits;
        // A change of a namespace that has many keys comes in several parts.
        if keys > max_rooms || parts > max_namespaces + max_rooms / KEYS_PER_FRAME {
            return Err(FrameError::Interest(format!("a delta of {keys} rooms in {parts} parts")));
        }
        Ok(())
    }
}

fn namespace(head: &InterestHead<'_>) -> Result<Option<Namespace>, FrameError> {
    if head.ns.is_empty() {
        return Ok(None);
    }
    Namespace::new(head.ns).map(Some).map_err(|error| FrameError::Interest(error.to_string()))
}

fn mode(mode: WireMode) -> Option<RoomMode> {
    match mode {
        WireMode::Gone => None,
        WireMode::Flood => Some(RoomMode::Flood),
        WireMode::Exact => Some(RoomMode::Exact),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RoomKey;

    const LIMITS: InterestLimits = InterestLimits { max_rooms: 10, max_namespaces: 2 };
    const KEY: [u8; 8] = 7u64.to_le_bytes();

    fn head(part: InterestPart, version: u64, ns: &str, number: u32) -> InterestHead<'_> {
        InterestHead { version, part, ns, number, mode: WireMode::Exact, added: 0 }
    }

    fn gone(version: u64, ns: &str, number: u32) -> InterestHead<'_> {
        InterestHead { mode: WireMode::Gone, ..head(InterestPart::DeltaEnd, version, ns, number) }
    }

    fn refused<T: std::fmt::Debug>(outcome: Result<T, FrameError>, why: &str) {
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains(why), "{error}, not {why}");
    }

    #[test]
    fn rooms_go_on_from_the_last_version_of_the_stream() {
        let mut reader = InterestReader::new(LIMITS);
        reader.part(&head(InterestPart::SnapshotEnd, 5, "/a", 1), &[]).unwrap();
        let delta = reader.rooms(1, 1, &[KEY, KEY].concat()).unwrap();
        let (added, removed) = (vec![RoomKey(7)], vec![RoomKey(7)]);
        let ns = Namespace::new("/a").unwrap();
        let change = InterestChange { ns, mode: Some(RoomMode::Exact), added, removed };
        assert_eq!(delta, InterestDelta { version: 6, changes: vec![change] });
        // Also over one that cannot be applied: that is for others to find out.
        reader.part(&head(InterestPart::DeltaEnd, 20, "/b", 2), &[]).unwrap();
        assert_eq!(reader.rooms(2, 1, &KEY).unwrap().version, 21);
        assert_eq!(reader.rooms(1, 0, &[]).unwrap().version, 22);
    }

    #[test]
    fn rooms_out_of_turn_are_refused() {
        let mut reader = InterestReader::new(LIMITS);
        refused(reader.rooms(1, 0, &[]), "before a snapshot");
        reader.part(&head(InterestPart::DeltaEnd, 1, "/a", 1), &[]).unwrap();
        refused(reader.rooms(1, 0, &[]), "before a snapshot");
        reader.part(&head(InterestPart::Snapshot, 5, "/a", 1), &[]).unwrap();
        refused(reader.rooms(1, 0, &[]), "within another update");
        refused(reader.part(&head(InterestPart::SnapshotEnd, 6, "/b", 2), &[]), "several versions");
        reader.part(&head(InterestPart::SnapshotEnd, 5, "/b", 2), &[]).unwrap();
        refused(reader.rooms(3, 0, &[]), "unknown number 3");
        refused(reader.rooms(0, 0, &[]), "unknown number 0");
        refused(reader.rooms(1, 2, &KEY), "interest keys");
        refused(reader.rooms(1, 0, &KEY.repeat(11)), "a delta of 11 rooms");
        reader.part(&head(InterestPart::Delta, 6, "/a", 1), &[]).unwrap();
        refused(reader.rooms(1, 0, &[]), "within another update");
        reader.part(&gone(6, "/a", 1), &[]).unwrap();
        refused(reader.rooms(1, 0, &[]), "unknown number 1");
        reader.part(&head(InterestPart::SnapshotEnd, u64::MAX, "", 0), &[]).unwrap();
        refused(reader.rooms(2, 0, &[]), "used up");
        reader.part(&head(InterestPart::SnapshotEnd, 9, "", 0), &[]).unwrap();
        refused(reader.rooms(2, 0, &[]), "unknown number 2");
    }

    #[test]
    fn numbers_are_bounded() {
        let mut reader = InterestReader::new(LIMITS);
        for number in 1..=2 {
            reader.part(&head(InterestPart::Snapshot, 5, "/a", number), &[]).unwrap();
        }
        refused(reader.part(&head(InterestPart::Snapshot, 5, "/a", 3), &[]), "3 numbered namespaces");

        let mut reader = InterestReader::new(LIMITS);
        reader.part(&head(InterestPart::Snapshot, 5, "/a", 1), &[]).unwrap();
        reader.part(&head(InterestPart::SnapshotEnd, 5, "/b", 2), &[]).unwrap();
        // One comes and another one goes in the same delta.
        assert_eq!(reader.part(&head(InterestPart::Delta, 6, "/c", 3), &[]), Ok(InterestStep::More));
        reader.part(&gone(6, "/a", 1), &[]).unwrap();
        assert_eq!(reader.rooms(3, 0, &[]).unwrap().version, 7);
        refused(reader.part(&head(InterestPart::DeltaEnd, 8, "/d", 4), &[]), "3 numbered namespaces");
    }
}
