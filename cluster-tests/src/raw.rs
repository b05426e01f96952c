//! A peer with the right secret that says what a test wants: frames by hand over a real QUIC connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use roomcast::ClusterSecret;
use roomcast::core::frame::{
    BroadcastHead, FrameLimits, Head, Hello, InterestHead, InterestPart, LENGTH_BYTES, PROTOCOL,
    PROTOCOL_MIN, PayloadKind, Refusal, RefusalKind, Resume, WireMode, decode_head, encode_head,
};
use roomcast::quic::endpoint::{self, QuicConfig};
use roomcast::quic::tls::{ClusterName, Identity};
use smallvec::smallvec;

use crate::cluster::Setup;
use crate::wait::soon;

/// What this peer takes from a node: more than a node sends.
const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 64 << 20, max_room_bytes: 64 << 10 };

/// A peer without a node behind it.
pub struct RawPeer {
    /// The id that it gives.
    pub id: String,
    /// The cluster name that it gives.
    pub cluster: String,
    /// The incarnation that it gives.
    pub incarnation: u64,
    /// The range of protocol versions that it gives.
    pub protocol: (u16, u16),
    endpoint: Endpoint,
    server_name: String,
    nonce: AtomicU64,
}

/// A connection of a [`RawPeer`] with its data stream.
pub struct RawLink {
    /// The connection.
    pub conn: Connection,
    /// The data stream to the node.
    pub send: SendStream,
    recv: RecvStream,
    buf: BytesMut,
    /// The head of the last broadcast from the node.
    last_head: Bytes,
}

impl RawPeer {
    /// A peer with the secret and the cluster of `setup`, and the id of node `index`. Its incarnation is 1.
    pub fn new(setup: &Setup, index: usize) -> Self {
        Self::with_secret(setup, index, &setup.secret)
    }

    /// As [`new`](Self::new), with another secret.
    pub fn with_secret(setup: &Setup, index: usize, secret: &ClusterSecret) -> Self {
        let cluster = ClusterName::new(&setup.cluster).expect("the name was good for nodes");
        let server_name = cluster.server_name();
        let config = QuicConfig::default();
        let identity = Identity::from_secret(cluster, secret, &[], Default::default(), now())
            .expect("the secret was good for nodes");
        let bound = endpoint::bind(([127, 0, 0, 1], 0).into(), &config).expect("loopback has a free port");
        let socket = endpoint::async_socket(bound.socket).expect("tests run in a tokio runtime");
        let endpoint = endpoint::endpoint(socket, &config, &identity).expect("the defaults are good");
        Self {
            id: setup.id(index),
            cluster: setup.cluster.clone(),
            incarnation: 1,
            protocol: (PROTOCOL_MIN, PROTOCOL),
            endpoint,
            server_name,
            nonce: AtomicU64::new(1),
        }
    }

    /// Connects, without a word: TLS only.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn connect(&self, to: SocketAddr) -> Result<Connection, ConnectionError> {
        self.endpoint.connect(to, &self.server_name).expect("a good address and name").await
    }

    /// Connects and opens the data stream, without a hello.
    pub async fn open(&self, to: SocketAddr) -> RawLink {
        let conn = self.connect(to).await.expect("the node takes connections");
        let (send, recv) = conn.open_bi().await.expect("the connection stands");
        RawLink { conn, send, recv, buf: BytesMut::new(), last_head: Bytes::new() }
    }

    /// Where it can be dialled.
    pub fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("a bound socket has an address")
    }

    /// Takes the next connection, with its data stream; nothing is read of it.
    pub async fn accept(&self) -> RawLink {
        let incoming = self.endpoint.accept().await.expect("the endpoint is open");
        let conn = incoming.await.expect("the other side has the secret");
        let (send, recv) = conn.accept_bi().await.expect("a node opens the data stream");
        RawLink { conn, send, recv, buf: BytesMut::new(), last_head: Bytes::new() }
    }

    /// Says hello; the answer is not read.
    pub async fn hello(&self, link: &mut RawLink) {
        let advertise = self.addr().to_string();
        let hello = Hello {
            protocol_min: self.protocol.0,
            protocol_max: self.protocol.1,
            cluster: &self.cluster,
            node: &self.id,
            incarnation: self.incarnation,
            nonce: self.nonce.fetch_add(1, Ordering::Relaxed),
            advertise: &advertise,
            extensions: smallvec![],
        };
        link.say(&Head::Hello(hello), &[]).await;
    }

    /// A link as an honest peer has it: hellos, resumes, start, and interest in everything of `ns`.
    pub async fn link(&self, to: SocketAddr, ns: &str) -> RawLink {
        let mut link = self.greeted(to).await;
        let (mode, part) = (WireMode::Flood, InterestPart::SnapshotEnd);
        link.say(&Head::Interest(InterestHead { version: 1, part, ns, number: 1, mode, added: 0 }), &[])
            .await;
        link
    }

    /// A link with hellos, resumes and start, without a word about rooms.
    pub async fn greeted(&self, to: SocketAddr) -> RawLink {
        let mut link = self.open(to).await;
        self.hello(&mut link).await;
        let answer = link.next().await.expect("the node answers");
        assert!(matches!(read(&answer), Head::Hello(_)), "refused: {:?}", read(&answer));
        link.say(&Head::Resume(Resume { epoch: 7, received: None }), &[]).await;
        link.say(&Head::Start { first: 1 }, &[]).await;
        link
    }
}

impl RawLink {
    /// Sends a frame.
    pub async fn say(&mut self, head: &Head<'_>, payload: &[u8]) {
        self.say_bytes(&frame(head, payload)).await;
    }

    /// Refuses a dial for want of a common version, and waits until the node has read why.
    pub async fn refuse(&mut self, text: &str) {
        self.say(&Head::Refused(Refusal { kind: RefusalKind::Protocol, text }), &[]).await;
        let _ = self.send.finish();
        soon("the node closes the link", self.conn.closed()).await;
    }

    /// Sends bytes as they are. A link that the node has closed takes them too: what counts is why it was closed.
    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.send.write_all(bytes).await;
    }

    /// The next frame from the node, without its length, and with its head where it repeats one; none when the stream has
    /// ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(length) = self.buf.first_chunk::<LENGTH_BYTES>() {
                let length = u32::from_le_bytes(*length) as usize;
                if self.buf.len() >= LENGTH_BYTES + length {
                    let mut frame = self.buf.split_to(LENGTH_BYTES + length);
                    return Some(self.whole(frame.split_off(LENGTH_BYTES).freeze()));
                }
            }
            let chunk = self.recv.read_chunk(64 << 10, true).await.ok()??;
            self.buf.extend_from_slice(&chunk.bytes);
        }
    }

    fn whole(&mut self, frame: Bytes) -> Bytes {
        match decode_head(&frame, &LIMITS) {
            Ok((Head::Broadcast(_), used)) => self.last_head = frame.slice(..used),
            Ok((Head::Again, used)) => return [&self.last_head, &frame[used..]].concat().into(),
            _ => {}
        }
        frame
    }

    /// Waits until the node closes the connection; returns the code and the reason that it gave.
    ///
    /// # Panics
    /// When it does not, or the connection ends in another way.
    pub async fn closed(&self) -> (u64, String) {
        match soon("the node closes the link", self.conn.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                (close.error_code.into(), String::from_utf8_lossy(&close.reason).into_owned())
            }
            other => panic!("not closed by the node: {other}"),
        }
    }
}

/// A whole frame as it is on the wire.
pub fn frame(head: &Head<'_>, payload: &[u8]) -> BytesMut {
    let mut frame = BytesMut::new();
    encode_head(head, payload.len(), &mut frame).expect("a head of tests is small");
    frame.extend_from_slice(payload);
    frame
}

/// The head of a message of the plain API for everyone in `ns`.
pub fn broadcast(ns: &str) -> Head<'_> {
    Head::Broadcast(BroadcastHead {
        ns,
        kind: PayloadKind::Plain,
        flags: 0,
        rooms: smallvec![],
        except: smallvec![],
        server: None,
        socket: None,
        attachments: smallvec![],
    })
}

/// The head of a frame from a node.
///
/// # Panics
/// When it is none.
pub fn read(frame: &[u8]) -> Head<'_> {
    decode_head(frame, &LIMITS).expect("nodes send good heads").0
}

#[expect(clippy::disallowed_methods, reason = "certificates need the wall clock")]
fn now() -> SystemTime {
    SystemTime::now()
}
