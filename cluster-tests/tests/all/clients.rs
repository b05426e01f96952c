//! The official JavaScript client against the example `chat`, three nodes in three processes. Every client stays on its
//! node, because it knows the address of that node only: long-polling needs that.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_tests::chat::{ChatCluster, ChatNode, linked};
use cluster_tests::client::{Client, Clients, Message, Transport};
use cluster_tests::process::Process;
use cluster_tests::wait::{DEADLINE, eventually};
use roomcast::ClusterSecret;
use serde_json::json;
use tokio::time::Instant;

/// Messages with this start are sent until others know of a join, and do not count.
const PROBE: &str = "probe";
/// Two clients of the same kind on each node are in the room.
const ROOM: &str = "lobby";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_over_both_transports() {
    every_kind_of_message("common").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn msgpack_over_both_transports() {
    every_kind_of_message("msgpack").await;
}

/// On each node two clients in the room, one by WebSocket and one by long-polling, and one in another room. Everyone in
/// the room says something in text and in bytes: all of them get all of it, once and in order, and nobody else does.
async fn every_kind_of_message(parser: &'static str) {
    let Some(clients) = Clients::start() else { return };
    let nodes = ChatCluster::new(parser).three().await;
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for node in &nodes {
        for transport in Transport::ALL {
            let name = format!("{}-{}", node.id, transport.name());
            let client = clients.connect(name, node, parser, transport).await;
            client.join(ROOM).await;
            inside.push(client);
        }
        let other = clients.connect(format!("{}-other", node.id), node, parser, Transport::WebSocket).await;
        other.join("other").await;
        outside.push(other);
    }
    known(ROOM, &inside, &inside).await;
    known("other", &inside, &outside).await;

    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let texts = ["plain", "two\nlines, \"quoted\" \\ \u{0}", "grün 日本語 🚀", "<b>&amp;</b>", ""];
    let mut said: BTreeMap<String, Vec<Message>> = BTreeMap::new();
    for client in &inside {
        let node = client.name.split('-').next().unwrap();
        let mut expect = |text: &str, data: Option<&[u8]>| {
            let (room, from) = (ROOM.to_owned(), client.sid());
            let (text, node, data) = (text.to_owned(), node.to_owned(), data.map(<[u8]>::to_vec));
            said.entry(client.sid()).or_default().push(Message { room, text, from, node, data });
        };
        for text in texts {
            client.say(ROOM, text).await;
            expect(text, None);
        }
        for data in [&bytes[..], b"\0", b""] {
            client.say_bytes(ROOM, "with bytes", data).await;
            expect("with bytes", Some(data));
        }
        // socketioxide runs each event in a task of its own: only what has been answered, or has come back, is certain
        // to be before the next.
        let text = format!("{} asks for no answer", client.name);
        client.send("message", json!({ "room": ROOM, "text": text })).await;
        client.gets(&text).await;
        expect(&text, None);
        client.say(ROOM, &format!("last of {}", client.name)).await;
        expect(&format!("last of {}", client.name), None);
    }
    for client in &inside {
        for other in &inside {
            client.gets(&format!("last of {}", other.name)).await;
        }
        let got = by_sender(client);
        for (sid, messages) in &said {
            assert_eq!(got.get(sid), Some(messages), "what {} got", client.name);
        }
        assert_eq!(got.len(), said.len(), "{} got no others", client.name);
    }
    // What a node sends to another stays in order: what was said before would have come before.
    for client in &inside {
        client.say("other", &format!("fence of {}", client.name)).await;
    }
    for client in &outside {
        for other in &inside {
            client.gets(&format!("fence of {}", other.name)).await;
        }
        let strays = client.messages().iter().filter(|message| message.room != "other").count();
        assert_eq!(strays, 0, "{} is not in the room", client.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_left_or_went_gets_nothing_and_costs_no_frame() {
    let Some(clients) = Clients::start() else { return };
    let nodes = ChatCluster::new("common").three().await;
    let [a, b, c] = &nodes;
    let talker = socket(&clients, "talker", a).await;
    let stays = socket(&clients, "stays", b).await;
    stays.join(ROOM).await;

    let leaves = socket(&clients, "leaves", c).await;
    leaves.join(ROOM).await;
    leaves.join("other").await;
    known(ROOM, [&talker], [&stays, &leaves]).await;
    known("other", [&talker], [&leaves]).await;
    leaves.leave(ROOM).await;
    let count = leaves.messages().len();
    talker.say(ROOM, "after the leave").await;
    talker.say("other", "fence").await;
    leaves.gets("fence").await;
    stays.gets("after the leave").await;
    assert_eq!(leaves.messages()[count..].iter().filter(|message| message.room == ROOM).count(), 0);
    no_frames(&talker, a, "c").await;

    let goes = socket(&clients, "goes", c).await;
    goes.join(ROOM).await;
    known(ROOM, [&talker], [&goes]).await;
    goes.disconnect().await;
    no_frames(&talker, a, "c").await;

    let polls = clients.connect("polls", c, "common", Transport::Polling).await;
    polls.join(ROOM).await;
    known(ROOM, [&talker], [&polls]).await;
    polls.disconnect().await;
    no_frames(&talker, a, "c").await;

    let vanishes = socket(&clients, "vanishes", c).await;
    vanishes.join(ROOM).await;
    known(ROOM, [&talker], [&vanishes]).await;
    vanishes.vanish().await;
    no_frames(&talker, a, "c").await;

    talker.say(ROOM, "the last").await;
    stays.gets("the last").await;
    assert!(leaves.is_connected(), "who leaves a room stays connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_a_limit_of_rooms() {
    const LIMIT: usize = 100;
    let Some(clients) = Clients::start() else { return };
    let node = ChatCluster::new("common").start("a", &[]).await;
    let client = socket(&clients, "client", &node).await;
    for index in 0..LIMIT {
        client.join(&format!("room-{index}")).await;
    }
    let refused = client.emit("join", json!("one more")).await;
    assert_eq!(refused["ok"], json!(false));
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("the limit is 100")), "{refused}");
    client.join("room-0").await;
    client.leave("room-0").await;
    client.join("one more").await;
    client.say("one more", "hello").await;
    client.gets("hello").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_comes_back_and_so_do_its_clients() {
    let Some(clients) = Clients::start() else { return };
    let [a, mut b, c] = ChatCluster::new("common").three().await;
    let on_a = socket(&clients, "on-a", &a).await;
    let by_socket = socket(&clients, "by-socket", &b).await;
    let by_polling = clients.connect("by-polling", &b, "common", Transport::Polling).await;
    let on_c = socket(&clients, "on-c", &c).await;
    for client in [&on_a, &by_socket, &by_polling, &on_c] {
        client.join(ROOM).await;
    }
    known(ROOM, [&on_a, &by_socket, &on_c], [&on_a, &by_socket, &by_polling, &on_c]).await;
    let before = a.report().await.members.iter().find(|member| member.id == "b").unwrap().incarnation;

    b.kill().await;
    // The others go on among themselves, before and after they know.
    on_a.say(ROOM, "at once").await;
    on_c.gets("at once").await;
    a.until("node b is noticed to be gone", |report| {
        report.members.iter().all(|member| member.id != "b" || member.state != "live")
    })
    .await;
    on_c.say(ROOM, "without b").await;
    on_a.gets("without b").await;

    b.restart().await;
    linked(&[&a, &b, &c]).await;
    let after = a.report().await.members.iter().find(|member| member.id == "b").unwrap().incarnation;
    assert!(after > before, "{after} is newer than {before}");
    for client in [&by_socket, &by_polling] {
        client.connected(2).await;
        client.join(ROOM).await;
    }
    let all = [&on_a, &by_socket, &by_polling, &on_c];
    known(ROOM, all, all).await;
    for client in all {
        client.say(ROOM, &format!("{} again", client.name)).await;
    }
    for client in all {
        for other in all {
            client.gets(&format!("{} again", other.name)).await;
        }
        let again = client.texts().iter().filter(|text| text.ends_with(" again")).count();
        assert_eq!(again, all.len(), "{} got each once", client.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_end_says_goodbye() {
    let Some(clients) = Clients::start() else { return };
    let [a, mut b, c] = ChatCluster::new("common").three().await;
    let client = socket(&clients, "client", &b).await;
    client.join(ROOM).await;
    b.process.terminate().await;
    let status = b.process.end().await;
    assert!(status.success(), "{status}: {}", b.process.printed());
    eventually("the client is sent away", || !client.is_connected()).await;
    for node in [&a, &c] {
        node.until("node b is no longer a live member", |report| {
            report.members.iter().all(|member| member.id != "b" || member.state != "live")
        })
        .await;
    }
    b.restart().await;
    linked(&[&a, &b, &c]).await;
    client.connected(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_does_not_accept_is_answered() {
    let Some(clients) = Clients::start() else { return };
    for parser in ["common", "msgpack"] {
        let node = ChatCluster::new(parser).start("a", &[]).await;
        let client = clients.connect(parser, &node, parser, Transport::WebSocket).await;
        client.join(ROOM).await;
        let refused = [
            ("join", json!("")),
            ("join", json!("x".repeat(1000))),
            ("join", json!(7)),
            ("leave", json!(null)),
            ("message", json!("text")),
            ("message", json!({ "text": "no room" })),
            ("message", json!({ "room": ROOM, "text": "x".repeat(5000) })),
            ("message", json!({ "room": ROOM, "text": 7 })),
        ];
        for (event, data) in refused {
            let answer = client.emit(event, data.clone()).await;
            let error = answer["error"].as_str().unwrap_or_default();
            assert!(answer["ok"] == false && !error.is_empty(), "{parser}: {event} {data}: {answer}");
        }
        client.say(ROOM, "still here").await;
        client.gets("still here").await;
        assert_eq!(client.texts(), ["still here"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_each_process_lists_all_and_no_stranger() {
    let ours = ChatCluster::new("common");
    let nodes = ours.three().await;
    let mut theirs = ours.clone();
    theirs.secret = ClusterSecret::generate().unwrap();
    let stranger = theirs.start("d", &nodes.each_ref().map(|node| node.listen)).await;

    for node in &nodes {
        node.process.says(&["incoming connection refused", "another cluster secret"]).await;
    }
    stranger.process.says(&["failed to link", "another cluster secret"]).await;
    let tries = stranger.report().await.counters.dials_failed;
    stranger.until("it tries again", |report| report.counters.dials_failed > tries + 2).await;

    for node in &nodes {
        assert_eq!(node.admin("/livez").await.0, 200);
        assert_eq!(node.admin("/readyz").await.0, 200);
        assert_eq!(node.admin("/nothing").await.0, 404);
        let report = node.report().await;
        assert_eq!((report.node.id.as_str(), report.cluster.as_str()), (node.id.as_str(), "chat"));
        let members: Vec<(&str, &str)> =
            report.members.iter().map(|member| (&*member.id, &*member.state)).collect();
        assert_eq!(members, [("a", "live"), ("b", "live"), ("c", "live")]);
        for (member, other) in report.members.iter().zip(&nodes) {
            assert_eq!(member.address, other.listen.to_string());
        }
    }
    let report = stranger.report().await;
    assert_eq!((report.members.len(), report.links.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_command_line_and_a_taken_port_are_said() {
    let cluster = ChatCluster::new("common");
    let node = cluster.start("a", &[]).await;
    let free = "127.0.0.1:0".parse().unwrap();
    let mut taken = Process::spawn("chat", cluster.command("b", [node.http, free, free], &[]));
    assert_eq!(taken.end().await.code(), Some(1));
    taken.says(&["failed to listen for clients", &node.http.to_string()]).await;
    let mut no_secret = cluster.command("b", [free; 3], &[]);
    no_secret.env_remove("ROOMCAST_SECRET");
    let mut no_secret = Process::spawn("chat", no_secret);
    assert_eq!(no_secret.end().await.code(), Some(2));
    no_secret.says(&["ROOMCAST_SECRET"]).await;
    let mut twice = cluster.command("b", [free; 3], &[]);
    twice.args(["--id", "c"]);
    assert_eq!(Process::spawn("chat", twice).end().await.code(), Some(2));
}

async fn socket(clients: &Arc<Clients>, name: &str, node: &ChatNode) -> Client {
    clients.connect(name, node, "common", Transport::WebSocket).await
}

/// Has every talker send probes to the room until every member has got one from every talker: from then on, nothing
/// that they say is missed.
async fn known<'a, T, M>(room: &str, talkers: T, members: M)
where
    T: IntoIterator<Item = &'a Client> + Clone,
    M: IntoIterator<Item = &'a Client> + Clone,
{
    let end = Instant::now() + DEADLINE;
    let got = |member: &Client, talker: &Client| {
        let is_probe =
            |message: &Message| message.room == room && message.from == talker.sid() && is_probe(message);
        member.messages().iter().any(is_probe)
    };
    let got_all = |member| talkers.clone().into_iter().all(|talker| got(member, talker));
    let is_known = || members.clone().into_iter().all(got_all);
    while !is_known() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {room} is known everywhere");
        for talker in talkers.clone() {
            talker.say(room, PROBE).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until messages to the room cost no frame from `node` to `peer`.
async fn no_frames(talker: &Client, node: &ChatNode, peer: &str) {
    let sent = async || {
        let report = node.report().await;
        report.links.iter().find(|link| link.peer == peer).unwrap().frames_sent
    };
    let end = Instant::now() + DEADLINE;
    loop {
        let before = sent().await;
        talker.say(ROOM, PROBE).await;
        if sent().await == before {
            return;
        }
        assert!(Instant::now() < end, "not within {DEADLINE:?}: no frames to {peer}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What a client got, without probes, by the socket that sent it.
fn by_sender(client: &Client) -> BTreeMap<String, Vec<Message>> {
    let mut senders: BTreeMap<String, Vec<Message>> = BTreeMap::new();
    for message in client.messages() {
        if !is_probe(&message) {
            senders.entry(message.from.clone()).or_default().push(message);
        }
    }
    senders
}

fn is_probe(message: &Message) -> bool {
    message.text.starts_with(PROBE)
}
