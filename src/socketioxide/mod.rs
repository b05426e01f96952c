//! The front for [socketioxide]: its rooms and broadcasts, over all nodes of the cluster.
//!
//! ```no_run
//! use roomcast::socketioxide::{RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket};
//! use socketioxide::{SocketIo, extract::Data};
//!
//! # async fn run(node: roomcast::Node) -> Result<(), Box<dyn std::error::Error>> {
//! let config = RoomcastAdapterConfig::new().with_exact_rooms(true);
//! let (layer, io) = SocketIo::builder()
//!     .with_adapter::<RoomcastAdapter<_>>(RoomcastAdapterCtr::new_with_config(&node, config))
//!     .build_layer();
//! io.ns("/", async |socket: Socket| {
//!     socket.join("lobby");
//!     socket.on("say", async |socket: Socket, Data(text): Data<String>| {
//!         // Reaches the members of the room on every node.
//!         let _ = socket.to("lobby").emit("said", &text).await;
//!     });
//! })
//! .await?;
//! # let _ = layer;
//! # Ok(())
//! # }
//! ```
//!
//! A namespace is **flood** or **exact**. A flood namespace gets every broadcast of that namespace and picks its
//! members here: always right, whatever handlers do. An exact namespace gets only broadcasts for rooms that have
//! members here; its handlers take [`Socket`] of this module and join and leave with its methods. When a room is
//! joined past it in an exact namespace, a warning is logged and the namespace falls back to flood.
//!
//! Every operation of socketioxide works over the cluster: `emit_with_ack`, `join`, `leave`, `disconnect`, `rooms` and
//! `fetch_sockets`, for all sockets, for rooms and for one remote socket. Joins, leaves and disconnections are applied in
//! order with what is emitted and wait for nobody. What needs answers ends when each node has answered, has gone or does
//! not have the namespace; [`with_answers`] names the nodes whose answers are missing.
//!
//! Limit what clients can make a server keep. Rooms that clients name are held here and on every other node: give each
//! client a limit of rooms. socketioxide keeps every namespace that a client ever reached through a dynamic one: beyond
//! [`LinkConfig::max_namespaces`](crate::config::LinkConfig::max_namespaces) further ones are refused.
//!
//! All nodes must use the same parser: what one parser has encoded, another cannot send. A broadcast that does not
//! fit the parser here is dropped, with a warning; asked for acknowledgements, the node counts as failed.

mod acks;
mod adapter;
mod answers;
mod book;
mod data;
pub(crate) mod fuzz;
mod inbound;
mod outbound;
mod receipt;
mod request;
mod serve;
mod socket;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{HashMap, HashSet};
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use socketioxide_core::adapter::Spawnable;
use socketioxide_core::adapter::errors::AdapterError;
use socketioxide_core::{Sid, Uid};

pub use self::acks::AckStream;
pub use self::adapter::RoomcastAdapter;
pub use self::answers::{Answers, with_answers};
pub use self::receipt::with_receipt;
pub use self::socket::Socket;
use crate::core::frame::{BroadcastHead, MAX_HEAD_BYTES, MAX_ROOMS};
use crate::core::interest::RoomMode;
use crate::core::requests::TooManyRequests;
pub use crate::error::DataError;
use crate::error::IdError;
use crate::hub::{Attachment, Hub, Inbound, SERVERS, lock};
use crate::ids::{Namespace, RoomKey};
use crate::node::Node;

/// The adapter type as handlers see it, for example in `SocketIo<Adapter>` or `AckSender<Adapter>`.
pub type Adapter = RoomcastAdapter<::socketioxide::adapter::Emitter>;

/// The settings of [`RoomcastAdapter`].
#[derive(Debug, Clone)]
pub struct RoomcastAdapterConfig {
    request_timeout: Duration,
    ack_response_buffer: usize,
    exact_rooms: bool,
    exact_namespaces: HashSet<String>,
}

impl RoomcastAdapterConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            request_timeout: Duration::from_secs(5),
            ack_response_buffer: 255,
            exact_rooms: false,
            exact_namespaces: HashSet::new(),
        }
    }

    /// How long to wait for the rooms and sockets of other nodes. Default is 5 seconds.
    ///
    /// Only a node that is alive and says nothing costs the timeout (and half a second for the way): one that leaves, dies or
    /// lacks the namespace is waited for no longer. Acknowledgements have a timeout of their own: that of the emit, or the
    /// `ack_timeout` of the server.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How many acknowledgements of each other node may wait in memory for one broadcast with acknowledgement.
    /// Default is 255; at least 1.
    ///
    /// A node holds further ones back until the stream is read. What it still holds when the timeout is over is missing:
    /// read the stream as it comes. Cost: so many values for each such broadcast and node.
    pub fn with_ack_response_buffer(mut self, buffer: usize) -> Self {
        self.ack_response_buffer = buffer;
        self
    }

    /// Whether every namespace is exact. Default is `false`: flood.
    ///
    /// Exact namespaces save frames; their handlers must join and leave rooms with [`Socket`] of this module.
    pub fn with_exact_rooms(mut self, exact: bool) -> Self {
        self.exact_rooms = exact;
        self
    }

    /// Makes one namespace exact, whatever [`with_exact_rooms`](Self::with_exact_rooms) says. Default is none.
    ///
    /// `path` is the path that clients connect to, for example `/chat`, not the pattern of a dynamic namespace.
    pub fn with_exact_namespace(mut self, path: impl Into<String>) -> Self {
        self.exact_namespaces.insert(path.into());
        self
    }

    fn mode(&self, path: &str) -> RoomMode {
        let exact = self.exact_rooms || self.exact_namespaces.contains(path);
        if exact { RoomMode::Exact } else { RoomMode::Flood }
    }
}

impl Default for RoomcastAdapterConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the [`RoomcastAdapter`] of each namespace. Give it to `SocketIoBuilder::with_adapter`.
///
/// A cheap clone. Give each Socket.IO server a node of its own: broadcasts go to other nodes, not to another server of
/// the same node.
#[derive(Clone)]
pub struct RoomcastAdapterCtr {
    hub: Arc<Hub>,
    config: Arc<RoomcastAdapterConfig>,
    servers: Arc<Servers>,
    refusals: Arc<Refusals>,
    /// Checks for rooms joined past the book that have begun.
    #[cfg(test)]
    checks: Arc<std::sync::atomic::AtomicUsize>,
    /// Keeps the node running as long as an adapter may need it.
    _node: Option<Node>,
}

impl RoomcastAdapterCtr {
    /// Adapters of `node` with the default settings.
    pub fn new(node: &Node) -> Self {
        Self::new_with_config(node, RoomcastAdapterConfig::default())
    }

    /// Adapters of `node` with these settings.
    pub fn new_with_config(node: &Node, config: RoomcastAdapterConfig) -> Self {
        Self { _node: Some(node.clone()), ..Self::with_hub(node.hub(), config) }
    }

    fn with_hub(hub: &Arc<Hub>, config: RoomcastAdapterConfig) -> Self {
        Self {
            hub: Arc::clone(hub),
            config: Arc::new(config),
            servers: Arc::new(Servers::new()),
            refusals: Arc::default(),
            #[cfg(test)]
            checks: Arc::default(),
            _node: None,
        }
    }
}

/// Why an operation of the adapter failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The packet is not an event, or it asks for an acknowledgement. Sockets here were served, other nodes not.
    #[error("broadcast a packet over the cluster: it is not a plain event")]
    NotAnEvent,
    /// As many questions wait for answers as may. Sockets here were served, other nodes were not asked.
    #[error(transparent)]
    TooManyRequests(#[from] TooManyRequests),
    /// The operation names too many rooms. Sockets here were served, other nodes not.
    #[error("name {got} rooms (or excepted rooms) at once: the limit is {MAX_ROOMS}")]
    TooManyRooms {
        /// The number given.
        got: usize,
    },
    /// A room name is over the limit. Sockets here were served, other nodes not.
    #[error(transparent)]
    Room(#[from] IdError),
    /// The message is over the limit of a frame, or the names of its rooms are over 64 KiB. Sockets here were served,
    /// other nodes not.
    #[error(
        "send {bytes} bytes over the cluster: the limit is {limit} bytes, and {MAX_HEAD_BYTES} for the names of rooms"
    )]
    TooLarge {
        /// The size of the payload.
        bytes: usize,
        /// [`crate::config::LinkConfig::max_frame_bytes`].
        limit: usize,
    },
}

impl From<Error> for AdapterError {
    fn from(error: Error) -> Self {
        Self(Box::new(error))
    }
}

/// Why a namespace could not join the cluster. It was not added to the server; others are not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The path is not usable in the cluster. The namespace was not added.
    #[error(transparent)]
    Path(#[from] IdError),
    /// The path does not begin with a slash. The namespace was not added.
    #[error("use {0:?} as a Socket.IO namespace: the path must begin with '/'")]
    Slash(String),
    /// This node has as many namespaces as it may have. The namespace was not added; those that are there stay.
    #[error("open one more namespace: the limit is {limit}")]
    TooMany {
        /// [`crate::config::LinkConfig::max_namespaces`].
        limit: usize,
    },
}

/// The outcome of adding a namespace: ready at once. Await it after `io.ns(..)`.
#[derive(Debug)]
pub struct InitRes {
    result: Ready<Result<(), InitError>>,
    refusals: Arc<Refusals>,
}

impl InitRes {
    fn new(result: Result<(), InitError>, refusals: &Arc<Refusals>) -> Self {
        Self { result: ready(result), refusals: Arc::clone(refusals) }
    }
}

impl Future for InitRes {
    type Output = Result<(), InitError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(cx)
    }
}

impl Spawnable for InitRes {
    fn spawn(self) {
        // Clients choose the paths of dynamic namespaces, so this is not an error of the server.
        if let Err(error) = self.result.into_inner()
            && self.refusals.is_first(&error)
        {
            tracing::warn!(%error, "refused a dynamic namespace; the next ones of this kind are not logged");
        }
    }
}

/// The kinds of refusal that were logged for dynamic namespaces: clients can cause as many as they like.
#[derive(Debug, Default)]
struct Refusals(AtomicU8);

impl Refusals {
    /// Whether this is the first of its kind.
    fn is_first(&self, error: &InitError) -> bool {
        let kind = match error {
            InitError::Path(_) => 1,
            InitError::Slash(_) => 2,
            InitError::TooMany { .. } => 4,
        };
        self.0.fetch_or(kind, Ordering::Relaxed) & kind == 0
    }
}

/// Which Socket.IO servers are here, so that a broadcast for one server goes to its node alone.
struct Servers {
    ns: Namespace,
    here: Mutex<HashMap<Sid, Weak<ServerRoom>>>,
}

impl Servers {
    fn new() -> Self {
        let ns = Namespace::new(SERVERS).expect("a short constant name");
        Self { ns, here: Mutex::default() }
    }

    /// The room of a server.
    fn room(&self, server: Uid) -> RoomKey {
        self.ns.room(server.as_str())
    }

    /// Announces the server while one of the results lives.
    fn announce(&self, hub: &Arc<Hub>, server: Uid) -> Arc<ServerRoom> {
        let mut here = lock(&self.here);
        if let Some(room) = here.get(&*server).and_then(Weak::upgrade) {
            return room;
        }
        here.retain(|_, room| room.strong_count() > 0);
        // Frames carry the namespace that they are for, so nothing is ever delivered to this one.
        let attachment = hub.attach(&self.ns, RoomMode::Exact, Weak::<Nobody>::new());
        attachment.adjust(self.room(server), 1);
        let room = Arc::new(ServerRoom { attachment, room: self.room(server) });
        here.insert(*server, Arc::downgrade(&room));
        room
    }
}

/// A server that is announced.
struct ServerRoom {
    attachment: Attachment,
    room: RoomKey,
}

impl Drop for ServerRoom {
    fn drop(&mut self) {
        self.attachment.adjust(self.room, -1);
    }
}

struct Nobody;

impl Inbound for Nobody {
    fn deliver(&self, _: &BroadcastHead<'_>, _: &bytes::Bytes) {}
}
