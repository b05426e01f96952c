//! Clients of the official JavaScript library: one Node.js process for all clients of a test.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::chat::ChatNode;
use crate::process::Process;
use crate::requirement::{self, JS};
use crate::wait::eventually;

/// The process in which clients live.
pub struct Clients {
    process: Process,
    next_call: AtomicU64,
    heard: Mutex<Heard>,
}

/// How a client talks to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A WebSocket from the start.
    WebSocket,
    /// Long-polling, and no upgrade.
    Polling,
}

/// A client that keeps connecting until it is told to go.
pub struct Client {
    /// Its name in this process.
    pub name: String,
    clients: Arc<Clients>,
}

/// A message as a client got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The room it was for.
    pub room: String,
    /// Its text.
    pub text: String,
    /// The socket that sent it.
    pub from: String,
    /// The node that it was sent on.
    pub node: String,
    /// Its bytes, if it had some.
    pub data: Option<Vec<u8>>,
}

/// What the process said.
#[derive(Default)]
struct Heard {
    /// How many of its lines are in here.
    lines: usize,
    answers: HashMap<u64, Result<Value, String>>,
    clients: HashMap<String, State>,
}

/// What is known of one client.
#[derive(Default)]
struct State {
    /// The socket ids it had; the last one is its own while it is connected.
    sids: Vec<String>,
    transport: String,
    is_connected: bool,
    messages: Vec<Message>,
    /// What else it got, and no test has waited for yet.
    events: HashMap<String, VecDeque<Value>>,
}

impl Clients {
    /// Starts the process; nothing where Node.js or its packages are missing.
    ///
    /// # Panics
    /// As [`requirement::require`].
    pub fn start() -> Option<Arc<Self>> {
        let mut command = Command::new(requirement::node()?);
        command.arg(Path::new(JS).join("clients.mjs"));
        let process = Process::spawn("clients.mjs", command);
        Some(Arc::new(Self { process, next_call: AtomicU64::new(0), heard: Mutex::default() }))
    }

    /// Connects a client to a node, and waits until it is.
    ///
    /// # Panics
    /// When it does not connect, or not by `transport`.
    pub async fn connect(
        self: &Arc<Self>,
        name: impl Into<String>,
        node: &ChatNode,
        parser: &str,
        transport: Transport,
    ) -> Client {
        let client = Client { name: name.into(), clients: Arc::clone(self) };
        let transport = transport.name();
        let options = json!({ "url": node.url(), "parser": parser, "transport": transport });
        client.call("open", options).await;
        client.connected(1).await;
        assert_eq!(client.see(|state| state.transport.clone()), transport);
        client
    }

    /// What was heard until now.
    fn heard(&self) -> MutexGuard<'_, Heard> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        for line in self.process.lines_from(heard.lines) {
            heard.lines += 1;
            heard.take(&serde_json::from_str(&line).expect("the script prints JSON"));
        }
        heard
    }

    async fn call(&self, mut call: Value) -> Value {
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        call["call"] = number.into();
        self.process.write(&call.to_string()).await;
        let mut answer = None;
        eventually(format!("an answer to {call}"), || {
            answer = self.heard().answers.remove(&number);
            answer.is_some()
        })
        .await;
        match answer.expect("the condition holds") {
            Ok(result) => result,
            Err(error) => panic!("{call}: {error}"),
        }
    }
}

impl Transport {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::WebSocket, Self::Polling];

    /// Its name in Engine.IO.
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Polling => "polling",
        }
    }
}

impl Client {
    /// Waits until it has connected for the `times`th time, and returns its socket id.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn connected(&self, times: usize) -> String {
        let what = format!("client {} connects ({times})", self.name);
        eventually(what, || self.see(|state| state.is_connected && state.sids.len() >= times)).await;
        self.sid()
    }

    /// Its newest socket id.
    pub fn sid(&self) -> String {
        self.see(|state| state.sids.last().cloned()).expect("it was connected")
    }

    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        self.see(|state| state.is_connected)
    }

    /// The messages it got, oldest first.
    pub fn messages(&self) -> Vec<Message> {
        self.see(|state| state.messages.clone())
    }

    /// The texts of the messages it got, oldest first.
    pub fn texts(&self) -> Vec<String> {
        self.see(|state| state.messages.iter().map(|message| message.text.clone()).collect())
    }

    /// Waits until it has a message with this text.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn gets(&self, text: &str) {
        let has = |state: &mut State| state.messages.iter().any(|message| message.text == text);
        eventually(format!("client {} gets {text:?}", self.name), || self.see(has)).await;
    }

    /// Waits for an event that is as `holds` says, and returns its data. Those of this name that came before are
    /// forgotten.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn hears(&self, event: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        eventually(format!("client {} hears {event} as it should be", self.name), || {
            found = self.see(|state| {
                let events = state.events.get_mut(event)?;
                let at = events.iter().position(&holds)?;
                events.drain(..=at).next_back()
            });
            found.is_some()
        })
        .await;
        found.expect("the condition holds")
    }

    /// What it acknowledges messages with from now on; nothing: not at all. It begins with true.
    ///
    /// # Panics
    /// When the client cannot.
    pub async fn acknowledges_with(&self, value: Option<bool>) {
        self.call("acknowledge", json!({ "value": value })).await;
    }

    /// Joins a room. Other nodes may learn of it later.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn join(&self, room: &str) {
        self.accepted("join", json!(room)).await;
    }

    /// Leaves a room.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn leave(&self, room: &str) {
        self.accepted("leave", json!(room)).await;
    }

    /// Sends a message, and waits until the server has handed it on.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn say(&self, room: &str, text: &str) {
        self.accepted("message", json!({ "room": room, "text": text })).await;
    }

    /// Sends a message with bytes, and waits until the server has handed it on.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn say_bytes(&self, room: &str, text: &str, data: &[u8]) {
        let data = json!({ "bytes": to_hex(data) });
        self.accepted("message", json!({ "room": room, "text": text, "data": data })).await;
    }

    /// Emits an event, and returns what the server acknowledges.
    ///
    /// # Panics
    /// When it does not.
    pub async fn emit(&self, event: &str, data: Value) -> Value {
        self.call("emit", json!({ "event": event, "data": data })).await
    }

    /// Emits an event without asking for an acknowledgement.
    ///
    /// # Panics
    /// When the client cannot.
    pub async fn send(&self, event: &str, data: Value) {
        self.call("send", json!({ "event": event, "data": data })).await;
    }

    /// Goes with a goodbye.
    ///
    /// # Panics
    /// When the client cannot.
    pub async fn disconnect(&self) {
        self.call("disconnect", json!({})).await;
        eventually(format!("client {} is gone", self.name), || !self.is_connected()).await;
    }

    /// Goes without a goodbye. For WebSockets only.
    ///
    /// # Panics
    /// When the client cannot.
    pub async fn vanish(&self) {
        self.call("vanish", json!({})).await;
        eventually(format!("client {} is gone", self.name), || !self.is_connected()).await;
    }

    async fn accepted(&self, event: &str, data: Value) {
        let what = format!("{event} {data} by {}", self.name);
        assert_eq!(self.emit(event, data).await, json!({ "ok": true }), "{what}");
    }

    async fn call(&self, op: &str, mut call: Value) -> Value {
        call["op"] = op.into();
        call["client"] = self.name.as_str().into();
        self.clients.call(call).await
    }

    fn see<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(self.clients.heard().clients.entry(self.name.clone()).or_default())
    }
}

impl Heard {
    fn take(&mut self, line: &Value) {
        if let Some(call) = line["call"].as_u64() {
            let answer = match line.get("error") {
                Some(error) => Err(text(error)),
                None => Ok(line["result"].clone()),
            };
            self.answers.insert(call, answer);
            return;
        }
        let state = self.clients.entry(text(&line["client"])).or_default();
        match line["is"].as_str() {
            Some("connected") => {
                state.is_connected = true;
                state.transport = text(&line["transport"]);
                state.sids.push(text(&line["sid"]));
            }
            Some("disconnected") => state.is_connected = false,
            Some("event") if line["event"] == "message" => {
                assert_eq!(line["args"].as_array().map(Vec::len), Some(1), "{line}");
                state.messages.push(Message::read(&line["args"][0]));
            }
            Some("event") => {
                state.events.entry(text(&line["event"])).or_default().push_back(line["args"][0].clone());
            }
            _ => panic!("nobody expects {line}"),
        }
    }
}

impl Message {
    fn read(message: &Value) -> Self {
        let data = message.get("data").map(|data| match data["bytes"].as_str().and_then(from_hex) {
            Some(bytes) => bytes,
            None => panic!("these are no bytes: {data}"),
        });
        let [room, text, from, node] = ["room", "text", "from", "node"].map(|name| text(&message[name]));
        Self { room, text, from, node, data }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("this is no text: {value}")).to_owned()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_they_were_written() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex(""), Some(vec![]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
