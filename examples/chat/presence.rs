//! Who is in which room, and which rooms there are, over the whole cluster.
//!
//! Each server tells its own clients. When somebody comes or goes here, room events say so, and a server-side event tells
//! the other servers. Each server that has members of the room then counts them over the cluster and tells its own.

use std::collections::BTreeSet;
use std::future::ready;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roomcast::socketioxide::{Adapter, Socket};
use roomcast::{AskError, Events, IdError, Namespace, Node, RoomEvent, RoomEvents, ServerEvent};
use serde::{Deserialize, Serialize};
use socketioxide::SocketIo;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The namespace of the chat.
const NS: &str = "/";
/// The name of the server-side event.
const CHANGED: &str = "changed";
/// Between two rounds of telling clients: a room is told at most once a round, however many come and go.
const PAUSE: Duration = Duration::from_millis(200);
/// How long another server may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most people of a room that are listed. In a larger room they are only counted.
const MAX_LISTED_PEOPLE: u64 = 50;
/// The most rooms that are listed.
const MAX_LISTED_ROOMS: usize = 100;
/// The most rooms that are remembered as changed. Beyond it, any room may have changed.
const MAX_CHANGED: usize = 1000;

/// What one server knows. A cheap clone.
#[derive(Clone)]
pub(crate) struct Presence {
    node: Node,
    chat: Namespace,
    io: SocketIo<Adapter>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// What changed on this server: the others have to hear of it.
    here: Mutex<Changed>,
    /// What changed anywhere: to be counted and told here.
    anywhere: Mutex<Changed>,
    /// The rooms of the cluster.
    open: Mutex<BTreeSet<Arc<str>>>,
    wake: Notify,
}

/// Rooms whose people are not those that were told last.
#[derive(Default, Serialize, Deserialize)]
struct Changed {
    rooms: BTreeSet<String>,
    /// It may be any room.
    any: bool,
}

/// Who is in a room: told to its members.
#[derive(Serialize)]
struct People<'a> {
    room: &'a str,
    count: u64,
    /// Empty when they are too many.
    list: Vec<Person>,
    /// Nodes that did not answer: their people are not in here.
    missing: Vec<String>,
}

#[derive(Serialize)]
struct Person {
    id: String,
    name: String,
    node: String,
}

/// The rooms of the cluster: told to everyone.
#[derive(Default, PartialEq, Serialize)]
struct Rooms {
    rooms: Vec<Arc<str>>,
    /// How many are not listed.
    more: usize,
}

impl Presence {
    /// Knows nothing yet.
    pub(crate) fn new(node: &Node, io: &SocketIo<Adapter>) -> Result<Self, IdError> {
        let chat = node.namespace(NS)?;
        Ok(Self { node: node.clone(), chat, io: io.clone(), state: Arc::default() })
    }

    /// Watches the cluster and tells clients, in these tasks. From now on clients may come.
    pub(crate) fn start(&self, tasks: &mut JoinSet<()>) -> Result<(), IdError> {
        let state = Arc::clone(&self.state);
        let handler = move |event: ServerEvent<Changed>| {
            state.changed_elsewhere(event.data);
            ready(())
        };
        self.chat.on_server_event(CHANGED, handler)?.detach();
        tasks.spawn(Arc::clone(&self.state).watch_people(self.chat.room_events()));
        tasks.spawn(Arc::clone(&self.state).watch_nodes(self.node.events()));
        tasks.spawn(Arc::clone(&self.state).watch_rooms(self.node.clone()));
        tasks.spawn(self.clone().tell());
        Ok(())
    }

    /// Tells a new client what there is.
    pub(crate) fn greet(&self, socket: &Socket) {
        // A client that has gone again needs no list.
        let _ = socket.emit("rooms", &self.state.rooms());
    }

    /// A client has another name.
    pub(crate) fn renamed(&self, socket: &Socket) {
        self.state.changed_here(|changed| {
            socket.rooms().into_iter().for_each(|room| changed.add(room.into_owned()));
        });
    }

    /// Tells clients, and other servers, as long as there is something to tell.
    async fn tell(self) {
        let mut told = Rooms::default();
        loop {
            self.state.wake.notified().await;
            sleep(PAUSE).await;
            let here = take(&mut *lock(&self.state.here));
            if !here.is_empty() {
                // Until the other servers know that this one has members of the room, they do not ask it.
                let _ = timeout(PATIENCE, self.node.settled()).await;
                if let Err(error) = self.chat.server_side_emit(CHANGED, &here) {
                    tracing::warn!(%error, "the other servers do not hear who came and went");
                }
                lock(&self.state.anywhere).merge(here);
            }
            let changed = take(&mut *lock(&self.state.anywhere));
            if let Err(error) = self.tell_people(changed).await {
                tracing::warn!(%error, "clients do not hear who came and went");
            }
            let rooms = self.state.rooms();
            if rooms != told {
                let _ = self.io.local().emit("rooms", &rooms).await;
                told = rooms;
            }
        }
    }

    async fn tell_people(&self, changed: Changed) -> Result<(), AskError> {
        let rooms = match changed.any {
            true => self.chat.all().local().rooms().await?.value,
            false => changed.rooms.into_iter().collect(),
        };
        for room in &rooms {
            if *self.chat.to(room).local().count().await? > 0 {
                let people = self.people(room).await?;
                // A member whose connection is full or closing is told the next time, or has no need.
                let _ = self.io.to(room.clone()).local().emit("people", &people).await;
            }
        }
        Ok(())
    }

    /// Counts over the whole cluster, which costs a number for each node, and lists only who is in a small room.
    async fn people<'a>(&self, room: &'a str) -> Result<People<'a>, AskError> {
        let count = self.chat.to(room).timeout(PATIENCE).count().await?;
        let missing = count.missing.iter().map(|missing| missing.node.to_string()).collect();
        let mut list = Vec::new();
        if *count <= MAX_LISTED_PEOPLE {
            for socket in self.chat.to(room).timeout(PATIENCE).sockets().await?.value {
                let name = String::from_utf8_lossy(&socket.data).into_owned();
                list.push(Person { id: socket.id, name, node: socket.node.to_string() });
            }
        }
        Ok(People { room, count: *count, list, missing })
    }
}

impl State {
    /// Who comes to rooms of this server, and who goes.
    async fn watch_people(self: Arc<Self>, mut events: RoomEvents) {
        while let Some(event) = events.recv().await {
            match event {
                RoomEvent::RoomJoined { room, .. } | RoomEvent::RoomLeft { room, .. } => {
                    self.changed_here(|changed| changed.add(room.to_string()));
                }
                RoomEvent::Missed(_) => self.changed_here(Changed::add_any),
                _ => (),
            }
        }
    }

    /// Nodes that come and go: people come and go with them.
    async fn watch_nodes(self: Arc<Self>, mut events: Events) {
        while events.recv().await.is_some() {
            self.changed_elsewhere(Changed { any: true, ..Changed::default() });
        }
    }

    /// Rooms that open and close in the cluster.
    async fn watch_rooms(self: Arc<Self>, node: Node) {
        // It begins with the rooms that are open.
        let mut watch = node.watch_rooms();
        while let Some(event) = watch.recv().await {
            match event {
                RoomEvent::RoomOpened { ns, room } if &*ns == NS => _ = lock(&self.open).insert(room),
                RoomEvent::RoomClosed { ns, room } if &*ns == NS => _ = lock(&self.open).remove(&room),
                RoomEvent::Missed(_) => {
                    lock(&self.open).clear();
                    watch = node.watch_rooms();
                }
                _ => continue,
            }
            self.wake.notify_one();
        }
    }

    fn changed_here(&self, change: impl FnOnce(&mut Changed)) {
        change(&mut lock(&self.here));
        self.wake.notify_one();
    }

    fn changed_elsewhere(&self, changed: Changed) {
        lock(&self.anywhere).merge(changed);
        self.wake.notify_one();
    }

    fn rooms(&self) -> Rooms {
        let open = lock(&self.open);
        let rooms: Vec<Arc<str>> = open.iter().take(MAX_LISTED_ROOMS).cloned().collect();
        Rooms { more: open.len() - rooms.len(), rooms }
    }
}

impl Changed {
    fn is_empty(&self) -> bool {
        self.rooms.is_empty() && !self.any
    }

    fn add(&mut self, room: String) {
        self.rooms.insert(room);
        if self.any || self.rooms.len() > MAX_CHANGED {
            self.add_any();
        }
    }

    fn add_any(&mut self) {
        self.rooms.clear();
        self.any = true;
    }

    fn merge(&mut self, other: Self) {
        other.rooms.into_iter().for_each(|room| self.add(room));
        if other.any {
            self.add_any();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_changes_only_that_there_were_some_is_kept() {
        let mut changed = Changed::default();
        assert!(changed.is_empty());
        (0..MAX_CHANGED).for_each(|room| changed.add(room.to_string()));
        changed.add("0".to_owned());
        assert_eq!((changed.rooms.len(), changed.any), (MAX_CHANGED, false));
        changed.add("one more".to_owned());
        changed.add("and another".to_owned());
        assert_eq!((changed.rooms.len(), changed.any), (0, true));

        let mut other = Changed::default();
        other.add("lobby".to_owned());
        other.merge(changed);
        assert!(other.rooms.is_empty() && other.any && !other.is_empty());
    }

    #[test]
    fn of_too_many_rooms_some_are_listed() {
        let state = State::default();
        let rooms = (0..MAX_LISTED_ROOMS + 2).map(|room| Arc::from(format!("{room:03}")));
        lock(&state.open).extend(rooms);
        let listed = state.rooms();
        assert_eq!((listed.rooms.len(), listed.more), (MAX_LISTED_ROOMS, 2));
        assert_eq!(&*listed.rooms[0], "000");
    }
}
