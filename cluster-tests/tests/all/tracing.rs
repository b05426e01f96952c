//! Traces across nodes: real nodes, the crate `tracing` with OpenTelemetry, and an exporter in memory for each node.

use std::sync::Arc;
use std::time::Duration;

use cluster_tests::wait::soon;
use cluster_tests::{Live, Recorder, Setup, eventually, probe, stamp};
use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
use opentelemetry_sdk::trace::{
    InMemorySpanExporter, InMemorySpanExporterBuilder, Sampler, SdkTracerProvider, SpanData,
};
use roomcast::emitter::EmitterState;
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterCtr};
use roomcast::trace::{EmitSpan, OpenTelemetry, TraceContext, Traced, Tracer};
use roomcast::{Config, Emitter, Member, Namespace, ServerAcks, ServerEvent};
use socketioxide::SocketIo;
use socketioxide::extract::SocketRef;
use tracing::dispatcher::with_default;
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, Instrument, info_span};
use tracing_subscriber::layer::SubscriberExt;

/// Longer than any test may take.
const LONG: Duration = Duration::from_secs(60);

/// What a process of its own would have: a subscriber with the layer of OpenTelemetry, and where its spans end up.
#[derive(Clone)]
struct Process {
    dispatch: Dispatch,
    spans: InMemorySpanExporter,
    _provider: SdkTracerProvider,
}

impl Process {
    fn new(sampler: Sampler) -> Self {
        let spans = InMemorySpanExporterBuilder::new().build();
        let provider =
            SdkTracerProvider::builder().with_sampler(sampler).with_simple_exporter(spans.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
        Self { dispatch, spans, _provider: provider }
    }

    /// Runs something as a part of a trace that begins here.
    fn request<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        with_default(&self.dispatch, || info_span!("request", otel.name = name).in_scope(work))
    }

    /// As [`request`](Self::request), for what waits.
    async fn requested<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let span = with_default(&self.dispatch, || info_span!("request", otel.name = name));
        work.instrument(span).with_subscriber(self.dispatch.clone()).await
    }

    fn all(&self, name: &str) -> Vec<SpanData> {
        let mut spans = self.spans.get_finished_spans().unwrap();
        spans.retain(|span| span.name == name);
        spans
    }

    /// The spans of that name in a trace.
    fn of(&self, name: &str, trace: TraceId) -> Vec<SpanData> {
        let mut spans = self.all(name);
        spans.retain(|span| span.span_context.trace_id() == trace);
        spans
    }

    /// The one span of that name in a trace; waits for it.
    async fn one(&self, name: &str, trace: TraceId) -> SpanData {
        eventually(format!("a span {name}"), || !self.of(name, trace).is_empty()).await;
        let [span] = &self.of(name, trace)[..] else { panic!("{:?}", self.of(name, trace)) };
        span.clone()
    }

    /// The trace that began with the request of that name, and its first span.
    async fn trace(&self, name: &str) -> (TraceId, SpanId) {
        eventually(format!("the request {name}"), || self.all(name).len() == 1).await;
        let span = &self.all(name)[0].span_context;
        (span.trace_id(), span.span_id())
    }
}

/// All nodes of a test are one process: each has the subscriber that it would have in its own.
struct In(Process);

impl Tracer for In {
    fn current(&self) -> Option<TraceContext> {
        OpenTelemetry::new().current()
    }

    fn emit(&self, parent: TraceContext, what: &Traced<'_>) -> EmitSpan {
        OpenTelemetry::new().emit(parent, what)
    }

    fn deliver(&self, parent: TraceContext, what: &Traced<'_>, deliver: &mut dyn FnMut()) {
        with_default(&self.0.dispatch, || OpenTelemetry::new().deliver(parent, what, deliver));
    }
}

fn field(span: &SpanData, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map_or_else(String::new, |attribute| attribute.value.to_string())
}

/// Nodes that trace, linked.
async fn nodes(setup: &Setup, processes: &[Process]) -> Vec<Live> {
    let mut nodes: Vec<Live> = Vec::new();
    for (index, process) in processes.iter().enumerate() {
        let seat = setup.seat(index);
        let builder = setup.builder(&seat).seeds(nodes.iter().map(Live::addr)).tracer(In(process.clone()));
        nodes.push(setup.launch(&seat, builder).await);
    }
    cluster_tests::cluster::formed(&nodes).await;
    nodes
}

fn member(node: &Live, recorder: &Recorder) -> Member {
    let member = node.namespace("/chat").unwrap().connect(recorder.clone());
    member.join("lobby").unwrap();
    member
}

async fn known(space: &Namespace, count: usize) {
    let all = || space.to("lobby").emit(probe()).unwrap().targeted == count;
    eventually("the rooms of the others are known", all).await;
}

/// One trace on both nodes: the request, the emit under it, and the delivery on the other node under that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emit_is_one_trace_on_all_nodes() {
    let setup = Setup::new("tr-plain");
    let processes = [Process::new(Sampler::AlwaysOn), Process::new(Sampler::AlwaysOn)];
    let nodes = nodes(&setup, &processes).await;
    let recorder = Recorder::new();
    let spaces = [nodes[0].namespace("/chat").unwrap(), nodes[1].namespace("/chat").unwrap()];
    let _members = [member(&nodes[0], &Recorder::new()), member(&nodes[1], &recorder)];
    known(&spaces[0], 1).await;
    known(&spaces[1], 1).await;
    // Emits in no trace bring none along.
    assert!(processes.iter().all(|process| process.spans.get_finished_spans().unwrap().is_empty()));

    let [here, there] = &processes;
    for (number, name, len) in [(1, "small", 10), (2, "again", 10), (3, "large", 100_000)] {
        let message = cluster_tests::recorder::stamp_of("a", number, len);
        here.request(name, || assert_eq!(spaces[0].to("lobby").emit(message).unwrap().queued, 1));
        let (trace, request) = here.trace(name).await;
        let emit = here.one("roomcast.emit", trace).await;
        let deliver = there.one("roomcast.deliver", trace).await;
        assert_eq!(emit.parent_span_id, request);
        assert_eq!(deliver.parent_span_id, emit.span_context.span_id());
        assert!(deliver.parent_span_is_remote);
        let of = |span: &SpanData| ["node", "peer", "ns", "operation"].map(|name| field(span, name));
        assert_eq!(of(&emit), [nodes[0].name(), "", "/chat", "broadcast"]);
        assert_eq!(of(&deliver), [nodes[1].name(), nodes[0].name(), "/chat", "broadcast"]);
        assert!(here.of("roomcast.deliver", trace).is_empty(), "no trace comes back");
    }
    eventually("all came", || recorder.count_from("a") == 3).await;

    // Volatile: dropped only when it cannot go at once.
    eventually("a volatile message with its trace", || {
        here.request("volatile", || spaces[0].to("lobby").volatile().emit(probe()).unwrap());
        let spans = here.all("volatile");
        spans.iter().any(|span| !there.of("roomcast.deliver", span.span_context.trace_id()).is_empty())
    })
    .await;

    // With acknowledgements: what comes back is no part of the trace.
    let mut acks = here.request("acks", || spaces[0].to("lobby").emit_with_ack(probe(), LONG).unwrap());
    let (trace, _) = here.trace("acks").await;
    let deliver = there.one("roomcast.deliver", trace).await;
    assert_eq!(field(&deliver, "operation"), "deliver");
    soon("the end of the acknowledgements", async { while acks.next().await.is_some() {} }).await;
    assert!(here.of("roomcast.deliver", trace).is_empty());
    for node in &nodes {
        assert_eq!(node.report().counters.violations, 0);
    }
}

/// What is not sampled costs nothing on the wire and is nowhere recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_is_not_traced() {
    let setup = Setup::new("tr-off");
    let processes = [Process::new(Sampler::AlwaysOff), Process::new(Sampler::AlwaysOn)];
    let nodes = nodes(&setup, &processes).await;
    let recorder = Recorder::new();
    let space = nodes[0].namespace("/chat").unwrap();
    let _members = [member(&nodes[0], &Recorder::new()), member(&nodes[1], &recorder)];
    known(&space, 1).await;
    for number in 1..=10 {
        processes[0].request("off", || space.to("lobby").emit(stamp("a", number)).unwrap());
    }
    eventually("all came", || recorder.count_from("a") == 10).await;
    assert!(processes.iter().all(|process| process.spans.get_finished_spans().unwrap().is_empty()));
}

/// Sockets of socketioxide, from a handler of one node to a client of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcasts_of_socketioxide_are_one_trace() {
    let setup = Setup::new("tr-oxide");
    let processes = [Process::new(Sampler::AlwaysOn), Process::new(Sampler::AlwaysOn)];
    let nodes = nodes(&setup, &processes).await;
    let mut clients = Vec::new();
    let mut ios: Vec<SocketIo<Adapter>> = Vec::new();
    for node in &nodes {
        let constructor = RoomcastAdapterCtr::new(&node.node);
        let io = SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(constructor).build_layer().1;
        io.ns("/chat", async |socket: SocketRef<Adapter>| socket.join("lobby")).await.unwrap();
        clients.push(io.new_dummy_sock("/chat", ()).await);
        ios.push(io);
    }
    let namespaces = || nodes[0].report().links.iter().all(|link| link.interest_version_held > 0);
    eventually("the namespace of the other is known", namespaces).await;
    let chat = ios[0].of("/chat").unwrap();
    let [here, there] = &processes;
    let traced = async {
        loop {
            here.requested("said", chat.clone().to("lobby").emit("said", "hello")).await.unwrap();
            let traces = here.all("said");
            let delivered =
                |span: &SpanData| there.of("roomcast.deliver", span.span_context.trace_id()).pop();
            if let Some(found) = traces.iter().find_map(|span| Some((span.clone(), delivered(span)?))) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (request, deliver) = soon("a delivery in the trace", traced).await;
    let trace = request.span_context.trace_id();
    let emit = here.one("roomcast.emit", trace).await;
    assert_eq!(emit.parent_span_id, request.span_context.span_id());
    assert_eq!(deliver.parent_span_id, emit.span_context.span_id());
    assert_eq!((field(&deliver, "ns"), field(&deliver, "operation")), ("/chat".into(), "broadcast".into()));
    let said = async { while !format!("{:?}", clients[1].1.recv().await.unwrap()).contains("hello") {} };
    soon("the client has it", said).await;
}

/// Emitter, its node, the other node: each span is under the one before. What a handler of server events emits goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_go_on_from_node_to_node() {
    let setup = Setup::new("tr-chain");
    let processes = [(); 3].map(|()| Process::new(Sampler::AlwaysOn));
    let [one, two, outside] = &processes;
    let nodes = nodes(&setup, &processes[..2]).await;
    let spaces = [nodes[0].namespace("/chat").unwrap(), nodes[1].namespace("/chat").unwrap()];
    let _members = [member(&nodes[0], &Recorder::new()), member(&nodes[1], &Recorder::new())];
    known(&spaces[0], 1).await;
    known(&spaces[1], 1).await;
    let emitter =
        Emitter::builder().cluster(&setup.cluster).secret(setup.secret.clone()).seeds([nodes[0].addr()]);
    let emitter = emitter.tracer(In(outside.clone())).connect().await.unwrap();
    outside.request("order", || emitter.of("/chat").to("lobby").emit_bytes("hello").unwrap());
    let (trace, request) = outside.trace("order").await;
    let first = outside.one("roomcast.emit", trace).await;
    let host = one.one("roomcast.deliver", trace).await;
    let passed = one.one("roomcast.emit", trace).await;
    let last = two.one("roomcast.deliver", trace).await;
    let id = |span: &SpanData| span.span_context.span_id();
    assert_eq!(
        [first.parent_span_id, host.parent_span_id, passed.parent_span_id, last.parent_span_id],
        [request, id(&first), id(&host), id(&passed)]
    );
    emitter.close().await.unwrap();

    // The handler goes on after a pause, on whatever thread.
    let (back, dispatch) = (spaces[1].clone(), two.dispatch.clone());
    let handler = move |_: ServerEvent<u64>| {
        let back = back.clone();
        let work = async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            back.to("lobby").emit(probe()).unwrap().queued
        };
        // In a process of its own the subscriber is there for all threads.
        work.with_subscriber(dispatch.clone())
    };
    let _handler = nodes[1].on_server_event("work", handler).unwrap();
    let ask = async || -> ServerAcks<usize> {
        one.requested("ask", nodes[0].server_side_emit_with_ack("work", &1u64, LONG)).await.unwrap()
    };
    let answered = async {
        while ask().await.answers.is_empty() {
            one.spans.reset();
            two.spans.reset();
        }
    };
    soon("the other handles it", answered).await;
    let (trace, _) = one.trace("ask").await;
    let asked = one.one("roomcast.emit", trace).await;
    let handled = two.one("roomcast.deliver", trace).await;
    assert_eq!(handled.parent_span_id, id(&asked));
    assert_eq!((&*field(&handled, "ns"), &*field(&handled, "operation")), ("!node", "server_event"));
    let came_back = one.one("roomcast.deliver", trace).await;
    assert_eq!(two.one("roomcast.emit", trace).await.parent_span_id, id(&handled));
    assert_eq!(came_back.parent_span_id, id(&two.one("roomcast.emit", trace).await));
}

/// In the trace of a test; notes what came, by trace and message.
#[derive(Clone, Default)]
struct Always(Arc<std::sync::Mutex<Vec<TraceContext>>>);

impl Tracer for Always {
    fn current(&self) -> Option<TraceContext> {
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok()
    }

    fn deliver(&self, parent: TraceContext, _: &Traced<'_>, deliver: &mut dyn FnMut()) {
        self.0.lock().unwrap().push(parent);
        deliver();
    }
}

/// Traces go through a break of the link with their messages, each once; and an emitter that moves from a new node to an
/// old one leaves them behind, not the messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_survive_breaks_and_are_left_out_for_old_nodes() {
    let setup = Setup::new("tr-break").config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.link.resume_window = Duration::from_secs(600);
        config.members.dead_linger_ms = 600_000;
    });
    let tracers = [Always::default(), Always::default(), Always::default()];
    let mut nodes: Vec<Live> = Vec::new();
    for (index, max) in [2, 2, 1].into_iter().enumerate() {
        let (seat, mut config) = (setup.seat(index), setup.config.clone());
        config.protocol.max = max;
        let builder = setup.builder(&seat).config(config).tracer(tracers[index].clone());
        nodes.push(setup.launch(&seat, builder.seeds(nodes.iter().map(Live::addr))).await);
    }
    cluster_tests::cluster::formed(&nodes).await;
    let recorders = [(); 3].map(|()| Recorder::new());
    let _members: Vec<Member> =
        nodes.iter().zip(&recorders).map(|(node, recorder)| member(node, recorder)).collect();
    let space = nodes[0].namespace("/chat").unwrap();
    known(&space, 2).await;
    let probed = |at: usize| tracers[at].0.lock().unwrap().len();
    eventually("the probes came", || probed(1) > 0).await;
    let count = 1000;
    for number in 1..=count {
        if number == 200 {
            nodes[1].gate.cut();
        }
        if number == 800 {
            eventually("no link", || nodes[0].link(nodes[1].name()).unwrap().state == "down").await;
        }
        let receipt = space.to("lobby").emit(stamp("a", number)).unwrap();
        assert_eq!(receipt.queued, 2);
        if number.is_multiple_of(50) {
            tokio::task::yield_now().await;
        }
    }
    nodes[1].gate.heal();
    for recorder in &recorders[1..] {
        eventually("the last one came", || recorder.has("a", count)).await;
        recorder.check_all("a", count);
    }
    // Probes are traced, too: how many is not known.
    let traced = tracers[1].0.lock().unwrap().clone();
    assert!(traced.len() as u64 > count && traced.iter().all(TraceContext::is_sampled));
    assert_eq!(probed(2), 0, "an old node is told of none");
    for node in &nodes {
        assert_eq!(node.report().counters.violations, 0, "{}", node.name());
    }

    // What an emitter holds for a new node goes to an old one.
    let emitter = async || {
        let mut config = Config::default();
        config.quic = setup.config.quic.clone();
        let builder = Emitter::builder().cluster(&setup.cluster).secret(setup.secret.clone()).config(config);
        let builder =
            builder.seeds([nodes[1].addr(), nodes[2].addr()]).move_after(Duration::from_millis(200));
        builder.tracer(Always::default()).connect().await.unwrap()
    };
    let is_at =
        |emitter: &Emitter, at: usize| emitter.state() == EmitterState::Linked(nodes[at].id().clone());
    let mut at_new = emitter().await;
    while !is_at(&at_new, 1) {
        at_new.close().await.unwrap();
        at_new = emitter().await;
    }
    let send = |number| at_new.of("/chat").to("lobby").emit_bytes(stamp("e", number)).unwrap();
    send(1);
    at_new.flush().await.unwrap();
    nodes[1].gate.cut();
    // It may have moved by the time that somebody looks.
    eventually("the link breaks", || !is_at(&at_new, 1)).await;
    (2..=100).for_each(send);
    eventually("it moves", || is_at(&at_new, 2)).await;
    at_new.flush().await.unwrap();
    assert_eq!((at_new.lost(), probed(2)), (0, 0));
    for recorder in [&recorders[0], &recorders[2]] {
        eventually("all of the emitter came", || recorder.has("e", 100)).await;
        recorder.check_all("e", 100);
    }
    assert_eq!(nodes[2].report().counters.violations, 0);
    at_new.close().await.unwrap();
}
