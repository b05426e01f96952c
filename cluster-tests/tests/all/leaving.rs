//! Nodes of the chat example that are told to end, and nodes that take everything from the environment.

use std::net::SocketAddr;
use std::process::Stdio;

use cluster_tests::chat::{ChatCluster, ChatNode, linked};
use cluster_tests::process::{Process, chat_program};
use cluster_tests::wait::{eventually, soon};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// How many clients the node that leaves has.
const CLIENTS: usize = 200;

/// A Socket.IO client by hand: WebSocket only, common parser, no reconnection.
struct Client {
    socket: WebSocketStream<TcpStream>,
    next_ack: u64,
}

impl Client {
    async fn connect(addr: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(addr)).await.unwrap();
        let url = format!("ws://{addr}/socket.io/?EIO=4&transport=websocket");
        let socket = soon("the upgrade", client_async(url, stream)).await.unwrap().0;
        let mut client = Self { socket, next_ack: 0 };
        assert!(client.packet().await.unwrap().starts_with('0'));
        client.socket.send(Message::text("40")).await.unwrap();
        assert!(client.packet().await.unwrap().starts_with("40"));
        client
    }

    /// The next packet, pings answered; none when the connection has ended.
    async fn packet(&mut self) -> Option<String> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) if text.as_str() == "2" => {
                    let _ = self.socket.send(Message::text("3")).await;
                }
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Emits, and waits for the acknowledgement.
    async fn emit(&mut self, event: &str, data: Value) {
        let ack = self.next_ack;
        self.next_ack += 1;
        self.socket.send(Message::text(format!("42{ack}{}", json!([event, data])))).await.unwrap();
        let answered = async {
            loop {
                let packet = self.packet().await.expect("the server answers");
                if let Some(answer) = packet.strip_prefix(&format!("43{ack}[")) {
                    assert!(answer.contains(r#""ok":true"#), "{answer}");
                    return;
                }
            }
        };
        soon(format!("{event} is acknowledged"), answered).await;
    }

    /// Says something in the lobby.
    async fn say(&mut self, text: &str) {
        self.emit("message", json!({ "room": "lobby", "text": text })).await;
    }
}

/// A member of the lobby whose texts come out of the channel.
async fn listener(node: &ChatNode) -> mpsc::UnboundedReceiver<String> {
    let mut client = Client::connect(node.http).await;
    client.emit("join", json!("lobby")).await;
    let (texts, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(packet) = client.packet().await {
            let event: Value = serde_json::from_str(packet.trim_start_matches(char::is_numeric)).unwrap();
            if event[0] == "message" && texts.send(event[1]["text"].as_str().unwrap().to_owned()).is_err() {
                return;
            }
        }
    });
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_ends_go_in_slices_and_the_others_lose_nothing() {
    let mut cluster = ChatCluster::new("common");
    cluster.settings = vec![
        ("ROOMCAST_DRAIN_CLIENTS_PER_SLICE", "20"),
        ("ROOMCAST_DRAIN_INTERVAL", "500ms"),
        ("ROOMCAST_DRAIN_CLIENTS_TIMEOUT", "5m"),
    ];
    let [mut a, b, c] = cluster.three().await;
    let mut heard = listener(&b).await;
    let mut speaker = Client::connect(c.http).await;
    // Until the join is known there.
    let mut tries = 0;
    while heard.try_recv().is_err() {
        speaker.say("hello").await;
        tries += 1;
        assert!(tries < 10_000, "nothing is heard");
    }
    let (tell, mut gone) = mpsc::unbounded_channel();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(a.http).await;
        let tell = tell.clone();
        tokio::spawn(async move {
            while let Some(packet) = client.packet().await {
                assert!(!packet.starts_with("41"), "told to go for good: {packet}");
            }
            tell.send(()).unwrap();
        });
    }
    drop(tell);

    a.process.terminate().await;
    b.until("it leaves, and its link stands", |report| {
        report.members.iter().any(|member| member.id == "a" && member.state == "leaving" && member.linked)
    })
    .await;
    let (code, reason) = a.admin("/readyz").await;
    assert!(code == 503 && reason.contains("leaving"), "{code} {reason}");
    assert_eq!(a.admin("/livez").await.0, 200);
    // Clients go while the others speak on.
    let (mut said, mut closed) = (0, 0);
    while closed < CLIENTS {
        said += 1;
        speaker.say(&said.to_string()).await;
        while gone.try_recv().is_ok() {
            closed += 1;
        }
        assert!(said < 1_000_000, "{closed} clients have gone");
    }
    let status = a.process.end().await;
    assert_eq!(status.code(), Some(0), "{}", a.process.printed());
    let printed = a.process.printed();
    for slice in 1..=CLIENTS / 20 {
        let line = format!("left={}", CLIENTS - 20 * slice);
        let lines =
            printed.lines().filter(|said| said.contains("closed a slice") && said.contains("clients=20 "));
        assert_eq!(lines.filter(|said| said.ends_with(&line)).count(), 1, "{line}: {printed}");
    }
    // Nothing between the two that live is missing, late or twice.
    for expected in 1..=said {
        let text = loop {
            let text = soon("the next text", heard.recv()).await.unwrap();
            if text != "hello" {
                break text;
            }
        };
        assert_eq!(text, expected.to_string());
    }
    linked(&[&b, &c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    let mut cluster = ChatCluster::new("common");
    cluster.settings = vec![
        ("ROOMCAST_DRAIN_CLIENTS_PER_SLICE", "1"),
        ("ROOMCAST_DRAIN_INTERVAL", "1h"),
        ("ROOMCAST_DRAIN_CLIENTS_TIMEOUT", "10d"),
    ];
    let mut node = cluster.start("a", &[]).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect(node.http).await);
    }
    node.process.terminate().await;
    node.process.says(&["closed a slice of clients", "left=2"]).await;
    assert!(!node.process.has_ended());
    node.process.terminate().await;
    assert_eq!(node.process.end().await.code(), Some(1), "{}", node.process.printed());
    assert!(node.process.printed().contains("asked twice"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_takes_everything_from_the_environment() {
    let secret = ChatCluster::new("common").secret;
    let command = |extra: (&str, &str)| {
        let mut command = Command::new(chat_program());
        command.arg("--node").stdin(Stdio::null());
        command.env("POD_NAME", "chat-0").env("POD_IP", "127.0.0.1").env("ROOMCAST_SECRET", secret.to_text());
        for name in ["ROOMCAST_LISTEN", "ROOMCAST_HTTP", "ROOMCAST_ADMIN"] {
            command.env(name, "127.0.0.1:0");
        }
        command.env("ROOMCAST_LINK_OUTBOX_BYTES", "1MiB").env(extra.0, extra.1).env("RUST_LOG", "info");
        command
    };
    let mut node = Process::spawn("env", command(("ROOMCAST_CLUSTER", "mine")));
    node.line("ready ").await;
    eventually("it says who it is", || {
        let printed = node.printed();
        printed.contains("chat-0") && printed.contains("mine")
    })
    .await;
    node.terminate().await;
    assert_eq!(node.end().await.code(), Some(0), "{}", node.printed());
    for (name, value, says) in [
        ("ROOMCAST_LINK_OUTBOX_BYTE", "1MiB", "ROOMCAST_LINK_OUTBOX_BYTES"),
        ("ROOMCAST_LINK_HEARTBEAT", "soon", "250ms"),
        ("ROOMCAST_ADVERTISE", "0.0.0.0", "nobody can dial it"),
    ] {
        let mut node = Process::spawn("env", command((name, value)));
        assert_eq!(node.end().await.code(), Some(1), "{name}");
        assert!(node.printed().contains(name) && node.printed().contains(says), "{}", node.printed());
    }
}
