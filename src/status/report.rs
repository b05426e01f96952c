//! The status of a node as plain data: what `GET /status` answers.
//!
//! Times are in the unit that the name of the field ends with. Counters begin at 0 when the node starts (those of a link:
//! with this run of the peer) and only grow.

use serde::{Deserialize, Serialize};

/// The version of these types. It grows when a field changes its meaning or goes; a reader ignores fields that it does
/// not know, which may come at any time.
pub const SCHEMA_VERSION: u32 = 1;

/// The status of one node, as that node sees the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The node that says this.
    pub node: NodeReport,
    /// The name of the cluster.
    pub cluster: String,
    /// Whether the node's own parts work: false once it has stopped or one of them hangs. As `/livez`.
    pub live: bool,
    /// Whether the node takes part in its cluster and can be sent clients. As `/readyz`.
    pub ready: bool,
    /// Another process uses this node's id and is newer, so that the cluster refuses this one: which, and what to do. None
    /// when there is none, and again a few seconds after another node has let this one in.
    #[serde(default)]
    pub conflict: Option<String>,
    /// Whether the node is leaving the cluster or has left it.
    pub draining: bool,
    /// The members of the cluster, this node included, ordered by id.
    pub members: Vec<MemberReport>,
    /// What this node keeps for each peer, whether or not its link is up, ordered by id.
    pub links: Vec<LinkReport>,
    /// The emitters that are linked to this node, or were within
    /// [`resume_window`](crate::config::LinkConfig::resume_window): at most
    /// [`max_emitters`](crate::config::LinkConfig::max_emitters), ordered by id. Empty from a node that is too old to say.
    #[serde(default)]
    pub emitters: Vec<EmitterReport>,
    /// What is known of rooms.
    pub interest: InterestReport,
    /// How other nodes are looked for, one for each seed.
    pub discovery: Vec<DiscoveryReport>,
    /// What gossip carries.
    pub gossip: GossipReport,
    /// The UDP socket.
    pub udp: UdpReport,
    /// Questions to and from other nodes. All zero from a node that is too old to say.
    #[serde(default)]
    pub requests: RequestReport,
    /// Whether the parts of this node run. Empty from a node that is too old to say.
    #[serde(default)]
    pub watchdog: Vec<PartReport>,
    /// Counts of this node.
    pub counters: CounterReport,
}

/// One part of the node that has to run: `registry` and `membership` (actors), `gossip`, `runtime` (tokio).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PartReport {
    /// Its name.
    pub part: String,
    /// For how long it has not run, in milliseconds in which the process ran.
    pub quiet_ms: u64,
    /// How long that may be: see [`crate::Config::watchdog_limit`].
    pub limit_ms: u64,
    /// Whether it is longer: then the node is not live.
    pub hangs: bool,
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeReport {
    /// Its name.
    pub id: String,
    /// Its run: a restart under the same name has a higher one.
    pub incarnation: u64,
    /// The version of roomcast.
    pub version: String,
    /// When it started, RFC 3339 in UTC.
    pub started: String,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// How long it runs, in milliseconds.
    pub uptime_ms: u64,
    /// The UDP address that it listens on.
    pub listen: String,
    /// The UDP address under which others dial it.
    pub address: String,
    /// When its certificate expires, RFC 3339 in UTC. It is renewed long before.
    pub certificate_expires: String,
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberReport {
    /// Its name.
    pub id: String,
    /// Its run.
    pub incarnation: u64,
    /// The UDP address under which it is dialled.
    pub address: String,
    /// `live`, `suspect` (either the link or gossip says it is gone), `leaving` or `dead` (both say so).
    pub state: String,
    /// Whether a link to it stands. True for this node itself.
    pub linked: bool,
    /// How long it is in this state, in milliseconds.
    pub since_ms_ago: u64,
}

/// What this node keeps for one run of one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LinkReport {
    /// The name of the peer.
    pub peer: String,
    /// Its run.
    pub incarnation: u64,
    /// The UDP address at the other end; none while there is no link.
    pub address: Option<String>,
    /// `down`, `syncing` (its rooms are not known: it gets every message) or `up`.
    pub state: String,
    /// The protocol version of the link that stands or stood last; none before the first, and from a node that is too old to
    /// say.
    #[serde(default)]
    pub protocol: Option<u16>,
    /// The smoothed round trip of QUIC, in microseconds; none while there is no link.
    pub round_trip_us: Option<u64>,
    /// How long the link stands, in milliseconds; none while there is no link.
    pub uptime_ms: Option<u64>,
    /// How many links there were to this run of the peer.
    pub links: u64,
    /// The version of the peer's interest that is held here.
    pub interest_version_held: u64,
    /// The version of this node's interest that the peer has acknowledged. See [`InterestReport::version`].
    pub interest_version_acknowledged: u64,
    /// The rooms that the peer advertises, as held here. Beside rooms with members it advertises one for each Socket.IO
    /// server, and for each exact namespace one that stands for everyone and one where server events are handled.
    pub rooms: u64,
    /// Frames for the peer that are queued or not acknowledged.
    pub queue_frames: u64,
    /// Their bytes, heads included.
    pub queue_bytes: u64,
    /// Broadcast frames queued for the peer, sent or not yet, without volatile ones.
    pub frames_sent: u64,
    /// New broadcast frames from the peer, without volatile ones.
    pub frames_received: u64,
    /// Bytes written to the link's data stream, frames of every kind.
    pub bytes_sent: u64,
    /// Bytes read from the link's data stream, frames of every kind.
    pub bytes_received: u64,
    /// Bytes of interest among the bytes sent.
    pub interest_bytes_sent: u64,
    /// Volatile frames handed to the link.
    pub volatile_sent: u64,
    /// Volatile frames from the peer.
    pub volatile_received: u64,
    /// Frames from the peer that had come before, and were ignored.
    pub duplicates: u64,
    /// Frames for the peer that were lost for good.
    pub gap_frames_sent: u64,
    /// Frames from the peer that were lost for good.
    pub gap_frames_received: u64,
    /// Links to this run of the peer that stood, got nothing done and were replaced. 0 from a node that is too old to say.
    #[serde(default)]
    pub stalls: u64,
    /// The digest of the rooms that are held of the peer, 16 hexadecimal digits. Equal to
    /// [`InterestReport::digest`] of the peer itself, at the same version, when the two agree. Empty while the peer's rooms
    /// are not known.
    #[serde(default)]
    pub interest_digest: String,
    /// Frames for the peer that were not queued or not kept.
    pub drops: DropReport,
}

/// What this node keeps for one emitter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EmitterReport {
    /// The name that it has made up for itself.
    pub id: String,
    /// Its run.
    pub incarnation: u64,
    /// The UDP address at the other end; none while there is no link.
    pub address: Option<String>,
    /// Whether a link to it stands.
    pub linked: bool,
    /// How long ago it came first, in milliseconds.
    pub since_ms_ago: u64,
    /// New frames from it, without volatile ones.
    pub frames_received: u64,
    /// Volatile frames from it.
    pub volatile_received: u64,
    /// Bytes read from the link's data stream, frames of every kind.
    pub bytes_received: u64,
}

/// Frames that were not queued, or not kept until the peer had them, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DropReport {
    /// The queue was at its limit.
    pub queue_full: u64,
    /// The frame was over the limit of a frame.
    pub too_large: u64,
    /// Volatile, and it could not go at once.
    pub not_writable: u64,
    /// The peer was gone.
    pub peer_gone: u64,
    /// The queue had no room until the deadline of the policy `wait`. This and the next two are zero from a node that is too
    /// old to say.
    #[serde(default)]
    pub waited_too_long: u64,
    /// Queued before, and given up to make room for newer ones (policy `drop_oldest`). Those that the peer lacks are in
    /// `gap_frames_sent`, too, as soon as that is known.
    #[serde(default)]
    pub displaced: u64,
    /// Queued before, and given up because of their age (`resume_window`, `max_queue_age`); in `gap_frames_sent` as above.
    #[serde(default)]
    pub expired: u64,
}

/// What is known of rooms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InterestReport {
    /// The newest version of this node's own interest.
    pub version: u64,
    /// The digest of this node's own interest (namespaces, how they route, rooms), 16 hexadecimal digits; see
    /// [`LinkReport::interest_digest`]. Empty from a node that is too old to say.
    #[serde(default)]
    pub digest: String,
    /// Pairs of room and peer that are held here: the rooms of all peers, added up.
    pub rows: u64,
    /// Peers whose rooms are known.
    pub peers_known: u64,
    /// Peers that get every message because their rooms are not known.
    pub peers_unknown: u64,
}

/// How one seed is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiscoveryReport {
    /// The seed as it was given.
    pub source: String,
    /// How long ago it last gave addresses, in milliseconds; none when it never did.
    pub last_success_ms_ago: Option<u64>,
    /// What went wrong the last time; none when it went well.
    pub last_error: Option<String>,
    /// The addresses that it gave last.
    pub addresses: Vec<String>,
    /// How often it was looked up.
    pub rounds: u64,
}

/// What gossip carries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GossipReport {
    /// Incarnations in the digest, this node's and those of dead nodes included. Gossip fails at about 600.
    pub digest_nodes: u64,
    /// The size of the digest, in bytes. The limit is 60,000.
    pub digest_bytes: u64,
}

/// The UDP socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UdpReport {
    /// The receive buffer that the system granted, in bytes.
    pub receive_buffer_bytes: u64,
    /// The send buffer that the system granted, in bytes.
    pub send_buffer_bytes: u64,
}

/// Questions to and from other nodes: acknowledgements, rooms, sockets, counts, server-side emits with an acknowledgement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RequestReport {
    /// Questions of this node that wait for answers now. The limit is
    /// [`max_requests`](crate::config::LinkConfig::max_requests).
    pub asked: u64,
    /// Questions that are being answered here now, those of this node to itself included. The limit is
    /// [`max_serving_per_peer`](crate::config::LinkConfig::max_serving_per_peer) for each peer.
    pub answering: u64,
    /// Questions of peers that were refused as too many at a time. A counter.
    pub refused: u64,
    /// Answers that came when nobody waited for them any more. A counter.
    pub late_answers: u64,
    /// Events of other servers that were refused because too many were being handled here. A counter.
    pub server_events_refused: u64,
}

/// Counts of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CounterReport {
    /// Messages that fronts handed in for other nodes, also those that no other node wanted.
    pub emits: u64,
    /// Heads encoded: at most one for a message, however many nodes get it.
    #[serde(default)]
    pub heads_encoded: u64,
    /// Frames that were not queued, any peer and reason.
    pub drops: u64,
    /// Messages from other nodes that were handed to a front.
    pub delivered: u64,
    /// Messages from other nodes for a namespace that is not here.
    pub no_namespace: u64,
    /// Links refused or ended for a protocol violation.
    pub violations: u64,
    /// Incoming connections that were refused because too many were under way.
    pub refused_busy: u64,
    /// Incoming connections that were refused for another reason, for example a wrong cluster.
    pub refused: u64,
    /// Refusals, in either direction, whose reason was new and was not logged because too many were. 0 from a node that is
    /// too old to say, as the next one.
    #[serde(default)]
    pub refusals_unlogged: u64,
    /// Connections to the status endpoint that were closed at once as too many.
    #[serde(default)]
    pub status_refused: u64,
    /// Dials that did not end in a link.
    pub dials_failed: u64,
    /// Gossip messages that were dropped because too many were under way.
    pub gossip_drops: u64,
    /// Links that stood, got nothing done and were replaced. 0 from a node that is too old to say.
    #[serde(default)]
    pub stalls: u64,
    /// Snapshots of this node's interest that were sent because a peer held other rooms than it should. 0 from a node that
    /// is too old to say.
    #[serde(default)]
    pub interest_repairs: u64,
    /// Frames queued, whether or not they are sent yet: the sum of [`LinkReport::frames_sent`] over the peers that are in `links`.
    pub frames_sent: u64,
    /// Frames received, the sum over the peers that are in `links`.
    pub frames_received: u64,
}

impl Report {
    /// Why the node is not ready, in a few words for an operator; none when it is.
    pub fn unready_reason(&self) -> Option<String> {
        if self.ready {
            return None;
        }
        if self.draining {
            return Some("the node is leaving or has left the cluster".to_owned());
        }
        if self.conflict.is_some() {
            return self.conflict.clone();
        }
        let waits: Vec<&str> =
            self.discovery.iter().filter(|seed| seed.rounds == 0).map(|seed| &*seed.source).collect();
        if !waits.is_empty() {
            return Some(format!("the node has not looked at all seeds yet: {}", waits.join(", ")));
        }
        let seed = |seed: &DiscoveryReport| match &seed.last_error {
            Some(error) => format!("{} ({error})", seed.source),
            None => seed.source.clone(),
        };
        let seeds: Vec<String> = self.discovery.iter().map(seed).collect();
        Some(format!("no other node is linked and in sync yet; it is looked for at {}", seeds.join(", ")))
    }
}
