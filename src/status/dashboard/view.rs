//! The data behind the page: the cluster as this node sees it, and what the others say of themselves.

use serde::Serialize;

use crate::hub::summary::Summary;
use crate::hub::summary::ask::{Said, Silent};
use crate::node::Node;
use crate::status::report::{DropReport, LinkReport, MemberReport};
use crate::status::{Report, SCHEMA_VERSION};

/// What `GET /cluster` answers. It is for the page, which comes from the same node: programs read `/status`.
#[derive(Debug, Serialize)]
pub(super) struct View {
    schema_version: u32,
    cluster: String,
    /// The node that says this.
    node: String,
    version: String,
    ready: bool,
    draining: bool,
    /// What is wrong with this node, in words.
    trouble: Vec<String>,
    /// Broadcasts handed in here, and messages of others handed to members here, since the start.
    emits: u64,
    delivered: u64,
    /// The members, ordered by id.
    nodes: Vec<NodeView>,
}

#[derive(Debug, Serialize)]
struct NodeView {
    id: String,
    /// Text: numbers of JavaScript have fewer digits.
    incarnation: String,
    address: String,
    state: String,
    since_ms: u64,
    /// What this node has for it; none for itself.
    link: Option<LinkView>,
    /// What it says of itself; none when it has not said anything.
    said: Option<SaidView>,
    /// Why what it said is missing or old; none when it answered the last time it was asked.
    silent: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct LinkView {
    state: String,
    round_trip_us: Option<u64>,
    uptime_ms: Option<u64>,
    links: u64,
    stalls: u64,
    rooms: u64,
    queue_frames: u64,
    queue_bytes: u64,
    gaps_sent: u64,
    gaps_received: u64,
    drops: DropReport,
}

#[derive(Debug, Serialize)]
struct SaidView {
    age_ms: u64,
    version: String,
    uptime_ms: u64,
    clients: u64,
    rooms: u64,
    emitters: u64,
    queue_frames: u64,
    queue_bytes: u64,
    drops: u64,
    gaps_sent: u64,
    gaps_received: u64,
    /// Its links: the place of the other node in `nodes`, the state, and the round trip in microseconds. Those to nodes that
    /// this one does not know are left out.
    links: Vec<(usize, String, Option<u64>)>,
}

impl View {
    /// What there is to see now. Asks the others, whose answers come later.
    pub(super) fn collect(node: &Node) -> Self {
        let hub = node.hub();
        let (report, mut others) = (Report::collect(node), hub.summaries());
        others.insert(hub.id.clone(), Said::told(hub.summary(), hub.now_ms()));
        let ids: Vec<&str> = report.members.iter().map(|member| &*member.id).collect();
        let said = |member: &MemberReport| {
            others.iter().find(|(id, _)| id.as_str() == member.id).map(|(_, said)| said)
        };
        let view = |member| NodeView::new(member, &report.links, said(member), &ids, hub.now_ms());
        let nodes = report.members.iter().map(view).collect();
        let mut trouble: Vec<String> = Vec::new();
        trouble.extend(node.why_not_live());
        trouble.extend(report.unready_reason().filter(|_| !report.draining));
        let failing =
            report.discovery.iter().filter_map(|seed| Some((&seed.source, seed.last_error.as_ref()?)));
        trouble.extend(failing.map(|(seed, error)| format!("the seed {seed} is not found: {error}")));
        Self {
            schema_version: SCHEMA_VERSION,
            cluster: report.cluster,
            node: report.node.id,
            version: report.node.version,
            ready: report.ready,
            draining: report.draining,
            trouble,
            emits: report.counters.emits,
            delivered: report.counters.delivered,
            nodes,
        }
    }
}

impl NodeView {
    fn new(
        member: &MemberReport,
        links: &[LinkReport],
        said: Option<&Said>,
        ids: &[&str],
        now_ms: u64,
    ) -> Self {
        let run = |link: &&LinkReport| link.peer == member.id && link.incarnation == member.incarnation;
        let silent = said.and_then(Said::silent).map(|why| match why {
            Silent::NoLink => "no link",
            Silent::NoAnswer => "no answer",
        });
        // What an earlier run said is not true of this one.
        let summary = said.and_then(|said| said.summary.as_ref());
        let summary = summary.filter(|(_, summary)| summary.incarnation == member.incarnation);
        Self {
            id: member.id.clone(),
            incarnation: member.incarnation.to_string(),
            address: member.address.clone(),
            state: member.state.clone(),
            since_ms: member.since_ms_ago,
            link: links.iter().find(run).map(LinkView::new),
            said: summary.map(|(at_ms, summary)| SaidView::new(summary, now_ms.saturating_sub(*at_ms), ids)),
            silent,
        }
    }
}

impl LinkView {
    fn new(link: &LinkReport) -> Self {
        Self {
            state: link.state.clone(),
            round_trip_us: link.round_trip_us,
            uptime_ms: link.uptime_ms,
            links: link.links,
            stalls: link.stalls,
            rooms: link.rooms,
            queue_frames: link.queue_frames,
            queue_bytes: link.queue_bytes,
            gaps_sent: link.gap_frames_sent,
            gaps_received: link.gap_frames_received,
            drops: link.drops.clone(),
        }
    }
}

impl SaidView {
    fn new(summary: &Summary, age_ms: u64, ids: &[&str]) -> Self {
        let link = |link: &crate::hub::summary::LinkSummary| {
            let place = ids.binary_search(&&*link.peer).ok()?;
            Some((place, link.state.clone(), link.round_trip_us))
        };
        Self {
            age_ms,
            version: summary.version.clone(),
            uptime_ms: summary.uptime_ms,
            clients: summary.clients,
            rooms: summary.rooms,
            emitters: summary.emitters,
            queue_frames: summary.queue_frames,
            queue_bytes: summary.queue_bytes,
            drops: summary.drops,
            gaps_sent: summary.gaps_sent,
            gaps_received: summary.gaps_received,
            links: summary.links.iter().filter_map(link).collect(),
        }
    }
}
