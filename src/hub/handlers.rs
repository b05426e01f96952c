//! Who handles the events of other servers here: the handlers by namespace and name, and how they run.
//!
//! A namespace with handlers is attached to the hub and holds a pseudo room, so that events go only to the nodes that
//! handle some. The handlers here take and give bytes; types are the business of [`crate::servers`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hashbrown::HashMap;
use smallvec::SmallVec;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::core::frame::{BroadcastHead, EndStatus, Op};
use crate::core::interest::RoomMode;
use crate::error::IdError;
use crate::hub::requests::{Reply, Request};
use crate::hub::{Attachment, Hub, Inbound, lock};
use crate::ids::{Namespace, NodeId, RoomKey};

/// The pseudo namespace of events for whole nodes. Socket.IO paths begin with `/`, so it cannot clash.
pub(crate) const NODE: &str = "!node";
/// The pseudo room that nodes with handlers are in, in each namespace. Whoever joins a room of this name gets nothing but
/// frames that are not for it.
const ROOM: &str = "\0server-events";
/// The longest text about what was wrong with the data, in bytes: it may quote the data.
const MAX_REASON_BYTES: usize = 512;

/// What a handler made of an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    /// The acknowledgement, encoded.
    Answer(Vec<u8>),
    /// The data did not fit; the handler did not run.
    Unfit(String),
    /// The handler panicked or its answer cannot be sent; the log here says why.
    Failed,
    /// The handler still runs, and the asker does not wait any longer.
    TimedOut,
}

impl Handled {
    /// The data did not fit, and why: the beginning of it.
    pub(crate) fn unfit(reason: &str) -> Self {
        Self::Unfit(reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned())
    }

    /// The answer on the wire: one byte that says which, then the rest.
    fn encode(self) -> Bytes {
        let (tag, rest) = match &self {
            Self::Answer(answer) => (0, &answer[..]),
            Self::Unfit(reason) => (1, reason.as_bytes()),
            Self::Failed => (2, &[][..]),
            Self::TimedOut => (3, &[][..]),
        };
        let mut body = BytesMut::with_capacity(1 + rest.len());
        body.put_u8(tag);
        body.put_slice(rest);
        body.freeze()
    }

    /// What another node answers. What this version does not know is a failure.
    pub(crate) fn decode(body: &[u8]) -> Self {
        match body.split_first() {
            Some((0, answer)) => Self::Answer(answer.to_vec()),
            Some((1, reason)) => Self::unfit(&String::from_utf8_lossy(reason)),
            Some((3, _)) => Self::TimedOut,
            _ => Self::Failed,
        }
    }
}

/// A handler at work.
pub(crate) type Handling = Pin<Box<dyn Future<Output = Handled> + Send>>;
/// A handler: begins to handle an event of a node, given its data.
pub(crate) type Handler = dyn Fn(&NodeId, &Bytes) -> Handling + Send + Sync;

/// The handlers of this node.
pub(crate) struct Handlers {
    /// The namespace of events for whole nodes.
    pub(crate) node: Namespace,
    /// The namespaces with handlers. What is in it dies with the last handler.
    fronts: Mutex<HashMap<Arc<str>, Weak<Front>>>,
    /// Handlers that nobody drops; none once the node has stopped.
    detached: Mutex<Option<Vec<Registration>>>,
    /// How many more events may be handled at the same time.
    running: Arc<Semaphore>,
    next_id: AtomicU64,
}

impl Handlers {
    /// None; at most `limit` events are handled at a time.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            node: Namespace::new(NODE).expect("it is not empty and short"),
            fronts: Mutex::default(),
            detached: Mutex::new(Some(Vec::new())),
            running: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            next_id: AtomicU64::new(1),
        }
    }

    /// Lets go of the handlers that nobody drops: the node stops.
    pub(crate) fn stop(&self) {
        let detached = lock(&self.detached).take();
        // The user's closures go with it: not under the lock.
        drop(detached);
    }

    /// The pseudo room of the nodes with handlers in a namespace.
    pub(crate) fn room(ns: &Namespace) -> RoomKey {
        ns.room(ROOM)
    }
}

impl Hub {
    /// Adds a handler for the events of a name in a namespace.
    ///
    /// # Errors
    /// [`IdError::Event`] when the name is too long, [`IdError::TooManyNamespaces`] when the namespace is not here yet and
    /// there is no room for it.
    pub(crate) fn handle(
        self: &Arc<Self>,
        ns: &Namespace,
        name: &str,
        handler: Arc<Handler>,
    ) -> Result<Registration, IdError> {
        self.check_event(name)?;
        let front = self.front(ns)?;
        let id = self.handlers.next_id.fetch_add(1, Ordering::Relaxed);
        let name: Arc<str> = name.into();
        lock(&front.handlers).entry(Arc::clone(&name)).or_default().push((id, handler));
        Ok(Registration { front, name, id })
    }

    /// Checks the name of an event of servers: on the wire it stands where rooms stand.
    pub(crate) fn check_event(&self, name: &str) -> Result<(), IdError> {
        let (len, limit) = (name.len(), self.limits.max_room_bytes);
        if len > limit { Err(IdError::Event { len, limit }) } else { Ok(()) }
    }

    fn front(self: &Arc<Self>, ns: &Namespace) -> Result<Arc<Front>, IdError> {
        let mut fronts = lock(&self.handlers.fronts);
        if let Some(front) = fronts.get(ns.path()).and_then(Weak::upgrade) {
            return Ok(front);
        }
        if !self.has_room_for(ns) {
            return Err(IdError::TooManyNamespaces { limit: self.config.link.max_namespaces });
        }
        let front = Arc::new_cyclic(|front: &Weak<Front>| Front {
            attachment: self.attach(ns, RoomMode::Exact, front.clone()),
            handlers: Mutex::default(),
        });
        front.attachment.adjust(Handlers::room(ns), 1);
        fronts.insert(Arc::clone(ns.shared_path()), Arc::downgrade(&front));
        Ok(front)
    }
}

/// A handler in its place; dropping it takes it out.
pub(crate) struct Registration {
    front: Arc<Front>,
    name: Arc<str>,
    id: u64,
}

impl Registration {
    /// Leaves the handler in its place until the node stops.
    pub(crate) fn detach(self) {
        let hub = Arc::clone(self.front.attachment.hub());
        let rest = match &mut *lock(&hub.handlers.detached) {
            Some(detached) => {
                detached.push(self);
                None
            }
            None => Some(self),
        };
        drop(rest);
    }

    /// The name of the events.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut handlers = lock(&self.front.handlers);
        let Some(of_name) = handlers.get_mut(&self.name) else { return };
        let place = of_name.iter().position(|(id, _)| *id == self.id);
        let handler = place.map(|place| of_name.remove(place));
        if of_name.is_empty() {
            handlers.remove(&self.name);
        }
        drop(handlers);
        // The user's closure goes with it: not under the lock.
        drop(handler);
    }
}

/// The handlers of one name, in the order in which they came.
type OfName = SmallVec<[(u64, Arc<Handler>); 1]>;

/// A namespace with handlers.
struct Front {
    attachment: Attachment,
    handlers: Mutex<HashMap<Arc<str>, OfName>>,
}

impl Drop for Front {
    fn drop(&mut self) {
        let ns = self.attachment.ns();
        self.attachment.adjust(Handlers::room(ns), -1);
        let mut fronts = lock(&self.attachment.hub().handlers.fronts);
        // Another one may be in the place already.
        if fronts.get(ns.path()).is_some_and(|front| front.strong_count() == 0) {
            fronts.remove(ns.path());
        }
    }
}

impl Inbound for Front {
    fn deliver(&self, _: &BroadcastHead<'_>, _: &Bytes) {}

    fn request(&self, request: &Request<'_, '_>, reply: &Reply) {
        let (Op::ServerEvent, Some(name)) = (request.head.op, request.head.names.first()) else { return };
        let handlers = lock(&self.handlers).get(*name).cloned().unwrap_or_default();
        if handlers.is_empty() {
            return;
        }
        let hub = self.attachment.hub();
        let Ok(permit) = Arc::clone(&hub.handlers.running).try_acquire_owned() else {
            self.refuse(request, name);
            return reply.end_as(EndStatus::Busy);
        };
        let permit = Arc::new(permit);
        for (place, (_, handler)) in handlers.iter().enumerate() {
            let task = Task {
                node: hub.id.clone(),
                peer: request.from.clone(),
                ns: self.attachment.ns().clone(),
                name: (*name).to_owned(),
                // The first one answers.
                reply: if place == 0 { reply.clone() } else { Reply::nobody() },
                timeout: Duration::from_millis(request.head.timeout_ms.into()),
                max_answer_bytes: hub.limits.max_frame_bytes.saturating_sub(64),
                _permit: Arc::clone(&permit),
            };
            let begun = catch_unwind(AssertUnwindSafe(|| handler(request.from, request.payload)));
            // What the handler does later belongs to the trace that the event came with, too.
            start(task.run(begun.ok()).in_current_span());
        }
    }
}

impl Front {
    fn refuse(&self, request: &Request<'_, '_>, name: &str) {
        let hub = self.attachment.hub();
        let refused = hub.counters.server_events_refused.fetch_add(1, Ordering::Relaxed) + 1;
        // Whoever floods this node does not flood its log, too.
        if refused.is_power_of_two() {
            let (limit, ns) = (hub.config.link.max_server_events, self.attachment.ns());
            tracing::warn!(node = %hub.id, peer = %request.from, %ns, event = name, limit, refused,
                "refused an event of another server: too many are being handled");
        }
    }
}

/// What is needed beside a handler until it has ended.
struct Task {
    node: NodeId,
    peer: NodeId,
    ns: Namespace,
    name: String,
    reply: Reply,
    /// How long the asker waits.
    timeout: Duration,
    max_answer_bytes: usize,
    /// Shared by the handlers of one event.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Task {
    /// Runs a handler to its end, whoever still waits for it; answers when somebody does.
    async fn run(mut self, handling: Option<Handling>) {
        let mut handled = pin!(caught(handling));
        if self.reply.is_wanted() {
            let reply = std::mem::replace(&mut self.reply, Reply::nobody());
            let first = tokio::select! {
                biased;
                handled = handled.as_mut() => Some((handled, true)),
                () = tokio::time::sleep(self.timeout), if !self.timeout.is_zero() => Some((Handled::TimedOut, false)),
                () = reply.unwanted() => None,
            };
            let ended = first.as_ref().is_some_and(|(_, ended)| *ended);
            if let Some((handled, _)) = first {
                let handled = self.checked(handled, false);
                // Not wanted any more: nobody is left to tell.
                let _ = reply.answer(handled.encode()).await;
            }
            if ended {
                return;
            }
        }
        let handled = handled.await;
        self.checked(handled, true);
    }

    /// Logs what went wrong here, or what nobody else hears of.
    fn checked(&self, handled: Handled, alone: bool) -> Handled {
        let Self { node, peer, ns, name, .. } = self;
        match handled {
            Handled::Answer(answer) if answer.len() > self.max_answer_bytes => {
                let (bytes, limit) = (answer.len(), self.max_answer_bytes);
                tracing::error!(%node, %peer, %ns, event = name, bytes, limit,
                    "the answer to an event of another server is too large");
                Handled::Failed
            }
            Handled::Failed => {
                tracing::error!(%node, %peer, %ns, event = name, "a handler of server events failed");
                Handled::Failed
            }
            Handled::Unfit(reason) if alone => {
                tracing::warn!(%node, %peer, %ns, event = name, %reason,
                    "dropped an event of another server: its data does not fit the handler");
                Handled::Unfit(reason)
            }
            other => other,
        }
    }
}

/// Runs a handler; its panic is a failure. None is one that panicked when it began.
fn caught(mut handling: Option<Handling>) -> impl Future<Output = Handled> {
    std::future::poll_fn(move |cx| {
        let Some(handler) = &mut handling else { return Poll::Ready(Handled::Failed) };
        let handled = match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(handled)) => handled,
            Err(_) => Handled::Failed,
        };
        // What the handler held is the user's code, too.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(handling.take())));
        Poll::Ready(if dropped.is_ok() { handled } else { Handled::Failed })
    })
}

/// Runs a task in place up to its first wait, so that events are handled in the order in which they came; the rest of it
/// runs beside.
fn start(task: impl Future<Output = ()> + Send + 'static) {
    let mut task = Box::pin(task);
    if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
        return;
    }
    // Links run in a runtime. Where there is none the task ends here, and with it the reply.
    if let Ok(runtime) = Runtime::try_current() {
        runtime.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_wire_and_what_is_unknown_is_a_failure() {
        let read = |handled: Handled| Handled::decode(&handled.encode());
        assert_eq!(read(Handled::Answer(b"[1]".to_vec())), Handled::Answer(b"[1]".to_vec()));
        assert_eq!(read(Handled::Unfit("no".into())), Handled::Unfit("no".into()));
        assert_eq!(read(Handled::Failed), Handled::Failed);
        assert_eq!(read(Handled::TimedOut), Handled::TimedOut);
        assert_eq!(Handled::decode(b""), Handled::Failed);
        assert_eq!(Handled::decode(b"\x09later"), Handled::Failed);
        let long = "\u{e4}".repeat(1000);
        for cut in [Handled::unfit(&long), read(Handled::Unfit(long.clone()))] {
            assert_eq!(cut, Handled::Unfit("\u{e4}".repeat(MAX_REASON_BYTES / 2)));
        }
    }
}
