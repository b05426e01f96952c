//! chitchat's messages over somebody else's authenticated links: what leaves, what is let in, what is
//! counted.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    Chitchat, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable, Heartbeat, Serializable,
};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

use super::pace::Pace;
use super::{DigestSize, GossipConfig, LEAVING, STATE_KEY};

/// Carries gossip messages to an address over an authenticated link.
pub trait Carrier: Send + Sync + 'static {
    /// Sends one message to the node that advertises `to`; never waits.
    ///
    /// Dials when there is no link to it yet. Drops and counts the message when it cannot be taken: gossip
    /// repeats itself.
    fn send_gossip(&self, to: SocketAddr, message: Bytes);
}

/// Messages from the links to gossip: where answers go (the advertised address of the peer) and the bytes.
pub type Incoming = mpsc::Receiver<(SocketAddr, Bytes)>;

/// How many incoming messages wait for gossip by default. Cost: up to this many times
/// [`super::GossipConfig::max_message_bytes`].
pub const INCOMING_DEFAULT: usize = 256;

/// What one entry of a digest takes beyond the id: heartbeat and two versions.
const DIGEST_ENTRY_BYTES: usize = 24;

/// The limit on the digest. chitchat 0.11 subtracts its size from 65,506 unchecked to see how much news fits
/// into an answer, and needs at least 100 bytes left.
const MAX_DIGEST_BYTES: usize = 60_000;

/// The most compressed blocks a message may have. Each becomes at most 64 KiB, so a message costs at most 1
/// MiB when unpacked; without the limit 64 KiB unpack to some 200 MiB. chitchat fills a block with 16 KiB:
/// 2,000 nodes fit.
const MAX_COMPRESSED_BLOCKS: usize = 16;

/// The most that heartbeats and versions may be. They grow by a few hundred a second at most; a value near
/// the end of `u64` would make the node it is about look dead for ever, or end the loop.
pub(super) const MAX_COUNT: u64 = 1 << 48;

/// The number of incarnations from which a warning is logged.
const DIGEST_WARN_NODES: usize = 300;

/// What gossip did since it started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) junk: AtomicU64,
    pub(super) oversized: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) restarts: AtomicU64,
    pub(super) unusable_names: AtomicU64,
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The chitchat server of the moment.
pub(super) enum Slot {
    /// Not started yet.
    Empty,
    /// Running, or ended and about to be replaced.
    Running(Arc<ChitchatHandle>),
    /// Shut down for good.
    Closed,
}

/// What outlives a restart of chitchat: shared by the socket, the supervisor and [`super::Gossip`].
pub(super) struct Shared {
    pub(super) carrier: Arc<dyn Carrier>,
    pub(super) incoming: Mutex<Incoming>,
    pub(super) counters: Counters,
    pub(super) changed: watch::Sender<u64>,
    pub(super) leaving: AtomicBool,
    pub(super) max_message_bytes: usize,
    /// Turns of chitchat's loop: shows that it runs.
    pub(super) turns: AtomicU64,
    slot: RwLock<Slot>,
    digest_nodes: AtomicU64,
    digest_bytes: AtomicU64,
    fingerprint: AtomicU64,
    warned: AtomicBool,
    pace: std::sync::Mutex<Pace>,
    /// The last heartbeat of each incarnation in the digest, and when it was the first time another one.
    heard: std::sync::Mutex<HashMap<ChitchatId, Heard>>,
}

/// A heartbeat, and since when it is known; none while it is the first one, which may be an old one.
#[derive(Clone, Copy)]
struct Heard {
    heartbeat: u64,
    grown: Option<Instant>,
}

impl Shared {
    pub(super) fn new(carrier: Arc<dyn Carrier>, incoming: Incoming, config: &GossipConfig) -> Self {
        let pace =
            Pace::new(config.interval, config.phi_threshold, config.calm_bytes_per_second, Instant::now());
        Self {
            carrier,
            incoming: Mutex::new(incoming),
            counters: Counters::default(),
            changed: watch::Sender::new(0),
            leaving: AtomicBool::new(false),
            max_message_bytes: config.max_message_bytes,
            turns: AtomicU64::new(0),
            slot: RwLock::new(Slot::Empty),
            digest_nodes: AtomicU64::new(0),
            digest_bytes: AtomicU64::new(0),
            fingerprint: AtomicU64::new(0),
            warned: AtomicBool::new(false),
            pace: std::sync::Mutex::new(pace),
            heard: std::sync::Mutex::default(),
        }
    }

    /// Never held across an await.
    pub(super) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<ChitchatId, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be said of an incarnation that the failure detector calls alive or not: whether it is, and whether it is
    /// missed.
    pub(super) fn verdict(&self, id: &ChitchatId, alive: bool) -> (bool, bool) {
        let grown = self.heard().get(id).and_then(|heard| heard.grown);
        let (bytes, now, pace) = (self.digest().bytes, Instant::now(), self.pace());
        let excused = || grown.is_some_and(|grown| pace.excuses(grown, bytes, now));
        (alive || excused(), grown.is_some_and(|grown| pace.is_missed(grown, bytes, now)))
    }

    /// The server of the moment, none before the start and after the end.
    pub(super) fn handle(&self) -> Option<Arc<ChitchatHandle>> {
        match &*self.slot.read().unwrap_or_else(PoisonError::into_inner) {
            Slot::Running(handle) => Some(handle.clone()),
            Slot::Empty | Slot::Closed => None,
        }
    }

    /// Puts a new server in; after [`Self::close`] it is stopped instead, and the answer is false.
    pub(super) fn install(&self, handle: ChitchatHandle) -> bool {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*slot, Slot::Closed) {
            handle.abort();
            return false;
        }
        *slot = Slot::Running(Arc::new(handle));
        true
    }

    /// Ends it for good. The server, if any, still runs: the caller stops it.
    pub(super) fn close(&self) -> Option<Arc<ChitchatHandle>> {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *slot, Slot::Closed) {
            Slot::Running(handle) => Some(handle),
            Slot::Empty | Slot::Closed => None,
        }
    }

    /// The size of the digest when it was last looked at: at most one gossip interval ago.
    pub(super) fn digest(&self) -> DigestSize {
        DigestSize {
            nodes: usize::try_from(self.digest_nodes.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
            bytes: usize::try_from(self.digest_bytes.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
        }
    }

    /// Compares the view with the one before and tells who waits for changes. The lock is free when the
    /// server calls `recv`; should a reader hold it, the change is told unseen.
    fn observe(&self) {
        let Some(handle) = self.handle() else { return };
        let chitchat = handle.chitchat();
        let Ok(chitchat) = chitchat.try_lock() else {
            self.changed.send_modify(|version| *version += 1);
            return;
        };
        let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
        let doomed: HashSet<&ChitchatId> = chitchat.scheduled_for_deletion_nodes().collect();
        let mut hasher = DefaultHasher::new();
        let (mut nodes, mut bytes) = (0, 2);
        for (id, state) in chitchat.node_states() {
            if doomed.contains(id) {
                continue;
            }
            nodes += 1;
            bytes += id.serialized_len() + DIGEST_ENTRY_BYTES;
            self.note_heartbeat(id, state.heartbeat().into());
            let verdict = self.verdict(id, live.contains(id));
            (id, verdict, state.get(STATE_KEY) == Some(LEAVING)).hash(&mut hasher);
        }
        self.note_digest(nodes, bytes);
        self.heard().retain(|id, _| chitchat.node_state(id).is_some());
        let fingerprint = hasher.finish();
        if self.fingerprint.swap(fingerprint, Ordering::Relaxed) != fingerprint {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    fn note_heartbeat(&self, id: &ChitchatId, heartbeat: u64) {
        let mut heard = self.heard();
        match heard.get_mut(id) {
            Some(known) if known.heartbeat < heartbeat => {
                *known = Heard { heartbeat, grown: Some(Instant::now()) };
            }
            Some(_) => {}
            None => {
                heard.insert(id.clone(), Heard { heartbeat, grown: None });
            }
        }
    }

    fn note_digest(&self, nodes: usize, bytes: usize) {
        self.digest_nodes.store(nodes as u64, Ordering::Relaxed);
        self.digest_bytes.store(bytes as u64, Ordering::Relaxed);
        let many = nodes >= DIGEST_WARN_NODES;
        if self.warned.swap(many, Ordering::Relaxed) != many && many {
            let limit = MAX_DIGEST_BYTES;
            tracing::warn!(
                nodes,
                bytes,
                limit,
                "gossip carries very many incarnations: are nodes restarting in a loop?"
            );
        }
    }

    /// Whether the digest stays under its limit when these ids are learned.
    fn has_room_for(&self, chitchat: &Chitchat, ids: &[ChitchatId]) -> bool {
        let entry = |id: &ChitchatId| id.serialized_len() + DIGEST_ENTRY_BYTES;
        let held: usize = chitchat.node_states().keys().map(entry).sum();
        let new: usize = ids.iter().filter(|id| chitchat.node_state(id).is_none()).map(entry).sum();
        new == 0 || held + new <= MAX_DIGEST_BYTES
    }
}

/// Gives chitchat its socket.
pub(super) struct LinkTransport(pub(super) Arc<Shared>);

#[async_trait]
impl Transport for LinkTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(LinkSocket { shared: self.0.clone(), pending: None }))
    }
}

struct LinkSocket {
    shared: Arc<Shared>,
    /// A message taken from the queue and not handed out yet: `recv` may be cancelled at each await.
    pending: Option<(SocketAddr, Bytes)>,
}

#[async_trait]
impl Socket for LinkSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let mut bytes = Vec::with_capacity(message.serialized_len());
        message.serialize(&mut bytes);
        if bytes.len() > self.shared.max_message_bytes {
            count(&self.shared.counters.oversized);
            return Ok(());
        }
        let begins = matches!(message, ChitchatMessage::Syn { .. });
        if begins && !self.shared.pace().begins(to, bytes.len(), Instant::now()) {
            return Ok(());
        }
        count(&self.shared.counters.sent);
        self.shared.carrier.send_gossip(to, bytes.into());
        Ok(())
    }

    /// Never fails: an error would end chitchat's loop. Cancelling it loses nothing.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        // The server comes back here when the previous message, tick or command has been worked off.
        count(&self.shared.turns);
        self.shared.observe();
        loop {
            let (from, bytes) = match self.pending.clone() {
                Some(message) => message,
                None => {
                    let next = self.shared.incoming.lock().await.recv().await;
                    match next {
                        Some(message) => self.pending.insert(message).clone(),
                        // The links are gone, so the node is stopping. Gossip ends by its own command.
                        None => std::future::pending().await,
                    }
                }
            };
            let admitted = self.admit(&bytes).await;
            self.pending = None;
            let counters = &self.shared.counters;
            match admitted {
                Ok(message) => {
                    count(&counters.received);
                    return Ok((from, message));
                }
                Err(Refusal::Oversized) => count(&counters.oversized),
                Err(Refusal::Junk) => count(&counters.junk),
                Err(Refusal::TooManyNodes) => count(&counters.refused),
            }
            tracing::debug!(peer = %from, bytes = bytes.len(), "ignored a gossip message");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Longer than the limit.
    Oversized,
    /// Not a message of chitchat, or one with numbers that no node can have.
    Junk,
    /// It names more new incarnations than the digest has room for.
    TooManyNodes,
}

impl LinkSocket {
    async fn admit(&self, bytes: &[u8]) -> Result<ChitchatMessage, Refusal> {
        if bytes.len() > self.shared.max_message_bytes {
            return Err(Refusal::Oversized);
        }
        let ids = vet(bytes).ok_or(Refusal::Junk)?;
        if !ids.is_empty()
            && let Some(handle) = self.shared.handle()
            && !self.shared.has_room_for(&*handle.chitchat().lock().await, &ids)
        {
            return Err(Refusal::TooManyNodes);
        }
        ChitchatMessage::deserialize(&mut &*bytes).map_err(|_| Refusal::Junk)
    }
}

/// What [`LinkSocket::admit`] makes of a message in a cluster that has room for whom it names: for fuzzing.
pub(crate) fn read(message: &[u8]) -> Option<ChitchatMessage> {
    vet(message)?;
    ChitchatMessage::deserialize(&mut &*message).ok()
}

/// Looks a message over before chitchat decodes it: bounds what it unpacks to and the numbers in its digest.
/// Returns the ids in the digest, none when the message cannot be one of chitchat's (format of chitchat 0.11,
/// version 0: 2 bytes magic, 1 byte version, 1 byte kind, then by kind a digest, the cluster name, a delta).
fn vet(message: &[u8]) -> Option<Vec<ChitchatId>> {
    let (head, mut rest) = message.split_at_checked(4)?;
    let rest = &mut rest;
    let ids = match head[3] {
        0 => {
            let ids = vet_digest(rest)?;
            String::deserialize(rest).ok()?;
            ids
        }
        1 => {
            let ids = vet_digest(rest)?;
            vet_delta(rest)?;
            ids
        }
        2 => {
            vet_delta(rest)?;
            Vec::new()
        }
        3 => Vec::new(),
        _ => return None,
    };
    rest.is_empty().then_some(ids)
}

fn vet_digest(rest: &mut &[u8]) -> Option<Vec<ChitchatId>> {
    let nodes = u16::deserialize(rest).ok()?;
    let mut ids = Vec::new();
    for _ in 0..nodes {
        ids.push(ChitchatId::deserialize(rest).ok()?);
        let counts: [u64; 3] = [
            Heartbeat::deserialize(rest).ok()?.into(),
            u64::deserialize(rest).ok()?,
            u64::deserialize(rest).ok()?,
        ];
        if counts.iter().any(|count| *count > MAX_COUNT) {
            return None;
        }
    }
    Some(ids)
}

/// Steps over the blocks of a delta: tag 0 ends it, 1 is a compressed block, 2 a plain one, both with a
/// length.
fn vet_delta(rest: &mut &[u8]) -> Option<()> {
    let mut compressed = 0;
    loop {
        match u8::deserialize(rest).ok()? {
            0 => return Some(()),
            kind @ (1 | 2) => {
                compressed += usize::from(kind == 1);
                if compressed > MAX_COMPRESSED_BLOCKS {
                    return None;
                }
                let len = u16::deserialize(rest).ok()?;
                *rest = rest.get(usize::from(len)..)?;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> ChitchatId {
        ChitchatId::new(name, 7, SocketAddr::from(([10, 0, 0, 1], 1)))
    }

    fn syn(names: &[&str], heartbeat: u64) -> Vec<u8> {
        let mut bytes = vec![0x53, 0xb0, 0, 0];
        (names.len() as u16).serialize(&mut bytes);
        for name in names {
            id(name).serialize(&mut bytes);
            for number in [heartbeat, 0, 1] {
                number.serialize(&mut bytes);
            }
        }
        "cluster".serialize(&mut bytes);
        bytes
    }

    #[test]
    fn what_chitchat_writes_is_let_in() {
        let message = syn(&["a", "b"], 3);
        assert!(ChitchatMessage::deserialize(&mut &message[..]).is_ok());
        assert_eq!(vet(&message), Some(vec![id("a"), id("b")]));
        let mut bad_cluster = Vec::new();
        ChitchatMessage::BadCluster.serialize(&mut bad_cluster);
        assert_eq!(vet(&bad_cluster), Some(Vec::new()));
    }

    #[test]
    fn what_would_harm_is_not() {
        assert_eq!(vet(&syn(&["a"], u64::MAX)), None, "a heartbeat that nobody can have");
        assert_eq!(vet(&[syn(&["a"], 1), vec![0]].concat()), None, "trailing bytes");
        assert_eq!(vet(b"\x53\xb0\x00"), None);
        let bomb = |blocks: usize| {
            let mut bytes = vec![0x53, 0xb0, 0, 2];
            bytes.extend([1, 1, 0, 0].repeat(blocks));
            bytes.push(0);
            bytes
        };
        assert!(vet(&bomb(MAX_COMPRESSED_BLOCKS)).is_some());
        assert_eq!(vet(&bomb(MAX_COMPRESSED_BLOCKS + 1)), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_look_or_the_decoder_panic(
            kind in 0u8..5, flips in prop::collection::vec((0usize..200, any::<u8>()), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..300), plain in any::<bool>(),
        ) {
            let noise = [vec![0x53, 0xb0, 0, kind], tail].concat();
            let mut bytes = if plain { syn(&["a", "node-b"], 9) } else { noise };
            for (at, byte) in flips {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            if vet(&bytes).is_some() && bytes[3] == 0 && bytes.starts_with(&[0x53, 0xb0, 0]) {
                prop_assert!(ChitchatMessage::deserialize(&mut &bytes[..]).is_ok());
            }
            let _ = ChitchatMessage::deserialize(&mut &bytes[..]);
        }
    }
}
