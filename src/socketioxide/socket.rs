//! The extractor for handlers: a socket whose room methods tell the cluster.

use std::convert::Infallible;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ::socketioxide::SocketError;
use ::socketioxide::extract::SocketRef;
use ::socketioxide::handler::{FromConnectParts, FromDisconnectParts, FromMessageParts};
use ::socketioxide::socket::{DisconnectReason, Socket as RawSocket};
use bytes::Bytes;
use socketioxide_core::Value;
use socketioxide_core::adapter::{Room, RoomParam};

use super::Adapter;
use super::adapter::{Rooms, adapter_behind};
use super::book::Holder;
use super::data::SocketData;
use crate::error::DataError;

/// A socket, as handlers take it: all of [`SocketRef`], with room methods that tell the cluster which rooms are wanted
/// here.
///
/// An extractor for connect, message and disconnect handlers and for middlewares. Exact namespaces need it, and so do room
/// events ([`Node::room_events`](crate::Node::room_events)) in any namespace; otherwise it does the same as [`SocketRef`]
/// in flood namespaces. What it announced is taken back when the socket goes, also when a middleware refuses the socket: as
/// soon as no handler and no task keeps the socket.
///
/// ```no_run
/// # async fn doc(io: socketioxide::SocketIo<roomcast::socketioxide::Adapter>) {
/// io.ns("/", async |socket: roomcast::socketioxide::Socket| socket.join("lobby")).await.unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct Socket {
    socket: SocketRef<Adapter>,
    /// What tells the book of the namespace; none when the namespace has gone.
    held: Option<Held>,
}

#[derive(Clone)]
struct Held {
    holder: Arc<Holder>,
    adapter: Weak<dyn Rooms>,
    /// Whether the socket was seen connected: if it is not any more, it has gone.
    connected: Arc<AtomicBool>,
}

/// What stays in the extensions of a socket, as long as the socket lives.
#[derive(Clone)]
struct Guard(Held);

/// The value of a socket, in its extensions.
#[derive(Clone)]
struct Data(Arc<SocketData>);

impl Socket {
    fn new(socket: &Arc<RawSocket<Adapter>>) -> Self {
        let socket = SocketRef::from(Arc::clone(socket));
        let held = match socket.extensions.get::<Guard>() {
            Some(Guard(held)) => Some(held),
            None => guard(&socket),
        };
        let this = Self { socket, held };
        this.note_connected();
        this
    }

    /// Joins rooms, at once. Other nodes hear of it within the interest tick of the node (5 ms by default).
    ///
    /// Without effect on a socket that has gone. There is no limit of rooms here: where clients name the rooms, give each a
    /// limit, because every node holds them.
    pub fn join(&self, rooms: impl RoomParam) {
        let Some((held, adapter)) = self.held() else { return self.socket.join(rooms) };
        let rooms: Vec<Room> = rooms.into_room_iter().collect();
        self.note_connected();
        adapter.join(&held.holder, rooms.clone());
        // The server forgets the rooms of a socket once, when it goes: a later join would stay for ever.
        if held.connected.load(Ordering::Acquire) && !self.socket.connected() {
            adapter.leave(&held.holder, rooms);
        }
    }

    /// Leaves rooms, at once.
    pub fn leave(&self, rooms: impl RoomParam) {
        match self.held() {
            Some((held, adapter)) => adapter.leave(&held.holder, rooms.into_room_iter().collect()),
            None => self.socket.leave(rooms),
        }
    }

    /// Leaves every room, at once.
    pub fn leave_all(&self) {
        match self.held() {
            Some((held, adapter)) => adapter.leave_all(&held.holder),
            None => self.socket.leave_all(),
        }
    }

    /// Resolves when every other node has heard of the rooms that this socket joined before the call (and of all else
    /// that was joined on this node): a message for them that is emitted anywhere from then on reaches it.
    ///
    /// As [`Node::settled`](crate::Node::settled), which says how long that takes and when it ends. In a flood namespace
    /// the other nodes need to hear of the namespace only. In an exact one, a room that was joined with the methods of
    /// [`SocketRef`] is not covered. Cancel safe.
    ///
    /// ```no_run
    /// # async fn doc(io: socketioxide::SocketIo<roomcast::socketioxide::Adapter>) {
    /// io.ns("/", async |socket: roomcast::socketioxide::Socket| {
    ///     socket.join("lobby");
    ///     socket.settled().await;
    ///     // From now on it misses nothing, whichever node a message comes from.
    ///     socket.emit("joined", "lobby").ok();
    /// })
    /// .await
    /// .unwrap();
    /// # }
    /// ```
    pub fn settled(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let adapter = match &self.held {
            Some(held) => held.adapter.upgrade(),
            None => adapter_behind(|| _ = self.socket.rooms()),
        };
        let settled = adapter.map(|adapter| adapter.settled());
        async move {
            // Without its namespace the socket gets nothing any more.
            if let Some(settled) = settled {
                settled.await;
            }
        }
    }

    /// The rooms of the socket.
    pub fn rooms(&self) -> Vec<Room> {
        match self.held() {
            Some((_, adapter)) => adapter.rooms_of(self.socket.id),
            None => self.socket.rooms(),
        }
    }

    /// Sets a small value for the socket, which `sockets()` of the plain API returns in the whole cluster, beside rooms and
    /// node. It is kept as long as the socket, and replaces the one before. Empty is as good as none.
    ///
    /// ```no_run
    /// # async fn doc(io: socketioxide::SocketIo<roomcast::socketioxide::Adapter>) {
    /// io.ns("/", async |socket: roomcast::socketioxide::Socket| {
    ///     socket.set_data("user-42").expect("it is short");
    ///     assert_eq!(socket.data(), "user-42");
    /// })
    /// .await
    /// .unwrap();
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`DataError`] when it is over [`LinkConfig::max_data_bytes`](crate::config::LinkConfig::max_data_bytes); the value
    /// before stays.
    pub fn set_data(&self, data: impl Into<Bytes>) -> Result<(), DataError> {
        let data = data.into();
        // Without its namespace, nobody can ask for the socket.
        let Some(adapter) = adapter_behind(|| _ = self.socket.rooms()) else { return Ok(()) };
        let table = adapter.data();
        table.check(data.len())?;
        let kept = || self.socket.extensions.get::<Data>().map(|Data(kept)| kept);
        let keep = |data| _ = self.socket.extensions.insert(Data(data));
        // A copy: what it may be a part of could be large.
        table.of(self.socket.id, kept, keep).set(Bytes::copy_from_slice(&data));
        Ok(())
    }

    /// What [`set_data`](Self::set_data) has set; empty when nothing.
    pub fn data(&self) -> Bytes {
        self.socket.extensions.get::<Data>().map(|Data(kept)| kept.get()).unwrap_or_default()
    }

    /// Disconnects the socket from its namespace.
    ///
    /// # Errors
    /// [`SocketError::InternalChannelFull`] when the client could not be told; the socket stays.
    pub fn disconnect(self) -> Result<(), SocketError> {
        self.socket.disconnect()
    }

    /// The socket without the room methods of this type.
    pub fn into_inner(self) -> SocketRef<Adapter> {
        self.socket
    }

    fn held(&self) -> Option<(&Held, Arc<dyn Rooms>)> {
        let held = self.held.as_ref()?;
        Some((held, held.adapter.upgrade()?))
    }

    fn note_connected(&self) {
        if let Some(held) = &self.held
            && self.socket.connected()
        {
            held.connected.store(true, Ordering::Release);
        }
    }
}

/// Puts the guard into the extensions of a socket that is seen for the first time.
fn guard(socket: &SocketRef<Adapter>) -> Option<Held> {
    let adapter = adapter_behind(|| _ = socket.rooms())?;
    let kept = || socket.extensions.get::<Guard>();
    let keep = |holder| {
        let guard = Guard(Held { holder, adapter: Arc::downgrade(&adapter), connected: Arc::default() });
        socket.extensions.insert(guard.clone());
        guard
    };
    Some(adapter.book().guard(socket.id, kept, keep).0)
}

impl Deref for Socket {
    type Target = SocketRef<Adapter>;

    fn deref(&self) -> &Self::Target {
        &self.socket
    }
}

impl PartialEq for Socket {
    fn eq(&self, other: &Self) -> bool {
        self.socket == other.socket
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.socket, f)
    }
}

impl FromConnectParts<Adapter> for Socket {
    type Error = Infallible;

    fn from_connect_parts(socket: &Arc<RawSocket<Adapter>>, _: &Option<Value>) -> Result<Self, Infallible> {
        Ok(Self::new(socket))
    }
}

impl FromMessageParts<Adapter> for Socket {
    type Error = Infallible;

    fn from_message_parts(
        socket: &Arc<RawSocket<Adapter>>,
        _: &mut Value,
        _: &Option<i64>,
    ) -> Result<Self, Infallible> {
        Ok(Self::new(socket))
    }
}

impl FromDisconnectParts<Adapter> for Socket {
    type Error = Infallible;

    fn from_disconnect_parts(
        socket: &Arc<RawSocket<Adapter>>,
        _: DisconnectReason,
    ) -> Result<Self, Infallible> {
        Ok(Self::new(socket))
    }
}
