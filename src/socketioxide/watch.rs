//! Notices rooms of an exact namespace that were joined past the book, with socketioxide's own `SocketRef::join`.
//!
//! socketioxide calls `get_local` just before every such join. That starts a check, a little later: rooms that have
//! members here and no holder make the namespace fall back to flood, because their broadcasts would be missed.
//!
//! The check also notices the end of sockets that were moved by the adapter alone, in a flood namespace, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use socketioxide_core::Sid;
use socketioxide_core::adapter::{BroadcastFlags, BroadcastOptions, Room, SocketEmitter};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::adapter::RoomcastAdapter;
use super::book::UNLISTED_GRACE;

/// How long a check waits, so that it sees what the call before it did, and serves many calls.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A check costs at most this part of one core: the next one waits this many times what it took.
const REST: u32 = 20;
/// When to look again: a socket that is still in a middleware is not listed by the server.
const LATER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), UNLISTED_GRACE];
/// Sockets that are looked at before other tasks have their turn.
const SOCKETS_PER_TURN: usize = 64;
/// How often a suspicion is looked into again because rooms changed meanwhile.
const TRIES: usize = 8;

/// Starts checks.
#[derive(Default)]
pub(super) struct Wake {
    due: AtomicBool,
    running: AtomicBool,
    notify: Notify,
}

impl Wake {
    /// Asks for a check.
    pub(super) fn touch(&self) {
        if !self.due.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Lets the task see that its adapter has gone.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Runs the checks of an adapter on the runtime of the caller, unless they run already.
    pub(super) fn start<E: SocketEmitter>(
        self: &Arc<Self>,
        adapter: impl FnOnce() -> Weak<RoomcastAdapter<E>>,
    ) {
        if self.running.load(Ordering::Acquire) {
            return;
        }
        // On a thread without a runtime: the check stays due, and the next call from a runtime starts it.
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.running.swap(true, Ordering::AcqRel) {
            runtime.spawn(run(Running(Arc::clone(self)), adapter()));
        }
    }
}

/// Runs as long as this lives: a runtime that ends drops its tasks, and checks go on elsewhere.
struct Running(Arc<Wake>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::Release);
    }
}

async fn run<E: SocketEmitter>(running: Running, adapter: Weak<RoomcastAdapter<E>>) {
    let wake = &running.0;
    if wake.due.load(Ordering::Acquire) {
        // An earlier task may have taken the notice with it.
        wake.notify.notify_one();
    }
    let mut not_before = Instant::now();
    let mut later = [].iter();
    loop {
        match later.next() {
            Some(wait) => _ = timeout(*wait, wake.notify.notified()).await,
            None => wake.notify.notified().await,
        }
        if wake.due.load(Ordering::Acquire) {
            sleep(DEBOUNCE).await;
            later = LATER.iter();
        }
        sleep_until(not_before).await;
        wake.due.store(false, Ordering::Release);
        let Some(adapter) = adapter.upgrade() else { return };
        let cost = adapter.check().await;
        not_before = Instant::now() + cost * REST;
    }
}

impl<E: SocketEmitter> RoomcastAdapter<E> {
    /// Looks for rooms with members here and no holder, and for sockets that have gone. Returns how long it kept the thread
    /// busy.
    pub(super) async fn check(&self) -> Duration {
        #[cfg(test)]
        self.state().checks.fetch_add(1, Ordering::Relaxed);
        let mut busy = Duration::ZERO;
        let mut everyone = BroadcastOptions::default();
        everyone.add_flag(BroadcastFlags::Broadcast);
        let flooded = self.book().is_flooded();
        let sids = if flooded { Vec::new() } else { self.local().sockets(everyone) };
        for sids in sids.chunks(SOCKETS_PER_TURN) {
            let start = Instant::now();
            for sid in sids {
                let rooms = self.local().socket_rooms(*sid);
                if let Some(room) = rooms.iter().find(|room| self.is_unannounced(*sid, room)) {
                    self.fall_back(room);
                    return busy;
                }
            }
            busy += start.elapsed();
            tokio::task::yield_now().await;
        }
        for owned in self.book().owned().chunks(SOCKETS_PER_TURN) {
            let start = Instant::now();
            owned.iter().for_each(|owned| self.forget_if_gone(*owned));
            busy += start.elapsed();
            tokio::task::yield_now().await;
        }
        busy
    }

    /// Whether the socket is a member of the room although nobody holds it.
    ///
    /// A proper join holds first and is a member after; a proper leave is the other way round. So membership without a
    /// holder at one moment proves the point: seen between two looks at the book with no change in between.
    fn is_unannounced(&self, sid: Sid, room: &Room) -> bool {
        for _ in 0..TRIES {
            let Some(generation) = self.book().unheld(room) else { return false };
            // The local adapter may keep ids of sockets that have gone: those get nothing anyway.
            if !self.local().socket_rooms(sid).contains(room) || !self.is_listed(sid) {
                return false;
            }
            if self.book().unheld(room) == Some(generation) {
                return true;
            }
        }
        self.book().wake.touch();
        false
    }

    /// Whether the server lists the socket: not before its middlewares are through, and not after its end.
    pub(super) fn is_listed(&self, sid: Sid) -> bool {
        !self.local().fetch_sockets(BroadcastOptions::new(sid)).is_empty()
    }

    fn fall_back(&self, room: &str) {
        if self.book().flood() {
            let ns = self.book().ns();
            tracing::warn!(
                node = %self.node(), %ns, room,
                "a room of an exact namespace was joined past roomcast::socketioxide::Socket: falling back to flood",
            );
        }
    }

    /// Sockets that were moved by the adapter itself have nothing that is dropped with them.
    fn forget_if_gone(&self, (sid, was_listed, past_grace): (Sid, bool, bool)) {
        if self.is_listed(sid) {
            return self.book().listed(sid);
        }
        let in_rooms = !self.local().socket_rooms(sid).is_empty();
        if past_grace && in_rooms {
            // It was moved in the moment of its end, and the server will not forget it.
            self.local().del_all(sid);
        }
        if past_grace || (was_listed && !in_rooms) {
            self.book().disown(sid);
        }
    }
}
