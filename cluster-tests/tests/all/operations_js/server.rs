//! A Socket.IO server on a TCP port whose clients tell it what to do: `op` with a [`Call`], acknowledged with a [`Reply`].

use std::convert::Infallible;
use std::fmt::Display;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use bytes::Bytes;
use cluster_tests::Live;
use futures_core::Stream;
use roomcast::socketioxide::{
    Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket, with_answers,
};
use roomcast::{MemberState, Node, RoomEvent, ServerEvent};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socketioxide::ack::AckStream;
use socketioxide::extract::{AckSender, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::operators::BroadcastOperators;
use socketioxide::socket::RemoteSocket;
use socketioxide::{ParserConfig, SocketIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::sockets::{NS, Parser};

/// As long as the script waits for anything.
const LONG: Duration = Duration::from_secs(40);

/// A running server. Dropping it ends what it serves; its node goes on.
pub(super) struct Server {
    /// Where clients connect.
    pub(super) url: String,
    _tasks: JoinSet<()>,
}

/// What the handlers know.
struct Place {
    node: Node,
    /// `[event, room, socket]` of each room event here.
    here: Mutex<Vec<[String; 3]>>,
    /// `[event, room]` of each room that was opened or closed in the cluster.
    watched: Mutex<Vec<[String; 2]>>,
}

/// What a client wants done on its node.
#[derive(Deserialize)]
struct Call {
    name: String,
    /// Whom it is for: one socket, or these rooms without those, or all.
    #[serde(default)]
    socket: String,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    /// Any of `broadcast` (without the sender), `local` and `volatile`.
    #[serde(default)]
    flags: Vec<String>,
    /// What they join and leave.
    #[serde(default)]
    rooms: Vec<String>,
    /// Of an acknowledgement; 0 stands for long.
    #[serde(default)]
    timeout_ms: u64,
    /// What is emitted.
    #[serde(default)]
    tag: String,
    data: Bytes,
}

/// What came of it.
#[derive(Default, Serialize)]
struct Reply {
    /// Empty when all is well.
    error: String,
    value: Value,
    acks: Vec<Ack>,
    data: Bytes,
}

/// The acknowledgement of one socket.
#[derive(Serialize)]
struct Ack {
    sid: String,
    /// Empty when it came.
    error: String,
    answer: Answer,
}

/// What a client acknowledges.
#[derive(Default, Serialize, Deserialize)]
struct Answer {
    who: String,
    tag: String,
    data: Bytes,
}

/// What a client gets in one attachment, it gets once more in a nested one.
#[derive(Serialize)]
struct Nested {
    again: Bytes,
}

impl Server {
    pub(super) async fn start(live: &Live, parser: Parser, exact: bool) -> Self {
        let node = live.node.clone();
        let config = RoomcastAdapterConfig::new().with_exact_rooms(exact);
        let builder = SocketIo::builder()
            .with_adapter::<RoomcastAdapter<_>>(RoomcastAdapterCtr::new_with_config(&node, config));
        let builder = match parser {
            Parser::Json => builder,
            Parser::MsgPack => builder.with_parser(ParserConfig::msgpack()),
        };
        let (layer, io) = builder.build_layer();
        let place = Arc::new(Place { node, here: Mutex::default(), watched: Mutex::default() });
        let mut tasks = JoinSet::new();
        place.listen(&mut tasks);
        place.handle_server_events(&io);
        // In a middleware, because it runs before the client hears that it is connected.
        let prepare = async move |socket: Socket| {
            handle(&socket, &place);
            Ok::<(), Infallible>(())
        };
        io.ns(NS, ConnectHandler::<Adapter, _>::with(async || (), prepare)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{NS}", listener.local_addr().unwrap());
        let listener = listener.tap_io(|connection| _ = connection.set_nodelay(true));
        tasks.spawn(async move { axum::serve(listener, Router::new().layer(layer)).await.unwrap() });
        Self { url, _tasks: tasks }
    }
}

impl Place {
    /// Keeps what happens to rooms.
    fn listen(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let (place, mut events) = (Arc::clone(self), self.node.room_events().only(NS));
        tasks.spawn(async move {
            while let Some(event) = events.recv().await {
                let (_, room) = event.place().expect("a test is not slow");
                let socket = match &event {
                    RoomEvent::RoomJoined { socket, .. } | RoomEvent::RoomLeft { socket, .. } => &**socket,
                    _ => "",
                };
                let event = [event.name(), room, socket].map(str::to_owned);
                place.here.lock().unwrap().push(event);
            }
        });
        let (place, mut watch) = (Arc::clone(self), self.node.watch_rooms());
        tasks.spawn(async move {
            while let Some(event) = watch.recv().await {
                let (_, room) = event.place().expect("a test is not slow");
                place.watched.lock().unwrap().push([event.name(), room].map(str::to_owned));
            }
        });
    }

    /// `ask` is acknowledged with the names of the node and of the asker, `relay` is emitted to the sockets here.
    fn handle_server_events(&self, io: &SocketIo<Adapter>) {
        let id = self.node.id().to_string();
        let ask = move |event: ServerEvent<String>| {
            let answer = [id.clone(), event.from.to_string(), event.data];
            async move { answer }
        };
        self.node.on_server_event("ask", ask).unwrap().detach();
        let io = io.clone();
        let relay = move |event: ServerEvent<(String, Vec<u8>)>| {
            let io = io.clone();
            async move {
                let (tag, data) = event.data;
                let here = io.of(NS).unwrap().local();
                here.emit("said", &said(&tag, &data.into())).await.unwrap();
            }
        };
        self.node.on_server_event("relay", relay).unwrap().detach();
    }

    /// Does what is for the node, for the client itself or for a selection.
    async fn carry_out(&self, socket: &Socket, io: &SocketIo<Adapter>, call: &Call) -> Result<Reply, String> {
        let value = match call.name.as_str() {
            "echo" => return Ok(Reply { data: call.data.clone(), ..Reply::default() }),
            "enter" => {
                socket.join(call.rooms.clone());
                socket.settled().await;
                Value::Null
            }
            "exit" => {
                socket.leave(call.rooms.clone());
                Value::Null
            }
            "count" => {
                let namespace = self.node.namespace(NS).map_err(failed)?;
                let room = call.rooms.first().ok_or("no room")?;
                let (all, size) = (namespace.sockets_count().await, namespace.room_size(room).await);
                let (all, size) = (all.map_err(failed)?, size.map_err(failed)?);
                let live = |state: MemberState| state == MemberState::Live;
                let nodes = self.node.members().iter().filter(|member| live(member.state)).count();
                let complete = all.missing.is_empty() && size.missing.is_empty();
                json!({ "all": *all, "room": *size, "nodes": nodes, "complete": complete })
            }
            "server-side ask" => {
                let acks = self.node.server_side_emit_with_ack::<[String; 3]>("ask", &call.tag, LONG).await;
                let acks = acks.map_err(failed)?;
                let rest = acks.missing.len() + acks.unhandled.len();
                let answers: Result<Vec<_>, _> = acks.answers.into_iter().map(|(_, answer)| answer).collect();
                json!({ "answers": answers.map_err(failed)?, "others": rest })
            }
            "server-side emit" => {
                let data = (&call.tag, &call.data[..]);
                json!(self.node.server_side_emit("relay", &data).map_err(failed)?.targeted)
            }
            "room events" => {
                let room = call.rooms.first().ok_or("no room")?;
                let (here, watched) = (self.here.lock().unwrap(), self.watched.lock().unwrap());
                let here: Vec<_> = here.iter().filter(|event| event[1] == *room).collect();
                let watched: Vec<_> = watched.iter().filter(|event| event[1] == *room).collect();
                json!({ "here": here, "cluster": watched })
            }
            _ if !call.socket.is_empty() => return for_one(remote(io, &call.socket).await?, call).await,
            _ => return for_many(select(socket, io, call), call).await,
        };
        Ok(Reply { value, ..Reply::default() })
    }
}

fn handle(socket: &Socket, place: &Arc<Place>) {
    let place = Arc::clone(place);
    let op = async move |socket: Socket,
                         io: SocketIo<Adapter>,
                         TryData(call): TryData<Call>,
                         ack: AckSender<Adapter>| {
        let reply = match call {
            Ok(call) => place.carry_out(&socket, &io, &call).await,
            Err(error) => Err(failed(error)),
        };
        let reply = reply.unwrap_or_else(|error| Reply { error, ..Reply::default() });
        // A client that had itself disconnected needs no answer.
        let _ = ack.send(&reply);
    };
    socket.on("op", op);
}

fn select(socket: &Socket, io: &SocketIo<Adapter>, call: &Call) -> BroadcastOperators<Adapter> {
    let has = |flag: &str| call.flags.iter().any(|name| name == flag);
    let mut all = if has("broadcast") { socket.broadcast() } else { io.of(NS).unwrap() };
    if has("local") {
        all = all.local();
    }
    if has("volatile") {
        all = all.volatile();
    }
    if !call.to.is_empty() {
        all = all.to(call.to.clone());
    }
    if !call.except.is_empty() {
        all = all.except(call.except.clone());
    }
    all
}

async fn remote(io: &SocketIo<Adapter>, sid: &str) -> Result<RemoteSocket<Adapter>, String> {
    let sockets = io.of(NS).unwrap().fetch_sockets().await.map_err(failed)?;
    let found = sockets.into_iter().find(|socket| socket.data().id.as_str() == sid);
    found.ok_or_else(|| format!("no socket {sid}"))
}

async fn for_one(socket: RemoteSocket<Adapter>, call: &Call) -> Result<Reply, String> {
    let mut reply = Reply::default();
    match call.name.as_str() {
        "emit" => socket.emit("said", &said(&call.tag, &call.data)).await.map_err(failed)?,
        "ask" => {
            let acks = socket.emit_with_ack("asked", &said(&call.tag, &call.data)).await;
            reply.acks = collect(acks.map_err(failed)?).await;
        }
        "join" => socket.join(call.rooms.clone()).await.map_err(failed)?,
        "leave" => socket.leave(call.rooms.clone()).await.map_err(failed)?,
        "rooms" => reply.value = names(socket.rooms().await.map_err(failed)?),
        "disconnect" => socket.disconnect().await.map_err(failed)?,
        name => return Err(format!("nothing is called {name}")),
    }
    Ok(reply)
}

async fn for_many(sockets: BroadcastOperators<Adapter>, call: &Call) -> Result<Reply, String> {
    let mut reply = Reply::default();
    match call.name.as_str() {
        "emit" => sockets.emit("said", &said(&call.tag, &call.data)).await.map_err(failed)?,
        "ask" => {
            let timeout = if call.timeout_ms == 0 { LONG } else { Duration::from_millis(call.timeout_ms) };
            let ask = sockets.timeout(timeout).emit_with_ack("asked", &said(&call.tag, &call.data)).await;
            reply.acks = collect(ask.map_err(failed)?).await;
        }
        "fetch" => {
            let (sockets, answers) = with_answers(sockets.fetch_sockets()).await;
            let sockets = sockets.map_err(failed)?;
            let known = |socket: &RemoteSocket<Adapter>| {
                let data = socket.data();
                [data.id.as_str(), data.server_id.as_str(), data.ns.as_ref()].map(str::to_owned)
            };
            let known: Vec<[String; 3]> = sockets.iter().map(known).collect();
            reply.value = json!({ "sockets": known, "complete": answers.is_complete() });
        }
        "join" => sockets.join(call.rooms.clone()).await.map_err(failed)?,
        "leave" => sockets.leave(call.rooms.clone()).await.map_err(failed)?,
        "rooms" => reply.value = names(sockets.rooms().await.map_err(failed)?),
        "disconnect" => sockets.disconnect().await.map_err(failed)?,
        name => return Err(format!("nothing is called {name}")),
    }
    Ok(reply)
}

async fn collect(acks: AckStream<Answer, Adapter>) -> Vec<Ack> {
    let (mut acks, mut got) = (pin!(acks), Vec::new());
    while let Some((sid, ack)) = poll_fn(|cx| acks.as_mut().poll_next(cx)).await {
        let (error, answer) = match ack {
            Ok(answer) => (String::new(), answer),
            Err(socketioxide::AckError::Timeout) => ("timeout".to_owned(), Answer::default()),
            Err(error) => (error.to_string(), Answer::default()),
        };
        got.push(Ack { sid: sid.to_string(), error, answer });
    }
    got
}

/// The three arguments of an event for clients.
fn said<'a>(tag: &'a str, data: &Bytes) -> (&'a str, Bytes, Nested) {
    (tag, data.clone(), Nested { again: data.clone() })
}

fn names(rooms: impl IntoIterator<Item: Into<String>>) -> Value {
    rooms.into_iter().map(Into::into).collect::<Vec<String>>().into()
}

fn failed(error: impl Display) -> String {
    error.to_string()
}
