//! The extractor in a real Socket.IO server, with clients that poll.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::socketioxide::SocketIo;
use ::socketioxide::extract::{AckSender, Data, SocketRef};
use ::socketioxide::handler::ConnectHandler;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::super::{Adapter, RoomcastAdapter, RoomcastAdapterConfig, Socket};
use super::fake::Side;
use crate::core::interest::RoomMode;

struct Server {
    side: Side,
    addr: std::net::SocketAddr,
    io: SocketIo<Adapter>,
    checks: Arc<AtomicUsize>,
}

impl Server {
    async fn start(config: RoomcastAdapterConfig) -> Self {
        let side = Side::new("a");
        let ctr = side.ctr(config);
        let checks = Arc::clone(&ctr.checks);
        let (layer, io) = SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(ctr).build_layer();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = axum::Router::new().layer(layer);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { side, addr, io, checks }
    }

    async fn exact() -> Self {
        Self::start(RoomcastAdapterConfig::new().with_exact_rooms(true)).await
    }

    async fn until(&self, what: &str, condition: impl Fn(&Side) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition(&self.side) {
            assert!(Instant::now() < deadline, "not reached: {what}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A client that uses HTTP long-polling.
struct Client {
    addr: std::net::SocketAddr,
    path: String,
}

impl Client {
    async fn connect(server: &Server) -> Self {
        let mut client = Self { addr: server.addr, path: "/socket.io/?EIO=4&transport=polling".to_owned() };
        let open = client.http("GET", "").await;
        let sid = open.split("\"sid\":\"").nth(1).unwrap().split('"').next().unwrap();
        client.path = format!("{}&sid={sid}", client.path);
        client.send("40").await;
        client
    }

    async fn send(&self, packet: &str) {
        assert_eq!(self.http("POST", packet).await, "ok");
    }

    async fn receive(&self) -> String {
        self.http("GET", "").await
    }

    async fn http(&self, method: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let (path, length) = (&self.path, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

fn on_connect(socket: &Socket) {
    socket.join("lobby");
    socket.on("join", async |socket: Socket, Data::<String>(room), ack: AckSender<Adapter>| {
        socket.join(room);
        ack.send(&socket.rooms().len()).ok();
    });
    socket.on("leave", async |socket: Socket, Data::<String>(room), ack: AckSender<Adapter>| {
        socket.leave(room);
        ack.send(&socket.rooms().len()).ok();
    });
    socket.on("leave_all", async |socket: Socket| socket.leave_all());
    socket.on("raw", async |socket: SocketRef<Adapter>| socket.join("raw"));
    socket.on("bye", async |socket: Socket| _ = socket.disconnect());
}

#[tokio::test]
async fn rooms_are_announced_while_a_socket_is_in_them() {
    let server = Server::exact().await;
    server.io.ns("/", async |socket: Socket| on_connect(&socket)).await.unwrap();
    assert_eq!(server.side.wanted("/"), (Some(RoomMode::Exact), 0));

    let (first, second) = (Client::connect(&server).await, Client::connect(&server).await);
    server.until("joined on connect", |side| side.wants("/", "lobby")).await;
    first.receive().await;
    first.send(r#"420["join","hall"]"#).await;
    assert!(first.receive().await.contains("430[2]"));
    assert!(server.side.wants("/", "hall"));
    first.send(r#"421["leave","hall"]"#).await;
    assert!(first.receive().await.contains("431[1]"));
    assert_eq!(server.side.wanted("/"), (Some(RoomMode::Exact), 1));

    // A namespace disconnect by the server, by the client, and what the extractor does not see.
    first.send(r#"42["bye"]"#).await;
    second.send(r#"42["leave_all"]"#).await;
    server.until("nobody is left", |side| side.wanted("/").1 == 0).await;
    first.send("40").await;
    server.until("the same client is back", |side| side.wants("/", "lobby")).await;
    first.send("41").await;
    server.until("gone without a leave", |side| side.wanted("/").1 == 0).await;

    // The check of what was touched by disconnects finds nothing wrong.
    let begun = server.checks.load(Ordering::Relaxed);
    server.until("checked again", |_| server.checks.load(Ordering::Relaxed) > begun).await;
    assert_eq!(server.side.wanted("/"), (Some(RoomMode::Exact), 0));
    server.io.delete_ns("/");
    assert_eq!((server.side.wanted("/").0, server.side.wanted_in_all()), (None, 0));
}

#[tokio::test]
async fn a_raw_join_is_noticed() {
    let server = Server::exact().await;
    server.io.ns("/", async |socket: Socket| on_connect(&socket)).await.unwrap();
    let client = Client::connect(&server).await;
    server.until("joined", |side| side.wants("/", "lobby")).await;
    client.send(r#"42["raw"]"#).await;
    server.until("flooded", |side| side.wanted("/").0 == Some(RoomMode::Flood)).await;
}

#[tokio::test]
async fn a_refused_socket_leaves_nothing_behind() {
    let server = Server::exact().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let middleware = async move |socket: Socket| {
        socket.join("lobby");
        count.fetch_add(1, Ordering::Relaxed);
        Err::<(), _>(std::io::Error::other("refused"))
    };
    let connected = async |_: Socket| ();
    server.io.ns("/", connected.with(middleware)).await.unwrap();
    let client = Client::connect(&server).await;
    assert!(client.receive().await.contains("refused"));
    server.until("nothing is wanted", |side| side.wanted("/").1 == 0).await;
    assert_eq!(refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_join_after_the_end_is_without_effect() {
    let server = Server::exact().await;
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let connect = async move |socket: Socket| {
        socket.join("lobby");
        tokio::spawn(async move {
            while socket.connected() || !socket.rooms().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
            // The server has forgotten its rooms.
            socket.join("late");
            tell.send(socket.rooms()).await.ok();
        });
    };
    server.io.ns("/", connect).await.unwrap();
    let client = Client::connect(&server).await;
    server.until("joined", |side| side.wants("/", "lobby")).await;
    client.send("41").await;
    assert!(told.recv().await.unwrap().is_empty());
    server.until("gone", |side| side.wanted("/") == (Some(RoomMode::Exact), 0)).await;
}

#[tokio::test]
async fn sockets_that_the_adapter_moved_are_taken_over_by_the_extractor() {
    let server = Server::exact().await;
    let connect = async |socket: SocketRef<Adapter>| {
        socket.on("see", async |_: Socket| ());
    };
    server.io.ns("/", connect).await.unwrap();
    let client = Client::connect(&server).await;
    server.until("connected", |_| server.io.local().sockets().len() == 1).await;
    server.io.local().join("moved").await.unwrap();
    assert!(server.side.wants("/", "moved"));
    client.send(r#"42["see"]"#).await;
    client.send("41").await;
    server.until("taken back", |side| !side.wants("/", "moved")).await;
}

#[tokio::test]
async fn in_a_flood_namespace_room_events_follow_the_sockets() {
    let server = Server::start(RoomcastAdapterConfig::new()).await;
    let mut events = server.side.hub.room_feed.listen();
    let middleware = async move |socket: Socket| {
        socket.join("waiting");
        Err::<(), _>(std::io::Error::other("refused"))
    };
    server.io.ns("/", async |socket: Socket| on_connect(&socket)).await.unwrap();
    server.io.ns("/refused", (async |_: Socket| ()).with(middleware)).await.unwrap();
    let client = Client::connect(&server).await;
    client.receive().await;
    client.send(r#"420["join","hall"]"#).await;
    client.receive().await;
    client.send("41").await;
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
        let event = event.expect("in time").expect("the node runs");
        let (ns, room) = event.place().expect("nothing was missed");
        format!("{} {ns} {room}", event.name())
    };
    for expected in ["create-room / lobby", "join-room / lobby", "create-room / hall", "join-room / hall"] {
        assert_eq!(next().await, expected);
    }
    // The rooms of a socket that goes are in no order.
    let mut left = [next().await, next().await, next().await, next().await];
    left.sort();
    let expected = ["delete-room / hall", "delete-room / lobby", "leave-room / hall", "leave-room / lobby"];
    assert_eq!(left, expected);
    client.send("40/refused,").await;
    for name in ["create-room", "join-room", "leave-room", "delete-room"] {
        assert_eq!(next().await, format!("{name} /refused waiting"));
    }
}

#[tokio::test]
async fn in_a_flood_namespace_it_is_a_plain_socket() {
    let server = Server::start(RoomcastAdapterConfig::new()).await;
    server.io.ns("/", async |socket: Socket| on_connect(&socket)).await.unwrap();
    let client = Client::connect(&server).await;
    client.receive().await;
    client.send(r#"420["join","hall"]"#).await;
    assert!(client.receive().await.contains("430[2]"));
    client.send(r#"421["leave","hall"]"#).await;
    assert!(client.receive().await.contains("431[1]"));
    assert_eq!(server.side.wanted("/"), (Some(RoomMode::Flood), 0));
}

#[tokio::test]
async fn a_dynamic_namespace_is_made_once() {
    let server = Server::exact().await;
    server.io.ns("/", async |_: Socket| ()).await.unwrap();
    let connect = async |socket: Socket| socket.join("lobby");
    server.io.dyn_ns("/team/{id}", connect).unwrap();
    let (first, second) = (Client::connect(&server).await, Client::connect(&server).await);
    tokio::join!(first.send("40/team/7,"), second.send("40/team/7,"));
    let both = || server.io.of("/team/7").map(|ns| ns.local().sockets().len());
    server.until("both are in", |_| both() == Some(2)).await;
    server.until("announced", |side| side.wanted("/team/7") == (Some(RoomMode::Exact), 1)).await;
}
