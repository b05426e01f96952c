//! Connections of clients that can be closed a few at a time: for servers on axum, also those with Socket.IO.
//!
//! ```no_run
//! # async fn doc(node: roomcast::Node, app: axum::Router) -> std::io::Result<()> {
//! use roomcast::connections::Connections;
//!
//! let connections = Connections::new();
//! let listener = connections.listener(tokio::net::TcpListener::bind("0.0.0.0:3000").await?);
//! tokio::spawn(async move { axum::serve(listener, app).await });
//! // Later, when the process is asked to end:
//! node.leave().await;
//! connections.stop_accepting();
//! connections.close_in_slices(&node).await;
//! node.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! A connection that is closed here ends as if the network had broken, so that clients come back by themselves: the official
//! Socket.IO client does after a `transport close`, but not after a disconnection by the server
//! (`io server disconnect`).

use std::collections::BTreeMap;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{oneshot, watch};

use crate::hub::lock;
use crate::node::Node;

/// The open connections of one or several listeners. A cheap clone.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
    accepting: Arc<watch::Sender<bool>>,
}

/// Who can be closed, the oldest first.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    closers: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Connections {
    /// None yet.
    pub fn new() -> Self {
        Self { open: Arc::default(), accepting: Arc::new(watch::channel(true).0) }
    }

    /// A listener whose connections are counted here. Cost: about 150 bytes each.
    pub fn listener<L: Listener>(&self, listener: L) -> Tracked<L> {
        Tracked { listener: Some(listener), accepting: self.accepting.subscribe(), connections: self.clone() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.open).closers.len()
    }

    /// Closes the listeners; connections that stand are left alone. What asks for a connection from now on is refused by the
    /// system.
    pub fn stop_accepting(&self) {
        self.accepting.send_replace(false);
    }

    /// Closes up to so many connections, the oldest first; returns how many.
    ///
    /// What was written to one is still sent; what waits in a server above it is not.
    pub fn close(&self, count: usize) -> usize {
        let mut open = lock(&self.open);
        let count = count.min(open.closers.len());
        let closers: Vec<_> = (0..count).filter_map(|_| open.closers.pop_first()).collect();
        drop(open);
        // Dropping wakes whoever reads.
        closers.len()
    }

    /// Closes all connections in slices, as [`Config::drain`](crate::Config::drain) says; those that came in the meantime at
    /// the end. Returns the number of slices.
    pub async fn close_in_slices(&self, node: &Node) -> usize {
        let mut slices = node.client_slices(self.count());
        let mut closed = 0;
        while let Some(slice) = slices.next().await {
            let clients = self.close(slice);
            closed += 1;
            tracing::info!(node = %node.id(), clients, left = self.count(), "closed a slice of clients");
        }
        self.close(usize::MAX);
        closed
    }

    fn track<I>(&self, io: I) -> Connection<I> {
        let (closer, closing) = oneshot::channel();
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.closers.insert(number, closer);
        drop(open);
        Connection { io, closing: Some(closing), number, connections: self.clone() }
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::new()
    }
}

/// A listener whose connections are counted.
#[derive(Debug)]
pub struct Tracked<L> {
    /// None once it is closed.
    listener: Option<L>,
    accepting: watch::Receiver<bool>,
    connections: Connections,
}

impl<L: Listener> Listener for Tracked<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        if let Some(listener) = &mut self.listener {
            let accepted = tokio::select! {
                biased;
                _ = self.accepting.wait_for(|accepting| !accepting) => None,
                accepted = listener.accept() => Some(accepted),
            };
            if let Some((io, addr)) = accepted {
                return (self.connections.track(io), addr);
            }
        }
        self.listener = None;
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        let closed = || io::Error::new(io::ErrorKind::NotConnected, "the listener is closed");
        self.listener.as_ref().ok_or_else(closed)?.local_addr()
    }
}

/// One connection. Reading ends when it is closed here.
#[derive(Debug)]
pub struct Connection<I> {
    io: I,
    /// None once it is closed.
    closing: Option<oneshot::Receiver<()>>,
    number: u64,
    connections: Connections,
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        lock(&self.connections.open).closers.remove(&self.number);
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let open = self.closing.as_mut().is_some_and(|closing| pin!(closing).poll(cx).is_pending());
        if !open {
            self.closing = None;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn connections_end_when_they_are_closed_here_the_oldest_first() {
        let connections = Connections::new();
        let mut listener = connections.listener(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let addr = listener.local_addr().unwrap();
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            near.push(TcpStream::connect(addr).await.unwrap());
            far.push(listener.accept().await.0);
        }
        near[0].write_all(b"a").await.unwrap();
        assert_eq!(far[0].read_u8().await.unwrap(), b'a');
        assert_eq!((connections.count(), connections.close(2), connections.count()), (3, 2, 1));
        for closed in &mut far[..2] {
            assert_eq!(closed.read(&mut [0; 8]).await.unwrap(), 0);
            closed.write_all(b"last words").await.unwrap();
        }
        near[2].write_all(b"b").await.unwrap();
        assert_eq!(far[2].read_u8().await.unwrap(), b'b', "the others go on");
        drop(far);
        assert_eq!((connections.count(), connections.close(usize::MAX)), (0, 0));
        let mut said = String::new();
        near[1].read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "last words");

        connections.stop_accepting();
        assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err());
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
