//! Acknowledgements between two nodes without links.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use socketioxide_core::adapter::CoreAdapter;
use socketioxide_core::{Sid, Value};

use super::super::{RoomcastAdapterConfig, with_answers};
use super::fake::{FakeAcks, FakeParser, FakeSockets, event, pass, text};
use super::requests::{collect, sorted};
use super::{Pair, everyone};
use crate::hub::requests::MissingReason;

#[tokio::test]
async fn values_of_both_parsers_come_back() {
    let attachments = [Bytes::from_static(b"\0\xff"), Bytes::from_static(b"b")];
    let cases = [
        (FakeParser::Text, Value::Str("[{}]".into(), Some(attachments.into()))),
        (FakeParser::Bytes, Value::Bytes(Bytes::from_static(b"\x91\xc0"))),
    ];
    for (parser, value) in cases {
        let pair = Pair::new(&RoomcastAdapterConfig::new(), parser);
        let sid = pair.to.connect();
        let acks = pair.sender.broadcast_with_ack(event("/chat", value.clone()), everyone(), None).await;
        assert_eq!(pair.run(collect(acks.unwrap())).await, [(sid, Ok(value))]);
    }
}

#[tokio::test]
async fn errors_of_sockets_come_back() {
    let mut pair = Pair::flood();
    pair.to.acks = FakeAcks::Error;
    pair.receiver = pair.b.adapter(RoomcastAdapterConfig::new(), &pair.to);
    let sid = pair.to.connect();
    assert_eq!(pair.acks(everyone(), None).await.0, [(sid, Err("fake".into()))]);
}

#[tokio::test]
async fn another_parser_is_a_missing_node() {
    let mut pair = Pair::flood();
    pair.to = FakeSockets::new("/chat", FakeParser::Bytes);
    pair.receiver = pair.b.adapter(RoomcastAdapterConfig::new(), &pair.to);
    pair.to.connect();
    let here = pair.from.connect();
    let (acks, answers) = pair.acks(everyone(), None).await;
    assert_eq!(acks, [(here, Ok(text("[1]")))]);
    assert_eq!(answers.missing()[0].reason, MissingReason::Failed);
    assert!(pair.receiver.warned.load(Ordering::Relaxed) && pair.to.sent().is_empty());
    // Rooms and sockets are the same with any parser.
    assert_eq!(pair.sockets(everyone()).await.len(), 2);
}

#[tokio::test]
async fn a_node_that_goes_is_named() {
    let mut pair = Pair::flood();
    pair.to.acks = FakeAcks::Never;
    pair.receiver = pair.b.adapter(RoomcastAdapterConfig::new(), &pair.to);
    pair.to.connect();
    let here = pair.from.connect();
    let packet = event("/chat", text("[1]"));
    let emit = pair.sender.broadcast_with_ack(packet, everyone(), Some(Duration::from_secs(3600)));
    let (acks, answers) = with_answers(emit).await;
    pair.settle().await;
    assert!(!answers.is_complete() && answers.missing().is_empty());
    pair.a.hub.remove_peer(&pair.queue);
    assert_eq!(collect(acks.unwrap()).await, [(here, Ok(text("[1]")))]);
    assert_eq!(answers.missing()[0].to_string(), "b: left");
    assert!(!answers.is_complete());
}

#[tokio::test]
async fn a_dropped_stream_leaves_nothing() {
    let mut pair = Pair::flood();
    pair.to.acks = FakeAcks::Never;
    pair.receiver = pair.b.adapter(RoomcastAdapterConfig::new(), &pair.to);
    pair.to.connect();
    for _ in 0..100 {
        let emit = pair.sender.broadcast_with_ack(event("/chat", text("[1]")), everyone(), None);
        let (acks, answers) = with_answers(emit).await;
        pair.settle().await;
        assert_eq!((pair.a.hub.requests.pending(), pair.back.serving.len()), (1, 1));
        drop(acks);
        pair.settle().await;
        assert!(pair.nothing_is_pending());
        assert_eq!(answers.missing()[0].reason, MissingReason::TimedOut);
    }
}

#[tokio::test]
async fn acknowledgements_keep_to_their_credit() {
    let config = RoomcastAdapterConfig::new().with_ack_response_buffer(4);
    let pair = Pair::new(&config, FakeParser::Text);
    let sids: Vec<Sid> = (0..2000).map(|_| pair.to.connect()).collect();
    let packet = event("/chat", text("[1]"));
    let acks = pair.sender.broadcast_with_ack(packet, everyone(), None).await.unwrap();
    pair.exchange();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(pass(&pair.back, &pair.a, &pair.queue), 4, "and no more before they are taken");
    let got = pair.run(collect(acks)).await;
    assert_eq!(got.into_iter().map(|(sid, _)| sid).collect::<Vec<_>>(), sorted(sids));
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_makes_the_node_missing() {
    let pair = Pair::flood();
    let (acks, answers) =
        with_answers(pair.sender.broadcast_with_ack(event("/chat", text("[1]")), everyone(), None)).await;
    // The number of the only question.
    pair.a.hub.requests.answered(pair.queue.slot, 1, Bytes::from_static(b"\xff\xffnonsense"));
    assert!(pair.run(collect(acks.unwrap())).await.is_empty());
    assert_eq!(answers.missing()[0].reason, MissingReason::Failed);
}
