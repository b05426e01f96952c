//! What happened of late, kept for pages that are opened or come back, and the streams of those that are open.
//!
//! One task writes the log; each stream reads it at its own pace, so a slow reader holds nothing: it is told how many events it
//! missed once they have left the log.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::response::sse::Event as Sent;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use crate::event::{Event, MemberState};
use crate::hub::lock;
use crate::node::Node;

/// The events that are kept. Cost: about 200 bytes each, while the node runs.
const KEPT: usize = 256;
/// The events that wait in a stream for its reader.
const AHEAD: usize = 16;
/// How long a reader may take nothing before its place is given to another.
const PATIENCE: Duration = Duration::from_secs(30);
/// After which time a browser comes back when the stream broke.
const RETRY: Duration = Duration::from_secs(2);
/// The longest reason that is passed on, in bytes: it may come from another node.
const MAX_REASON_BYTES: usize = 256;

/// The newest events of a node, numbered from 1.
pub(super) struct Log {
    /// The run of the node: numbers of another one mean nothing.
    run: u64,
    kept: Mutex<VecDeque<Arc<str>>>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

/// What a stream is given at a time.
struct Batch {
    /// Events that are gone.
    missed: u64,
    /// The others, with the number of the first.
    first: u64,
    events: Vec<Arc<str>>,
}

impl Log {
    pub(super) fn new(run: u64) -> Arc<Self> {
        Arc::new(Self { run, kept: Mutex::default(), newest: watch::channel(0).0 })
    }

    /// Writes down what happens from now on, until the node stops or nobody holds the log.
    pub(super) fn record(self: &Arc<Self>, node: &Node) {
        let (log, hub, mut events) = (Arc::downgrade(self), Arc::clone(node.hub()), node.events());
        node.until_stopped(async move {
            while let Some(event) = events.recv().await {
                let Some(log) = log.upgrade() else { return };
                log.push(&event, hub.wall_us() / 1000);
            }
        });
    }

    fn push(&self, event: &Event, unix_ms: u64) {
        let Ok(text) = serde_json::to_string(&Happened::new(event, unix_ms)) else { return };
        let mut kept = lock(&self.kept);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(text.into());
        // Under the lock: the number and what is kept are seen together.
        self.newest.send_modify(|newest| *newest += 1);
    }

    /// After which event a reader goes on that names `last` as the last one that it has: before all that are kept when it
    /// names none, or one of another run.
    pub(super) fn position(&self, last: Option<&str>) -> u64 {
        let kept = lock(&self.kept);
        let newest = *self.newest.borrow();
        let number = last.and_then(|id| {
            let (run, number) = id.split_once('-')?;
            (run.parse() == Ok(self.run)).then(|| number.parse::<u64>().ok())?
        });
        number.filter(|number| *number <= newest).unwrap_or(newest - kept.len() as u64)
    }

    fn after(&self, after: u64) -> Batch {
        let kept = lock(&self.kept);
        let oldest = *self.newest.borrow() + 1 - kept.len() as u64;
        let first = (after + 1).max(oldest);
        let skip = usize::try_from(first - oldest).unwrap_or(usize::MAX);
        let events = kept.iter().skip(skip).take(AHEAD).cloned().collect();
        Batch { missed: first - (after + 1), first, events }
    }
}

/// One event on the wire.
#[derive(Serialize)]
struct Happened<'e> {
    unix_ms: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outgoing: Option<bool>,
}

impl<'e> Happened<'e> {
    fn new(event: &'e Event, unix_ms: u64) -> Self {
        let mut said = Self {
            unix_ms,
            kind: "missed",
            node: None,
            incarnation: None,
            address: None,
            state: None,
            reason: None,
            frames: None,
            outgoing: None,
        };
        match event {
            Event::MemberJoined { id, incarnation, addr }
            | Event::MemberRestarted { id, incarnation, addr } => {
                let joined = matches!(event, Event::MemberJoined { .. });
                said.kind = if joined { "joined" } else { "restarted" };
                (said.node, said.address) = (Some(id.as_str()), Some(addr.to_string()));
                said.incarnation = Some(incarnation.to_string());
            }
            Event::MemberState { id, incarnation, state } => {
                (said.kind, said.node, said.state) = ("state", Some(id.as_str()), Some(name(*state)));
                said.incarnation = Some(incarnation.to_string());
            }
            Event::MemberLeft { id, incarnation } => {
                (said.kind, said.node) = ("left", Some(id.as_str()));
                said.incarnation = Some(incarnation.to_string());
            }
            Event::LinkUp { peer, .. } => (said.kind, said.node) = ("link-up", Some(peer.as_str())),
            Event::LinkSynced { peer } => (said.kind, said.node) = ("link-synced", Some(peer.as_str())),
            Event::LinkDown { peer, reason } => {
                (said.kind, said.node) = ("link-down", Some(peer.as_str()));
                said.reason = Some(&reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]);
            }
            Event::Gap { peer, frames, outgoing } => {
                (said.kind, said.node) = ("gap", Some(peer.as_str()));
                (said.frames, said.outgoing) = (Some(*frames), Some(*outgoing));
            }
            Event::Missed(missed) => said.frames = Some(*missed),
        }
        said
    }
}

fn name(state: MemberState) -> &'static str {
    match state {
        MemberState::Live => "live",
        MemberState::Suspect => "suspect",
        MemberState::Leaving => "leaving",
        MemberState::Dead => "dead",
    }
}

/// What a stream needs.
pub(super) struct Streams {
    pub(super) log: Arc<Log>,
    /// Its other side is dropped when the server goes.
    pub(super) open: watch::Receiver<()>,
    /// Ends when the node has stopped.
    pub(super) stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Streams {
    /// Begins a stream after the event of that number. It has its place until it ends: when the reader, the node or the server
    /// goes.
    pub(super) fn start(self, after: u64, place: OwnedSemaphorePermit) -> Stream {
        let (out, stream) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let Self { log, mut open, stopped } = self;
            tokio::select! {
                () = feed(&log, after, &out) => {}
                () = stopped => {
                    // The page need not wait for the connection to break. One that is full finds out by itself.
                    let _ = out.try_send(Sent::default().event("stopped").data("{}"));
                }
                () = async { while open.changed().await.is_ok() {} } => {}
            }
            drop(place);
        });
        Stream(stream)
    }
}

async fn feed(log: &Log, mut after: u64, out: &mpsc::Sender<Sent>) {
    let mut newest = log.newest.subscribe();
    let send =
        async |event: Sent| matches!(tokio::time::timeout(PATIENCE, out.send(event)).await, Ok(Ok(())));
    if !send(Sent::default().retry(RETRY).comment("roomcast")).await {
        return;
    }
    loop {
        newest.borrow_and_update();
        let Batch { missed, first, events } = log.after(after);
        if missed > 0 {
            let id = format!("{}-{}", log.run, first - 1);
            let said = format!("{{\"missed\":{missed}}}");
            if !send(Sent::default().id(id).event("missed").data(said)).await {
                return;
            }
        }
        after = first - 1;
        let is_all = events.len() < AHEAD;
        for event in events {
            after += 1;
            let id = format!("{}-{after}", log.run);
            if !send(Sent::default().id(id).event("happened").data(&*event)).await {
                return;
            }
        }
        if is_all {
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                () = out.closed() => return,
            }
        }
    }
}

/// The events of one stream.
pub(super) struct Stream(mpsc::Receiver<Sent>);

impl futures_core::Stream for Stream {
    type Item = Result<Sent, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|event| event.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(log: &Log, number: u64) {
        log.push(&Event::Missed(number), number);
    }

    fn numbers(batch: &Batch) -> Vec<u64> {
        let number =
            |text: &Arc<str>| serde_json::from_str::<serde_json::Value>(text).unwrap()["frames"].as_u64();
        batch.events.iter().filter_map(number).collect()
    }

    #[test]
    fn a_reader_goes_on_where_it_was_and_hears_how_much_it_missed() {
        let log = Log::new(7);
        assert_eq!((log.position(None), log.after(0).events.len()), (0, 0));
        (1..=300).for_each(|number| missed(&log, number));
        // Who comes anew gets what is kept, and has missed nothing.
        let kept = KEPT as u64;
        assert_eq!(log.position(None), 300 - kept);
        assert_eq!(log.after(300 - kept).missed, 0);
        let batch = log.after(10);
        assert_eq!((batch.missed, batch.first), (300 - kept - 10, 301 - kept));
        assert_eq!(numbers(&batch), (301 - kept..301 - kept + AHEAD as u64).collect::<Vec<_>>());
        assert_eq!(log.position(Some("7-290")), 290);
        assert_eq!(numbers(&log.after(290)), (291..=300).collect::<Vec<_>>());
        assert!(log.after(300).events.is_empty());
    }

    #[test]
    fn the_place_of_another_run_or_of_nobody_is_the_beginning() {
        let log = Log::new(7);
        (1..=300).for_each(|number| missed(&log, number));
        for id in ["8-290", "7-301", "7-", "7", "", "-1", "7--1", "7-18446744073709551616", "x-y"] {
            assert_eq!(log.position(Some(id)), 300 - KEPT as u64, "{id}");
        }
    }

    #[test]
    fn an_event_is_one_line_of_json_and_its_reason_has_a_limit() {
        let reason = format!("line\nbreak <b> {}", "\u{e4}".repeat(500));
        let peer = crate::ids::NodeId::new("b").unwrap();
        let event = Event::LinkDown { peer, reason };
        let text = serde_json::to_string(&Happened::new(&event, 5)).unwrap();
        assert!(!text.contains('\n') && text.len() < 400, "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((read["kind"].as_str(), read["node"].as_str()), (Some("link-down"), Some("b")));
        assert!(read["reason"].as_str().unwrap().starts_with("line\nbreak <b>"));
        assert!(read.get("frames").is_none());
    }
}
