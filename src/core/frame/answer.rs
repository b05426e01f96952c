//! What answers to questions say. Their payload is one value of this file or a plain one, by [`super::encode_body`].

use serde::{Deserialize, Serialize};

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

/// One room, in the answers to [`Op::RoomSizes`](super::Op::RoomSizes): a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRecord {
    /// The name.
    pub room: String,
    /// Its members on that node.
    pub members: u64,
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
    fn lists_are_cut_by_size_and_keep_their_order() {
        assert!(parts(Vec::<u8>::new(), |_| 1).is_empty());
        let items: Vec<usize> = (0..10_000).collect();
        let cut = parts(items.clone(), |_| 24);
        assert!(cut.len() == 10 && cut.iter().all(|part| part.len() <= ANSWER_BYTES / 32), "{}", cut.len());
        assert_eq!(cut.concat(), items);
        assert_eq!(parts(vec![1, 2], |_| 10 * ANSWER_BYTES), [[1], [2]]);
    }
}
