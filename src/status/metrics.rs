//! The names of all metrics, with their types, labels and help texts. `scrape.rs` fills them in; `docs/operations.md` lists
//! them for operators; a test compares the two, and the rules and the dashboard beside the Kubernetes manifests.
//!
//! Names begin with `roomcast_`, and end with the unit (`_seconds`, `_bytes`) and with `_total` for counters. Labels have few
//! values: nodes of the cluster, seeds of the settings and fixed words; never a room or a namespace.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, but for a restart; of a peer, also when the peer restarts.
    Counter,
    /// What is now.
    Gauge,
    /// How many were at most each bound.
    Histogram,
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub(super) const $id: Metric =
                Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// All of them, in the order in which they are listed.
        pub(super) const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    // The node.
    BUILD_INFO = Gauge "roomcast_build_info" ["version", "protocol", "cluster", "node"] "1; the labels say what runs here";
    START_TIME = Gauge "roomcast_start_time_seconds" [] "When the node started, in seconds since the Unix epoch";
    LIVE = Gauge "roomcast_live" [] "1 while the parts of the node run, as /livez says";
    READY = Gauge "roomcast_ready" [] "1 while the node is to be sent clients, as /readyz says";
    DRAINING = Gauge "roomcast_draining" [] "1 from when the node leaves";
    CONFLICT = Gauge "roomcast_conflict" [] "1 while another process with the id of this node is newer";
    UDP_BUFFER = Gauge "roomcast_udp_buffer_bytes" ["direction"] "Socket buffer that the system granted; 0 for a socket that was passed in";
    CERTIFICATE_EXPIRY = Gauge "roomcast_certificate_expiry_timestamp_seconds" [] "When the certificate of the node ends, in seconds since the Unix epoch";
    TICKS = Counter "roomcast_ticks_total" ["part"] "How often a part of the node has run";
    PART_HANGS = Gauge "roomcast_part_hangs" ["part"] "1 while a part of the node has not run for longer than its limit";
    PART_QUIET = Gauge "roomcast_part_quiet_seconds" ["part"] "How long a part of the node has not run";
    MAILBOX = Gauge "roomcast_actor_mailbox_messages" ["actor"] "Messages that an actor has not handled yet";

    STATUS_CONNECTIONS = Gauge "roomcast_status_connections" [] "Connections to the status endpoint";
    STATUS_REFUSED = Counter "roomcast_status_connections_refused_total" [] "Connections to the status endpoint that were one too many";

    // Members.
    MEMBERS = Gauge "roomcast_members" ["state"] "Members of the cluster as this node sees them, itself included";
    MEMBER_CHANGES = Counter "roomcast_member_changes_total" ["change"] "Changes in the list of members";
    EMITTERS = Gauge "roomcast_emitters" [] "Emitters that are linked to this node, or were a moment ago";
    GOSSIP_DIGEST_NODES = Gauge "roomcast_gossip_digest_nodes" [] "Incarnations in each gossip message";
    GOSSIP_DIGEST_BYTES = Gauge "roomcast_gossip_digest_bytes" [] "Size of the list of incarnations in each gossip message";
    GOSSIP_DROPS = Counter "roomcast_gossip_drops_total" [] "Gossip messages that were dropped because too many were under way";
    DISCOVERY_ROUNDS = Counter "roomcast_discovery_rounds_total" ["source"] "How often a seed was looked up";
    DISCOVERY_FAILING = Gauge "roomcast_discovery_failing" ["source"] "1 while the last look-up of a seed failed";
    DISCOVERY_ADDRESSES = Gauge "roomcast_discovery_addresses" ["source"] "Addresses that a seed gave last, own ones included";
    DISCOVERY_SUCCESS_AGE = Gauge "roomcast_discovery_last_success_age_seconds" ["source"] "How long ago a seed last gave addresses; missing until it does";

    // Links.
    LINK_STATE = Gauge "roomcast_link_state" ["peer", "state"] "1 for the state of the link to a peer, 0 for the others";
    LINK_ROUND_TRIP = Gauge "roomcast_link_round_trip_seconds" ["peer"] "Smoothed round trip of the link; missing while it is down";
    LINKS = Counter "roomcast_links_total" ["peer"] "Connections that became the link to this run of a peer";
    RESUMES = Counter "roomcast_link_resumes_total" ["peer"] "Of these, those that went on where an earlier one ended";
    LINK_CHANGES = Counter "roomcast_link_changes_total" ["change"] "Links that came up and that went down, all peers";
    STALLS = Counter "roomcast_link_stalls_total" [] "Links that stood, got nothing done and were replaced";
    DIALS = Counter "roomcast_dials_total" ["result"] "Dials that ended, by what came of them";
    REFUSED = Counter "roomcast_incoming_refused_total" ["reason"] "Incoming connections that were not used";
    REFUSALS_UNLOGGED = Counter "roomcast_refusals_unlogged_total" [] "Refusals for a new reason that were not logged because too many were";
    VIOLATIONS = Counter "roomcast_violations_total" [] "Links refused or ended for a protocol violation";
    STREAM_BYTES = Counter "roomcast_stream_bytes_total" ["peer", "direction"] "Bytes of the data stream, all frames";
    INTEREST_BYTES = Counter "roomcast_interest_sent_bytes_total" ["peer"] "Of the bytes sent, those that say which rooms are here";
    FRAMES = Counter "roomcast_frames_total" ["peer", "direction", "type"] "Frames of the data stream, by type; repeated ones are not counted again";
    FRAME_BYTES = Counter "roomcast_frame_bytes_total" ["peer", "direction", "type"] "Bytes of these frames, with their heads";
    VOLATILE = Counter "roomcast_volatile_frames_total" ["peer", "direction"] "Volatile messages, which go beside the data stream";
    DUPLICATES = Counter "roomcast_duplicate_frames_total" ["peer"] "Frames that came again after a break and were left out";

    // Queues and losses.
    OUTBOX_FRAMES = Gauge "roomcast_outbox_frames" ["peer"] "Frames that are queued for a peer or not acknowledged";
    OUTBOX_BYTES = Gauge "roomcast_outbox_bytes" ["peer"] "Bytes that are queued for a peer or not acknowledged";
    OUTBOX_OLDEST = Gauge "roomcast_outbox_oldest_seconds" ["peer"] "Age of the oldest of these frames; 0 when there is none";
    OUTBOX_LIMIT = Gauge "roomcast_outbox_limit_bytes" [] "Bound of the queue of each peer";
    DROPS = Counter "roomcast_drops_total" [] "Messages that were not queued for a peer, any reason, all peers";
    PEER_DROPS = Counter "roomcast_peer_drops_total" ["peer", "reason"] "Messages for a peer that were not queued, or were given up in the queue";
    GAP_FRAMES = Counter "roomcast_gap_frames_total" ["direction"] "Frames that were lost, all peers, also those that have gone";
    PEER_GAP_FRAMES = Counter "roomcast_peer_gap_frames_total" ["peer", "direction"] "Frames that were lost on the way to or from this run of a peer";

    // Rooms.
    ROUTE_ROWS = Gauge "roomcast_route_rows" [] "Rooms of all other nodes that this node knows of";
    PEER_ROOMS = Gauge "roomcast_peer_rooms" ["peer"] "Rooms that a peer says it has";
    INTEREST_VERSION = Gauge "roomcast_interest_version" [] "Version of the list of rooms of this node";
    INTEREST_LAG = Gauge "roomcast_interest_lag_versions" ["peer"] "Versions of that list that a peer has not applied yet";
    INTEREST_PEERS = Gauge "roomcast_interest_peers" ["rooms"] "Peers whose rooms are known, and those that get everything because they are not";
    INTEREST_REPAIRS = Counter "roomcast_interest_repairs_total" [] "Lists of rooms that were sent again because a peer held another one; should stay 0";

    // Messages.
    EMITS = Counter "roomcast_emits_total" ["scope"] "Broadcasts of this node and of its emitters";
    EMIT_FANOUT = Histogram "roomcast_emit_fanout_nodes" ["scope"] "For how many other nodes broadcasts were";
    DELIVERED = Counter "roomcast_delivered_total" [] "Messages of other nodes that were handed to members here";
    NO_NAMESPACE = Counter "roomcast_no_namespace_total" [] "Messages of other nodes for a namespace that is not here";
    DELIVERY_LATENCY = Histogram "roomcast_delivery_latency_seconds" ["peer"] "From queued at a peer to applied here, one sample in 100 ms, by the clocks of both";
    CLOCK_BACKWARDS = Counter "roomcast_delivery_clock_backwards_total" ["peer"] "Of these, those that came before they were sent: the clocks differ";
    REQUESTS_PENDING = Gauge "roomcast_requests_pending" ["side"] "Questions of this node that wait for answers, and those of others that are being answered";
    REQUESTS_TIMED_OUT = Counter "roomcast_requests_timed_out_total" [] "Questions of this node that not everyone answered in time";
    REQUESTS_REFUSED = Counter "roomcast_requests_refused_total" [] "Questions of other nodes that were answered with busy";
    LATE_ANSWERS = Counter "roomcast_late_answers_total" [] "Answers that nobody waited for any more";
    SERVER_EVENTS_REFUSED = Counter "roomcast_server_events_refused_total" [] "Events of other servers that were refused because too many were being handled";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn read(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The words of a text that look like a metric, without what a histogram adds.
    fn mentioned(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let words = words.filter(|word| word.starts_with("roomcast_") && !word.ends_with('_'));
        let base = |word: &str| {
            let histogram =
                |name: &str| ALL.iter().any(|metric| metric.kind == Kind::Histogram && metric.name == name);
            let stripped = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
            stripped.filter(|name| histogram(name)).unwrap_or(word).to_owned()
        };
        words.map(base).collect()
    }

    fn names() -> BTreeSet<String> {
        ALL.iter().map(|metric| metric.name.to_owned()).collect()
    }

    #[test]
    fn names_say_unit_and_type() {
        assert_eq!(names().len(), ALL.len(), "a name twice");
        for Metric { name, kind, labels, help } in ALL {
            assert!(
                name.starts_with("roomcast_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            );
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            for unit in ["ms", "us", "millis", "micros", "kib", "mib", "ratio_percent"] {
                assert!(!name.split('_').any(|part| part == unit), "{name}: base units only");
            }
            for (word, end) in [("bytes", "bytes"), ("seconds", "seconds")] {
                if name.contains(word) {
                    assert!(name.trim_end_matches("_total").ends_with(end), "{name}: the unit comes last");
                }
            }
            assert!(!help.is_empty() && !help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            let allowed = [
                "version",
                "protocol",
                "cluster",
                "node",
                "direction",
                "part",
                "actor",
                "state",
                "change",
                "source",
                "peer",
                "result",
                "reason",
                "type",
                "rooms",
                "scope",
                "side",
            ];
            assert!(labels.iter().all(|label| allowed.contains(label)), "{name}: {labels:?}");
        }
    }

    #[test]
    fn operators_are_told_of_every_metric() {
        let operations = read("docs/operations.md");
        let rows = operations.lines().filter(|line| line.starts_with("| `roomcast_"));
        let listed: Vec<String> = rows
            .flat_map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                let name = cells[1].trim_matches('`').to_owned();
                let metric = ALL.iter().find(|metric| metric.name == name);
                let metric = metric.unwrap_or_else(|| panic!("{name} is listed and does not exist"));
                let kind = format!("{:?}", metric.kind).to_lowercase();
                assert_eq!(cells[2], kind, "{name}");
                let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
                assert_eq!(cells[3].split(" (").next().unwrap_or_default(), labels.join(", "), "{name}");
                Some(name)
            })
            .collect();
        let unique: BTreeSet<String> = listed.iter().cloned().collect();
        assert_eq!(listed.len(), unique.len(), "a row twice");
        assert_eq!(unique, names());
    }

    #[test]
    fn rules_and_dashboard_name_only_metrics_that_exist() {
        for file in ["rules.yaml", "dashboard.json"] {
            let text = read(&format!("examples/kubernetes/components/prometheus/{file}"));
            let found = mentioned(&text);
            let unknown: Vec<_> = found.difference(&names()).cloned().collect();
            assert!(unknown.is_empty(), "{file}: {unknown:?}");
            assert!(found.len() >= 8, "{file}: only {found:?}");
        }
        let dashboard: serde_json::Value =
            serde_json::from_str(&read("examples/kubernetes/components/prometheus/dashboard.json")).unwrap();
        assert!(dashboard["panels"].as_array().is_some_and(|panels| !panels.is_empty()));
    }
}
