//! One client: Socket.IO over a WebSocket, as much of it as the bench needs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::Outcome;

/// What the server says to those who hear a message: the event, then the round and the number, then filler.
const SAID: &str = r#"42["said",""#;
/// Hexadecimal digits of a round and of a number.
const DIGITS: usize = 8;

/// What all clients have got.
#[derive(Default)]
pub(super) struct Counted {
    /// What comes of another round is late and not counted.
    round: AtomicU64,
    count: AtomicU64,
    /// From so many on somebody wants to know.
    wanted: AtomicU64,
    enough: Notify,
    /// When the first message is due, and how far apart they are; and how long they took.
    due: Mutex<Option<(Instant, Duration)>>,
    late: Mutex<Vec<f64>>,
}

impl Counted {
    /// A new round begins. With `due`, how long messages take is noted.
    pub(super) fn begin(&self, due: Option<(Instant, Duration)>) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
        self.late.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.round.fetch_add(1, Ordering::SeqCst);
        self.count.store(0, Ordering::SeqCst);
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub(super) fn latencies(&self) -> Vec<f64> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many have come.
    pub(super) async fn reach(&self, count: u64) {
        self.wanted.store(count, Ordering::SeqCst);
        while self.count() < count {
            self.enough.notified().await;
        }
    }

    fn take(&self, round: u64, number: u64) {
        if round != self.round.load(Ordering::SeqCst) {
            return;
        }
        let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((begun, every)) = due {
            let took = begun.elapsed().saturating_sub(every * u32::try_from(number).unwrap_or(u32::MAX));
            self.late.lock().unwrap_or_else(PoisonError::into_inner).push(took.as_secs_f64() * 1e6);
        }
        if self.count.fetch_add(1, Ordering::SeqCst) + 1 >= self.wanted.load(Ordering::SeqCst) {
            self.enough.notify_one();
        }
    }
}

/// A connected client. It ends when this is dropped.
pub(super) struct Client {
    say: mpsc::UnboundedSender<String>,
    counted: Arc<Counted>,
}

impl Client {
    /// Connects to the server at `host:port`, and joins the room.
    pub(super) async fn connect(host: &str, room: Option<String>, counted: Arc<Counted>) -> Outcome<Self> {
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        let url = format!("ws://{host}/socket.io/?EIO=4&transport=websocket");
        let (mut socket, _) = client_async(url, stream).await?;
        expect(&mut socket, "0{").await?;
        socket.send(Message::text("40")).await?;
        expect(&mut socket, r#"42["ready""#).await?;
        if let Some(room) = room {
            socket.send(Message::text(format!(r#"420["join","{room}"]"#))).await?;
            expect(&mut socket, "430").await?;
        }
        let (say, told) = mpsc::unbounded_channel();
        tokio::spawn(run(socket, told, Arc::clone(&counted)));
        Ok(Self { say, counted })
    }

    /// Says a number in a room, in so many bytes.
    pub(super) fn say(&self, room: usize, number: u64, bytes: usize) -> Outcome<()> {
        let round = self.counted.round.load(Ordering::SeqCst);
        let text = format!("{round:0DIGITS$x}{number:0DIGITS$x}");
        let filler = "a".repeat(bytes.saturating_sub(text.len()));
        let packet = format!(r#"42["say","room-{room}","{text}{filler}"]"#);
        self.say.send(packet).map_err(|_| "speak: a client was disconnected".into())
    }
}

/// Reads until a packet comes that begins so.
async fn expect(socket: &mut WebSocketStream<TcpStream>, begin: &str) -> Outcome<()> {
    while let Some(packet) = socket.next().await {
        match packet? {
            Message::Text(text) if text.starts_with(begin) => return Ok(()),
            Message::Text(text) if text.starts_with("44") => return Err(format!("connect: {text}").into()),
            _ => {}
        }
    }
    Err("connect: the server ended it".into())
}

async fn run(
    socket: WebSocketStream<TcpStream>,
    mut told: mpsc::UnboundedReceiver<String>,
    counted: Arc<Counted>,
) -> Outcome<()> {
    let (mut to, mut from) = socket.split();
    loop {
        tokio::select! {
            packet = from.next() => match packet {
                Some(Ok(Message::Text(text))) if text == "2" => to.send(Message::text("3")).await?,
                Some(Ok(Message::Text(text))) => {
                    if let Some((round, number)) = read(&text) {
                        counted.take(round, number);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
            packet = told.recv() => match packet {
                Some(packet) => to.send(Message::text(packet)).await?,
                None => return Ok(()),
            },
        }
    }
}

/// The round and the number of what was said.
fn read(packet: &str) -> Option<(u64, u64)> {
    let text = packet.strip_prefix(SAID)?;
    let number = |from: usize| u64::from_str_radix(text.get(from..from + DIGITS)?, 16).ok();
    Some((number(0)?, number(DIGITS)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_read_and_other_packets_are_not() {
        assert_eq!(read(r#"42["said","0000000a000000ffaaaa"]"#), Some((10, 255)));
        for other in ["", "2", r#"42["said"]"#, r#"42["said","0000000a"]"#, r#"42["say","0000000a000000ff"]"#]
        {
            assert_eq!(read(other), None);
        }
    }

    #[test]
    fn what_is_late_from_another_round_does_not_count() {
        let counted = Counted::default();
        counted.begin(None);
        counted.take(1, 0);
        counted.begin(Some((Instant::now(), Duration::ZERO)));
        counted.take(1, 1);
        counted.take(2, 0);
        assert_eq!((counted.count(), counted.latencies().len()), (1, 1));
    }
}
