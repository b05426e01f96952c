//! What answers to questions say. Their payload is one value of this file or a plain one, by [`super::encode_body`].

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{FrameError, decode_body, encode_body};

/// About how many bytes of a list go into one answer.
pub const ANSWER_BYTES: usize = 32 * 1024;

/// One socket or member, in the answers to [`Op::Sockets`](super::Op::Sockets): a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketRecord {
    /// The Socket.IO id, or the number of a member of the plain API.
    pub id: String,
    /// The Socket.IO server; none for a member of the plain API.
    pub server: Option<String>,
    /// Its rooms; empty when a Socket.IO server asks.
    pub rooms: Vec<String>,
    /// What the user has set for it; empty when a Socket.IO server asks.
    pub data: Vec<u8>,
}

impl SocketRecord {
    /// About how many bytes it has on the wire: for [`parts`].
    pub fn size(&self) -> usize {
        let server = self.server.as_ref().map_or(0, String::len);
        let rooms: usize = self.rooms.iter().map(|room| room.len() + 4).sum();
        self.id.len() + server + rooms + self.data.len() + 16
    }
}

/// One room, in the answers to [`Op::RoomSizes`](super::Op::RoomSizes): a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRecord {
    /// The name.
    pub room: String,
    /// Its members on that node.
    pub members: u64,
}

impl RoomRecord {
    /// About how many bytes it has on the wire: for [`parts`].
    pub fn size(&self) -> usize {
        self.room.len() + 10
    }
}

/// What members of the plain API acknowledge, in the answers to [`Op::Deliver`](super::Op::Deliver).
///
/// One byte says which; then member numbers of 8 bytes each (little endian), and behind the one of
/// [`Given`](Self::Given) the acknowledgement as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledged {
    /// A member has given this.
    Given(u64, Bytes),
    /// These have not, for one reason.
    Failed(AckFailure, Vec<u64>),
}

/// Why a member has given no acknowledgement. Their numbers are on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckFailure {
    /// Not within the time.
    TimedOut = 1,
    /// It has dropped the chance to.
    Dropped = 2,
    /// It is over the limit of a frame.
    TooLarge = 3,
}

impl Acknowledged {
    /// The payload of an answer.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        match self {
            Self::Given(member, given) => {
                body.reserve(9 + given.len());
                body.put_u8(0);
                body.put_u64_le(*member);
                body.put_slice(given);
            }
            Self::Failed(why, members) => {
                body.reserve(1 + 8 * members.len());
                body.put_u8(*why as u8);
                members.iter().for_each(|member| body.put_u64_le(*member));
            }
        }
        body.freeze()
    }

    /// Reads the payload of an answer.
    ///
    /// # Errors
    /// [`FrameError::Payload`]: the bytes come from the network.
    pub fn decode(body: &Bytes) -> Result<Self, FrameError> {
        let unreadable = FrameError::Payload("not an acknowledgement");
        let Some((which, rest)) = body.split_first() else { return Err(unreadable) };
        let why = match which {
            0 => {
                let member = rest.first_chunk().ok_or(unreadable)?;
                return Ok(Self::Given(u64::from_le_bytes(*member), body.slice(9..)));
            }
            1 => AckFailure::TimedOut,
            2 => AckFailure::Dropped,
            3 => AckFailure::TooLarge,
            _ => return Err(unreadable),
        };
        let (members, odd) = rest.as_chunks();
        if !odd.is_empty() {
            return Err(unreadable);
        }
        Ok(Self::Failed(why, members.iter().map(|member| u64::from_le_bytes(*member)).collect()))
    }
}

/// What a node answers to an emitter, for which it asks the whole cluster: `length of the name (u8) | name | body`, where a
/// length of 0 begins the list of nodes whose share is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relayed<B> {
    /// What one node said.
    Answer {
        /// Its name.
        node: String,
        /// Its answer.
        body: B,
    },
    /// The nodes whose share is missing, each with the reason as a number; the last answer.
    Missing(Vec<(String, u8)>),
}

impl Relayed<Bytes> {
    /// The payload of the answer.
    ///
    /// # Errors
    /// [`FrameError::Payload`] when the name is over 255 bytes or the list cannot be encoded.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        match self {
            Self::Answer { node, body } => {
                let len = u8::try_from(node.len()).map_err(|_| FrameError::Payload("a long name"))?;
                let mut out = BytesMut::with_capacity(1 + node.len() + body.len());
                out.put_u8(len);
                out.extend_from_slice(node.as_bytes());
                out.extend_from_slice(body);
                Ok(out.freeze())
            }
            Self::Missing(list) => Ok([&[0], &encode_body(list)?[..]].concat().into()),
        }
    }

    /// Reads the payload of an answer. The body shares its memory.
    ///
    /// # Errors
    /// [`FrameError::Payload`]: the bytes come from the network.
    pub fn decode(payload: &Bytes) -> Result<Self, FrameError> {
        let bad = FrameError::Payload("not a relayed answer");
        match payload.split_first() {
            None => Err(bad),
            Some((0, list)) => decode_body(list).map(Self::Missing),
            Some((len, rest)) => {
                let len = usize::from(*len);
                let node = rest.get(..len).and_then(|name| std::str::from_utf8(name).ok()).ok_or(bad)?;
                Ok(Self::Answer { node: node.to_owned(), body: payload.slice(1 + len..) })
            }
        }
    }
}

/// Cuts a list into parts of about [`ANSWER_BYTES`], each for one answer. An empty list has no part.
pub fn parts<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let bytes = size(&item) + 8;
        match parts.last_mut().filter(|_| bytes <= room) {
            Some(part) => part.push(item),
            None => {
                parts.push(vec![item]);
                room = ANSWER_BYTES;
            }
        }
        room = room.saturating_sub(bytes);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_read_as_they_were_written() {
        let all = [
            Acknowledged::Given(7, Bytes::from_static(b"yes")),
            Acknowledged::Given(u64::MAX, Bytes::new()),
            Acknowledged::Failed(AckFailure::TimedOut, vec![1, 2, u64::MAX]),
            Acknowledged::Failed(AckFailure::Dropped, vec![]),
            Acknowledged::Failed(AckFailure::TooLarge, vec![3]),
        ];
        for one in all {
            assert_eq!(Acknowledged::decode(&one.encode()), Ok(one));
        }
        // The bytes themselves, so that another version reads them.
        assert_eq!(
            Acknowledged::Given(258, Bytes::from_static(b"x")).encode()[..],
            *b"\0\x02\x01\0\0\0\0\0\0x"
        );
    }

    #[test]
    fn what_is_no_acknowledgement_is_an_error() {
        for bad in [&b""[..], b"\0", b"\x001234567", b"\x01123456789", b"\x0412345678", b"\xff"] {
            let unreadable = Err(FrameError::Payload("not an acknowledgement"));
            assert_eq!(Acknowledged::decode(&Bytes::copy_from_slice(bad)), unreadable, "{bad:?}");
        }
    }

    #[test]
    fn relayed_answers_survive_the_wire() {
        let answer = Relayed::Answer { node: "a".repeat(63), body: Bytes::from_static(b"body") };
        let missing = Relayed::Missing(vec![("b".into(), 2), ("c".into(), 0)]);
        for relayed in [answer, missing, Relayed::Answer { node: "n".into(), body: Bytes::new() }] {
            let payload = relayed.encode().unwrap();
            assert_eq!(Relayed::decode(&payload).unwrap(), relayed);
            for end in 0..payload.len() {
                // Cut off anywhere it is another answer or an error, never a panic.
                let _ = Relayed::decode(&payload.slice(..end));
            }
        }
        assert!(Relayed::decode(&Bytes::from_static(&[9, b'x'])).is_err());
        assert!(Relayed::decode(&Bytes::new()).is_err());
    }

    #[test]
    fn lists_are_cut_by_size_and_keep_their_order() {
        assert!(parts(Vec::<u8>::new(), |_| 1).is_empty());
        let items: Vec<usize> = (0..10_000).collect();
        let cut = parts(items.clone(), |_| 24);
        assert!(cut.len() == 10 && cut.iter().all(|part| part.len() <= ANSWER_BYTES / 32), "{}", cut.len());
        assert_eq!(cut.concat(), items);
        assert_eq!(parts(vec![1, 2], |_| 10 * ANSWER_BYTES), [[1], [2]]);
    }
}
