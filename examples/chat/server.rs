//! One server: the page, Socket.IO on a node, and the status endpoint.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use bytes::Bytes;
use futures_core::Stream;
use roomcast::Node;
use roomcast::connections::Connections;
use roomcast::socketioxide::{
    Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket, with_answers,
};
use serde::{Deserialize, Serialize};
use socketioxide::extract::{AckSender, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::socket::Sid;
use socketioxide::{ParserConfig, ParserError, SocketIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::BoxError;
use crate::args::Parser;
use crate::presence::Presence;

/// The most rooms of one client. Every node holds the rooms of all clients, so a client must not choose how many.
const MAX_ROOMS: usize = 100;
/// The longest room name, in bytes. The node's own limit is 512 by default.
const MAX_ROOM_BYTES: usize = 128;
/// The longest name of a client, in bytes.
const MAX_NAME_BYTES: usize = 100;
/// The longest text, in bytes.
const MAX_TEXT_BYTES: usize = 4 * 1024;
/// The largest attachment, in bytes.
const MAX_DATA_BYTES: usize = 1 << 20;
/// How long clients may take to say that they have seen a message.
const SEEN_TIMEOUT: Duration = Duration::from_secs(2);
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
    connections: Connections,
    /// They end with the server.
    tasks: JoinSet<()>,
}

/// What a client sends.
#[derive(Deserialize)]
struct Message {
    room: String,
    #[serde(default)]
    text: String,
    #[serde(default, with = "attachment")]
    data: Option<Bytes>,
    /// With an id, the sender is told who has seen the message.
    id: Option<u32>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
}

/// Who has seen a message: told to its sender.
#[derive(Serialize)]
struct Seen {
    room: String,
    id: u32,
    by: u64,
    /// Members of the room that were asked, without the sender.
    of: u64,
    /// Nodes that did not answer, or not in full: some of their members are not in here.
    missing: Vec<String>,
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
        let presence = Presence::new(&node, &io)?;
        let id: Arc<str> = node.id().as_str().into();
        // In a middleware, because it runs before the client hears that it is connected: a handler that is set after
        // that could miss the client's first event.
        let prepared = presence.clone();
        let prepare = async move |socket: Socket| {
            set_handlers(&socket, &id, &prepared);
            Ok::<(), Infallible>(())
        };
        let greeting = presence.clone();
        let greet = async move |socket: Socket| greeting.greet(&socket);
        io.ns("/", ConnectHandler::<Adapter, _>::with(greet, prepare)).await?;
        let mut tasks = JoinSet::new();
        presence.start(&mut tasks)?;

        // Not `status::serve`, which binds by itself. Whoever gives an address beyond loopback has said that it may be seen.
        let report = roomcast::status::router(&node).merge(roomcast::status::dashboard(&node));
        tasks.spawn(async move {
            if let Err(error) = axum::serve(status, report).await {
                tracing::error!(%error, "no longer serving the status");
            }
        });
        let page = PAGE.replace("{{node}}", node.id().as_str()).replace("{{parser}}", parser.name());
        let app = Router::new().route("/", get(async move || Html(page))).layer(layer);
        let connections = Connections::new();
        let clients = connections.listener(clients);
        tasks.spawn(async move {
            if let Err(error) = axum::serve(clients, app).await {
                tracing::error!(%error, "no longer serving clients");
            }
        });
        Ok(Self { node, http, admin, io, connections, tasks })
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
    pub(crate) async fn stop(mut self) {
        // No new clients; those that are here go, a few at a time, and come back on another node.
        self.node.leave().await;
        self.connections.stop_accepting();
        self.connections.close_in_slices(&self.node).await;
        let _ = timeout(CLOSE_TIMEOUT, self.io.close()).await;
        self.node.drain().await;
        self.node.stop().await;
        self.tasks.shutdown().await;
    }
}

fn set_handlers(socket: &Socket, node: &Arc<str>, presence: &Presence) {
    // Events of one client run in tasks of their own: two joins at once must not both be the last that is allowed.
    let joining = Arc::new(Mutex::new(()));
    socket.on("join", async move |socket: Socket, room: TryData<String>, ack: AckSender<Adapter>| {
        reply(ack, check_room(room).and_then(|room| join(&socket, &joining, room)));
    });
    socket.on("leave", async |socket: Socket, room: TryData<String>, ack: AckSender<Adapter>| {
        reply(ack, check_room(room).map(|room| socket.leave(room)));
    });
    let presence = presence.clone();
    socket.on("name", async move |socket: Socket, name: TryData<String>, ack: AckSender<Adapter>| {
        let named = rename(&socket, name);
        if named.is_ok() {
            presence.renamed(&socket);
        }
        reply(ack, named);
    });
    let node = Arc::clone(node);
    let relay = async move |socket: Socket,
                            io: SocketIo<Adapter>,
                            TryData(message): TryData<Message>,
                            ack: AckSender<Adapter>| {
        let from = socket.id;
        // While acknowledgements are awaited, the sender may go and nobody must keep it.
        drop(socket);
        match message.map_err(|error| unreadable(&error)).and_then(check) {
            Ok(message) => relay(&io, from, &node, message, ack).await,
            Err(error) => reply(ack, Err(error)),
        }
    };
    socket.on("message", relay);
}

/// Names a client: what is set as its data comes with it when any server asks who is in a room.
fn rename(socket: &Socket, name: TryData<String>) -> Result<(), String> {
    let name = name.0.map_err(|error| unreadable(&error))?;
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("the name has {} bytes, the limit is {MAX_NAME_BYTES}", name.len()));
    }
    socket.set_data(name).map_err(|error| error.to_string())
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

/// Sends a message to everyone in its room, on every node. If it has an id, its sender is told who has seen it.
async fn relay(io: &SocketIo<Adapter>, from: Sid, node: &str, message: Message, ack: AckSender<Adapter>) {
    let Message { room, text, data, id } = message;
    let relayed = Relayed { room: &room, text: &text, from: from.as_str(), node, data, id };
    let members = io.to(room.clone());
    let Some(id) = id else {
        return reply(
            ack,
            match members.emit("message", &relayed).await {
                // One member whose connection is full or closing is not the sender's concern.
                Ok(()) | Err(socketioxide::BroadcastError::Socket(_)) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
        );
    };
    let asked = members.timeout(SEEN_TIMEOUT).emit_with_ack::<_, bool>("message", &relayed);
    // The stream has the acknowledgements that came; `answers` names the nodes whose share is missing.
    let (acks, answers) = with_answers(asked).await;
    let acks = match acks {
        Ok(acks) => acks,
        Err(error) => return reply(ack, Err(error.to_string())),
    };
    // It is on its way: that much is known at once.
    reply(ack, Ok(()));
    let (mut by, mut of) = (0, 0);
    let mut acks = pin!(acks);
    while let Some((member, seen)) = poll_fn(|cx| acks.as_mut().poll_next(cx)).await {
        if member != from {
            of += 1;
            by += u64::from(seen.is_ok_and(|seen| seen));
        }
    }
    let missing = answers.missing().iter().map(|missing| missing.node.to_string()).collect();
    if let Some(sender) = io.get_socket(from) {
        let _ = sender.emit("seen", &Seen { room, id, by, of, missing });
    }
}

fn check(message: Message) -> Result<Message, String> {
    check_room(TryData(Ok(message.room.clone())))?;
    let text_len = message.text.len();
    if text_len > MAX_TEXT_BYTES {
        return Err(format!("the text has {text_len} bytes, the limit is {MAX_TEXT_BYTES}"));
    }
    let data_len = message.data.as_ref().map_or(0, Bytes::len);
    if data_len > MAX_DATA_BYTES {
        return Err(format!("the data has {data_len} bytes, the limit is {MAX_DATA_BYTES}"));
    }
    Ok(message)
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
