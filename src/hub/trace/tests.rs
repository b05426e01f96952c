//! Which frames go with a trace, and how what came with one is delivered; with a tracer that notes what it is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;

use super::*;
use crate::config::Config;
use crate::core::frame::{
    Ahead, BroadcastHead, LENGTH_BYTES, PayloadKind, RequestHead, TRACE_BYTES, TRACE_SINCE, decode_head,
    frame_len,
};
use crate::error::DropReason;
use crate::hub::peer::{LinkPath, PeerQueue, PeerRole};
use crate::hub::requests::{Ask, Targets, everyone};
use crate::hub::waits::Patience;
use crate::hub::{Inbound, Recent, lock};
use crate::ids::{Incarnation, Namespace, Seq};
use crate::quic::handshake::CloseCode;

fn context(span: u8, flags: u8) -> TraceContext {
    TraceContext::new([9; 16], [span; 8], flags).unwrap()
}

/// In the trace that a test sets; each emit is a span of its own.
#[derive(Clone, Default)]
struct Noting {
    current: Arc<Mutex<Option<TraceContext>>>,
    said: Arc<Mutex<Vec<String>>>,
    /// Does not deliver.
    refuses: Arc<AtomicBool>,
    /// The node, to emit from inside.
    hub: Arc<Mutex<Option<Arc<Hub>>>>,
}

impl Noting {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.said))
    }
}

impl Tracer for Noting {
    fn current(&self) -> Option<TraceContext> {
        *lock(&self.current)
    }

    fn emit(&self, parent: TraceContext, what: &Traced<'_>) -> EmitSpan {
        let said = format!("{} under {} in {}", what.operation, parent.span_id()[0], what.ns);
        lock(&self.said).push(said);
        let hub = lock(&self.hub).take();
        if let Some(hub) = hub {
            assert_eq!(send(&hub).queued, 1, "an emit like any other");
        }
        EmitSpan::new(context(parent.span_id()[0] + 1, parent.flags()))
    }

    fn deliver(&self, parent: TraceContext, what: &Traced<'_>, deliver: &mut dyn FnMut()) {
        let peer = what.peer.unwrap();
        lock(&self.said).push(format!("{} of {peer} under {}", what.operation, parent.span_id()[0]));
        if !self.refuses.load(Ordering::Relaxed) {
            let before = lock(&self.current).replace(parent);
            deliver();
            deliver();
            *lock(&self.current) = before;
        }
    }
}

fn hub(tracer: Option<&Noting>) -> Arc<Hub> {
    let hub = Hub::new(NodeId::new("a").unwrap(), Incarnation(1), Config::default());
    hub.set_tracer(tracer.map(|tracer| Box::new(tracer.clone()) as _));
    hub
}

fn queue(id: &str, slot: crate::ids::PeerSlot, version: u16) -> PeerQueue {
    let addr = ([127, 0, 0, 1], 1).into();
    let queue = PeerQueue::new(NodeId::new(id).unwrap(), Incarnation(1), slot, addr, 1, 1 << 20);
    queue.set_version(version);
    queue
}

fn add(hub: &Hub, id: &str, version: u16) -> Arc<PeerQueue> {
    hub.add_peer(|slot| Arc::new(queue(id, slot, version)))
}

fn head() -> BroadcastHead<'static> {
    everyone("/chat", PayloadKind::Plain)
}

fn ns() -> Namespace {
    Namespace::new("/chat").unwrap()
}

fn send(hub: &Hub) -> crate::hub::Receipt {
    hub.send(&ns(), &[], &head(), &Bytes::from_static(b"x"), false)
}

/// The frames that wait for a peer: each with the first byte of the span that it was sent under, 0 for none.
fn spans(queue: &PeerQueue) -> Vec<u8> {
    let mut parts = Vec::new();
    queue.take(usize::MAX, &mut parts);
    queue.ack(Seq(u64::MAX));
    read(&parts.concat())
}

fn read(wire: &[u8]) -> Vec<u8> {
    let limits = hub(None).limits;
    let (mut at, mut found, mut ahead) = (0, Vec::new(), Ahead::default());
    while let Some(len) = frame_len(&wire[at..], &limits).unwrap() {
        let (head, _) = decode_head(&wire[at + LENGTH_BYTES..at + LENGTH_BYTES + len], &limits).unwrap();
        at += LENGTH_BYTES + len;
        let trace = ahead.read(&head).unwrap();
        if head.is_counted() {
            found.push(trace.map_or(0, |trace| trace.span_id()[0]));
        }
    }
    found
}

#[test]
fn what_is_sampled_goes_with_its_trace_to_those_who_read_it() {
    let tracer = Noting::default();
    let hub = hub(Some(&tracer));
    let (new, old) = (add(&hub, "new", TRACE_SINCE), add(&hub, "old", TRACE_SINCE - 1));
    for (current, span) in [(None, 0), (Some(context(4, 0)), 0), (Some(context(4, 1)), 5), (None, 0)] {
        *lock(&tracer.current) = current;
        let before = new.counters.sent_by_type.of(&[15]).0;
        assert_eq!(send(&hub).queued, 2);
        let bytes = (new.depth().1 - old.depth().1, new.counters.sent_by_type.of(&[15]).0 - before);
        assert_eq!(bytes, if span > 0 { (TRACE_BYTES, 1) } else { (0, 0) }, "counted where it goes");
        assert_eq!((spans(&new), spans(&old)), (vec![span], vec![0]));
        let said = if span > 0 { vec!["broadcast under 4 in /chat"] } else { vec![] };
        assert_eq!(tracer.take(), said);
    }
    assert_eq!(old.counters.sent_by_type.of(&[15]), (0, 0));
    let (frames, bytes) = new.counters.sent_by_type.of(&[15]);
    assert_eq!((frames, bytes), (1, TRACE_BYTES as u64));
    // One that may wait.
    *lock(&tracer.current) = Some(context(4, 1));
    let (receipt, _) = hub.send_waiting(&ns(), &[], &head(), &Bytes::new(), Patience::Until(Duration::ZERO));
    assert_eq!((receipt.queued, spans(&new)), (2, vec![5]));
}

#[test]
fn nobody_interested_is_no_span_and_a_tracer_may_emit() {
    let tracer = Noting::default();
    let hub = hub(Some(&tracer));
    *lock(&tracer.current) = Some(context(4, 1));
    assert_eq!(send(&hub).targeted, 0);
    assert_eq!(tracer.take(), Vec::<String>::new());
    let peer = add(&hub, "b", TRACE_SINCE);
    *lock(&tracer.hub) = Some(Arc::clone(&hub));
    assert_eq!(send(&hub).queued, 1);
    assert_eq!((tracer.take().len(), spans(&peer)), (2, vec![5, 5]));
}

#[tokio::test]
async fn questions_and_orders_go_with_their_trace_and_answers_do_not() {
    let tracer = Noting::default();
    let hub = hub(Some(&tracer));
    let peer = add(&hub, "b", TRACE_SINCE);
    *lock(&tracer.current) = Some(context(4, 1));
    let question = |op, id| RequestHead { id, op, timeout_ms: 0, credit: 1, names: smallvec![], to: head() };
    let ask = Ask { targets: Targets::All, head: question(Op::Count, 0), timeout: None, here: false };
    let _asked = hub.ask(ask, &Bytes::new()).unwrap();
    hub.order(Targets::All, &question(Op::Join, 0), &Bytes::new(), false);
    assert_eq!(spans(&peer), [5, 5]);
    assert_eq!(tracer.take(), ["count under 4 in /chat", "join under 4 in /chat"]);
    hub.request(&peer, Some(context(7, 1)), &question(Op::Rooms, 3), &Bytes::new());
    assert_eq!((tracer.take(), spans(&peer)), (vec!["rooms of b under 7".to_owned()], vec![0]), "the end");
}

/// A link that keeps what is sent on it.
struct Path(Arc<Mutex<Vec<Bytes>>>);

impl LinkPath for Path {
    fn send(&self, frame: Bytes) -> Result<(), DropReason> {
        lock(&self.0).push(frame);
        Ok(())
    }

    fn gossip(&self, _: Bytes) -> Result<(), DropReason> {
        Ok(())
    }

    fn close(&self, _: CloseCode, _: &str) {}

    fn round_trip(&self) -> Duration {
        Duration::ZERO
    }

    fn remote(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }
}

#[test]
fn what_is_volatile_takes_its_trace_along_in_one_piece() {
    let tracer = Noting::default();
    let hub = hub(Some(&tracer));
    *lock(&tracer.current) = Some(context(4, 1));
    for (version, span) in [(TRACE_SINCE, 5), (TRACE_SINCE - 1, 0)] {
        let (peer, sent) = (add(&hub, "b", version), Arc::default());
        peer.set_path(Some(Box::new(Path(Arc::clone(&sent)))));
        hub.send(&ns(), &[], &head(), &Bytes::from_static(b"x"), true);
        assert_eq!(lock(&sent).iter().map(|piece| read(piece)).collect::<Vec<_>>(), [[span]]);
        hub.remove_peer(&peer);
    }
}

#[derive(Default)]
struct Front(Mutex<u64>);

impl Inbound for Front {
    fn deliver(&self, _: &BroadcastHead<'_>, _: &Bytes) {
        *lock(&self.0) += 1;
    }
}

#[test]
fn what_came_with_a_trace_is_delivered_once_whatever_the_tracer_does() {
    let tracer = Noting::default();
    let hub = hub(Some(&tracer));
    let front = Arc::new(Front::default());
    let weak: Weak<dyn Inbound> = Arc::downgrade(&(Arc::clone(&front) as Arc<dyn Inbound>));
    let _attachment = hub.attach(&ns(), crate::core::interest::RoomMode::Flood, weak);
    let peer = add(&hub, "b", TRACE_SINCE);
    for (trace, refuses, said) in [
        (None, false, vec![]),
        (Some(context(7, 1)), false, vec!["broadcast of b under 7"]),
        (Some(context(8, 1)), true, vec!["broadcast of b under 8"]),
    ] {
        tracer.refuses.store(refuses, Ordering::Relaxed);
        let mut recent = Recent::default();
        hub.arrived(&peer, &mut recent, trace, &head(), Bytes::new());
        hub.arrived_alone(&peer, trace, &head(), &Bytes::new());
        assert_eq!(std::mem::take(&mut *lock(&front.0)), 2);
        assert_eq!(tracer.take(), said.repeat(2));
    }
}

/// An emitter's node passes its traces on, whether it traces or not.
#[tokio::test]
async fn what_an_emitter_sends_keeps_its_trace() {
    for tracer in [None, Some(Noting::default())] {
        let hub = hub(tracer.as_ref());
        let other = add(&hub, "b", TRACE_SINCE);
        let guest = Arc::new(queue("e", crate::ids::PeerSlot::GUEST, TRACE_SINCE).with_role(PeerRole::Guest));
        let trace = Some(context(7, 1));
        hub.arrived(&guest, &mut Recent::default(), trace, &head(), Bytes::new());
        hub.arrived_alone(&guest, None, &head(), &Bytes::new());
        let order =
            |id| RequestHead { id, op: Op::Rooms, timeout_ms: 9, credit: 1, names: smallvec![], to: head() };
        hub.request(&guest, trace, &order(0), &Bytes::new());
        hub.request(&guest, trace, &order(1), &Bytes::new());
        // The span of the emit at this node, under that of the delivery here, when there are any.
        let under = if tracer.is_some() { 8 } else { 7 };
        assert_eq!(spans(&other), [under, 0, under, under]);
    }
}
