//! Traces on the way through this node: what is sent along with an emit, and what is delivered as a part of one.

use std::cell::Cell;

use crate::core::frame::{Op, TraceFrame, trace_frame};
use crate::hub::Hub;
use crate::ids::NodeId;
use crate::trace::{EmitSpan, TraceContext, Traced, Tracer};

/// What goes ahead of the frames of an emit, and the span of it.
pub(crate) struct Outgoing {
    pub(crate) frame: TraceFrame,
    _span: Option<EmitSpan>,
}

/// How traces name a broadcast.
pub(crate) const BROADCAST: &str = "broadcast";

/// How traces name what is asked or ordered.
pub(crate) fn name(op: Op) -> &'static str {
    match op {
        Op::Deliver => "deliver",
        Op::Join => "join",
        Op::Leave => "leave",
        Op::Disconnect => "disconnect",
        Op::Rooms => "rooms",
        Op::Sockets => "sockets",
        Op::Count => "count",
        Op::RoomSizes => "room_sizes",
        Op::ServerEvent => "server_event",
        Op::WatchRooms => "watch_rooms",
    }
}

impl Hub {
    /// Takes part in traces from now on. The first one counts.
    pub(crate) fn set_tracer(&self, tracer: Option<Box<dyn Tracer>>) {
        if let Some(tracer) = tracer {
            // Set once, by who starts the node.
            let _ = self.tracer.set(tracer);
        }
    }

    /// The trace of something that is about to be sent; none when it is in none that is sampled. `carried` is what it came
    /// with, when it only passes through this node and this node does not trace. User code is called: under no lock.
    #[inline]
    pub(crate) fn trace_out(
        &self,
        carried: Option<TraceContext>,
        ns: &str,
        operation: &'static str,
        wanted: impl FnOnce() -> bool,
    ) -> Option<Outgoing> {
        match (self.tracer.get(), carried) {
            (None, None) => None,
            (None, Some(carried)) => Some(Outgoing { frame: trace_frame(&carried), _span: None }),
            (Some(tracer), _) => self.begin(&**tracer, ns, operation, wanted),
        }
    }

    /// The span of an emit begins, if others are interested in it.
    #[cold]
    fn begin(
        &self,
        tracer: &dyn Tracer,
        ns: &str,
        operation: &'static str,
        wanted: impl FnOnce() -> bool,
    ) -> Option<Outgoing> {
        let parent = tracer.current().filter(TraceContext::is_sampled)?;
        if !wanted() {
            return None;
        }
        let span = tracer.emit(parent, &Traced { node: &self.id, peer: None, ns, operation });
        let context = Some(span.context()).filter(TraceContext::is_sampled)?;
        Some(Outgoing { frame: trace_frame(&context), _span: Some(span) })
    }

    /// What passes through this node takes its trace along, if this node has no tracer that would do so.
    pub(crate) fn carried(&self, trace: Option<TraceContext>) -> Option<TraceContext> {
        trace.filter(|_| self.tracer.get().is_none())
    }

    /// Does what came from another node as a part of the trace that it came with, if any.
    #[inline]
    pub(crate) fn traced(
        &self,
        trace: Option<TraceContext>,
        from: &NodeId,
        ns: &str,
        operation: &'static str,
        deliver: impl FnOnce(),
    ) {
        match trace.zip(self.tracer.get()) {
            None => deliver(),
            Some((trace, tracer)) => {
                let deliver = Cell::new(Some(deliver));
                let mut once = || {
                    if let Some(deliver) = deliver.take() {
                        deliver();
                    }
                };
                let what = Traced { node: &self.id, peer: Some(from), ns, operation };
                tracer.deliver(trace, &what, &mut once);
                // Who does not deliver gives up a span, not the message.
                once();
            }
        }
    }
}

#[cfg(test)]
mod tests;
