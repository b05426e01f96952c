//! A UDP socket that can be cut: nothing goes out or comes in, and nobody is told.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use roomcast::quic::endpoint::{self, QuicConfig};

/// The socket of a node. Open at first.
pub struct Gate {
    socket: Arc<dyn AsyncUdpSocket>,
    addr: SocketAddr,
    cut: AtomicBool,
}

impl Gate {
    /// Binds a socket. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use.
    pub fn bind(addr: SocketAddr) -> io::Result<Arc<Self>> {
        let bound = endpoint::bind(addr, &QuicConfig::default()).map_err(io::Error::other)?;
        let addr = bound.socket.local_addr()?;
        let socket = endpoint::async_socket(bound.socket)?;
        Ok(Arc::new(Self { socket, addr, cut: AtomicBool::new(false) }))
    }

    /// The address that it is bound to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on every packet is lost, in both directions.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// Packets pass again.
    pub fn heal(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("addr", &self.addr).field("cut", &self.cut).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Gate {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.is_cut() { Ok(()) } else { self.socket.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = self.socket.poll_recv(cx, bufs, meta);
            // What is lost must still be taken from the socket, or nothing would wake us after the cut.
            if matches!(received, Poll::Ready(Ok(_))) && self.is_cut() {
                continue;
            }
            return received;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
