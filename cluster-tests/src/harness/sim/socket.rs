//! The UDP socket of a simulated node.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::Instant;

use super::network::Network;

/// Where the clock of a node stands against that of the ground.
#[derive(Debug)]
pub(crate) struct Clock {
    /// What the clock of the node showed, or would have shown, when the ground was at `began`.
    start: Mutex<Instant>,
    began: Duration,
}

impl Clock {
    /// The clock of a runtime that begins at the time `began` of the ground. Must be called on it.
    pub(crate) fn new(began: Duration) -> Self {
        Self { start: Mutex::new(Instant::now()), began }
    }

    /// The clock of the node at a time of the ground, not before it began.
    pub(crate) fn at(&self, time: Duration) -> Instant {
        self.start() + time.saturating_sub(self.began)
    }

    /// The time of the ground. Must be called on the runtime of the node.
    pub(crate) fn now(&self) -> Duration {
        self.began + Instant::now().saturating_duration_since(self.start())
    }

    /// The clock of the node was advanced alone: it is ahead by that from now on.
    pub(crate) fn ahead(&self, by: Duration) {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }

    fn start(&self) -> Instant {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The socket of one run of a node.
pub(crate) struct Socket {
    pub(crate) network: Arc<Network>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) addr: SocketAddr,
    pub(crate) run: u64,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("addr", &self.addr).field("run", &self.run).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let now = self.clock.now();
        for packet in transmit.contents.chunks(size) {
            self.network.send(self.run, self.addr, transmit.destination, packet, now);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let now = self.clock.now();
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(packet) = self.network.receive(self.addr, self.run, now, cx.waker()) else { break };
            let len = packet.data.len().min(buf.len());
            buf[..len].copy_from_slice(&packet.data[..len]);
            *meta = RecvMeta { addr: packet.from, len, stride: len, ecn: None, dst_ip: Some(self.addr.ip()) };
            count += 1;
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn max_transmit_segments(&self) -> usize {
        10
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// The network takes everything at once.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
