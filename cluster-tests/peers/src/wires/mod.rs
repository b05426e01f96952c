//! The systems. Each sends messages from the emitter to all receivers, and from a receiver back.

#[cfg(feature = "nats")]
pub(crate) mod nats;
pub(crate) mod quic;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod roomcast;
#[cfg(feature = "socketioxide")]
pub(crate) mod socketio;
pub(crate) mod tcp;
#[cfg(feature = "zenoh")]
pub(crate) mod zenoh;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::Outcome;
use crate::message::Message;

/// Takes what comes from the other side, one message at a time.
pub(crate) type Sink = Arc<dyn Fn(Message) + Send + Sync>;

/// Where receivers listen, in systems with names.
pub(crate) const LOBBY: &str = "lobby";
/// Where the emitter listens.
pub(crate) const BACK: &str = "back";

/// What a side of a system needs to know.
pub(crate) struct Place {
    /// The broker, or where the emitter listens.
    pub(crate) address: SocketAddr,
    /// Which kind of the system.
    #[cfg_attr(not(feature = "zenoh"), expect(dead_code, reason = "Zenoh alone has it"))]
    pub(crate) variant: &'static str,
    /// How many are on the other side.
    pub(crate) peers: usize,
    /// Which receiver this is.
    pub(crate) at: usize,
    /// What the emitter's side said; one line.
    #[cfg_attr(not(feature = "zenoh"), expect(dead_code, reason = "Zenoh alone has it"))]
    pub(crate) notice: String,
    /// The emitter alone has it: receivers come when something was sent.
    pub(crate) bound: Option<oneshot::Sender<String>>,
}

impl Place {
    /// The names that this side listens to and sends to.
    pub(crate) fn names(&self) -> (&'static str, &'static str) {
        if self.bound.is_some() { (BACK, LOBBY) } else { (LOBBY, BACK) }
    }

    /// The emitter's side is there: receivers may come, and are told this.
    pub(crate) fn announce(&mut self, notice: &str) {
        if let Some(bound) = self.bound.take() {
            // It fails when the emitter has ended.
            let _ = bound.send(notice.to_owned());
        }
    }
}

/// One side of a system.
pub(crate) trait Wire: Sized + Send {
    /// Whether messages of one sender come in their order.
    const ORDERED: bool = true;

    /// Starts this side. What comes goes into the sink.
    fn open(place: Place, sink: Sink) -> impl Future<Output = Outcome<Self>> + Send;

    /// Sends all of these, in the fastest way that the system has for many. Returns when the next may be sent.
    fn send(&mut self, messages: &[Message]) -> impl Future<Output = Outcome<()>> + Send;

    /// Sends one that must not wait for others.
    fn send_now(&mut self, message: Message) -> impl Future<Output = Outcome<()>> + Send {
        async move { self.send(&[message]).await }
    }
}
