//! The latest deltas of the interest, as long as a link has yet to send them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::hub::lock;

/// What a link has to send next.
pub(crate) enum Next {
    /// It is up to date.
    Nothing,
    /// These frames, which lead to that version.
    Deltas(Vec<Bytes>, u64),
    /// The deltas it lacks are gone: it needs a snapshot.
    Snapshot,
}

/// What a delta costs beside its bytes: its place in the log, and what it is allocated with.
pub(super) const DELTA_BYTES: usize = 128;
/// A log with no more places than this is not made smaller.
pub(super) const FEW_DELTAS: usize = 64;

#[derive(Default)]
pub(super) struct Log {
    /// The newest version.
    pub(super) version: u64,
    /// The deltas that lead to it, as far back as they are kept.
    pub(super) deltas: VecDeque<Bytes>,
    /// What they cost, in bytes of memory.
    pub(super) bytes: usize,
    /// How many links were told of everything up to each version: as many entries as links at most.
    pub(super) links: BTreeMap<u64, usize>,
}

impl Log {
    /// A delta that leads to `version`, unless it could not be encoded. One that does not follow on those before it begins
    /// the log anew.
    pub(super) fn add(&mut self, version: u64, delta: Option<Bytes>, limit_bytes: usize) {
        let follows = self.version + 1 == version;
        self.version = version;
        if delta.is_none() || !follows {
            self.deltas.clear();
            self.bytes = 0;
        }
        if let Some(delta) = delta {
            self.bytes += cost(&delta);
            self.deltas.push_back(delta);
        }
        self.shorten(limit_bytes);
    }

    /// A link is told of everything up to the newest version.
    pub(super) fn told(&mut self) -> u64 {
        *self.links.entry(self.version).or_default() += 1;
        self.version
    }

    /// A link that was told of everything up to this version goes on from elsewhere, or is gone.
    fn goes_on(&mut self, from: u64) {
        if let Some(links) = self.links.get_mut(&from) {
            *links -= 1;
            if *links == 0 {
                self.links.remove(&from);
            }
        }
    }

    /// What a link has to send that has sent `sent`.
    fn after(&self, sent: Option<u64>) -> Next {
        let Some(sent) = sent else { return Next::Snapshot };
        let Ok(behind) = usize::try_from(self.version.saturating_sub(sent)) else { return Next::Snapshot };
        if behind == 0 {
            return Next::Nothing;
        }
        if behind > self.deltas.len() {
            return Next::Snapshot;
        }
        let from = self.deltas.len() - behind;
        Next::Deltas(self.deltas.range(from..).cloned().collect(), self.version)
    }

    /// Lets go of the oldest deltas: those that all links were told of, and those beyond the limit.
    pub(super) fn shorten(&mut self, limit_bytes: usize) {
        let needed = self.links.first_key_value().map_or(0, |(told, _)| self.version - told);
        let needed = usize::try_from(needed).unwrap_or(usize::MAX);
        while self.deltas.len() > needed || self.bytes > limit_bytes {
            let Some(oldest) = self.deltas.pop_front() else { break };
            self.bytes -= cost(&oldest);
        }
        if self.deltas.capacity() > FEW_DELTAS && self.deltas.len() < self.deltas.capacity() / 8 {
            self.deltas.shrink_to(FEW_DELTAS.max(self.deltas.len() * 2));
        }
    }
}

/// What a delta costs, in bytes of memory.
pub(super) fn cost(delta: &Bytes) -> usize {
    delta.len() + DELTA_BYTES
}

/// A link that sends the interest. What it has not sent yet is kept for it, within the limit, until it is dropped.
pub(crate) struct FeedLink {
    log: Arc<Mutex<Log>>,
    /// Up to which version it was told of everything.
    told: u64,
}

impl FeedLink {
    /// A new link, which has sent nothing yet.
    pub(super) fn new(log: &Arc<Mutex<Log>>) -> Self {
        let told = lock(log).told();
        Self { log: Arc::clone(log), told }
    }

    /// What this link, which has sent `sent` (none when it has sent nothing), has to send next. It is told once: from then
    /// on the link counts as having sent it, or a snapshot of now or later.
    pub(crate) fn next(&mut self, sent: Option<u64>) -> Next {
        let mut log = lock(&self.log);
        let next = log.after(sent);
        if self.told != log.version {
            log.goes_on(self.told);
            self.told = log.told();
            log.shorten(usize::MAX);
        }
        next
    }
}

impl Drop for FeedLink {
    fn drop(&mut self) {
        let mut log = lock(&self.log);
        log.goes_on(self.told);
        log.shorten(usize::MAX);
    }
}
