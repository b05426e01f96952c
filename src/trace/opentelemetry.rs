//! Spans of the crate `tracing` that a layer of `tracing-opentelemetry` records.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{EmitSpan, TraceContext, Traced, Tracer};

/// Takes the current span of the crate `tracing` along, as the OpenTelemetry layer of the process knows it; where there is
/// none, the current context of OpenTelemetry itself. An emit is a span `roomcast.emit`, what becomes of it on another node
/// a span `roomcast.deliver` under it; both at level `INFO` with the target `roomcast::trace`, and with `node`, `peer`,
/// `ns` and `operation`.
///
/// ```no_run
/// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
/// use roomcast::trace::OpenTelemetry;
///
/// let node = roomcast::NodeBuilder::from_env()?.tracer(OpenTelemetry::new()).start().await?;
/// # Ok(())
/// # }
/// ```
///
/// The exporter, the sampler and the layer are the process's own (`tracing_opentelemetry::layer()`, which must be of the
/// version that roomcast uses, 0.34). Whether a trace is sampled is decided where it begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenTelemetry(());

impl OpenTelemetry {
    /// There is nothing to set.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Tracer for OpenTelemetry {
    fn current(&self) -> Option<TraceContext> {
        let span = Span::current();
        let context = if span.is_none() { None } else { sampled(&span.context()) };
        context.or_else(|| Context::map_current(sampled))
    }

    fn emit(&self, parent: TraceContext, what: &Traced<'_>) -> EmitSpan {
        let Traced { node, ns, operation, .. } = *what;
        let span = tracing::info_span!(
            target: "roomcast::trace", "roomcast.emit", %node, ns, operation, otel.kind = "producer"
        );
        // Filtered out, or left out by the sampler: the span around it stays the parent.
        let context = sampled(&span.context()).unwrap_or(parent);
        EmitSpan::new(context).keeping(span)
    }

    fn deliver(&self, parent: TraceContext, what: &Traced<'_>, deliver: &mut dyn FnMut()) {
        let Traced { node, peer, ns, operation } = *what;
        let span = tracing::info_span!(
            target: "roomcast::trace", parent: None, "roomcast.deliver", %node, peer = peer.map(tracing::field::display),
            ns, operation, otel.kind = "consumer"
        );
        let remote = SpanContext::new(
            TraceId::from_bytes(parent.trace_id()),
            SpanId::from_bytes(parent.span_id()),
            TraceFlags::new(parent.flags()),
            true,
            TraceState::default(),
        );
        // Without a layer that records it there is no trace to be a part of.
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
        span.in_scope(deliver);
    }
}

/// The place of a context in its trace, if that is sampled.
fn sampled(context: &Context) -> Option<TraceContext> {
    let span = context.span();
    let span = span.span_context();
    if !span.is_sampled() {
        return None;
    }
    TraceContext::new(span.trace_id().to_bytes(), span.span_id().to_bytes(), span.trace_flags().to_u8()).ok()
}
