//! How the status endpoint takes connections: no more than a limit, and none keeps its place without getting on. An answer may
//! take as long as it likes, for events that come one by one, as long as it is read.

use std::io::ErrorKind::{ConnectionAborted, ConnectionReset};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};

use super::StatusConfig;
use crate::hub::Hub;
use crate::hub::peer::count;

/// The largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long answers under way may take when the endpoint closes.
const GOODBYE: Duration = Duration::from_secs(5);
/// The pause after the system gave no connection, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves until the sender of `stop` is dropped.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    config: StatusConfig,
    hub: Arc<Hub>,
    mut stop: watch::Receiver<()>,
) {
    let slots = Arc::new(Semaphore::new(config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.changed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    let seat = Seat::new(&hub, slot);
                    let (router, stop) = (router.clone(), stop.clone());
                    tokio::spawn(async move {
                        serve(stream, router, config, stop).await;
                        drop(seat);
                    });
                }
                Err(_) => count(&hub.counters.status_refused, 1),
            },
            // That connection was gone before it was taken.
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(node = %hub.id, %error, "the status endpoint got no connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The place of a connection.
struct Seat {
    hub: Arc<Hub>,
    _slot: OwnedSemaphorePermit,
}

impl Seat {
    fn new(hub: &Arc<Hub>, slot: OwnedSemaphorePermit) -> Self {
        count(&hub.counters.status_connections, 1);
        Self { hub: Arc::clone(hub), _slot: slot }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.counters.status_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection until it ends, however it ends.
async fn serve(stream: TcpStream, router: Router, config: StatusConfig, mut stop: watch::Receiver<()>) {
    let io = TokioIo::new(Impatient { stream, limit: config.write_timeout, waits: None });
    let mut builder = http1::Builder::new();
    // The time for a head runs from the connection, or from the answer before, on: it bounds how long one may be idle, too.
    // A body is not waited for: nobody reads it, so the connection ends with the answer.
    builder.timer(TokioTimer::new()).header_read_timeout(config.request_timeout).max_buf_size(MAX_HEAD_BYTES);
    // Who says that its request was the last one still wants the answer.
    builder.half_close(true);
    let mut connection = pin!(builder.serve_connection(io, TowerToHyperService::new(router)));
    // Why one ends is its client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stop.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(GOODBYE, connection).await;
}

/// A connection whose other side has to read: bytes that it takes none of for `limit` end it.
struct Impatient {
    stream: TcpStream,
    limit: Duration,
    /// Ends when the bytes that wait now have waited for too long; none when nothing waits.
    waits: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn written<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = None;
            return written;
        }
        let limit = self.limit;
        let waits = self.waits.get_or_insert_with(|| Box::pin(sleep(limit)));
        waits.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
