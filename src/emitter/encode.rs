//! Encoders for what clients of socketioxide understand: the event and its arguments as the parsers of Socket.IO make
//! them, byte for byte.
//!
//! Data is read once into a tree, which knows what JSON and MessagePack tell apart (bytes, the width of a float, an empty
//! struct), and is written from there. A tuple is several arguments; anything else is one.
//!
//! In two places the parsers of socketioxide do what nobody can want, and this does not follow: they lose the event when
//! the data is a struct of one field, and the common one sends bytes inside an option as a list of numbers.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::ser::{self, Serialize};
use smallvec::SmallVec;

use crate::core::frame::PayloadKind;

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

/// Data, as far as the two forms tell it apart.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    Nothing,
    /// A struct without fields: null in JSON, an empty array in MessagePack.
    Empty,
    Bool(bool),
    Int(i64),
    UInt(u64),
    F32(f32),
    F64(f64),
    Str(String),
    /// The place among the attachments.
    Bytes(usize),
    Seq(Vec<Tree>),
    /// A tuple or tuple struct: several arguments, when it is all there is.
    Tuple(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
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

fn no_key() -> EncodeError {
    EncodeError("a key must be text or a number".to_owned())
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

/// Reads data into a tree.
struct Reader<'a> {
    human_readable: bool,
    /// The same for what is inside.
    nested: bool,
    attachments: &'a mut Vec<Bytes>,
}

impl Reader<'_> {
    fn again(&mut self) -> Reader<'_> {
        Reader { human_readable: self.nested, nested: self.nested, attachments: self.attachments }
    }
}

/// The parts of a list or a map, as they come.
struct Parts<'a> {
    reader: Reader<'a>,
    items: Vec<Tree>,
    entries: Vec<(Tree, Tree)>,
    key: Option<Tree>,
    /// The variant of an enum that it belongs to.
    variant: Option<&'static str>,
    tuple: bool,
}

impl<'a> Parts<'a> {
    fn new(reader: Reader<'a>, variant: Option<&'static str>) -> Self {
        Self { reader, items: Vec::new(), entries: Vec::new(), key: None, variant, tuple: false }
    }

    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        let item = value.serialize(self.reader.again())?;
        self.items.push(item);
        Ok(())
    }

    fn entry<T: Serialize + ?Sized>(&mut self, key: Tree, value: &T) -> Result<(), EncodeError> {
        let value = value.serialize(self.reader.again())?;
        self.entries.push((key, value));
        Ok(())
    }

    fn list(self) -> Tree {
        let list = if self.tuple { Tree::Tuple(self.items) } else { Tree::Seq(self.items) };
        of_variant(self.variant, list)
    }

    fn map(self) -> Tree {
        of_variant(self.variant, Tree::Map(self.entries))
    }
}

fn of_variant(variant: Option<&'static str>, tree: Tree) -> Tree {
    match variant {
        None => tree,
        Some(variant) => Tree::Map(vec![(Tree::Str(variant.to_owned()), tree)]),
    }
}

/// A method of the serializer whose value is one of the tree's as it is.
macro_rules! plain {
    ($($method:ident($value:ty) => $variant:ident),* $(,)?) => {
        $(fn $method(self, value: $value) -> Result<Tree, EncodeError> {
            Ok(Tree::$variant(value.into()))
        })*
    };
}

impl<'a> ser::Serializer for Reader<'a> {
    type Ok = Tree;
    type Error = EncodeError;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    plain! {
        serialize_bool(bool) => Bool,
        serialize_i8(i8) => Int,
        serialize_i16(i16) => Int,
        serialize_i32(i32) => Int,
        serialize_i64(i64) => Int,
        serialize_u8(u8) => UInt,
        serialize_u16(u16) => UInt,
        serialize_u32(u32) => UInt,
        serialize_u64(u64) => UInt,
        serialize_f32(f32) => F32,
        serialize_f64(f64) => F64,
        serialize_char(char) => Str,
        serialize_str(&str) => Str,
    }

    fn is_human_readable(&self) -> bool {
        self.human_readable
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<Tree, EncodeError> {
        self.attachments.push(Bytes::copy_from_slice(value));
        Ok(Tree::Bytes(self.attachments.len() - 1))
    }

    fn serialize_none(self) -> Result<Tree, EncodeError> {
        Ok(Tree::Nothing)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Tree, EncodeError> {
        // An option of a tuple is one argument.
        Ok(one(value.serialize(self)?))
    }

    fn serialize_unit(self) -> Result<Tree, EncodeError> {
        Ok(Tree::Nothing)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Tree, EncodeError> {
        Ok(Tree::Empty)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Tree, EncodeError> {
        Ok(Tree::Str(variant.to_owned()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Tree, EncodeError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Tree, EncodeError> {
        Ok(of_variant(Some(variant), value.serialize(self)?))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'a>, EncodeError> {
        Ok(Parts::new(self, None))
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, EncodeError> {
        Ok(Parts { tuple: true, ..Parts::new(self, None) })
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, EncodeError> {
        Ok(Parts { tuple: true, ..Parts::new(self, None) })
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, EncodeError> {
        Ok(Parts::new(self, Some(variant)))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Parts<'a>, EncodeError> {
        Ok(Parts::new(self, None))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, EncodeError> {
        Ok(Parts::new(self, None))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, EncodeError> {
        Ok(Parts::new(self, Some(variant)))
    }
}

/// One argument, also where it is a tuple.
fn one(tree: Tree) -> Tree {
    match tree {
        Tree::Tuple(items) => Tree::Seq(items),
        other => other,
    }
}

macro_rules! lists {
    ($($of:ident::$method:ident),* $(,)?) => {
        $(impl ser::$of for Parts<'_> {
            type Ok = Tree;
            type Error = EncodeError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
                self.item(value)
            }

            fn end(self) -> Result<Tree, EncodeError> {
                Ok(self.list())
            }
        })*
    };
}

lists!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
);

macro_rules! structs {
    ($($of:ident),* $(,)?) => {
        $(impl ser::$of for Parts<'_> {
            type Ok = Tree;
            type Error = EncodeError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), EncodeError> {
                self.entry(Tree::Str(key.to_owned()), value)
            }

            fn end(self) -> Result<Tree, EncodeError> {
                Ok(self.map())
            }
        })*
    };
}

structs!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Parts<'_> {
    type Ok = Tree;
    type Error = EncodeError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), EncodeError> {
        self.key = Some(key.serialize(self.reader.again())?);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        let key = self.key.take().ok_or_else(no_key)?;
        self.entry(key, value)
    }

    fn end(self) -> Result<Tree, EncodeError> {
        Ok(self.map())
    }
}

#[cfg(test)]
mod tests;
