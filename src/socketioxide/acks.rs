//! Acknowledgements of sockets, here and on other nodes.
//!
//! An answer on the wire is `length of the head (u16, little endian) | head (bincode) | value`: the value as in a
//! broadcast, or the error.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures_core::{FusedStream, Stream};
use serde::{Deserialize, Serialize};
use socketioxide_core::adapter::{AckStreamItem, SocketEmitter};

use super::inbound::{Unreadable, value};
use super::outbound::encode;
use crate::core::frame::{EndStatus, FrameError, PayloadKind, decode_body, encode_body};
use crate::hub::requests::{Asked, Reply};

/// The acknowledgements of a broadcast, as they come: of the sockets here and, in turn, of those on other nodes.
///
/// Ends when every socket here has acknowledged or timed out and every other node has settled its share: by answering, by
/// leaving or by the timeout. Each socket is in it at most once. Whose answers are missing is told by
/// [`with_answers`](super::with_answers) around the call that made the stream. Dropping it gives up everywhere: nothing is
/// kept for it here, and the other nodes are told.
///
/// ```
/// use roomcast::socketioxide::{Adapter, with_answers};
///
/// # async fn doc(io: socketioxide::SocketIo<Adapter>) {
/// let emit = io.to("lobby").emit_with_ack::<_, String>("ready?", "now");
/// let (acks, answers) = with_answers(emit).await;
/// let Ok(acks) = acks else { return };
/// let mut acks = std::pin::pin!(acks);
/// while let Some((sid, ack)) = next(&mut acks).await {
///     println!("{sid}: {ack:?}");
/// }
/// println!("{} nodes did not answer in full", answers.missing().len());
/// # }
/// # use futures_core::Stream;
/// # async fn next<S: Stream>(stream: &mut std::pin::Pin<&mut S>) -> Option<S::Item> {
/// #     std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
/// # }
/// ```
#[must_use = "acknowledgements come only while it is polled"]
pub struct AckStream<E: SocketEmitter> {
    /// Of the sockets here, until it has ended.
    here: Option<Pin<Box<E::AckStream>>>,
    /// Of other nodes, until all have settled their shares.
    asked: Option<Asked>,
    /// What the parser here can read.
    kind: PayloadKind,
    /// Whether other nodes are looked at first, so that neither side starves the other.
    asked_first: bool,
}

impl<E: SocketEmitter> AckStream<E> {
    pub(super) fn new(here: Option<E::AckStream>, asked: Option<Asked>, kind: PayloadKind) -> Self {
        Self { here: here.map(Box::pin), asked, kind, asked_first: false }
    }

    fn poll_here(&mut self, cx: &mut Context<'_>) -> Poll<Option<AckStreamItem<E::AckError>>> {
        let Some(here) = &mut self.here else { return Poll::Ready(None) };
        let next = here.as_mut().poll_next(cx);
        if let Poll::Ready(None) = next {
            self.here = None;
        }
        next
    }

    fn poll_asked(&mut self, cx: &mut Context<'_>) -> Poll<Option<AckStreamItem<E::AckError>>> {
        let Some(asked) = &mut self.asked else { return Poll::Ready(None) };
        loop {
            let Poll::Ready(next) = asked.poll_next(cx) else { return Poll::Pending };
            let Some(answer) = next else {
                self.asked = None;
                return Poll::Ready(None);
            };
            match read(&answer.body, self.kind) {
                Ok(item) => return Poll::Ready(Some(item)),
                Err(error) => asked.unreadable(&answer, &error),
            }
        }
    }
}

impl<E: SocketEmitter> Stream for AckStream<E> {
    type Item = AckStreamItem<E::AckError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.asked_first = !this.asked_first;
        let first = if this.asked_first { this.poll_asked(cx) } else { this.poll_here(cx) };
        if let Poll::Ready(Some(item)) = first {
            return Poll::Ready(Some(item));
        }
        let second = if this.asked_first { this.poll_here(cx) } else { this.poll_asked(cx) };
        match (first, second) {
            (_, Poll::Ready(Some(item))) => Poll::Ready(Some(item)),
            (Poll::Ready(None), Poll::Ready(None)) => Poll::Ready(None),
            _ => Poll::Pending,
        }
    }
}

impl<E: SocketEmitter> FusedStream for AckStream<E> {
    fn is_terminated(&self) -> bool {
        self.here.is_none() && self.asked.is_none()
    }
}

/// Answers with each acknowledgement as it comes, until all have come or nobody wants any more.
pub(super) async fn answer_all<A, S>(mut acks: Pin<Box<S>>, reply: Reply)
where
    A: Serialize,
    S: Stream<Item = AckStreamItem<A>>,
{
    let mut unwanted = pin!(reply.unwanted());
    loop {
        let next = poll_fn(|cx| match unwanted.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => acks.as_mut().poll_next(cx).map(|item| item.map(write)),
        });
        match next.await {
            None => return,
            Some(Err(_)) => reply.end_as(EndStatus::Failed),
            Some(Ok(body)) => {
                if reply.answer(body).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The head of an acknowledgement.
#[derive(Serialize, Deserialize)]
struct AckHead<'a> {
    /// Whose it is.
    sid: &'a str,
    what: What,
}

/// What follows the head. Variants keep their order: the index is on the wire.
#[derive(Serialize, Deserialize)]
enum What {
    /// Text, then attachments of these lengths.
    Text(Vec<u32>),
    /// Bytes.
    Bytes,
    /// Why there is none, in bincode.
    Error,
}

/// Why an acknowledgement of another node cannot be read. It is dropped; the share of the node counts as failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAck {
    /// A part is not what it should be. Dropped.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The value is not one. Dropped.
    #[error(transparent)]
    Value(#[from] Unreadable),
    /// The value is of another parser. Dropped.
    #[error("read an acknowledgement of another Socket.IO parser")]
    Parser,
}

fn write<A: Serialize>((sid, ack): AckStreamItem<A>) -> Result<Bytes, FrameError> {
    let (what, payload) = match ack {
        Ok(value) => match encode(value) {
            (PayloadKind::SocketIoBytes, payload, _) => (What::Bytes, payload),
            (_, payload, attachments) => (What::Text(attachments.into_vec()), payload),
        },
        Err(error) => (What::Error, encode_body(&error)?),
    };
    let head = encode_body(&AckHead { sid: sid.as_str(), what })?;
    let length = u16::try_from(head.len()).map_err(|_| FrameError::Payload("too many attachments"))?;
    let mut body = BytesMut::with_capacity(2 + head.len() + payload.len());
    body.put_u16_le(length);
    body.extend_from_slice(&head);
    body.extend_from_slice(&payload);
    Ok(body.freeze())
}

pub(super) fn read<A: for<'de> Deserialize<'de>>(
    body: &Bytes,
    ours: PayloadKind,
) -> Result<AckStreamItem<A>, BadAck> {
    let short = FrameError::Payload("a short acknowledgement");
    let (length, rest) = body.split_first_chunk::<2>().ok_or(short.clone())?;
    let head = rest.get(..usize::from(u16::from_le_bytes(*length))).ok_or(short)?;
    let payload = body.slice(2 + head.len()..);
    let AckHead { sid, what } = decode_body(head)?;
    let id = sid.parse().map_err(|_| Unreadable::Socket(sid.chars().take(80).collect()))?;
    let (kind, attachments) = match what {
        What::Error => return Ok((id, Err(decode_body(&payload)?))),
        What::Text(attachments) => (PayloadKind::SocketIoText, attachments),
        What::Bytes => (PayloadKind::SocketIoBytes, Vec::new()),
    };
    if kind != ours {
        return Err(BadAck::Parser);
    }
    Ok((id, Ok(value(kind, &attachments, &payload)?)))
}

#[cfg(test)]
mod tests {
    use ::socketioxide::{AckError, SocketError};
    use proptest::prelude::*;
    use socketioxide_core::parser::ParserError;
    use socketioxide_core::{Sid, Value};

    use super::*;

    type Item = AckStreamItem<AckError>;

    fn there_and_back(item: Item, kind: PayloadKind) -> String {
        let back: Item = read(&write(item).unwrap(), kind).unwrap();
        format!("{back:?}")
    }

    #[test]
    fn values_and_errors_survive_the_wire() {
        let sid = Sid::new();
        let bytes = Bytes::from_static(b"\x91\xa1x");
        let attachments = [Bytes::from_static(b"\0\xff"), Bytes::new(), bytes.clone()];
        let values = [
            (Value::Bytes(bytes), PayloadKind::SocketIoBytes),
            (Value::Str("[\"x\"]".into(), None), PayloadKind::SocketIoText),
            (Value::Str("[{}]".into(), Some(attachments.into())), PayloadKind::SocketIoText),
        ];
        for (value, kind) in values {
            let expected = format!("{:?}", (sid, Ok::<_, AckError>(value.clone())));
            assert_eq!(there_and_back((sid, Ok(value)), kind), expected);
        }
        let closed = || AckError::Socket(SocketError::Closed);
        let errors = [(closed(), format!("{:?}", closed())), (AckError::Timeout, "Timeout".to_owned())];
        for (error, expected) in errors {
            assert!(there_and_back((sid, Err(error)), PayloadKind::SocketIoText).contains(&expected));
        }
        let decode = AckError::Decode(ParserError::new(std::io::Error::other("odd")));
        assert!(there_and_back((sid, Err(decode)), PayloadKind::SocketIoText).contains("odd"));
    }

    #[test]
    fn a_value_of_another_parser_is_refused() {
        let body = write::<AckError>((Sid::new(), Ok(Value::Bytes(Bytes::new())))).unwrap();
        assert!(matches!(read::<AckError>(&body, PayloadKind::SocketIoText), Err(BadAck::Parser)));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(body in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..60usize) {
            let text = || Value::Str("[1]".into(), Some([Bytes::from_static(b"abc")].into()));
            let good = write::<AckError>((Sid::new(), Ok(text()))).unwrap();
            let mut odd = good[..cut.min(good.len())].to_vec();
            odd.extend_from_slice(&body);
            for body in [Bytes::from(body.clone()), Bytes::from(odd)] {
                let _ = read::<AckError>(&body, PayloadKind::SocketIoText);
                let _ = read::<AckError>(&body, PayloadKind::SocketIoBytes);
            }
        }
    }
}
