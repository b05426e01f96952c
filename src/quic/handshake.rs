//! From an address, or an incoming connection, to a greeted peer: TLS, then one hello in each direction.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, ConnectionError, Endpoint, Incoming, ReadError, RecvStream, SendStream, VarInt};
use smallvec::smallvec;
use tokio::time::{Instant, timeout_at};

use crate::core::frame::{
    EXTENSION_ROLE, FrameLimits, Head, Hello, LENGTH_BYTES, MAX_HEAD_BYTES, ROLE_EMITTER, Refusal,
    RefusalKind, decode_head, encode_head, frame_len,
};
use crate::core::version::Protocols;
use crate::error::LinkError;
use crate::ids::{Incarnation, NodeId};
use crate::quic::tls::{self, ClusterName};

/// Why a connection is closed, as a QUIC application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseCode {
    // Not 0: that is what a connection says that is dropped without a word, and it means nothing.
    /// The node leaves the cluster.
    Left = 1,
    /// Another connection between the same two runs is kept.
    Duplicate = 2,
    /// The peer broke the protocol or a limit.
    Violation = 3,
    /// The peer is refused; the reason was sent before.
    Refused = 4,
    /// Nothing was heard on the data stream.
    Silent = 5,
    /// The peer was replaced by a newer run.
    Stale = 6,
    /// The link stood and got nothing done.
    Stalled = 7,
}

impl CloseCode {
    pub(crate) fn close(self, conn: &Connection, reason: &str) {
        conn.close(VarInt::from_u32(self as u32), &reason.as_bytes()[..reason.len().min(256)]);
    }
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) cluster: ClusterName,
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) advertise: SocketAddr,
    pub(crate) nonce: u64,
    /// Whether it is no node, but an emitter.
    pub(crate) emitter: bool,
    /// The versions that it speaks; of a peer, those that this node speaks, too.
    pub(crate) protocols: Protocols,
}

/// A peer that has said who it is.
pub(crate) struct Greeted {
    pub(crate) conn: Connection,
    pub(crate) send: SendStream,
    pub(crate) reader: FrameReader,
    pub(crate) theirs: Card,
    /// Whether this node dialled.
    pub(crate) by_us: bool,
    /// The dialler's counter of its dials.
    pub(crate) nonce: u64,
}

impl std::fmt::Debug for Greeted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Greeted").field("theirs", &self.theirs).field("by_us", &self.by_us).finish()
    }
}

/// Dials `addr` and greets whoever answers.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    addr: SocketAddr,
    own: &Card,
    limits: FrameLimits,
) -> Result<Greeted, LinkError> {
    let connecting = endpoint
        .connect(addr, &own.cluster.server_name())
        .map_err(|error| LinkError::Lost(error.to_string()))?;
    let conn = connecting.await.map_err(|error| connection_error(&error))?;
    let (mut send, recv) = conn.open_bi().await.map_err(|error| connection_error(&error))?;
    send_hello(&mut send, own).await?;
    let mut reader = FrameReader::new(recv, limits);
    let theirs = match read_hello(&mut reader, own, conn.remote_address()).await {
        Ok(theirs) if theirs.emitter => {
            let error = LinkError::Violation("an emitter takes no connections".into());
            CloseCode::Violation.close(&conn, &error.to_string());
            return Err(error);
        }
        Ok(theirs) => theirs,
        Err(error) => {
            CloseCode::Refused.close(&conn, &error.to_string());
            return Err(error);
        }
    };
    Ok(Greeted { conn, send, reader, theirs, by_us: true, nonce: own.nonce })
}

/// Takes an incoming connection as far as the other side's hello, which must be there by `deadline`. The answer is
/// [`Greeted::welcome`] or [`Greeted::refuse`].
pub(crate) async fn accept(
    incoming: Incoming,
    own: &Card,
    limits: FrameLimits,
    deadline: Instant,
) -> Result<Greeted, LinkError> {
    let conn = incoming.await.map_err(|error| connection_error(&error))?;
    if let Err(error) = tls::verify_peer_name(&conn, &own.cluster) {
        CloseCode::Refused.close(&conn, &error.to_string());
        return Err(LinkError::Tls(error.to_string()));
    }
    let hello = async {
        let (send, recv) = conn.accept_bi().await.map_err(|error| connection_error(&error))?;
        let mut reader = FrameReader::new(recv, limits);
        let theirs = read_hello(&mut reader, own, conn.remote_address()).await;
        Ok::<_, LinkError>((send, reader, theirs))
    };
    let Ok(heard) = timeout_at(deadline, hello).await else {
        let error = LinkError::Lost("the hello took too long".into());
        CloseCode::Refused.close(&conn, &error.to_string());
        return Err(error);
    };
    let (mut send, reader, theirs) = heard?;
    match theirs {
        Ok(theirs) => {
            let nonce = theirs.nonce;
            Ok(Greeted { conn, send, reader, theirs, by_us: false, nonce })
        }
        Err(error) => {
            refuse(&conn, &mut send, &error).await;
            Err(error)
        }
    }
}

impl Greeted {
    /// The protocol version of the link: the newest that both speak.
    pub(crate) fn version(&self) -> u16 {
        self.theirs.protocols.max
    }

    /// Answers an accepted dial.
    pub(crate) async fn welcome(&mut self, own: &Card) -> Result<(), LinkError> {
        send_hello(&mut self.send, own).await
    }

    /// Refuses, with a reason that the other side can log.
    pub(crate) async fn refuse(mut self, error: &LinkError) {
        refuse(&self.conn, &mut self.send, error).await;
    }
}

async fn refuse(conn: &Connection, send: &mut SendStream, error: &LinkError) {
    let kind = match error {
        LinkError::Protocol { .. } => RefusalKind::Protocol,
        LinkError::Cluster { .. } => RefusalKind::Cluster,
        LinkError::Own => RefusalKind::Own,
        LinkError::Stale { .. } => RefusalKind::Stale,
        LinkError::Duplicate => RefusalKind::Duplicate,
        LinkError::Stopping => RefusalKind::Stopping,
        _ => RefusalKind::Other,
    };
    let text: String = error.to_string().chars().take(200).collect();
    let mut frame = BytesMut::new();
    if encode_head(&Head::Refused(Refusal { kind, text: &text }), 0, &mut frame).is_ok()
        && send.write_all(&frame).await.is_ok()
        && send.finish().is_ok()
    {
        // The dialler closes when it has read the reason; without this wait the reason could be cut off.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), conn.closed()).await;
    }
    CloseCode::Refused.close(conn, &text);
}

async fn send_hello(send: &mut SendStream, own: &Card) -> Result<(), LinkError> {
    let advertise = own.advertise.to_string();
    let hello = Hello {
        protocol_min: own.protocols.min,
        protocol_max: own.protocols.max,
        cluster: own.cluster.as_str(),
        node: own.id.as_str(),
        incarnation: own.incarnation.0,
        nonce: own.nonce,
        advertise: &advertise,
        extensions: if own.emitter { smallvec![(EXTENSION_ROLE, ROLE_EMITTER)] } else { smallvec![] },
    };
    let mut frame = BytesMut::new();
    encode_head(&Head::Hello(hello), 0, &mut frame)?;
    send.write_all(&frame).await.map_err(|error| LinkError::Lost(error.to_string()))
}

async fn read_hello(reader: &mut FrameReader, own: &Card, remote: SocketAddr) -> Result<Card, LinkError> {
    // A hello is a head alone: who has not greeted cannot make this node hold a whole frame.
    let limits = reader.limits;
    reader.limits.max_frame_bytes = limits.max_frame_bytes.min(MAX_HEAD_BYTES);
    let frame = reader.frame().await;
    reader.limits = limits;
    read_card(&frame?, &reader.limits, own, remote)
}

/// Reads the first frame of a link, without its length.
pub(crate) fn read_card(
    frame: &[u8],
    limits: &FrameLimits,
    own: &Card,
    remote: SocketAddr,
) -> Result<Card, LinkError> {
    let (head, _) = decode_head(frame, limits)?;
    match head {
        Head::Hello(hello) => check_hello(&hello, own, remote),
        Head::Refused(refusal) => Err(match refusal.kind {
            RefusalKind::Own => LinkError::Own,
            RefusalKind::Duplicate => LinkError::Duplicate,
            RefusalKind::Stopping => LinkError::Left,
            _ => LinkError::closed(&refusal.text.chars().take(256).collect::<String>()),
        }),
        _ => Err(LinkError::Violation("the first frame is not a hello".into())),
    }
}

fn check_hello(hello: &Hello<'_>, own: &Card, remote: SocketAddr) -> Result<Card, LinkError> {
    let (ours, theirs) = (own.protocols, Protocols { min: hello.protocol_min, max: hello.protocol_max });
    let protocols = ours.common(theirs).ok_or(LinkError::Protocol { ours, theirs })?;
    if hello.cluster != own.cluster.as_str() {
        return Err(LinkError::Cluster { ours: own.cluster.to_string(), theirs: hello.cluster.to_owned() });
    }
    let id = NodeId::new(hello.node).map_err(|error| LinkError::Violation(error.to_string()))?;
    let incarnation = Incarnation(hello.incarnation);
    if id == own.id && incarnation == own.incarnation {
        return Err(LinkError::Own);
    }
    let mut advertise: SocketAddr = hello
        .advertise
        .parse()
        .map_err(|_| LinkError::Violation(format!("unreadable address {:?}", hello.advertise)))?;
    if advertise.ip().is_unspecified() {
        advertise.set_ip(remote.ip());
    }
    let emitter = hello.extensions.contains(&(EXTENSION_ROLE, ROLE_EMITTER));
    let cluster = own.cluster.clone();
    Ok(Card { cluster, id, incarnation, advertise, nonce: hello.nonce, emitter, protocols })
}

/// What the end of a connection means.
pub(crate) fn connection_error(error: &ConnectionError) -> LinkError {
    if let Some(refused) = tls::explain(error) {
        return LinkError::Tls(refused.to_string());
    }
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            match u64::from(close.error_code) {
                code if code == CloseCode::Left as u64 => LinkError::Left,
                code if code == CloseCode::Duplicate as u64 => LinkError::Duplicate,
                0 => LinkError::Lost("the peer dropped the connection".into()),
                _ => LinkError::closed(&reason),
            }
        }
        other => LinkError::Lost(other.to_string()),
    }
}

/// Cuts the bytes of a stream into frames.
pub(crate) struct FrameReader {
    recv: RecvStream,
    buf: BytesMut,
    /// Bytes that came so far, parts of a frame too: whether anything is heard at all.
    pub(crate) heard: u64,
    pub(crate) limits: FrameLimits,
}

/// The size of the buffer that frames are cut from. A payload that is kept holds its whole buffer.
const READ_BYTES: usize = 64 * 1024;

impl FrameReader {
    pub(crate) fn new(recv: RecvStream, limits: FrameLimits) -> Self {
        Self { recv, buf: BytesMut::new(), heard: 0, limits }
    }

    /// The next frame, without its length field.
    pub(crate) async fn frame(&mut self) -> Result<Bytes, LinkError> {
        loop {
            if let Some(length) = frame_len(&self.buf, &self.limits)?
                && self.buf.len() >= LENGTH_BYTES + length
            {
                let mut frame = self.buf.split_to(LENGTH_BYTES + length);
                return Ok(frame.split_off(LENGTH_BYTES).freeze());
            }
            self.fill().await?;
        }
    }

    /// One or more whole frames, with their length fields.
    ///
    /// Cancel safe.
    pub(crate) async fn block(&mut self) -> Result<Bytes, LinkError> {
        loop {
            let mut whole = 0;
            while let Some(length) = frame_len(&self.buf[whole..], &self.limits)? {
                if self.buf.len() - whole < LENGTH_BYTES + length {
                    break;
                }
                whole += LENGTH_BYTES + length;
            }
            if whole > 0 {
                return Ok(self.buf.split_to(whole).freeze());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), LinkError> {
        let mut chunks: [Bytes; 32] = Default::default();
        let count = match self.recv.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) => return Err(LinkError::Lost("stream finished".into())),
            Err(ReadError::ConnectionLost(error)) => return Err(connection_error(&error)),
            Err(error) => return Err(LinkError::Lost(error.to_string())),
        };
        let bytes = chunks[..count].iter().map(Bytes::len).sum::<usize>();
        self.heard += bytes as u64;
        if self.buf.capacity() - self.buf.len() < bytes {
            self.buf.reserve(bytes.max(READ_BYTES));
        }
        for chunk in &chunks[..count] {
            self.buf.extend_from_slice(chunk);
        }
        Ok(())
    }
}

/// Cuts one frame off a block of whole frames.
pub(crate) fn split_frame(block: &mut Bytes, limits: &FrameLimits) -> Result<Option<Bytes>, LinkError> {
    let Some(length) = frame_len(block, limits)? else { return Ok(None) };
    if block.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    let mut frame = block.split_to(LENGTH_BYTES + length);
    Ok(Some(frame.split_off(LENGTH_BYTES)))
}
