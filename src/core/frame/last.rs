//! The head of the last broadcast of a stream, for the frames that repeat it.

use std::ops::Range;

use super::{
    AGAIN, BROADCAST, BroadcastHead, FrameError, FrameLimits, Head, check_attachments, decode_broadcast,
    decode_head, reread_broadcast,
};

/// Reads the broadcasts of a stream, block by block. Within a block the last head is borrowed and read once; what
/// the next block may repeat is for the caller to copy: [`LastHead::here`].
#[derive(Debug, Default)]
pub struct LastHead<'b> {
    /// The bytes of the last head before this block; empty for none.
    before: &'b [u8],
    head: Option<BroadcastHead<'b>>,
    /// Where the last whole head stands in this block.
    here: Option<Range<usize>>,
}

/// A broadcast.
#[derive(Debug)]
pub struct Message<'l, 'b> {
    /// Its head, its own or the one that it repeats.
    pub head: &'l BroadcastHead<'b>,
    /// Where the payload begins, from the beginning of the frame (behind its length).
    pub payload_at: usize,
    /// Whether it repeats the head of the broadcast before it.
    pub again: bool,
}

impl<'b> LastHead<'b> {
    /// For a block of a stream on which `before` was the last head of a broadcast; empty for none.
    pub fn new(before: &'b [u8]) -> Self {
        Self { before, ..Self::default() }
    }

    /// Reads the frame that is `range` of `block` (without its length); none when it is no broadcast.
    ///
    /// # Errors
    /// Any [`FrameError`]: the bytes come from the network.
    #[inline]
    pub fn read(
        &mut self,
        block: &'b [u8],
        range: Range<usize>,
        limits: &FrameLimits,
    ) -> Result<Option<Message<'_, 'b>>, FrameError> {
        let frame = &block[range.clone()];
        let payload_at = match frame.first() {
            Some(&AGAIN) => 1,
            Some(&BROADCAST) => {
                let (head, used) = whole(frame, limits)?;
                self.head = Some(head);
                self.here = Some(range.start..range.start + used);
                used
            }
            _ => return Ok(None),
        };
        if self.head.is_none() && !self.before.is_empty() {
            self.head = Some(reread_broadcast(self.before)?.0);
        }
        let Some(head) = &self.head else { return Err(FrameError::NothingToRepeat) };
        let again = payload_at == 1;
        if again {
            check_attachments(head, frame.len() - payload_at)?;
        }
        Ok(Some(Message { head, payload_at, again }))
    }

    /// Where the last whole head stands in the block; none when the block has none, and what was the last head before
    /// still is. At most [`super::MAX_HEAD_BYTES`] long.
    pub fn here(self) -> Option<Range<usize>> {
        self.here
    }
}

#[inline]
fn whole<'b>(frame: &'b [u8], limits: &FrameLimits) -> Result<(BroadcastHead<'b>, usize), FrameError> {
    if let Some(found) = decode_broadcast(frame, limits)? {
        return Ok(found);
    }
    match decode_head(frame, limits)? {
        (Head::Broadcast(head), used) => Ok((head, used)),
        _ => Err(FrameError::Head("not a broadcast".into())),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::super::{LENGTH_BYTES, PayloadKind, encode_head, frame_len};
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 1 << 20, max_room_bytes: 512 };

    fn frame(head: &Head<'_>, payload: &[u8]) -> Vec<u8> {
        let mut wire = BytesMut::new();
        encode_head(head, payload.len(), &mut wire).unwrap();
        [&wire, payload].concat()
    }

    fn broadcast<'a>(room: &'a str, attachments: &[u32]) -> BroadcastHead<'a> {
        BroadcastHead {
            ns: "/chat",
            kind: PayloadKind::SocketIoText,
            flags: 0,
            rooms: smallvec![room],
            except: smallvec![],
            server: None,
            socket: None,
            attachments: attachments.iter().copied().collect(),
        }
    }

    /// The heads and payloads of the broadcasts in some blocks, read as a link does.
    fn read(blocks: &[&[u8]]) -> Result<Vec<(String, Vec<u8>)>, FrameError> {
        let (mut before, mut found) = (Vec::new(), Vec::new());
        for block in blocks {
            let (mut at, mut last) = (0, LastHead::new(&before));
            while let Some(length) = frame_len(&block[at..], &LIMITS)? {
                let range = at + LENGTH_BYTES..at + LENGTH_BYTES + length;
                at = range.end;
                if let Some(message) = last.read(block, range.clone(), &LIMITS)? {
                    let payload = block[range.start + message.payload_at..range.end].to_vec();
                    found.push((format!("{:?}", message.head), payload));
                }
            }
            if let Some(here) = last.here() {
                before = block[here].to_vec();
            }
        }
        Ok(found)
    }

    #[test]
    fn there_must_be_something_to_repeat() {
        let again = frame(&Head::Again, b"x");
        let received = frame(&Head::Received { seq: 1, interest: 1 }, b"");
        assert_eq!(read(&[&again]), Err(FrameError::NothingToRepeat));
        assert_eq!(read(&[&received, &again]), Err(FrameError::NothingToRepeat));
        let first = frame(&Head::Broadcast(broadcast("lobby", &[])), b"y");
        let found = read(&[&first, &received, &again]).unwrap();
        assert_eq!((found.len(), &found[0].0), (2, &found[1].0));
    }

    #[test]
    fn repeated_attachments_must_fit_their_payload() {
        let first = frame(&Head::Broadcast(broadcast("lobby", &[3])), b"abc");
        for (payload, fits) in [(&b"abcd"[..], true), (b"xyz", true), (b"ab", false), (b"", false)] {
            let again = frame(&Head::Again, payload);
            for blocks in [vec![&first[..], &again], vec![&[&first[..], &again].concat()]] {
                assert_eq!(read(&blocks).is_ok(), fits, "{payload:?}");
            }
        }
    }

    proptest! {
        /// Heads that are repeated are the same as heads that are written out, wherever the blocks end.
        #[test]
        fn a_repeated_head_is_that_head(
            picks in proptest::collection::vec((0..5usize, 3..40usize, any::<bool>()), 1..40),
        ) {
            let long = "r".repeat(300);
            let heads = [broadcast("lobby", &[]), broadcast("hall", &[]), broadcast("lobby", &[1, 2]), broadcast(&long, &[])];
            let (mut blocks, mut expected, mut last) = (vec![Vec::new()], Vec::new(), None);
            for (pick, len, cut) in picks {
                let payload = vec![pick as u8; len];
                let wire = match heads.get(pick) {
                    None => frame(&Head::InterestWanted, b""),
                    Some(head) => {
                        expected.push((format!("{head:?}"), payload.clone()));
                        let again = last.replace(pick) == Some(pick);
                        frame(&if again { Head::Again } else { Head::Broadcast(head.clone()) }, &payload)
                    }
                };
                if cut {
                    blocks.push(Vec::new());
                }
                blocks.last_mut().unwrap().extend(wire);
            }
            let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(read(&blocks), Ok(expected));
        }
    }
}
