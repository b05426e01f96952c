//! The names of things: newtypes used by every part, with their limits.

use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The name of a node, unique in its cluster and stable over restarts (for example the pod name).
///
/// 1 to [`NodeId::MAX_LEN`] bytes of ASCII letters, digits, `-`, `_` and `.`. Short names keep gossip small.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The longest name, in bytes: a Kubernetes pod name is at most 63.
    pub const MAX_LEN: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    /// [`IdError::Node`] when the name is empty, too long or has another character.
    pub fn new(name: impl AsRef<str>) -> Result<Self, IdError> {
        let name = name.as_ref();
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > Self::MAX_LEN || !name.bytes().all(known) {
            return Err(IdError::Node(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for NodeId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run of a node. A restart under the same name has a higher incarnation, and the higher one wins.
///
/// It is the start time in microseconds since the Unix epoch, so no state has to be kept on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Socket.IO namespace: its path and a hash of it that is the same on every machine.
#[derive(Clone)]
pub struct Namespace {
    path: Arc<str>,
    key: u64,
}

impl Namespace {
    /// The longest path, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Checks a path.
    ///
    /// # Errors
    /// [`IdError::Namespace`] when the path is empty or longer than [`Namespace::MAX_LEN`] bytes.
    pub fn new(path: impl AsRef<str>) -> Result<Self, IdError> {
        let path = path.as_ref();
        if path.is_empty() || path.len() > Self::MAX_LEN {
            return Err(IdError::Namespace(path.chars().take(80).collect()));
        }
        Ok(Self { path: path.into(), key: xxh3_64(path.as_bytes()) })
    }

    /// Checks a path that a user gave: those that begin with `!` are for what nodes say to each other.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`IdError::Reserved`].
    pub(crate) fn of_user(path: &str) -> Result<Self, IdError> {
        if path.starts_with('!') {
            return Err(IdError::Reserved(path.chars().take(80).collect()));
        }
        Self::new(path)
    }

    /// The path, for example `/chat`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path, shared.
    pub(crate) fn shared_path(&self) -> &Arc<str> {
        &self.path
    }

    /// The key of a room of this namespace.
    pub fn room(&self, room: &str) -> RoomKey {
        RoomKey(xxh3_64_with_seed(room.as_bytes(), self.key))
    }

    /// The key that stands for "anyone in this namespace": what a broadcast without rooms looks up.
    pub fn everyone(&self) -> RoomKey {
        RoomKey(self.key)
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Namespace {}

impl std::hash::Hash for Namespace {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}

impl std::borrow::Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// A room on the wire and in the route table: XXH3-64 of the room name, seeded with XXH3-64 of the namespace path.
///
/// Stable over machines and versions. A collision costs an unneeded frame: delivery goes by the full name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomKey(pub u64);

/// The number of a frame from one node to one peer, from 1; 0 is "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a node name. Nothing was started or changed.
    #[error("use {0:?} as a node id: give 1 to 63 letters, digits, '-', '_' or '.'")]
    Node(String),
    /// Not a namespace path. Nothing was started or changed.
    #[error("use {0:?} as a namespace: give a path of 1 to 255 bytes, for example \"/chat\"")]
    Namespace(String),
    /// A namespace that roomcast uses itself. Nothing was started or changed.
    #[error("use {0:?} as a namespace: names that begin with '!' are for what nodes say to each other")]
    Reserved(String),
    /// A room name over the limit. The join or emit had no effect.
    #[error("use a room name of {len} bytes: the limit is {limit}")]
    Room {
        /// The length given, in bytes.
        len: usize,
        /// [`crate::config::LinkConfig::max_room_bytes`].
        limit: usize,
    },
    /// The name of a server event over the limit. Nothing was registered or emitted.
    #[error("use an event name of {len} bytes: the limit is {limit}")]
    Event {
        /// The length given, in bytes.
        len: usize,
        /// [`crate::config::LinkConfig::max_room_bytes`].
        limit: usize,
    },
    /// As many namespaces as the node may have. This one was not opened; others are not affected.
    #[error("open one more namespace: the limit is {limit}")]
    TooManyNamespaces {
        /// [`crate::config::LinkConfig::max_namespaces`].
        limit: usize,
    },
}

/// The place of a peer in this node's tables. Local to the node, reused when a peer has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSlot(pub u16);

impl PeerSlot {
    /// Stands for this node itself where nodes are told apart by slot. No peer has it.
    pub const SELF: Self = Self(u16::MAX);
    /// Stands for every emitter: they owe no answers. No peer has it.
    pub const GUEST: Self = Self(u16::MAX - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_keys_are_the_same_on_every_machine() {
        let chat = Namespace::new("/chat").unwrap();
        assert_eq!(chat.everyone(), RoomKey(xxh3_64(b"/chat")));
        assert_ne!(chat.room("lobby"), Namespace::new("/").unwrap().room("lobby"));
        assert_ne!(chat.room(""), chat.everyone());
    }

    #[test]
    fn names_have_limits() {
        assert!(NodeId::new("chat-0.b_c").is_ok());
        assert!(NodeId::new("").is_err());
        assert!(NodeId::new("a b").is_err());
        assert!(NodeId::new("x".repeat(64)).is_err());
        assert!(Namespace::new("").is_err());
        assert!(matches!(Namespace::of_user("!summary"), Err(IdError::Reserved(_))));
        assert_eq!(Namespace::of_user("/!"), Namespace::new("/!"));
        assert!(matches!(Namespace::of_user(""), Err(IdError::Namespace(_))));
        assert!(Namespace::new("x".repeat(256)).is_err());
    }
}
