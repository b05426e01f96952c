//! A UDP socket that can be cut: nothing goes out or comes in, and nobody is told. It can be slow, too, and it can treat
//! the packets to and from single addresses as a [`Rule`] says.

mod rules;

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use roomcast::quic::endpoint::{self, QuicConfig};
use tokio::time::{Instant, Sleep, sleep_until};

use self::rules::Rules;
use crate::harness::ground::Rule;

/// The socket of a node. Open at first.
pub struct Gate {
    socket: Arc<dyn AsyncUdpSocket>,
    addr: SocketAddr,
    cut: AtomicBool,
    /// Packets that came in during a cut, and were lost.
    lost: AtomicU64,
    /// Bytes a second that go out; none for as many as may be.
    rate: Mutex<Option<Rate>>,
    rules: Rules,
}

/// A limit of what goes out.
#[derive(Debug)]
struct Rate {
    bytes_per_second: f64,
    /// When what was sent so far is through.
    free_at: Instant,
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
        let (cut, lost, rate) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(None));
        let rules = Rules::new(addr.port().into());
        Ok(Arc::new(Self { socket, addr, cut, lost, rate, rules }))
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

    /// From now on not more than so many bytes a second go out. Nothing is lost by that: the sender has to wait.
    pub fn slow_down(&self, bytes_per_second: u32) {
        let rate = Rate { bytes_per_second: f64::from(bytes_per_second), free_at: Instant::now() };
        *self.rate() = Some(rate);
    }

    /// Sets what happens to the packets to one address, from now on. Packets that are delayed stay on their way. Needs a
    /// tokio runtime.
    pub fn rule_to(&self, to: SocketAddr, rule: Rule) {
        self.rules.to(to, rule, &self.socket);
    }

    /// Sets whether the packets from one address are lost, from now on.
    pub fn cut_from(&self, from: SocketAddr, cut: bool) {
        self.rules.from(from, cut);
    }

    /// Packets that came in during a cut, and were lost, and those that a rule lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst) + self.rules.lost()
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// When the next packet may go out; none for at once.
    fn busy_until(&self) -> Option<Instant> {
        self.rate().as_ref().map(|rate| rate.free_at).filter(|free_at| *free_at > Instant::now())
    }

    fn rate(&self) -> MutexGuard<'_, Option<Rate>> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("addr", &self.addr).field("cut", &self.cut).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Gate {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let inner = Arc::clone(&self.socket).create_io_poller();
        Box::pin(Poller { inner, gate: self, wait: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.is_cut() {
            return Ok(());
        }
        if self.busy_until().is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !self.rules.send(transmit, &*self.socket) {
            self.socket.try_send(transmit)?;
        }
        if let Some(rate) = &mut *self.rate() {
            let time = Duration::from_secs_f64(transmit.contents.len() as f64 / rate.bytes_per_second);
            rate.free_at = rate.free_at.max(Instant::now()) + time;
        }
        Ok(())
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
            if let Poll::Ready(Ok(packets)) = received
                && self.is_cut()
            {
                self.lost.fetch_add(packets as u64, Ordering::SeqCst);
                continue;
            }
            if let Poll::Ready(Ok(packets)) = received {
                self.rules.receive(&mut meta[..packets]);
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

/// Waits until the socket takes packets, and until the limit allows one.
#[derive(Debug)]
struct Poller {
    inner: Pin<Box<dyn UdpPoller>>,
    gate: Arc<Gate>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(until) = self.gate.busy_until() {
            let wait = self.wait.get_or_insert_with(|| Box::pin(sleep_until(until)));
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        self.inner.as_mut().poll_writable(cx)
    }
}
