//! Data, read once into a tree that knows what JSON and MessagePack tell apart.

use bytes::Bytes;
use serde::ser::{self, Serialize};

use super::EncodeError;

/// Data, as far as the two forms tell it apart.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
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

/// Reads data into a tree.
pub(super) struct Reader<'a> {
    pub(super) human_readable: bool,
    /// The same for what is inside.
    pub(super) nested: bool,
    pub(super) attachments: &'a mut Vec<Bytes>,
}

impl Reader<'_> {
    fn again(&mut self) -> Reader<'_> {
        Reader { human_readable: self.nested, nested: self.nested, attachments: self.attachments }
    }
}

/// The parts of a list or a map, as they come.
pub(super) struct Parts<'a> {
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
pub(super) fn one(tree: Tree) -> Tree {
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

/// A key that is none.
pub(super) fn no_key() -> EncodeError {
    EncodeError("a key must be text or a number".to_owned())
}
