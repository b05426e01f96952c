//! Emitters: processes that are no servers and publish to the whole cluster over one link.

mod fronts;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::chat::ChatCluster;
use cluster_tests::client::{Clients, Message, Transport};
use cluster_tests::cluster::{event, formed};
use cluster_tests::gate::Gate;
use cluster_tests::process::command_line;
use cluster_tests::wait::soon;
use cluster_tests::{Live, RawPeer, Recorder, Setup, eventually, stamp};
use roomcast::core::frame::{
    EXTENSION_ROLE, Head, Hello, InterestHead, InterestPart, PROTOCOL, PROTOCOL_MIN, ROLE_EMITTER, Resume,
    WireMode,
};
use roomcast::emitter::{ConnectError, EmitterBuilder, EmitterError, EmitterState};
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterCtr};
use roomcast::{ClusterSecret, Emitter, Event, Member, Parser};
use serde::{Serialize, Serializer};
use serde_json::json;
use smallvec::smallvec;
use socketioxide::SocketIo;
use socketioxide::extract::SocketRef;
use tokio::time::Instant;

const MESSAGES: u64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_emitted_reaches_members_of_all_nodes_once() {
    let setup = Setup::new("em-once");
    let nodes = setup.formed(3).await;
    let (lobby, both, other) = (Recorder::new(), Recorder::new(), Recorder::new());
    let mut members = Vec::new();
    for node in &nodes {
        members.push(member(node, &lobby, &["lobby"]));
        members.push(member(node, &both, &["lobby", "hall"]));
        members.push(member(node, &other, &["attic"]));
    }
    rooms_known(&nodes, 4).await;
    let emitter = builder(&setup, &nodes).connect().await.unwrap();
    let chat = emitter.of("/chat");
    for number in 1..=100 {
        chat.clone().to(["lobby", "hall"]).emit_bytes(stamp("e", number)).unwrap();
    }
    chat.clone().within("lobby").except("hall").emit_bytes(stamp("e", 101)).unwrap();
    chat.clone().emit_bytes(stamp("e", 102)).unwrap();
    chat.clone().to([""; 0]).emit_bytes(stamp("e", 103)).unwrap();
    emitter.flush().await.unwrap();
    for (recorder, count) in [(&lobby, 3 * 102), (&both, 3 * 101), (&other, 3)] {
        eventually(format!("{count} messages"), || recorder.count() == count).await;
        assert!(!recorder.has("e", 103));
    }
    // Volatile: dropped only when it cannot go at once, so some arrive.
    let mut number = 200;
    eventually("a volatile message arrives at every node", || {
        number += 1;
        chat.clone().to("attic").volatile().emit_bytes(stamp("v", number)).unwrap();
        other.numbers("v").iter().any(|n| other.numbers("v").iter().filter(|m| *m == n).count() == 3)
    })
    .await;
    assert_eq!(emitter.lost(), 0);

    // It is no member and no server, and is gone as soon as it has said goodbye.
    formed(&nodes).await;
    assert!(nodes.iter().all(|node| node.members().len() == 3 && node.report().links.len() == 2));
    // A second dial that came too late may be at another node for a moment.
    eventually("it is at one node", || nodes.iter().map(|node| node.emitters()).sum::<usize>() == 1).await;
    let listed: Vec<_> = nodes.iter().flat_map(|node| node.report().emitters).collect();
    let [shown] = &listed[..] else { panic!("{listed:?}") };
    assert!(shown.linked && shown.address.is_some() && shown.bytes_received > 102, "{shown:?}");
    assert!(shown.frames_received == 102 && shown.volatile_received > 0, "{shown:?}");
    emitter.close().await.unwrap();
    assert_eq!(emitter.state(), EmitterState::Closed);
    assert_eq!(chat.emit_bytes(stamp("e", 104)), Err(EmitterError::Closed));
    eventually("it is forgotten", || nodes.iter().all(|node| node.emitters() == 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_get_what_their_server_would_send() {
    let setup = Setup::new("em-common");
    let nodes = setup.formed(3).await;
    let ios: Vec<SocketIo<Adapter>> = nodes.iter().map(serve).collect();
    let mut clients = Vec::new();
    for io in &ios {
        io.ns("/chat", async |socket: SocketRef<Adapter>| socket.join("lobby")).await.unwrap();
        clients.push(io.new_dummy_sock("/chat", ()).await);
    }
    let emitter = builder(&setup, &nodes).connect().await.unwrap();
    let lobby = || emitter.of("/chat").to("lobby");
    let theirs = ios[0].of("/chat").unwrap().to("lobby");
    // The nodes hear of each other's namespaces a moment after they are there.
    for (_, client) in &mut clients {
        let (mut of_emitter, mut of_server) = (false, false);
        let known = async {
            while !(of_emitter && of_server) {
                lobby().emit("probe", "of the emitter").unwrap();
                theirs.clone().emit("probe", "of the server").await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
                while let Ok(packet) = client.try_recv() {
                    of_emitter |= format!("{packet:?}").contains("of the emitter");
                    of_server |= format!("{packet:?}").contains("of the server");
                }
            }
        };
        soon("both ways are known", known).await;
    }
    let bytes = Bytes::from_static(&[0, 1, 2, 255]);
    let data = ("two", json!({ "a": [1, 2.5, null] }), bytes.clone());
    theirs.clone().emit("said", &data).await.unwrap();
    theirs.clone().emit("file", &bytes).await.unwrap();
    lobby().emit("said", &data).unwrap();
    lobby().except("lobby").emit("said", "wrong").unwrap();
    lobby().emit_binary("file", &bytes).unwrap();
    emitter.flush().await.unwrap();
    for (_, client) in &mut clients {
        // Order between the emitter's node and another one is not promised: sorted, each came twice.
        let mut packets = packets(client, 8).await;
        packets.sort();
        assert!(packets.chunks(2).all(|pair| pair[0] == pair[1]), "{packets:?}");
    }
}

/// The official client on three nodes, with text and bytes, for both parsers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_understands_both_encoders() {
    let Some(clients) = Clients::start() else { return };
    for (name, parser) in [("common", Parser::Common), ("msgpack", Parser::MsgPack)] {
        let cluster = ChatCluster::new(name);
        let nodes = cluster.three().await;
        let mut inside = Vec::new();
        for node in &nodes {
            let client =
                clients.connect(format!("{name}-{}", node.id), node, name, Transport::WebSocket).await;
            client.join("lobby").await;
            inside.push(client);
        }
        let seeds = nodes.each_ref().map(|node| node.listen);
        let emitter = Emitter::builder().cluster("chat").secret(cluster.secret.clone()).seeds(seeds);
        let emitter = emitter.parser(parser).connect().await.unwrap();
        let message = |text: &str, data: Option<Bytes>| {
            let (room, from, node) = ("lobby".to_owned(), "emitter".to_owned(), "none".to_owned());
            Message { room, text: text.to_owned(), from, node, data: data.map(|data| data.to_vec()) }
        };
        let emit = |text: &str, data: Option<&[u8]>| {
            let mut fields = BTreeMap::from([("room", Field::Text("lobby")), ("text", Field::Text(text))]);
            fields.extend([("from", Field::Text("emitter")), ("node", Field::Text("none"))]);
            fields.extend(data.map(|data| ("data", Field::Bytes(data))));
            emitter.of("/").to("lobby").emit("message", &fields).unwrap();
        };
        let known = || {
            emit("probe", None);
            inside.iter().all(|client| client.texts().iter().any(|text| text == "probe"))
        };
        eventually("all nodes know of the joins", known).await;
        let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let texts = ["plain", "two\nlines, \"quoted\" \\ \u{0}", "grün 日本語 🚀", ""];
        let mut expected = Vec::new();
        for text in texts {
            emit(text, None);
            expected.push(message(text, None));
        }
        for data in [&bytes[..], b"\0", b""] {
            emit("with bytes", Some(data));
            expected.push(message("with bytes", Some(Bytes::copy_from_slice(data))));
        }
        emit("last", None);
        expected.push(message("last", None));
        emitter.close().await.unwrap();
        for client in &inside {
            client.gets("last").await;
            let messages = client.messages().into_iter().filter(|message| message.text != "probe");
            assert_eq!(messages.collect::<Vec<_>>(), expected, "{}", client.name);
        }
    }
}

/// A value of a message: text, or bytes that are bytes for clients.
enum Field<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_secret_or_cluster_is_refused_with_the_reason() {
    let setup = Setup::new("em-trust");
    let nodes = setup.formed(1).await;
    let secret = ClusterSecret::generate().unwrap();
    let error = builder(&setup, &nodes).secret(secret).connect().await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused(text) if text.contains("another cluster secret")),
        "{error}"
    );
    let error = builder(&setup, &nodes).cluster("other").connect().await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused(text) if text.contains("another cluster name")),
        "{error}"
    );
    let nobody = builder_at(&setup, &["127.0.0.1:9".parse().unwrap()]);
    let error = nobody.connect_timeout(Duration::from_millis(50)).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    let error = Emitter::builder().seeds(["127.0.0.1:9"]).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Secret), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_node_that_dies_nothing_comes_twice_and_what_may_be_missing_is_counted() {
    let setup = Setup::new("em-dies");
    let mut nodes = setup.formed(3).await;
    let first = nodes.remove(0);
    let recorders = [Recorder::new(), Recorder::new()];
    let _members: Vec<Member> =
        nodes.iter().zip(&recorders).map(|(node, recorder)| member(node, recorder, &["lobby"])).collect();
    // Linked to the first: no other seed is known yet. Then it dies in the middle.
    let others = [first.addr(), nodes[0].addr(), nodes[1].addr()];
    let emitter = linked_to(&first, || builder_at(&setup, &others)).await;
    let mut events = emitter.events();
    let sender = emitter.clone();
    let emitting = tokio::spawn(async move {
        for number in 1..=MESSAGES {
            sender.of("/chat").to("lobby").emit_bytes(stamp("e", number)).unwrap();
            if number % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    eventually("some have come", || recorders.iter().all(|recorder| recorder.count() > 500)).await;
    first.kill().await;
    emitting.await.unwrap();
    let flush = tokio::spawn({
        let emitter = emitter.clone();
        async move { emitter.flush().await }
    });
    event(&mut events, "link", |event| matches!(event, Event::LinkUp { .. })).await;
    let lost = soon("a flush", flush).await.unwrap().map_or_else(|lost| lost.frames, |()| 0);
    assert_eq!(emitter.lost(), lost);
    assert_eq!(emitter.flush().await, Ok(()), "reported once");
    emitter.of("/chat").to("lobby").emit_bytes(stamp("e", MESSAGES + 1)).unwrap();
    for recorder in &recorders {
        eventually("later ones arrive", || recorder.has("e", MESSAGES + 1)).await;
        recorder.check();
        let missing = MESSAGES + 1 - recorder.count() as u64;
        let came: Vec<usize> = recorders.iter().map(Recorder::count).collect();
        assert!(
            missing <= lost,
            "{missing} are missing, {lost} were reported; came: {came:?}; {:?}",
            emitter.state()
        );
    }
}

/// The node has taken everything and passed on nothing, because the other one cannot be reached. Then it dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dying_node_had_not_passed_on_is_reported() {
    const COUNT: u64 = 100;
    let setup = Setup::new("em-host");
    let mut nodes = setup.formed(2).await;
    let (here, there) = (Recorder::new(), Recorder::new());
    let _members = [member(&nodes[0], &here, &["lobby"]), member(&nodes[1], &there, &["lobby"])];
    rooms_known(&nodes, 1).await;
    let seeds = [nodes[0].addr(), nodes[1].addr()];
    let emitter = linked_to(&nodes[0], || builder_at(&setup, &seeds)).await;
    nodes[1].gate.cut();
    let began = Instant::now();
    for number in 1..=COUNT {
        emitter.of("/chat").to("lobby").emit_bytes(stamp("e", number)).unwrap();
    }
    eventually("the node has them", || here.has("e", COUNT)).await;
    nodes.remove(0).kill().await;
    // A node waits for the others for 2 s only.
    let in_time = began.elapsed() < Duration::from_millis(1500);
    nodes[0].gate.heal();
    let lost = soon("a flush", emitter.flush()).await.map_or_else(|lost| lost.frames, |()| 0);
    assert_eq!(there.count_from("e"), 0);
    assert!(lost == COUNT || !in_time, "{lost} were reported");
    emitter.of("/chat").to("lobby").emit_bytes(stamp("e", COUNT + 1)).unwrap();
    eventually("later ones arrive", || there.has("e", COUNT + 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_hands_its_emitters_on_without_loss() {
    let setup = Setup::new("em-drains");
    let mut nodes = setup.formed(3).await;
    let first = nodes.remove(0);
    let recorder = Recorder::new();
    let _member = member(&nodes[0], &recorder, &["lobby"]);
    let seeds = [first.addr(), nodes[0].addr(), nodes[1].addr()];
    let emitter = linked_to(&first, || builder_at(&setup, &seeds)).await;
    let sender = emitter.clone();
    let emitting = tokio::spawn(async move {
        for number in 1..=MESSAGES {
            sender.of("/chat").to("lobby").emit_bytes(stamp("e", number)).unwrap();
            if number % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    eventually("some have come", || recorder.count() > 500).await;
    first.node.drain().await;
    first.kill().await;
    emitting.await.unwrap();
    soon("a flush", emitter.flush()).await.unwrap();
    eventually("all have come", || recorder.has("e", MESSAGES)).await;
    recorder.check_all("e", MESSAGES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_cut_for_a_moment_resumes_and_loses_nothing() {
    let setup = Setup::new("em-cut");
    let nodes = setup.formed(2).await;
    let recorder = Recorder::new();
    let _member = member(&nodes[1], &recorder, &["lobby"]);
    nodes[1].settled().await;
    let gate = Gate::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let builder =
        builder(&setup, &nodes).move_after(Duration::from_secs(10)).socket(Arc::clone(&gate) as Arc<_>);
    let emitter = builder.connect().await.unwrap();
    let EmitterState::Linked(before) = emitter.state() else { panic!("it is linked") };
    let emit = |range: std::ops::RangeInclusive<u64>| {
        for number in range {
            emitter.of("/chat").to("lobby").emit_bytes(stamp("e", number)).unwrap();
        }
    };
    emit(1..=1000);
    // Before the first frame is sent it may as well move: nothing is under way.
    eventually("the first has come", || recorder.has("e", 1)).await;
    gate.cut();
    emit(1001..=2000);
    eventually("the link is down", || emitter.state() == EmitterState::Searching).await;
    emit(2001..=3000);
    gate.heal();
    soon("a flush", emitter.flush()).await.unwrap();
    assert_eq!(emitter.state(), EmitterState::Linked(before));
    eventually("all have come", || recorder.has("e", 3000)).await;
    recorder.check_all("e", 3000);
    emitter.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_errors_that_say_so() {
    let setup = Setup::new("em-limits").config(|config| config.link.max_emitters = 1);
    let nodes = setup.formed(1).await;
    let gate = Gate::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let mut config = roomcast::Config::default();
    (config.link.outbox_bytes, config.link.max_frame_bytes) = (10_000, 5_000);
    let first =
        builder(&setup, &nodes).config(config).socket(Arc::clone(&gate) as Arc<_>).connect().await.unwrap();
    let error = builder(&setup, &nodes).connect().await.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused(text) if text.contains("max_emitters")), "{error}");
    assert_eq!((nodes[0].emitters(), nodes[0].report().emitters.len()), (1, 1));

    let chat = || first.of("/chat");
    assert!(matches!(chat().emit_bytes(vec![0; 6_000]), Err(EmitterError::TooLarge { limit: 5_000, .. })));
    assert!(matches!(chat().to(vec!["r"; 1025]).emit_bytes("x"), Err(EmitterError::TooManyRooms { .. })));
    assert!(matches!(chat().to("r".repeat(513)).emit_bytes("x"), Err(EmitterError::Id(_))));
    assert!(matches!(first.of("").emit_bytes("x"), Err(EmitterError::Id(_))));
    assert!(matches!(chat().emit("e", &u128::MAX), Err(EmitterError::Encode(_))));
    gate.cut();
    let full = || chat().emit_bytes(vec![0; 4_000]);
    assert_eq!((full(), full()), (Ok(()), Ok(())));
    assert_eq!(full(), Err(EmitterError::Full { limit: 10_000 }));
    gate.heal();
    soon("a flush", first.flush()).await.unwrap();
    assert_eq!(full(), Ok(()));
    first.close().await.unwrap();
}

/// Nobody has members that could answer: what counts is that every node is asked and the end comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_end_and_name_who_is_missing() {
    let setup = Setup::new("em-asks");
    let nodes = setup.formed(3).await;
    let _chats: Vec<_> = nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect();
    let emitter = builder(&setup, &nodes).connect().await.unwrap();
    let answers = soon("an answer", emitter.of("/chat").sockets()).await.unwrap();
    assert_eq!((answers.value.len(), answers.missing.len()), (0, 0));
    let answers = soon("an answer", emitter.of("/nowhere").count()).await.unwrap();
    assert_eq!((answers.value, answers.missing.len()), (0, 0));
    let rooms = soon("an answer", emitter.of("/chat").rooms()).await.unwrap();
    assert!(rooms.value.is_empty() && rooms.missing.is_empty());
    emitter.of("/chat").to("lobby").join(["hall", "attic"]).unwrap();
    emitter.of("/chat").to("lobby").leave("hall").unwrap();
    emitter.of("/chat").to("nobody").disconnect().unwrap();
    emitter.of("/chat").server_side_emit("reload", &json!({ "what": "all" })).unwrap();
    emitter.server_side_emit("reload", "all").unwrap();
    emitter.flush().await.unwrap();
}

/// One with the secret that says what only a node may say: its link is closed, the node lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emitter_that_breaks_the_protocol_is_cut_off() {
    let setup = Setup::new("em-hostile");
    let nodes = setup.formed(1).await;
    let peer = RawPeer::new(&setup, 9);
    let interest = Head::Interest(InterestHead {
        version: 1,
        part: InterestPart::SnapshotEnd,
        ns: "/chat",
        mode: WireMode::Flood,
        added: 0,
        number: 0,
    });
    for (nonce, head) in [interest, Head::InterestWanted, Head::Answer { id: 1 }].into_iter().enumerate() {
        let mut link = peer.open(nodes[0].addr()).await;
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            cluster: &setup.cluster,
            node: "hostile",
            incarnation: 1,
            nonce: nonce as u64 + 1,
            advertise: "0.0.0.0:0",
            extensions: smallvec![(EXTENSION_ROLE, ROLE_EMITTER)],
        };
        link.say(&Head::Hello(hello), &[]).await;
        link.say(&Head::Resume(Resume { epoch: 1, received: None }), &[]).await;
        link.say(&Head::Start { first: 1 }, &[]).await;
        link.say(&head, &[]).await;
        let closed = soon("the link is closed", link.conn.closed()).await;
        assert!(closed.to_string().contains("must not send"), "{closed}");
    }
    eventually("it is counted", || nodes[0].report().counters.violations == 3).await;
    assert_eq!((nodes[0].members().len(), nodes[0].emitters()), (1, 1));
    assert!(nodes[0].is_live());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_does_what_it_says_and_says_what_it_cannot() {
    let setup = Setup::new("em-cli");
    let nodes = setup.formed(2).await;
    let recorder = Recorder::new();
    let _members: Vec<Member> = nodes.iter().map(|node| member(node, &recorder, &["lobby"])).collect();
    rooms_known(&nodes, 1).await;
    let io = serve(&nodes[1]);
    io.ns("/chat", async |socket: SocketRef<Adapter>| socket.join("lobby")).await.unwrap();
    let (_client, mut client) = io.new_dummy_sock("/chat", ()).await;
    let seed = nodes[0].addr().to_string();
    let link = ["--seed", &seed, "--cluster", &setup.cluster, "--namespace", "/chat"];
    let run = |args: &[&str]| {
        let args: Vec<String> = args.iter().chain(&link).map(ToString::to_string).collect();
        roomcast(args, Some(setup.secret.to_text()))
    };

    let (code, out, err) = run(&["emit", "--room", "lobby", "--plain", "cli 1"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    eventually("both members have it", || recorder.numbers("cli") == [1, 1]).await;
    let (code, _, err) = run(&["emit", "--room", "lobby", "said", r#"{"a":[1,"two"]}"#]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let wanted = async {
        loop {
            let packet = format!("{:?}", client.recv().await.unwrap());
            if packet.contains("said") {
                break packet;
            }
        }
    };
    let packet = soon("the event", wanted).await.replace('\\', "");
    assert!(packet.contains(r#"["said",{"a":[1,"two"]}]"#), "{packet}");
    for args in [&["rooms"][..], &["sockets"], &["sockets", "--count"], &["disconnect", "--room", "nobody"]] {
        let (code, _, err) = run(args).await;
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
    }
    let (_, out, _) = run(&["rooms", "--json"]).await;
    assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok_and(|rooms| rooms.is_object()), "{out}");

    let refused = |secret: Option<String>| roomcast(link_args(&["rooms"], &link), secret);
    let other = ClusterSecret::generate().unwrap().to_text();
    let (code, out, err) = refused(Some(other)).await;
    assert!(code == 1 && out.is_empty() && err.contains("another cluster secret"), "{code} {err}");
    let (code, _, err) = refused(None).await;
    assert!(code == 1 && err.contains("ROOMCAST_SECRET") && err.contains("--secret-file"), "{code} {err}");
    let nowhere = ["rooms", "--seed", "127.0.0.1:9", "--timeout", "0.5"].map(str::to_owned).to_vec();
    let (code, _, err) = roomcast(nowhere, Some(setup.secret.to_text())).await;
    assert!(code == 1 && err.contains("127.0.0.1:9") | err.contains("no node within"), "{code} {err}");
    let (code, _, err) = run(&["emit", "said", "no json"]).await;
    assert!(code == 2 && err.contains("quotes of its own") && err.contains("--help"), "{code} {err}");
    let (code, _, err) = run(&["disconnect"]).await;
    assert!(code == 2 && err.contains("--all"), "{code} {err}");
    let (code, out, _) = roomcast(vec!["--help".to_owned()], None).await;
    assert!(code == 0 && out.contains("Examples:") && out.contains("Exit codes:"), "{out}");
    eventually("nothing is left of them", || nodes[0].emitters() == 0).await;
}

fn link_args(args: &[&str], link: &[&str]) -> Vec<String> {
    args.iter().chain(link).map(ToString::to_string).collect()
}

/// Runs the command line; its exit code and both outputs.
async fn roomcast(args: Vec<String>, secret: Option<String>) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(command_line());
    command.args(&args).env_remove("ROOMCAST_SECRET").kill_on_drop(true);
    command.envs(secret.map(|secret| ("ROOMCAST_SECRET", secret)));
    let output = soon(format!("roomcast {args:?}"), command.output()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn builder(setup: &Setup, nodes: &[Live]) -> EmitterBuilder {
    let addrs: Vec<_> = nodes.iter().map(Live::addr).collect();
    builder_at(setup, &addrs)
}

fn builder_at(setup: &Setup, addrs: &[SocketAddr]) -> EmitterBuilder {
    Emitter::builder().cluster(&setup.cluster).secret(setup.secret.clone()).seeds(addrs)
}

/// An emitter that is linked to this node: which one it dials first is random.
async fn linked_to(node: &Live, builder: impl Fn() -> EmitterBuilder) -> Emitter {
    let linked = async {
        loop {
            let emitter = builder().connect().await.unwrap();
            if emitter.state() == EmitterState::Linked(node.id().clone()) {
                return emitter;
            }
            emitter.close().await.unwrap();
        }
    };
    soon("a link to that node", linked).await
}

fn member(node: &Live, recorder: &Recorder, rooms: &[&str]) -> Member {
    let member = node.namespace("/chat").unwrap().connect(recorder.clone());
    rooms.iter().for_each(|room| member.join(room).unwrap());
    member
}

/// Waits until all nodes know so many rooms of each other.
async fn rooms_known(nodes: &[Live], rooms: usize) {
    eventually("all rooms are known", || {
        nodes.iter().all(|node| node.report().links.iter().all(|link| link.rooms >= rooms as u64))
    })
    .await;
}

fn serve(node: &Live) -> SocketIo<Adapter> {
    let constructor = RoomcastAdapterCtr::new(&node.node);
    SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(constructor).build_layer().1
}

/// The next packets, without those of connecting and probing.
async fn packets<P: Debug>(client: &mut tokio::sync::mpsc::Receiver<P>, count: usize) -> Vec<String> {
    let mut packets = Vec::new();
    while packets.len() < count {
        let packet = format!("{:?}", soon("a packet", client.recv()).await.unwrap());
        assert!(!packet.contains("wrong"), "{packet}");
        if !packet.contains("sid") && !packet.contains("probe") {
            packets.push(packet);
        }
    }
    packets
}

/// Orders and events for servers, with members of the plain API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ordered_is_done_on_every_node() {
    let setup = Setup::new("em-orders");
    let nodes = setup.formed(3).await;
    let recorder = Recorder::new();
    let members: Vec<Member> = nodes.iter().map(|node| member(node, &recorder, &["lobby"])).collect();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let _handlers: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (heard, name) = (heard.clone(), node.name().to_owned());
            let reload = move |event: roomcast::ServerEvent<String>| {
                heard.lock().unwrap().push(format!("{name} {}", event.data));
                async {}
            };
            node.on_server_event("reload", reload).unwrap()
        })
        .collect();
    // The room, and the one in which nodes with handlers are.
    rooms_known(&nodes, 2).await;
    let emitter = builder(&setup, &nodes).connect().await.unwrap();
    emitter.of("/chat").to("lobby").join(["hall", "attic"]).unwrap();
    emitter.of("/chat").to("lobby").leave("attic").unwrap();
    emitter.server_side_emit("reload", "all").unwrap();
    emitter.flush().await.unwrap();
    for member in &members {
        assert_eq!(member.rooms().len(), 2, "{:?}", member.rooms());
    }
    // The node of the link asks those of which it has heard that they have the room.
    rooms_known(&nodes, 3).await;
    let answers = soon("an answer", emitter.of("/chat").to("hall").sockets()).await.unwrap();
    assert_eq!((answers.value.len(), answers.missing.len()), (3, 0));
    let rooms = soon("an answer", emitter.of("/chat").rooms()).await.unwrap();
    assert_eq!(rooms.value, [("hall".to_owned(), 3), ("lobby".to_owned(), 3)]);
    eventually("every server heard it", || heard.lock().unwrap().len() == 3).await;
    emitter.of("/chat").to("hall").disconnect().unwrap();
    emitter.flush().await.unwrap();
    let answers = soon("an answer", emitter.of("/chat").count()).await.unwrap();
    assert_eq!((answers.value, answers.missing.len()), (0, 0));
}
