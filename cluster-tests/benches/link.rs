//! `cargo bench -p cluster-tests --bench link`: messages of 128 bytes from one node to one peer through the whole path
//! (namespace handle, route, queue, frame, QUIC, decoding, local sink), beside a raw quinn stream that moves the same
//! payload in the same process, with the same TLS and transport settings.
//!
//! Rounds of both take turns, so that a machine that slows down slows both. Medians are reported. Every message is
//! checked to arrive, once and in order. Arguments behind `--` choose parts by name.
//!
//! Parts named `traced-` say what tracing costs: the same messages without a tracer, and with some or all of them sampled.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use common::{Filter, Outcome, PATIENCE, knows, median, quantile, rounds, save, start};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use roomcast::quic::endpoint::{QuicConfig, async_socket, bind, endpoint, server_name};
use roomcast::quic::tls::{CertificateConfig, ClusterName, Identity};
use roomcast::trace::{TraceContext, Traced, Tracer};
use roomcast::{ClusterSecret, Config, Member, Namespace, Node};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// The size of a message, in bytes.
const MESSAGE: usize = 128;
/// Messages of one round of throughput.
const MESSAGES: u64 = 1_000_000;
/// Round trips of one round.
const PINGS: usize = 5_000;
/// The first ones of each round are not counted.
const WARM_UP: usize = 200;

fn main() -> Outcome<()> {
    common::run(bench())
}

async fn bench() -> Outcome<()> {
    let filter = Filter::from_args();
    beside_raw(&filter).await?;
    traced(&filter).await
}

async fn beside_raw(filter: &Filter) -> Outcome<()> {
    let cases = ["roomcast-100", "raw-100", "roomcast-1", "raw-1", "roomcast-ping", "raw-ping"];
    if !cases.iter().any(|name| filter.wants(name)) {
        return Ok(());
    }
    let mut roomcast = Roomcast::start(None).await?;
    let mut raw = Raw::start().await?;
    let mut results: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    let mut slowest: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    // The first round warms up caches, windows and the estimate of the path; it does not count.
    for round in 0..=rounds(9) {
        for (case, name) in cases.iter().enumerate().filter(|(_, name)| filter.wants(name)) {
            let (value, slow) = match *name {
                "roomcast-100" => (roomcast.throughput(100).await?, 0.0),
                "raw-100" => (raw.throughput(100).await?, 0.0),
                "roomcast-1" => (roomcast.throughput(1).await?, 0.0),
                "raw-1" => (raw.throughput(1).await?, 0.0),
                "roomcast-ping" => roomcast.ping().await?,
                _ => raw.ping().await?,
            };
            if round > 0 {
                results[case].push(value);
                slowest[case].push(slow);
            }
        }
    }
    report(&cases, &results, &slowest)
}

/// What tracing costs: pairs of nodes without a tracer, and with one that samples none, some or all messages, in turns.
async fn traced(filter: &Filter) -> Outcome<()> {
    let cases = [
        ("traced-off", None),
        ("traced-0", Some(0)),
        ("traced-1-in-100", Some(100)),
        ("traced-all", Some(1)),
    ];
    let mut pairs = Vec::new();
    for (name, each) in cases.into_iter().filter(|(name, _)| filter.wants(name)) {
        pairs.push((name, Roomcast::start(each).await?, Vec::new()));
    }
    if pairs.is_empty() {
        return Ok(());
    }
    // The first round does not count, as above.
    for round in 0..=rounds(9) {
        for (_, pair, values) in &mut pairs {
            let value = pair.throughput(100).await?;
            if round > 0 {
                values.push(value);
            }
        }
    }
    let off = median(&pairs[0].2);
    println!("\n| tracing | messages/s, 100 a write | of the first line |");
    println!("|---|---:|---:|");
    let mut saved = serde_json::Map::new();
    for (name, _, values) in pairs {
        println!("| {name} | {:.2} M | {:.2} |", median(&values) / 1e6, median(&values) / off);
        saved.insert(name.to_owned(), json!(values));
    }
    save("link-traced", &json!({ "message_bytes": MESSAGE, "messages_per_second": saved }))
}

fn report(cases: &[&str], results: &[Vec<f64>], slowest: &[Vec<f64>]) -> Outcome<()> {
    let m: Vec<f64> = results.iter().map(|values| median(values)).collect();
    let slow: Vec<f64> = slowest.iter().map(|values| median(values)).collect();
    println!(
        "\n{MESSAGE}-byte messages, {} rounds, medians\n",
        results.iter().map(Vec::len).max().unwrap_or(0)
    );
    println!("| measure | roomcast | raw quinn | ratio | goal |");
    println!("|---|---:|---:|---:|---|");
    let million = 1e6;
    for (label, at, goal) in
        [("messages/s, 100 a write", 0, "at least 0.5"), ("messages/s, 1 a write", 2, "")]
    {
        println!(
            "| {label} | {:.2} M | {:.2} M | {:.2} | {goal} |",
            m[at] / million,
            m[at + 1] / million,
            m[at] / m[at + 1]
        );
    }
    println!("| round trip p50 | {:.1} us | {:.1} us | {:.2} | at most 1.5 |", m[4], m[5], m[4] / m[5]);
    println!("| round trip p99 | {:.1} us | {:.1} us | {:.2} | |", slow[4], slow[5], slow[4] / slow[5]);
    let named = |of: &[Vec<f64>]| -> serde_json::Map<String, serde_json::Value> {
        cases.iter().zip(of).map(|(case, values)| ((*case).to_owned(), json!(values))).collect()
    };
    save(
        "link",
        &json!({
            "message_bytes": MESSAGE,
            "messages_per_second": {
                "roomcast_100": m[0], "raw_100": m[1], "ratio_100": m[0] / m[1],
                "roomcast_1": m[2], "raw_1": m[3], "ratio_1": m[2] / m[3],
            },
            "round_trip_us": {
                "roomcast_p50": m[4], "raw_p50": m[5], "ratio_p50": m[4] / m[5],
                "roomcast_p99": slow[4], "raw_p99": slow[5],
            },
            "rounds": named(results),
        }),
    )
}

/// Counts what arrives and checks its order.
#[derive(Default)]
struct Arrivals {
    next: AtomicU64,
    wrong: AtomicU64,
    last: AtomicU64,
    done: Notify,
}

impl Arrivals {
    /// A message arrived. One at a time: the messages of one link come in order.
    fn take(&self, message: &[u8]) {
        let expected = self.next.load(Ordering::Relaxed);
        self.next.store(expected + 1, Ordering::Relaxed);
        let number = message.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        if number != Some(expected) || message.len() != MESSAGE {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        if expected + 1 == self.last.load(Ordering::Relaxed) {
            self.done.notify_one();
        }
    }

    async fn check(&self) -> Outcome<()> {
        let arrived = timeout(PATIENCE, self.done.notified()).await;
        let (next, last) = (self.next.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        let wrong = self.wrong.load(Ordering::Relaxed);
        if arrived.is_err() || next != last || wrong > 0 {
            return Err(format!("{next} of {last} messages arrived, {wrong} out of order").into());
        }
        Ok(())
    }
}

/// Messages that go to and fro: the sink that gets one back sends the next, as the raw side does in one task.
#[derive(Default)]
struct Rally {
    /// When the last one was sent, and how long those before it took, in microseconds.
    state: Mutex<(Option<Instant>, Vec<f64>)>,
    done: Notify,
}

impl Rally {
    fn state(&self) -> MutexGuard<'_, (Option<Instant>, Vec<f64>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, to: &Namespace) {
        let number = {
            let mut state = self.state();
            state.0 = Some(Instant::now());
            state.1.len() as u64
        };
        // A refused emit shows as a ping without an answer.
        let _ = to.to("ping").emit(Bytes::copy_from_slice(&message(number)));
    }

    fn take(&self, to: &Namespace) {
        let played = {
            let mut state = self.state();
            let took = state.0.map_or(f64::NAN, |begun| begun.elapsed().as_secs_f64() * 1e6);
            state.1.push(took);
            state.1.len()
        };
        if played < PINGS { self.serve(to) } else { self.done.notify_one() }
    }
}

/// A message with its number in front.
fn message(number: u64) -> [u8; MESSAGE] {
    let mut bytes = [7; MESSAGE];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Says of one in so many emits that it is sampled; 0 for none. Records nothing: what the bench sees is roomcast's own cost.
struct Every {
    each: u64,
    emits: AtomicU64,
    context: TraceContext,
}

impl Tracer for Every {
    fn current(&self) -> Option<TraceContext> {
        let emits = self.emits.fetch_add(1, Ordering::Relaxed);
        (self.each > 0 && emits.is_multiple_of(self.each)).then_some(self.context)
    }

    fn deliver(&self, _: TraceContext, _: &Traced<'_>, deliver: &mut dyn FnMut()) {
        deliver();
    }
}

/// A node, with a tracer that samples one in `each` emits if that is given.
async fn node(id: &str, secret: &ClusterSecret, seeds: &[&Node], each: Option<u64>) -> Outcome<Node> {
    let Some(each) = each else { return start(id, secret, seeds, Config::default()).await };
    let context = TraceContext::new([7; 16], [7; 8], 1)?;
    let seeds = seeds.iter().map(|node| node.local_addr());
    let builder = Node::builder().cluster("bench").id(id).listen("127.0.0.1:0").seeds(seeds);
    let tracer = Every { each, emits: AtomicU64::new(0), context };
    Ok(builder.secret(secret.clone()).tracer(tracer).start().await?)
}

/// Two nodes and a member on each.
struct Roomcast {
    _nodes: (Node, Node),
    from: Namespace,
    arrivals: Arc<Arrivals>,
    rally: Arc<Rally>,
    sent: u64,
    _members: Vec<Member>,
}

impl Roomcast {
    async fn start(each: Option<u64>) -> Outcome<Self> {
        let secret = ClusterSecret::generate()?;
        let a = node("a", &secret, &[], each).await?;
        let b = node("b", &secret, &[&a], each).await?;
        let (from, to) = (a.namespace("/bench")?, b.namespace("/bench")?);
        let (arrivals, rally) = (Arc::new(Arrivals::default()), Arc::new(Rally::default()));

        let there = Arc::clone(&arrivals);
        let listener = to.connect(move |message: Bytes| there.take(&message));
        listener.join("lobby")?;
        let back = to.clone();
        // A refused emit shows as a ping without an answer.
        let echo = to.connect(move |message: Bytes| drop(back.to("pong").emit(message)));
        echo.join("ping")?;
        let (here, again) = (Arc::clone(&rally), from.clone());
        let pinger = from.connect(move |_: Bytes| here.take(&again));
        pinger.join("pong")?;

        knows(&a, 3).await?;
        knows(&b, 2).await?;
        Ok(Self { _nodes: (a, b), from, arrivals, rally, sent: 0, _members: vec![listener, echo, pinger] })
    }

    /// Messages per second; after each `burst` of them the sender lets others run, as a handler does.
    async fn throughput(&mut self, burst: u64) -> Outcome<f64> {
        let end = self.sent + MESSAGES;
        self.arrivals.last.store(end, Ordering::Relaxed);
        let begun = Instant::now();
        while self.sent < end {
            for _ in 0..burst.min(end - self.sent) {
                let bytes = || Bytes::copy_from_slice(&message(self.sent));
                let mut receipt = self.from.to("lobby").emit(bytes())?;
                while !receipt.dropped.is_empty() {
                    receipt = self.from.to("lobby").emit_wait(bytes()).await?;
                }
                if receipt.queued != 1 {
                    return Err(format!("message {} went to {} nodes", self.sent, receipt.queued).into());
                }
                self.sent += 1;
            }
            tokio::task::yield_now().await;
        }
        self.arrivals.check().await?;
        Ok(MESSAGES as f64 / begun.elapsed().as_secs_f64())
    }

    /// Round trips in microseconds: the median and the 99th percentile.
    async fn ping(&mut self) -> Outcome<(f64, f64)> {
        self.rally.serve(&self.from);
        timeout(PATIENCE, self.rally.done.notified()).await?;
        let times = std::mem::take(&mut self.rally.state().1);
        let times = &times[WARM_UP..];
        Ok((median(times), quantile(times, 0.99)))
    }
}

/// Two quinn endpoints with the settings of nodes, a stream one way and a stream both ways.
struct Raw {
    _endpoints: (Endpoint, Endpoint),
    _connections: (Connection, Connection),
    send: SendStream,
    pings: (SendStream, RecvStream),
    arrivals: Arc<Arrivals>,
}

impl Raw {
    async fn start() -> Outcome<Self> {
        let secret = ClusterSecret::generate()?;
        let name = ClusterName::new("bench")?;
        let (a, b) = (raw_endpoint(&name, &secret)?, raw_endpoint(&name, &secret)?);
        let connecting = a.connect(b.local_addr()?, &server_name(&name))?;
        let accept =
            async { b.accept().await.ok_or("the endpoint is closed")?.await.map_err(|e| e.to_string()) };
        let (here, there) = tokio::join!(connecting, accept);
        let (here, there) = (here?, there?);

        let mut send = here.open_uni().await?;
        send.write_all(&[0]).await?;
        let mut recv = there.accept_uni().await?;
        recv.read_exact(&mut [0]).await?;
        let arrivals = Arc::new(Arrivals::default());
        let count = Arc::clone(&arrivals);
        tokio::spawn(async move {
            let mut chunks: [Bytes; 32] = Default::default();
            let mut bytes = 0;
            while let Ok(Some(read)) = recv.read_chunks(&mut chunks).await {
                bytes += chunks[..read].iter().map(Bytes::len).sum::<usize>() as u64;
                let messages = bytes / MESSAGE as u64;
                if count.next.swap(messages, Ordering::Relaxed) != messages
                    && messages == count.last.load(Ordering::Relaxed)
                {
                    count.done.notify_one();
                }
            }
        });

        let mut pings = here.open_bi().await?;
        pings.0.write_all(&[0]).await?;
        let (mut back, mut forth) = there.accept_bi().await?;
        forth.read_exact(&mut [0]).await?;
        tokio::spawn(async move {
            let mut bytes = [0; MESSAGE];
            while forth.read_exact(&mut bytes).await.is_ok() && back.write_all(&bytes).await.is_ok() {}
        });
        Ok(Self { _endpoints: (a, b), _connections: (here, there), send, pings, arrivals })
    }

    /// Messages per second, with `burst` of them in each write.
    async fn throughput(&mut self, burst: u64) -> Outcome<f64> {
        let begin = self.arrivals.last.load(Ordering::Relaxed);
        let end = begin + MESSAGES;
        self.arrivals.last.store(end, Ordering::Relaxed);
        let begun = Instant::now();
        let mut sent = begin;
        let mut buffer = Vec::with_capacity(burst as usize * MESSAGE);
        while sent < end {
            buffer.clear();
            for number in sent..(sent + burst).min(end) {
                buffer.extend_from_slice(&message(number));
            }
            sent = (sent + burst).min(end);
            self.send.write_all(&buffer).await?;
        }
        self.arrivals.check().await?;
        Ok(MESSAGES as f64 / begun.elapsed().as_secs_f64())
    }

    /// Round trips in microseconds: the median and the 99th percentile.
    async fn ping(&mut self) -> Outcome<(f64, f64)> {
        let mut times = Vec::with_capacity(PINGS);
        let mut bytes = [0; MESSAGE];
        for number in 0..PINGS {
            let begun = Instant::now();
            self.pings.0.write_all(&message(number as u64)).await?;
            timeout(PATIENCE, self.pings.1.read_exact(&mut bytes)).await??;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let times = &times[WARM_UP..];
        Ok((median(times), quantile(times, 0.99)))
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates are made for the time that it is")]
fn raw_endpoint(name: &ClusterName, secret: &ClusterSecret) -> Outcome<Endpoint> {
    let certificate = CertificateConfig::default();
    let identity = Identity::from_secret(name.clone(), secret, &[], certificate, SystemTime::now())?;
    // A stream for pings beside the one for data.
    let config = QuicConfig { max_bidi_streams: 4, ..QuicConfig::default() };
    let bound = bind(([127, 0, 0, 1], 0).into(), &config)?;
    Ok(endpoint(async_socket(bound.socket)?, &config, &identity)?)
}
