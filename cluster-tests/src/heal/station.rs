//! A node process of the report: one member in one room, messages at a steady rate, orders on standard input.
//!
//! It prints `ready`, waits for the line `go`, and emits from then on. Ten times a second it prints `progress` and how
//! far it is ([`Book::progress`]). On `quiet` it stops emitting and says `quiet`. On `leave` it stops emitting, leaves
//! as its system would have it, prints `record` with all that it noted as JSON, and ends.

use std::io::{self, Write};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::heal::record::Book;

/// The room of the report.
pub const ROOM: &str = "room";
/// The pause between two messages of a node: 200 a second.
const PAUSE: Duration = Duration::from_millis(5);
/// The pause between two lines that say how far it is.
const PROGRESS: Duration = Duration::from_millis(100);
/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(10);

/// What differs between the systems.
pub trait Wire {
    /// Sends a message to the room, without waiting. What fails, now or later, is noted in the book.
    fn emit(&self, message: Vec<u8>);
    /// Leaves without losing anything, as far as the system can.
    fn leave(&self) -> impl Future<Output = ()>;
}

/// A book for the run, which is also told of warnings and errors in the log of this process.
pub fn book(run: &str) -> Book {
    let book = Book::new(run);
    tracing_subscriber::registry().with(book.clone()).init();
    book
}

/// Runs the station until it is told to leave, or until its standard input ends.
///
/// # Errors
/// When it cannot print.
pub async fn run(book: &Book, wire: &impl Wire) -> io::Result<()> {
    say("ready")?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let (mut tick, mut report) = (interval(PAUSE), interval(PROGRESS));
    // After a freeze the rate is as before; what was not sent is not sent.
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    report.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut emits = false;
    loop {
        tokio::select! {
            order = orders.next_line() => match order?.as_deref() {
                Some("go") => emits = true,
                Some("quiet") => {
                    emits = false;
                    say("quiet")?;
                }
                Some("leave") => break,
                Some(other) => book.sign(format!("not an order: {other:?}")),
                None => return Ok(()),
            },
            _ = tick.tick(), if emits => wire.emit(book.next_message()),
            _ = report.tick() => say(&format!("progress {}", book.progress()))?,
        }
    }
    if timeout(LEAVE, wire.leave()).await.is_err() {
        book.sign("leaving takes too long");
    }
    let record = serde_json::to_string(&book.record()).map_err(io::Error::other)?;
    say(&format!("record {record}"))
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
