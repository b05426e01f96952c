//! The plain API: rooms for servers that do not use socketioxide, for example with a WebSocket handler of their own.
//!
//! A [`NamespaceHandle`] (`roomcast::Namespace`) stands for one namespace on this node, a [`Member`] for one client that
//! is connected to it. Messages are bytes; what they mean is the user's business. The plain API is a front like any
//! other: it serves the members here and hands the rest to the hub.
//!
//! Files: `mod.rs` the handle and what comes from other nodes, `member.rs` one member, `emit.rs` a selection and one
//! message to it, `order.rs` what else is done to the selected members, `ask.rs` what is asked about them, `acks.rs`
//! acknowledgements, `serve.rs` what others ask and order of the members here, `crowd.rs` who is in which room here.

mod acks;
mod ask;
mod crowd;
mod emit;
mod member;
mod order;
mod serve;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use crate::core::frame::{BroadcastHead, PayloadKind};
use crate::core::interest::RoomMode;
use crate::error::{AskError, IdError};
use crate::event::RoomEvents;
use crate::hub::requests::{Reply, Request};
use crate::hub::summary::Census;
use crate::hub::{Attachment, Hub, Inbound, Kept, Receipt, lock};
use crate::ids::{Namespace, NodeId};
use crate::servers::{self, ServerAcks, ServerEvent, ServerEventHandler, Servers};
use acks::WithAck;
use crowd::{Entry, Locals};

pub use acks::{AckError, AckSender, Acks, MemberAck};
pub use ask::{Gathered, SocketInfo};
pub use emit::{Emit, EmitError, Rooms};
pub use member::{Member, MemberId};
pub(crate) use serve::whom_it_means;

/// Takes the messages for one member.
///
/// Any `Fn(Bytes) + Send + Sync + 'static` is one; it acknowledges nothing
/// ([`connect_with_ack`](NamespaceHandle::connect_with_ack) takes a closure that does).
pub trait Sink: Send + Sync + 'static {
    /// Takes one message. Runs on the task that emits or that reads a link, so it must not block or wait: put the
    /// message into a queue (`try_send`) and return. It may call back into the API; no lock is held.
    ///
    /// Messages of one sender come in the order in which they were sent. One that is under way while the member
    /// leaves or is dropped may still arrive just after.
    ///
    /// A message from another node shares the buffer of the link (up to 64 KiB or the size of the message): copy it to
    /// keep it for long.
    ///
    /// # Panics
    /// A panic costs this member this message. It is caught and logged as an error; other members, the sender and the
    /// link go on. (Not with `panic = "abort"`, where it ends the process as any other.)
    fn deliver(&self, message: Bytes);

    /// Takes one message whose sender waits for an acknowledgement: [`AckSender::send`] gives it, now or later. Else as
    /// [`deliver`](Self::deliver). Default is to deliver the message and to drop `ack`, which tells the sender that there
    /// is none.
    fn deliver_with_ack(&self, message: Bytes, ack: AckSender) {
        self.deliver(message);
        drop(ack);
    }

    /// The member was disconnected by [`Emit::disconnect`], on this node or another. Not called when the [`Member`] is
    /// dropped. It gets nothing any more, but for what is just under way. Runs where [`deliver`](Self::deliver) does and
    /// must not block or wait either. Default is nothing.
    fn disconnected(&self) {}
}

impl<F: Fn(Bytes) + Send + Sync + 'static> Sink for F {
    fn deliver(&self, message: Bytes) {
        self(message);
    }
}

/// The namespaces that are open on a node, by path. Kept by the node; what is in it dies with the last handle.
pub(crate) type NamespaceRegistry = Mutex<HashMap<Arc<str>, Weak<Inner>>>;

/// One namespace on this node. A cheap clone; all handles of one path on one node are the same namespace.
///
/// It is announced to the other nodes while a handle or a [`Member`] lives. Its rooms are exact: a node without a
/// member in the targeted rooms gets nothing.
#[derive(Clone)]
pub struct NamespaceHandle {
    inner: Arc<Inner>,
}

impl NamespaceHandle {
    /// Opens a namespace, or returns the one that is open.
    ///
    /// # Errors
    /// [`IdError::Namespace`] when the path is empty or longer than [`Namespace::MAX_LEN`] bytes, [`IdError::Reserved`] when it
    /// begins with `!`,
    /// [`IdError::TooManyNamespaces`] when the node has as many as it may have.
    pub(crate) fn open(hub: &Arc<Hub>, registry: &NamespaceRegistry, path: &str) -> Result<Self, IdError> {
        let ns = Namespace::of_user(path)?;
        let mut open = lock(registry);
        if let Some(inner) = open.get(path).and_then(Weak::upgrade) {
            return Ok(Self { inner });
        }
        if !hub.has_room_for(&ns) {
            return Err(IdError::TooManyNamespaces { limit: hub.config.link.max_namespaces });
        }
        if open.len() == open.capacity() {
            // Before the table grows, forget what has gone: bounded by twice what was ever open at a time.
            open.retain(|_, inner| inner.strong_count() > 0);
        }
        let inner = Arc::new_cyclic(|inner: &Weak<Inner>| Inner {
            attachment: hub.attach(&ns, RoomMode::Exact, inner.clone()),
            locals: RwLock::default(),
            version: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
        });
        inner.attachment.placed();
        open.insert(Arc::clone(ns.shared_path()), Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// The path, for example `/chat`.
    pub fn path(&self) -> &str {
        self.inner.attachment.ns().path()
    }

    /// Connects a member: from now on `sink` gets what is for everyone, and what is for the rooms that it joins.
    /// Dropping the [`Member`] disconnects it.
    #[must_use = "a member that is dropped is disconnected at once"]
    pub fn connect(&self, sink: impl Sink) -> Member {
        Member::connect(Arc::clone(&self.inner), sink)
    }

    /// As [`connect`](Self::connect), with a closure that acknowledges messages: now, or later by keeping the
    /// [`AckSender`]. For a message whose sender waits for no acknowledgement [`AckSender::is_wanted`] is false.
    ///
    /// ```no_run
    /// # fn doc(chat: &roomcast::Namespace) {
    /// let member = chat.connect_with_ack(|message, ack| ack.send(format!("{} bytes, thank you", message.len())));
    /// # }
    /// ```
    #[must_use = "a member that is dropped is disconnected at once"]
    pub fn connect_with_ack(&self, sink: impl Fn(Bytes, AckSender) + Send + Sync + 'static) -> Member {
        Member::connect(Arc::clone(&self.inner), WithAck(sink))
    }

    /// A message for everyone in the namespace, in the whole cluster.
    pub fn all(&self) -> Emit<'_> {
        Emit::all(&self.inner, None)
    }

    /// A message for the members of some rooms, in the whole cluster. A member of several of them gets it once.
    /// No rooms (`to([])`) is nobody: a list that happens to be empty must not reach everyone.
    pub fn to<'a>(&'a self, rooms: impl Rooms<'a>) -> Emit<'a> {
        Emit::to(&self.inner, None, rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn within<'a>(&'a self, rooms: impl Rooms<'a>) -> Emit<'a> {
        self.to(rooms)
    }

    /// One member, on any node: what is sent, asked or ordered goes to that node only. A node that is no member of the
    /// cluster is in the receipt as dropped, or missing in the answers; a member that is not there is nobody.
    ///
    /// ```no_run
    /// # async fn doc(chat: roomcast::Namespace) -> Result<(), Box<dyn std::error::Error>> {
    /// for socket in chat.to("lobby").sockets().await?.iter() {
    ///     if let Some(member) = socket.member() {
    ///         chat.member(&socket.node, member).emit("only for you")?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn member(&self, node: &NodeId, member: MemberId) -> Emit<'_> {
        Emit::member(&self.inner, node.clone(), member)
    }

    /// Registers a handler of the events that other nodes emit in this namespace, by name. As
    /// [`Node::on_server_event`](crate::Node::on_server_event) in every other respect.
    ///
    /// The socketioxide front may have the same path: a handler there is for its servers, too.
    ///
    /// ```no_run
    /// # async fn example(node: roomcast::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// use roomcast::ServerEvent;
    ///
    /// let chat = node.namespace("/chat")?;
    /// chat.on_server_event("reload", async |event: ServerEvent<String>| println!("reload {}", event.data))?
    ///     .detach();
    /// chat.server_side_emit("reload", "prices")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`IdError::Event`] when the name is over [`crate::config::LinkConfig::max_room_bytes`].
    pub fn on_server_event<T, R, F, Fut>(&self, name: &str, handler: F) -> Result<ServerEventHandler, IdError>
    where
        T: DeserializeOwned + 'static,
        R: Serialize + 'static,
        F: Fn(ServerEvent<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        servers::on(self.inner.attachment.hub(), self.inner.ns(), name, handler)
    }

    /// The other nodes, to emit events to that are for servers and not for clients.
    pub fn servers(&self) -> Servers<'_> {
        Servers::new(self.inner.attachment.hub(), self.inner.ns())
    }

    /// Emits an event to all other nodes that have handlers in this namespace: as [`Servers::emit`].
    ///
    /// # Errors
    /// [`EmitError`]: nobody gets it.
    pub fn server_side_emit<T: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &T,
    ) -> Result<Receipt, EmitError> {
        self.servers().emit(name, data)
    }

    /// Emits an event to all other nodes that have handlers in this namespace, and waits for their acknowledgements: as
    /// [`Servers::emit_with_ack`].
    ///
    /// # Errors
    /// [`AskError`]: nobody gets it.
    pub async fn server_side_emit_with_ack<R: DeserializeOwned>(
        &self,
        name: &str,
        data: &(impl Serialize + ?Sized),
        timeout: Duration,
    ) -> Result<ServerAcks<R>, AskError> {
        self.servers().emit_with_ack(name, data, timeout).await
    }
}

impl NamespaceHandle {
    /// What happens to the rooms of this namespace on this node from now on, whichever front they are of:
    /// [`Node::room_events`](crate::Node::room_events) for this namespace only.
    pub fn room_events(&self) -> RoomEvents {
        self.inner.hub().room_feed.listen().only(Arc::clone(self.inner.ns().shared_path()))
    }

    /// Resolves when every other node has heard of everything that was joined on this node before the call, this namespace
    /// included: as [`Node::settled`](crate::Node::settled), which says how long that takes and when it ends. Cancel safe.
    ///
    /// ```no_run
    /// # async fn doc(chat: roomcast::Namespace) -> Result<(), Box<dyn std::error::Error>> {
    /// let members: Vec<roomcast::Member> = (0..100).map(|_| chat.connect(|_| ())).collect();
    /// for member in &members {
    ///     member.join("lobby")?;
    /// }
    /// // One wait for all of them.
    /// chat.settled().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn settled(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.inner.hub().settled()
    }
}

impl fmt::Debug for NamespaceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Namespace").field(&self.path()).finish()
    }
}

/// A namespace on this node. Held by handles and members; when the last goes, the attachment takes it back.
pub(crate) struct Inner {
    attachment: Attachment,
    /// Who is here. Changes of interest are announced while it is locked for writing, so that the counts of two
    /// threads cannot overtake each other. No sink runs while it is locked.
    locals: RwLock<Locals>,
    /// Counts changes of `locals`, each before it can be seen.
    version: AtomicU64,
    next_id: AtomicU64,
}

impl Inner {
    #[inline]
    fn hub(&self) -> &Arc<Hub> {
        self.attachment.hub()
    }

    #[inline]
    fn ns(&self) -> &Namespace {
        self.attachment.ns()
    }

    fn next_id(&self) -> MemberId {
        MemberId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    fn read(&self) -> RwLockReadGuard<'_, Locals> {
        self.locals.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Locals> {
        let locals = self.locals.write().unwrap_or_else(PoisonError::into_inner);
        self.version.fetch_add(1, Ordering::Release);
        locals
    }

    /// Delivers to the members here: of `rooms`, or all when there is none; not to those of `except`, nor to `sender`.
    fn deliver_here(&self, rooms: &[&str], except: &[&str], sender: Option<MemberId>, message: &Bytes) {
        self.each_of(rooms, except, sender, |entry| self.deliver_to(entry, message.clone()));
    }

    /// Does something with each of the members here that [`Self::deliver_here`] delivers to. No lock is held.
    fn each_of(
        &self,
        rooms: &[&str],
        except: &[&str],
        sender: Option<MemberId>,
        mut action: impl FnMut(&Entry),
    ) {
        let Some(crowd) = self.one_crowd(rooms, except) else {
            return self.each_of_some(rooms, except, sender, action);
        };
        let crowd = crowd.iter().flat_map(|crowd| crowd.iter());
        crowd.filter(|entry| Some(entry.id) != sender).for_each(&mut action);
    }

    /// The members of the only room, or all of them, where that is all there is to it; none inside when it is nobody.
    fn one_crowd(&self, rooms: &[&str], except: &[&str]) -> Option<Option<Arc<Vec<Entry>>>> {
        match (rooms, except) {
            ([], []) => Some(Some(self.read().everyone())),
            ([room], []) => Some(self.read().room(room)),
            _ => None,
        }
    }

    /// As [`Self::each_of`], where members may be in several of the rooms.
    fn each_of_some(
        &self,
        rooms: &[&str],
        except: &[&str],
        sender: Option<MemberId>,
        action: impl FnMut(&Entry),
    ) {
        let mut crowds: SmallVec<[Arc<Vec<Entry>>; 4]> = SmallVec::new();
        let mut left_out: SmallVec<[Arc<Vec<Entry>>; 4]> = SmallVec::new();
        {
            let locals = self.read();
            if rooms.is_empty() {
                crowds.push(locals.everyone());
            }
            crowds.extend(rooms.iter().filter_map(|room| locals.room(room)));
            left_out.extend(except.iter().filter_map(|room| locals.room(room)));
        }
        let mut out: SmallVec<[MemberId; 16]> =
            left_out.iter().flat_map(|c| c.iter().map(|e| e.id)).collect();
        out.extend(sender);
        out.sort_unstable();
        let mut entries: SmallVec<[&Entry; 16]> = crowds.iter().flat_map(|crowd| crowd.iter()).collect();
        entries.retain(|entry| out.binary_search(&entry.id).is_err());
        entries.sort_unstable_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        entries.into_iter().for_each(action);
    }
}

impl Inbound for Inner {
    fn rooms_here(&self, each: &mut dyn FnMut(&str, usize)) {
        // Who joins or leaves has it locked for writing until that is told.
        self.read().rooms().for_each(|(room, members)| each(room, members));
    }

    fn census(&self) -> Census {
        let (clients, rooms) = self.read().census();
        Census { clients: clients as u64, rooms: rooms as u64 }
    }

    fn deliver(&self, head: &BroadcastHead<'_>, payload: &Bytes) {
        // A socketioxide front may share the path; its messages are not for members of the plain API.
        if head.kind == PayloadKind::Plain {
            self.deliver_here(&head.rooms, &head.except, None, payload);
        }
    }

    fn deliver_next(&self, head: &BroadcastHead<'_>, payload: Bytes, kept: &mut Kept) {
        if head.kind != PayloadKind::Plain {
            return;
        }
        // Before the look at who is there: what is kept is as new as its version, or newer.
        let version = self.version.load(Ordering::Acquire);
        if kept.as_ref().is_none_or(|(of, _)| *of != version) {
            *kept = match self.one_crowd(&head.rooms, &head.except) {
                None => {
                    let action = |entry: &Entry| self.deliver_to(entry, payload.clone());
                    return self.each_of_some(&head.rooms, &head.except, None, action);
                }
                Some(None) => None,
                Some(Some(crowd)) => Some((version, crowd)),
            };
        }
        let crowd = kept.as_ref().and_then(|(_, crowd)| crowd.downcast_ref::<Vec<Entry>>());
        match crowd.map(Vec::as_slice) {
            Some([entry]) => self.deliver_to(entry, payload),
            Some(crowd) => crowd.iter().for_each(|entry| self.deliver_to(entry, payload.clone())),
            None => {}
        }
    }

    fn request(&self, request: &Request<'_, '_>, reply: &Reply) {
        self.serve(request, reply);
    }
}

#[cfg(test)]
mod tests;
