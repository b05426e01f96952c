//! The service that clients connect to: connections go in turn to the pods that are ready.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::task::JoinSet;

use crate::netns::Pod;

/// The port of the service.
const PORT: u16 = 80;
/// How long a pod may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pods that get new connections. Clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Endpoints(Arc<Mutex<Turns>>);

#[derive(Debug, Default)]
struct Turns {
    ready: Vec<SocketAddr>,
    next: usize,
}

/// A running service; it ends when it is dropped, and its connections break. Those to a pod that is no longer an
/// endpoint stay, as with kube-proxy.
pub struct Service {
    url: String,
    _tasks: JoinSet<()>,
}

impl Endpoints {
    pub(super) fn add(&self, addr: SocketAddr) {
        self.with(|turns| {
            if !turns.ready.contains(&addr) {
                turns.ready.push(addr);
            }
        });
    }

    pub(super) fn remove(&self, addr: SocketAddr) {
        self.with(|turns| turns.ready.retain(|ready| *ready != addr));
    }

    fn next(&self) -> Option<SocketAddr> {
        self.with(|turns| {
            turns.next = turns.next.wrapping_add(1);
            turns.ready.get(turns.next.checked_rem(turns.ready.len())?).copied()
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Turns) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Service {
    pub(super) fn start(edge: &Pod, endpoints: &Endpoints) -> Self {
        let bound = edge.run(|| TcpListener::bind((edge.ip(), PORT))).and_then(|bound| bound);
        let listener = bound.and_then(|bound| {
            bound.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(bound)
        });
        let listener = listener.unwrap_or_else(|error| panic!("failed to start the service: {error}"));
        let (from, endpoints) = (edge.clone(), endpoints.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Without a pod it breaks, and the client comes again.
                if let Some(to) = endpoints.next() {
                    connections.spawn(forward(client, from.clone(), to));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Self { url: format!("http://{}:{PORT}", edge.ip()), _tasks: tasks }
    }

    /// What clients connect to, from where the probes come from.
    pub fn url(&self) -> &str {
        &self.url
    }
}

async fn forward(mut client: tokio::net::TcpStream, from: Pod, to: SocketAddr) {
    let connect = move || from.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    let Ok(Ok(server)) = tokio::task::spawn_blocking(connect).await else { return };
    let Ok(()) = server.set_nonblocking(true) else { return };
    let Ok(mut server) = tokio::net::TcpStream::from_std(server) else { return };
    // That one side breaks off is what tests are about.
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns() {
        let endpoints = Endpoints::default();
        assert_eq!(endpoints.next(), None);
        let [a, b] = [1, 2].map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        for addr in [a, b, a] {
            endpoints.add(addr);
        }
        let mut two = [endpoints.next(), endpoints.next()];
        two.sort_unstable();
        assert_eq!(two, [Some(a), Some(b)]);
        endpoints.remove(a);
        assert_eq!([endpoints.next(), endpoints.next()], [Some(b), Some(b)]);
    }
}
