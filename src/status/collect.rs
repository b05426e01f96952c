//! Fills in the report from what the parts of a node publish.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use super::report::*;
use crate::core::link::LinkState;
use crate::core::members::{Member, MemberState};
use crate::core::watchdog::Watched;
use crate::gossip::discovery::DiscoveryState;
use crate::hub::Hub;
use crate::hub::guests::GuestState;
use crate::hub::peer::PeerQueue;
use crate::node::Node;

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
        let mut emitters: Vec<EmitterReport> =
            hub.guests.list().iter().map(|guest| EmitterReport::new(guest, now_ms)).collect();
        emitters.sort_by(|a, b| (&a.id, a.incarnation).cmp(&(&b.id, b.incarnation)));
        let ((receive, send), digest) = (node.udp_buffers(), node.gossip_digest());
        Self {
            schema_version: SCHEMA_VERSION,
            node: NodeReport::new(node),
            cluster: node.cluster().to_string(),
            live: node.is_live(),
            ready: node.is_ready(),
            conflict: node.conflict(),
            draining: node.is_draining(),
            members,
            counters: CounterReport::new(hub, &links),
            links,
            emitters,
            interest: InterestReport::new(hub),
            discovery: node.discovery().into_iter().map(DiscoveryReport::new).collect(),
            gossip: GossipReport { digest_nodes: digest.nodes as u64, digest_bytes: digest.bytes as u64 },
            requests: RequestReport::new(hub),
            watchdog: node.watched().into_iter().map(PartReport::new).collect(),
            udp: UdpReport { receive_buffer_bytes: receive as u64, send_buffer_bytes: send as u64 },
        }
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
        let (state, given_up) = (peer.state(), peer.given_up());
        let link = peer.link();
        let up_for = now_ms.saturating_sub(get(&peer.link_since_ms));
        let counters = &peer.counters;
        Self {
            peer: peer.id.to_string(),
            incarnation: peer.incarnation.0,
            address: link.map(|(_, addr)| addr.to_string()),
            state: state.name().to_owned(),
            protocol: peer.version(),
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
            stalls: get(&counters.stalls),
            interest_digest: hub
                .routes
                .version(peer.slot)
                .map_or_else(String::new, |_| hex(hub.routes.digest(peer.slot))),
            drops: DropReport {
                queue_full: get(&counters.dropped_full),
                too_large: get(&counters.dropped_too_large),
                not_writable: get(&counters.dropped_volatile),
                peer_gone: get(&counters.dropped_gone),
                waited_too_long: get(&counters.dropped_waited),
                displaced: given_up.displaced,
                expired: given_up.expired,
            },
        }
    }
}

impl EmitterReport {
    fn new(guest: &GuestState, now_ms: u64) -> Self {
        let GuestState { queue, came_ms, linked } = guest;
        Self {
            id: queue.id.to_string(),
            incarnation: queue.incarnation.0,
            address: queue.link().map(|(_, addr)| addr.to_string()),
            linked: *linked,
            since_ms_ago: now_ms.saturating_sub(*came_ms),
            frames_received: get(&queue.counters.frames_received),
            volatile_received: get(&queue.counters.volatile_received),
            bytes_received: get(&queue.counters.bytes_received),
        }
    }
}

impl InterestReport {
    fn new(hub: &Hub) -> Self {
        let peers = hub.routes.peers();
        Self {
            version: hub.feed.version(),
            digest: hex(get(&hub.interest_digest)),
            rows: hub.routes.rows() as u64,
            peers_known: peers.known as u64,
            peers_unknown: peers.unknown as u64,
        }
    }
}

impl PartReport {
    fn new(part: Watched) -> Self {
        let Watched { name, limit_ms, quiet_ms, hangs, .. } = part;
        Self { part: name.to_owned(), quiet_ms, limit_ms, hangs }
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

impl RequestReport {
    fn new(hub: &Hub) -> Self {
        let (asked, answering) = hub.pending_requests();
        Self {
            asked: asked as u64,
            answering: answering as u64,
            refused: get(&hub.counters.requests_refused),
            late_answers: get(&hub.counters.late_answers),
            server_events_refused: get(&hub.counters.server_events_refused),
        }
    }
}

impl CounterReport {
    fn new(hub: &Hub, links: &[LinkReport]) -> Self {
        let counters = &hub.counters;
        Self {
            emits: counters.emits(),
            heads_encoded: counters.encoded(),
            drops: get(&counters.drops),
            delivered: get(&counters.delivered),
            no_namespace: get(&counters.no_namespace),
            violations: get(&counters.violations),
            refused_busy: get(&counters.refused_busy),
            refused: get(&counters.refused),
            refusals_unlogged: get(&counters.refusals_unlogged),
            status_refused: get(&counters.status_refused),
            dials_failed: get(&counters.dials_failed),
            gossip_drops: get(&counters.gossip_drops),
            stalls: get(&counters.stalls),
            interest_repairs: get(&counters.interest_repairs),
            frames_sent: links.iter().map(|link| link.frames_sent).sum(),
            frames_received: links.iter().map(|link| link.frames_received).sum(),
        }
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A digest: text, because readers in JavaScript have no 64-bit numbers.
fn hex(digest: u64) -> String {
    format!("{digest:016x}")
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
