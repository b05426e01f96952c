//! One member: a client that is connected to a namespace on this node.

use std::fmt;
use std::sync::{Arc, Mutex};

use hashbrown::HashSet;

use super::crowd::Entry;
use super::{Emit, Inner, NamespaceHandle, Rooms, Sink};
use crate::error::IdError;
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
/// A sink that owns its own member keeps it connected for ever: give it a `Weak` where it needs one.
pub struct Member {
    inner: Arc<Inner>,
    entry: Entry,
    /// The rooms that it is in. Locked before the namespace, never after.
    rooms: Mutex<HashSet<Arc<str>>>,
}

impl Member {
    pub(super) fn connect(inner: Arc<Inner>, sink: Arc<dyn Sink>) -> Self {
        let entry = Entry { id: inner.next_id(), sink };
        {
            let mut locals = inner.write();
            if locals.connect(entry.clone()) {
                inner.attachment.adjust(inner.ns().everyone(), 1);
            }
        }
        Self { inner, entry, rooms: Mutex::default() }
    }

    /// Its number.
    pub fn id(&self) -> MemberId {
        self.entry.id
    }

    /// The namespace that it is connected to.
    pub fn namespace(&self) -> NamespaceHandle {
        NamespaceHandle { inner: Arc::clone(&self.inner) }
    }

    /// Joins a room. It counts at once for messages from this node, and for those from other nodes as soon as they have
    /// heard of it. Joining twice is joining once.
    ///
    /// # Errors
    /// [`IdError::Room`] when the name is over [`crate::config::LinkConfig::max_room_bytes`].
    pub fn join(&self, room: impl AsRef<str>) -> Result<(), IdError> {
        let room = room.as_ref();
        self.inner.hub().check_room(room)?;
        let mut rooms = lock(&self.rooms);
        if rooms.contains(room) {
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
        rooms.insert(name);
        Ok(())
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
        let room = room.as_ref();
        let mut rooms = lock(&self.rooms);
        if let Some(room) = rooms.take(room) {
            self.leave_joined(&room);
        }
    }

    /// Leaves every room. It stays connected and gets what is for everyone.
    pub fn leave_all(&self) {
        let mut rooms = lock(&self.rooms);
        // One room at a time, so that no emit waits for a member of many rooms.
        for room in rooms.drain() {
            self.leave_joined(&room);
        }
    }

    /// The rooms that it is in, in no order.
    pub fn rooms(&self) -> Vec<Arc<str>> {
        lock(&self.rooms).iter().cloned().collect()
    }

    /// A message from this member for the other members of some rooms: as [`NamespaceHandle::to`], without itself.
    pub fn to<'a>(&'a self, rooms: impl Rooms<'a>) -> Emit<'a> {
        Emit::to(&self.inner, Some(self.entry.id), rooms)
    }

    /// A message from this member for everyone else: as [`NamespaceHandle::all`], without itself.
    pub fn all(&self) -> Emit<'_> {
        Emit::all(&self.inner, Some(self.entry.id))
    }

    /// Called while `rooms` is locked, so that a join of the same room on another thread comes before or after.
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
        self.leave_all();
        // Our own reference to the sink outlives the lock: a sink whose drop comes back to us finds it open.
        let mut locals = self.inner.write();
        if locals.disconnect(self.entry.id) {
            self.inner.attachment.adjust(self.inner.ns().everyone(), -1);
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.inner.ns();
        f.debug_struct("Member").field("ns", &ns.path()).field("id", &self.entry.id.0).finish_non_exhaustive()
    }
}
