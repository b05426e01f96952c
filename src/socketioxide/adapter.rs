//! The adapter of one namespace, as socketioxide uses it.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use socketioxide_core::adapter::errors::{AdapterError, BroadcastError};
use socketioxide_core::adapter::{
    BroadcastOptions, CoreAdapter, CoreLocalAdapter, DefinedAdapter, RemoteSocketData, Room, RoomParam,
    SocketEmitter,
};
use socketioxide_core::packet::Packet;
use socketioxide_core::parser::Parse;
use socketioxide_core::{Sid, Uid, Value};

use super::acks::AckStream;
use super::book::{Book, Holder};
use super::data::DataTable;
use super::{Error, InitError, InitRes, RoomcastAdapterCtr, receipt};
use crate::core::frame::PayloadKind;
use crate::core::routes::PeerMask;
use crate::hub::waits::Waits;
use crate::hub::{Inbound, SERVERS};
use crate::ids::{Namespace, NodeId};

/// The adapter of one Socket.IO namespace on a roomcast node.
///
/// A broadcast serves the sockets here first, then goes to the nodes that need it: those with members of its rooms
/// (exact namespaces), those with the namespace (flood), or the one node of a targeted server. Joins, leaves and
/// disconnections of sockets take the same way, in order with broadcasts. None of these waits for another node.
///
/// What needs answers (acknowledgements, rooms, sockets) asks these nodes and waits until each has answered or is known not
/// to, at most for the timeout. What is missing then is no error: [`with_answers`](super::with_answers) names the nodes.
/// Limited to this server with `.local()`, everything is answered on the first poll.
pub struct RoomcastAdapter<E> {
    local: CoreLocalAdapter<E>,
    state: RoomcastAdapterCtr,
    server: Uid,
    /// What the parser of this server makes and can send.
    kind: PayloadKind,
    book: Arc<Book>,
    /// What users have set for sockets.
    data: Arc<DataTable>,
    /// Why the namespace cannot be in the cluster.
    refused: Option<InitError>,
    me: OnceLock<Weak<Self>>,
    /// Whether the warning about another parser was given.
    pub(super) warned: AtomicBool,
}

/// The adapter as the extractor sees it.
pub(super) trait Rooms: Send + Sync + 'static {
    /// Who holds what.
    fn book(&self) -> &Arc<Book>;
    /// Makes a socket a member of rooms.
    fn join(&self, holder: &Holder, rooms: Vec<Room>);
    /// Takes a socket out of rooms.
    fn leave(&self, holder: &Holder, rooms: Vec<Room>);
    /// Takes a socket out of every room.
    fn leave_all(&self, holder: &Holder);
    /// The rooms of a socket.
    fn rooms_of(&self, sid: Sid) -> Vec<Room>;
    /// Waits until the other nodes have heard of what was joined here.
    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// What users have set for sockets.
    fn data(&self) -> &Arc<DataTable>;
}

thread_local! {
    /// The question "which adapter is this?" while this thread calls a method of a socket, and the answer.
    static ASKED: RefCell<Option<Option<Weak<dyn Rooms>>>> = const { RefCell::new(None) };
}

/// Which adapter `call` reaches: the one whose `get_local` it causes on this thread.
///
/// A socket offers no way to its adapter but its room methods, all of which go through `get_local`. A map from server
/// and path would be wrong while two adapters of one path exist.
pub(super) fn adapter_behind(call: impl FnOnce()) -> Option<Arc<dyn Rooms>> {
    ASKED.set(Some(None));
    call();
    ASKED.take()?.and_then(|adapter| adapter.upgrade())
}

impl<E> RoomcastAdapter<E> {
    /// The sockets and rooms of this server. Unlike `get_local`, it starts no check.
    pub(super) fn local(&self) -> &CoreLocalAdapter<E> {
        &self.local
    }

    /// Who holds what.
    pub(super) fn book(&self) -> &Arc<Book> {
        &self.book
    }

    /// The node.
    pub(super) fn node(&self) -> &NodeId {
        &self.state.hub.id
    }

    /// The node's data path and what the adapters of this server share.
    pub(super) fn state(&self) -> &RoomcastAdapterCtr {
        &self.state
    }

    /// The server that the namespace belongs to.
    pub(super) fn server(&self) -> Uid {
        self.server
    }

    /// What the parser of this server can send.
    pub(super) fn kind(&self) -> PayloadKind {
        self.kind
    }

    /// What users have set for sockets.
    pub(super) fn data(&self) -> &Arc<DataTable> {
        &self.data
    }
}

impl<E: SocketEmitter> RoomcastAdapter<E> {
    /// Serves who can be served now; gives back what waits for room at other nodes.
    fn broadcast_now(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
    ) -> (Result<(), BroadcastError>, Option<Waits>) {
        let outgoing = self.outgoing(&packet, &opts);
        // Sockets here come first, and are served whatever becomes of the rest.
        let here = self.local.broadcast(packet, opts);
        let sent = match outgoing {
            Ok(Some(outgoing)) => self.send(outgoing),
            Ok(None) => Ok(Default::default()),
            Err(error) => Err(error),
        };
        let waits = match sent {
            Ok((receipt, waits)) => {
                receipt::collect(receipt);
                waits
            }
            Err(error) => return (Err(AdapterError::from(error).into()), None),
        };
        match here {
            Err(errors) if !errors.is_empty() => (Err(BroadcastError::Socket(errors)), waits),
            _ => (Ok(()), waits),
        }
    }

    fn init_now(self: &Arc<Self>) -> Result<(), InitError> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let _ = self.me.set(Arc::downgrade(self));
        let RoomcastAdapterCtr { hub, servers, .. } = &self.state;
        if !hub.has_room_for(self.book.ns()) {
            return Err(InitError::TooMany { limit: hub.config.link.max_namespaces });
        }
        let server = servers.announce(hub, self.server);
        let me: Weak<dyn Inbound> = self.me();
        self.book.open(hub.attach(self.book.ns(), self.book.mode(), me), server);
        Ok(())
    }

    fn me(&self) -> Weak<Self> {
        self.me.get().cloned().unwrap_or_default()
    }

    /// A method of socketioxide is about to read or change the rooms here, past the book.
    fn touched(&self) {
        let asked = ASKED.with_borrow_mut(|asked| match asked {
            Some(answer) => {
                *answer = Some(self.me());
                true
            }
            None => false,
        });
        if !asked {
            self.check_soon();
        }
    }

    fn check_soon(&self) {
        if !self.book.is_flooded() || self.book.has_owned() {
            self.book.wake.touch();
            self.book.wake.start(|| self.me());
        }
    }

    /// Makes the selected sockets here members of rooms.
    pub(super) fn add_here(&self, opts: BroadcastOptions, rooms: Vec<Room>) {
        for sid in self.local.sockets(opts) {
            let holder = self.book.holder(sid);
            self.join(&holder, rooms.clone());
            if self.is_listed(sid) {
                self.book.listed(sid);
            }
        }
    }

    /// Takes the selected sockets here out of rooms.
    pub(super) fn del_here(&self, opts: BroadcastOptions, rooms: Vec<Room>) {
        for sid in self.local.sockets(opts) {
            match self.book.find(sid) {
                Some(holder) => self.leave(&holder, rooms.clone()),
                None => self.local.del(sid, rooms.clone()),
            }
        }
    }
}

impl<E: SocketEmitter> Rooms for RoomcastAdapter<E> {
    fn book(&self) -> &Arc<Book> {
        &self.book
    }

    fn join(&self, holder: &Holder, rooms: Vec<Room>) {
        holder.join(&self.book, rooms, |rooms| self.local.add_all(holder.sid(), rooms));
    }

    fn leave(&self, holder: &Holder, rooms: Vec<Room>) {
        let emptied = holder.leave(&self.book, &rooms, || self.local.del(holder.sid(), rooms.clone()));
        if emptied && !self.book.is_flooded() {
            // Somebody who joined past the book may have been covered by this holder.
            let mut opts = BroadcastOptions::default();
            opts.rooms = rooms.into();
            if !self.local.sockets(opts).is_empty() {
                self.check_soon();
            }
        }
    }

    fn leave_all(&self, holder: &Holder) {
        if holder.leave_all(&self.book, || self.local.del_all(holder.sid())) {
            self.check_soon();
        }
    }

    fn rooms_of(&self, sid: Sid) -> Vec<Room> {
        self.local.socket_rooms(sid).into_iter().collect()
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.state.hub.settled())
    }

    fn data(&self) -> &Arc<DataTable> {
        &self.data
    }
}

impl<E> DefinedAdapter for RoomcastAdapter<E> {}

impl<E: SocketEmitter> CoreAdapter<E> for RoomcastAdapter<E> {
    type Error = Error;
    type State = RoomcastAdapterCtr;
    type AckStream = AckStream<E>;
    type InitRes = InitRes;

    fn new(state: &Self::State, local: CoreLocalAdapter<E>) -> Self {
        let (ns, refused) = match namespace(local.path()) {
            Ok(ns) => (ns, None),
            Err(error) => (nowhere(), Some(error)),
        };
        let kind = match local.parser().encode_value(&(), None) {
            Ok(Value::Bytes(_)) => PayloadKind::SocketIoBytes,
            _ => PayloadKind::SocketIoText,
        };
        Self {
            server: local.server_id(),
            book: Book::new(ns, state.config.mode(local.path())),
            data: DataTable::new(state.hub.config.link.max_data_bytes),
            local,
            state: state.clone(),
            kind,
            refused,
            me: OnceLock::new(),
            warned: AtomicBool::new(false),
        }
    }

    fn init(self: Arc<Self>, on_success: impl FnOnce() + Send + 'static) -> Self::InitRes {
        let result = self.init_now();
        if result.is_ok() {
            // Here and now: a dynamic namespace is made anew for every client until this has run.
            on_success();
        }
        InitRes::new(result, &self.state.refusals)
    }

    /// Takes the namespace out of the cluster. Done on the first poll, which is all that socketioxide gives it.
    async fn close(&self) -> Result<(), Self::Error> {
        self.book.close();
        Ok(())
    }

    /// This server and the nodes that have the namespace, or of which that is not known yet. A node with several servers
    /// counts once.
    async fn server_count(&self) -> Result<u16, Self::Error> {
        let mut peers = PeerMask::default();
        self.state.hub.routes.present(self.book.ns(), &mut peers);
        Ok(u16::try_from(peers.len() + 1).unwrap_or(u16::MAX))
    }

    /// Serves the sockets here, then hands the packet to the queues of the nodes that need it. Does so on the first poll;
    /// with [`QueuePolicy::Wait`](crate::config::QueuePolicy::Wait) it then waits for the queues that have no room, and
    /// dropping the future gives up those.
    ///
    /// # Errors
    /// [`BroadcastError::Adapter`] with an [`Error`] when other nodes could not be served, else what went wrong here.
    async fn broadcast(&self, packet: Packet, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        let (result, waits) = self.broadcast_now(packet, opts);
        if let Some(waits) = waits {
            receipt::collect(Box::pin(waits.finish()).await);
        }
        result
    }

    /// Serves the sockets here, then asks the other nodes to serve theirs and to send on what they acknowledge.
    ///
    /// Each socket has `timeout` (or the server's `ack_timeout`) to acknowledge, counted where it is connected. Other nodes
    /// are waited for half a second longer. What is not read from the stream until then is missing, if it does not fit in
    /// [`with_ack_response_buffer`](super::RoomcastAdapterConfig::with_ack_response_buffer).
    ///
    /// # Errors
    /// An [`Error`] when other nodes could not be asked. Sockets here were served.
    async fn broadcast_with_ack(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> Result<Self::AckStream, Self::Error> {
        self.acks(packet, opts, timeout)
    }

    /// Makes the selected sockets members of rooms: those here at once, those on other nodes in order with what is sent
    /// there, so that what this server emits to these rooms from then on reaches them. Waits for nobody; a full queue counts
    /// as a drop.
    ///
    /// # Errors
    /// An [`Error`] when the order can go to no other node. Sockets here are members.
    fn add_sockets(
        &self,
        opts: BroadcastOptions,
        rooms: impl RoomParam,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let rooms = rooms.into_room_iter().collect();
        async move { self.add_sockets_now(opts, rooms) }
    }

    /// Takes the selected sockets out of rooms, as [`add_sockets`](Self::add_sockets) puts them in.
    ///
    /// # Errors
    /// An [`Error`] when the order can go to no other node. Sockets here are no members.
    fn del_sockets(
        &self,
        opts: BroadcastOptions,
        rooms: impl RoomParam,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let rooms = rooms.into_room_iter().collect();
        async move { self.del_sockets_now(opts, rooms) }
    }

    /// Disconnects the selected sockets: those here at once, those on other nodes after what was sent there before.
    ///
    /// # Errors
    /// [`BroadcastError::Adapter`] with an [`Error`] when the order can go to no other node, else what went wrong here.
    async fn disconnect_socket(&self, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        self.disconnect_now(opts)
    }

    /// The rooms of the selected sockets. Waits for other nodes at most for the request timeout; what is missing is told by
    /// [`with_answers`](super::with_answers).
    ///
    /// # Errors
    /// An [`Error`] when other nodes could not be asked.
    async fn rooms(&self, opts: BroadcastOptions) -> Result<Vec<Room>, Self::Error> {
        self.all_rooms(opts).await
    }

    /// The selected sockets. Waits and misses as [`rooms`](Self::rooms) does.
    ///
    /// # Errors
    /// An [`Error`] when other nodes could not be asked.
    async fn fetch_sockets(&self, opts: BroadcastOptions) -> Result<Vec<RemoteSocketData>, Self::Error> {
        self.all_sockets(opts).await
    }

    fn get_local(&self) -> &CoreLocalAdapter<E> {
        self.touched();
        &self.local
    }
}

impl<E> Drop for RoomcastAdapter<E> {
    fn drop(&mut self) {
        self.book.close();
    }
}

fn namespace(path: &str) -> Result<Namespace, InitError> {
    if !path.starts_with('/') {
        return Err(InitError::Slash(path.chars().take(80).collect()));
    }
    Ok(Namespace::new(path)?)
}

/// A namespace for adapters that are never put to work.
fn nowhere() -> Namespace {
    Namespace::new(SERVERS).expect("a short constant name")
}
