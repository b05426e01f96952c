//! A link at work: runs its reader, its writer and what goes beside them, until one of them ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::core::interest::{InterestChange, InterestDelta};
use crate::core::link::LinkState;
use crate::error::LinkError;
use crate::hub::Hub;
use crate::hub::feed::InterestSnapshot;
use crate::hub::peer::{PeerQueue, PeerRole};
use crate::quic::guest;
use crate::quic::handshake::{CloseCode, Greeted, connection_error};
use crate::quic::reader::Reader;
use crate::quic::short::{Path, read_datagrams, read_short_streams};
use crate::quic::stall::watch;
use crate::quic::together::either;
use crate::quic::writer::Writer;

/// How long a peer that has finished its stream is given to close with the reason.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

/// The least time between two log lines about lost frames of one link and direction.
const GAP_LOG_PAUSE: Duration = Duration::from_secs(1);

/// A part of a peer's interest.
#[derive(Debug)]
pub(crate) enum InterestUpdate {
    /// A snapshot of this version begins.
    Begin(u64),
    /// A part of it.
    Chunk(InterestChange),
    /// It is complete.
    End,
    /// A delta.
    Delta(InterestDelta),
}

/// Whether an interest update could be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    Yes,
    /// Something was missed: a new snapshot is wanted.
    Resync,
}

/// What a link needs from the node.
#[async_trait]
pub(crate) trait LinkHost: Send + Sync + 'static {
    /// Applies a part of the peer's interest; it is applied when this returns.
    async fn interest(&self, peer: &Arc<PeerQueue>, update: InterestUpdate) -> Result<Applied, LinkError>;
    /// This node's whole interest.
    async fn snapshot(&self) -> Result<InterestSnapshot, LinkError>;
    /// A gossip message of the peer that advertises `from`. Must not wait.
    fn gossip(&self, from: SocketAddr, message: Bytes);
}

/// The signals from a link's reader to its writer.
#[derive(Default)]
pub(super) struct Signals {
    /// An acknowledgement is due.
    pub(super) ack: AtomicBool,
    /// The peer wants a snapshot of our interest.
    pub(super) snapshot_wanted: AtomicBool,
    /// We want a snapshot of the peer's interest.
    pub(super) want_snapshot: AtomicBool,
    /// Bytes read from the data stream so far: the heartbeat says so.
    pub(super) read: AtomicU64,
    /// What the peer says that it has read.
    pub(super) heard: AtomicU64,
    /// The version of this node's interest that was sent.
    pub(super) interest_sent: AtomicU64,
    /// Odd while the reader has something in hand, and while the writer waits for this node's rooms.
    pub(super) reader: AtomicU64,
    pub(super) writer: AtomicU64,
}

/// When to log lost frames: at once, then their sum, at most once in [`GAP_LOG_PAUSE`]. A peer that is always too slow would
/// fill the log.
#[derive(Default)]
pub(super) struct GapLog {
    frames: u64,
    next: Option<Instant>,
}

impl GapLog {
    /// Frames were lost, or none. Says how many to log now.
    pub(super) fn due(&mut self, lost: u64) -> Option<u64> {
        self.frames += lost;
        if self.frames == 0 || self.next.is_some_and(|next| Instant::now() < next) {
            return None;
        }
        self.next = Some(Instant::now() + GAP_LOG_PAUSE);
        Some(std::mem::take(&mut self.frames))
    }
}

/// What both directions of a link work with.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) peer: Arc<PeerQueue>,
    pub(super) hub: Arc<Hub>,
    pub(super) host: Arc<dyn LinkHost>,
    pub(super) signals: Arc<Signals>,
}

/// Makes a greeted connection the way to its peer. [`run`] comes next.
pub(crate) fn open(greeted: &Greeted, peer: &PeerQueue, runtime: Handle) {
    // First the version: who finds the path finds what may be said on it.
    peer.set_version(greeted.version());
    peer.set_path(Some(Box::new(Path::new(greeted.conn.clone(), runtime))));
    peer.set_state(LinkState::Syncing);
}

/// Runs a link until it ends; says why. When it returns, nothing of it is left running.
pub(crate) async fn run(
    greeted: Greeted,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
    host: Arc<dyn LinkHost>,
) -> LinkError {
    let Greeted { conn, send, reader, .. } = greeted;
    let own_resume = peer.own_resume();
    let Some(inbox) = peer.lend_inbox() else {
        peer.set_path(None);
        peer.set_state(LinkState::Down);
        return LinkError::Violation("another link of this peer still reads".into());
    };

    if peer.role != PeerRole::Guest {
        // What was applied of another link may be counted from another memory of the peer: see `Reader::start`. The numbers
        // of an emitter only grow.
        peer.applied.store(0, Ordering::Release);
    }
    peer.relayed.store(0, Ordering::Release);
    let (resume_tx, resume_rx) = oneshot::channel();
    let signals = Arc::new(Signals::default());
    let mut tasks = JoinSet::new();
    let ends = Ends { peer: Arc::clone(&peer), hub: Arc::clone(&hub), host: Arc::clone(&host), signals };
    if peer.role == PeerRole::Guest {
        tasks.spawn(guest::confirm(ends.clone()));
    }
    tasks.spawn(watch(ends.clone()));
    let read = Reader::new(reader, inbox, ends.clone(), resume_tx);
    let write = Writer::new(send, ends);
    let leaving = conn.clone();
    let read = async move {
        let end = read.run().await;
        // A peer that leaves finishes its stream, waits until all of it is here, and closes with the reason.
        if matches!(end, Err(LinkError::Lost(_)))
            && let Ok(closed) = tokio::time::timeout(GOODBYE_TIME, leaving.closed()).await
        {
            return Err(connection_error(&closed));
        }
        end
    };
    let is_host = peer.role == PeerRole::Host;
    let write = async move {
        let end = write.run(own_resume, resume_rx).await;
        if is_host && !matches!(end, Err(LinkError::Stopping)) {
            // The node's last word may be here and not be read yet. The reader ends when it has read all there is.
            tokio::time::sleep(GOODBYE_TIME).await;
        }
        end
    };
    tasks.spawn(either(read, write));
    if !is_host {
        tasks.spawn(read_datagrams(conn.clone(), Arc::clone(&peer), Arc::clone(&hub)));
        tasks.spawn(read_short_streams(conn.clone(), Arc::clone(&peer), Arc::clone(&hub), host));
    }

    let mut error = match tasks.join_next().await {
        Some(Ok(Err(error))) => error,
        Some(Err(panic)) => LinkError::Lost(format!("a task of the link failed: {panic}")),
        Some(Ok(Ok(()))) | None => LinkError::Lost("a task of the link ended".into()),
    };
    // The connection knows best why it ended.
    if let Some(closed) = conn.close_reason()
        && matches!(error, LinkError::Lost(_))
    {
        error = connection_error(&closed);
    }
    let code = match &error {
        LinkError::Violation(_) => CloseCode::Violation,
        LinkError::Silent(_) => CloseCode::Silent,
        LinkError::Stalled { .. } => CloseCode::Stalled,
        LinkError::Stopping => CloseCode::Left,
        _ => CloseCode::Refused,
    };
    peer.set_path(None);
    peer.set_state(LinkState::Down);
    code.close(&conn, &error.to_string());
    tasks.shutdown().await;
    peer.link_ended(hub.now_ms());
    error
}
