//! Asking the cluster about the members that a selection means: who and where they are, and in which rooms.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::runtime::Handle;

use super::{Acks, Emit, MemberId, NamespaceHandle};
use crate::core::frame::{Op, RoomRecord, SocketRecord, decode_body};
use crate::error::AskError;
use crate::hub::requests::{Ask, Asked, LIST_CREDIT, Missing};
use crate::ids::NodeId;

/// The acknowledgements that a node may send before they are taken here.
const ACK_CREDIT: u32 = 256;

/// What was gathered from the nodes that were asked. It derefs to the value.
///
/// When [`missing`](Self::missing) is empty it is everything; else the share of the nodes named there is not in it (or
/// only a part of it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gathered<T> {
    /// What the nodes that answered said, together.
    pub value: T,
    /// The nodes whose share is missing, and why.
    pub missing: Vec<Missing>,
}

impl<T> Gathered<T> {
    /// Whether every node has answered.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

impl<T> Deref for Gathered<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// One client of the namespace, somewhere in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketInfo {
    /// Its node.
    pub node: NodeId,
    /// The Socket.IO id, or the number of a member of the plain API, unique on its node.
    pub id: String,
    /// The id of its Socket.IO server; none for a member of the plain API.
    pub server: Option<String>,
    /// Its rooms, in the order of their names.
    pub rooms: Vec<String>,
    /// What was set with [`Member::set_data`](super::Member::set_data) or its counterpart of the socketioxide front.
    pub data: Bytes,
}

impl SocketInfo {
    pub(crate) fn new(node: &NodeId, record: SocketRecord) -> Self {
        let SocketRecord { id, server, mut rooms, data } = record;
        rooms.sort_unstable();
        Self { node: node.clone(), id, server, rooms, data: data.into() }
    }

    /// The number of a member of the plain API, for [`NamespaceHandle::member`]; none for a Socket.IO socket.
    pub fn member(&self) -> Option<MemberId> {
        if self.server.is_some() { None } else { self.id.parse().ok().map(MemberId) }
    }
}

impl Emit<'_> {
    /// How long [`rooms`](Self::rooms), [`sockets`](Self::sockets) and [`count`](Self::count) wait for other nodes.
    /// Default is [`crate::config::LinkConfig::request_timeout`]. A node that has left costs no time.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends a message whose receivers acknowledge it: those on this node and elsewhere, each within `timeout`, which
    /// their own nodes apply. Never waits: the acknowledgements come out of the [`Acks`].
    ///
    /// Sockets of Socket.IO servers do not get it, as with [`emit`](Self::emit). It is never volatile.
    ///
    /// ```no_run
    /// # async fn doc(chat: roomcast::Namespace) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut acks = chat.to("lobby").emit_with_ack("ready?", std::time::Duration::from_secs(2))?;
    /// while let Some(ack) = acks.next().await {
    ///     match ack.result {
    ///         Ok(answer) => println!("{} on {}: {answer:?}", ack.member, ack.node),
    ///         Err(error) => println!("{} on {} failed to {error}", ack.member, ack.node),
    ///     }
    /// }
    /// for missing in acks.missing() {
    ///     println!("not heard of {missing}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Any [`AskError`]; then nobody got it. A node that could not be asked is missing in the [`Acks`].
    pub fn emit_with_ack(self, message: impl Into<Bytes>, timeout: Duration) -> Result<Acks, AskError> {
        self.ask(Op::Deliver, timeout, ACK_CREDIT, &message.into()).map(Acks::new)
    }

    /// The names of the rooms that the selected members are in, sorted: also rooms beside the targeted ones.
    ///
    /// ```no_run
    /// # async fn doc(chat: roomcast::Namespace) -> Result<(), roomcast::AskError> {
    /// let also_in = chat.to("lobby").rooms().await?;
    /// println!("{also_in:?}, complete: {}", also_in.is_complete());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Any [`AskError`]. Cancel safe: nothing is kept of a question that is given up.
    pub async fn rooms(self) -> Result<Gathered<Vec<String>>, AskError> {
        let mut names = BTreeSet::new();
        let missing = self.gather(Op::Rooms, |_, part: Vec<String>| names.extend(part)).await?;
        Ok(Gathered { value: names.into_iter().collect(), missing })
    }

    /// The selected members and Socket.IO sockets, with their rooms and what the user has set for them; in no order.
    ///
    /// ```no_run
    /// # async fn doc(chat: roomcast::Namespace) -> Result<(), roomcast::AskError> {
    /// for socket in chat.all().except("quiet").sockets().await?.iter() {
    ///     println!("{} on {}: {:?}", socket.id, socket.node, socket.rooms);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Any [`AskError`]. Cancel safe: nothing is kept of a question that is given up.
    pub async fn sockets(self) -> Result<Gathered<Vec<SocketInfo>>, AskError> {
        let mut value = Vec::new();
        let take = |node: &NodeId, part: Vec<SocketRecord>| {
            value.extend(part.into_iter().map(|record| SocketInfo::new(node, record)));
        };
        let missing = self.gather(Op::Sockets, take).await?;
        Ok(Gathered { value, missing })
    }

    /// How many members and Socket.IO sockets are selected. Costs one small answer a node, whatever their number.
    ///
    /// # Errors
    /// Any [`AskError`]. Cancel safe: nothing is kept of a question that is given up.
    pub async fn count(self) -> Result<Gathered<u64>, AskError> {
        let mut value = 0u64;
        let missing = self.gather(Op::Count, |_, here: u64| value = value.saturating_add(here)).await?;
        Ok(Gathered { value, missing })
    }

    /// Asks, and takes every part of the answers.
    async fn gather<T>(self, op: Op, mut take: impl FnMut(&NodeId, T)) -> Result<Vec<Missing>, AskError>
    where
        T: for<'de> Deserialize<'de>,
    {
        let timeout = self.timeout.unwrap_or(self.inner.hub().config.link.request_timeout);
        let mut asked = self.ask(op, timeout, LIST_CREDIT, &Bytes::new())?;
        while let Some(answer) = asked.next().await {
            match decode_body(&answer.body) {
                Ok(part) => take(&answer.node, part),
                Err(error) => asked.unreadable(&answer, &error),
            }
        }
        Ok(asked.missing())
    }

    fn ask(&self, op: Op, timeout: Duration, credit: u32, message: &Bytes) -> Result<Asked, AskError> {
        self.check()?;
        // The timer of the question, and the tasks that answer here.
        Handle::try_current().map_err(|_| AskError::NoRuntime)?;
        let socket = self.socket();
        let hub = self.inner.hub();
        let asked = self.with_targets(|targets, here| {
            let head = self.request_head(op, credit, &[], socket.as_deref());
            hub.ask(Ask { targets, head, timeout: Some(timeout), here }, message)
        });
        Ok(asked?)
    }
}

impl NamespaceHandle {
    /// How many members and Socket.IO sockets are in a room, in the whole cluster.
    ///
    /// # Errors
    /// Any [`AskError`]. Cancel safe.
    pub async fn room_size(&self, room: impl AsRef<str>) -> Result<Gathered<u64>, AskError> {
        self.to(room.as_ref()).count().await
    }

    /// How many members and Socket.IO sockets are in the namespace, in the whole cluster.
    ///
    /// # Errors
    /// Any [`AskError`]. Cancel safe.
    pub async fn sockets_count(&self) -> Result<Gathered<u64>, AskError> {
        self.all().count().await
    }

    /// Every room of the namespace in the cluster with its number of members, in the order of their names.
    ///
    /// ```no_run
    /// # async fn doc(chat: roomcast::Namespace) -> Result<(), roomcast::AskError> {
    /// println!("{} in the lobby, {} in all", *chat.room_size("lobby").await?, *chat.sockets_count().await?);
    /// for (room, members) in chat.rooms().await?.iter() {
    ///     println!("{room}: {members}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Any [`AskError`]. Cancel safe.
    pub async fn rooms(&self) -> Result<Gathered<Vec<(String, u64)>>, AskError> {
        let mut sizes = BTreeMap::<String, u64>::new();
        let take = |_: &NodeId, part: Vec<RoomRecord>| {
            for RoomRecord { room, members } in part {
                let size = sizes.entry(room).or_default();
                *size = size.saturating_add(members);
            }
        };
        let missing = self.all().gather(Op::RoomSizes, take).await?;
        Ok(Gathered { value: sizes.into_iter().collect(), missing })
    }
}
