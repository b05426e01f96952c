//! Orders and questions between two nodes without links.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_core::FusedStream;
use smallvec::{SmallVec, smallvec};
use socketioxide_core::adapter::{BroadcastFlags, BroadcastOptions, CoreAdapter};
use socketioxide_core::packet::{Packet, PacketData};
use socketioxide_core::{Sid, Uid, Value};

use super::super::{Answers, Error, RoomcastAdapterConfig, with_answers};
use super::fake::{FakeParser, FakeSockets, Side, event, now, pass, text};
use super::{Pair, everyone, flagged, join, lock_listed, to};
use crate::config::Config;
use crate::core::frame::{
    BroadcastHead, Op, PayloadKind, RequestHead, RoomRecord, SocketRecord, decode_body,
};
use crate::hub::requests::{Ask, MissingReason, Targets};

impl Pair {
    /// Carries every frame, both ways. Returns how many went.
    pub(super) fn exchange(&self) -> usize {
        pass(&self.queue, &self.b, &self.back) + pass(&self.back, &self.a, &self.queue)
    }

    /// Runs a future, and carries frames meanwhile.
    pub(super) async fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        for _ in 0..100_000 {
            if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
                return output;
            }
            self.exchange();
            tokio::task::yield_now().await;
        }
        panic!("it does not end");
    }

    /// Carries frames until nothing moves.
    pub(super) async fn settle(&self) {
        let mut quiet = 0;
        while quiet < 3 {
            tokio::task::yield_now().await;
            quiet = if self.exchange() == 0 { quiet + 1 } else { 0 };
        }
    }

    pub(super) async fn acks(
        &self,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> (Vec<Ack>, Answers) {
        let packet = event("/chat", text("[1]"));
        let (acks, answers) = with_answers(self.sender.broadcast_with_ack(packet, opts, timeout)).await;
        (self.run(collect(acks.unwrap())).await, answers)
    }

    async fn rooms(&self, opts: BroadcastOptions) -> Vec<String> {
        let rooms = self.run(self.sender.rooms(opts)).await.unwrap();
        let mut rooms: Vec<_> = rooms.into_iter().map(String::from).collect();
        rooms.sort();
        rooms
    }

    pub(super) async fn sockets(&self, opts: BroadcastOptions) -> Vec<Sid> {
        let sockets = self.run(self.sender.fetch_sockets(opts)).await.unwrap();
        assert!(sockets.iter().all(|socket| socket.ns.as_str() == "/chat"));
        sorted(sockets.into_iter().map(|socket| socket.id).collect())
    }

    pub(super) fn nothing_is_pending(&self) -> bool {
        self.a.hub.requests.pending() == 0 && self.back.serving.len() == 0
    }
}

pub(super) type Ack = (Sid, Result<Value, String>);

pub(super) async fn collect<E: std::fmt::Display>(
    acks: impl FusedStream<Item = (Sid, Result<Value, E>)>,
) -> Vec<Ack> {
    let (mut acks, mut got) = (pin!(acks), Vec::new());
    while let Some((sid, ack)) = poll_fn(|cx| acks.as_mut().poll_next(cx)).await {
        got.push((sid, ack.map_err(|error| error.to_string())));
    }
    assert!(acks.is_terminated());
    assert!(poll_fn(|cx| acks.as_mut().poll_next(cx)).await.is_none(), "it stays ended");
    got.sort_by_key(|(sid, _)| *sid);
    got
}

pub(super) fn sorted(mut sids: Vec<Sid>) -> Vec<Sid> {
    sids.sort();
    sids
}

fn except(mut opts: BroadcastOptions, room: &'static str) -> BroadcastOptions {
    opts.except = [room.into()].into_iter().collect();
    opts
}

fn one(sid: Sid, server: Uid) -> BroadcastOptions {
    let mut opts = BroadcastOptions::new(sid);
    opts.server_id = Some(server);
    opts
}

/// On both nodes: one socket in `lobby`, one in `lobby` and `quiet`, one in no room. The sockets of each.
fn crowd(pair: &Pair) -> [[Sid; 3]; 2] {
    [(&pair.sender, &pair.from), (&pair.receiver, &pair.to)].map(|(adapter, sockets)| {
        let sids = [sockets.connect(), sockets.connect(), sockets.connect()];
        join(adapter, sids[0], "lobby");
        join(adapter, sids[1], "lobby");
        join(adapter, sids[1], "quiet");
        sids
    })
}

/// Selections, and which sockets of a crowd each means on both nodes.
fn selections([a, b]: [[Sid; 3]; 2], there: Uid) -> Vec<(BroadcastOptions, Vec<Sid>)> {
    let mut leaving_out = everyone();
    leaving_out.sid = Some(a[0]);
    let mut lobby_there = to(&["lobby"]);
    lobby_there.server_id = Some(there);
    vec![
        (everyone(), [a, b].concat()),
        (to(&["lobby"]), vec![a[0], a[1], b[0], b[1]]),
        (to(&["lobby", "quiet"]), vec![a[0], a[1], b[0], b[1]]),
        (to(&["nobody"]), vec![]),
        (except(to(&["lobby"]), "quiet"), vec![a[0], b[0]]),
        (except(everyone(), "quiet"), vec![a[0], a[2], b[0], b[2]]),
        (leaving_out, vec![a[1], a[2], b[0], b[1], b[2]]),
        (flagged(everyone(), BroadcastFlags::Local), a.to_vec()),
        (one(b[2], there), vec![b[2]]),
        (one(Sid::new(), there), vec![]),
        (lobby_there, vec![b[0], b[1]]),
        (BroadcastOptions::new(a[1]), vec![a[1]]),
    ]
}

#[tokio::test]
async fn every_operation_means_the_same_sockets_everywhere() {
    for pair in [Pair::flood(), Pair::exact()] {
        let sids = crowd(&pair);
        for (opts, expected) in selections(sids, pair.to.server) {
            let expected = sorted(expected);
            assert_eq!(pair.sockets(opts.clone()).await, expected, "{opts:?}");

            let (acks, answers) = pair.acks(opts.clone(), None).await;
            assert_eq!(acks.iter().map(|(sid, _)| *sid).collect::<Vec<_>>(), expected, "{opts:?}");
            assert!(acks.iter().all(|(_, ack)| *ack == Ok(text("[1]"))) && answers.is_complete());
            let reached = sorted([pair.from.reached(), pair.to.reached()].concat());
            assert_eq!(reached, expected, "{opts:?}");

            now(pair.sender.add_sockets(opts.clone(), "moved")).unwrap();
            pair.exchange();
            assert_eq!(pair.sockets(to(&["moved"])).await, expected, "{opts:?}");
            assert_eq!(pair.rooms(opts.clone()).await.contains(&"moved".into()), !expected.is_empty());
            now(pair.sender.del_sockets(opts.clone(), "moved")).unwrap();
            assert!(pair.sockets(to(&["moved"])).await.is_empty(), "{opts:?}");
            assert!(!pair.rooms(everyone()).await.contains(&"moved".into()));
        }
        assert_eq!(pair.rooms(everyone()).await, ["lobby", "quiet"]);
        assert!(pair.nothing_is_pending());
    }
}

#[tokio::test]
async fn disconnections_mean_the_same_sockets_everywhere() {
    for index in 0..selections([[Sid::new(); 3]; 2], Uid::new()).len() {
        let pair = Pair::exact();
        let sids = crowd(&pair);
        let (opts, expected) = selections(sids, pair.to.server).swap_remove(index);
        now(pair.sender.disconnect_socket(opts)).unwrap();
        pair.exchange();
        let stay = sids.concat().into_iter().filter(|sid| !expected.contains(sid)).collect();
        assert_eq!(pair.sockets(everyone()).await, sorted(stay));
    }
}

#[tokio::test]
async fn orders_change_what_an_exact_namespace_wants() {
    let pair = Pair::exact();
    let sid = pair.to.connect();
    now(pair.sender.add_sockets(one(sid, pair.to.server), ["r", "s"])).unwrap();
    assert_eq!(pair.exchange(), 1);
    assert!(pair.b.wants("/chat", "r") && pair.b.wants("/chat", "s"));
    now(pair.sender.del_sockets(to(&["s"]), "r")).unwrap();
    pair.exchange();
    assert!(!pair.b.wants("/chat", "r") && pair.b.wants("/chat", "s"));

    // A socket that has gone meanwhile joins nothing: nobody would take it back.
    pair.to.disconnect(&pair.receiver, sid);
    now(pair.sender.add_sockets(one(sid, pair.to.server), "late")).unwrap();
    pair.exchange();
    assert!(!pair.b.wants("/chat", "late") && pair.receiver.local().socket_rooms(sid).is_empty());
    // Nor does this server take a socket of another for its own.
    assert!(pair.sender.local().socket_rooms(sid).is_empty());
}

#[tokio::test]
async fn what_is_sent_before_a_disconnection_arrives() {
    let pair = Pair::flood();
    let sid = pair.to.connect();
    pair.emit(everyone()).unwrap();
    now(pair.sender.disconnect_socket(everyone())).unwrap();
    pair.emit(everyone()).unwrap();
    assert_eq!(pair.exchange(), 3);
    assert_eq!(pair.to.reached(), [sid], "the first, and not the last");
}

#[tokio::test]
async fn one_server_costs_one_frame_to_its_node() {
    let pair = Pair::flood();
    let c = Side::new("c");
    let third = FakeSockets::new("/chat", FakeParser::Text);
    let _third = c.adapter(RoomcastAdapterConfig::new(), &third);
    let to_c = pair.a.meet(&c);
    pair.b.tell(&pair.a, pair.queue.slot);
    c.tell(&pair.a, to_c.slot);
    third.connect();
    let sid = pair.to.connect();
    // A second server of that node has the same path, and says that it has the same socket.
    let second = FakeSockets::new("/chat", FakeParser::Text);
    let _second = pair.b.adapter(RoomcastAdapterConfig::new(), &second);
    lock_listed(&second, sid);
    let opts = || one(sid, pair.to.server);
    let to_c = || {
        let mut waiting = Vec::new();
        to_c.take(usize::MAX >> 1, &mut waiting);
        waiting.len()
    };

    let adapter = &pair.sender;
    now(adapter.add_sockets(opts(), "r")).unwrap();
    assert_eq!((pair.exchange(), to_c()), (1, 0));
    assert_eq!(pair.rooms(opts()).await, ["r"]);
    assert_eq!(pair.sockets(opts()).await, [sid]);
    assert_eq!(pair.acks(opts(), None).await.0.len(), 1);
    now(adapter.del_sockets(opts(), "r")).unwrap();
    now(adapter.disconnect_socket(opts())).unwrap();
    assert_eq!((pair.exchange(), to_c()), (2, 0));
    // A server that nobody has.
    assert!(pair.sockets(one(sid, Uid::new())).await.is_empty());
    assert_eq!((pair.exchange(), to_c()), (0, 0));
    assert_eq!(now(adapter.server_count()), Ok(3));
}

#[tokio::test]
async fn a_node_without_the_namespace_ends_its_share_at_once() {
    let mut pair = Pair::flood();
    let here = pair.from.connect();
    pair.receiver =
        pair.b.adapter(RoomcastAdapterConfig::new(), &FakeSockets::new("/other", FakeParser::Text));
    // It is unknown, so it is asked.
    let (acks, answers) = pair.acks(everyone(), Some(Duration::from_secs(3600))).await;
    assert_eq!((acks.len(), answers.is_complete()), (1, true));
    assert_eq!(pair.sockets(everyone()).await, [here]);
    assert_eq!(now(pair.sender.server_count()), Ok(2));
    // Known to lack it, it is not.
    pair.b.tell(&pair.a, pair.queue.slot);
    assert_eq!(now(pair.sender.fetch_sockets(everyone())).unwrap().len(), 1);
    assert_eq!((now(pair.sender.server_count()), pair.exchange()), (Ok(1), 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_says_nothing_costs_the_timeout() {
    let pair = Pair::new(
        &RoomcastAdapterConfig::new().with_request_timeout(Duration::from_secs(2)),
        FakeParser::Text,
    );
    let here = pair.from.connect();
    join(&pair.sender, here, "r");
    let start = tokio::time::Instant::now();
    // Both see what the inner one asks.
    let ((rooms, inner), outer) = with_answers(with_answers(pair.sender.rooms(everyone()))).await;
    assert_eq!(rooms.unwrap(), ["r"]);
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!(inner.missing()[0].reason, MissingReason::TimedOut);
    assert_eq!(inner.missing(), outer.missing());
    let (_, none) = with_answers(async {}).await;
    assert!(none.is_complete());
    // Without end: what is answered is forgotten, what is missing is kept.
    let (_, many) = with_answers(async {
        for _ in 0..1000 {
            pair.rooms(everyone()).await;
        }
    })
    .await;
    assert!(many.is_complete() && many.noted() < 10);
    pair.settle().await;
    assert!(pair.nothing_is_pending());
}

#[tokio::test]
async fn limits_are_errors_and_this_server_is_served() {
    let mut config = Config::default();
    config.link.max_requests = 0;
    let side = Side::with_config("a", config);
    let sockets = FakeSockets::new("/chat", FakeParser::Text);
    let adapter = side.adapter(RoomcastAdapterConfig::new(), &sockets);
    side.meet(&Side::new("b"));
    let here = sockets.connect();
    let packet = || event("/chat", text("[1]"));
    let asked = |result: Result<(), Error>| assert!(matches!(result, Err(Error::TooManyRequests(_))));
    asked(adapter.rooms(everyone()).await.map(drop));
    asked(adapter.fetch_sockets(everyone()).await.map(drop));
    asked(adapter.broadcast_with_ack(packet(), everyone(), None).await.map(drop));
    assert_eq!(sockets.reached(), [here]);

    let pair = Pair::flood();
    let here = pair.from.connect();
    let adapter = &pair.sender;
    let long: Vec<String> = vec!["x".repeat(513)];
    assert!(matches!(now(adapter.add_sockets(everyone(), long.clone())), Err(Error::Room(_))));
    assert!(matches!(now(adapter.del_sockets(everyone(), long)), Err(Error::Room(_))));
    let many: Vec<String> = (0..1025).map(|room| room.to_string()).collect();
    let result = now(adapter.add_sockets(everyone(), many));
    assert_eq!(result, Err(Error::TooManyRooms { got: 1025 }));
    assert_eq!(adapter.local().socket_rooms(here).len(), 1025);
    // Together over what a head may have.
    let names: Vec<String> = (0..200).map(|room| format!("{room:0500}")).collect();
    let result = now(adapter.del_sockets(everyone(), names));
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    assert!(matches!(adapter.rooms(to(&["r"; 1025])).await, Err(Error::TooManyRooms { got: 1025 })));
    let huge = event("/chat", Value::Str("x".repeat(16 << 20).into(), None));
    let result = adapter.broadcast_with_ack(huge, everyone(), None).await.map(drop);
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    let ack = Packet { inner: PacketData::Event(text("[]"), Some(1)), ns: "/chat".into() };
    let result = adapter.broadcast_with_ack(ack, everyone(), None).await.map(drop);
    assert_eq!(result, Err(Error::NotAnEvent));
    assert!(pair.nothing_is_pending());
    assert_eq!(pair.exchange(), 0);
}

#[tokio::test]
async fn a_queue_that_takes_nothing_is_a_drop_and_a_missing_answer() {
    let pair = Pair::flood();
    pair.queue.close();
    assert_eq!(now(pair.sender.add_sockets(everyone(), "r")), Ok(()));
    assert!(matches!(now(pair.sender.disconnect_socket(everyone())), Ok(())));
    let (rooms, answers) = with_answers(pair.sender.rooms(everyone())).await;
    assert_eq!((rooms.map(|rooms| rooms.len()), answers.missing().len()), (Ok(0), 1));
    assert_eq!(pair.queue.counters.dropped_gone.load(Ordering::Relaxed), 3);
}

/// What the plain API asks, of everyone in the namespace.
async fn ask_plainly(pair: &Pair, op: Op, edit: impl FnOnce(&mut RequestHead<'_>)) -> Vec<Bytes> {
    let to = BroadcastHead {
        ns: "/chat",
        kind: PayloadKind::Plain,
        flags: 0,
        rooms: SmallVec::new(),
        except: SmallVec::new(),
        server: None,
        socket: None,
        attachments: SmallVec::new(),
    };
    let mut head = RequestHead { id: 0, op, timeout_ms: 0, credit: 8, names: smallvec![], to };
    edit(&mut head);
    let ask = Ask { targets: Targets::All, head, timeout: None, here: false };
    let mut asked = pair.a.hub.ask(ask, &Bytes::new()).unwrap();
    let mut bodies = Vec::new();
    while let Some(answer) = pair.run(asked.next()).await {
        bodies.push(answer.body);
    }
    assert_eq!(asked.missing(), []);
    bodies
}

#[tokio::test]
async fn the_plain_api_is_answered_too() {
    let pair = Pair::exact();
    let [_, sids] = crowd(&pair);
    let data = pair.receiver.data().of(sids[1], || None, drop);
    data.set(Bytes::from_static(b"user-1"));

    let count = ask_plainly(&pair, Op::Count, |_| ()).await;
    assert_eq!(decode_body::<u64>(&count[0]), Ok(3));
    let count = ask_plainly(&pair, Op::Count, |head| head.to.rooms.push("quiet")).await;
    assert_eq!(decode_body::<u64>(&count[0]), Ok(1));
    // The number of a member that is left out, and one that is meant.
    let count = ask_plainly(&pair, Op::Count, |head| (head.to.flags, head.to.socket) = (2, Some("7"))).await;
    assert_eq!(decode_body::<u64>(&count[0]), Ok(3));
    assert!(ask_plainly(&pair, Op::Count, |head| head.to.socket = Some("7")).await.is_empty());

    let sizes = ask_plainly(&pair, Op::RoomSizes, |_| ()).await;
    let sizes: Vec<RoomRecord> = decode_body(&sizes[0]).unwrap();
    let sizes: BTreeMap<_, _> = sizes.into_iter().map(|record| (record.room, record.members)).collect();
    assert_eq!(sizes, BTreeMap::from([("lobby".into(), 2), ("quiet".into(), 1)]));

    let records = ask_plainly(&pair, Op::Sockets, |head| head.to.rooms.push("quiet")).await;
    let records: Vec<SocketRecord> = decode_body(&records[0]).unwrap();
    assert_eq!((records.len(), &records[0].id), (1, &sids[1].to_string()));
    assert_eq!((records[0].rooms.len(), &records[0].data[..]), (2, &b"user-1"[..]));
    assert_eq!(records[0].server, Some(pair.to.server.to_string()));

    // Messages of the plain API are for its own members.
    assert!(ask_plainly(&pair, Op::Deliver, |_| ()).await.is_empty());
    assert!(pair.to.sent().is_empty());
    ask_plainly(&pair, Op::Join, |head| head.names.push("hall")).await;
    assert_eq!(pair.receiver.local().sockets(to(&["hall"])).len(), 3);
    assert!(pair.b.wants("/chat", "hall"));
    ask_plainly(&pair, Op::Leave, |head| head.names.push("hall")).await;
    assert!(!pair.b.wants("/chat", "hall"));
    ask_plainly(&pair, Op::Disconnect, |head| head.to.except.push("quiet")).await;
    assert_eq!(pair.receiver.local().fetch_sockets(everyone()).len(), 1);
    drop(data);
}

#[tokio::test]
async fn long_lists_come_in_parts() {
    let pair = Pair::flood();
    let sids: Vec<Sid> = (0..5000).map(|_| pair.to.connect()).collect();
    for (number, sid) in sids.iter().enumerate() {
        pair.receiver.local().add_all(*sid, format!("room-{number:0100}"));
    }
    assert_eq!(pair.sockets(everyone()).await, sorted(sids));
    assert_eq!(pair.rooms(everyone()).await.len(), 5000);
    assert!(pair.nothing_is_pending());
}
