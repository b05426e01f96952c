//! The dashboard: one page that shows the cluster as this node sees it, the data behind it, and events as they happen.
//!
//! The page is one file without anything from elsewhere; it asks `cluster` once a second and listens to `events`. Whoever has
//! it open makes this node ask the others how they are (`hub/summary/ask.rs`), at most once a second.

mod events;
mod view;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::{Semaphore, watch};

use self::events::{Log, Streams};
use self::view::View;
use super::http::{Source, current, json, stopped};
use crate::node::Node;

/// The most streams of events at a time, each of which is a page that is open.
const MAX_STREAMS: usize = 32;
/// How often a stream says that it is alive: proxies end what is silent for a minute.
/// A reader that has gone is noticed by it, at the second one at the latest.
const HEARTBEAT: Duration = Duration::from_secs(2);

const HTML: &str = include_str!("dashboard/page.html");
const STYLE: &str = include_str!("dashboard/page.css");
/// The parts of the script, in order.
const SCRIPTS: [&str; 4] = [
    include_str!("dashboard/words.js"),
    include_str!("dashboard/picture.js"),
    include_str!("dashboard/tables.js"),
    include_str!("dashboard/page.js"),
];

/// The dashboard of `node`: the page at `/`, and what it reads at `/cluster` and `/events`. [`serve`](super::serve) has it;
/// this is to mount it in a server of your own, for example with `Router::nest("/cluster-of-mine", dashboard(&node))`.
///
/// Read only and without secrets, like the rest of the status: it shows names and addresses of all nodes and counts, no names
/// of rooms, no clients, no messages. The router holds a clone of `node`, which does not stop by itself while it lives.
pub fn dashboard(node: &Node) -> Router {
    let (open, is_open) = watch::channel(());
    let source = Arc::new(std::sync::Mutex::new(Some(node.clone())));
    routes(node, &source, is_open, Some(open))
}

/// The routes. Streams of events end when the other side of `open` is dropped; `kept` is that, where nobody else keeps it.
pub(super) fn routes(
    node: &Node,
    source: &Source,
    open: watch::Receiver<()>,
    kept: Option<watch::Sender<()>>,
) -> Router {
    let log = Log::new(node.incarnation().0);
    log.record(node);
    let board = Board {
        source: Arc::clone(source),
        log,
        places: Arc::new(Semaphore::new(MAX_STREAMS)),
        open,
        _kept: kept,
    };
    Router::new()
        .route("/", get(page))
        .route("/cluster", get(cluster))
        .route("/events", get(happenings))
        .with_state(Arc::new(board))
}

struct Board {
    source: Source,
    log: Arc<Log>,
    /// Places for streams that are free.
    places: Arc<Semaphore>,
    open: watch::Receiver<()>,
    /// Keeps `open` open for as long as the routes live.
    _kept: Option<watch::Sender<()>>,
}

/// The page with the headers that let nothing else in.
struct Page {
    html: String,
    headers: [(HeaderName, HeaderValue); 6],
}

impl Page {
    fn get() -> &'static Self {
        static PAGE: OnceLock<Page> = OnceLock::new();
        PAGE.get_or_init(|| {
            let script = SCRIPTS.concat();
            let html = HTML.replace("{{style}}", STYLE).replace("{{script}}", &script);
            // By their digests: nothing that gets into the page later runs.
            let policy = format!(
                "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
                digest(&script),
                digest(STYLE),
            );
            let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
            let fixed = HeaderValue::from_static;
            let headers = [
                (header::CONTENT_TYPE, fixed("text/html; charset=utf-8")),
                (header::CACHE_CONTROL, fixed("no-store")),
                (header::CONTENT_SECURITY_POLICY, policy),
                (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
                (header::X_FRAME_OPTIONS, fixed("DENY")),
                (header::REFERRER_POLICY, fixed("no-referrer")),
            ];
            Self { html, headers }
        })
    }
}

async fn page() -> Response {
    let page = Page::get();
    (page.headers.clone(), page.html.as_str()).into_response()
}

/// What the page shows. The others are asked meanwhile; their answers are in what is given next.
async fn cluster(State(board): State<Arc<Board>>) -> Response {
    let Some(node) = current(&board.source).filter(Node::is_listening) else { return stopped() };
    json(serde_json::to_vec(&View::collect(&node)))
}

/// Events as they happen, as server-sent events: first those of late, or those after the last one that the reader has, which
/// it names in the header `Last-Event-ID` or as `?after=`.
async fn happenings(State(board): State<Arc<Board>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(node) = current(&board.source).filter(Node::is_listening) else { return stopped() };
    let Ok(place) = Arc::clone(&board.places).try_acquire_owned() else {
        let text = format!("{MAX_STREAMS} streams of events are open, which is the limit: close a page\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let last = last.or_else(|| uri.query()?.strip_prefix("after="));
    let after = board.log.position(last);
    let streams =
        Streams { log: Arc::clone(&board.log), open: board.open.clone(), stopped: Box::pin(node.stopped()) };
    let events = streams.start(after, place);
    let headers = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (headers, Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive"))).into_response()
}

/// The SHA-256 of a text in base64, as a content security policy names what may run.
fn digest(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut encoded = String::new();
    for bytes in digest.as_ref().chunks(3) {
        let byte = |at: usize| u32::from(bytes.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            encoded.push(if at <= bytes.len() { char::from(digit) } else { '=' });
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
