//! What a node says of itself to another one on which somebody looks at the dashboard: a few counts, and how its links are.
//!
//! Question and answer are volatile broadcasts in a pseudo namespace: nothing is queued or counted for whoever looks, and none
//! is missed in a gap when a node dies. A node that does not know the namespace drops the question, as any for a namespace
//! that it does not have. The answer is JSON, so that later versions can add to it: a reader takes what it knows and 0 for what
//! is missing.

#[cfg(feature = "status")]
pub(crate) mod ask;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::core::frame::{PayloadKind, encode_broadcast};
use crate::hub::guests::VOLATILE;
use crate::hub::peer::{PeerQueue, PeerRole};
use crate::hub::requests::everyone;
use crate::hub::{Hub, lock};

/// The pseudo namespace of question and answer. Socket.IO paths begin with `/`, so it cannot clash.
pub(crate) const SUMMARY: &str = "!summary";
/// How long an answer is given again, in milliseconds: whoever asks faster costs no more.
const KEPT_MS: u64 = 250;
/// The most links that are told.
const MAX_LINKS: usize = 512;

/// What a front here has. Each front counts for itself: a client in two namespaces counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Members of the plain API, or sockets.
    pub(crate) clients: u64,
    /// Rooms with members, as far as the front knows them: those that room events tell of.
    pub(crate) rooms: u64,
}

/// What a node says of itself. Counts of messages are those since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Summary {
    /// The run that says it.
    pub(crate) incarnation: u64,
    /// The version of roomcast.
    pub(crate) version: String,
    /// How long the node runs, in milliseconds.
    pub(crate) uptime_ms: u64,
    /// See [`Census`]: the sums over the fronts.
    pub(crate) clients: u64,
    pub(crate) rooms: u64,
    /// Emitters that are linked to it.
    pub(crate) emitters: u64,
    /// What waits for other nodes or is not acknowledged, all peers.
    pub(crate) queue_frames: u64,
    pub(crate) queue_bytes: u64,
    /// Frames that were not queued.
    pub(crate) drops: u64,
    /// Frames that were lost, to and from other nodes.
    pub(crate) gaps_sent: u64,
    pub(crate) gaps_received: u64,
    /// Its links, in no order.
    pub(crate) links: Vec<LinkSummary>,
}

/// How a node finds one of its links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LinkSummary {
    /// The name of the node at the other end.
    pub(crate) peer: String,
    /// `down`, `syncing` or `up`.
    pub(crate) state: String,
    /// The smoothed round trip in microseconds; none while there is no link.
    pub(crate) round_trip_us: Option<u64>,
}

impl Hub {
    /// What this node says of itself now. Walks over the peers, and over the sockets of Socket.IO servers.
    pub(crate) fn summary(&self) -> Summary {
        let (census, get) = (self.census(), |counter: &AtomicU64| counter.load(Ordering::Relaxed));
        let peers = self.peers();
        let depths = peers.iter().map(|peer| peer.depth());
        let (queue_frames, queue_bytes) =
            depths.fold((0, 0), |sum, (frames, bytes)| (sum.0 + frames, sum.1 + bytes as u64));
        let link = |peer: &Arc<PeerQueue>| LinkSummary {
            peer: peer.id.to_string(),
            state: peer.state().name().to_owned(),
            round_trip_us: peer.link().map(|(time, _)| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        };
        Summary {
            incarnation: self.incarnation.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.now_ms(),
            clients: census.clients,
            rooms: census.rooms,
            emitters: self.guests.len() as u64,
            queue_frames,
            queue_bytes,
            drops: get(&self.counters.drops),
            gaps_sent: get(&self.counters.gaps_sent),
            gaps_received: get(&self.counters.gaps_received),
            links: peers.iter().take(MAX_LINKS).map(link).collect(),
        }
    }

    /// What all fronts here have together.
    fn census(&self) -> Census {
        let mut sum = Census::default();
        let fronts = self.fronts.load();
        for front in fronts.values().flatten().filter_map(|front| front.inbound.upgrade()) {
            let census = front.census();
            sum.clients += census.clients;
            sum.rooms += census.rooms;
        }
        sum
    }

    /// A question (no payload) or an answer of a peer. Whether it was one: else it is for others.
    pub(super) fn summary_arrived(&self, from: &PeerQueue, ns: &str, payload: &Bytes) -> bool {
        if ns != SUMMARY {
            return false;
        }
        // An emitter sees no cluster.
        if from.role == PeerRole::Member {
            if payload.is_empty() {
                self.say_summary(from, self.summary_body());
            } else {
                #[cfg(feature = "status")]
                self.note_summary(&from.id, payload);
            }
        }
        true
    }

    /// The answer: the same one for a moment.
    fn summary_body(&self) -> Bytes {
        let now_ms = self.now_ms();
        let kept = lock(&self.summary).clone();
        if let Some((_, body)) = kept.filter(|(of_ms, _)| now_ms.saturating_sub(*of_ms) < KEPT_MS) {
            return body;
        }
        // It is plain data, which can be written.
        let body = Bytes::from(serde_json::to_vec(&self.summary()).unwrap_or_default());
        *lock(&self.summary) = Some((now_ms, body.clone()));
        body
    }

    /// Sends it now or not at all: who does not get it asks again.
    fn say_summary(&self, peer: &PeerQueue, payload: Bytes) {
        let mut head = everyone(SUMMARY, PayloadKind::Plain);
        head.flags |= VOLATILE;
        let mut encoded = BytesMut::new();
        if encode_broadcast(&head, payload.len(), &mut encoded).is_ok() {
            let _ = peer.send_volatile(None, &encoded, &payload);
        }
    }
}
