//! Reads what the parts of a node publish and writes it as the text that Prometheus reads. Done when somebody asks: nothing
//! is counted for it on the way of a message.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use prometheus::proto::{Bucket, Counter, Gauge, LabelPair, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::metrics::{self as m, Kind, Metric};
use crate::core::link::LinkState;
use crate::core::members::MemberState;
use crate::hub::Hub;
use crate::hub::numbers::{FrameCounts, Histogram, Scope};
use crate::hub::peer::PeerQueue;
use crate::node::Node;

/// What the text is, for the header.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of `node` now.
///
/// # Errors
/// When a family is not as the format wants it, which is a fault of ours. Nothing else is affected.
pub(super) fn text(node: &Node) -> prometheus::Result<String> {
    let mut page = Page::new();
    page.node(node);
    page.members(node);
    page.hub(node.hub());
    for peer in newest(node.hub()) {
        page.link(node.hub(), &peer);
        page.queue(node.hub(), &peer);
    }
    page.text()
}

/// The peers, each once: the newest of the runs that are still held for a moment when a peer has restarted.
fn newest(hub: &Hub) -> Vec<Arc<PeerQueue>> {
    let mut peers = hub.peers();
    peers.sort_by(|a, b| (&a.id, b.incarnation).cmp(&(&b.id, a.incarnation)));
    peers.dedup_by(|a, b| a.id == b.id);
    peers
}

/// The families as they fill, in the order of [`m::ALL`].
struct Page {
    families: Vec<MetricFamily>,
    places: HashMap<&'static str, usize>,
}

impl Page {
    fn new() -> Self {
        let families = m::ALL.iter().map(|metric| {
            let mut family = MetricFamily::default();
            family.set_name(metric.name.to_owned());
            family.set_help(metric.help.to_owned());
            family.set_field_type(match metric.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            family
        });
        let places = m::ALL.iter().enumerate().map(|(place, metric)| (metric.name, place));
        Self { families: families.collect(), places: places.collect() }
    }

    fn series(&mut self, metric: &Metric, labels: &[&str], series: prometheus::proto::Metric) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let mut series = series;
        let pairs = metric.labels.iter().zip(labels).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        series.set_label(pairs.collect());
        if let Some(place) = self.places.get(metric.name) {
            self.families[*place].mut_metric().push(series);
        }
    }

    /// One number. Above 2^53 it is rounded: so wants it the format.
    fn add(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let mut series = prometheus::proto::Metric::default();
        if metric.kind == Kind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            series.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            series.set_gauge(gauge);
        }
        self.series(metric, labels, series);
    }

    fn add_number(&mut self, metric: &Metric, labels: &[&str], value: u64) {
        self.add(metric, labels, value as f64);
    }

    fn add_count(&mut self, metric: &Metric, labels: &[&str], counter: &AtomicU64) {
        self.add_number(metric, labels, get(counter));
    }

    fn add_flag(&mut self, metric: &Metric, labels: &[&str], flag: bool) {
        self.add(metric, labels, f64::from(u8::from(flag)));
    }

    fn add_histogram(&mut self, metric: &Metric, labels: &[&str], read: &Histogram) {
        let buckets = read.buckets.iter().map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        });
        let mut histogram = prometheus::proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(read.count);
        histogram.set_sample_sum(read.sum);
        let mut series = prometheus::proto::Metric::default();
        series.set_histogram(histogram);
        self.series(metric, labels, series);
    }

    /// Those of which there is something to say.
    fn text(mut self) -> prometheus::Result<String> {
        self.families.retain(|family| !family.get_metric().is_empty());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn node(&mut self, node: &Node) {
        let hub = node.hub();
        let (version, protocol) = (env!("CARGO_PKG_VERSION"), hub.config.protocol.max.to_string());
        self.add(&m::BUILD_INFO, &[version, &protocol, node.cluster(), hub.id.as_str()], 1.0);
        self.add(&m::START_TIME, &[], node.started_unix_ms() as f64 / 1000.0);
        self.add_flag(&m::LIVE, &[], node.is_live());
        self.add_flag(&m::READY, &[], node.is_ready());
        self.add_flag(&m::DRAINING, &[], node.is_draining());
        self.add_flag(&m::CONFLICT, &[], node.conflict().is_some());
        let (receive, send) = node.udp_buffers();
        self.add_number(&m::UDP_BUFFER, &["receive"], receive as u64);
        self.add_number(&m::UDP_BUFFER, &["send"], send as u64);
        let expires = node.certificate_expires().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.add(&m::CERTIFICATE_EXPIRY, &[], expires.as_secs_f64());
        for (part, beats) in node.beats() {
            self.add_number(&m::TICKS, &[part], beats);
        }
        for part in node.watched() {
            self.add_flag(&m::PART_HANGS, &[part.name], part.hangs);
            self.add(&m::PART_QUIET, &[part.name], seconds(part.quiet_ms));
        }
        self.add_number(&m::MAILBOX, &["registry"], hub.registry_mailbox.depth());
        self.add_number(&m::MAILBOX, &["membership"], hub.membership_mailbox.depth());
    }

    fn members(&mut self, node: &Node) {
        let (members, counters) = (node.members(), &node.hub().counters);
        for (name, state) in [
            ("live", MemberState::Live),
            ("suspect", MemberState::Suspect),
            ("leaving", MemberState::Leaving),
            ("dead", MemberState::Dead),
        ] {
            let count = members.iter().filter(|member| member.state == state).count();
            self.add_number(&m::MEMBERS, &[name], count as u64);
        }
        for (change, counter) in [
            ("joined", &counters.members_joined),
            ("restarted", &counters.members_restarted),
            ("suspected", &counters.members_suspected),
            ("recovered", &counters.members_recovered),
            ("leaving", &counters.members_leaving),
            ("dead", &counters.members_dead),
            ("left", &counters.members_left),
        ] {
            self.add_count(&m::MEMBER_CHANGES, &[change], counter);
        }
        self.add_number(&m::EMITTERS, &[], node.emitters() as u64);
        let digest = node.gossip_digest();
        self.add_number(&m::GOSSIP_DIGEST_NODES, &[], digest.nodes as u64);
        self.add_number(&m::GOSSIP_DIGEST_BYTES, &[], digest.bytes as u64);
        self.add_count(&m::GOSSIP_DROPS, &[], &counters.gossip_drops);
        let mut seeds = node.discovery();
        // The same seed may be given twice.
        seeds.sort_by(|a, b| a.source.cmp(&b.source));
        seeds.dedup_by(|a, b| a.source == b.source);
        for seed in seeds {
            let source = [seed.source.as_str()];
            self.add_number(&m::DISCOVERY_ROUNDS, &source, seed.rounds);
            self.add_flag(&m::DISCOVERY_FAILING, &source, seed.last_error.is_some());
            self.add_number(&m::DISCOVERY_ADDRESSES, &source, seed.addresses.len() as u64);
            if let Some(ago) = seed.last_success {
                self.add(&m::DISCOVERY_SUCCESS_AGE, &source, ago.as_secs_f64());
            }
        }
    }

    fn hub(&mut self, hub: &Hub) {
        let counters = &hub.counters;
        for (metric, label, counter) in [
            (&m::LINK_CHANGES, "up", &counters.links_up),
            (&m::LINK_CHANGES, "down", &counters.links_down),
            (&m::REFUSED, "busy", &counters.refused_busy),
            (&m::REFUSED, "refused", &counters.refused),
            (&m::GAP_FRAMES, "sent", &counters.gaps_sent),
            (&m::GAP_FRAMES, "received", &counters.gaps_received),
            (&m::DIALS, "linked", &counters.dials_linked),
            (&m::DIALS, "refused", &counters.dials_refused),
            (&m::DIALS, "needless", &counters.dials_needless),
            (&m::DIALS, "unreachable", &counters.dials_unreachable),
            (&m::EMITS, "local", &counters.emits.local),
        ] {
            self.add_count(metric, &[label], counter);
        }
        for (metric, counter) in [
            (&m::STALLS, &counters.stalls),
            (&m::VIOLATIONS, &counters.violations),
            (&m::REFUSALS_UNLOGGED, &counters.refusals_unlogged),
            (&m::STATUS_CONNECTIONS, &counters.status_connections),
            (&m::STATUS_REFUSED, &counters.status_refused),
            (&m::DROPS, &counters.drops),
            (&m::INTEREST_REPAIRS, &counters.interest_repairs),
            (&m::DELIVERED, &counters.delivered),
            (&m::NO_NAMESPACE, &counters.no_namespace),
            (&m::REQUESTS_TIMED_OUT, &counters.requests_timed_out),
            (&m::REQUESTS_REFUSED, &counters.requests_refused),
            (&m::LATE_ANSWERS, &counters.late_answers),
            (&m::SERVER_EVENTS_REFUSED, &counters.server_events_refused),
        ] {
            self.add_count(metric, &[], counter);
        }
        for scope in Scope::ALL {
            self.add_number(&m::EMITS, &[scope.name()], counters.emits.of(scope));
            self.add_histogram(&m::EMIT_FANOUT, &[scope.name()], &counters.emits.nodes(scope));
        }
        let (asked, answering) = hub.pending_requests();
        self.add_number(&m::REQUESTS_PENDING, &["asked"], asked as u64);
        self.add_number(&m::REQUESTS_PENDING, &["answering"], answering as u64);
        let peers = hub.routes.peers();
        self.add_number(&m::INTEREST_PEERS, &["known"], peers.known as u64);
        self.add_number(&m::INTEREST_PEERS, &["unknown"], peers.unknown as u64);
        self.add_number(&m::ROUTE_ROWS, &[], hub.routes.rows() as u64);
        self.add_number(&m::INTEREST_VERSION, &[], hub.feed.version());
        self.add_number(&m::OUTBOX_LIMIT, &[], hub.config.link.outbox_bytes as u64);
    }

    /// The link to a peer and what went over it.
    fn link(&mut self, hub: &Hub, peer: &PeerQueue) {
        let (id, counters) = (peer.id.as_str(), &peer.counters);
        let now = peer.state();
        for state in [LinkState::Down, LinkState::Syncing, LinkState::Up] {
            self.add_flag(&m::LINK_STATE, &[id, state.name()], state == now);
        }
        if let Some((round_trip, _)) = peer.link() {
            self.add(&m::LINK_ROUND_TRIP, &[id], round_trip.as_secs_f64());
        }
        let links = get(&counters.links);
        self.add_number(&m::LINKS, &[id], links);
        self.add_number(&m::RESUMES, &[id], links.saturating_sub(1));
        for (direction, bytes, volatile, gap, frames) in [
            (
                "sent",
                &counters.bytes_sent,
                &counters.volatile_sent,
                &counters.gap_sent,
                &counters.sent_by_type,
            ),
            (
                "received",
                &counters.bytes_received,
                &counters.volatile_received,
                &counters.gap_received,
                &counters.received_by_type,
            ),
        ] {
            self.add_count(&m::STREAM_BYTES, &[id, direction], bytes);
            self.add_count(&m::VOLATILE, &[id, direction], volatile);
            self.add_count(&m::PEER_GAP_FRAMES, &[id, direction], gap);
            for (name, firsts) in FrameCounts::NAMES {
                let (frames, bytes) = frames.of(firsts);
                self.add_number(&m::FRAMES, &[id, direction, name], frames);
                self.add_number(&m::FRAME_BYTES, &[id, direction, name], bytes);
            }
        }
        self.add_count(&m::INTEREST_BYTES, &[id], &counters.interest_bytes_sent);
        self.add_count(&m::DUPLICATES, &[id], &counters.duplicates);
        self.add_histogram(&m::DELIVERY_LATENCY, &[id], &counters.latency.seconds());
        self.add_count(&m::CLOCK_BACKWARDS, &[id], &counters.latency.backwards);
        self.add_number(&m::PEER_ROOMS, &[id], hub.routes.rooms(peer.slot) as u64);
        // Read first: what is published in between is no lag of less than nothing.
        let acknowledged = get(&peer.interest_acked);
        self.add_number(&m::INTEREST_LAG, &[id], hub.feed.version().saturating_sub(acknowledged));
    }

    /// What waits for a peer, and what it never gets.
    fn queue(&mut self, hub: &Hub, peer: &PeerQueue) {
        let (id, counters) = (peer.id.as_str(), &peer.counters);
        let (frames, bytes) = peer.depth();
        self.add_number(&m::OUTBOX_FRAMES, &[id], frames);
        self.add_number(&m::OUTBOX_BYTES, &[id], bytes as u64);
        let age_ms = peer.oldest_ms().map_or(0, |since_ms| hub.now_ms().saturating_sub(since_ms));
        self.add(&m::OUTBOX_OLDEST, &[id], seconds(age_ms));
        let given_up = peer.given_up();
        for (reason, count) in [
            ("queue_full", get(&counters.dropped_full)),
            ("waited_too_long", get(&counters.dropped_waited)),
            ("too_large", get(&counters.dropped_too_large)),
            ("not_writable", get(&counters.dropped_volatile)),
            ("peer_gone", get(&counters.dropped_gone)),
            ("displaced", given_up.displaced),
            ("expired", given_up.expired),
        ] {
            self.add_number(&m::PEER_DROPS, &[id, reason], count);
        }
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}
