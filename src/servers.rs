//! Server-side emit: events for the other servers of the cluster, not for clients.
//!
//! An event has a name and data, and may be acknowledged. Data and acknowledgement are JSON on the wire, so that servers
//! of two versions understand each other as far as their types do: a field that is new is optional (`#[serde(default)]`),
//! a field that is unknown is ignored.
//!
//! An event of a [`Node`](crate::Node) goes to the other nodes with a handler on their node, one of a
//! [`Namespace`](crate::Namespace) to those with a handler in that namespace. A node never gets its own. Nodes learn of
//! each other's handlers as they learn of rooms: a moment (5 ms and half a round trip) after they were registered.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::smallvec;
use tokio::runtime::Handle as Runtime;

use crate::core::frame::{Op, PayloadKind, RequestHead};
use crate::error::{AskError, IdError};
use crate::hub::handlers::{Handled, Handler, Handlers, Handling, Registration};
use crate::hub::requests::{Ask, Missing, MissingReason, Targets, everyone};
use crate::hub::{Hub, Receipt};
use crate::ids::{Namespace, NodeId, RoomKey};
use crate::plain::EmitError;

/// What the head of a frame has beside its names, at most, in bytes.
const HEAD_BYTES: usize = 64;

/// An event of another server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerEvent<T> {
    /// The node that emitted it.
    pub from: NodeId,
    /// Its data.
    pub data: T,
}

/// Why a node that has a handler did not acknowledge with a value of the right type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServerEventError {
    /// The data does not fit the type that the handler takes. The handler was not run.
    #[error("read the data of the event there: {0}")]
    Data(String),
    /// The handler panicked, or its answer could not be encoded or was over the limit of a frame; the log of that node
    /// says which. It may have done what was asked.
    #[error("handle the event there: the log of that node says why")]
    Failed,
    /// The answer does not fit the type that was asked for. The handler was run.
    #[error("read the answer to the event: {0}")]
    Answer(String),
}

/// What the other servers said to an event. A node with a handler is in `answers` or in `missing`, and in one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerAcks<R> {
    /// The acknowledgements, as they came: one of each node.
    pub answers: Vec<(NodeId, Result<R, ServerEventError>)>,
    /// The nodes that owe an acknowledgement, and why they gave none.
    pub missing: Vec<Missing>,
    /// The nodes that were asked and have no handler for events of this name: they say so at once. Nodes of which it is
    /// known that they have no handler at all are not asked, unless they are [named](Servers::only).
    pub unhandled: Vec<NodeId>,
}

/// The other servers, or [some of them](Self::only): whom an event is for.
#[must_use = "nothing is sent before `emit` or `emit_with_ack`"]
#[derive(Clone)]
pub struct Servers<'a> {
    hub: &'a Arc<Hub>,
    ns: &'a Namespace,
    room: [RoomKey; 1],
    only: Option<Result<Vec<NodeId>, IdError>>,
}

impl<'a> Servers<'a> {
    pub(crate) fn new(hub: &'a Arc<Hub>, ns: &'a Namespace) -> Self {
        Self { hub, ns, room: [Handlers::room(ns)], only: None }
    }

    /// Only the nodes of these names; this node is not among them even if it is named. May be called again for more. A
    /// name that is no member of the cluster is missing ([`MissingReason::Left`]), or dropped
    /// ([`PeerGone`](crate::error::DropReason::PeerGone)) where there is no acknowledgement.
    pub fn only(mut self, names: impl IntoIterator<Item: AsRef<str>>) -> Self {
        let mut all = self.only.take().unwrap_or_else(|| Ok(Vec::new()));
        for name in names {
            all = all.and_then(|mut all| {
                let name = NodeId::new(name)?;
                if !all.contains(&name) {
                    all.push(name);
                }
                Ok(all)
            });
        }
        self.only = Some(all);
        self
    }

    /// Emits an event that nobody acknowledges. Never waits: what a queue had no room for is in the receipt.
    ///
    /// Events of one node reach another in the order in which they were emitted, each once, in one order with everything
    /// else that it sends.
    ///
    /// # Errors
    /// [`EmitError`]: nobody gets it.
    pub fn emit<T: Serialize + ?Sized>(self, name: &str, data: &T) -> Result<Receipt, EmitError> {
        let payload = self.payload(name, data)?;
        Ok(self.hub.order(self.targets()?, &self.head(name), &payload, false))
    }

    /// Emits an event and waits for the acknowledgements, but for nobody who cannot answer any more, and at most for
    /// `timeout` (and half a second for what nodes say at its end). What came until then is returned, with the names of
    /// the nodes that are missing.
    ///
    /// Dropping the future gives up: nothing is kept for it here or elsewhere. Handlers that have begun run to their end.
    ///
    /// # Errors
    /// [`AskError`]: nobody gets the event.
    pub async fn emit_with_ack<R: DeserializeOwned>(
        self,
        name: &str,
        data: &(impl Serialize + ?Sized),
        timeout: Duration,
    ) -> Result<ServerAcks<R>, AskError> {
        let payload = self.payload(name, data)?;
        let (targets, head) = (self.targets()?, self.head(name));
        if Runtime::try_current().is_err() {
            return Err(AskError::NoRuntime);
        }
        let mut asked = self.hub.ask(Ask { targets, head, timeout: Some(timeout), here: false }, &payload)?;
        let mut owing = asked.nodes();
        let mut acks = ServerAcks { answers: Vec::new(), missing: Vec::new(), unhandled: Vec::new() };
        while let Some(answer) = asked.next().await {
            // A node answers once; what it says beyond that is nothing.
            let Some(place) = owing.iter().position(|node| *node == answer.node) else { continue };
            let node = owing.swap_remove(place);
            match Handled::decode(&answer.body) {
                Handled::Answer(answer) => {
                    let read = serde_json::from_slice(&answer);
                    acks.answers
                        .push((node, read.map_err(|error| ServerEventError::Answer(error.to_string()))));
                }
                Handled::Unfit(reason) => acks.answers.push((node, Err(ServerEventError::Data(reason)))),
                Handled::Failed => acks.answers.push((node, Err(ServerEventError::Failed))),
                Handled::TimedOut => acks.missing.push(Missing { node, reason: MissingReason::TimedOut }),
            }
        }
        // A node that has answered and goes before it said that this was all is not missing.
        let has_answered = |node: &NodeId| acks.answers.iter().any(|(of, _)| of == node);
        let gone = |missing: &Missing| !has_answered(&missing.node);
        let missing: Vec<Missing> = asked.missing().into_iter().filter(gone).collect();
        for missing in missing {
            if acks.missing.iter().all(|known| known.node != missing.node) {
                acks.missing.push(missing);
            }
        }
        owing.retain(|node| acks.missing.iter().all(|missing| missing.node != *node));
        acks.unhandled = owing;
        Ok(acks)
    }

    fn targets(&self) -> Result<Targets<'_>, EmitError> {
        match &self.only {
            None => Ok(Targets::Rooms(self.ns, &self.room)),
            Some(Ok(nodes)) => Ok(Targets::Nodes(nodes)),
            Some(Err(error)) => Err(error.clone().into()),
        }
    }

    fn head<'h>(&'h self, name: &'h str) -> RequestHead<'h> {
        let to = everyone(self.ns.path(), PayloadKind::Plain);
        RequestHead { id: 0, op: Op::ServerEvent, timeout_ms: 0, credit: 1, names: smallvec![name], to }
    }

    fn payload<T: Serialize + ?Sized>(&self, name: &str, data: &T) -> Result<Bytes, EmitError> {
        self.hub.check_event(name)?;
        let payload = serde_json::to_vec(data).map_err(|error| EmitError::Data(error.to_string()))?;
        let names = name.len() + self.ns.path().len() + HEAD_BYTES;
        let limit = self.hub.limits.max_frame_bytes.saturating_sub(names);
        if payload.len() > limit {
            return Err(EmitError::TooLarge { got: payload.len(), limit });
        }
        Ok(payload.into())
    }
}

impl fmt::Debug for Servers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("ns", &self.ns.path()).field("only", &self.only).finish()
    }
}

/// A handler of server events that is registered. Dropping it unregisters it: an event that is under way meanwhile may
/// still be handled just after, and what has begun runs to its end.
#[must_use = "a handler that is dropped is unregistered at once: keep it, or `detach` it"]
pub struct ServerEventHandler {
    registration: Registration,
}

impl ServerEventHandler {
    /// Leaves the handler registered until the node stops.
    ///
    /// A handler that owns a clone of its [`Node`](crate::Node) keeps it from stopping by itself: then call
    /// [`Node::stop`](crate::Node::stop).
    pub fn detach(self) {
        self.registration.detach();
    }

    /// The name of the events that it handles.
    pub fn name(&self) -> &str {
        self.registration.name()
    }
}

impl fmt::Debug for ServerEventHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerEventHandler").field(&self.name()).finish()
    }
}

/// Registers a handler of the events of a name in a namespace.
pub(crate) fn on<T, R, F, Fut>(
    hub: &Arc<Hub>,
    ns: &Namespace,
    name: &str,
    handler: F,
) -> Result<ServerEventHandler, IdError>
where
    T: DeserializeOwned + 'static,
    R: Serialize + 'static,
    F: Fn(ServerEvent<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
{
    let typed = Typed { handler, _types: PhantomData::<fn(T) -> R> };
    let handler: Arc<Handler> = Arc::new(move |from, data| typed.begin(from, data));
    Ok(ServerEventHandler { registration: hub.handle(ns, name, handler)? })
}

/// A handler with its types.
struct Typed<F, T, R> {
    handler: F,
    _types: PhantomData<fn(T) -> R>,
}

impl<F, T, R> Typed<F, T, R>
where
    T: DeserializeOwned,
    R: Serialize,
{
    fn begin<Fut>(&self, from: &NodeId, data: &Bytes) -> Handling
    where
        F: Fn(ServerEvent<T>) -> Fut,
        Fut: Future<Output = R> + Send + 'static,
    {
        match serde_json::from_slice(data) {
            Err(error) => Box::pin(std::future::ready(Handled::unfit(&error.to_string()))),
            Ok(data) => {
                let handling = (self.handler)(ServerEvent { from: from.clone(), data });
                Box::pin(async move {
                    serde_json::to_vec(&handling.await).map_or(Handled::Failed, Handled::Answer)
                })
            }
        }
    }
}
