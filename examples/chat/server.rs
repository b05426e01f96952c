//! One server: the page, Socket.IO on a node, and the status endpoint.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use bytes::Bytes;
use roomcast::Node;
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket};
use serde::{Deserialize, Serialize};
use socketioxide::extract::{AckSender, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::{ParserConfig, ParserError, SocketIo};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::BoxError;
use crate::args::Parser;

/// The most rooms of one client. Every node holds the rooms of all clients, so a client must not choose how many.
const MAX_ROOMS: usize = 100;
/// The longest room name, in bytes. The node's own limit is 512 by default.
const MAX_ROOM_BYTES: usize = 128;
/// The longest text, in bytes.
const MAX_TEXT_BYTES: usize = 4 * 1024;
/// The largest attachment, in bytes.
const MAX_DATA_BYTES: usize = 1 << 20;
/// How long clients may take to be disconnected when the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const PAGE: &str = include_str!("index.html");

/// The sockets of a server, bound before anyone hears of it: a port that is taken must not be noticed later.
pub(crate) struct Sockets {
    clients: TcpListener,
    status: TcpListener,
}

impl Sockets {
    /// Binds the address for clients and the one for the status.
    pub(crate) async fn bind(clients: SocketAddr, status: SocketAddr) -> Result<Self, BoxError> {
        let listen = async |what: &str, flag: &str, addr: SocketAddr| {
            let bound = TcpListener::bind(addr).await;
            bound.map_err(|error| format!("listen for {what} on {addr} ({flag}): {error}"))
        };
        Ok(Self {
            clients: listen("clients", "--http", clients).await?,
            status: listen("the status", "--admin", status).await?,
        })
    }
}

/// A running server.
pub(crate) struct Server {
    node: Node,
    http: SocketAddr,
    admin: SocketAddr,
    io: SocketIo<Adapter>,
    stop_listening: oneshot::Sender<()>,
    serving: [JoinHandle<()>; 2],
}

/// What a client sends.
#[derive(Deserialize)]
struct Message {
    room: String,
    #[serde(default)]
    text: String,
    #[serde(default, with = "attachment")]
    data: Option<Bytes>,
}

/// What every member of the room gets, the sender included.
#[derive(Serialize)]
struct Relayed<'a> {
    room: &'a str,
    text: &'a str,
    from: &'a str,
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", with = "attachment")]
    data: Option<Bytes>,
}

/// The acknowledgement of every event.
#[derive(Serialize)]
struct Reply {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Server {
    /// Serves clients and the status of `node`.
    pub(crate) async fn start(node: Node, sockets: Sockets, parser: Parser) -> Result<Self, BoxError> {
        let Sockets { clients, status } = sockets;
        let (http, admin) = (clients.local_addr()?, status.local_addr()?);
        let config = RoomcastAdapterConfig::new().with_exact_rooms(true);
        let builder = SocketIo::builder()
            .with_adapter::<RoomcastAdapter<_>>(RoomcastAdapterCtr::new_with_config(&node, config));
        let (layer, io) = match parser {
            Parser::Common => builder.with_parser(ParserConfig::common()).build_layer(),
            Parser::MsgPack => builder.with_parser(ParserConfig::msgpack()).build_layer(),
        };
        let id: Arc<str> = node.id().as_str().into();
        // In a middleware, because it runs before the client hears that it is connected: a handler that is set after
        // that could miss the client's first event.
        let prepare = async move |socket: Socket| {
            set_handlers(&socket, &id);
            Ok::<(), Infallible>(())
        };
        io.ns("/", ConnectHandler::<Adapter, _>::with(async || (), prepare)).await?;

        // Not `status::serve`, which binds by itself. Whoever gives an address beyond loopback has said that it may be seen.
        let report = roomcast::status::router(&node);
        let reporting = tokio::spawn(async move {
            if let Err(error) = axum::serve(status, report).await {
                tracing::error!(%error, "no longer serving the status");
            }
        });
        let page = PAGE.replace("{{node}}", node.id().as_str()).replace("{{parser}}", parser.name());
        let app = Router::new().route("/", get(async move || Html(page))).layer(layer);
        let (stop_listening, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async move { _ = stopped.await };
            if let Err(error) = axum::serve(clients, app).with_graceful_shutdown(stopped).await {
                tracing::error!(%error, "no longer serving clients");
            }
        });
        Ok(Self { node, http, admin, io, stop_listening, serving: [serving, reporting] })
    }

    /// The node.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Where clients connect.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where the status is.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Lets clients go, hands over what is under way to the other nodes, and stops.
    pub(crate) async fn stop(self) {
        // No new clients; those that are here go and come back on another node.
        let _ = self.stop_listening.send(());
        let _ = timeout(CLOSE_TIMEOUT, self.io.close()).await;
        self.node.drain().await;
        self.node.stop().await;
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

fn set_handlers(socket: &Socket, node: &Arc<str>) {
    // Events of one client run in tasks of their own: two joins at once must not both be the last that is allowed.
    let joining = Arc::new(Mutex::new(()));
    socket.on("join", async move |socket: Socket, room: TryData<String>, ack: AckSender<Adapter>| {
        reply(ack, check_room(room).and_then(|room| join(&socket, &joining, room)));
    });
    socket.on("leave", async |socket: Socket, room: TryData<String>, ack: AckSender<Adapter>| {
        reply(ack, check_room(room).map(|room| socket.leave(room)));
    });
    let node = Arc::clone(node);
    let relay = async move |socket: Socket,
                            io: SocketIo<Adapter>,
                            TryData(message): TryData<Message>,
                            ack: AckSender<Adapter>| {
        let result = match message {
            Ok(message) => relay(&io, socket.id.as_str(), &node, message).await,
            Err(error) => Err(unreadable(&error)),
        };
        reply(ack, result);
    };
    socket.on("message", relay);
}

/// Joins a room, if the client is not in too many.
fn join(socket: &Socket, joining: &Mutex<()>, room: String) -> Result<(), String> {
    let _one_at_a_time = joining.lock().unwrap_or_else(PoisonError::into_inner);
    let rooms = socket.rooms();
    if rooms.len() >= MAX_ROOMS && !rooms.iter().any(|joined| *joined == room) {
        return Err(format!("already in {} rooms, the limit is {MAX_ROOMS}: leave one first", rooms.len()));
    }
    socket.join(room);
    Ok(())
}

/// Sends a message to everyone in its room, on every node.
async fn relay(io: &SocketIo<Adapter>, from: &str, node: &str, message: Message) -> Result<(), String> {
    let Message { room, text, data } = message;
    let room = check_room(TryData(Ok(room)))?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(format!("the text has {} bytes, the limit is {MAX_TEXT_BYTES}", text.len()));
    }
    let data_len = data.as_ref().map_or(0, Bytes::len);
    if data_len > MAX_DATA_BYTES {
        return Err(format!("the data has {data_len} bytes, the limit is {MAX_DATA_BYTES}"));
    }
    let relayed = Relayed { room: &room, text: &text, from, node, data };
    match io.to(room.clone()).emit("message", &relayed).await {
        // One member whose connection is full or closing is not the sender's concern.
        Ok(()) | Err(socketioxide::BroadcastError::Socket(_)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn check_room(room: TryData<String>) -> Result<String, String> {
    let room = room.0.map_err(|error| unreadable(&error))?;
    match room.len() {
        0 => Err("the room has no name".to_owned()),
        1..=MAX_ROOM_BYTES => Ok(room),
        len => Err(format!("the name of the room has {len} bytes, the limit is {MAX_ROOM_BYTES}")),
    }
}

fn unreadable(error: &ParserError) -> String {
    format!("the event is not understood: {error}")
}

fn reply(ack: AckSender<Adapter>, result: Result<(), String>) {
    let error = result.err();
    // A client that has gone needs no answer.
    let _ = ack.send(&Reply { ok: error.is_none(), error });
}

/// Binary data that may be missing. The common parser turns bytes into attachments of the packet and back, but not
/// inside an `Option`.
mod attachment {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(data: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        data.as_ref().unwrap_or(&Bytes::new()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        Bytes::deserialize(deserializer).map(Some)
    }
}
