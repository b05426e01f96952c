//! Heads of broadcasts in which every length fits one byte, read and written by hand: the same bytes as bincode's, in a
//! tenth of the time. Nearly every message has such a head; others go through bincode.

use smallvec::SmallVec;

use super::{BROADCAST, BroadcastHead, ONE_BYTE, PayloadKind};

/// The fields beside names and their lengths: variant, kind, flags, numbers of rooms, of excepted rooms and of
/// attachments, and whether there are a server and a socket.
const FIXED: usize = 8;

/// The length of the head; none when it is not a short one.
#[inline]
pub(super) fn len(head: &BroadcastHead<'_>) -> Option<usize> {
    let counts = head.rooms.len().max(head.except.len());
    if counts > ONE_BYTE || !head.attachments.is_empty() {
        return None;
    }
    let mut len = FIXED;
    let mut longest = 0;
    let mut add = |name: &str| {
        len += 1 + name.len();
        longest = longest.max(name.len());
    };
    add(head.ns);
    head.rooms.iter().chain(&head.except).for_each(|room| add(room));
    head.server.iter().chain(&head.socket).for_each(|name| add(name));
    (longest <= ONE_BYTE).then_some(len)
}

/// Fills `out`, which has the length that [`len`] gave.
#[inline]
pub(super) fn encode(head: &BroadcastHead<'_>, out: &mut [u8]) {
    let mut out = Out { bytes: out, at: 0 };
    out.byte(BROADCAST);
    out.name(head.ns);
    out.byte(match head.kind {
        PayloadKind::Plain => 0,
        PayloadKind::SocketIoText => 1,
        PayloadKind::SocketIoBytes => 2,
    });
    out.byte(head.flags);
    for rooms in [&head.rooms, &head.except] {
        out.byte(rooms.len() as u8);
        rooms.iter().for_each(|room| out.name(room));
    }
    for name in [head.server, head.socket] {
        out.byte(u8::from(name.is_some()));
        name.iter().for_each(|name| out.name(name));
    }
    out.byte(0);
    debug_assert_eq!(out.at, out.bytes.len());
}

struct Out<'o> {
    bytes: &'o mut [u8],
    at: usize,
}

impl Out<'_> {
    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.at] = byte;
        self.at += 1;
    }

    #[inline]
    fn name(&mut self, name: &str) {
        self.byte(name.len() as u8);
        self.bytes[self.at..self.at + name.len()].copy_from_slice(name.as_bytes());
        self.at += name.len();
    }
}

/// Reads the head and says where the payload begins; none when it is not a short one, or not a head at all.
#[inline]
pub(super) fn decode(frame: &[u8]) -> Option<(BroadcastHead<'_>, usize)> {
    let mut input = In { bytes: frame, at: 0 };
    if input.byte()? != BROADCAST {
        return None;
    }
    let ns = input.name()?;
    let kind = match input.byte()? {
        0 => PayloadKind::Plain,
        1 => PayloadKind::SocketIoText,
        2 => PayloadKind::SocketIoBytes,
        _ => return None,
    };
    let flags = input.byte()?;
    let (rooms, except) = (input.names()?, input.names()?);
    let (server, socket) = (input.option()?, input.option()?);
    if input.byte()? != 0 {
        return None;
    }
    let attachments = SmallVec::new();
    Some((BroadcastHead { ns, kind, flags, rooms, except, server, socket, attachments }, input.at))
}

struct In<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> In<'a> {
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn len(&mut self) -> Option<usize> {
        self.byte().map(usize::from).filter(|len| *len <= ONE_BYTE)
    }

    #[inline]
    fn name(&mut self) -> Option<&'a str> {
        let len = self.len()?;
        let name = self.bytes.get(self.at..self.at + len)?;
        self.at += len;
        std::str::from_utf8(name).ok()
    }

    #[inline]
    fn names(&mut self) -> Option<SmallVec<[&'a str; 4]>> {
        let mut names = SmallVec::new();
        for _ in 0..self.len()? {
            names.push(self.name()?);
        }
        Some(names)
    }

    #[inline]
    fn option(&mut self) -> Option<Option<&'a str>> {
        match self.byte()? {
            0 => Some(None),
            1 => self.name().map(Some),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BINCODE, Head};
    use super::*;

    fn names() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(prop_oneof![8 => ".{0,20}", 1 => "[a-z]{245,255}"], 0..6)
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_of_bincode(
            ns in "/.{0,20}", kind in 0..3u8, flags: u8, rooms in names(), except in names(),
            server in proptest::option::of("[a-z]{0,9}"), socket in proptest::option::of(".{0,9}"),
            attachments in proptest::collection::vec(any::<u32>(), 0..2), payload in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let kinds = [PayloadKind::Plain, PayloadKind::SocketIoText, PayloadKind::SocketIoBytes];
            let head = BroadcastHead {
                ns: &ns,
                kind: kinds[usize::from(kind)],
                flags,
                rooms: rooms.iter().map(String::as_str).collect(),
                except: except.iter().map(String::as_str).collect(),
                server: server.as_deref(),
                socket: socket.as_deref(),
                attachments: attachments.iter().copied().collect(),
            };
            let mut theirs = bincode::serde::encode_to_vec(Head::Broadcast(head.clone()), BINCODE).unwrap();
            let end = theirs.len();
            theirs.extend(payload);
            let long = rooms.iter().chain(&except).any(|room| room.len() > ONE_BYTE);
            prop_assert_eq!(len(&head).is_none(), long || !attachments.is_empty());
            let Some(len) = len(&head) else {
                prop_assert_eq!(decode(&theirs), None);
                return Ok(());
            };
            let mut ours = vec![0; len];
            encode(&head, &mut ours);
            prop_assert_eq!(&ours[..], &theirs[..end]);
            prop_assert_eq!(decode(&theirs).map(|(read, used)| (format!("{read:?}"), used)), Some((format!("{head:?}"), end)));
        }

        #[test]
        fn what_is_read_is_what_bincode_reads(bytes in proptest::collection::vec(prop_oneof![0..8u8, any::<u8>()], 0..80)) {
            let bytes = [&[BROADCAST][..], &bytes].concat();
            if let Some((head, used)) = decode(&bytes) {
                let (theirs, end) = bincode::serde::borrow_decode_from_slice::<Head<'_>, _>(&bytes, BINCODE).unwrap();
                prop_assert_eq!((format!("{theirs:?}"), end), (format!("{:?}", Head::Broadcast(head)), used));
            }
        }
    }
}
