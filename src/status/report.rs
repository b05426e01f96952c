//! The status of a node as plain data: what `GET /status` answers.
//!
//! Times are in the unit that the name of the field ends with. Counters begin at 0 when the node starts (those of a link:
//! with this run of the peer) and only grow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::core::link::LinkState;
use crate::core::members::{Member, MemberState};
use crate::gossip::discovery::DiscoveryState;
use crate::hub::Hub;
use crate::hub::peer::PeerQueue;
use crate::node::Node;

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
    /// Whether the node is leaving the cluster or has left it.
    pub draining: bool,
    /// The members of the cluster, this node included, ordered by id.
    pub members: Vec<MemberReport>,
    /// What this node keeps for each peer, whether or not its link is up, ordered by id.
    pub links: Vec<LinkReport>,
    /// What is known of rooms.
    pub interest: InterestReport,
    /// How other nodes are looked for, one for each seed.
    pub discovery: Vec<DiscoveryReport>,
    /// What gossip carries.
    pub gossip: GossipReport,
    /// The UDP socket.
    pub udp: UdpReport,
    /// Counts of this node.
    pub counters: CounterReport,
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
    /// The rooms that the peer advertises, as held here.
    pub rooms: u64,
    /// Frames for the peer that are queued or not acknowledged.
    pub queue_frames: u64,
    /// Their bytes, heads included.
    pub queue_bytes: u64,
    /// Broadcast frames queued for the peer, without volatile ones.
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
    /// Frames for the peer that were not queued.
    pub drops: DropReport,
}

/// Frames that were not queued, by reason.
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
}

/// What is known of rooms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InterestReport {
    /// The newest version of this node's own interest.
    pub version: u64,
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

/// Counts of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CounterReport {
    /// Messages that fronts handed in for other nodes, also those that no other node wanted.
    pub emits: u64,
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
    /// Dials that did not end in a link.
    pub dials_failed: u64,
    /// Gossip messages that were dropped because too many were under way.
    pub gossip_drops: u64,
    /// Frames sent, the sum over the peers that are in `links`.
    pub frames_sent: u64,
    /// Frames received, the sum over the peers that are in `links`.
    pub frames_received: u64,
}

impl Report {
    /// The status of `node` now. The parts are read one after the other, so numbers may be apart by what happened in
    /// between.
    pub fn collect(node: &Node) -> Self {
        let hub = node.hub();
        let now_ms = hub.now_ms();
        let mut members: Vec<MemberReport> =
            node.members().iter().map(|member| MemberReport::new(member, now_ms)).collect();
        members.sort_by(|a, b| a.id.cmp(&b.id));
        let mut links: Vec<LinkReport> =
            hub.peers().iter().map(|peer| LinkReport::new(hub, peer, now_ms)).collect();
        links.sort_by(|a, b| (&a.peer, a.incarnation).cmp(&(&b.peer, b.incarnation)));
        let ((receive, send), digest) = (node.udp_buffers(), node.gossip_digest());
        Self {
            schema_version: SCHEMA_VERSION,
            node: NodeReport::new(node),
            cluster: node.cluster().to_string(),
            live: node.is_live(),
            ready: node.is_ready(),
            draining: node.is_draining(),
            members,
            counters: CounterReport::new(hub, &links),
            links,
            interest: InterestReport::new(hub),
            discovery: node.discovery().into_iter().map(DiscoveryReport::new).collect(),
            gossip: GossipReport { digest_nodes: digest.nodes as u64, digest_bytes: digest.bytes as u64 },
            udp: UdpReport { receive_buffer_bytes: receive as u64, send_buffer_bytes: send as u64 },
        }
    }

    /// Why the node is not ready, in a few words for an operator; none when it is.
    pub fn unready_reason(&self) -> Option<String> {
        if self.ready {
            return None;
        }
        if self.draining {
            return Some("the node is leaving or has left the cluster".to_owned());
        }
        let waits: Vec<&str> =
            self.discovery.iter().filter(|seed| seed.rounds == 0).map(|seed| &*seed.source).collect();
        Some(format!("the node has not looked at all seeds yet: {}", waits.join(", ")))
    }
}

impl NodeReport {
    fn new(node: &Node) -> Self {
        let (hub, started_unix_ms) = (node.hub(), node.started_unix_ms());
        let expires = node.certificate_expires().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id: hub.id.to_string(),
            incarnation: hub.incarnation.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: rfc3339(started_unix_ms),
            started_unix_ms,
            uptime_ms: hub.now_ms(),
            listen: node.local_addr().to_string(),
            address: node.advertise_addr().to_string(),
            certificate_expires: rfc3339(saturate(expires.as_millis())),
        }
    }
}

impl MemberReport {
    fn new(member: &Member, now_ms: u64) -> Self {
        let state = match member.state {
            MemberState::Live => "live",
            MemberState::Suspect => "suspect",
            MemberState::Leaving => "leaving",
            MemberState::Dead => "dead",
        };
        Self {
            id: member.id.to_string(),
            incarnation: member.incarnation.0,
            address: member.addr.to_string(),
            state: state.to_owned(),
            linked: member.linked,
            since_ms_ago: now_ms.saturating_sub(member.since_ms),
        }
    }
}

impl LinkReport {
    fn new(hub: &Hub, peer: &PeerQueue, now_ms: u64) -> Self {
        let (queue_frames, queue_bytes) = peer.depth();
        let state = peer.state();
        let link = peer.link();
        let up_for = now_ms.saturating_sub(get(&peer.link_since_ms));
        let counters = &peer.counters;
        Self {
            peer: peer.id.to_string(),
            incarnation: peer.incarnation.0,
            address: link.map(|(_, addr)| addr.to_string()),
            state: state.name().to_owned(),
            round_trip_us: link.map(|(round_trip, _)| saturate(round_trip.as_micros())),
            uptime_ms: (state != LinkState::Down).then_some(up_for),
            links: get(&counters.links),
            interest_version_held: get(&peer.interest_held),
            interest_version_acknowledged: get(&peer.interest_acked),
            rooms: hub.routes.rooms(peer.slot) as u64,
            queue_frames,
            queue_bytes: queue_bytes as u64,
            frames_sent: get(&counters.frames_sent),
            frames_received: get(&counters.frames_received),
            bytes_sent: get(&counters.bytes_sent),
            bytes_received: get(&counters.bytes_received),
            interest_bytes_sent: get(&counters.interest_bytes_sent),
            volatile_sent: get(&counters.volatile_sent),
            volatile_received: get(&counters.volatile_received),
            duplicates: get(&counters.duplicates),
            gap_frames_sent: get(&counters.gap_sent),
            gap_frames_received: get(&counters.gap_received),
            drops: DropReport {
                queue_full: get(&counters.dropped_full),
                too_large: get(&counters.dropped_too_large),
                not_writable: get(&counters.dropped_volatile),
                peer_gone: get(&counters.dropped_gone),
            },
        }
    }
}

impl InterestReport {
    fn new(hub: &Hub) -> Self {
        let peers = hub.routes.peers();
        Self {
            version: hub.feed.version(),
            rows: hub.routes.rows() as u64,
            peers_known: peers.known as u64,
            peers_unknown: peers.unknown as u64,
        }
    }
}

impl DiscoveryReport {
    fn new(state: DiscoveryState) -> Self {
        Self {
            source: state.source,
            last_success_ms_ago: state.last_success.map(|ago| saturate(ago.as_millis())),
            last_error: state.last_error,
            addresses: state.addresses.iter().map(ToString::to_string).collect(),
            rounds: state.rounds,
        }
    }
}

impl CounterReport {
    fn new(hub: &Hub, links: &[LinkReport]) -> Self {
        let counters = &hub.counters;
        Self {
            emits: get(&counters.emits),
            drops: get(&counters.drops),
            delivered: get(&counters.delivered),
            no_namespace: get(&counters.no_namespace),
            violations: get(&counters.violations),
            refused_busy: get(&counters.refused_busy),
            refused: get(&counters.refused),
            dials_failed: get(&counters.dials_failed),
            gossip_drops: get(&counters.gossip_drops),
            frames_sent: links.iter().map(|link| link.frames_sent).sum(),
            frames_received: links.iter().map(|link| link.frames_received).sum(),
        }
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn saturate(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// A time in UTC as RFC 3339 with milliseconds. Days to dates as in the proleptic Gregorian calendar, counted in eras of
/// 400 years (146,097 days) that begin on a 1st of March, so that the leap day is the last of its year.
fn rfc3339(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_709_208_000, "2024-02-29T12:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(unix_s * 1000), text);
        }
        assert_eq!(rfc3339(1_234_567_890_123), "2009-02-13T23:31:30.123Z");
    }
}
