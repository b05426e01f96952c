mod asking;

use std::sync::OnceLock;
use std::task::Poll;

use tokio::time::Duration;

use super::*;
use crate::config::{Config, QueuePolicy};
use crate::core::frame::MAX_ROOMS;
use crate::error::DropReason;
use crate::event::RoomEvent;
use crate::hub::NamespaceOp;
use crate::hub::peer::PeerQueue;
use crate::ids::{Incarnation, NodeId, RoomKey};

type Seen = Arc<Mutex<Vec<Bytes>>>;

fn hub(config: Config) -> Arc<Hub> {
    Hub::new(NodeId::new("a").unwrap(), Incarnation(1), config)
}

fn chat() -> (Arc<Hub>, NamespaceHandle) {
    let hub = hub(Config::default());
    let ns = NamespaceHandle::open(&hub, &NamespaceRegistry::default(), "/chat").unwrap();
    (hub, ns)
}

fn member(ns: &NamespaceHandle, rooms: &[&str]) -> (Member, Seen) {
    let seen = Seen::default();
    let member = ns.connect({
        let seen = Arc::clone(&seen);
        move |message| lock(&seen).push(message)
    });
    rooms.iter().for_each(|room| member.join(room).unwrap());
    (member, seen)
}

fn take(seen: &Seen) -> Vec<Bytes> {
    std::mem::take(&mut lock(seen))
}

fn head<'a>(kind: PayloadKind, rooms: &[&'a str], except: &[&'a str]) -> BroadcastHead<'a> {
    let (rooms, except) = (rooms.into(), except.into());
    let attachments = SmallVec::new();
    BroadcastHead { ns: "/chat", kind, flags: 0, rooms, except, server: None, socket: None, attachments }
}

/// What the registry would be told about rooms, without what cancelled out.
fn changes(hub: &Hub, ns: &NamespaceHandle) -> Vec<(RoomKey, i64)> {
    let mut pending = hub.take_pending();
    let rooms = pending.rooms.remove(ns.inner.ns()).unwrap_or_default();
    let mut changes: Vec<(RoomKey, i64)> = rooms.into_iter().filter(|(_, by)| *by != 0).collect();
    changes.sort_unstable();
    changes
}

fn sorted<const N: usize>(mut changes: [(RoomKey, i64); N]) -> Vec<(RoomKey, i64)> {
    changes.sort_unstable();
    changes.to_vec()
}

#[tokio::test]
async fn a_message_reaches_the_members_of_its_rooms() {
    let (_hub, ns) = chat();
    let (_a, a) = member(&ns, &["lobby"]);
    let (_b, b) = member(&ns, &["hall"]);
    let (_c, c) = member(&ns, &[]);
    ns.to("lobby").emit("one").unwrap();
    assert_eq!((take(&a), take(&b), take(&c)), (vec!["one".into()], vec![], vec![]));
    ns.all().emit("two").unwrap();
    for seen in [&a, &b, &c] {
        assert_eq!(take(seen), ["two"]);
    }
    ns.to("nobody is here").local().emit("three").unwrap();
    ns.to(["hall", "lobby"]).volatile().local().emit("four").unwrap();
    assert_eq!((take(&a), take(&b), take(&c)), (vec!["four".into()], vec!["four".into()], vec![]));
}

#[tokio::test]
async fn a_member_of_several_targeted_rooms_gets_one_copy() {
    let (_hub, ns) = chat();
    let (_a, a) = member(&ns, &["r", "s", "t"]);
    let (_b, b) = member(&ns, &["t"]);
    ns.to(["r", "s", "t", "r"]).emit("x").unwrap();
    assert_eq!((take(&a).len(), take(&b).len()), (1, 1));
    ns.inner.deliver(&head(PayloadKind::Plain, &["t", "r"], &[]), &"y".into());
    assert_eq!((take(&a).len(), take(&b).len()), (1, 1));
}

#[tokio::test]
async fn except_wins() {
    let (_hub, ns) = chat();
    let (_a, a) = member(&ns, &["r", "quiet"]);
    let (_b, b) = member(&ns, &["r"]);
    let (_c, c) = member(&ns, &["r", "busy"]);
    ns.to("r").except("quiet").except(["busy", "unknown"]).emit("x").unwrap();
    assert_eq!((take(&a).len(), take(&b).len(), take(&c).len()), (0, 1, 0));
    ns.all().except("quiet").emit("y").unwrap();
    assert_eq!((take(&a).len(), take(&b).len(), take(&c).len()), (0, 1, 1));
    ns.inner.deliver(&head(PayloadKind::Plain, &[], &["busy"]), &"z".into());
    assert_eq!((take(&a).len(), take(&b).len(), take(&c).len()), (1, 1, 0));
}

#[tokio::test]
async fn a_member_does_not_get_its_own_message() {
    let (_hub, ns) = chat();
    let (a_member, a) = member(&ns, &["r", "s"]);
    let (_b, b) = member(&ns, &["r"]);
    a_member.to("r").emit("x").unwrap();
    a_member.to(&["r".to_owned(), "s".to_owned()]).emit("y").unwrap();
    a_member.all().emit("z").unwrap();
    assert_eq!((take(&a).len(), take(&b)), (0, vec!["x".into(), "y".into(), "z".into()]));
}

#[tokio::test]
async fn an_empty_list_of_rooms_is_nobody() {
    let (hub, ns) = chat();
    let (_a, a) = member(&ns, &["r"]);
    ns.to([""; 0]).emit("x").unwrap();
    ns.to(Vec::<String>::new()).emit_wait("x").await.unwrap();
    assert!(take(&a).is_empty());
    assert_eq!(hub.counters.emits(), 0);
}

#[tokio::test]
async fn other_kinds_from_other_nodes_are_not_for_the_plain_api() {
    let (hub, ns) = chat();
    let (_a, a) = member(&ns, &["r"]);
    hub.deliver(&head(PayloadKind::SocketIoText, &["r"], &[]), &"x".into());
    hub.deliver(&head(PayloadKind::SocketIoBytes, &["r"], &[]), &"x".into());
    assert!(take(&a).is_empty());
    hub.deliver(&head(PayloadKind::Plain, &["r"], &[]), &"y".into());
    assert_eq!(take(&a), ["y"]);
}

#[tokio::test]
async fn interest_changes_with_the_first_and_the_last_member_only() {
    let (hub, ns) = chat();
    let pending = hub.take_pending();
    assert!(matches!(&pending.namespaces[..], [(_, NamespaceOp::Attach(RoomMode::Exact))]));
    let (everyone, r, s) = (ns.inner.ns().everyone(), ns.inner.ns().room("r"), ns.inner.ns().room("s"));

    let (a, _) = member(&ns, &["r", "s", "r"]);
    assert_eq!(changes(&hub, &ns), sorted([(everyone, 1), (r, 1), (s, 1)]));
    let (b, _) = member(&ns, &["r"]);
    assert_eq!(changes(&hub, &ns), []);
    a.leave("r");
    a.leave("r");
    a.leave("never joined");
    assert_eq!(changes(&hub, &ns), []);
    a.leave_all();
    assert_eq!(changes(&hub, &ns), [(s, -1)]);
    assert!(a.rooms().is_empty());
    drop(a);
    assert_eq!(changes(&hub, &ns), []);
    drop(b);
    assert_eq!(changes(&hub, &ns), sorted([(everyone, -1), (r, -1)]));
    drop(ns);
    let pending = hub.take_pending();
    assert!(matches!(&pending.namespaces[..], [(_, NamespaceOp::Detach(RoomMode::Exact))]));
}

#[tokio::test]
async fn a_dropped_member_gets_nothing_and_its_sink_goes() {
    let (_hub, ns) = chat();
    let (a, seen) = member(&ns, &["r"]);
    drop(a);
    ns.to("r").emit("x").unwrap();
    ns.all().emit("x").unwrap();
    assert!(take(&seen).is_empty());
    assert_eq!(Arc::strong_count(&seen), 1);
}

#[tokio::test]
async fn a_sink_may_call_back() {
    let (_hub, ns) = chat();
    let cell: Arc<OnceLock<Mutex<Option<Member>>>> = Arc::default();
    let sink = {
        let (cell, ns) = (Arc::clone(&cell), ns.clone());
        move |message: Bytes| {
            let Some(member) = cell.get() else { return };
            if message == "again" {
                return;
            }
            let member = lock(member).take().unwrap();
            member.join("deep").unwrap();
            member.leave("r");
            ns.to("deep").emit("again").unwrap();
            assert_eq!(member.rooms(), ["deep".into()]);
        }
    };
    let member = ns.connect(sink);
    member.join("r").unwrap();
    cell.get_or_init(|| Mutex::new(Some(member)));
    ns.to("r").emit("go").unwrap();
    assert!(lock(cell.get().unwrap()).is_none());
    assert!(ns.inner.read().room("deep").is_none(), "the member was dropped inside its own sink");
}

#[tokio::test]
async fn a_panic_in_a_sink_costs_only_its_own_message() {
    let (_hub, ns) = chat();
    let bad = ns.connect(|_| panic!("a bad sink"));
    bad.join("r").unwrap();
    let (_a, a) = member(&ns, &["r"]);
    ns.to("r").emit("x").unwrap();
    ns.inner.deliver(&head(PayloadKind::Plain, &["r"], &[]), &"y".into());
    assert_eq!(take(&a), ["x", "y"]);
}

#[tokio::test]
async fn limits_refuse_the_whole_message() {
    let (_hub, ns) = chat();
    let (a_member, a) = member(&ns, &["r"]);
    let long = "x".repeat(513);
    assert_eq!(a_member.join(&long), Err(IdError::Room { len: 513, limit: 512 }));
    let error = EmitError::Id(IdError::Room { len: 513, limit: 512 });
    assert_eq!(ns.to(["r", &long]).emit("x"), Err(error.clone()));
    assert_eq!(ns.all().except(&long).emit_wait("x").await, Err(error));
    let many = vec!["r"; MAX_ROOMS + 1];
    assert_eq!(ns.to(many).emit("x"), Err(EmitError::TooManyRooms { got: 1025, limit: 1024 }));
    assert!(take(&a).is_empty());
}

#[tokio::test]
async fn one_path_is_one_namespace_while_a_handle_or_a_member_lives() {
    let hub = hub(Config::default());
    let registry = NamespaceRegistry::default();
    let open = || NamespaceHandle::open(&hub, &registry, "/chat").unwrap();
    let (one, two) = (open(), open());
    assert!(Arc::ptr_eq(&one.inner, &two.inner));
    let (a, seen) = member(&one, &["r"]);
    drop((one, two));
    open().to("r").emit("x").unwrap();
    assert_eq!(take(&seen), ["x"]);
    drop(a);
    for n in 0..1_000 {
        NamespaceHandle::open(&hub, &registry, &format!("/{n}")).unwrap();
    }
    assert!(lock(&registry).len() < 32, "what is gone is forgotten");
    assert!(NamespaceHandle::open(&hub, &registry, "").is_err());
}

#[tokio::test]
async fn namespaces_have_a_limit() {
    let mut config = Config::default();
    config.link.max_namespaces = 2;
    let (hub, registry) = (hub(config), NamespaceRegistry::default());
    let open = |path: &str| NamespaceHandle::open(&hub, &registry, path);
    let (_one, two) = (open("/1").unwrap(), open("/2").unwrap());
    assert_eq!(open("/3").err(), Some(IdError::TooManyNamespaces { limit: 2 }));
    assert!(open("/2").is_ok(), "it is open");
    drop(two);
    assert!(open("/3").is_ok(), "there is room again");
}

#[tokio::test]
async fn a_peer_gets_what_it_may_want_and_emit_wait_waits_for_it() {
    let mut config = Config::default();
    config.link.outbox_bytes = 1_000;
    let hub = hub(config);
    let ns = NamespaceHandle::open(&hub, &NamespaceRegistry::default(), "/chat").unwrap();
    let (id, addr) = (NodeId::new("b").unwrap(), "127.0.0.1:7946".parse().unwrap());
    let peer = hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(2), slot, addr, 1, 1_000)));
    let (a_member, a) = member(&ns, &["r"]);

    let receipt = a_member.to("r").emit(vec![0; 800]).unwrap();
    assert_eq!((receipt.targeted, receipt.queued, peer.depth().0), (1, 1, 1));
    assert_eq!(ns.to("r").local().emit("here").unwrap().targeted, 0);
    let receipt = ns.to("r").emit(vec![0; 800]).unwrap();
    assert_eq!((receipt.queued, receipt.dropped.len(), take(&a).len()), (0, 1, 2));

    let free = add_peer(&hub, "c", 1 << 20);
    {
        let mut waiting = std::pin::pin!(ns.to("r").emit_wait(vec![0; 800]));
        let first = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
        assert!(first, "it waits for the one that is full");
        assert_eq!(
            (take(&a).len(), free.depth().0),
            (1, 1),
            "members here and peers with room have it at once"
        );
    }
    assert_eq!(peer.depth().0, 1, "given up");
    free.close();
    let waiting = ns.to("r").emit_wait(vec![0; 800]);
    let (receipt, ()) = tokio::join!(waiting, async {
        peer.take(usize::MAX, &mut Vec::new());
        peer.ack(crate::ids::Seq(1));
    });
    assert_eq!((receipt.unwrap().queued, take(&a).len()), (1, 1));
}

fn add_peer(hub: &Hub, id: &str, limit: usize) -> Arc<PeerQueue> {
    let (id, addr) = (NodeId::new(id).unwrap(), "127.0.0.1:7946".parse().unwrap());
    hub.add_peer(|slot| Arc::new(PeerQueue::new(id, Incarnation(2), slot, addr, 1, limit)))
}

#[tokio::test(start_paused = true)]
async fn with_the_policy_wait_a_wait_ends_with_its_deadline_and_emit_does_not_wait() {
    let mut config = Config::default();
    config.link.queue_policy = QueuePolicy::Wait { deadline: Duration::from_secs(2) };
    let hub = hub(config);
    let ns = NamespaceHandle::open(&hub, &NamespaceRegistry::default(), "/chat").unwrap();
    let peer = add_peer(&hub, "b", 1_000);
    assert_eq!(ns.to("r").emit(vec![0; 800]).unwrap().queued, 1);
    assert_eq!(ns.to("r").emit(vec![0; 800]).unwrap().dropped[0].1, DropReason::QueueFull);
    let receipt = ns.to("r").emit_wait(vec![0; 800]).await.unwrap();
    assert_eq!((receipt.targeted, receipt.queued), (1, 0));
    assert_eq!(receipt.dropped, [(peer.id.clone(), DropReason::WaitedTooLong)]);
    let receipt = ns.member(&peer.id, MemberId(1)).emit_wait(vec![0; 800]).await.unwrap();
    assert_eq!(receipt.dropped, [(peer.id.clone(), DropReason::WaitedTooLong)]);
    assert_eq!(peer.depth().0, 1);
}

#[test]
fn handles_can_be_used_from_any_thread() {
    fn check<T: Send + Sync>() {}
    fn check_future(_: impl Future + Send) {}
    check::<(NamespaceHandle, Member, Emit<'static>)>();
    let _ = |ns: &NamespaceHandle| check_future(ns.to("r").emit_wait("x"));
}

#[tokio::test]
async fn rooms_say_who_comes_and_goes() {
    let (hub, ns) = chat();
    let mut events = ns.room_events();
    let (a, _) = member(&ns, &["r", "s", "r"]);
    let (b, _) = member(&ns, &["r"]);
    a.leave("r");
    a.leave("r");
    let mut here = Vec::new();
    ns.inner.rooms_here(&mut |room, members| here.push((room.to_owned(), members)));
    here.sort();
    assert_eq!(here, [("r".to_owned(), 1), ("s".to_owned(), 1)]);
    drop(b);
    drop(a);
    hub.stop();
    let mut seen = Vec::new();
    while let Some(event) = events.recv().await {
        let (ns, room) = event.place().expect("nothing was missed");
        assert_eq!(&**ns, "/chat");
        seen.push(match &event {
            RoomEvent::RoomJoined { socket, .. } | RoomEvent::RoomLeft { socket, .. } => {
                format!("{} {room} {socket}", event.name())
            }
            _ => format!("{} {room}", event.name()),
        });
    }
    let expected = [
        "create-room r",
        "join-room r 1",
        "create-room s",
        "join-room s 1",
        "join-room r 2",
        "leave-room r 1",
        "leave-room r 2",
        "delete-room r",
        "leave-room s 1",
        "delete-room s",
    ];
    assert_eq!(seen, expected);
}
