//! Every operation of socketioxide over three real nodes, with both parsers and binary payloads.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::wait::soon;
use cluster_tests::{Live, Setup, eventually};
use futures_core::Stream;
use roomcast::MissingReason;
use roomcast::socketioxide::{Adapter, Answers, RoomcastAdapterConfig, Socket, with_answers};
use socketioxide::AckError;
use socketioxide::ack::AckStream;
use socketioxide::operators::BroadcastOperators;
use socketioxide::socket::Sid;

use super::sockets::{ACKED, ASKED, NS, Parser, Server, client};

pub(crate) type Acks = AckStream<Bytes, Adapter>;

pub(crate) async fn collect(acks: Acks) -> Vec<(Sid, Result<Bytes, AckError>)> {
    let (mut acks, mut got) = (pin!(acks), Vec::new());
    while let Some(ack) = poll_fn(|cx| acks.as_mut().poll_next(cx)).await {
        got.push(ack);
    }
    got
}

/// Who acknowledged with what the clients send, each once.
pub(crate) async fn acked(operator: BroadcastOperators<Adapter>) -> (BTreeSet<Sid>, Answers) {
    let (acks, answers) = with_answers(operator.emit_with_ack("ask", &ASKED)).await;
    let acks = collect(acks.unwrap()).await;
    let sids: BTreeSet<Sid> = acks.iter().map(|(sid, _)| *sid).collect();
    assert_eq!(sids.len(), acks.len(), "each once");
    for (sid, ack) in acks {
        assert_eq!(ack.unwrap(), ACKED, "{sid}");
    }
    (sids, answers)
}

pub(crate) async fn fetched(operator: BroadcastOperators<Adapter>) -> BTreeSet<Sid> {
    let (sockets, answers) = with_answers(operator.fetch_sockets()).await;
    assert!(answers.is_complete(), "{answers:?}");
    sockets.unwrap().into_iter().map(|socket| socket.data().id).collect()
}

pub(crate) async fn rooms(operator: BroadcastOperators<Adapter>) -> BTreeSet<String> {
    operator.rooms().await.unwrap().into_iter().map(String::from).collect()
}

/// Waits until a selection has so many sockets: joins elsewhere are known here after a moment.
pub(crate) async fn until_fetched(
    what: &str,
    select: impl Fn() -> BroadcastOperators<Adapter>,
    count: usize,
) {
    let wait = async {
        while fetched(select()).await.len() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(format!("{count} sockets in {what}"), wait).await;
}

async fn servers(nodes: &[Live], parser: Parser, config: &RoomcastAdapterConfig) -> Vec<Server> {
    let mut servers = Vec::new();
    for node in nodes {
        servers.push(Server::start(node, parser, config.clone()).await);
    }
    servers
}

fn config(exact: bool) -> RoomcastAdapterConfig {
    RoomcastAdapterConfig::new().with_exact_rooms(exact)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_selection_with_json_in_exact_namespaces() {
    every_selection("ops-json", Parser::Json, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_selection_with_msgpack_in_flood_namespaces() {
    every_selection("ops-msgpack", Parser::MsgPack, false).await;
}

async fn every_selection(name: &str, parser: Parser, exact: bool) {
    let nodes = Setup::new(name).formed(3).await;
    let servers = servers(&nodes, parser, &config(exact)).await;
    let mut clients = Vec::new();
    for server in &servers {
        clients.push(server.connect(&["lobby"]).await);
        clients.push(server.connect(&["lobby", "quiet"]).await);
        clients.push(server.connect(&[]).await);
    }
    let alone = servers[2].connect(&["alone"]).await;
    let sids: Vec<Sid> = clients.iter().map(|client| client.sid).chain([alone.sid]).collect();
    let of = |seats: &[usize]| -> BTreeSet<Sid> { seats.iter().map(|seat| sids[*seat]).collect() };
    let server = &servers[0];
    until_fetched("all", || server.all(), 10).await;
    until_fetched("lobby", || server.all().to("lobby"), 6).await;
    until_fetched("quiet", || server.all().to("quiet"), 3).await;
    until_fetched("alone", || server.all().to("alone"), 1).await;

    type Select = fn(BroadcastOperators<Adapter>) -> BroadcastOperators<Adapter>;
    let selections: [(Select, BTreeSet<Sid>); 8] = [
        (|all| all, of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])),
        (|all| all.to("lobby"), of(&[0, 1, 3, 4, 6, 7])),
        (|all| all.to(["lobby", "quiet"]), of(&[0, 1, 3, 4, 6, 7])),
        (|all| all.to("lobby").except("quiet"), of(&[0, 3, 6])),
        (|all| all.except("lobby"), of(&[2, 5, 8, 9])),
        (|all| all.to("alone"), of(&[9])),
        (|all| all.to("nobody"), of(&[])),
        (|all| all.local(), of(&[0, 1, 2])),
    ];
    for (index, (select, expected)) in selections.into_iter().enumerate() {
        let select = || select(server.all());
        assert_eq!(fetched(select()).await, expected, "selection {index}");
        let (sids, answers) = acked(select()).await;
        assert_eq!(sids, expected, "selection {index}");
        assert!(answers.is_complete(), "{answers:?}");

        let room = format!("moved-{index}");
        select().join(room.clone()).await.unwrap();
        assert_eq!(rooms(server.all()).await.contains(&room), !expected.is_empty(), "at once");
        until_fetched("what was moved", || server.all().to(room.clone()), expected.len()).await;
        assert_eq!(fetched(server.all().to(room.clone())).await, expected);
        assert_eq!(rooms(select()).await.contains(&room), !expected.is_empty());
        select().leave(room.clone()).await.unwrap();
        assert!(!rooms(server.all()).await.contains(&room), "a room that was left is not shown");
    }
    let heard: BTreeSet<Sid> =
        clients.iter().filter(|client| client.heard(&ASKED)).map(|client| client.sid).collect();
    assert_eq!(heard, of(&[0, 1, 2, 3, 4, 5, 6, 7, 8]));

    server.all().to("quiet").disconnect().await.unwrap();
    until_fetched("what is left", || server.all(), 7).await;
    assert_eq!(fetched(server.all()).await, of(&[0, 2, 3, 5, 6, 8, 9]));
    for node in &nodes {
        eventually("nothing is pending", || node.pending_requests() == (0, 0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_remote_socket_costs_its_node_alone_a_frame() {
    let nodes = Setup::new("ops-one").formed(3).await;
    for parser in [Parser::Json, Parser::MsgPack] {
        let servers = servers(&nodes, parser, &config(false)).await;
        let client = servers[1].connect(&["home"]).await;
        let _other = servers[2].connect(&["home"]).await;
        until_fetched("all", || servers[0].all(), 2).await;
        let found = servers[0].all().fetch_sockets().await.unwrap();
        let socket = found.into_iter().find(|socket| socket.data().id == client.sid).unwrap();
        let frames = |peer: usize| nodes[0].link(nodes[peer].name()).unwrap().frames_sent;
        // The nodes hear which servers are where a moment after the namespaces.
        let alone = async {
            loop {
                let before = frames(2);
                socket.rooms().await.unwrap();
                if frames(2) == before {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the server is known", alone).await;

        let before = (frames(1), frames(2));
        socket.emit("hello", &ASKED).await.unwrap();
        socket.join("moved").await.unwrap();
        let rooms: BTreeSet<_> = socket.rooms().await.unwrap().into_iter().collect();
        assert_eq!(rooms, BTreeSet::from(["home".into(), "moved".into()]));
        socket.leave("moved").await.unwrap();
        assert_eq!(socket.rooms().await.unwrap(), ["home"]);
        let acks: Acks = socket.emit_with_ack("ask", &ASKED).await.unwrap();
        let acks = collect(acks).await;
        assert!(matches!(&acks[..], [(sid, Ok(ack))] if *sid == client.sid && *ack == ACKED), "{acks:?}");
        socket.disconnect().await.unwrap();
        assert_eq!((frames(1) - before.0, frames(2) - before.1), (7, 0));
        assert!(client.heard(b"hello") && client.heard(&ASKED));
        until_fetched("the other", || servers[0].all(), 1).await;
        servers.iter().for_each(|server| server.io.delete_ns(NS));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_keep_their_order() {
    let nodes = Setup::new("ops-order").formed(2).await;
    let servers = servers(&nodes, Parser::Json, &config(true)).await;
    let mut stay = Vec::new();
    for _ in 0..5 {
        stay.push(servers[1].connect(&["lobby"]).await);
    }
    until_fetched("lobby", || servers[0].all().to("lobby"), 5).await;
    for number in 0..100 {
        let room = format!("room-{number}");
        servers[0].all().join(room.clone()).await.unwrap();
        assert!(rooms(servers[0].all()).await.contains(&room), "{room} was joined");
        servers[0].all().leave(room.clone()).await.unwrap();
        assert!(!rooms(servers[0].all()).await.contains(&room), "{room} was left");
    }
    for number in 0..5 {
        servers[0].all().emit("last", &format!("words-{number}")).await.unwrap();
    }
    servers[0].all().disconnect().await.unwrap();
    servers[0].all().emit("too", "late").await.unwrap();
    assert!(fetched(servers[0].all()).await.is_empty());
    for client in &stay {
        eventually("the client is told to go", || client.heard(b"1/ops,")).await;
        assert!((0..5).all(|number| client.heard(format!("words-{number}").as_bytes())));
        assert!(!client.heard(b"late"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_namespace_is_not_waited_for() {
    let nodes = Setup::new("ops-lacks").formed(3).await;
    let mut all = servers(&nodes[..2], Parser::Json, &config(false)).await;
    all.push(Server::without_namespace(&nodes[2], Parser::Json, config(false)));
    let _clients = (all[0].connect(&["r"]).await, all[1].connect(&["r"]).await);
    until_fetched("all", || all[0].all(), 2).await;
    // Far beyond the deadline of `soon`.
    let operator = all[0].all().timeout(Duration::from_secs(600));
    let (sids, answers) = soon("the end of the acknowledgements", acked(operator)).await;
    assert_eq!((sids.len(), answers.is_complete()), (2, true));
    assert_eq!(rooms(all[0].all()).await, BTreeSet::from(["r".to_owned()]));
    // It comes to have it, and is asked.
    let late = Server::start(&nodes[2], Parser::Json, config(false)).await;
    let _client = late.connect(&["r"]).await;
    until_fetched("all", || all[0].all(), 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_parser_is_a_missing_node() {
    let nodes = Setup::new("ops-parsers").formed(2).await;
    let json = Server::start(&nodes[0], Parser::Json, config(false)).await;
    let msgpack = Server::start(&nodes[1], Parser::MsgPack, config(false)).await;
    let (here, _there) = (json.connect(&[]).await, msgpack.connect(&[]).await);
    until_fetched("all", || json.all(), 2).await;
    let (sids, answers) = soon("the end", acked(json.all().timeout(Duration::from_secs(600)))).await;
    assert_eq!(sids, BTreeSet::from([here.sid]));
    assert_eq!(answers.missing()[0].reason, MissingReason::Failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_acknowledge_times_out_where_it_is() {
    let nodes = Setup::new("ops-timeout").formed(2).await;
    let servers = servers(&nodes, Parser::MsgPack, &config(false)).await;
    let (quick, silent) = (servers[1].connect(&[]).await, servers[1].connect(&[]).await);
    silent.answers.store(false, Ordering::Relaxed);
    until_fetched("all", || servers[0].all(), 2).await;
    let operator = servers[0].all().timeout(Duration::from_millis(200));
    let (acks, answers) = with_answers(operator.emit_with_ack("ask", &ASKED)).await;
    let acks = soon("the timeout", collect(acks.unwrap())).await;
    let of = |sid| acks.iter().find(|(of, _)| *of == sid).map(|(_, ack)| ack);
    assert!(matches!(of(quick.sid), Some(Ok(ack)) if *ack == ACKED), "{acks:?}");
    assert!(matches!(of(silent.sid), Some(Err(AckError::Timeout))), "{acks:?}");
    // The node has answered for both.
    assert!(acks.len() == 2 && answers.is_complete(), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_ends_its_share_and_is_named() {
    a_node_that_goes("ops-dies", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_ends_its_share_and_is_named() {
    a_node_that_goes("ops-leaves", false).await;
}

async fn a_node_that_goes(name: &str, crash: bool) {
    let nodes = Setup::new(name).formed(3).await;
    let servers = servers(&nodes, Parser::Json, &config(false)).await;
    let (here, there) = (servers[0].connect(&[]).await, servers[1].connect(&[]).await);
    let dying = servers[2].connect(&[]).await;
    dying.answers.store(false, Ordering::Relaxed);
    until_fetched("all", || servers[0].all(), 3).await;

    let operator = servers[0].all().timeout(Duration::from_secs(60));
    let (acks, answers) = with_answers(operator.emit_with_ack("ask", &ASKED)).await;
    let mut acks = pin!(acks.unwrap() as Acks);
    let mut next = async || soon("an acknowledgement", poll_fn(|cx| acks.as_mut().poll_next(cx))).await;
    let got = [next().await.unwrap(), next().await.unwrap()];
    let got: BTreeSet<Sid> = got.into_iter().map(|(sid, _)| sid).collect();
    assert_eq!(got, BTreeSet::from([here.sid, there.sid]));
    eventually("the client there was asked", || dying.heard(&ASKED)).await;
    assert!(!answers.is_complete() && answers.missing().is_empty());
    let id = nodes[2].name();
    if crash {
        // Without a goodbye. Its server still holds the node, so its port is not free.
        nodes[2].gate.cut();
        nodes[2].stop().await;
    } else {
        nodes[2].drain().await;
    }
    // `soon` gives up after 40 of the 60 seconds.
    assert!(next().await.is_none());
    let missing = answers.missing();
    assert_eq!((missing[0].node.as_str(), missing[0].reason), (id, MissingReason::Left));
    assert_eq!((missing.len(), nodes[0].pending_requests()), (1, (0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_dies_while_every_operation_goes_on_is_named() {
    let missing = every_operation_while_a_node_goes("ops-going-dies", Parser::Json, true).await;
    assert!(missing > 0, "who is asked after its death does not answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_every_operation_goes_on_costs_nothing_else() {
    every_operation_while_a_node_goes("ops-going-leaves", Parser::MsgPack, false).await;
}

/// Returns how many answers of the node that went were missing.
async fn every_operation_while_a_node_goes(name: &str, parser: Parser, crash: bool) -> usize {
    let setup = Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.members.dead_linger_ms = 500;
        config.members.unheard_ms = 1_000;
    });
    let nodes = setup.formed(3).await;
    let servers = servers(&nodes, parser, &config(crash)).await;
    let mut clients = Vec::new();
    for server in &servers {
        clients.push(server.connect(&["r"]).await);
    }
    let stay = BTreeSet::from([clients[0].sid, clients[1].sid]);
    let select = || servers[0].all().to("r");
    until_fetched("r", select, 3).await;

    let rounds = AtomicUsize::new(0);
    let missing_of = |answers: Answers| {
        for missing in answers.missing() {
            assert_eq!(missing.node.as_str(), nodes[2].name());
            assert!(matches!(missing.reason, MissingReason::Left | MissingReason::TimedOut), "{missing}");
        }
        answers.missing().len()
    };
    let work = async {
        let mut missing = 0;
        loop {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            let room = format!("room-{round}");
            select().join(room.clone()).await.unwrap();
            let (rooms, answers) = with_answers(select().rooms()).await;
            let now_missing = missing_of(answers);
            assert!(rooms.unwrap().iter().any(|joined| **joined == *room), "{room} was joined");
            select().leave(room).await.unwrap();
            let (sockets, answers) = with_answers(select().fetch_sockets()).await;
            let now_missing = now_missing + missing_of(answers);
            let found: BTreeSet<Sid> = sockets.unwrap().into_iter().map(|socket| socket.data().id).collect();
            assert!(found.is_superset(&stay), "{found:?}");
            select().emit("said", &format!("words-{round}-")).await.unwrap();
            let (sids, answers) = acked(select().timeout(Duration::from_secs(600))).await;
            let now_missing = now_missing + missing_of(answers);
            assert!(sids.is_superset(&stay), "{sids:?}");
            missing += now_missing;
            if found == stay && sids == stay && now_missing == 0 {
                return (round, missing);
            }
        }
    };
    let go = async {
        eventually("some rounds are over", || rounds.load(Ordering::Relaxed) > 5).await;
        if crash {
            nodes[2].gate.cut();
            nodes[2].stop().await;
        } else {
            nodes[2].drain().await;
        }
    };
    let ((last, missing), ()) = soon("the two are alone", async { tokio::join!(work, go) }).await;

    select().disconnect().await.unwrap();
    assert!(fetched(select()).await.is_empty());
    for client in &clients[..2] {
        eventually("the last words are there", || client.heard(format!("words-{last}-").as_bytes())).await;
        assert!((0..last).all(|round| client.heard(format!("words-{round}-").as_bytes())));
    }
    for node in &nodes[..2] {
        eventually("nothing is pending", || node.pending_requests() == (0, 0)).await;
    }
    missing
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_others_ask_is_heard_and_nobody_is_missed() {
    let setup = Setup::new("ops-comes");
    let nodes = setup.formed(2).await;
    let servers = servers(&nodes, Parser::Json, &config(true)).await;
    let clients = [servers[0].connect(&["r"]).await, servers[1].connect(&["r"]).await];
    until_fetched("r", || servers[0].all().to("r"), 2).await;
    let known: BTreeSet<Sid> = clients.iter().map(|client| client.sid).collect();
    let come = async {
        let node = setup.start_at(&setup.seat(2), [nodes[0].addr()]).await;
        let server = Server::start(&node, Parser::Json, config(true)).await;
        (server.connect(&["r"]).await, server, node)
    };
    let ask = async {
        loop {
            let sids = fetched(servers[0].all().to("r")).await;
            assert!(sids.is_superset(&known), "{sids:?}");
            let (acked, _) = acked(servers[0].all().to("r")).await;
            assert!(acked.is_superset(&known), "{acked:?}");
            if sids.len() == 3 && acked.len() == 3 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let _ = soon("the third is heard", async { tokio::join!(come, ask) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_dropped_leave_nothing() {
    let nodes = Setup::new("ops-dropped").formed(2).await;
    let servers = servers(&nodes, Parser::Json, &config(false)).await;
    let client = servers[1].connect(&[]).await;
    client.answers.store(false, Ordering::Relaxed);
    until_fetched("all", || servers[0].all(), 1).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let operator = servers[0].all().timeout(Duration::from_secs(600));
        let stream: Acks = operator.emit_with_ack("ask", &ASKED).await.unwrap();
        streams.push(stream);
    }
    assert_eq!(nodes[0].pending_requests().0, 100);
    eventually("all are being answered", || nodes[1].pending_requests().1 == 100).await;
    drop(streams);
    assert_eq!(nodes[0].pending_requests().0, 0);
    eventually("nothing is being answered", || nodes[1].pending_requests().1 == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_sockets_acknowledge_through_a_buffer_of_four() {
    const SOCKETS: usize = 2_000;
    let nodes = Setup::new("ops-credit").formed(2).await;
    let servers = servers(&nodes, Parser::Json, &config(true).with_ack_response_buffer(4)).await;
    let mut connecting = tokio::task::JoinSet::new();
    for _ in 0..SOCKETS {
        let server = servers[1].clone();
        connecting.spawn(async move {
            let (tx, rx) = server.io.new_dummy_sock(NS, ()).await;
            let answers = Arc::new(AtomicBool::new(true));
            tokio::spawn(client(Parser::Json, rx, tx, Arc::default(), answers));
        });
    }
    connecting.join_all().await;
    until_fetched("all", || servers[0].all(), SOCKETS).await;
    let operator = servers[0].all().timeout(Duration::from_secs(30));
    let (sids, answers) = acked(operator).await;
    assert_eq!((sids.len(), answers.is_complete()), (SOCKETS, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_carry_a_small_value() {
    let nodes = Setup::new("ops-data").config(|config| config.link.max_data_bytes = 8).formed(1).await;
    for exact in [false, true] {
        let server = Server::without_namespace(&nodes[0], Parser::Json, config(exact));
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let connect = async move |socket: Socket| {
            assert!(socket.data().is_empty());
            let long = socket.set_data("more than 8").unwrap_err();
            assert_eq!((long.got, long.limit, socket.data().len()), (11, 8, 0));
            socket.set_data("user-1").unwrap();
            let again = socket.clone();
            again.set_data(Bytes::from_static(b"user-2")).unwrap();
            tell.send(socket.data()).await.unwrap();
        };
        server.io.ns(NS, connect).await.unwrap();
        let _client = server.io.new_dummy_sock(NS, ()).await;
        assert_eq!(soon("the value", told.recv()).await.unwrap(), "user-2");
        server.io.delete_ns(NS);
    }
}
