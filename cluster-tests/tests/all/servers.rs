//! Server-side emit: events for the other servers, with and without acknowledgement.

mod limits;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cluster_tests::logs::logged;
use cluster_tests::wait::soon;
use cluster_tests::{Live, Setup, eventually};
use roomcast::error::DropReason;
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr};
use roomcast::{
    AskError, EmitError, IdError, Missing, MissingReason, NodeId, ServerAcks, ServerEvent, ServerEventError,
    ServerEventHandler, Servers,
};
use serde_json::{Value, json};
use socketioxide::SocketIo;
use socketioxide::extract::SocketRef;
use tokio::sync::Notify;

/// Far longer than a test takes: whoever waits for it has failed.
const LONG: Duration = Duration::from_secs(600);

/// Three nodes that take a lost connection for the end of the other one soon.
fn setup(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.link.resume_window = Duration::from_secs(1);
        config.members.dead_linger_ms = 500;
        config.members.unheard_ms = 1_000;
    })
}

/// Answers each event with the name of its node.
fn echo(node: &Live, name: &str) -> ServerEventHandler {
    let id = node.name().to_owned();
    let handler = move |event: ServerEvent<Value>| {
        let id = id.clone();
        async move { (id, event.from.to_string(), event.data) }
    };
    node.on_server_event(name, handler).unwrap()
}

/// Waits until exactly so many nodes are sent an event: the others are known to handle none.
async fn handled_by(nodes: usize, servers: Servers<'_>) {
    eventually(format!("{nodes} other nodes handle events"), || {
        servers.clone().emit("probe", &()).unwrap().targeted == nodes
    })
    .await;
}

fn missing(node: impl AsRef<str>, reason: MissingReason) -> Missing {
    Missing { node: NodeId::new(node).unwrap(), reason }
}

/// The names of the nodes that acknowledged.
fn answered<R>(acks: &ServerAcks<R>) -> BTreeSet<&str> {
    let names: BTreeSet<&str> = acks.answers.iter().map(|(node, _)| node.as_str()).collect();
    assert_eq!(names.len(), acks.answers.len(), "each once");
    names
}

async fn nothing_is_left(nodes: &[Live]) {
    eventually("no request is left", || nodes.iter().all(|node| node.pending_requests() == (0, 0))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_reach_every_other_server_once_and_in_order() {
    let nodes = Setup::new("events").formed(3).await;
    let records: Vec<Arc<Mutex<Vec<u64>>>> = (0..3).map(|_| Arc::default()).collect();
    for (node, record) in nodes.iter().zip(&records) {
        let (record, others) = (Arc::clone(record), Arc::new(AtomicU64::new(0)));
        let handler = move |event: ServerEvent<u64>| {
            let (record, others) = (Arc::clone(&record), Arc::clone(&others));
            async move {
                record.lock().unwrap().push(event.data);
                // Some go on beside.
                if event.data.is_multiple_of(100) {
                    tokio::task::yield_now().await;
                    others.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        node.on_server_event("number", handler).unwrap().detach();
    }
    handled_by(2, nodes[0].servers()).await;
    for number in 0..10_000u64 {
        let receipt = nodes[0].server_side_emit("number", &number).unwrap();
        assert_eq!((receipt.targeted, receipt.queued), (2, 2), "{receipt:?}");
    }
    eventually("all came", || records[1..].iter().all(|record| record.lock().unwrap().len() >= 10_000)).await;
    for record in &records[1..] {
        assert!(record.lock().unwrap().iter().copied().eq(0..10_000));
    }
    assert!(records[0].lock().unwrap().is_empty(), "a node does not get its own events");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_come_from_those_who_handle_the_event() {
    let nodes = Setup::new("acks").formed(3).await;
    let _handlers = (echo(&nodes[0], "echo"), echo(&nodes[1], "echo"), echo(&nodes[2], "echo"));
    handled_by(2, nodes[0].servers()).await;
    let data = json!({"n": 1});
    let ask = |name| nodes[0].server_side_emit_with_ack::<(String, String, Value)>(name, &data, LONG);
    let acks = soon("two answers", ask("echo")).await.unwrap();
    assert_eq!(answered(&acks), BTreeSet::from(["acks-1", "acks-2"]));
    for (node, answer) in &acks.answers {
        let expected = (node.to_string(), "acks-0".to_owned(), json!({"n": 1}));
        assert_eq!(answer, &Ok(expected));
    }
    assert_eq!((acks.missing, acks.unhandled), (vec![], vec![]));

    // Nobody handles it: they say so at once.
    let mut acks = soon("nobody answers", ask("unknown")).await.unwrap();
    acks.unhandled.sort_unstable();
    assert_eq!((acks.answers, acks.missing), (vec![], vec![]));
    assert_eq!(acks.unhandled, [nodes[1].id().clone(), nodes[2].id().clone()]);

    // Of several handlers the first answers; when that goes, the next one does.
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let _second = nodes[1]
        .on_server_event("echo", move |_: ServerEvent<Value>| {
            count.fetch_add(1, Ordering::Relaxed);
            async { ("second", "", ()) }
        })
        .unwrap();
    let one = || nodes[0].servers().only(["acks-1"]);
    let first_answer = async || {
        let asked = one().emit_with_ack::<(String, String, Value)>("echo", &(), LONG);
        soon("an answer", asked).await.unwrap().answers[0].1.clone().unwrap().0
    };
    assert_eq!(first_answer().await, "acks-1");
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    drop(_handlers.1);
    assert_eq!(first_answer().await, "second");

    // A node without any handler is not asked, unless it is named.
    drop(_handlers.2);
    handled_by(1, nodes[0].servers()).await;
    let acks = soon("one answer", ask("echo")).await.unwrap();
    assert_eq!((answered(&acks), acks.unhandled.len()), (BTreeSet::from(["acks-1"]), 0));
    let named = nodes[0].servers().only(["acks-2"]).emit_with_ack::<Value>("echo", &(), LONG);
    assert_eq!(soon("no answer", named).await.unwrap().unhandled, [nodes[2].id().clone()]);
    nothing_is_left(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_is_missing_after_the_timeout_and_a_dead_one_at_once() {
    let mut nodes = setup("slow").formed(3).await;
    let _quick = echo(&nodes[1], "work");
    let finished = Arc::new(Notify::new());
    let wait = Arc::clone(&finished);
    let ended = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&ended);
    let slow = move |_: ServerEvent<Value>| {
        let (wait, set) = (Arc::clone(&wait), Arc::clone(&set));
        async move {
            wait.notified().await;
            set.store(true, Ordering::Release);
        }
    };
    let slow = nodes[2].on_server_event("work", slow).unwrap();
    handled_by(2, nodes[0].servers()).await;
    let asked = nodes[0].server_side_emit_with_ack::<Value>("work", &(), Duration::from_millis(300));
    let acks = soon("an answer and a timeout", asked).await.unwrap();
    assert_eq!(answered(&acks), BTreeSet::from(["slow-1"]));
    assert_eq!((acks.missing, acks.unhandled), (vec![missing("slow-2", MissingReason::TimedOut)], vec![]));
    nothing_is_left(&nodes).await;
    // The handler was not ended: it is only that nobody waits.
    finished.notify_one();
    eventually("the handler ends", || ended.load(Ordering::Acquire)).await;

    let killed = nodes.pop().unwrap();
    let asked = nodes[0].server_side_emit_with_ack::<Value>("work", &(), LONG);
    let kill = async {
        eventually("the slow one is asked", || killed.pending_requests().1 == 1).await;
        killed.gate.cut();
        killed.node.stop().await;
    };
    let (acks, ()) = soon("an answer and a death", async { tokio::join!(asked, kill) }).await;
    let acks = acks.unwrap();
    assert_eq!(answered(&acks), BTreeSet::from(["slow-1"]));
    assert_eq!(acks.missing, [missing("slow-2", MissingReason::Left)]);
    nothing_is_left(&nodes).await;
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chosen_set_and_who_is_not_there() {
    let nodes = Setup::new("chosen").formed(3).await;
    let _handlers: Vec<_> = nodes.iter().map(|node| echo(node, "echo")).collect();
    handled_by(2, nodes[0].servers()).await;
    let some = nodes[0].servers().only(["chosen-2", "chosen-0", "chosen-9"]).only([nodes[2].id()]);
    let receipt = some.clone().emit("echo", &()).unwrap();
    assert_eq!((receipt.targeted, receipt.queued), (2, 1), "this node is not among them");
    assert_eq!(receipt.dropped, [(NodeId::new("chosen-9").unwrap(), DropReason::PeerGone)]);
    let acks = soon("an answer", some.emit_with_ack::<Value>("echo", &(), LONG)).await.unwrap();
    assert_eq!(answered(&acks), BTreeSet::from(["chosen-2"]));
    assert_eq!(acks.missing, [missing("chosen-9", MissingReason::Left)]);

    let nobody = nodes[0].servers().only(<[&str; 0]>::default());
    assert_eq!(nobody.clone().emit("echo", &()).unwrap().targeted, 0);
    let acks = soon("nobody", nobody.emit_with_ack::<Value>("echo", &(), LONG)).await.unwrap();
    assert!(acks.answers.is_empty() && acks.missing.is_empty() && acks.unhandled.is_empty());
    let unusable = nodes[0].servers().only(["not a name"]);
    assert!(matches!(unusable.emit("echo", &()), Err(EmitError::Id(IdError::Node(_)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_namespace_goes_to_handlers_there_and_costs_broadcasts_nothing() {
    let nodes = Setup::new("spaces").formed(3).await;
    let chats: Vec<_> = nodes.iter().map(|node| node.namespace("/events").unwrap()).collect();
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    let handler = chats[1]
        .on_server_event("note", move |_: ServerEvent<()>| {
            count.fetch_add(1, Ordering::Relaxed);
            async {}
        })
        .unwrap();
    let _elsewhere = (echo(&nodes[1], "note"), echo(&nodes[2], "note"));
    handled_by(1, chats[0].servers()).await;
    handled_by(2, nodes[0].servers()).await;
    let asked = chats[0].server_side_emit_with_ack::<()>("note", &(), LONG);
    let acks = soon("an answer", asked).await.unwrap();
    assert_eq!(answered(&acks), BTreeSet::from(["spaces-1"]));
    assert_eq!(heard.load(Ordering::Relaxed), 1);

    // A handler makes nobody a member: broadcasts go nowhere.
    let sent = nodes[0].frames_sent();
    assert_eq!(chats[0].all().emit("x").unwrap().targeted, 0);
    assert_eq!(chats[0].to("lobby").emit("x").unwrap().targeted, 0);
    assert_eq!(nodes[0].frames_sent(), sent);
    drop(handler);
    handled_by(0, chats[0].servers()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_a_socketioxide_front_shares() {
    let nodes = Setup::new("shared").formed(2).await;
    let serve = |node: &Live, exact| {
        let config = RoomcastAdapterConfig::new().with_exact_rooms(exact);
        let constructor = RoomcastAdapterCtr::new_with_config(&node.node, config);
        SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(constructor).build_layer().1
    };
    for (path, exact) in [("/flood", false), ("/exact", true)] {
        let ios: Vec<SocketIo<Adapter>> = nodes.iter().map(|node| serve(node, exact)).collect();
        for io in &ios {
            io.ns(path, async |_: SocketRef<Adapter>| {}).await.unwrap();
        }
        let chat = nodes[0].namespace(path).unwrap();
        // A namespace that floods gets events, too: it has no handler and says so.
        eventually("the other's mode is known", || (chat.all().emit("x").unwrap().targeted == 1) != exact)
            .await;
        let asked = chat.server_side_emit_with_ack::<Value>("echo", &(), LONG);
        let acks = soon("no answer", asked).await.unwrap();
        assert_eq!((acks.answers.len(), acks.missing.len()), (0, 0));
        assert_eq!(acks.unhandled.len(), usize::from(!exact));

        let there = nodes[1].namespace(path).unwrap();
        let handler = there.on_server_event("echo", async |event: ServerEvent<Value>| event.data).unwrap();
        handled_by(1, chat.servers()).await;
        eventually("the flood goes on, and only where there was one", || {
            (chat.to("lobby").emit("x").unwrap().targeted == 1) != exact
        })
        .await;
        let asked = chat.server_side_emit_with_ack::<Value>("echo", &7, LONG);
        assert_eq!(soon("an answer", asked).await.unwrap().answers[0].1, Ok(json!(7)));
        drop(handler);
        handled_by(usize::from(!exact), chat.servers()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_ask_back_and_forth() {
    let nodes = Setup::new("pingpong").formed(2).await;
    let serve = |index: usize| {
        let node = nodes[index].node.clone();
        let handler = move |event: ServerEvent<u64>| {
            let node = node.clone();
            async move {
                if event.data == 0 {
                    return 0;
                }
                // The node that asks waits for this one, which now waits for that one.
                let asked = node.servers().only([&event.from]);
                let acks = asked.emit_with_ack::<u64>("ping", &(event.data - 1), LONG).await.unwrap();
                acks.answers[0].1.clone().unwrap() + 1
            }
        };
        nodes[index].on_server_event("ping", handler).unwrap()
    };
    let handlers = (serve(0), serve(1));
    handled_by(1, nodes[0].servers()).await;
    let asked = nodes[0].server_side_emit_with_ack::<u64>("ping", &100, LONG);
    assert_eq!(soon("the last answer", asked).await.unwrap().answers[0].1, Ok(100));
    nothing_is_left(&nodes).await;
    drop(handlers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_broadcasts_have_one_order() {
    let nodes = Setup::new("oneorder").formed(2).await;
    let [here, there] = [0, 1].map(|index| nodes[index].namespace("/order").unwrap());
    let record = Arc::new(Mutex::new(Vec::new()));
    let (by_member, by_handler) = (Arc::clone(&record), Arc::clone(&record));
    let _member = there.connect(move |message: bytes::Bytes| {
        let number: u64 = std::str::from_utf8(&message).unwrap().parse().unwrap();
        by_member.lock().unwrap().push(number);
    });
    let handler = move |event: ServerEvent<u64>| {
        let record = Arc::clone(&by_handler);
        async move { record.lock().unwrap().push(event.data) }
    };
    let _handler = there.on_server_event("number", handler).unwrap();
    handled_by(1, here.servers()).await;
    for number in 0..2_000u64 {
        let receipt = match number % 2 {
            0 => here.server_side_emit("number", &number).unwrap(),
            _ => here.all().emit(number.to_string()).unwrap(),
        };
        assert_eq!(receipt.queued, 1);
    }
    eventually("all came", || record.lock().unwrap().len() >= 2_000).await;
    assert!(record.lock().unwrap().iter().copied().eq(0..2_000));
}
