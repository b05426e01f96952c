//! What goes beside the data stream of a link: datagrams and short streams, for gossip and volatile messages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::core::frame::{Ahead, FrameError, Head, LENGTH_BYTES, TRACE_BYTES, decode_head};
use crate::error::{DropReason, LinkError};
use crate::hub::Hub;
use crate::hub::peer::{LinkPath, PeerQueue, PeerRole, count};
use crate::quic::connection::LinkHost;
use crate::quic::handshake::{CloseCode, connection_error, split_frame};

/// The largest message on a short stream of gossip, in bytes. chitchat keeps its messages below 64 KiB.
const MAX_GOSSIP_BYTES: usize = 80 * 1024;
/// The most short streams that one link writes at the same time; more are dropped and counted.
const MAX_SHORT_STREAMS: usize = 16;
/// The longest time that a short stream may take.
const SHORT_STREAM_TIME: Duration = Duration::from_secs(5);
/// The first byte of a short stream.
const STREAM_GOSSIP: u8 = 1;
const STREAM_VOLATILE: u8 = 2;

pub(super) async fn read_datagrams(
    conn: Connection,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
) -> Result<(), LinkError> {
    loop {
        let datagram = conn.read_datagram().await.map_err(|error| connection_error(&error))?;
        volatile_frame(datagram, &peer, &hub)?;
    }
}

fn volatile_frame(mut bytes: Bytes, peer: &PeerQueue, hub: &Hub) -> Result<(), LinkError> {
    let mut ahead = Ahead::default();
    while let Some(frame) = split_frame(&mut bytes, &hub.limits)? {
        let (head, used) = decode_head(&frame, &hub.limits)?;
        let trace = ahead.read(&head)?;
        let head = match head {
            Head::Broadcast(head) => head,
            Head::Trace(_) if peer.reads_traces() => continue,
            _ => return Err(LinkError::Violation("a volatile frame that is no broadcast".into())),
        };
        count(&peer.counters.volatile_received, 1);
        hub.arrived_alone(peer, trace, &head, &frame.slice(used..));
    }
    if ahead.is_open() { Err(FrameError::Trace.into()) } else { Ok(()) }
}

/// Gossip and large volatile messages: one short stream each. QUIC bounds how many are open at the same time.
pub(super) async fn read_short_streams(
    conn: Connection,
    peer: Arc<PeerQueue>,
    hub: Arc<Hub>,
    host: Arc<dyn LinkHost>,
) -> Result<(), LinkError> {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = conn.accept_uni() => {
                let stream = stream.map_err(|error| connection_error(&error))?;
                let (peer, hub, host) = (Arc::clone(&peer), Arc::clone(&hub), Arc::clone(&host));
                streams.spawn(async move {
                    timeout(SHORT_STREAM_TIME, read_short_stream(stream, &peer, &hub, &*host)).await
                });
            }
            Some(done) = streams.join_next() => {
                // A stream that took too long or broke is dropped; one that broke the protocol ends the link.
                if let Ok(Ok(Err(error @ LinkError::Violation(_)))) = done {
                    return Err(error);
                }
            }
        }
    }
}

async fn read_short_stream(
    mut stream: RecvStream,
    peer: &PeerQueue,
    hub: &Hub,
    host: &dyn LinkHost,
) -> Result<(), LinkError> {
    let mut kind = [0u8];
    let lost = |error: String| LinkError::Lost(error);
    stream.read_exact(&mut kind).await.map_err(|error| lost(error.to_string()))?;
    let limit = match kind[0] {
        STREAM_GOSSIP if peer.role == PeerRole::Member => MAX_GOSSIP_BYTES,
        STREAM_VOLATILE => {
            let trace = if peer.reads_traces() { TRACE_BYTES } else { 0 };
            hub.limits.max_frame_bytes + LENGTH_BYTES + trace
        }
        other => return Err(LinkError::Violation(format!("a stream of unknown kind {other}"))),
    };
    // In order: `read_to_end` does not keep it, and quinn-proto 0.11 then counts packets that came twice as read, so that
    // a stream dropped half read has less than none left (a panic with overflow checks, a wrong window without).
    let mut message = BytesMut::new();
    while let Some(chunk) =
        stream.read_chunk(limit + 1 - message.len(), true).await.map_err(|error| lost(error.to_string()))?
    {
        message.extend_from_slice(&chunk.bytes);
        if message.len() > limit {
            return Err(LinkError::Violation(format!("a short stream of more than {limit} bytes")));
        }
    }
    let message = message.freeze();
    if kind[0] == STREAM_GOSSIP {
        host.gossip(peer.advertise, message);
        return Ok(());
    }
    volatile_frame(message, peer, hub)
}

/// The way out for what may be dropped.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    conn: Connection,
    /// Short streams under way.
    short: Arc<AtomicUsize>,
    /// Where they are written: users emit from any thread.
    runtime: Handle,
}

impl LinkPath for Path {
    fn send(&self, frame: Bytes) -> Result<(), DropReason> {
        if self.conn.max_datagram_size().is_some_and(|max| frame.len() <= max) {
            if self.conn.datagram_send_buffer_space() < frame.len() {
                return Err(DropReason::NotWritable);
            }
            return self.conn.send_datagram(frame).map_err(|_| DropReason::NotWritable);
        }
        self.short_stream(STREAM_VOLATILE, frame)
    }

    fn gossip(&self, message: Bytes) -> Result<(), DropReason> {
        self.short_stream(STREAM_GOSSIP, message)
    }

    fn round_trip(&self) -> Duration {
        self.conn.rtt()
    }

    fn remote(&self) -> SocketAddr {
        self.conn.remote_address()
    }

    fn close(&self, code: CloseCode, reason: &str) {
        code.close(&self.conn, reason);
    }
}

impl Path {
    pub(super) fn new(conn: Connection, runtime: Handle) -> Self {
        Self { conn, short: Arc::default(), runtime }
    }

    /// Sends a message on a stream of its own, if one can be opened without waiting.
    fn short_stream(&self, kind: u8, message: Bytes) -> Result<(), DropReason> {
        let under_way = self.short.fetch_add(1, Ordering::AcqRel);
        let opened = if under_way < MAX_SHORT_STREAMS { poll_once(self.conn.open_uni()) } else { None };
        let Some(Ok(mut stream)) = opened else {
            self.short.fetch_sub(1, Ordering::AcqRel);
            return Err(DropReason::NotWritable);
        };
        let short = Arc::clone(&self.short);
        self.runtime.spawn(async move {
            let write = async {
                stream.write_all(&[kind]).await?;
                stream.write_chunk(message).await
            };
            if let Ok(Ok(())) = timeout(SHORT_STREAM_TIME, write).await {
                let _ = stream.finish();
            }
            short.fetch_sub(1, Ordering::AcqRel);
        });
        Ok(())
    }
}

fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
