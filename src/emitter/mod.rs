//! Publishing from a process that is no server: a job, a cron script, an API that has no clients of its own.
//!
//! An [`Emitter`] holds one link to some node of the cluster, which passes on what it sends. It is no member: it is in
//! nobody's list of members, counts as no server and needs no port that others reach.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use roomcast::{ClusterSecret, Emitter};
//!
//! let secret = ClusterSecret::from_env("ROOMCAST_SECRET")?;
//! let emitter = Emitter::connect(["10.0.0.7:7946", "10.0.0.8:7946"], secret).await?;
//! emitter.of("/chat").to("lobby").except("muted").emit("message", "the shop opens")?;
//! emitter.flush().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! * Messages are accepted at once into a bounded outbox and sent in order, each applied by a node at most once.
//!   [`Emitter::flush`] says when everything is applied, or how many messages may be lost.
//! * A link that breaks and comes back to the same run of its node within [`EmitterBuilder::move_after`] loses nothing.
//! * A node that leaves with [`drain`](crate::Node::drain) says what it has applied: the next node gets the rest, and
//!   nothing is lost.
//! * A node that dies may or may not have applied what it had not acknowledged. That is not sent again; it is reported by
//!   [`Emitter::flush`] and as [`Event::Gap`](crate::Event::Gap). What had not been sent goes to the next node.
//! * What one node applied for the emitter before it went can reach other nodes after what the next node applies.
//!
//! Files: `mod.rs` the emitter, `builder.rs` its settings and its start, `selection.rs` whom something is for and what it is, `link.rs` the link,
//! `encode.rs` the forms that clients of socketioxide understand.

mod builder;
mod encode;
mod link;
mod selection;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::{IdError, StartError};
use crate::event::Events;
use crate::hub::peer::PeerQueue;
use crate::hub::{Hub, handlers};
use crate::ids::{Namespace, NodeId};
use crate::plain::Rooms;
use crate::quic::tls::ClusterSecret;

pub use crate::plain::{Gathered, SocketInfo};
pub use builder::EmitterBuilder;
pub use encode::Parser;
pub use selection::Selection;

/// Publishes from a process that is no server. Cheap to clone; the last clone that is dropped closes the link at once, so
/// call [`close`](Self::close) first to lose nothing. See [the module](self) for what is promised.
#[derive(Clone)]
pub struct Emitter {
    inner: Arc<Inner>,
}

struct Inner {
    /// Without fronts, and with one peer: whatever node the link goes to.
    hub: Arc<Hub>,
    queue: Arc<PeerQueue>,
    endpoint: quinn::Endpoint,
    parser: Parser,
    request_timeout: Duration,
    state: watch::Sender<EmitterState>,
    /// Lost frames that [`Emitter::flush`] has reported.
    reported: AtomicU64,
    tasks: Vec<JoinHandle<()>>,
}

/// Where the link of an emitter goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmitterState {
    /// Nowhere: a node is looked for. What is emitted waits in the outbox; volatile messages are dropped.
    Searching,
    /// To this node.
    Linked(NodeId),
    /// The emitter was closed.
    Closed,
}

/// Why there is no emitter. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Neither a secret nor certificates were given, or both. Nothing was started.
    #[error("connect: give the secret of the cluster, or certificates, and not both")]
    Secret,
    /// No seed was given. Nothing was started.
    #[error("connect: give the address of at least one node as host:port")]
    NoSeeds,
    /// A setting is unusable, or the system refuses a socket. Nothing was started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Every node refused, for a reason that waiting does not mend: another secret, another cluster name, the limit of
    /// emitters. Nothing is left running.
    #[error("connect: refused by {0}")]
    Refused(String),
    /// No node took the emitter in time. Nothing is left running.
    #[error("connect: no node within {} s: {last}", within.as_secs_f32())]
    Unreachable {
        /// The time given.
        within: Duration,
        /// What each address said last.
        last: String,
    },
}

/// Why something was not sent. Nobody gets it; what was accepted before is not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitterError {
    /// The namespace or a room name is unusable. Nothing was sent.
    #[error(transparent)]
    Id(#[from] IdError),
    /// More rooms than one frame can name. Nothing was sent.
    #[error("emit to, except, join or leave {got} rooms at once: the limit is {limit}")]
    TooManyRooms {
        /// The rooms given.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The data cannot be encoded for the parser. Nothing was sent.
    #[error("encode the data: {0}")]
    Encode(String),
    /// The message is over the limit of a frame. Nothing was sent.
    #[error("emit a message of {bytes} bytes: the limit is {limit}")]
    TooLarge {
        /// The size of the payload.
        bytes: usize,
        /// [`LinkConfig::max_frame_bytes`](crate::config::LinkConfig::max_frame_bytes).
        limit: usize,
    },
    /// The outbox is full, because the node is slow or there is none: [`Emitter::flush`], or try later. Nothing was sent.
    #[error("emit: {limit} bytes wait to be sent or acknowledged, which is the limit")]
    Full {
        /// [`LinkConfig::outbox_bytes`](crate::config::LinkConfig::outbox_bytes).
        limit: usize,
    },
    /// As many questions wait for answers as may. Nothing was sent.
    #[error("ask: {limit} questions wait for answers, which is the limit")]
    TooManyRequests {
        /// [`LinkConfig::max_requests`](crate::config::LinkConfig::max_requests).
        limit: usize,
    },
    /// The emitter was closed. Nothing was sent.
    #[error("emit: the emitter is closed")]
    Closed,
}

/// Messages that may be lost: sent to a node that went before it acknowledged them, or given up by closing. They were
/// reported once and are not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("deliver {frames} messages: the node went, or the emitter was closed, before they were acknowledged")]
pub struct Lost {
    /// How many messages, orders and questions: each may have been applied or not.
    pub frames: u64,
}

impl Emitter {
    /// Links to a node of the cluster `roomcast` with the defaults; [`builder`](Self::builder) for the rest.
    ///
    /// # Errors
    /// [`ConnectError`]. Cancel safe: nothing is left running.
    pub async fn connect<S: ToString>(
        seeds: impl IntoIterator<Item = S>,
        secret: ClusterSecret,
    ) -> Result<Self, ConnectError> {
        Self::builder().seeds(seeds).secret(secret).connect().await
    }

    /// A builder with the defaults: cluster `roomcast`, the common parser, no seeds.
    pub fn builder() -> EmitterBuilder {
        EmitterBuilder::new()
    }

    /// Everyone in a namespace; narrow it down with [`Selection::to`] and the like. An unusable path is an error of what
    /// is done next.
    pub fn of(&self, path: impl AsRef<str>) -> Selection<'_> {
        Selection::new(self, Namespace::of_user(path.as_ref()))
    }

    /// The members of some rooms of the namespace `/`.
    pub fn to<'r>(&self, rooms: impl Rooms<'r>) -> Selection<'_> {
        self.of("/").to(rooms)
    }

    /// An event for the servers themselves, not for clients: those that handle it with `Node::on_server_event`. Data is
    /// JSON.
    ///
    /// # Errors
    /// [`EmitterError`]; nobody gets it.
    pub fn server_side_emit<T: serde::Serialize + ?Sized>(
        &self,
        name: &str,
        data: &T,
    ) -> Result<(), EmitterError> {
        Selection::new(self, Namespace::new(handlers::NODE)).server_side_emit(name, data)
    }

    /// Waits until everything that was accepted before this call is applied: by the node of the link and by those that
    /// need it, but for at most 2 s by a node that is slow or away. Takes about as long as the nodes' `heartbeat` (500 ms).
    /// Waits for as long as no node is found. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`], with the number of frames that may be lost and that no flush has reported before.
    pub async fn flush(&self) -> Result<(), Lost> {
        self.inner.queue.caught_up().await;
        self.inner.lost()
    }

    /// Flushes, for at most [`LinkConfig::drain_timeout`](crate::config::LinkConfig::drain_timeout), and says goodbye.
    /// What is emitted from now on is an error.
    ///
    /// # Errors
    /// As [`flush`](Self::flush), what had to be given up included.
    pub async fn close(&self) -> Result<(), Lost> {
        let inner = &self.inner;
        let goodbye = async {
            inner.queue.caught_up().await;
            inner.queue.say_goodbye().await;
        };
        let _ = timeout(inner.hub.config.link.drain_timeout, goodbye).await;
        inner.shut_down();
        let _ = timeout(Duration::from_secs(1), inner.endpoint.wait_idle()).await;
        inner.lost()
    }

    /// Where the link goes now.
    pub fn state(&self) -> EmitterState {
        self.inner.state.borrow().clone()
    }

    /// What happens from now on: [`Event::LinkUp`](crate::Event::LinkUp) and [`LinkDown`](crate::Event::LinkDown) with the
    /// node of the link, and [`Gap`](crate::Event::Gap) with the peer `cluster` for frames that may be lost.
    pub fn events(&self) -> Events {
        Events::new(self.inner.hub.events.subscribe())
    }

    /// Frames that may be lost, since the start: the sum of what [`flush`](Self::flush) reports.
    pub fn lost(&self) -> u64 {
        self.inner.queue.counters.gap_sent.load(Ordering::Relaxed)
    }

    /// Frames and bytes that wait to be sent or acknowledged.
    pub fn backlog(&self) -> (u64, usize) {
        self.inner.queue.depth()
    }
}

impl fmt::Debug for Emitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitter").field("id", &self.inner.hub.id).field("state", &self.state()).finish()
    }
}

impl Inner {
    fn lost(&self) -> Result<(), Lost> {
        let all = self.queue.counters.gap_sent.load(Ordering::Relaxed);
        let frames = all - self.reported.fetch_max(all, Ordering::AcqRel).min(all);
        if frames == 0 { Ok(()) } else { Err(Lost { frames }) }
    }

    fn shut_down(&self) {
        if self.state.send_replace(EmitterState::Closed) == EmitterState::Closed {
            return;
        }
        for task in &self.tasks {
            task.abort();
        }
        link::close(&self.endpoint);
        let frames = self.hub.remove_peer(&self.queue);
        if frames > 0 {
            tracing::warn!(node = %self.hub.id, frames, "closed before these frames were acknowledged");
        }
        self.hub.stop();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// A payload of nothing.
fn nothing() -> Bytes {
    Bytes::new()
}
