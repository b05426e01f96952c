//! The seeds of the fuzz target: one file for each kind of frame, and one stream of all.

use std::fs;
use std::path::Path;

use bytes::BytesMut;
use cluster_tests::raw::{broadcast, frame};
use roomcast::core::frame::{
    FrameLimits, Head, Hello, InterestHead, InterestPart, PayloadKind, Refusal, RefusalKind, Resume,
    WireMode, decode_stream,
};
use smallvec::smallvec;

const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 16 * 1024, max_room_bytes: 64 };

/// The files hold what today's encoder writes. `ROOMCAST_WRITE_SEEDS=1` writes them anew after the wire form changed.
#[test]
fn fuzz_seeds_are_real_frames() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frame");
    for (name, bytes) in seeds() {
        let frames = decode_stream(&bytes, &LIMITS).unwrap();
        assert!(frames > 0, "{name}");
        let path = folder.join(name);
        if std::env::var_os("ROOMCAST_WRITE_SEEDS").is_some() {
            fs::write(&path, &bytes).unwrap();
        }
        let stored = fs::read(&path).unwrap_or_default();
        assert!(stored == bytes, "{name} is out of date: run this test with ROOMCAST_WRITE_SEEDS=1");
    }
}

fn seeds() -> Vec<(&'static str, BytesMut)> {
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        cluster: "chat-prod",
        node: "chat-0",
        incarnation: 1_735_689_600_000_000,
        nonce: 3,
        advertise: "10.1.2.3:7946",
        extensions: smallvec![(1, "value")],
    };
    let interest = |part, mode, added| {
        Head::Interest(InterestHead { version: 9, part, ns: "/chat", number: 3, mode, added })
    };
    let keys: Vec<u8> =
        (1..=5u64).flat_map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let mut full = broadcast("/chat");
    if let Head::Broadcast(head) = &mut full {
        head.kind = PayloadKind::SocketIoText;
        head.flags = 0x06;
        head.rooms = smallvec!["lobby", "room-1"];
        head.except = smallvec!["quiet"];
        head.server = Some("AAAAAAAAAAAAAAAA");
        head.socket = Some("BBBBBBBBBBBBBBBB");
        head.attachments = smallvec![3, 4];
    }
    let mut seeds = vec![
        ("hello", frame(&Head::Hello(hello), b"")),
        ("refused", frame(&Head::Refused(Refusal { kind: RefusalKind::Stale, text: "older" }), b"")),
        ("resume-new", frame(&Head::Resume(Resume { epoch: 77, received: None }), b"")),
        ("resume-known", frame(&Head::Resume(Resume { epoch: 77, received: Some((78, 1000)) }), b"")),
        ("start", frame(&Head::Start { first: 1001 }, b"")),
        ("received", frame(&Head::Received { seq: 1000, interest: 9 }, b"")),
        ("interest-snapshot", frame(&interest(InterestPart::SnapshotEnd, WireMode::Exact, 5), &keys)),
        ("interest-delta", frame(&interest(InterestPart::DeltaEnd, WireMode::Exact, 3), &keys)),
        ("interest-flood", frame(&interest(InterestPart::Delta, WireMode::Flood, 0), b"")),
        ("interest-gone", frame(&interest(InterestPart::DeltaEnd, WireMode::Gone, 0), b"")),
        ("interest-wanted", frame(&Head::InterestWanted, b"")),
        ("broadcast-plain", frame(&broadcast("/chat"), b"hello")),
        ("broadcast-full", frame(&full, b"[\"message\",{}]abcdefg")),
    ];
    // These say nothing alone.
    let after = |first: &BytesMut, then: BytesMut| BytesMut::from(&[&first[..], &then].concat()[..]);
    let snapshot = frame(&interest(InterestPart::SnapshotEnd, WireMode::Exact, 5), &keys);
    let rooms = frame(&Head::Rooms { number: 3, added: 2 }, &keys);
    seeds.push(("rooms", after(&snapshot, rooms)));
    let again = frame(&Head::Again, b"[\"message\",[]]hijklmn");
    seeds.push(("again", after(&frame(&full, b"[\"message\",{}]abcdefg"), again)));
    let all = seeds.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect::<Vec<u8>>();
    seeds.push(("stream", BytesMut::from(&all[..])));
    seeds
}
