//! The status endpoint: HTTP, read only, without secrets. On loopback unless asked otherwise. The dashboard is in
//! `dashboard.rs`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Report, dashboard, listen, scrape};
use crate::hub::lock;
use crate::node::Node;

/// Where the status endpoint listens. Made from a [`SocketAddr`] for one on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusConfig {
    /// The TCP address. Port 0 takes a free port.
    pub addr: SocketAddr,
    /// Whether `addr` may be other than loopback. Default is false: whoever reaches the endpoint sees the names and
    /// addresses of all nodes, and nothing asks who is there. Set it where the network keeps strangers out, for example
    /// for the probes of Kubernetes.
    pub allow_non_loopback: bool,
    /// The most connections at the same time; one more is closed at once and counted. Default is 64, the least is 1. Cost:
    /// up to about 50 KiB each, and the answers that are not read yet.
    pub max_connections: usize,
    /// How long the head of a request may take, from the connection or from the answer before on; so long a connection may be
    /// idle. Default is 10 s. Answers are not bounded by it.
    pub request_timeout: Duration,
    /// How long the other side may take nothing of an answer that waits. Default is 10 s.
    pub write_timeout: Duration,
}

impl StatusConfig {
    /// Allows addresses other than loopback. See [`StatusConfig::allow_non_loopback`].
    pub fn expose(self) -> Self {
        Self { allow_non_loopback: true, ..self }
    }
}

impl From<SocketAddr> for StatusConfig {
    fn from(addr: SocketAddr) -> Self {
        Self {
            addr,
            allow_non_loopback: false,
            max_connections: 64,
            request_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// A running status endpoint. Dropping it closes the listener, and each connection with the answer under way, after 5 s at
/// the latest; it keeps no clone of the node then.
#[must_use = "the endpoint stops when this is dropped"]
pub struct StatusServer {
    addr: SocketAddr,
    source: Source,
    /// Dropped to stop the server.
    _running: watch::Sender<()>,
    /// Dropped to end the streams of events.
    _open: watch::Sender<()>,
}

/// The node that is reported, until the server goes: a connection that hangs must not keep the node running.
pub(super) type Source = Arc<Mutex<Option<Node>>>;

impl StatusServer {
    /// The address that it listens on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        // Taken first, dropped after: the last clone stops the node, and that must not happen under the lock.
        let node = lock(&self.source).take();
        drop(node);
    }
}

impl fmt::Debug for StatusServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusServer").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Serves the status of `node`, with the [dashboard](super::dashboard()) at `/`, until the result is dropped. Runs on the tokio runtime that this is called on.
///
/// # Errors
/// `PermissionDenied` when the address is not loopback and that was not allowed, else what binding says. Nothing is left
/// running then.
pub async fn serve(node: &Node, config: impl Into<StatusConfig>) -> io::Result<StatusServer> {
    let config = config.into();
    let StatusConfig { addr, allow_non_loopback, .. } = config;
    if !allow_non_loopback && !addr.ip().to_canonical().is_loopback() {
        let message = format!(
            "refusing to serve the status on {addr}: it is not loopback and everyone who reaches it can read it; \
             use StatusConfig::expose() to allow it"
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let (running, stopped) = watch::channel(());
    let source: Source = Arc::new(Mutex::new(Some(node.clone())));
    let (open, is_open) = watch::channel(());
    let routes = routes(&source).merge(dashboard::routes(node, &source, is_open, None));
    tracing::info!(node = %node.id(), %addr, "the status endpoint listens");
    tokio::spawn(listen::run(listener, routes, config, Arc::clone(node.hub()), stopped));
    Ok(StatusServer { addr, source, _running: running, _open: open })
}

/// The routes `/status`, `/metrics`, `/startupz`, `/livez` and `/readyz`, to mount in a server of your own, which then sets the limits
/// of its connections. It holds a clone of `node`, which does not stop by itself while the router lives.
pub fn router(node: &Node) -> Router {
    routes(&Arc::new(Mutex::new(Some(node.clone()))))
}

fn routes(source: &Source) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/startupz", get(startupz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Arc::clone(source))
}

pub(super) fn current(source: &Source) -> Option<Node> {
    lock(source).clone()
}

fn unavailable(reason: impl Into<String>) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, reason.into()).into_response()
}

pub(super) fn stopped() -> Response {
    unavailable("the status endpoint is closed")
}

/// The whole [`Report`], indented for readers.
async fn status(State(source): State<Source>) -> Response {
    let Some(node) = current(&source) else { return stopped() };
    json(serde_json::to_vec_pretty(&Report::collect(&node)))
}

/// Fresh JSON.
pub(super) fn json(encoded: serde_json::Result<Vec<u8>>) -> Response {
    match encoded {
        Ok(mut json) => {
            json.push(b'\n');
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            (headers, json).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The metrics, for Prometheus.
async fn metrics(State(source): State<Source>) -> Response {
    let Some(node) = current(&source) else { return stopped() };
    match scrape::text(&node) {
        Ok(text) => {
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static(scrape::CONTENT_TYPE)),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            (headers, text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// 200 once the node listens. A node that could not bind has no endpoint.
async fn startupz(State(source): State<Source>) -> Response {
    match current(&source) {
        Some(node) if node.is_listening() => "ok".into_response(),
        Some(_) => unavailable("the node has stopped"),
        None => stopped(),
    }
}

/// 200 while the node lives: anything else is a reason to restart the process.
async fn livez(State(source): State<Source>) -> Response {
    let Some(node) = current(&source) else { return stopped() };
    match node.why_not_live() {
        None => "ok".into_response(),
        Some(reason) => unavailable(reason),
    }
}

/// 200 while the node is to be sent clients.
async fn readyz(State(source): State<Source>) -> Response {
    let Some(node) = current(&source) else { return stopped() };
    if node.is_ready() {
        return "ok".into_response();
    }
    // It may have become ready since; then it says so the next time.
    let reason = Report::collect(&node).unready_reason().unwrap_or_else(|| "not ready".to_owned());
    unavailable(reason)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;
    use crate::quic::tls::ClusterSecret;

    async fn node(id: &str, seed: Option<&Node>) -> Node {
        let secret = ClusterSecret::from_bytes([7; 32]).unwrap();
        let seeds = seed.map(Node::local_addr);
        let node = Node::builder().cluster("test").id(id).listen("127.0.0.1:0").seeds(seeds).secret(secret);
        timeout(Duration::from_secs(20), node.start()).await.unwrap().unwrap()
    }

    /// The status line with the headers, and the body.
    async fn ask(addr: SocketAddr, request: &str) -> (String, String) {
        let ask = async {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.to_lowercase(), body.to_owned())
        };
        timeout(Duration::from_secs(10), ask).await.unwrap()
    }

    fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_endpoint_tells_of_members_and_links() {
        let a = node("a", None).await;
        let b = node("b", Some(&a)).await;
        let server = serve(&a, loopback()).await.unwrap();
        let report = timeout(Duration::from_secs(20), async {
            loop {
                let (head, body) = ask(server.local_addr(), "GET /status").await;
                assert!(head.contains(" 200 ") && head.contains("content-type: application/json"), "{head}");
                let report: Report = serde_json::from_str(&body).unwrap();
                if report.links.iter().any(|link| link.state == "up") && report.members.len() == 2 {
                    return report;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let report = report.await.unwrap();
        let members: Vec<_> = report.members.iter().map(|m| (&*m.id, &*m.state, m.linked)).collect();
        assert_eq!(members, [("a", "live", true), ("b", "live", true)]);
        assert_eq!(report.members[1].incarnation, b.incarnation().0);
        assert_eq!((report.schema_version, &*report.cluster, report.live), (1, "test", true));
        assert_eq!((&*report.node.id, report.node.incarnation), ("a", a.incarnation().0));
        let link = &report.links[0];
        assert_eq!((&*link.peer, link.address.as_deref()), ("b", Some(&*b.local_addr().to_string())));
        assert_eq!(report.requests, crate::status::RequestReport::default());
        assert!(link.round_trip_us.is_some() && link.uptime_ms.is_some() && link.links == 1, "{link:?}");
        b.stop().await;
        a.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn probes_follow_the_node() {
        let a = node("a", None).await;
        let server = serve(&a, loopback()).await.unwrap();
        let addr = server.local_addr();
        assert_eq!(ask(addr, "GET /livez").await.1, "ok");
        assert_eq!(ask(addr, "GET /startupz").await.1, "ok");
        timeout(Duration::from_secs(10), async {
            while ask(addr, "GET /readyz").await.1 != "ok" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        assert!(ask(addr, "POST /status").await.0.starts_with("http/1.0 405"));
        assert!(ask(addr, "GET /other").await.0.starts_with("http/1.0 404"));

        a.drain().await;
        let (head, body) = ask(addr, "GET /readyz").await;
        assert!(head.starts_with("http/1.0 503") && body.contains("leaving"), "{head} {body}");
        for path in ["/livez", "/startupz"] {
            assert_eq!(ask(addr, &format!("GET {path}")).await.1, "ok");
        }
        a.stop().await;
        assert!(ask(addr, "GET /startupz").await.0.starts_with("http/1.0 503"));
        assert!(ask(addr, "GET /livez").await.0.starts_with("http/1.0 503"));
        drop(server);
        timeout(Duration::from_secs(10), async {
            while TcpStream::connect(addr).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the listener closes");
    }

    /// A node whose only seed is an address where nobody listens, or another node.
    async fn seeded(id: &str, seed: SocketAddr, ready_wait: Duration) -> Node {
        let secret = ClusterSecret::from_bytes([7; 32]).unwrap();
        let mut config = crate::Config::default();
        config.ready_wait = crate::config::ReadyWait(ready_wait);
        let builder = Node::builder().cluster("test").id(id).listen("127.0.0.1:0").secret(secret);
        timeout(Duration::from_secs(20), builder.seeds([seed]).config(config).start()).await.unwrap().unwrap()
    }

    /// A UDP port that takes everything and says nothing.
    fn silent() -> std::net::UdpSocket {
        std::net::UdpSocket::bind(loopback()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_with_seeds_is_ready_when_it_has_found_another_and_stays_so() {
        let silent = silent();
        let long = Duration::from_secs(3600);
        let lost = seeded("ready-lost", silent.local_addr().unwrap(), long).await;
        let server = serve(&lost, loopback()).await.unwrap();
        let first = node("ready-first", None).await;
        let second = seeded("ready-second", first.local_addr(), long).await;
        timeout(Duration::from_secs(20), second.ready()).await.unwrap();
        assert!(second.members().iter().any(|member| member.id == *first.id() && member.linked));
        // The other goes: that is no reason to be sent no clients.
        first.stop().await;
        let alone = |members: &[crate::ClusterMember]| !members.iter().skip(1).any(|member| member.linked);
        timeout(Duration::from_secs(30), second.members_until(alone)).await.unwrap();
        assert!(second.is_ready());
        let (head, body) = ask(server.local_addr(), "GET /readyz").await;
        assert!(head.starts_with("http/1.0 503") && body.contains("no other node"), "{head} {body}");
        assert_eq!(ask(server.local_addr(), "GET /startupz").await.1, "ok");
        lost.stop().await;
        second.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_finds_nobody_is_ready_after_a_while() {
        let silent = silent();
        let waits = seeded("ready-waits", silent.local_addr().unwrap(), Duration::from_secs(1)).await;
        timeout(Duration::from_secs(20), waits.ready()).await.unwrap();
        assert!(waits.hub().now_ms() >= 1000);
        waits.stop().await;
    }

    async fn impatient(id: &str) -> Node {
        let secret = ClusterSecret::from_bytes([7; 32]).unwrap();
        let mut config = crate::Config::default();
        config.watchdog_limit = crate::config::WatchdogLimit(Duration::from_secs(2));
        let node = Node::builder().cluster("test").id(id).listen("127.0.0.1:0").secret(secret).config(config);
        timeout(Duration::from_secs(20), node.start()).await.unwrap().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_actor_that_hangs_is_named_until_it_runs_again() {
        let a = impatient("hangs").await;
        let server = serve(&a, loopback()).await.unwrap();
        let addr = server.local_addr();
        let (release, until) = std::sync::mpsc::channel();
        a.block_actors(until);
        let red = timeout(Duration::from_secs(20), async {
            loop {
                let (head, body) = ask(addr, "GET /livez").await;
                if head.starts_with("http/1.0 503")
                    && body.contains("registry")
                    && body.contains("membership")
                {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let body = red.await.unwrap();
        assert!(body.starts_with("registry has not run for "), "{body}");
        let report: Report = serde_json::from_str(&ask(addr, "GET /status").await.1).unwrap();
        // Of the others a busy machine may say anything.
        let hangs = |name: &str| report.watchdog.iter().any(|part| part.part == name && part.hangs);
        assert!(hangs("registry") && hangs("membership") && report.watchdog.len() == 4, "{report:?}");
        assert!(!report.live);
        drop(release);
        timeout(Duration::from_secs(20), async {
            while ask(addr, "GET /livez").await.1 != "ok" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        a.stop().await;
        assert_eq!(ask(addr, "GET /livez").await.1, "the node has stopped");
    }

    #[test]
    fn a_runtime_that_is_blocked_is_named_until_it_runs_again() {
        let (started, node) = std::sync::mpsc::channel();
        let (release, until) = std::sync::mpsc::channel::<()>();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let runtime = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                started.send(impatient("blocked").await).unwrap();
                let _ = until.recv();
                let _ = ended.await;
            });
        });
        let node = node.recv().unwrap();
        let eventually = |what: &str, condition: &dyn Fn() -> bool| {
            for _ in 0..2_000 {
                if condition() {
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
            panic!("not in time: {what}");
        };
        eventually("the runtime hangs", &|| {
            node.why_not_live().is_some_and(|why| why.contains("runtime has not run for "))
        });
        drop(release);
        eventually("it runs again", &|| node.is_live());
        drop(node);
        drop(end);
        runtime.join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_shares_its_id_with_a_newer_process_is_not_ready() {
        let older = node("a", None).await;
        let newer = node("a", Some(&older)).await;
        let server = serve(&older, loopback()).await.unwrap();
        let refusal = timeout(Duration::from_secs(20), async {
            loop {
                let (head, body) = ask(server.local_addr(), "GET /readyz").await;
                if body.contains("another process") {
                    return (head, body);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let (head, body) = refusal.await.unwrap();
        assert!(head.starts_with("http/1.0 503"), "{head}");
        assert!(body.contains(&format!("incarnation {}", newer.incarnation())), "{body}");
        let status = ask(server.local_addr(), "GET /status").await.1;
        let report: Report = serde_json::from_str(&status).unwrap();
        assert_eq!((report.conflict, report.ready), (Some(body), false));
        // The newer one waits for its only seed, which is the other one.
        timeout(Duration::from_secs(30), newer.ready()).await.unwrap();
        assert!(!older.is_ready());
        assert_eq!(ask(server.local_addr(), "GET /livez").await.1, "ok", "a restart would not help");
        older.stop().await;
        newer.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn other_addresses_than_loopback_must_be_allowed() {
        let a = node("a", None).await;
        for addr in ["0.0.0.0:0", "[::]:0", "[::ffff:192.0.2.1]:0"] {
            let error = serve(&a, addr.parse::<SocketAddr>().unwrap()).await.unwrap_err();
            assert!(error.to_string().contains("expose()"), "{error}");
        }
        let any: SocketAddr = ([0, 0, 0, 0], 0).into();
        let server = serve(&a, StatusConfig::from(any).expose()).await.unwrap();
        assert_ne!(server.local_addr().port(), 0);
        a.stop().await;
    }
}
