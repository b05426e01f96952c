//! Wire frames, their versions and size limits. bincode lives here and nowhere else.
//!
//! A frame on a link is `length (u32, little endian) | head (bincode) | payload (bytes as they are)`, where `length`
//! counts head and payload. Heads are small and bounded by [`MAX_HEAD_BYTES`]; the payload is never encoded element by
//! element. `docs/protocol.md` describes every field.

mod answer;
mod incoming;
mod last;
mod list;
mod request;
mod short;
mod trace;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub use self::incoming::{InterestLimits, InterestReader, InterestStep};
pub use self::last::{LastHead, Message};
pub(crate) use self::trace::TRACE;
pub use self::trace::{Ahead, TRACE_BYTES, TRACE_SINCE, TraceFrame, trace_frame};
use crate::core::trace::TraceContext;
use crate::ids::{Namespace, RoomKey};
pub use answer::{ANSWER_BYTES, AckFailure, Acknowledged, Relayed, RoomRecord, SocketRecord, parts};
pub use request::{EndStatus, Op, RequestHead};

/// The newest protocol version that this build speaks.
pub const PROTOCOL: u16 = 2;
/// The oldest protocol version that this build still understands.
pub const PROTOCOL_MIN: u16 = 1;
/// The largest head, in bytes. Cost: nothing is held, it bounds what a decoder reads.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// The largest number of rooms (and of excepted rooms) that one frame names.
pub const MAX_ROOMS: usize = 1024;
/// The highest number that a link may begin with: no link counts from there to the end of the numbers.
pub const MAX_FIRST: u64 = 1 << 62;
/// The interest in the last acknowledgement that a node sends to an emitter: it applies nothing after that.
pub const LAST_WORD: u64 = u64::MAX;
/// The key of the hello extension that says what the sender is; without it, it is a node.
pub const EXTENSION_ROLE: u16 = 1;
/// Its value for an emitter.
pub const ROLE_EMITTER: &str = "emitter";
/// The bytes of the length field before each frame.
pub const LENGTH_BYTES: usize = 4;
/// The most room keys in one frame that is sent: 64 KiB of payload.
pub const KEYS_PER_FRAME: usize = 8192;
/// The first byte of a [`Head::Interest`]: its index.
pub(crate) const INTEREST: u8 = 5;
/// The first byte of a [`Head::Broadcast`]: its index.
pub(crate) const BROADCAST: u8 = 7;
/// The whole head of [`Head::Again`]: its index.
pub(crate) const AGAIN: u8 = 8;
/// The largest number that bincode writes as one byte.
const ONE_BYTE: usize = 250;

/// What a frame says. Variants keep their order: the index is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Head<'a> {
    /// Who is there: the first frame in each direction.
    #[serde(borrow)]
    Hello(Hello<'a>),
    /// The link is refused, with the reason. The last frame of the link.
    Refused(Refusal<'a>),
    /// What the sender still remembers of us: the second frame in each direction.
    Resume(Resume),
    /// The number that the next counted frame has.
    Start {
        /// See [`crate::ids::Seq`]. At most [`MAX_FIRST`].
        first: u64,
    },
    /// What the sender has applied so far: acknowledgement and heartbeat in one.
    Received {
        /// The last counted frame that was applied.
        seq: u64,
        /// The interest version that was applied; 0 for none.
        interest: u64,
    },
    /// A part of the sender's interest. The payload holds the room keys: `added`, then `removed`, 8 bytes each.
    Interest(InterestHead<'a>),
    /// The sender lost track of our interest and wants a new snapshot.
    InterestWanted,
    /// A message for the members of some rooms. Counted.
    Broadcast(BroadcastHead<'a>),
    /// A broadcast with the head of the last one on this stream, and another payload. Counted.
    Again,
    /// A whole delta of one frame: leads to the version after the last one on this stream, for one exact namespace that
    /// stays exact. The payload is as that of `Interest`.
    Rooms {
        /// The number that the namespace has on this stream: see [`InterestHead::number`].
        number: u32,
        /// How many keys in the payload are added; the others are removed.
        added: u32,
    },
    /// A question or an order. Counted.
    Request(RequestHead<'a>),
    /// An answer to a question; the payload says what. Counted.
    Answer {
        /// The number of the question.
        id: u64,
    },
    /// The sender has answered a question. Counted.
    End {
        /// The number of the question.
        id: u64,
        /// How it ended.
        status: EndStatus,
    },
    /// The asker takes more answers. Counted.
    Credit {
        /// The number of the question.
        id: u64,
        /// How many more.
        answers: u32,
    },
    /// The asker wants no more answers. Counted.
    Cancel {
        /// The number of the question.
        id: u64,
    },
    /// The trace that the counted frame right behind belongs to. Since version 2 ([`TRACE_SINCE`]).
    Trace(TraceContext),
}

impl Head<'_> {
    /// Whether the frame has a sequence number, is acknowledged and replayed.
    pub fn is_counted(&self) -> bool {
        matches!(
            self,
            Head::Broadcast(_)
                | Head::Again
                | Head::Request(_)
                | Head::Answer { .. }
                | Head::End { .. }
                | Head::Credit { .. }
                | Head::Cancel { .. }
        )
    }
}

/// The first frame in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// The oldest protocol version that the sender speaks.
    pub protocol_min: u16,
    /// The newest protocol version that the sender speaks. The link uses the newest that both speak.
    pub protocol_max: u16,
    /// The name of the cluster.
    pub cluster: &'a str,
    /// The name of the node.
    pub node: &'a str,
    /// The run of the node.
    pub incarnation: u64,
    /// The sender's counter of its dials, when it dialled: tells two links between the same runs apart.
    pub nonce: u64,
    /// The address under which the sender wants to be dialled, as `ip:port`.
    pub advertise: &'a str,
    /// Reserved for later versions: pairs of key and value that a reader may ignore.
    #[serde(borrow, deserialize_with = "list::read")]
    pub extensions: SmallVec<[(u16, &'a str); 2]>,
}

/// Why a link is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal<'a> {
    /// The kind, for the program.
    pub kind: RefusalKind,
    /// The reason, for the log of the other side. At most 256 bytes are kept.
    pub text: &'a str,
}

/// The kinds of refusal. Variants keep their order: the index is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// No common protocol version.
    Protocol,
    /// Another cluster name.
    Cluster,
    /// The dialler reached itself.
    Own,
    /// A newer incarnation of the dialler is known.
    Stale,
    /// Another link between the same two runs is kept.
    Duplicate,
    /// The other side is stopping.
    Stopping,
    /// Anything else.
    Other,
}

/// What one side remembers of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The epoch of the sender's outbox: numbers are only comparable within one.
    pub epoch: u64,
    /// The epoch and the last number that the sender has applied from us; none when it remembers nothing.
    pub received: Option<(u64, u64)>,
}

/// Whether an interest frame belongs to a snapshot or to a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterestPart {
    /// A part of the snapshot; more follow.
    Snapshot,
    /// The last part of the snapshot.
    SnapshotEnd,
    /// A part of the delta that leads from `version - 1` to `version`; more follow.
    Delta,
    /// The last part of the delta.
    DeltaEnd,
}

/// How a namespace routes, on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireMode {
    /// The namespace is gone, with its rooms.
    Gone,
    /// Everything is wanted.
    Flood,
    /// Only the advertised rooms are wanted.
    Exact,
}

/// A part of the sender's interest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterestHead<'a> {
    /// The version of the interest after this snapshot or delta.
    pub version: u64,
    /// Snapshot or delta, and whether it is complete now.
    pub part: InterestPart,
    /// The namespace; empty in a part that changes nothing (an empty snapshot).
    pub ns: &'a str,
    /// The sender's number for the namespace, until it is gone; 0 for none. Each frame of it has the same.
    pub number: u32,
    /// How the namespace routes.
    pub mode: WireMode,
    /// How many keys in the payload are added; the others are removed.
    pub added: u32,
}

/// What the payload of a broadcast is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PayloadKind {
    /// Bytes of the plain API.
    Plain,
    /// A Socket.IO packet value of a parser that makes text (the common parser), with binary attachments behind it.
    SocketIoText,
    /// A Socket.IO packet value of a parser that makes bytes (MessagePack).
    SocketIoBytes,
}

/// A message for the members of some rooms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BroadcastHead<'a> {
    /// The namespace.
    pub ns: &'a str,
    /// What the payload is.
    pub kind: PayloadKind,
    /// The flags of the Socket.IO broadcast options, as a bit set (`0x02` broadcast, `0x04` volatile).
    pub flags: u8,
    /// The rooms; none for everyone in the namespace.
    #[serde(borrow, deserialize_with = "list::read")]
    pub rooms: SmallVec<[&'a str; 4]>,
    /// The rooms whose members are left out.
    #[serde(borrow, deserialize_with = "list::read")]
    pub except: SmallVec<[&'a str; 4]>,
    /// The one Socket.IO server that this is for, by server id.
    pub server: Option<&'a str>,
    /// The one socket that this is for, or, with the flag `0x02`, the sender to leave out: as in the Socket.IO broadcast
    /// options. A member of the plain API is named by its number, which only its own node gave: who it names as the
    /// sender is on the node that the frame comes from.
    pub socket: Option<&'a str>,
    /// The lengths of the binary attachments at the end of the payload.
    #[serde(deserialize_with = "list::read")]
    pub attachments: SmallVec<[u32; 4]>,
}

/// Why bytes are not a frame. The link that they came from is closed; nothing else is affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is over the limit. The link is closed.
    #[error("frame of {got} bytes, the limit is {limit}")]
    TooLarge {
        /// The length on the wire.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The head is not a head. The link is closed.
    #[error("unreadable frame head: {0}")]
    Head(String),
    /// A field is over its limit. The link is closed.
    #[error("{field} of {got}, the limit is {limit}")]
    Limit {
        /// The field.
        field: &'static str,
        /// What was on the wire.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The payload does not fit the head. The link is closed.
    #[error("payload does not fit its head: {0}")]
    Payload(&'static str),
    /// A frame repeats the head of the last broadcast, and there was none. The link is closed.
    #[error("a repeated head before any broadcast")]
    NothingToRepeat,
    /// A trace context that is not followed by a counted frame. The link is closed.
    #[error("a trace context without the frame that it is for")]
    Trace,
    /// A frame about rooms that does not fit those before it, or says too much. The link is closed.
    #[error("unusable interest: {0}")]
    Interest(String),
}

/// The limits that a peer's frames are held to.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// The largest frame (head and payload), in bytes.
    pub max_frame_bytes: usize,
    /// The longest room name, in bytes.
    pub max_room_bytes: usize,
}

type Bincode = Configuration<LittleEndian, Varint, Limit<MAX_HEAD_BYTES>>;
const BINCODE: Bincode = bincode::config::standard().with_limit::<MAX_HEAD_BYTES>();

/// Appends length and head of a frame whose payload has `payload_len` bytes.
///
/// # Errors
/// [`FrameError::TooLarge`] when the head is over [`MAX_HEAD_BYTES`] or the frame over what its length field can say;
/// [`FrameError::Head`] when it cannot be encoded. `out` is as before.
pub fn encode_head(head: &Head<'_>, payload_len: usize, out: &mut BytesMut) -> Result<(), FrameError> {
    if let Head::Broadcast(broadcast) = head {
        return encode_broadcast(broadcast, payload_len, out);
    }
    let start = out.len();
    out.put_u32_le(0);
    encode_by_bincode(head, start, out)?;
    finish_head(start, payload_len, out)
}

/// As [`encode_head`] with [`Head::Broadcast`], for the way of every message.
///
/// # Errors
/// As [`encode_head`].
pub fn encode_broadcast(
    head: &BroadcastHead<'_>,
    payload_len: usize,
    out: &mut BytesMut,
) -> Result<(), FrameError> {
    let start = out.len();
    match short::len(head) {
        Some(len) => {
            out.resize(start + LENGTH_BYTES + len, 0);
            short::encode(head, &mut out[start + LENGTH_BYTES..]);
        }
        None => {
            out.put_u32_le(0);
            encode_by_bincode(&Head::Broadcast(head.clone()), start, out)?;
        }
    }
    finish_head(start, payload_len, out)
}

fn encode_by_bincode(head: &Head<'_>, start: usize, out: &mut BytesMut) -> Result<(), FrameError> {
    let encoded = bincode::serde::encode_into_writer(head, Sink(out), BINCODE);
    encoded.map_err(|error| {
        out.truncate(start);
        FrameError::Head(error.to_string())
    })
}

/// Fills in the length field of the frame whose head ends `out`.
fn finish_head(start: usize, payload_len: usize, out: &mut BytesMut) -> Result<(), FrameError> {
    let head_len = out.len() - start - LENGTH_BYTES;
    let length = u32::try_from(head_len + payload_len).unwrap_or(u32::MAX);
    if head_len > MAX_HEAD_BYTES || length == u32::MAX {
        out.truncate(start);
        return Err(FrameError::TooLarge { got: head_len.max(payload_len), limit: MAX_HEAD_BYTES });
    }
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// The length of head and payload of the frame at the start of `buf`, or none when fewer than
/// [`LENGTH_BYTES`] bytes are there.
///
/// # Errors
/// [`FrameError::TooLarge`] over the limit: checked before anything of the frame is held.
#[inline]
pub fn frame_len(buf: &[u8], limits: &FrameLimits) -> Result<Option<usize>, FrameError> {
    let Some(length) = buf.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > limits.max_frame_bytes {
        return Err(FrameError::TooLarge { got: length, limit: limits.max_frame_bytes });
    }
    Ok(Some(length))
}

/// Reads the head of a frame (without its length field) and says where the payload begins.
///
/// # Errors
/// Any [`FrameError`]: the bytes come from the network.
pub fn decode_head<'a>(frame: &'a [u8], limits: &FrameLimits) -> Result<(Head<'a>, usize), FrameError> {
    let (head, used) = decode_any(frame)?;
    if head.is_counted() && usize::from(frame[0]) > ONE_BYTE {
        // Those who read only the first byte would take it for another frame.
        return Err(FrameError::Head("an index that is not in its shortest form".into()));
    }
    check(&head, frame.len() - used, limits)?;
    Ok((head, used))
}

fn decode_any(frame: &[u8]) -> Result<(Head<'_>, usize), FrameError> {
    bincode::serde::borrow_decode_from_slice::<Head<'_>, _>(frame, BINCODE)
        .map_err(|error| FrameError::Head(error.to_string()))
}

/// Reads the head of a broadcast again that was checked before, or was encoded here: no limit is looked at.
///
/// # Errors
/// [`FrameError::Head`] when it is another frame.
pub(crate) fn reread_broadcast(frame: &[u8]) -> Result<(BroadcastHead<'_>, usize), FrameError> {
    match short::decode(frame) {
        Some(found) => Ok(found),
        None => match decode_any(frame)? {
            (Head::Broadcast(head), used) => Ok((head, used)),
            _ => Err(FrameError::Head("not a broadcast".into())),
        },
    }
}

/// As [`decode_head`], much faster, for nearly every message: none when it is another frame or has a head out of the
/// ordinary.
///
/// # Errors
/// [`FrameError::Limit`]: the bytes come from the network.
#[inline]
pub fn decode_broadcast<'a>(
    frame: &'a [u8],
    limits: &FrameLimits,
) -> Result<Option<(BroadcastHead<'a>, usize)>, FrameError> {
    let Some((head, used)) = short::decode(frame) else { return Ok(None) };
    // The form bounds everything else; attachments are not of this form.
    for room in head.rooms.iter().chain(&head.except) {
        check_limit("room name", room.len(), limits.max_room_bytes)?;
    }
    Ok(Some((head, used)))
}

/// The room keys in the payload of an interest frame: added and removed.
///
/// # Errors
/// [`FrameError::Payload`] when the payload is not a whole number of keys or has fewer than `added`.
pub fn decode_keys(
    head: &InterestHead<'_>,
    payload: &[u8],
) -> Result<(Vec<RoomKey>, Vec<RoomKey>), FrameError> {
    split_keys(head.added, payload)
}

fn split_keys(added: u32, payload: &[u8]) -> Result<(Vec<RoomKey>, Vec<RoomKey>), FrameError> {
    let (chunks, rest) = payload.as_chunks::<8>();
    let added = added as usize;
    if !rest.is_empty() || chunks.len() < added {
        return Err(FrameError::Payload("interest keys"));
    }
    let key = |bytes: &[u8; 8]| RoomKey(u64::from_le_bytes(*bytes));
    Ok((chunks[..added].iter().map(key).collect(), chunks[added..].iter().map(key).collect()))
}

/// Appends room keys as the payload of an interest frame.
pub fn encode_keys(keys: &[RoomKey], out: &mut BytesMut) {
    out.reserve(keys.len() * 8);
    for key in keys {
        out.put_u64_le(key.0);
    }
}

/// The largest value in the payload of an answer, in bytes.
const MAX_BODY_BYTES: usize = 16 << 20;

/// Encodes a value for the payload of an answer.
///
/// # Errors
/// [`FrameError::Payload`] when it is over 16 MiB or cannot be encoded.
pub fn encode_body<T: Serialize>(value: &T) -> Result<Bytes, FrameError> {
    let config = bincode::config::standard().with_limit::<MAX_BODY_BYTES>();
    let body = bincode::serde::encode_to_vec(value, config).map_err(|_| FrameError::Payload("a value"))?;
    if body.len() > MAX_BODY_BYTES { Err(FrameError::Payload("a value")) } else { Ok(body.into()) }
}

/// Decodes the payload of an answer, which must be one value and nothing else.
///
/// # Errors
/// [`FrameError::Payload`]: the bytes come from the network.
pub fn decode_body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FrameError> {
    let config = bincode::config::standard().with_limit::<MAX_BODY_BYTES>();
    let decoded = bincode::serde::borrow_decode_from_slice::<T, _>(body, config);
    let (value, used) = decoded.map_err(|_| FrameError::Payload("not a value"))?;
    if used == body.len() { Ok(value) } else { Err(FrameError::Payload("more than a value")) }
}

/// For the fuzz target and the property tests: reads any bytes as a stream of frames, as a link does.
pub fn decode_stream(bytes: &[u8], limits: &FrameLimits) -> Result<usize, FrameError> {
    let (mut frames, mut at) = (0, 0);
    let (mut last, mut interest) = (LastHead::default(), InterestReader::new(InterestLimits::default()));
    let mut ahead = Ahead::default();
    while let Some(length) = frame_len(&bytes[at..], limits)? {
        let range = at + LENGTH_BYTES..at + LENGTH_BYTES + length;
        let Some(frame) = bytes.get(range.clone()) else { break };
        at = range.end;
        let message = last.read(bytes, range, limits)?.map(|message| message.payload_at);
        let (head, used) = decode_head(frame, limits)?;
        debug_assert_eq!(message, matches!(head, Head::Broadcast(_) | Head::Again).then_some(used));
        if let Some(context) = ahead.read(&head)? {
            debug_assert!(head.is_counted() && context.is_valid());
        }
        match &head {
            Head::Interest(head) => drop(interest.part(head, &frame[used..])?),
            Head::Rooms { number, added } => drop(interest.rooms(*number, *added, &frame[used..])?),
            _ => {}
        }
        frames += 1;
    }
    Ok(frames)
}

fn check(head: &Head<'_>, payload_len: usize, limits: &FrameLimits) -> Result<(), FrameError> {
    let limit = check_limit;
    match head {
        Head::Broadcast(broadcast) => check_broadcast(broadcast, payload_len, limits),
        Head::Request(request) => {
            limit("names", request.names.len(), MAX_ROOMS)?;
            for name in &request.names {
                limit("room name", name.len(), limits.max_room_bytes)?;
            }
            check_broadcast(&request.to, payload_len, limits)
        }
        Head::Interest(i) => limit("namespace", i.ns.len(), Namespace::MAX_LEN),
        Head::Start { first } => {
            let saturated = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            let (got, limit) = (saturated(*first), saturated(MAX_FIRST));
            let field = "first frame number";
            if *first > MAX_FIRST { Err(FrameError::Limit { field, got, limit }) } else { Ok(()) }
        }
        // It says nothing about bytes behind it, now or later: those are of the next frame.
        Head::Trace(context) if payload_len > 0 || !context.is_valid() => {
            Err(FrameError::Payload("no trace context"))
        }
        Head::Hello(h) => {
            limit("cluster name", h.cluster.len(), 255)?;
            limit("node id", h.node.len(), crate::ids::NodeId::MAX_LEN)?;
            limit("advertised address", h.advertise.len(), 64)
        }
        _ => Ok(()),
    }
}

#[inline]
fn check_broadcast(
    broadcast: &BroadcastHead<'_>,
    payload_len: usize,
    limits: &FrameLimits,
) -> Result<(), FrameError> {
    let limit = check_limit;
    limit("namespace", broadcast.ns.len(), Namespace::MAX_LEN)?;
    limit("rooms", broadcast.rooms.len(), MAX_ROOMS)?;
    limit("excepted rooms", broadcast.except.len(), MAX_ROOMS)?;
    for room in broadcast.rooms.iter().chain(&broadcast.except) {
        limit("room name", room.len(), limits.max_room_bytes)?;
    }
    check_attachments(broadcast, payload_len)
}

#[inline]
fn check_attachments(head: &BroadcastHead<'_>, payload_len: usize) -> Result<(), FrameError> {
    let attached: u64 = head.attachments.iter().map(|len| u64::from(*len)).sum();
    if attached > payload_len as u64 {
        return Err(FrameError::Payload("attachments are longer than the payload"));
    }
    Ok(())
}

#[inline]
fn check_limit(field: &'static str, got: usize, limit: usize) -> Result<(), FrameError> {
    if got > limit { Err(FrameError::Limit { field, got, limit }) } else { Ok(()) }
}

/// Lets bincode write into the buffer that goes on the wire.
struct Sink<'a>(&'a mut BytesMut);

impl bincode::enc::write::Writer for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 1 << 20, max_room_bytes: 256 };

    fn broadcast<'a>(rooms: SmallVec<[&'a str; 4]>) -> Head<'a> {
        Head::Broadcast(BroadcastHead {
            ns: "/chat",
            kind: PayloadKind::Plain,
            flags: 2,
            rooms,
            except: smallvec!["quiet"],
            server: None,
            socket: Some("abc"),
            attachments: smallvec![],
        })
    }

    fn round_trip(head: &Head<'_>, payload: &[u8]) {
        let mut wire = BytesMut::new();
        encode_head(head, payload.len(), &mut wire).unwrap();
        wire.extend_from_slice(payload);
        let length = frame_len(&wire, &LIMITS).unwrap().unwrap();
        assert_eq!(length + LENGTH_BYTES, wire.len());
        let (read, used) = decode_head(&wire[LENGTH_BYTES..], &LIMITS).unwrap();
        assert_eq!(format!("{read:?}"), format!("{head:?}"));
        if let Some((read, end)) = decode_broadcast(&wire[LENGTH_BYTES..], &LIMITS).unwrap() {
            assert_eq!((format!("{:?}", Head::Broadcast(read)), end), (format!("{head:?}"), used));
        }
        assert_eq!(&wire[LENGTH_BYTES + used..], payload);
    }

    #[test]
    fn frames_survive_the_wire() {
        round_trip(&broadcast(smallvec!["lobby", "other"]), b"hello");
        round_trip(&Head::Received { seq: u64::MAX, interest: 0 }, b"");
        round_trip(
            &Head::Hello(Hello {
                protocol_min: 1,
                protocol_max: 7,
                cluster: "c",
                node: "n",
                incarnation: 9,
                nonce: 2,
                advertise: "127.0.0.1:7946",
                extensions: smallvec![(4, "later")],
            }),
            b"",
        );
        round_trip(&Head::Resume(Resume { epoch: 3, received: Some((1, 2)) }), b"");
        round_trip(&Head::Again, b"hello");
        round_trip(&Head::Rooms { number: u32::MAX, added: 1 }, &[7; 16]);
    }

    #[test]
    fn a_broadcast_head_is_small() {
        let mut wire = BytesMut::new();
        let head = BroadcastHead {
            ns: "/chat",
            kind: PayloadKind::Plain,
            flags: 0,
            rooms: smallvec!["lobby"],
            except: smallvec![],
            server: None,
            socket: None,
            attachments: smallvec![],
        };
        encode_head(&Head::Broadcast(head), 128, &mut wire).unwrap();
        assert!(wire.len() <= 26, "{} bytes", wire.len());
    }

    #[test]
    fn the_wire_form_of_version_1_does_not_change() {
        let mut wire = BytesMut::new();
        encode_head(&broadcast(smallvec!["lobby"]), 5, &mut wire).unwrap();
        assert_eq!(&wire[..], b"\x23\0\0\0\x07\x05/chat\0\x02\x01\x05lobby\x01\x05quiet\0\x01\x03abc\0",);
        let wire_of = |head: Head<'_>, payload_len| {
            let mut wire = BytesMut::new();
            encode_head(&head, payload_len, &mut wire).unwrap();
            wire.to_vec()
        };
        assert_eq!(wire_of(Head::Again, 5), b"\x06\0\0\0\x08");
        assert_eq!(wire_of(Head::Again, 0)[LENGTH_BYTES..], [AGAIN]);
        assert_eq!(wire_of(Head::Rooms { number: 3, added: 1 }, 16), b"\x13\0\0\0\x09\x03\x01");
        let (part, mode) = (InterestPart::DeltaEnd, WireMode::Exact);
        let interest = InterestHead { version: 9, part, ns: "/chat", number: 3, mode, added: 1 };
        assert_eq!(wire_of(Head::Interest(interest), 8), b"\x14\0\0\0\x05\x09\x03\x05/chat\x03\x02\x01");
    }

    #[test]
    fn the_index_of_a_counted_frame_is_one_byte() {
        for index in [7, AGAIN] {
            let long = [&[251, index, 0][..], &[0; 20]].concat();
            assert!(matches!(decode_head(&long, &LIMITS), Err(FrameError::Head(_))), "{index}");
        }
    }

    #[test]
    fn limits_are_errors() {
        let mut wire = BytesMut::new();
        let long = "x".repeat(257);
        encode_head(&broadcast(smallvec![long.as_str()]), 0, &mut wire).unwrap();
        let error = decode_head(&wire[LENGTH_BYTES..], &LIMITS).unwrap_err();
        assert_eq!(error, FrameError::Limit { field: "room name", got: 257, limit: 256 });

        let many: SmallVec<[&str; 4]> = std::iter::repeat_n("r", MAX_ROOMS + 1).collect();
        wire.clear();
        encode_head(&broadcast(many), 0, &mut wire).unwrap();
        assert!(matches!(
            decode_head(&wire[LENGTH_BYTES..], &LIMITS),
            Err(FrameError::Limit { field: "rooms", .. })
        ));

        let huge = ((1u32 << 20) + 1).to_le_bytes();
        assert!(matches!(frame_len(&huge, &LIMITS), Err(FrameError::TooLarge { .. })));

        let too_long = "y".repeat(MAX_HEAD_BYTES);
        wire.clear();
        assert!(encode_head(&broadcast(smallvec![too_long.as_str()]), 0, &mut wire).is_err());
        assert!(wire.is_empty());
    }

    #[test]
    fn no_link_begins_at_the_end_of_the_numbers() {
        for (first, good) in [(0, true), (MAX_FIRST, true), (MAX_FIRST + 1, false), (u64::MAX, false)] {
            let mut wire = BytesMut::new();
            encode_head(&Head::Start { first }, 0, &mut wire).unwrap();
            let read = decode_head(&wire[LENGTH_BYTES..], &LIMITS);
            let refused = matches!(read, Err(FrameError::Limit { field: "first frame number", .. }));
            assert_eq!((read.is_ok(), refused), (good, !good), "{first}");
        }
    }

    #[test]
    fn attachments_must_fit_the_payload() {
        let mut wire = BytesMut::new();
        let Head::Broadcast(mut head) = broadcast(smallvec![]) else { unreachable!() };
        head.attachments = smallvec![u32::MAX, u32::MAX];
        encode_head(&Head::Broadcast(head), 3, &mut wire).unwrap();
        wire.extend_from_slice(b"abc");
        assert!(matches!(decode_head(&wire[LENGTH_BYTES..], &LIMITS), Err(FrameError::Payload(_))));
    }

    #[test]
    fn interest_keys_survive_the_wire() {
        let head = InterestHead {
            version: 5,
            part: InterestPart::DeltaEnd,
            ns: "/",
            number: 1,
            mode: WireMode::Exact,
            added: 2,
        };
        let mut payload = BytesMut::new();
        encode_keys(&[RoomKey(1), RoomKey(u64::MAX), RoomKey(3)], &mut payload);
        let (added, removed) = decode_keys(&head, &payload).unwrap();
        assert_eq!((added.len(), removed), (2, vec![RoomKey(3)]));
        assert!(decode_keys(&head, &payload[..9]).is_err());
        assert!(decode_keys(&head, &payload[..8]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = decode_stream(&bytes, &LIMITS);
            let _ = decode_head(&bytes, &LIMITS);
        }

        #[test]
        fn any_damage_to_a_frame_is_decoded_or_refused(at in 4usize..40, byte in any::<u8>()) {
            let mut wire = BytesMut::new();
            encode_head(&broadcast(smallvec!["lobby", "hall"]), 4, &mut wire).unwrap();
            wire.extend_from_slice(b"abcd");
            let at = at % wire.len();
            wire[at] = byte;
            let _ = decode_stream(&wire, &LIMITS);
        }

        #[test]
        fn any_broadcast_survives(ns in "/[a-z]{0,20}", rooms in proptest::collection::vec("[a-z]{0,30}", 0..6), payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let head = Head::Broadcast(BroadcastHead {
                ns: &ns,
                kind: PayloadKind::SocketIoText,
                flags: 6,
                rooms: rooms.iter().map(String::as_str).collect(),
                except: smallvec![],
                server: Some("s"),
                socket: None,
                attachments: smallvec![],
            });
            round_trip(&head, &payload);
        }
    }
}
