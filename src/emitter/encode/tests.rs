use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use socketioxide_core::Value;
use socketioxide_core::parser::Parse;
use socketioxide_parser_common::CommonParser;
use socketioxide_parser_msgpack::MsgPackParser;

use super::*;

/// What the parsers of socketioxide make of it, as the adapter puts it on the wire.
fn theirs<T: Serialize + ?Sized>(parser: Parser, event: &str, data: &T) -> Result<Encoded, String> {
    let value = match parser {
        Parser::Common => CommonParser.encode_value(data, Some(event)),
        Parser::MsgPack => MsgPackParser.encode_value(data, Some(event)),
    };
    Ok(match value.map_err(|error| error.to_string())? {
        Value::Bytes(payload) => {
            Encoded { kind: PayloadKind::SocketIoBytes, payload, attachments: SmallVec::new() }
        }
        Value::Str(text, attachments) => {
            let attachments: Vec<Bytes> = attachments.unwrap_or_default().into();
            Encoded {
                kind: PayloadKind::SocketIoText,
                payload: [text.as_bytes(), &attachments.concat()].concat().into(),
                attachments: attachments.iter().map(|bytes| bytes.len() as u32).collect(),
            }
        }
    })
}

#[track_caller]
fn same<T: Serialize + ?Sized>(data: &T) {
    for parser in [Parser::Common, Parser::MsgPack] {
        let (ours, theirs) = (parser.encode("an \"event\"", data), theirs(parser, "an \"event\"", data));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs),
            (ours, theirs) => assert!(ours.is_err() && theirs.is_err(), "{ours:?} and {theirs:?}"),
        }
    }
}

#[derive(serde::Serialize)]
struct Message<'a> {
    text: &'a str,
    data: Bytes,
    at: (u8, f32),
    more: Option<Vec<Kind>>,
}

#[derive(serde::Serialize)]
enum Kind {
    Unit,
    One(i64),
    Two(i8, Option<Bytes>),
    Fields { a: char, b: () },
}

#[derive(serde::Serialize)]
struct Empty;

#[derive(serde::Serialize)]
struct Pair(u8, String);

#[derive(serde::Serialize)]
struct Name(&'static str);

#[test]
fn the_bytes_are_those_of_the_parsers() {
    let bytes = Bytes::from_static(&[0, 1, 255]);
    let more = vec![Kind::Unit, Kind::One(-33), Kind::Two(-128, None), Kind::Fields { a: 'ß', b: () }];
    same(&Message { text: "grüße \u{1f600}\n", data: bytes.clone(), at: (7, 0.1), more: Some(more) });
    same("text");
    same(&());
    same(&Empty);
    same(&vec![Empty, Empty]);
    same(&Pair(200, "x".into()));
    same(&("one", 2, [3.5, f64::NAN], vec![bytes.clone(), bytes.clone()]));
    same(&Some((1, 2)));
    same(&None::<u8>);
    same(&vec![(1, "a"), (2, "b")]);
    same(&[1u8; 32]);
    same(&bytes);
    same(&Bytes::from(vec![7; 70_000]));
    same(&Binary(b"as bytes"));
    same(&"x".repeat(31));
    same(&["y".repeat(32), "z".repeat(256), "w".repeat(70_000)]);
    same(&BTreeMap::from([(1u8, true), (200, false)]));
    same(&BTreeMap::from([(-1i64, 1.5f32)]));
    same(&BTreeMap::from([(true, Name("in a map"))]));
    same(&BTreeMap::from([('k', Kind::Unit)]));
    same(&std::net::Ipv4Addr::LOCALHOST);
    same(&vec![std::net::Ipv4Addr::LOCALHOST]);
    same(&(0..20).map(|n| (n.to_string(), n)).collect::<BTreeMap<_, _>>());
    same(&(0..70_000u32).collect::<Vec<_>>());
    same(&json!({ "b": [1, null, -5, 1e300, { "a": "x" }], "a": {} }));
    // Larger numbers than 64 bits have no form that clients of both parsers read.
    assert!(
        Parser::MsgPack.encode("event", &u128::MAX).is_err()
            && Parser::Common.encode("event", &1u128).is_err()
    );
}

/// The common parser of socketioxide sees no bytes inside an option or a struct of one field and sends a list of numbers;
/// ours are binary for clients wherever they are.
#[test]
fn bytes_in_an_option_are_binary() {
    let encoded = Parser::Common.encode("event", &Some(Bytes::from_static(b"abc"))).unwrap();
    assert_eq!(&encoded.payload[..], br#"["event",{"_placeholder":true,"num":0}]abc"#);
    assert_eq!(encoded.attachments[..], [3]);
    let theirs = theirs(Parser::Common, "event", &Some(Bytes::from_static(b"abc"))).unwrap();
    assert_eq!(&theirs.payload[..], br#"["event",[97,98,99]]"#);
}

/// The parsers of socketioxide lose the event of a struct of one field; ours send that field as the argument.
#[test]
fn a_struct_of_one_field_is_its_field() {
    let encoded = Parser::Common.encode("event", &Name("roomcast")).unwrap();
    assert_eq!(&encoded.payload[..], br#"["event","roomcast"]"#);
}

struct Binary<'a>(&'a [u8]);

impl Serialize for Binary<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

fn json_value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        (-200i64..300).prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,40}".prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Json::from),
            proptest::collection::btree_map(".{0,8}", inner, 0..20)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_encoded_as_the_parsers_do(value in json_value(), int: i64, wide: u64, small: i16) {
        same(&value);
        same(&(int, wide, small, small as i8, wide as u32));
    }
}
