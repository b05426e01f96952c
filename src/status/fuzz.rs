//! The status endpoint as a target of `crate::fuzz`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::node::Node;
use crate::quic::tls::ClusterSecret;

/// After so many inputs it is asked whether the node is well.
const CHECK_EVERY: u32 = 64;
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes on a connection to the status endpoint of a whole node; whether the answer was a good one.
///
/// # Panics
/// When the answer is no HTTP or an error of the node, or when the node is not well afterwards.
pub(crate) fn admin(bytes: &[u8]) -> bool {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    static INPUTS: AtomicU32 = AtomicU32::new(0);
    let addr = *SERVER.get_or_init(start);
    let answer = ask(addr, bytes, true).expect("the endpoint takes connections");
    let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).map(<[u8]>::to_vec);
    assert!(answer.is_empty() || status.is_some(), "no HTTP: {}", answer.escape_ascii());
    if let Some(status) = &status {
        assert!(status[0] != b'5' || status == b"503", "{}", answer.escape_ascii());
    }
    if INPUTS.fetch_add(1, Ordering::Relaxed).is_multiple_of(CHECK_EVERY) {
        let answer =
            ask(addr, b"GET /livez HTTP/1.0\r\n\r\n", false).expect("the endpoint takes connections");
        assert!(answer.starts_with(b"HTTP/1.0 200"), "{}", answer.escape_ascii());
    }
    status.is_some_and(|status| status == b"200")
}

/// A node with its endpoint that live as long as the process.
fn start() -> SocketAddr {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = Box::leak(Box::new(runtime.expect("the system has a thread more")));
    runtime.block_on(async {
        let secret = ClusterSecret::generate().expect("the system has random numbers");
        let node = Node::builder().cluster("fuzz").id("fuzz").listen("127.0.0.1:0").secret(secret);
        let node = node.start().await.expect("loopback has a free port");
        let server = super::serve(&node, SocketAddr::from(([127, 0, 0, 1], 0))).await;
        let server = Box::leak(Box::new(server.expect("loopback has a free port")));
        std::mem::forget(node);
        server.local_addr()
    })
}

/// Everything that is answered; nothing when the connection is closed without a word. What `ends` is a request that has not
/// come to its end otherwise.
fn ask(addr: SocketAddr, bytes: &[u8], ends: bool) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    // No port stays taken: there are not as many as inputs.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    // A request that is refused early is not read to its end.
    if stream.write_all(bytes).is_ok() && ends {
        let _ = stream.shutdown(Shutdown::Write);
    }
    match stream.read_to_end(&mut answer) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(error)
        }
        _ => Ok(answer),
    }
}
