use std::convert::Infallible;
use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::get;
use futures_core::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use crate::ids::NodeId;

/// Far longer than anything takes.
const DEADLINE: Duration = Duration::from_secs(30);
/// The limits of the tests: soon over, and longer than a busy machine needs for an answer.
const SOON: Duration = Duration::from_millis(500);

/// A body that comes piece by piece.
struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}

/// `/short` answers at once, `/events` three events that take longer than a request may, `/endless` as much as is read.
fn router() -> Router {
    let pieces = async |State((piece, number, pause)): State<(Bytes, usize, Duration)>| {
        let (send, pieces) = mpsc::channel(1);
        tokio::spawn(async move {
            for _ in 0..number {
                sleep(pause).await;
                if send.send(piece.clone()).await.is_err() {
                    return;
                }
            }
        });
        Body::from_stream(Pieces(pieces))
    };
    let events = (Bytes::from_static(b"data: x\n\n"), 3, SOON);
    let endless = (Bytes::from(vec![b'x'; 64 * 1024]), usize::MAX, Duration::ZERO);
    Router::new()
        .route("/short", get(|| async { "ok" }))
        .merge(Router::new().route("/events", get(pieces)).with_state(events))
        .merge(Router::new().route("/endless", get(pieces)).with_state(endless))
}

struct Endpoint {
    addr: SocketAddr,
    hub: Arc<Hub>,
    stop: watch::Sender<()>,
}

impl Endpoint {
    async fn start(max_connections: usize, request_timeout: Duration, write_timeout: Duration) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(addr).await.unwrap();
        let (addr, hub) = (
            listener.local_addr().unwrap(),
            Hub::new(NodeId::new("n").unwrap(), Default::default(), Default::default()),
        );
        let config =
            StatusConfig { max_connections, request_timeout, write_timeout, ..StatusConfig::from(addr) };
        let (stop, stopped) = watch::channel(());
        tokio::spawn(run(listener, router(), config, Arc::clone(&hub), stopped));
        Self { addr, hub, stop }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Waits until there are so many connections.
    async fn has(&self, connections: u64) {
        let there = || self.hub.counters.status_connections.load(Ordering::Relaxed);
        let wait = async {
            while there() != connections {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{} instead of {connections}", there()));
    }

    async fn ask(&self, path: &str) -> String {
        let mut stream = self.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }
}

/// Everything that comes until the connection ends, also by a reset.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn connections_have_a_limit_and_one_more_is_closed_at_once_and_counted() {
    let endpoint = Endpoint::start(2, DEADLINE, DEADLINE).await;
    let (first, second) = (endpoint.connect().await, endpoint.connect().await);
    endpoint.has(2).await;
    for refused in 1..=3 {
        assert_eq!(rest(&mut endpoint.connect().await).await, "");
        assert_eq!(endpoint.hub.counters.status_refused.load(Ordering::Relaxed), refused);
    }
    drop(first);
    endpoint.has(1).await;
    assert!(endpoint.ask("/short").await.ends_with("\r\n\r\nok"));
    drop(second);
    endpoint.has(0).await;
}

#[tokio::test]
async fn who_does_not_come_to_the_end_of_a_request_is_closed() {
    let endpoint = Endpoint::start(64, SOON, DEADLINE).await;
    // Nothing, half a head, and one request but not the next.
    let mut silent = endpoint.connect().await;
    let mut half = endpoint.connect().await;
    half.write_all(b"GET /short HTTP/1.1\r\nHo").await.unwrap();
    let mut idle = endpoint.connect().await;
    idle.write_all(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(rest(&mut half).await, "");
    let answer = rest(&mut idle).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok"), "{answer}");
    endpoint.has(0).await;
}

#[tokio::test]
async fn a_header_that_grows_byte_by_byte_is_no_progress() {
    let endpoint = Endpoint::start(64, SOON, DEADLINE).await;
    let (mut read, mut write) = endpoint.connect().await.into_split();
    let trickle = async {
        write.write_all(b"GET /short HTTP/1.1\r\nX: ").await.unwrap();
        while write.write_all(b"x").await.is_ok() {
            sleep(SOON / 10).await;
        }
    };
    let mut answer = Vec::new();
    let ended = async {
        let _ = read.read_to_end(&mut answer).await;
    };
    let both = async {
        tokio::select! {
            () = trickle => {}
            () = ended => {}
        }
    };
    timeout(DEADLINE, both).await.expect("it is closed although there always comes more");
    endpoint.has(0).await;
}

#[tokio::test]
async fn nobody_waits_for_a_body_or_takes_an_endless_head() {
    let endpoint = Endpoint::start(64, DEADLINE, DEADLINE).await;
    let mut slow = endpoint.connect().await;
    slow.write_all(b"GET /short HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nab").await.unwrap();
    let answer = rest(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut large = endpoint.connect().await;
    let head = format!("GET /short HTTP/1.1\r\nX: {}", "x".repeat(2 * MAX_HEAD_BYTES));
    let _ = large.write_all(head.as_bytes()).await;
    let answer = rest(&mut large).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    endpoint.has(0).await;
}

#[tokio::test]
async fn who_has_said_all_it_has_to_say_is_answered() {
    let endpoint = Endpoint::start(64, DEADLINE, DEADLINE).await;
    for _ in 0..20 {
        let mut stream = endpoint.connect().await;
        stream.write_all(b"GET /events HTTP/1.0\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut head = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut head)).await.expect("in time").unwrap();
        assert_eq!(&head, b"HTTP/1.0 200");
    }
    // They are gone with the next event.
    endpoint.has(0).await;
}

#[tokio::test]
async fn an_answer_may_take_longer_than_a_request() {
    let endpoint = Endpoint::start(64, SOON, SOON).await;
    let answer = endpoint.ask("/events").await;
    assert_eq!(answer.matches("data: x").count(), 3, "{answer}");
}

#[tokio::test]
async fn who_does_not_read_its_answer_is_closed_and_who_reads_is_not() {
    let endpoint = Endpoint::start(64, DEADLINE, SOON).await;
    let mut frozen = endpoint.connect().await;
    frozen.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    endpoint.has(1).await;
    endpoint.has(0).await;
    let mut reader = endpoint.connect().await;
    reader.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut buffer = vec![0; 256 * 1024];
    let read = async {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < 2 * SOON {
            assert!(reader.read(&mut buffer).await.unwrap() > 0);
        }
    };
    timeout(DEADLINE, read).await.unwrap();
    drop(reader);
    endpoint.has(0).await;
}

#[tokio::test]
async fn when_it_stops_nothing_is_left() {
    let endpoint = Endpoint::start(64, DEADLINE, DEADLINE).await;
    let mut idle = endpoint.connect().await;
    endpoint.has(1).await;
    let Endpoint { addr, hub, stop } = endpoint;
    drop(stop);
    assert_eq!(rest(&mut idle).await, "");
    let closed = async {
        while TcpStream::connect(addr).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, closed).await.expect("nobody listens any more");
    assert_eq!(hub.counters.status_connections.load(Ordering::Relaxed), 0);
}
