//! What each node logged.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::wait::eventually;

type Lines = HashMap<String, Vec<String>>;

/// Starts to capture what nodes log at `info` and above, once per process. `RUST_LOG` prints too what it names.
pub fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let ours = Targets::new().with_target("roomcast", LevelFilter::INFO);
        let printed = std::env::var_os("RUST_LOG")
            .map(|_| tracing_subscriber::fmt::layer().with_filter(EnvFilter::from_default_env()));
        // Somebody else's subscriber would make every test of the log fail in a clear way.
        let _ = tracing_subscriber::registry().with(Capture.with_filter(ours)).with(printed).try_init();
    });
}

/// What the node logged, oldest first: the message, then the other fields as `name=value`.
pub fn lines(node: &str) -> Vec<String> {
    lock().get(node).cloned().unwrap_or_default()
}

/// How many lines of the node contain all `parts`.
pub fn count(node: &str, parts: &[&str]) -> usize {
    lines(node).iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

/// Waits until a line of the node contains all `parts`.
///
/// # Panics
/// After the deadline, with the line of the caller.
#[track_caller]
pub fn logged(node: &str, parts: &[&str]) -> impl Future<Output = ()> {
    let what = format!("a log line of {node} with {parts:?}");
    eventually(what, move || count(node, parts) > 0)
}

fn lock() -> MutexGuard<'static, Lines> {
    static LINES: OnceLock<Mutex<Lines>> = OnceLock::new();
    LINES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

struct Capture;

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = format!("{}{}", text.message, text.fields);
        lock().entry(text.node).or_default().push(line);
    }
}

/// The fields of one event as text.
#[derive(Default)]
struct Text {
    node: String,
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let written = match field.name() {
            "node" => write!(self.node, "{value:?}"),
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        // Writing to a string does not fail.
        debug_assert!(written.is_ok());
    }
}
