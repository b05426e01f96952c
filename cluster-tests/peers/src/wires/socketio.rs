//! Servers of socketioxide with socketioxide-redis and its default driver: one broadcasts to a room, a socket without a
//! client on the other gets it. Messages are text here: the head in hexadecimal, then filler.

use engineioxide::Packet;
use futures_util::future::try_join_all;
use socketioxide::adapter::Emitter;
use socketioxide::extract::SocketRef;
use socketioxide_redis::drivers::redis::redis_client as redis;
use socketioxide_redis::{RedisAdapter, RedisAdapterConfig, RedisAdapterCtr};
use tokio::sync::mpsc;

use super::{Place, Sink, Wire};
use crate::Outcome;
use crate::message::Message;

type Io = socketioxide::SocketIo<RedisAdapter<Emitter>>;

/// The event that carries a message.
const EVENT: &str = "m";
/// Hexadecimal digits of the number and its marks.
const DIGITS: usize = 16;
/// Messages that wait for the adapter, and packets that wait for a socket; those above that are dropped, so it is more than is ever under way.
const BUFFER: usize = 1 << 16;

pub(crate) struct SocketIo {
    io: Io,
    to: &'static str,
    /// Keeps the socket.
    _socket: mpsc::Sender<Packet>,
}

impl Wire for SocketIo {
    /// The adapter handles each message in a task of its own.
    const ORDERED: bool = false;

    async fn open(mut place: Place, sink: Sink) -> Outcome<Self> {
        let (listens, to) = place.names();
        let client = redis::Client::open(format!("redis://{}?protocol=resp3", place.address))?;
        // Its default is 1,024: what comes meanwhile is dropped, which the bench does not forgive.
        let config = RedisAdapterConfig::new().with_stream_buffer(BUFFER);
        let adapter = RedisAdapterCtr::new_with_redis_config(&client, config).await?;
        let builder = socketioxide::SocketIo::builder().max_buffer_size(BUFFER);
        let (_, io) = builder.with_adapter::<RedisAdapter<_>>(adapter).build_svc();
        io.ns("/", async move |socket: SocketRef<RedisAdapter<_>>| socket.join(listens)).await?;
        let (socket, mut packets) = io.new_dummy_sock("/", ()).await;
        tokio::spawn(async move {
            while let Some(packet) = packets.recv().await {
                // Socket.IO: 2["m","0000000000000007..."]; others are about the connection.
                let Packet::Message(text) = packet else { continue };
                let event =
                    text.strip_prefix('2').and_then(|data| serde_json::from_str::<[&str; 2]>(data).ok());
                event.and_then(|[_, text]| read(text)).into_iter().for_each(|message| sink(message));
            }
        });
        place.announce("");
        Ok(Self { io, to, _socket: socket })
    }

    async fn send(&mut self, messages: &[Message]) -> Outcome<()> {
        // All at once, so that the client of Redis pipelines them.
        try_join_all(messages.iter().map(|message| self.emit(*message))).await?;
        Ok(())
    }

    /// Without waiting for the answer of Redis: the next one may be due before.
    async fn send_now(&mut self, message: Message) -> Outcome<()> {
        let (io, to) = (self.io.clone(), self.to);
        // What fails is missed by the emitter, which ends this.
        tokio::spawn(async move { io.to(to).emit(EVENT, &write(message)).await.is_ok() });
        Ok(())
    }
}

impl SocketIo {
    async fn emit(&self, message: Message) -> Outcome<()> {
        self.io.to(self.to).emit(EVENT, &write(message)).await.map_err(|error| error.to_string().into())
    }
}

fn write(message: Message) -> String {
    let mut text = format!("{:0DIGITS$x}", message.word);
    text.extend(std::iter::repeat_n('a', message.length.saturating_sub(DIGITS)));
    text
}

fn read(text: &str) -> Option<Message> {
    let word = u64::from_str_radix(text.get(..DIGITS)?, 16).ok()?;
    Some(Message { word, length: text.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_text_of_its_length() {
        let message = Message { word: u64::MAX - 7, length: 64 };
        assert_eq!((write(message).len(), read(&write(message))), (64, Some(message)));
    }
}
