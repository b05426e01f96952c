//! Rooms of the whole cluster: each node that is asked tells its rooms by name, and from then on each that is created or
//! deleted; who asks puts that together and says when a room opens anywhere and when it is closed everywhere.
//!
//! Only nodes that watch pay for it, and those that they ask. Links carry hashes of rooms, which is enough for routing.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use crate::core::frame::{ANSWER_BYTES, Op, PayloadKind, RequestHead, decode_body, encode_body};
use crate::core::presence::{NodeKey, Presence, Transition};
use crate::event::{Event, RoomEvent};
use crate::hub::Hub;
use crate::hub::requests::{Ask, Asked, MissingReason, Reply, Targets, Unwanted, everyone};
use crate::ids::{Incarnation, NodeId};

/// The pseudo namespace of questions about all namespaces. Socket.IO paths begin with `/`.
const ROOMS: &str = "!rooms";
/// Answers of one node that wait here, about 32 KiB each.
const CREDIT: u32 = 16;
/// How long until a node that could not be asked is asked again, and how often it is looked for new ones at least.
const RETRY: Duration = Duration::from_millis(500);
/// Changes that are told together.
const BATCH: usize = 1024;

/// What a node tells. Variants keep their order: the index is on the wire.
#[derive(Debug, Serialize, Deserialize)]
enum Told<'a> {
    /// All rooms follow, until `End`; what is not among them is gone.
    Begin,
    /// Some rooms of a namespace.
    Rooms {
        ns: &'a str,
        #[serde(borrow)]
        rooms: Vec<&'a str>,
    },
    /// That were all.
    End,
    /// The first member joined.
    Created { ns: &'a str, room: &'a str },
    /// The last member left.
    Deleted { ns: &'a str, room: &'a str },
}

/// Tells an asker the rooms of this node, for as long as it wants to know.
pub(super) async fn tell(hub: Arc<Hub>, reply: Reply) {
    // Nobody is told anything when it ends: the asker or this node is gone.
    let _ = tell_all(&hub, &reply).await;
}

async fn tell_all(hub: &Hub, reply: &Reply) -> Result<(), Unwanted> {
    // Before the rooms are listed, so that no change is missed.
    let mut events = hub.room_feed.listen();
    let mut read = 0;
    loop {
        let mut skip: HashMap<Arc<str>, u64> = HashMap::new();
        let mut paths: HashMap<Arc<str>, Vec<String>> = HashMap::new();
        hub.each_room(|path, room| {
            // Under that lock: what was sent up to now has made the list, what is sent later changes it.
            skip.entry(Arc::clone(path)).or_insert_with(|| read + events.waiting());
            paths.entry(Arc::clone(path)).or_default().push(room.to_owned());
        });
        reply.answer(body(&[Told::Begin])).await?;
        for (ns, rooms) in paths {
            for part in crate::core::frame::parts(rooms, String::len) {
                let rooms = part.iter().map(String::as_str).collect();
                reply.answer(body(&[Told::Rooms { ns: &ns, rooms }])).await?;
            }
        }
        reply.answer(body(&[Told::End])).await?;
        loop {
            let first = tokio::select! {
                event = events.recv() => event.ok_or(Unwanted)?,
                () = reply.unwanted() => return Err(Unwanted),
            };
            let mut batch = Vec::new();
            let mut missed = false;
            let mut next = Some(first);
            let mut bytes = 0;
            while let Some(event) = next {
                match &event {
                    RoomEvent::Missed(events) => {
                        read += events;
                        missed = true;
                        break;
                    }
                    _ => read += 1,
                }
                let listed =
                    event.place().and_then(|(ns, _)| skip.get(ns)).is_some_and(|until| read <= *until);
                let change = matches!(event, RoomEvent::RoomCreated { .. } | RoomEvent::RoomDeleted { .. });
                if change && !listed {
                    bytes += event.place().map_or(0, |(ns, room)| ns.len() + room.len() + 8);
                    batch.push(event);
                }
                next = if batch.len() < BATCH && bytes < ANSWER_BYTES { events.try_recv() } else { None };
            }
            if !batch.is_empty() {
                reply.answer(body(&batch.iter().filter_map(told).collect::<Vec<_>>())).await?;
            }
            if missed {
                // Too fast for the asker: it is told everything anew.
                break;
            }
        }
    }
}

fn told(event: &RoomEvent) -> Option<Told<'_>> {
    match event {
        RoomEvent::RoomCreated { ns, room } => Some(Told::Created { ns, room }),
        RoomEvent::RoomDeleted { ns, room } => Some(Told::Deleted { ns, room }),
        _ => None,
    }
}

fn body(told: &[Told<'_>]) -> Bytes {
    // Names are short and a part is small: far below the limit of a body.
    encode_body(&told).unwrap_or_default()
}

/// The rooms of the cluster: [`RoomEvent::RoomOpened`] and [`RoomEvent::RoomClosed`], from
/// [`Node::watch_rooms`](crate::Node::watch_rooms). Dropping it ends the watch.
#[derive(Debug)]
pub struct RoomWatch {
    events: mpsc::Receiver<RoomEvent>,
}

impl RoomWatch {
    /// The next event; none when the node has stopped. Who is too slow hears [`RoomEvent::Missed`] with the number of
    /// events that are missing at this place; it never slows the node.
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<RoomEvent> {
        self.events.recv().await
    }
}

/// A watch, and what keeps it up to date: to be run until it ends.
pub(crate) fn watch(hub: &Arc<Hub>) -> (RoomWatch, impl Future<Output = ()> + Send + use<>) {
    let (teller, watch) = channel(hub.config.room_event_buffer.0.clamp(1, 1 << 24));
    let watcher = Watcher {
        presence: Presence::new(hub.config.watched_rooms.0),
        hub: Arc::clone(hub),
        nodes: Vec::new(),
        next_key: 0,
        out: Vec::new(),
        teller,
        full: false,
    };
    (watch, watcher.run())
}

fn channel(capacity: usize) -> (Teller, RoomWatch) {
    let (sender, events) = mpsc::channel(capacity);
    (Teller { events: sender, missed: 0 }, RoomWatch { events })
}

/// The side of a watch that tells.
struct Teller {
    events: mpsc::Sender<RoomEvent>,
    /// Events that are missing after what was sent last.
    missed: u64,
}

impl Teller {
    fn tell(&mut self, event: RoomEvent) {
        self.tell_missed();
        // What comes after a gap is sent behind the word of it.
        if self.missed > 0 || self.events.try_send(event).is_err() {
            self.missed += 1;
        }
    }

    /// Says how many are missing, once the listener has read half of what waits: not after each event that it reads.
    fn tell_missed(&mut self) {
        let enough = self.events.max_capacity().div_ceil(2);
        if self.missed > 0
            && self.events.capacity() >= enough
            && self.events.try_send(RoomEvent::Missed(self.missed)).is_ok()
        {
            self.missed = 0;
        }
    }
}

struct Watcher {
    hub: Arc<Hub>,
    presence: Presence,
    nodes: Vec<Watched>,
    next_key: NodeKey,
    /// What follows from what was told, not sent yet.
    out: Vec<Transition>,
    teller: Teller,
    /// Whether it was logged that there are too many rooms.
    full: bool,
}

/// A node whose rooms are wanted.
struct Watched {
    key: NodeKey,
    id: NodeId,
    incarnation: Incarnation,
    /// None until it can be asked again.
    asked: Option<Asked>,
}

impl Watcher {
    async fn run(mut self) {
        let mut changes = self.hub.events.subscribe();
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let closed = self.teller.events.clone();
        loop {
            tokio::select! {
                () = closed.closed() => return,
                () = poll_fn(|cx| self.poll(cx)) => {}
                _ = retry.tick() => {
                    self.look();
                    self.teller.tell_missed();
                }
                change = changes.recv() => match change {
                    Ok(Event::LinkUp { .. }) => self.look(),
                    Err(broadcast::error::RecvError::Closed) => return,
                    _ => {}
                },
            }
            self.send();
        }
    }

    /// Asks the nodes that are not being asked.
    fn look(&mut self) {
        let mut there: SmallVec<[(NodeId, Incarnation); 8]> =
            self.hub.peers().iter().map(|peer| (peer.id.clone(), peer.incarnation)).collect();
        there.push((self.hub.id.clone(), self.hub.incarnation));
        for gone in self.nodes.extract_if(.., |node| {
            node.asked.is_none() && !there.contains(&(node.id.clone(), node.incarnation))
        }) {
            self.presence.gone(gone.key, &mut self.out);
        }
        for (id, incarnation) in there {
            let known = self.nodes.iter_mut().find(|node| node.id == id && node.incarnation == incarnation);
            let node = match known {
                Some(node) => node,
                None => {
                    self.next_key += 1;
                    let key = self.next_key;
                    self.nodes.push(Watched { key, id, incarnation, asked: None });
                    let last = self.nodes.len() - 1;
                    &mut self.nodes[last]
                }
            };
            if node.asked.is_none() {
                node.asked = ask(&self.hub, &node.id);
            }
        }
    }

    /// Takes what nodes tell; ready when there was something.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut any = false;
        for node in &mut self.nodes {
            let Some(asked) = &mut node.asked else { continue };
            while let Poll::Ready(answer) = asked.poll_next(cx) {
                any = true;
                let Some(answer) = answer else {
                    let left = asked.missing().iter().any(|missing| missing.reason == MissingReason::Left);
                    node.asked = None;
                    if left {
                        self.presence.gone(node.key, &mut self.out);
                    }
                    // Else it is asked again: what it still has then makes no noise.
                    break;
                };
                if !apply(&mut self.presence, node.key, &answer.body, &mut self.out) {
                    tracing::warn!(node = %self.hub.id, peer = %node.id, "unreadable rooms of a node: asking again");
                    node.asked = None;
                    break;
                }
                if self.out.len() >= BATCH {
                    // Others and those who listen get their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Ready(());
                }
            }
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }

    fn send(&mut self) {
        for transition in self.out.drain(..) {
            self.teller.tell(match transition {
                Transition::Opened { ns, room } => RoomEvent::RoomOpened { ns, room },
                Transition::Closed { ns, room } => RoomEvent::RoomClosed { ns, room },
            });
        }
        if self.presence.refused() > 0 && !std::mem::replace(&mut self.full, true) {
            let limit = self.hub.config.watched_rooms.0;
            tracing::warn!(node = %self.hub.id, limit, "more rooms in the cluster than a watch holds: others are left out");
        }
    }
}

fn ask(hub: &Arc<Hub>, node: &NodeId) -> Option<Asked> {
    let here = *node == hub.id;
    let head = RequestHead {
        id: 0,
        op: Op::WatchRooms,
        timeout_ms: 0,
        credit: CREDIT,
        names: SmallVec::new(),
        to: everyone(ROOMS, PayloadKind::Plain),
    };
    let nodes = std::slice::from_ref(node);
    let ask = Ask { targets: Targets::Nodes(if here { &[] } else { nodes }), head, timeout: None, here };
    // At the limit of requests it is asked later.
    hub.ask(ask, &Bytes::new()).ok()
}

/// Returns whether what a node told could be read.
pub(crate) fn apply(presence: &mut Presence, node: NodeKey, body: &[u8], out: &mut Vec<Transition>) -> bool {
    let Ok(told) = decode_body::<Vec<Told<'_>>>(body) else { return false };
    for told in told {
        match told {
            Told::Begin => presence.begin(node),
            // A full table counts what it refuses.
            Told::Rooms { ns, rooms } => {
                for room in rooms {
                    let _ = presence.add(node, ns, room, out);
                }
            }
            Told::End => presence.end(node, out),
            Told::Created { ns, room } => {
                let _ = presence.add(node, ns, room, out);
            }
            Told::Deleted { ns, room } => presence.remove(node, ns, room, out),
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said to be missing is missing at that place, however the two sides overtake each other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_gap_is_told_at_its_place() {
        const EVENTS: u64 = 300_000;
        let (mut teller, mut watch) = channel(1);
        let telling = tokio::task::spawn_blocking(move || {
            for number in 0..EVENTS {
                teller.tell(RoomEvent::RoomOpened { ns: "/".into(), room: number.to_string().into() });
            }
            while teller.missed > 0 {
                teller.tell_missed();
            }
        });
        let mut next = 0;
        while let Some(event) = watch.recv().await {
            match event {
                RoomEvent::RoomOpened { room, .. } => {
                    assert_eq!(*room, *next.to_string());
                    next += 1;
                }
                RoomEvent::Missed(missed) => next += missed,
                other => panic!("{other:?}"),
            }
        }
        telling.await.unwrap();
        assert_eq!(next, EVENTS);
    }
}
