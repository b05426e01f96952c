//! The seeds of the fuzz targets: one file for each kind of what a decoder reads, written by the encoders. Those of gossip are
//! written by `src/gossip/tests.rs`.

use std::fs;
use std::path::Path;

use bytes::BytesMut;
use cluster_tests::raw::{broadcast, frame};
use roomcast::core::frame::{
    AckFailure, Acknowledged, FrameLimits, Head, Hello, InterestHead, InterestPart, LENGTH_BYTES, Op,
    PayloadKind, Refusal, RefusalKind, Relayed, RequestHead, Resume, RoomRecord, SocketRecord, WireMode,
    decode_stream, encode_body,
};
use roomcast::trace::TraceContext;
use serde::Serialize;
use smallvec::smallvec;

const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 16 * 1024, max_room_bytes: 64 };

/// The files hold what today's encoder writes. `ROOMCAST_WRITE_SEEDS=1` writes them anew after the wire form changed.
#[test]
fn fuzz_seeds_are_real_frames() {
    for (name, bytes) in seeds() {
        let frames = decode_stream(&bytes, &LIMITS).unwrap();
        assert!(frames > 0, "{name}");
        check("frame", name, &bytes);
    }
    let targets =
        [("hello", hellos()), ("interest", interest()), ("request", requests()), ("answer", answers())];
    for (target, seeds) in targets.into_iter().chain([("admin", admin())]) {
        for (name, bytes) in seeds {
            assert!(roomcast::fuzz::run(target, &bytes), "{target} {name}");
            check(target, name, &bytes);
        }
    }
}

fn check(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let path = folder.join(name);
    if std::env::var_os("ROOMCAST_WRITE_SEEDS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let stored = fs::read(&path).unwrap_or_default();
    assert!(stored == bytes, "{target}/{name} is out of date: run this test with ROOMCAST_WRITE_SEEDS=1");
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
    let context: TraceContext = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
    let trace = frame(&Head::Trace(context), b"");
    let (first, again) = (frame(&broadcast("/chat"), b"hello"), frame(&Head::Again, b"again"));
    seeds.push(("traced", after(&after(&trace, first), after(&trace, again))));
    let all = seeds.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect::<Vec<u8>>();
    seeds.push(("stream", BytesMut::from(&all[..])));
    seeds
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn without_length(head: &Head<'_>, payload: &[u8]) -> Vec<u8> {
    frame(head, payload)[LENGTH_BYTES..].to_vec()
}

fn hellos() -> Seeds {
    let hello = |advertise, extensions| {
        let (cluster, node, incarnation) = ("fuzz", "chat-0", 1_735_689_600_000_000);
        let (protocol_min, protocol_max) = (1, 1);
        let head =
            Hello { protocol_min, protocol_max, cluster, node, incarnation, nonce: 3, advertise, extensions };
        without_length(&Head::Hello(head), b"")
    };
    vec![
        ("node", hello("10.1.2.3:7946", smallvec![])),
        ("emitter", hello("0.0.0.0:0", smallvec![(1, "emitter")])),
        ("extended", hello("[2001:db8::7]:7946", smallvec![(7, "later"), (300, "and more")])),
    ]
}

fn interest() -> Seeds {
    let part = |version, part, ns, number, mode, added, keys: &[u64]| {
        let payload: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        frame(&Head::Interest(InterestHead { version, part, ns, number, mode, added }), &payload).to_vec()
    };
    use InterestPart::{Delta, DeltaEnd, Snapshot, SnapshotEnd};
    use WireMode::{Exact, Flood, Gone};
    let snapshot = [
        part(5, Snapshot, "/a", 1, Exact, 3, &[1, 2, 3]),
        part(5, Snapshot, "/a", 1, Exact, 2, &[4, 5]),
        part(5, SnapshotEnd, "/b", 2, Flood, 0, &[]),
    ]
    .concat();
    let rooms = |number, added, key: u64| {
        frame(&Head::Rooms { number, added }, &[key.to_le_bytes(), 2u64.to_le_bytes()].concat()).to_vec()
    };
    let delta =
        [part(6, Delta, "/a", 1, Exact, 1, &[9, 1]), part(6, DeltaEnd, "/c", 3, Exact, 1, &[7])].concat();
    let turns =
        [part(6, DeltaEnd, "/a", 1, Flood, 0, &[]), part(7, DeltaEnd, "/a", 1, Exact, 1, &[8])].concat();
    vec![
        ("empty", part(0, SnapshotEnd, "", 0, Gone, 0, &[])),
        ("snapshot", snapshot.clone()),
        ("rooms", [&snapshot[..], &rooms(1, 1, 10), &rooms(1, 2, 11)].concat()),
        ("delta", [&snapshot[..], &delta, &rooms(3, 1, 12)].concat()),
        ("gone", [&snapshot[..], &part(6, DeltaEnd, "/a", 1, Gone, 0, &[])].concat()),
        ("turns", [&snapshot[..], &turns].concat()),
        ("again", [&snapshot[..], &snapshot].concat()),
    ]
}

fn requests() -> Seeds {
    let request = |op, names: &[&'static str], socket, kind, payload: &[u8]| {
        let Head::Broadcast(mut to) = broadcast("/chat") else { unreachable!() };
        (to.kind, to.socket, to.rooms) = (kind, socket, smallvec!["lobby"]);
        if kind == PayloadKind::SocketIoText {
            to.attachments = smallvec![3];
        }
        let names = names.iter().copied().collect();
        without_length(
            &Head::Request(RequestHead { id: 7, op, timeout_ms: 5_000, credit: 16, names, to }),
            payload,
        )
    };
    let (plain, text) = (PayloadKind::Plain, PayloadKind::SocketIoText);
    let sid = Some("AAAAAAAAAAAAAAAA");
    vec![
        ("deliver-plain", request(Op::Deliver, &[], Some("7"), plain, b"hello")),
        ("deliver-text", request(Op::Deliver, &[], sid, text, b"[\"message\",{}]abc")),
        ("deliver-bytes", request(Op::Deliver, &[], None, PayloadKind::SocketIoBytes, b"\x92\xa1x\x01")),
        ("join", request(Op::Join, &["hall", "room-1"], sid, plain, b"")),
        ("disconnect", request(Op::Disconnect, &[], None, plain, b"")),
        ("sockets", request(Op::Sockets, &[], None, plain, b"")),
        ("server-event", request(Op::ServerEvent, &["reload"], None, plain, b"{\"what\":[1,null,\"x\"]}")),
        ("watch", request(Op::WatchRooms, &[], None, plain, b"")),
    ]
}

/// As `Told` of `src/hub/cluster_rooms.rs`.
#[derive(Serialize)]
enum Told {
    Begin,
    Rooms { ns: &'static str, rooms: Vec<&'static str> },
    End,
    Created { ns: &'static str, room: &'static str },
    Deleted { ns: &'static str, room: &'static str },
}

/// As the head of an acknowledgement in `src/socketioxide/acks.rs`.
#[derive(Serialize)]
enum What {
    Text(Vec<u32>),
    Bytes,
}

fn answers() -> Seeds {
    let (ns, room) = ("/chat", "hall");
    let told = vec![
        Told::Begin,
        Told::Rooms { ns, rooms: vec!["lobby", "room-1"] },
        Told::End,
        Told::Created { ns, room },
        Told::Deleted { ns, room: "lobby" },
    ];
    let records = vec![
        SocketRecord { id: "7".into(), server: None, rooms: vec!["lobby".into()], data: b"{}".to_vec() },
        SocketRecord { id: "A".repeat(16), server: Some("B".repeat(16)), rooms: vec![], data: vec![] },
    ];
    let sizes = vec![RoomRecord { room: "lobby".into(), members: 300 }];
    let ack = |what, rest: &[u8]| {
        let head = encode_body(&("A".repeat(16), what)).unwrap();
        [&u16::try_from(head.len()).unwrap().to_le_bytes()[..], &head, rest].concat()
    };
    let relayed = Relayed::Answer { node: "chat-0".into(), body: encode_body(&3u64).unwrap() };
    let missing = Relayed::Missing(vec![("chat-1".into(), 2), ("chat-2".into(), 4)]);
    let given = Acknowledged::Given(258, bytes::Bytes::from_static(b"yes"));
    vec![
        ("sockets", encode_body(&records).unwrap().to_vec()),
        ("sizes", encode_body(&sizes).unwrap().to_vec()),
        ("rooms", encode_body(&vec!["lobby", "hall"]).unwrap().to_vec()),
        ("count", encode_body(&70_000u64).unwrap().to_vec()),
        ("told", encode_body(&told).unwrap().to_vec()),
        ("given", given.encode().to_vec()),
        ("failed", Acknowledged::Failed(AckFailure::TimedOut, vec![1, 2, u64::MAX]).encode().to_vec()),
        ("relayed", relayed.encode().unwrap().to_vec()),
        ("missing", missing.encode().unwrap().to_vec()),
        ("handled", b"\0{\"ok\":true}".to_vec()),
        ("unfit", b"\x01expected a number".to_vec()),
        ("ack-text", ack(What::Text(vec![3, 0]), b"[\"yes\",{}]abc")),
        ("ack-bytes", ack(What::Bytes, b"\x91\xa1x")),
    ]
}

fn admin() -> Seeds {
    let with_body =
        "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let twice =
        "GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let requests = [
        ("status", "GET /status?x=%20&y#z HTTP/1.1\r\nHost: localhost:9001\r\nConnection: close\r\n\r\n"),
        ("livez", "GET /livez HTTP/1.0\r\n\r\n"),
        ("head", "HEAD /status HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nConnection: close\r\n\r\n"),
        ("chunked", with_body),
        ("twice", twice),
    ];
    requests.map(|(name, text)| (name, text.as_bytes().to_vec())).to_vec()
}
