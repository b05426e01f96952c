//! A Socket.IO server of `--bench clients`: a client joins the room that it names, and what it says in a room goes to the
//! others there. With both adapters the server is the same but for the types.

use std::net::SocketAddr;

use axum::Router;
use roomcast::socketioxide::{RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket};
use roomcast::status::Report;
use roomcast::{ClusterSecret, Node};
use serde_json::json;
use socketioxide::adapter::Emitter;
use socketioxide::extract::{AckSender, Data, SocketRef};
use socketioxide::{SocketIo, SocketIoBuilder};
use socketioxide_redis::drivers::redis::redis_client as redis;
use socketioxide_redis::{RedisAdapter, RedisAdapterConfig, RedisAdapterCtr};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::Outcome;
use crate::wires::roomcast::SECRET;

/// Packets that wait for one client. Those above that are dropped, so it is more than is ever under way.
const BUFFER: usize = 1 << 13;
/// The same for what waits between the client of Redis and the adapter, which is for all clients.
const STREAM: usize = 1 << 16;

/// Runs a server until the bench has gone. `address` is the broker's, or of no use; `seed` another server of roomcast.
pub(crate) async fn run(system: &str, name: &str, address: SocketAddr, seed: &[&str]) -> Outcome<()> {
    crate::clients::many_files()?;
    let (app, node) = match system {
        "roomcast" => {
            let (app, node) = roomcast(name, seed).await?;
            (app, Some(node))
        }
        "socketioxide-redis" => (redis(address).await?, None),
        other => return Err(format!("serve {other:?}: it has no adapter").into()),
    };
    let (http, numbers) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let listens = node.as_ref().map(|node| node.local_addr().to_string());
    let line = json!({ "http": http.local_addr()?, "numbers": numbers.local_addr()?, "node": listens, "process": std::process::id() });
    println!("{line}");
    // The bench holds the other end of the standard input.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    tokio::spawn(async move { axum::serve(http, app).await });
    loop {
        let (mut stream, _) = numbers.accept().await?;
        let counted = node.as_ref().map(|node| {
            let report = Report::collect(node);
            let bytes: u64 = report.links.iter().map(|link| link.bytes_sent).sum();
            (report.counters.frames_sent, bytes)
        });
        let (frames, bytes) = counted.unwrap_or_default();
        stream.write_all(format!("{frames} {bytes}\n").as_bytes()).await?;
    }
}

fn builder() -> SocketIoBuilder {
    SocketIo::builder().max_buffer_size(BUFFER)
}

async fn roomcast(name: &str, seed: &[&str]) -> Outcome<(Router, Node)> {
    let builder_of_node = Node::builder().cluster("bench").secret(ClusterSecret::parse(SECRET)?).id(name);
    let seeds = seed.iter().map(|seed| seed.parse::<SocketAddr>()).collect::<Result<Vec<_>, _>>()?;
    let node = builder_of_node.listen("127.0.0.1:0").seeds(seeds).start().await?;
    // As the guide says to do where rooms matter: only nodes with members of a room get what is for it.
    let config = RoomcastAdapterConfig::new().with_exact_rooms(true);
    let adapter = RoomcastAdapterCtr::new_with_config(&node, config);
    let (layer, io) = builder().with_adapter::<RoomcastAdapter<_>>(adapter).build_layer();
    io.ns("/", async |socket: Socket| {
        socket.on(
            "join",
            async |socket: Socket, Data(room): Data<String>, done: AckSender<RoomcastAdapter<Emitter>>| {
                socket.join(room);
                let _ = done.send(&());
            },
        );
        socket.on("say", async |socket: Socket, Data((room, text)): Data<(String, String)>| {
            // What is lost is missed by the clients.
            let _ = socket.to(room).emit("said", &text).await;
        });
        // What comes before the handlers are there is dropped.
        let _ = socket.emit("ready", &());
    })
    .await?;
    Ok((Router::new().layer(layer), node))
}

async fn redis(address: SocketAddr) -> Outcome<Router> {
    type Socket = SocketRef<RedisAdapter<Emitter>>;
    let client = redis::Client::open(format!("redis://{address}?protocol=resp3"))?;
    let config = RedisAdapterConfig::new().with_stream_buffer(STREAM);
    let adapter = RedisAdapterCtr::new_with_redis_config(&client, config).await?;
    let (layer, io) = builder().with_adapter::<RedisAdapter<_>>(adapter).build_layer();
    io.ns("/", async |socket: Socket| {
        socket.on(
            "join",
            async |socket: Socket, Data(room): Data<String>, done: AckSender<RedisAdapter<Emitter>>| {
                socket.join(room);
                let _ = done.send(&());
            },
        );
        socket.on("say", async |socket: Socket, Data((room, text)): Data<(String, String)>| {
            let _ = socket.to(room).emit("said", &text).await;
        });
        // What comes before the handlers are there is dropped.
        let _ = socket.emit("ready", &());
    })
    .await?;
    Ok(Router::new().layer(layer))
}
