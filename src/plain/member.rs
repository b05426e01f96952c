//! One member: a client that is connected to a namespace on this node.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::crowd::{Entry, Joined};
use super::{Emit, Inner, NamespaceHandle, Rooms, Sink};
use crate::error::{DataError, IdError};
use crate::hub::lock;

/// The number of a member, unique in its namespace on this node while the namespace is open. Not unique in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub(super) u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One client that is connected to a namespace on this node. Dropping it leaves its rooms and disconnects it.
///
/// It can be disconnected from elsewhere ([`Emit::disconnect`]), too: then it is in no room and gets nothing any more,
/// its sink is told ([`Sink::disconnected`]), and what is left is a handle without effect.
///
/// A sink that owns its own member keeps it connected for ever: give it a `Weak` where it needs one.
pub struct Member {
    inner: Arc<Inner>,
    entry: Entry,
}

/// A member as this node finds it, by its handle or in a crowd.
pub(super) struct Here<'a> {
    pub(super) inner: &'a Inner,
    pub(super) entry: &'a Entry,
}

impl Member {
    pub(super) fn connect(inner: Arc<Inner>, sink: impl Sink) -> Self {
        let entry = Entry::new(inner.next_id(), sink);
        {
            let mut locals = inner.write();
            if locals.connect(entry.clone()) {
                inner.attachment.adjust(inner.ns().everyone(), 1);
            }
        }
        Self { inner, entry }
    }

    /// Its number.
    pub fn id(&self) -> MemberId {
        self.entry.id
    }

    /// The namespace that it is connected to.
    pub fn namespace(&self) -> NamespaceHandle {
        NamespaceHandle { inner: Arc::clone(&self.inner) }
    }

    /// Whether it is connected. Nobody connects it again once it is not: connect another one.
    pub fn is_connected(&self) -> bool {
        !lock(&self.entry.shared.joined).gone
    }

    /// Joins a room. It counts at once for messages from this node, and for those from other nodes as soon as they have
    /// heard of it. Joining twice is joining once. Nothing happens when it is not connected any more.
    ///
    /// # Errors
    /// [`IdError::Room`] when the name is over [`crate::config::LinkConfig::max_room_bytes`].
    pub fn join(&self, room: impl AsRef<str>) -> Result<(), IdError> {
        self.here().join(room.as_ref())
    }

    /// Resolves when every other node has heard of the rooms that this member joined before the call (and of all else
    /// that was joined on this node): a message for them that is emitted anywhere from then on reaches it. As
    /// [`Node::settled`](crate::Node::settled), which says how long that takes and when it ends. Cancel safe.
    ///
    /// ```no_run
    /// # async fn doc(member: roomcast::Member) -> Result<(), Box<dyn std::error::Error>> {
    /// member.join("lobby")?;
    /// member.settled().await;
    /// // Now tell the client that it is in the room.
    /// # Ok(())
    /// # }
    /// ```
    pub fn settled(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.inner.hub().settled()
    }

    /// Leaves a room. Nothing happens when it is not in it.
    pub fn leave(&self, room: impl AsRef<str>) {
        self.here().leave(room.as_ref());
    }

    /// Leaves every room. It stays connected and gets what is for everyone.
    pub fn leave_all(&self) {
        let mut joined = lock(&self.entry.shared.joined);
        self.here().leave_all(&mut joined);
    }

    /// The rooms that it is in, in no order.
    pub fn rooms(&self) -> Vec<Arc<str>> {
        lock(&self.entry.shared.joined).rooms.iter().cloned().collect()
    }

    /// Sets a small value that [`Emit::sockets`] returns with this member, on any node: a user id, a name. It replaces
    /// what was set before, is copied, and is kept as long as this handle.
    ///
    /// ```no_run
    /// # fn doc(member: &roomcast::Member) -> Result<(), roomcast::DataError> {
    /// member.set_data("user-17")?;
    /// assert_eq!(member.data(), "user-17");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`DataError`] when it is longer than [`crate::config::LinkConfig::max_data_bytes`]; the old value stays.
    pub fn set_data(&self, data: impl Into<Bytes>) -> Result<(), DataError> {
        let (data, limit) = (data.into(), self.inner.hub().config.link.max_data_bytes);
        if data.len() > limit {
            return Err(DataError { got: data.len(), limit });
        }
        // A part of a larger buffer would keep all of it.
        *lock(&self.entry.shared.data) = Bytes::copy_from_slice(&data);
        Ok(())
    }

    /// What was set last; empty before.
    pub fn data(&self) -> Bytes {
        lock(&self.entry.shared.data).clone()
    }

    /// A message from this member for the other members of some rooms: as [`NamespaceHandle::to`], without itself. What
    /// is asked or ordered is without itself, too.
    pub fn to<'a>(&'a self, rooms: impl Rooms<'a>) -> Emit<'a> {
        Emit::to(&self.inner, Some(self.entry.id), rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn within<'a>(&'a self, rooms: impl Rooms<'a>) -> Emit<'a> {
        self.to(rooms)
    }

    /// A message from this member for everyone else: as [`NamespaceHandle::all`], without itself.
    pub fn all(&self) -> Emit<'_> {
        Emit::all(&self.inner, Some(self.entry.id))
    }

    fn here(&self) -> Here<'_> {
        Here { inner: &self.inner, entry: &self.entry }
    }
}

impl Here<'_> {
    /// See [`Member::join`].
    pub(super) fn join(&self, room: &str) -> Result<(), IdError> {
        self.inner.hub().check_room(room)?;
        let mut joined = lock(&self.entry.shared.joined);
        if joined.gone || joined.rooms.contains(room) {
            return Ok(());
        }
        let mut locals = self.inner.write();
        let (first, name) = locals.join(room, self.entry.clone());
        if first {
            self.inner.attachment.adjust(self.inner.ns().room(room), 1);
        }
        // While it is locked, so that room events come in the order of the changes.
        self.inner.attachment.joined(&name, first, || self.name());
        drop(locals);
        joined.rooms.insert(name);
        Ok(())
    }

    /// See [`Member::leave`].
    pub(super) fn leave(&self, room: &str) {
        let mut joined = lock(&self.entry.shared.joined);
        if let Some(room) = joined.rooms.take(room) {
            self.leave_joined(&room);
        }
    }

    /// See [`Member::leave_all`].
    fn leave_all(&self, joined: &mut Joined) {
        // One room at a time, so that no emit waits for a member of many rooms.
        for room in joined.rooms.drain() {
            self.leave_joined(&room);
        }
    }

    /// Leaves every room and the namespace; returns whether it was connected. The caller keeps the entry until no lock
    /// of ours is held: a sink whose drop comes back to us finds them open.
    pub(super) fn disconnect(&self) -> bool {
        let mut joined = lock(&self.entry.shared.joined);
        if std::mem::replace(&mut joined.gone, true) {
            return false;
        }
        self.leave_all(&mut joined);
        let mut locals = self.inner.write();
        if locals.disconnect(self.entry.id) {
            self.inner.attachment.adjust(self.inner.ns().everyone(), -1);
        }
        true
    }

    /// Called while `joined` is locked, so that a join of the same room on another thread comes before or after.
    fn leave_joined(&self, room: &Arc<str>) {
        let mut locals = self.inner.write();
        let last = locals.leave(room, self.entry.id);
        if last {
            self.inner.attachment.adjust(self.inner.ns().room(room), -1);
        }
        self.inner.attachment.left(room, last, || self.name());
    }

    /// Its number, as room events show it.
    fn name(&self) -> Arc<str> {
        self.entry.id.0.to_string().into()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.here().disconnect();
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.inner.ns();
        f.debug_struct("Member").field("ns", &ns.path()).field("id", &self.entry.id.0).finish_non_exhaustive()
    }
}
