//! A node of the systems that the heal report compares with. `heal-report` builds and starts it.
//!
//! `heal-peer SYSTEM RUN BROKER`: `redis` is socketioxide with the `redis` driver of socketioxide-redis (its default),
//! `fred` the same with the other driver, set to reconnect for ever, `nats` plain publish and subscribe. Everything else
//! is as these crates have it when nothing is said.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use async_nats::{ConnectOptions, Event};
use cluster_tests::heal::record::Book;
use cluster_tests::heal::station::{self, ROOM, Wire};
use futures_core::Stream;
use socketioxide::SocketIo;
use socketioxide::adapter::Adapter;
use socketioxide::extract::SocketRef;
use socketioxide_redis::drivers::fred::fred_client as fred;
use socketioxide_redis::drivers::redis::redis_client as redis;
use socketioxide_redis::{FredAdapter, RedisAdapter, RedisAdapterCtr};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The event that carries a message.
const EVENT: &str = "m";

// One thread: tasks begin in the order in which they were spawned, so messages are handed over in order.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [system, run, broker] = &args[..] else {
        eprintln!("heal-peer: use it through heal-report; its arguments are: redis|fred|nats RUN BROKER");
        std::process::exit(2);
    };
    let book = station::book(run);
    let ended = match &**system {
        "redis" => run_redis(&book, broker).await,
        "fred" => run_fred(&book, broker).await,
        "nats" => run_nats(&book, broker).await,
        other => Err(format!("run {other:?}: the systems are redis, fred and nats").into()),
    };
    if let Err(error) = ended {
        eprintln!("heal-peer: failed to {error}");
        std::process::exit(1);
    }
}

async fn run_redis(book: &Book, broker: &str) -> Result<(), BoxError> {
    let client = redis::Client::open(format!("redis://{broker}?protocol=resp3"))?;
    let adapter = RedisAdapterCtr::new_with_redis(&client).await?;
    let (_, io) = SocketIo::builder().with_adapter::<RedisAdapter<_>>(adapter).build_svc();
    io.ns("/", async |socket: SocketRef<RedisAdapter<_>>| socket.join(ROOM)).await?;
    serve(book, io).await
}

async fn run_fred(book: &Book, broker: &str) -> Result<(), BoxError> {
    use fred::prelude::{Builder, ClientLike, Config, EventInterface, PubsubInterface, ReconnectPolicy};

    let config = Config::from_url(&format!("redis://{broker}?protocol=resp3"))?;
    let client = Builder::from_config(config)
        .set_policy(ReconnectPolicy::new_exponential(0, 100, 2_000, 2))
        .build_subscriber_client()?;
    // Its own task for this subscribes to no channels, too, where there are none, and the answer to that breaks others.
    let again = client.clone();
    let _resubscribe = client.on_reconnect(move |_| {
        let again = again.clone();
        async move {
            let channels: Vec<_> = again.tracked_shard_channels().into_iter().collect();
            if channels.is_empty() { Ok(()) } else { again.ssubscribe(channels).await }
        }
    });
    let noted = book.clone();
    let _errors = client.on_error(move |(error, _)| {
        noted.sign(format!("fred: {error}"));
        async { Ok(()) }
    });
    let adapter = RedisAdapterCtr::new_with_fred(client.clone()).await?;
    let (_, io) = SocketIo::builder().with_adapter::<FredAdapter<_>>(adapter).build_svc();
    io.ns("/", async |socket: SocketRef<FredAdapter<_>>| socket.join(ROOM)).await?;
    serve(book, io).await?;
    Ok(client.quit().await?)
}

/// One socket in the room, and the station.
async fn serve<A: Adapter>(book: &Book, io: SocketIo<A>) -> Result<(), BoxError> {
    let (_tx, mut rx) = io.new_dummy_sock("/", ()).await;
    let noted = book.clone();
    tokio::spawn(async move {
        while let Some(packet) = rx.recv().await {
            // Socket.IO: 2["m","a.1 7 ..."]; others are about the connection.
            let engineioxide::Packet::Message(text) = packet else { continue };
            let data =
                text.strip_prefix('2').and_then(|event| serde_json::from_str::<[String; 2]>(event).ok());
            if let Some([_, message]) = data {
                noted.arrived(message.as_bytes());
            }
        }
    });
    Ok(station::run(book, &Io { io, book: book.clone() }).await?)
}

struct Io<A: Adapter> {
    io: SocketIo<A>,
    book: Book,
}

impl<A: Adapter> Wire for Io<A> {
    fn emit(&self, message: Vec<u8>) {
        let (io, book) = (self.io.clone(), self.book.clone());
        tokio::spawn(async move {
            let message = String::from_utf8_lossy(&message);
            if let Err(error) = io.to(ROOM).emit(EVENT, &message).await {
                book.sign(format!("emit: {error}"));
                book.told(1);
            }
        });
    }

    async fn leave(&self) {
        self.io.close().await;
    }
}

async fn run_nats(book: &Book, broker: &str) -> Result<(), BoxError> {
    let noted = book.clone();
    let options = ConnectOptions::new().event_callback(move |event| {
        if event != Event::Connected {
            noted.sign(format!("nats: {event}"));
        }
        async {}
    });
    let client = options.connect(broker).await?;
    let mut messages = client.subscribe(ROOM).await?;
    client.flush().await?;
    let noted = book.clone();
    let reader = tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)).await {
            noted.arrived(&message.payload);
        }
    });
    station::run(book, &Nats { client, book: book.clone(), reader }).await?;
    Ok(())
}

struct Nats {
    client: async_nats::Client,
    book: Book,
    reader: tokio::task::JoinHandle<()>,
}

impl Wire for Nats {
    fn emit(&self, message: Vec<u8>) {
        let (client, book) = (self.client.clone(), self.book.clone());
        tokio::spawn(async move {
            if let Err(error) = client.publish(ROOM, message.into()).await {
                book.sign(format!("publish: {error}"));
                book.told(1);
            }
        });
    }

    async fn leave(&self) {
        if let Err(error) = self.client.drain().await {
            return self.book.sign(format!("drain: {error}"));
        }
        // What is under way has come when the subscription ends.
        while !self.reader.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
