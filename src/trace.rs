//! Tracing across nodes: an emit that is part of a sampled trace takes the place in it along, so that what other nodes do
//! with it is a part of the same trace. Off until a node or an emitter is given a [`Tracer`]
//! ([`NodeBuilder::tracer`](crate::NodeBuilder::tracer), [`EmitterBuilder::tracer`](crate::EmitterBuilder::tracer)).
//!
//! With the feature `opentelemetry` there is a ready one, [`OpenTelemetry`], for spans of the crate `tracing`. What goes
//! along: broadcasts (volatile ones, too), questions, orders and server events, also through an emitter's node. What does
//! not: answers and acknowledgements, which end what the asker itself measures.

#[cfg(feature = "opentelemetry")]
mod opentelemetry;

use std::any::Any;
use std::fmt;

#[cfg(feature = "opentelemetry")]
pub use self::opentelemetry::OpenTelemetry;
pub use crate::core::trace::{TraceContext, TraceError};
use crate::ids::NodeId;

/// Connects a node to whatever records traces. Called on the threads that emit and on those that read links, never under a
/// lock of roomcast. It must not block; an emit from inside it is an emit like any other.
pub trait Tracer: Send + Sync + 'static {
    /// The place in a trace of what this thread is doing; none when it is in none, or in one that is not sampled.
    /// Called for every emit that leaves this thread, so it should be quick.
    fn current(&self) -> Option<TraceContext>;

    /// Something is about to be sent to other nodes as a part of a sampled trace: `parent` is what
    /// [`current`](Self::current) gave. May begin a span of its own, which other nodes then see as the parent of theirs.
    /// Default is no span: other nodes see `parent`.
    fn emit(&self, parent: TraceContext, what: &Traced<'_>) -> EmitSpan {
        let _ = what;
        EmitSpan::new(parent)
    }

    /// Something came from another node that was sent as a part of a trace, under `parent`. Calls `deliver`, which hands
    /// it to the members here, in a span of its own. If it does not call it, that is done without.
    fn deliver(&self, parent: TraceContext, what: &Traced<'_>, deliver: &mut dyn FnMut());
}

/// What is sent or delivered.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Traced<'a> {
    /// The node (or emitter) where it happens.
    pub node: &'a NodeId,
    /// The node (or emitter) that it comes from; none for what is sent.
    pub peer: Option<&'a NodeId>,
    /// The namespace; `!node` for events of whole nodes.
    pub ns: &'a str,
    /// `broadcast`, or a question or an order: `deliver` (a broadcast with acknowledgement), `join`, `leave`,
    /// `disconnect`, `rooms`, `sockets`, `count`, `room_sizes`, `server_event`, `watch_rooms`.
    pub operation: &'static str,
}

/// The span of an emit: dropped when the emit is in the queues of the nodes that it is for.
pub struct EmitSpan {
    context: TraceContext,
    /// Ends the span when it is dropped.
    _guard: Option<Box<dyn Any>>,
}

impl EmitSpan {
    /// Other nodes see this as the parent of their spans. Not sampled: nothing is sent to them.
    pub fn new(context: TraceContext) -> Self {
        Self { context, _guard: None }
    }

    /// Keeps something until the emit is in the queues, for example what ends the span.
    pub fn keeping(self, guard: impl Any) -> Self {
        Self { _guard: Some(Box::new(guard)), ..self }
    }

    /// What other nodes see.
    pub fn context(&self) -> TraceContext {
        self.context
    }
}

impl fmt::Debug for EmitSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmitSpan").field(&self.context).finish()
    }
}
