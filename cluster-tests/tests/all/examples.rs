//! The example `actix_ws`: two processes, clients over WebSockets, and a node of this process that watches the rooms. The
//! example `emitter`.

use cluster_tests::process::{Process, example_program};
use cluster_tests::wait::soon;
use futures_util::{SinkExt, StreamExt};
use roomcast::socketioxide::{RoomcastAdapter, RoomcastAdapterCtr, Socket};
use roomcast::{ClusterSecret, Node, RoomEvent, RoomWatch};
use serde_json::{Value, json};
use socketioxide::SocketIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

/// The longest message that the example takes.
const MAX_MESSAGE_BYTES: usize = 4 * 1024;
/// The most rooms of one client.
const MAX_ROOMS: usize = 100;

/// A process of the example.
struct Server {
    process: Process,
    http: String,
    listen: String,
}

impl Server {
    async fn start(id: &str, secret: &ClusterSecret, seed: Option<&Server>) -> Self {
        let mut command = Command::new(example_program("actix_ws"));
        command.args(["--id", id, "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
        if let Some(seed) = seed {
            command.args(["--seed", &seed.listen]);
        }
        command.env("ROOMCAST_SECRET", secret.to_text()).env("RUST_LOG", "info");
        let process = Process::spawn(format!("actix_ws {id}"), command);
        let ready = process.line("ready ").await;
        let field =
            |name: &str| ready.split(' ').find_map(|word| word.strip_prefix(name)).unwrap().to_owned();
        Self { http: field("http=http://"), listen: field("listen="), process }
    }

    async fn client(&self) -> Client {
        let url = format!("ws://{}ws", self.http);
        let socket = TcpSocket::new_v4().unwrap();
        // A fixed size: the system would let that of a client which reads nothing grow to many megabytes.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let addr = self.http.trim_end_matches('/').parse().unwrap();
        let stream = soon("a client connects", socket.connect(addr)).await.unwrap();
        Client(soon("the server answers", client_async(url, stream)).await.unwrap().0)
    }
}

/// A client of the example.
struct Client(WebSocketStream<TcpStream>);

impl Client {
    async fn send(&mut self, message: Value) {
        self.send_text(message.to_string()).await;
    }

    async fn send_text(&mut self, text: String) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// The next message; pings are answered by the library.
    async fn gets(&mut self) -> Value {
        loop {
            match soon("a message", self.0.next()).await.unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Asks, and takes the answer.
    async fn asks(&mut self, request: Value) -> Value {
        self.send(request).await;
        self.gets().await
    }

    /// Waits until the server closes, and takes its code.
    async fn closed(&mut self) -> CloseCode {
        loop {
            match soon("the server closes", self.0.next()).await.unwrap().unwrap() {
                Message::Close(frame) => return frame.unwrap().code,
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Two servers that know each other, and a third node that watches their rooms.
async fn cluster() -> (Server, Server, Node, RoomWatch) {
    let secret = ClusterSecret::generate().unwrap();
    let a = Server::start("a", &secret, None).await;
    let b = Server::start("b", &secret, Some(&a)).await;
    let builder = Node::builder().cluster("chat").id("watcher-of-actix-ws").listen("127.0.0.1:0");
    let watcher = builder.seeds([&a.listen, &b.listen]).secret(secret).start().await.unwrap();
    for (server, peer) in [(&a, "peer=b"), (&b, "peer=a")] {
        server.process.says(&["link up", peer]).await;
        server.process.says(&["link up", "peer=watcher-of-actix-ws"]).await;
    }
    let watch = watcher.watch_rooms();
    (a, b, watcher, watch)
}

async fn opened(watch: &mut RoomWatch, name: &str) {
    let event = soon(format!("{name} opens"), watch.recv()).await.unwrap();
    assert!(matches!(&event, RoomEvent::RoomOpened { room, .. } if **room == *name), "{event:?}");
}

async fn emptied(watch: &mut RoomWatch, name: &str) {
    let event = soon(format!("{name} is empty"), watch.recv()).await.unwrap();
    assert!(matches!(&event, RoomEvent::RoomClosed { room, .. } if **room == *name), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actix_clients_of_two_processes_share_rooms() {
    let (mut a, mut b, _watcher, mut watch) = cluster().await;
    let (mut alice, mut bob) = (a.client().await, b.client().await);
    assert_eq!(alice.asks(json!({ "join": "lobby" })).await, json!({ "joined": "lobby" }));
    assert_eq!(bob.asks(json!({ "join": "lobby" })).await, json!({ "joined": "lobby" }));
    opened(&mut watch, "lobby").await;

    // Both ways, the sender included. A join that is answered is known: nothing has to be tried again.
    for (speaks, node) in [(true, "a"), (false, "b")] {
        let (speaker, listener) = if speaks { (&mut alice, &mut bob) } else { (&mut bob, &mut alice) };
        let own = speaker.asks(json!({ "to": "lobby", "text": "grün 🚀" })).await;
        assert_eq!(own, json!({ "room": "lobby", "text": "grün 🚀", "from": "1", "node": node }));
        assert_eq!(listener.gets().await, own);
    }

    // Who left gets nothing more: what is said afterwards elsewhere comes first.
    assert_eq!(bob.asks(json!({ "join": "other" })).await, json!({ "joined": "other" }));
    opened(&mut watch, "other").await;
    assert_eq!(bob.asks(json!({ "leave": "lobby" })).await, json!({ "left": "lobby" }));
    assert_eq!(alice.asks(json!({ "to": "lobby", "text": "still there?" })).await["text"], "still there?");
    alice.send(json!({ "to": "other", "text": "fence" })).await;
    assert_eq!(bob.gets().await["text"], "fence");

    // Who goes, with a goodbye or without, leaves its rooms in the whole cluster.
    bob.0.close(None).await.unwrap();
    emptied(&mut watch, "other").await;
    let mut carol = b.client().await;
    assert_eq!(carol.asks(json!({ "join": "den" })).await, json!({ "joined": "den" }));
    opened(&mut watch, "den").await;
    drop(carol);
    emptied(&mut watch, "den").await;

    // SIGTERM: clients are told to go, the process ends by itself, and the other goes on.
    let mut dave = b.client().await;
    assert_eq!(dave.asks(json!({ "join": "lobby" })).await, json!({ "joined": "lobby" }));
    a.process.terminate().await;
    assert_eq!(alice.closed().await, CloseCode::Away);
    assert_eq!(a.process.end().await.code(), Some(0));
    assert_eq!(dave.asks(json!({ "to": "lobby", "text": "alone" })).await["node"], "b");
    b.process.terminate().await;
    assert_eq!(dave.closed().await, CloseCode::Away);
    assert_eq!(b.process.end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actix_clients_have_limits() {
    let secret = ClusterSecret::generate().unwrap();
    let server = Server::start("limits", &secret, None).await;
    let mut client = server.client().await;
    for request in
        ["", "[]", "{}", "nonsense", r#"{"join":1}"#, r#"{"join":"a","leave":"a"}"#, r#"{"to":"a"}"#]
    {
        client.send_text(request.to_owned()).await;
        assert!(client.gets().await["error"].is_string(), "{request}");
    }
    for number in 0..MAX_ROOMS {
        let room = number.to_string();
        assert_eq!(client.asks(json!({ "join": room })).await, json!({ "joined": room }));
    }
    let refused = client.asks(json!({ "join": "one more" })).await;
    assert!(refused["error"].as_str().unwrap().contains("100 rooms"), "{refused}");
    assert_eq!(client.asks(json!({ "join": "0" })).await, json!({ "joined": "0" }));
    assert_eq!(client.asks(json!({ "leave": "0" })).await, json!({ "left": "0" }));
    assert_eq!(client.asks(json!({ "join": "one more" })).await, json!({ "joined": "one more" }));
    let long = client.asks(json!({ "join": "x".repeat(1000) })).await;
    assert!(long["error"].is_string(), "{long}");

    client.send_text("x".repeat(MAX_MESSAGE_BYTES + 1)).await;
    assert_eq!(client.closed().await, CloseCode::Size);
    let mut bytes = server.client().await;
    bytes.0.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(bytes.closed().await, CloseCode::Unsupported);
}

/// A client that reads nothing while more is said than all buffers on the way hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_actix_client_is_told_what_it_missed() {
    let secret = ClusterSecret::generate().unwrap();
    let server = Server::start("slow", &secret, None).await;
    let (mut slow, mut quick) = (server.client().await, server.client().await);
    for client in [&mut slow, &mut quick] {
        assert_eq!(client.asks(json!({ "join": "lobby" })).await, json!({ "joined": "lobby" }));
    }
    // 16 MB; a system lets the buffer of a sender grow to 4 MB.
    const SAID: u64 = 4_000;
    let text = "x".repeat(MAX_MESSAGE_BYTES - 100);
    for _ in 0..SAID {
        // Read back by who says it, one by one: nobody but the slow one is too slow.
        assert!(quick.asks(json!({ "to": "lobby", "text": text })).await["text"].is_string());
    }
    let (mut got, mut missed) = (0, 0);
    while got + missed < SAID {
        let message = slow.gets().await;
        match message["missed"].as_u64() {
            Some(more) => missed += more,
            None => got += 1,
        }
    }
    assert!(missed > 0, "everything fitted into buffers: {got}");
    assert_eq!(got + missed, SAID);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_emitter_publishes_and_ends() {
    let secret = ClusterSecret::generate().unwrap();
    let builder = Node::builder().cluster("chat").id("host-of-emitter").listen("127.0.0.1:0");
    let node = builder.secret(secret.clone()).start().await.unwrap();
    let adapter = RoomcastAdapterCtr::new(&node);
    let io = SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(adapter).build_layer().1;
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let connect = async move |socket: Socket| {
        socket.join("lobby");
        tell.send(()).await.unwrap();
    };
    io.ns("/", connect).await.unwrap();
    let (_tx, mut rx) = io.new_dummy_sock("/", ()).await;
    soon("the client is in the room", told.recv()).await.unwrap();

    let mut command = Command::new(example_program("emitter"));
    command.args([&node.local_addr().to_string(), "lobby", "the shop opens"]);
    command.env("ROOMCAST_SECRET", secret.to_text());
    let mut emitter = Process::spawn("emitter", command);
    assert!(emitter.end().await.success(), "{}", emitter.printed());
    let message = async {
        loop {
            let packet = format!("{:?}", rx.recv().await.expect("the client is connected"));
            if packet.contains("the shop opens") {
                return packet;
            }
        }
    };
    let packet = soon("the message", message).await;
    assert!(packet.contains("message") && packet.contains("a script"), "{packet}");
    node.stop().await;
}
