use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{Instant, timeout};

use super::*;
use crate::quic::tls::ClusterSecret;
use crate::status::serve;

const DEADLINE: Duration = Duration::from_secs(20);

async fn node(id: &str, seed: Option<&Node>) -> Node {
    let secret = ClusterSecret::from_bytes([7; 32]).unwrap();
    let seeds = seed.map(Node::local_addr);
    let node = Node::builder().cluster("test").id(id).listen("127.0.0.1:0").seeds(seeds).secret(secret);
    timeout(DEADLINE, node.start()).await.unwrap().unwrap()
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// The head, and the body as far as it comes until the connection ends.
async fn ask(addr: SocketAddr, request: &str) -> (String, String) {
    let ask = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    };
    timeout(DEADLINE, ask).await.unwrap()
}

/// A stream of events, line by line.
struct Reader {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    _keeps_open: tokio::net::tcp::OwnedWriteHalf,
}

impl Reader {
    async fn open(addr: SocketAddr, path: &str, more: &str) -> Self {
        let (read, mut write) = TcpStream::connect(addr).await.unwrap().into_split();
        write.write_all(format!("GET {path} HTTP/1.0\r\n{more}\r\n").as_bytes()).await.unwrap();
        Self { lines: BufReader::new(read).lines(), _keeps_open: write }
    }

    /// The next line that begins so; none at the end of the stream.
    async fn next(&mut self, start: &str) -> Option<String> {
        let find = async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                if line.starts_with(start) {
                    return Some(line);
                }
            }
            None
        };
        timeout(DEADLINE, find).await.expect("a line or the end")
    }
}

async fn value(addr: SocketAddr) -> serde_json::Value {
    let (head, body) = ask(addr, "GET /cluster").await;
    assert!(head.contains("200") && head.contains("application/json") && head.contains("no-store"), "{head}");
    serde_json::from_str(&body).unwrap()
}

async fn until(
    addr: SocketAddr,
    what: &str,
    holds: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let view = value(addr).await;
        if holds(&view) {
            return view;
        }
        assert!(Instant::now() < end, "not in time: {what}: {view:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn the_page_is_small_whole_and_lets_nothing_else_in() {
    let page = Page::get();
    assert!(page.html.len() < 60_000, "{}", page.html.len());
    assert!(!page.html.contains("{{"), "something was not filled in");
    for outside in
        ["http://", "https://", "//cdn", "@import", "innerHTML", "insertAdjacentHTML", " onclick=", " style="]
    {
        let text = page.html.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains(outside), "{outside}");
    }
    let header =
        |name: &HeaderName| page.headers.iter().find(|(of, _)| of == name).unwrap().1.to_str().unwrap();
    let policy = header(&header::CONTENT_SECURITY_POLICY);
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(page.html.matches("<script>").count(), 1);
    assert_eq!(page.html.matches("<style>").count(), 1);
}

#[test]
fn digests_are_written_as_others_write_them() {
    assert_eq!(digest(""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    assert_eq!(digest("abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_read_only() {
    let a = node("dash-page", None).await;
    let server = serve(&a, loopback()).await.unwrap();
    let addr = server.local_addr();
    let (head, body) = ask(addr, "GET /").await;
    let head = head.to_lowercase();
    assert!(head.starts_with("http/1.0 200") && head.contains("text/html; charset=utf-8"), "{head}");
    assert!(
        head.contains("content-security-policy: default-src 'none'") && head.contains("nosniff"),
        "{head}"
    );
    assert!(body.starts_with("<!doctype html>"));
    let (head, body) = ask(addr, "HEAD /").await;
    assert!(head.contains("200") && body.is_empty(), "{head} {body}");
    for path in ["/", "/cluster", "/events"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let (head, _) = ask(addr, &format!("{method} {path}")).await;
            assert!(head.contains("405"), "{method} {path}: {head}");
        }
    }
    a.stop().await;
    // The page still says what it is; what it would show is gone.
    assert!(ask(addr, "GET /cluster").await.0.contains("503"));
    assert!(ask(addr, "GET /events").await.0.contains("503"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_tells_of_itself() {
    let a = node("dash-a", None).await;
    let b = node("dash-b", Some(&a)).await;
    let chat = b.namespace("/chat").unwrap();
    let members: Vec<_> = (0..3).map(|_| chat.connect(|_| ())).collect();
    members.iter().for_each(|member| member.join("lobby").unwrap());
    members[0].join("other").unwrap();
    let server = serve(&a, loopback()).await.unwrap();
    let view = until(server.local_addr(), "b has told of itself", |view| {
        view["nodes"][1]["said"]["links"][0][1] == "up" && view["nodes"][0]["said"]["links"][0][1] == "up"
    });
    let view = view.await;
    assert_eq!((&view["cluster"], &view["node"]), (&"test".into(), &"dash-a".into()));
    let (own, other) = (&view["nodes"][0], &view["nodes"][1]);
    assert_eq!((&own["id"], &own["said"]["clients"]), (&"dash-a".into(), &0.into()));
    assert!(own["link"].is_null() && own["silent"].is_null());
    assert_eq!((&other["id"], &other["state"]), (&"dash-b".into(), &"live".into()));
    assert_eq!(other["incarnation"], b.incarnation().0.to_string());
    assert_eq!((&other["said"]["clients"], &other["said"]["rooms"]), (&3.into(), &2.into()));
    assert_eq!((&other["said"]["links"][0][0], &other["silent"]), (&0.into(), &serde_json::Value::Null));
    assert_eq!(other["link"]["state"], "up");
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_are_asked_once_a_second_whoever_looks_and_not_when_nobody_does() {
    let a = node("dash-once-a", None).await;
    let b = node("dash-once-b", Some(&a)).await;
    let server = serve(&a, loopback()).await.unwrap();
    let asked = || {
        let peer = b.hub().peers().into_iter().find(|peer| peer.id == *a.id());
        peer.map_or(0, |peer| peer.counters.volatile_received.load(Ordering::Relaxed))
    };
    assert_eq!(asked(), 0);
    until(server.local_addr(), "b has told of itself", |view| !view["nodes"][1]["said"].is_null()).await;
    let (before, begun) = (asked(), a.hub().now_ms());
    for _ in 0..100 {
        value(server.local_addr()).await;
    }
    let rounds = (a.hub().now_ms() - begun) / 1000 + 1;
    assert!(asked() - before <= rounds, "{} in {rounds} s", asked() - before);
    // Nothing is queued, numbered or missed for it.
    let queued: Vec<_> = a.hub().peers().iter().map(|peer| peer.last()).collect();
    assert_eq!(queued, [crate::ids::Seq(0)]);
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_happen_and_end_with_the_node() {
    let a = node("dash-ev-a", None).await;
    let server = serve(&a, loopback()).await.unwrap();
    let mut early = Reader::open(server.local_addr(), "/events", "").await;
    assert_eq!(early.next("content-type").await.unwrap(), "content-type: text/event-stream");
    early.next("retry: 2000").await.unwrap();
    let b = node("dash-ev-b", Some(&a)).await;
    let id = early.next("id: ").await.unwrap();
    assert_eq!(id, format!("id: {}-1", a.incarnation().0));
    assert_eq!(early.next("event: ").await.unwrap(), "event: happened");
    // Who comes later hears what was before, who comes back what is new.
    let addr = server.local_addr();
    let mut late = Reader::open(addr, "/events", "").await;
    assert_eq!(late.next("id: ").await.unwrap(), id);
    let last = format!("Last-Event-ID: {}-1\r\n", a.incarnation().0);
    let mut back = Reader::open(addr, "/events", &last).await;
    assert_eq!(back.next("id: ").await.unwrap(), format!("id: {}-2", a.incarnation().0));
    let mut also = Reader::open(addr, &format!("/events?after={}-1", a.incarnation().0), "").await;
    assert_eq!(also.next("id: ").await.unwrap(), format!("id: {}-2", a.incarnation().0));
    b.stop().await;
    while !early.next("data: ").await.unwrap().contains("link-down") {}
    a.stop().await;
    for mut reader in [early, late, back, also] {
        assert_eq!(reader.next("event: stopped").await.as_deref(), Some("event: stopped"));
        assert_eq!(reader.next("event: ").await, None, "the stream ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_a_limit_and_give_their_place_back() {
    let a = node("dash-full", None).await;
    let server = serve(&a, loopback()).await.unwrap();
    let addr = server.local_addr();
    let mut readers = Vec::new();
    for _ in 0..MAX_STREAMS {
        let mut reader = Reader::open(addr, "/events", "").await;
        reader.next("retry").await.unwrap();
        readers.push(reader);
    }
    let (head, body) = ask(addr, "GET /events").await;
    assert!(head.contains("503") && body.contains("32 streams"), "{head} {body}");
    // What is no stream still works.
    assert!(ask(addr, "GET /cluster").await.0.contains("200"));
    readers.pop();
    let end = Instant::now() + DEADLINE;
    loop {
        let mut reader = Reader::open(addr, "/events", "").await;
        if reader.next("HTTP/").await.unwrap().contains("200") {
            break;
        }
        assert!(Instant::now() < end, "the place is free again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The server goes, and the streams with it; nothing keeps the node.
    drop(server);
    for mut reader in readers {
        assert_eq!(reader.next("event: ").await, None);
    }
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_mounted_anywhere() {
    let a = node("dash-nest", None).await;
    let app = Router::new().route("/", get(async || "mine")).nest("/cluster-of-mine", dashboard(&a));
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    assert_eq!(ask(addr, "GET /").await.1, "mine");
    assert!(ask(addr, "GET /cluster-of-mine").await.1.starts_with("<!doctype html>"));
    assert!(ask(addr, "GET /cluster-of-mine/cluster").await.1.contains("\"dash-nest\""));
    server.abort();
    a.stop().await;
}
