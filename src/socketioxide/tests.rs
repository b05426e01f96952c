mod acks;
mod fake;
mod receipts;
mod requests;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use socketioxide_core::adapter::errors::{AdapterError, BroadcastError};
use socketioxide_core::adapter::{BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter};
use socketioxide_core::packet::{Packet, PacketData};
use socketioxide_core::{Sid, Uid, Value};

use self::fake::{FakeAdapter, FakeParser, FakeSockets, Side, carry, event, now, text};
use super::adapter::Rooms;
use super::{InitError, RoomcastAdapter, RoomcastAdapterConfig};
use crate::config::Config;
use crate::core::interest::RoomMode;
use crate::event::{RoomEvent, RoomEvents};
use crate::hub::peer::PeerQueue;

/// Two nodes with one server each; `queue` leads from the first to the second.
struct Pair {
    a: Side,
    b: Side,
    from: FakeSockets,
    to: FakeSockets,
    sender: Arc<FakeAdapter>,
    receiver: Arc<FakeAdapter>,
    queue: Arc<PeerQueue>,
    /// Leads from the second to the first.
    back: Arc<PeerQueue>,
}

impl Pair {
    fn new(config: &RoomcastAdapterConfig, parser: FakeParser) -> Self {
        Self::between(Side::new("a"), config, parser)
    }

    fn with_config(config: Config) -> Self {
        Self::between(Side::with_config("a", config), &RoomcastAdapterConfig::new(), FakeParser::Text)
    }

    fn between(a: Side, config: &RoomcastAdapterConfig, parser: FakeParser) -> Self {
        let b = Side::new("b");
        let (from, to) = (FakeSockets::new("/chat", parser), FakeSockets::new("/chat", parser));
        let sender = a.adapter(config.clone(), &from);
        let receiver = b.adapter(config.clone(), &to);
        let (queue, back) = (a.meet(&b), b.meet(&a));
        Self { a, b, from, to, sender, receiver, queue, back }
    }

    fn flood() -> Self {
        Self::new(&RoomcastAdapterConfig::new(), FakeParser::Text)
    }

    fn exact() -> Self {
        Self::new(&RoomcastAdapterConfig::new().with_exact_rooms(true), FakeParser::Text)
    }

    fn emit(&self, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        now(self.sender.broadcast(event("/chat", text(r#"["hi"]"#)), opts))
    }

    fn carry(&self) -> usize {
        carry(&self.queue, &self.b)
    }
}

fn to(rooms: &[&'static str]) -> BroadcastOptions {
    let mut opts = BroadcastOptions::default();
    opts.rooms = rooms.iter().map(|room| (*room).into()).collect();
    opts
}

fn everyone() -> BroadcastOptions {
    flagged(BroadcastOptions::default(), BroadcastFlags::Broadcast)
}

fn flagged(mut opts: BroadcastOptions, flag: BroadcastFlags) -> BroadcastOptions {
    opts.add_flag(flag);
    opts
}

fn refusal(result: Result<(), BroadcastError>) -> String {
    match result {
        Err(BroadcastError::Adapter(AdapterError(error))) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// What listeners heard, and the socket where there is one, until now.
fn heard(events: &mut RoomEvents) -> Vec<(&'static str, String, String)> {
    let mut heard = Vec::new();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(event) = std::pin::pin!(events.recv()).poll(&mut context) {
        let event = event.expect("the node runs");
        let room = event.place().expect("nothing was missed").1.to_string();
        let socket = match &event {
            RoomEvent::RoomJoined { socket, .. } | RoomEvent::RoomLeft { socket, .. } => socket.to_string(),
            _ => String::new(),
        };
        heard.push((event.name(), room, socket));
    }
    heard
}

/// A proper join, as the extractor does it.
fn join(adapter: &FakeAdapter, sid: Sid, room: &'static str) {
    adapter.join(&adapter.book().holder(sid), vec![room.into()]);
}

#[test]
fn text_and_attachments_arrive_as_they_were() {
    let pair = Pair::flood();
    let (here, there) = (pair.from.connect(), pair.to.connect());
    let values = [
        text(r#"["hi"]"#),
        Value::Str(
            "[\"bin\",{\"_placeholder\":true,\"num\":0}]".into(),
            Some([Bytes::from_static(b"\0\xff")].into()),
        ),
        Value::Str("[]".into(), Some([Bytes::new(), Bytes::from_static(b"b"), Bytes::new()].into())),
    ];
    for value in values {
        now(pair.sender.broadcast(event("/chat", value.clone()), everyone())).unwrap();
        assert_eq!(pair.from.sent(), [(here, value.clone())]);
        assert_eq!(pair.carry(), 1);
        assert_eq!(pair.to.sent(), [(there, value)]);
    }
}

#[test]
fn bytes_arrive_as_they_were() {
    let pair = Pair::new(&RoomcastAdapterConfig::new(), FakeParser::Bytes);
    let there = pair.to.connect();
    let value = Value::Bytes(Bytes::from_static(b"\x92\xa2hi\xc0"));
    now(pair.sender.broadcast(event("/chat", value.clone()), everyone())).unwrap();
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.to.sent(), [(there, value)]);
}

#[test]
fn a_value_of_another_parser_is_dropped() {
    let mut pair = Pair::flood();
    pair.to = FakeSockets::new("/chat", FakeParser::Bytes);
    pair.receiver = pair.b.adapter(RoomcastAdapterConfig::new(), &pair.to);
    pair.to.connect();
    pair.emit(everyone()).unwrap();
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.to.sent(), []);
    assert!(pair.receiver.warned.load(Ordering::Relaxed));
}

#[test]
fn options_select_the_same_sockets_there() {
    let pair = Pair::flood();
    let [lobby, both, none] = [pair.to.connect(), pair.to.connect(), pair.to.connect()];
    pair.receiver.local().add_all(lobby, "lobby");
    pair.receiver.local().add_all(both, ["lobby", "quiet"]);
    let mut quiet = to(&["lobby"]);
    quiet.except = ["quiet".into()].into_iter().collect();
    let mut loud = everyone();
    loud.except = quiet.except.clone();
    let mut sender = everyone();
    sender.sid = Some(none);
    let mut volatile_to = to(&["quiet"]);
    volatile_to.add_flag(BroadcastFlags::Broadcast);
    let cases = [
        (to(&["lobby"]), vec![lobby, both]),
        (to(&["lobby", "quiet"]), vec![lobby, both]),
        (to(&["elsewhere"]), vec![]),
        (quiet, vec![lobby]),
        (loud, vec![lobby, none]),
        (everyone(), vec![lobby, both, none]),
        (sender, vec![lobby, both]),
        (volatile_to, vec![both]),
    ];
    for (opts, mut expected) in cases {
        pair.emit(opts.clone()).unwrap();
        assert_eq!(pair.carry(), 1, "{opts:?}");
        let mut reached = pair.to.reached();
        reached.sort();
        expected.sort();
        assert_eq!(reached, expected, "{opts:?}");
    }
}

#[test]
fn nothing_is_sent_that_can_match_nothing_there() {
    let pair = Pair::flood();
    let here = pair.from.connect();
    let mut own_server = everyone();
    own_server.server_id = Some(pair.from.server);
    let mut except = BroadcastOptions::default();
    except.except = ["quiet".into()].into_iter().collect();
    let cases = [
        (BroadcastOptions::default(), vec![]),
        (except, vec![]),
        (BroadcastOptions::new(here), vec![here]),
        (BroadcastOptions::new(Sid::new()), vec![]),
        (flagged(everyone(), BroadcastFlags::Local), vec![here]),
        (own_server, vec![here]),
    ];
    for (opts, expected) in cases {
        pair.emit(opts.clone()).unwrap();
        assert_eq!(pair.from.reached(), expected, "{opts:?}");
        assert_eq!(pair.carry(), 0, "{opts:?}");
    }
}

#[test]
fn a_targeted_broadcast_goes_to_the_node_of_that_server() {
    let pair = Pair::flood();
    let c = Side::new("c");
    let third = FakeSockets::new("/chat", FakeParser::Text);
    let _third = c.adapter(RoomcastAdapterConfig::new(), &third);
    let to_c = pair.a.meet(&c);
    pair.b.tell(&pair.a, pair.queue.slot);
    c.tell(&pair.a, to_c.slot);
    let (there, _) = (pair.to.connect(), third.connect());

    // A second server of the node has the same path and must not deliver.
    let second = FakeSockets::new("/chat", FakeParser::Text);
    let _second = pair.b.adapter(RoomcastAdapterConfig::new(), &second);
    lock_listed(&second, there);

    let mut opts = BroadcastOptions::new(there);
    opts.server_id = Some(pair.to.server);
    pair.emit(opts.clone()).unwrap();
    assert_eq!((pair.carry(), carry(&to_c, &c)), (1, 0));
    assert_eq!((pair.to.reached(), second.reached()), (vec![there], vec![]));

    opts.server_id = Some(Uid::new());
    pair.emit(opts).unwrap();
    assert_eq!((pair.carry(), carry(&to_c, &c)), (0, 0));
}

fn lock_listed(sockets: &FakeSockets, sid: Sid) {
    crate::hub::lock(&sockets.listed).push(sid);
}

#[test]
fn exact_namespaces_get_what_has_members_there() {
    let pair = Pair::exact();
    pair.b.tell(&pair.a, pair.queue.slot);
    pair.emit(to(&["lobby"])).unwrap();
    assert_eq!(pair.carry(), 0);
    pair.emit(everyone()).unwrap();
    assert_eq!(pair.carry(), 1);

    let sid = pair.to.connect();
    join(&pair.receiver, sid, "lobby");
    pair.b.tell(&pair.a, pair.queue.slot);
    pair.emit(to(&["hall", "lobby"])).unwrap();
    pair.emit(to(&["hall"])).unwrap();
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.to.reached(), [sid]);

    pair.receiver.leave_all(&pair.receiver.book().holder(sid));
    pair.b.tell(&pair.a, pair.queue.slot);
    pair.emit(to(&["lobby"])).unwrap();
    assert_eq!(pair.carry(), 0);

    // Without its namespace the node gets nothing at all, and owes nothing.
    join(&pair.receiver, sid, "lobby");
    now(pair.receiver.close()).unwrap();
    pair.b.tell(&pair.a, pair.queue.slot);
    pair.emit(everyone()).unwrap();
    assert_eq!((pair.carry(), pair.b.wanted_in_all()), (0, 0));
}

#[test]
fn errors_here_do_not_stop_the_network_and_the_other_way_round() {
    let mut pair = Pair::flood();
    pair.from.fails = true;
    pair.sender = pair.a.adapter(RoomcastAdapterConfig::new(), &pair.from);
    let (here, _) = (pair.from.connect(), pair.to.connect());
    assert!(matches!(pair.emit(everyone()), Err(BroadcastError::Socket(errors)) if errors.len() == 1));
    assert_eq!((pair.from.reached(), pair.carry()), (vec![here], 1));

    pair.sender.local().add_all(here, "r");
    let mut many = to(&["r"; 1025]);
    let error = refusal(pair.emit(many.clone()));
    assert!(error.contains("1025") && error.contains("1024"), "{error}");
    assert_eq!((pair.from.reached(), pair.carry()), (vec![here], 0));

    many.rooms = ["r".into(), "x".repeat(513).into()].into_iter().collect();
    assert!(refusal(pair.emit(many)).contains("513"));
    assert_eq!((pair.from.reached(), pair.carry()), (vec![here], 0));

    let huge = Value::Str("x".repeat((16 << 20) + 1).into(), None);
    let error = refusal(now(pair.sender.broadcast(event("/chat", huge), everyone())));
    assert!(error.contains("16777217") && error.contains("16777216"), "{error}");
    assert_eq!((pair.from.reached(), pair.carry()), (vec![here], 0));

    let ack = Packet { inner: PacketData::Event(text("[]"), Some(1)), ns: "/chat".into() };
    refusal(now(pair.sender.broadcast(ack, everyone())));
    assert_eq!((pair.from.reached(), pair.carry()), (vec![here], 0));
}

#[test]
fn volatile_broadcasts_are_never_queued() {
    let pair = Pair::flood();
    let here = pair.from.connect();
    pair.emit(flagged(everyone(), BroadcastFlags::Volatile)).unwrap();
    assert_eq!((pair.from.reached(), pair.carry()), (vec![here], 0));
    assert_eq!(pair.queue.counters.dropped_volatile.load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_limited_to_this_server_is_done_on_the_first_poll() {
    let pair = Pair::exact();
    let sid = pair.from.connect();
    let adapter = &pair.sender;
    let packet = || event("/chat", text("[]"));
    let local = || flagged(everyone(), BroadcastFlags::Local);
    assert_eq!(now(adapter.add_sockets(local(), ["r", "s"])), Ok(()));
    assert!(pair.a.wants("/chat", "r") && pair.a.wants("/chat", "s"));
    assert_eq!(now(adapter.rooms(local())).map(|rooms| rooms.len()), Ok(2));
    assert_eq!(now(adapter.del_sockets(local(), "r")), Ok(()));
    assert!(!pair.a.wants("/chat", "r") && pair.a.wants("/chat", "s"));
    assert_eq!(now(adapter.fetch_sockets(local())).map(|found| found[0].id), Ok(sid));
    assert!(now(adapter.broadcast_with_ack(packet(), local(), None)).is_ok());
    assert!(now(adapter.disconnect_socket(local())).is_ok());
    assert_eq!(now(adapter.fetch_sockets(local())).map(|found| found.len()), Ok(0));
    assert_eq!(pair.carry(), 0);
}

#[test]
fn a_namespace_is_added_at_once_or_refused() {
    let side = Side::new("a");
    let init = |path: String| {
        let mut sockets = FakeSockets::new("/", FakeParser::Text);
        sockets.path = path.into();
        let ctr = side.ctr(RoomcastAdapterConfig::new());
        let adapter = Arc::new(RoomcastAdapter::new(&ctr, CoreLocalAdapter::new(sockets)));
        let added = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&added);
        let result = adapter.init(move || flag.store(true, Ordering::Relaxed));
        // Before anyone polls.
        let added = added.load(Ordering::Relaxed);
        (added, now(result))
    };
    assert_eq!(init("/chat".to_owned()), (true, Ok(())));
    assert!(matches!(init(format!("/{}", "x".repeat(255))), (false, Err(InitError::Path(_)))));
    assert!(matches!(init("!server".to_owned()), (false, Err(InitError::Slash(_)))));
    // The adapters are gone again.
    assert_eq!((side.wanted("/chat"), side.wanted_in_all()), ((None, 0), 0));
}

#[test]
fn namespaces_have_a_limit_and_each_kind_of_refusal_is_logged_once() {
    let mut config = Config::default();
    // One for the servers, two for the namespaces.
    config.link.max_namespaces = 3;
    let side = Side::with_config("a", config);
    let ctr = side.ctr(RoomcastAdapterConfig::new());
    let init = |path: String| {
        let mut sockets = FakeSockets::new("/", FakeParser::Text);
        sockets.path = path.into();
        let adapter = Arc::new(RoomcastAdapter::new(&ctr, CoreLocalAdapter::new(sockets)));
        (now(Arc::clone(&adapter).init(|| ())), adapter)
    };
    let (one, two) = (init("/1".to_owned()), init("/2".to_owned()));
    assert_eq!((&one.0, &two.0), (&Ok(()), &Ok(())));
    let full = InitError::TooMany { limit: 3 };
    assert_eq!(init("/3".to_owned()).0, Err(full.clone()));
    assert_eq!(init("/2".to_owned()).0, Ok(()), "another adapter of a path that is there");
    drop(two);
    assert_eq!(init("/3".to_owned()).0, Ok(()));
    drop(one);

    let long = init(format!("/{}", "x".repeat(255))).0.unwrap_err();
    for error in [&full, &long] {
        assert_eq!([(); 3].map(|()| ctr.refusals.is_first(error)), [true, false, false]);
    }
}

#[test]
fn attachments_that_nobody_wants_are_counted_and_not_sent() {
    let pair = Pair::exact();
    let emits = || pair.a.hub.counters.emits();
    let binary = || Value::Str("[]".into(), Some([Bytes::from_static(b"b")].into()));
    pair.b.tell(&pair.a, pair.queue.slot);
    for value in [text("[]"), binary()] {
        let before = emits();
        now(pair.sender.broadcast(event("/chat", value), to(&["lobby"]))).unwrap();
        assert_eq!((emits() - before, pair.carry()), (1, 0));
    }
    join(&pair.receiver, pair.to.connect(), "lobby");
    pair.b.tell(&pair.a, pair.queue.slot);
    now(pair.sender.broadcast(event("/chat", binary()), to(&["lobby"]))).unwrap();
    assert_eq!((pair.carry(), pair.to.sent().len()), (1, 1));
}

#[test]
fn modes_go_by_namespace() {
    let side = Side::new("a");
    let config = RoomcastAdapterConfig::new().with_exact_namespace("/exact");
    let (exact, flood) =
        (FakeSockets::new("/exact", FakeParser::Text), FakeSockets::new("/", FakeParser::Text));
    let _adapters = (side.adapter(config.clone(), &exact), side.adapter(config, &flood));
    assert_eq!(side.wanted("/exact"), (Some(RoomMode::Exact), 0));
    assert_eq!(side.wanted("/"), (Some(RoomMode::Flood), 0));
}

#[tokio::test(start_paused = true)]
async fn a_room_joined_past_the_book_floods_the_namespace() {
    let pair = Pair::exact();
    let (proper, raw) = (pair.to.connect(), pair.to.connect());
    join(&pair.receiver, proper, "lobby");
    pair.receiver.get_local().add_all(raw, "lobby");
    tokio::time::sleep(Duration::from_secs(100)).await;
    // Somebody holds the room, so nothing is missed.
    assert_eq!(pair.b.wanted("/chat"), (Some(RoomMode::Exact), 1));

    pair.receiver.leave(&pair.receiver.book().holder(proper), vec!["lobby".into()]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(pair.b.wanted("/chat").0, Some(RoomMode::Flood));
    // The books stay in order.
    join(&pair.receiver, proper, "hall");
    pair.receiver.leave_all(&pair.receiver.book().holder(proper));
    drop(pair.receiver);
    assert_eq!((pair.b.wanted("/chat"), pair.b.wanted_in_all()), ((None, 0), 0));
}

/// The first join past the book comes from a thread without a runtime, and the runtime of the next one ends.
#[test]
fn checks_run_whoever_asks_first() {
    let pair = Pair::exact();
    let raw = pair.to.connect();
    pair.receiver.get_local().add_all(raw, "lobby");
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let short = runtime().unwrap();
    short.block_on(async { _ = pair.receiver.get_local() });
    drop(short);
    assert_eq!(pair.b.wanted("/chat").0, Some(RoomMode::Exact));
    runtime().unwrap().block_on(async {
        pair.receiver.get_local();
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
    assert_eq!(pair.b.wanted("/chat").0, Some(RoomMode::Flood));
}

#[tokio::test(start_paused = true)]
async fn proper_joins_and_leaves_never_flood() {
    let pair = Pair::exact();
    for round in 0..50 {
        let sid = pair.to.connect();
        join(&pair.receiver, sid, "lobby");
        tokio::time::sleep(Duration::from_millis(40)).await;
        if round % 2 == 0 {
            pair.receiver.leave(&pair.receiver.book().holder(sid), vec!["lobby".into()]);
        }
        pair.to.disconnect(&pair.receiver, sid);
    }
    tokio::time::sleep(Duration::from_secs(200)).await;
    // Sockets that only the adapter knew are forgotten some time after they went.
    assert_eq!(pair.b.wanted("/chat"), (Some(RoomMode::Exact), 0));
    assert_eq!(pair.receiver.book().owned(), []);
}

#[tokio::test(start_paused = true)]
async fn a_raw_join_in_a_middleware_is_noticed_when_the_socket_is_listed() {
    let pair = Pair::exact();
    let sid = Sid::new();
    pair.receiver.get_local().add_all(sid, "lobby");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(pair.b.wanted("/chat").0, Some(RoomMode::Exact));
    lock_listed(&pair.to, sid);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(pair.b.wanted("/chat").0, Some(RoomMode::Flood));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_book_holds_what_sockets_are_in_whatever_the_order() {
    const ROOMS: [&str; 3] = ["lobby", "hall", "attic"];
    let pair = Pair::exact();
    // The same few sockets and rooms everywhere, so that moves meet.
    let sids = [pair.to.connect(), pair.to.connect()];
    let movers: Vec<_> = (0..4usize)
        .map(|mover| {
            let adapter = Arc::clone(&pair.receiver);
            tokio::task::spawn_blocking(move || {
                for step in 0..5_000usize {
                    let holder = adapter.book().holder(sids[(mover + step) % 2]);
                    let room = ROOMS[(mover * 7 + step * 5 + step / 3) % 3];
                    match (mover + step / 2) % 5 {
                        0 | 1 => adapter.join(&holder, vec![room.into()]),
                        2 => adapter.leave(&holder, vec![room.into()]),
                        3 => adapter.join(&holder, ROOMS.iter().map(|room| (*room).into()).collect()),
                        _ => adapter.leave_all(&holder),
                    }
                }
            })
        })
        .collect();
    while movers.iter().any(|mover| !mover.is_finished()) {
        pair.receiver.check().await;
        pair.b.wanted("/chat");
    }
    for mover in movers {
        mover.await.unwrap();
    }
    for room in ROOMS {
        let members = pair.receiver.local().sockets(to(&[room]));
        assert_eq!(pair.b.wants("/chat", room), !members.is_empty(), "{room}");
    }
    assert_eq!(pair.b.wanted("/chat").0, Some(RoomMode::Exact));
    drop(pair.receiver);
    assert_eq!(pair.b.wanted_in_all(), 0);
}

#[test]
fn both_kinds_of_namespace_say_who_comes_and_goes() {
    for exact in [false, true] {
        let side = Side::new("a");
        let sockets = FakeSockets::new("/chat", FakeParser::Text);
        let config = RoomcastAdapterConfig::new().with_exact_rooms(exact);
        let adapter = side.adapter(config, &sockets);
        let mut events = side.hub.room_feed.listen();
        let (a, b) = (sockets.connect(), sockets.connect());
        let event = |name, room: &str, sid: Sid| (name, room.to_owned(), sid.to_string());
        let room = |name, room: &str| (name, room.to_owned(), String::new());

        join(&adapter, a, "r");
        join(&adapter, b, "r");
        join(&adapter, a, "r");
        adapter.leave(&adapter.book().holder(a), vec!["r".into(), "unknown".into()]);
        let expected = [
            room("create-room", "r"),
            event("join-room", "r", a),
            event("join-room", "r", b),
            event("leave-room", "r", a),
        ];
        assert_eq!(heard(&mut events), expected);
        let mut here = Vec::new();
        adapter.book().rooms_here(&mut |room, members| here.push((room.to_owned(), members)));
        assert_eq!(here, [("r".to_owned(), 1)]);

        now(adapter.add_sockets(flagged(everyone(), BroadcastFlags::Local), "s")).unwrap();
        now(adapter.del_sockets(flagged(everyone(), BroadcastFlags::Local), ["r", "s"])).unwrap();
        let mut moved = heard(&mut events);
        assert_eq!(moved[0], room("create-room", "s"));
        moved.sort();
        assert_eq!(moved.iter().filter(|event| event.0 == "join-room").count(), 2);
        assert_eq!(moved.iter().filter(|event| event.0 == "leave-room").count(), 3);
        assert_eq!(moved[1..3], [room("delete-room", "r"), room("delete-room", "s")]);
        assert_eq!(adapter.local().sockets(to(&["r", "s"])), []);

        // The end of the namespace is the end of its rooms, once.
        join(&adapter, a, "t");
        heard(&mut events);
        now(adapter.close()).unwrap();
        assert_eq!(heard(&mut events), [event("leave-room", "t", a), room("delete-room", "t")]);
        join(&adapter, a, "late");
        drop(adapter);
        assert_eq!(heard(&mut events), []);
        assert_eq!(side.wanted_in_all(), 0);
    }
}

/// Nothing is dropped with them: a check notices that they have gone, in a flood namespace, too.
#[tokio::test(start_paused = true)]
async fn sockets_that_only_the_adapter_moved_leave_when_they_go() {
    let pair = Pair::flood();
    let sid = pair.to.connect();
    let mut events = pair.b.hub.room_feed.listen();
    now(pair.receiver.add_sockets(flagged(everyone(), BroadcastFlags::Local), "r")).unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(heard(&mut events).len(), 2);
    pair.to.disconnect(&pair.receiver, sid);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let names: Vec<_> = heard(&mut events).into_iter().map(|event| event.0).collect();
    assert_eq!(names, ["leave-room", "delete-room"]);
    assert!(!pair.receiver.book().has_owned());
}

/// Two adapters of one path: the rooms of the node are those of both.
#[test]
fn a_room_of_two_adapters_is_one_room() {
    let side = Side::new("a");
    let (one, two) =
        (FakeSockets::new("/chat", FakeParser::Text), FakeSockets::new("/chat", FakeParser::Text));
    let first = side.adapter(RoomcastAdapterConfig::new(), &one);
    let mut events = side.hub.room_feed.listen();
    join(&first, one.connect(), "r");
    let second = side.adapter(RoomcastAdapterConfig::new(), &two);
    join(&second, two.connect(), "r");
    drop(first);
    drop(second);
    let names: Vec<_> = heard(&mut events).into_iter().map(|event| event.0).collect();
    assert_eq!(names, ["create-room", "join-room", "join-room", "leave-room", "leave-room", "delete-room"]);
}

/// A socket that comes back under its id while something still keeps the one before.
#[test]
fn a_later_socket_with_the_same_id_begins_anew() {
    let side = Side::new("a");
    let sockets = FakeSockets::new("/chat", FakeParser::Text);
    let adapter = side.adapter(RoomcastAdapterConfig::new(), &sockets);
    let mut events = side.hub.room_feed.listen();
    let sid = sockets.connect();
    let guard = || adapter.book().guard(sid, || None, |holder| holder);
    let before = guard();
    adapter.join(&before, vec!["r".into()]);
    let after = guard();
    adapter.join(&after, vec!["r".into()]);
    drop(before);
    let names: Vec<_> = heard(&mut events).into_iter().map(|event| event.0).collect();
    let once = ["create-room", "join-room"];
    assert_eq!(names, [&once[..], &["leave-room", "delete-room"], &once[..]].concat());
}

/// Sockets join, leave and go on several threads: what is told adds up, one room at a time.
#[test]
fn events_of_many_threads_add_up() {
    const ROOMS: [&str; 3] = ["lobby", "hall", "attic"];
    let mut config = Config::default();
    config.room_event_buffer.0 = 1 << 16;
    let side = Side::with_config("a", config);
    let sockets = FakeSockets::new("/chat", FakeParser::Text);
    let adapter = side.adapter(RoomcastAdapterConfig::new(), &sockets);
    let mut events = side.hub.room_feed.listen();
    let shared = [sockets.connect(), sockets.connect()];
    std::thread::scope(|scope| {
        for mover in 0..4usize {
            let (adapter, sockets) = (&adapter, &sockets);
            scope.spawn(move || {
                for step in 0..1_500usize {
                    let room = ROOMS[(mover * 7 + step * 5 + step / 3) % 3];
                    let holder = adapter.book().holder(shared[(mover + step) % 2]);
                    match (mover + step / 2) % 5 {
                        0 | 1 => adapter.join(&holder, vec![room.into()]),
                        2 => adapter.leave(&holder, vec![room.into()]),
                        3 => {
                            // A socket of its own, that goes without a leave.
                            let holder = adapter.book().guard(sockets.connect(), || None, |holder| holder);
                            adapter.join(&holder, ROOMS.map(Into::into).to_vec());
                        }
                        _ => adapter.leave_all(&holder),
                    }
                }
            });
        }
    });
    drop(adapter);
    let mut rooms = std::collections::HashMap::new();
    let heard = heard(&mut events);
    for (name, room, socket) in &heard {
        let members: &mut Option<std::collections::HashSet<&str>> = rooms.entry(room).or_default();
        let right = match (*name, members.as_mut()) {
            ("create-room", None) => members.replace(Default::default()).is_none(),
            ("join-room", Some(members)) => members.insert(socket),
            ("leave-room", Some(members)) => members.remove(&**socket),
            ("delete-room", Some(_)) => members.take().is_some_and(|members| members.is_empty()),
            _ => false,
        };
        assert!(right, "{name} {room} {socket}");
    }
    assert!(heard.len() > 5_000 && rooms.values().all(Option::is_none));
}
