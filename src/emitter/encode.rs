//! Encoders for what clients of socketioxide understand: the event and its arguments as the parsers of Socket.IO make
//! them, byte for byte.
//!
//! Data is read once into a tree, which knows what JSON and MessagePack tell apart (bytes, the width of a float, an empty
//! struct), and is written from there. A tuple is several arguments; anything else is one.
//!
//! In two places the parsers of socketioxide do what nobody can want, and this does not follow: they lose the event when
//! the data is a struct of one field, and the common one sends bytes inside an option as a list of numbers.

mod tree;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::ser::{self, Serialize};
use smallvec::SmallVec;

use crate::core::frame::PayloadKind;
use tree::{Reader, Tree, no_key, one};

/// The parser that the servers of the cluster use, as `SocketIo::builder().with_parser(..)` there. All must use the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Parser {
    /// `socketioxide::ParserConfig::common()`, the default: JSON, with binary data beside it.
    #[default]
    Common,
    /// `socketioxide::ParserConfig::msgpack()`: MessagePack.
    MsgPack,
}

/// An event as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) kind: PayloadKind,
    pub(crate) payload: Bytes,
    /// The lengths of the attachments at the end of the payload.
    pub(crate) attachments: SmallVec<[u32; 4]>,
}

/// Data that a parser cannot encode. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodeError(String);

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EncodeError {}

impl ser::Error for EncodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl Parser {
    /// Encodes an event.
    pub(crate) fn encode<T: Serialize + ?Sized>(self, event: &str, data: &T) -> Result<Encoded, EncodeError> {
        let mut attachments = Vec::new();
        // MessagePack is for machines: some types write themselves shorter there. Arguments do, the list of them does not.
        let nested = self == Self::Common;
        let reader = Reader { human_readable: true, nested, attachments: &mut attachments };
        let mut tree = data.serialize(reader)?;
        if self == Self::MsgPack && !matches!(tree, Tree::Tuple(_)) {
            attachments.clear();
            tree = one(data.serialize(Reader {
                human_readable: nested,
                nested,
                attachments: &mut attachments,
            })?);
        }
        let data = tree;
        match self {
            Self::Common => {
                let mut text = Vec::with_capacity(128);
                json_event(event, &data, &mut text)?;
                let mut payload = BytesMut::from(&text[..]);
                attachments.iter().for_each(|bytes| payload.extend_from_slice(bytes));
                // A length over 4 GiB is over every limit of a frame, so the frame is refused anyway.
                let lengths = attachments.iter().map(|a| u32::try_from(a.len()).unwrap_or(u32::MAX));
                Ok(Encoded {
                    kind: PayloadKind::SocketIoText,
                    payload: payload.freeze(),
                    attachments: lengths.collect(),
                })
            }
            Self::MsgPack => {
                let mut out = BytesMut::with_capacity(128);
                let items = match &data {
                    Tree::Tuple(items) => &items[..],
                    one => std::slice::from_ref(one),
                };
                msgpack_length(&mut out, ARRAY, items.len() + 1)?;
                msgpack_str(&mut out, event)?;
                items.iter().try_for_each(|item| msgpack(item, &attachments, &mut out))?;
                Ok(Encoded {
                    kind: PayloadKind::SocketIoBytes,
                    payload: out.freeze(),
                    attachments: SmallVec::new(),
                })
            }
        }
    }
}

fn json_event(event: &str, data: &Tree, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.push(b'[');
    json_scalar(event, out)?;
    let items = match data {
        Tree::Tuple(items) => &items[..],
        one => std::slice::from_ref(one),
    };
    for item in items {
        out.push(b',');
        json(item, out)?;
    }
    out.push(b']');
    Ok(())
}

fn json(tree: &Tree, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match tree {
        Tree::Nothing | Tree::Empty => out.extend_from_slice(b"null"),
        Tree::Bool(value) => json_scalar(value, out)?,
        Tree::Int(value) => json_scalar(value, out)?,
        Tree::UInt(value) => json_scalar(value, out)?,
        Tree::F32(value) => json_scalar(value, out)?,
        Tree::F64(value) => json_scalar(value, out)?,
        Tree::Str(value) => json_scalar(value, out)?,
        Tree::Bytes(place) => {
            out.extend_from_slice(b"{\"_placeholder\":true,\"num\":");
            json_scalar(place, out)?;
            out.push(b'}');
        }
        Tree::Seq(items) | Tree::Tuple(items) => {
            out.push(b'[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                json(item, out)?;
            }
            out.push(b']');
        }
        Tree::Map(entries) => {
            out.push(b'{');
            for (place, (key, value)) in entries.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                json_key(key, out)?;
                out.push(b':');
                json(value, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// Keys of objects are text: numbers and the like are put in quotes.
fn json_key(key: &Tree, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match key {
        Tree::Str(_) => json(key, out),
        Tree::F32(value) if !value.is_finite() => Err(no_key()),
        Tree::F64(value) if !value.is_finite() => Err(no_key()),
        Tree::Bool(_) | Tree::Int(_) | Tree::UInt(_) | Tree::F32(_) | Tree::F64(_) => {
            out.push(b'"');
            json(key, out)?;
            out.push(b'"');
            Ok(())
        }
        _ => Err(no_key()),
    }
}

fn json_scalar<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    serde_json::to_writer(out, value).map_err(ser::Error::custom)
}

/// The markers of a kind that has lengths: for a length in the marker itself (and the largest), in 1, 2 and 4 bytes.
struct Lengths {
    small: Option<(u8, usize)>,
    one: Option<u8>,
    two: u8,
    four: u8,
}

const STR: Lengths = Lengths { small: Some((0xa0, 31)), one: Some(0xd9), two: 0xda, four: 0xdb };
const BIN: Lengths = Lengths { small: None, one: Some(0xc4), two: 0xc5, four: 0xc6 };
const ARRAY: Lengths = Lengths { small: Some((0x90, 15)), one: None, two: 0xdc, four: 0xdd };
const MAP: Lengths = Lengths { small: Some((0x80, 15)), one: None, two: 0xde, four: 0xdf };

/// As in the specification of MessagePack, the shortest form.
fn msgpack(tree: &Tree, attachments: &[Bytes], out: &mut BytesMut) -> Result<(), EncodeError> {
    match tree {
        Tree::Nothing => out.put_u8(0xc0),
        Tree::Empty => msgpack_length(out, ARRAY, 0)?,
        Tree::Bool(value) => out.put_u8(0xc2 | u8::from(*value)),
        Tree::Int(value) => msgpack_int(out, *value),
        Tree::UInt(value) => msgpack_uint(out, *value),
        Tree::F32(value) => {
            out.put_u8(0xca);
            out.put_f32(*value);
        }
        Tree::F64(value) => {
            out.put_u8(0xcb);
            out.put_f64(*value);
        }
        Tree::Str(value) => msgpack_str(out, value)?,
        Tree::Bytes(place) => {
            let bytes = attachments.get(*place).map_or(&[][..], |bytes| bytes);
            msgpack_length(out, BIN, bytes.len())?;
            out.extend_from_slice(bytes);
        }
        Tree::Seq(items) | Tree::Tuple(items) => {
            msgpack_length(out, ARRAY, items.len())?;
            items.iter().try_for_each(|item| msgpack(item, attachments, out))?;
        }
        Tree::Map(entries) => {
            msgpack_length(out, MAP, entries.len())?;
            for (key, value) in entries {
                msgpack(key, attachments, out)?;
                msgpack(value, attachments, out)?;
            }
        }
    }
    Ok(())
}

fn msgpack_str(out: &mut BytesMut, text: &str) -> Result<(), EncodeError> {
    msgpack_length(out, STR, text.len())?;
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn msgpack_length(out: &mut BytesMut, of: Lengths, len: usize) -> Result<(), EncodeError> {
    let short = of.small.filter(|(_, most)| len <= *most);
    match (short, of.one, u8::try_from(len), u16::try_from(len), u32::try_from(len)) {
        (Some((marker, _)), _, Ok(len), _, _) => out.put_u8(marker | len),
        (_, Some(marker), Ok(len), _, _) => {
            out.put_u8(marker);
            out.put_u8(len);
        }
        (_, _, _, Ok(len), _) => {
            out.put_u8(of.two);
            out.put_u16(len);
        }
        (_, _, _, _, Ok(len)) => {
            out.put_u8(of.four);
            out.put_u32(len);
        }
        _ => return Err(EncodeError("4 GiB and more".to_owned())),
    }
    Ok(())
}

fn msgpack_int(out: &mut BytesMut, value: i64) {
    if let Ok(value) = u64::try_from(value) {
        return msgpack_uint(out, value);
    }
    match (i8::try_from(value), i16::try_from(value), i32::try_from(value)) {
        (Ok(value), _, _) => {
            if value < -32 {
                out.put_u8(0xd0);
            }
            out.put_i8(value);
        }
        (_, Ok(value), _) => {
            out.put_u8(0xd1);
            out.put_i16(value);
        }
        (_, _, Ok(value)) => {
            out.put_u8(0xd2);
            out.put_i32(value);
        }
        _ => {
            out.put_u8(0xd3);
            out.put_i64(value);
        }
    }
}

fn msgpack_uint(out: &mut BytesMut, value: u64) {
    match (u8::try_from(value), u16::try_from(value), u32::try_from(value)) {
        (Ok(value), _, _) => {
            if value > 127 {
                out.put_u8(0xcc);
            }
            out.put_u8(value);
        }
        (_, Ok(value), _) => {
            out.put_u8(0xcd);
            out.put_u16(value);
        }
        (_, _, Ok(value)) => {
            out.put_u8(0xce);
            out.put_u32(value);
        }
        _ => {
            out.put_u8(0xcf);
            out.put_u64(value);
        }
    }
}

#[cfg(test)]
mod tests;
