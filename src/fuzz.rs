//! For the fuzz targets and their stable runner, and no part of the API: one function for each decoder that bytes from
//! the network reach. Each takes any bytes, panics where a promise is broken, and says whether it could read them.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::core::frame::{
    Acknowledged, FrameLimits, Head, InterestLimits, InterestReader, InterestStep, LENGTH_BYTES, Op, Relayed,
    RoomRecord, SocketRecord, decode_body, decode_broadcast, decode_head, decode_keys, decode_stream,
    encode_body, frame_len, trace_frame,
};
use crate::core::interest::{InterestChange, RoomMode};
use crate::core::presence::Presence;
use crate::core::routes::{PeerMask, RouteError, Routes, RoutesConfig};
use crate::core::version::Protocols;
use crate::hub::cluster_rooms;
use crate::hub::handlers::Handled;
use crate::ids::{Incarnation, NodeId, PeerSlot};
use crate::quic::handshake::{self, Card};
use crate::quic::tls::ClusterName;

/// A decoder: its name, which is that of its corpus, and the function.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("hello", hello),
    ("interest", interest),
    ("gossip", gossip),
    ("request", request),
    ("answer", answer),
    #[cfg(feature = "status")]
    ("admin", super::status::fuzz::admin),
];

/// Gives the bytes to the decoder of that name.
///
/// # Panics
/// When there is none, and where the decoder does.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|(other, _)| *other == name);
    target.expect("the names are those of `TARGETS`").1(bytes)
}

/// Small limits, so that inputs of fuzzing size go over them, too.
const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 16 * 1024, max_room_bytes: 64 };
const MAX_ROOMS: usize = 40;
const MAX_NAMESPACES: usize = 4;

/// The data stream of a link, and one frame without its length.
fn frame(bytes: &[u8]) -> bool {
    let stream = decode_stream(bytes, &LIMITS);
    let decoded = decode_head(bytes, &LIMITS);
    // The fast decoder leaves a frame to the other, or reads the same.
    match decode_broadcast(bytes, &LIMITS) {
        Ok(Some((head, used))) => assert_eq!(decoded, Ok((Head::Broadcast(head), used))),
        Ok(None) => {}
        Err(_) => assert!(decoded.is_err()),
    }
    if let Ok((head, used)) = decoded {
        let payload = &bytes[used..];
        match &head {
            Head::Interest(interest) => {
                if let Ok((added, removed)) = decode_keys(interest, payload) {
                    assert_eq!((added.len() + removed.len()) * 8, payload.len());
                }
            }
            Head::Trace(context) => assert_eq!(trace_frame(context)[LENGTH_BYTES..], *bytes),
            Head::Broadcast(broadcast) => {
                assert!(broadcast.rooms.iter().all(|room| room.len() <= LIMITS.max_room_bytes));
                let attached: u64 = broadcast.attachments.iter().map(|len| u64::from(*len)).sum();
                assert!(attached <= payload.len() as u64);
            }
            _ => {}
        }
    }
    matches!(stream, Ok(1..))
}

/// The first frame of a link, without its length.
fn hello(bytes: &[u8]) -> bool {
    let (Ok(cluster), Ok(id)) = (ClusterName::new("fuzz"), NodeId::new("own")) else { return false };
    let remote = SocketAddr::from(([10, 0, 0, 9], 7946));
    let incarnation = Incarnation(7);
    let protocols = Protocols::default();
    let own = Card { cluster, id, incarnation, advertise: remote, nonce: 1, emitter: false, protocols };
    let Ok(card) = handshake::read_card(bytes, &LIMITS, &own, remote) else { return false };
    assert!(card.cluster == own.cluster && (card.id != own.id || card.incarnation != own.incarnation));
    let spoken = card.protocols;
    assert!(spoken.min <= spoken.max && protocols.min <= spoken.min && spoken.max <= protocols.max);
    assert!(!card.advertise.ip().is_unspecified() && card.id.as_str().len() <= NodeId::MAX_LEN);
    true
}

/// A stream of frames about interest, as far as the route table that they end in.
fn interest(bytes: &[u8]) -> bool {
    thread_local! {
        // A table takes longer to make than an input to read.
        static ROUTES: Routes = Routes::new(RoutesConfig {
            max_rooms_per_peer: MAX_ROOMS,
            max_namespaces_per_peer: MAX_NAMESPACES,
        });
    }
    ROUTES.with(|routes| {
        let slot = PeerSlot(1);
        routes.add_peer(slot);
        let read = advertise(bytes, routes, slot);
        routes.remove_peer(slot);
        assert_eq!((routes.rooms(slot), routes.namespaces(slot), routes.rows()), (0, 0, 0));
        read
    })
}

fn advertise(bytes: &[u8], routes: &Routes, slot: PeerSlot) -> bool {
    let (max_rooms, max_namespaces) = (MAX_ROOMS, MAX_NAMESPACES);
    let mut reader = InterestReader::new(InterestLimits { max_rooms, max_namespaces });
    let (mut at, mut applied) = (0, 0);
    while let Ok(Some(length)) = frame_len(&bytes[at..], &LIMITS) {
        let Some(frame) = bytes.get(at + LENGTH_BYTES..at + LENGTH_BYTES + length) else { break };
        at += LENGTH_BYTES + length;
        let Ok((head, used)) = decode_head(frame, &LIMITS) else { return false };
        let step = match &head {
            Head::Interest(interest) => reader.part(interest, &frame[used..]),
            Head::Rooms { number, added } => {
                reader.rooms(*number, *added, &frame[used..]).map(InterestStep::Delta)
            }
            _ => continue,
        };
        let Ok(step) = step else { return false };
        match apply(routes, slot, step) {
            // As on a link: a snapshot is asked for, and the stream goes on.
            Ok(()) | Err(RouteError::VersionGap { .. } | RouteError::NoSnapshot(_)) => applied += 1,
            Err(_) => return false,
        }
        assert!(routes.rooms(slot) <= max_rooms && routes.namespaces(slot) <= max_namespaces);
    }
    applied > 0
}

fn apply(routes: &Routes, slot: PeerSlot, step: InterestStep) -> Result<(), RouteError> {
    match step {
        InterestStep::More => Ok(()),
        InterestStep::Snapshot { version, begins, change, ends } => {
            if begins {
                routes.snapshot_begin(slot, version)?;
            }
            if let Some(change) = change {
                routes.snapshot_chunk(slot, vec![change.clone()])?;
                is_routed(routes, slot, &change, false);
            }
            if ends {
                routes.snapshot_end(slot)?;
                assert_eq!(routes.version(slot), Some(version));
            }
            Ok(())
        }
        InterestStep::Delta(delta) => {
            routes.apply_delta(slot, &delta)?;
            assert_eq!(routes.version(slot), Some(delta.version));
            if let [change] = &delta.changes[..] {
                is_routed(routes, slot, change, true);
            }
            Ok(())
        }
    }
}

/// Whoever wants a room, or of whom that is not known, is among those who get what is sent to it.
fn is_routed(routes: &Routes, slot: PeerSlot, change: &InterestChange, held: bool) {
    let is_found = |rooms: &[_]| {
        let mut found = PeerMask::new();
        routes.lookup(&change.ns, rooms, &mut found);
        found.contains(slot)
    };
    if change.mode == Some(RoomMode::Flood) && held {
        assert!(is_found(&[]));
    }
    for room in change.added.iter().take(8) {
        assert!(is_found(&[*room]) || (held && change.mode != Some(RoomMode::Exact)));
    }
}

/// A gossip message: what is let in, and what chitchat's decoder makes of that.
fn gossip(bytes: &[u8]) -> bool {
    crate::gossip::transport::read(bytes).is_some()
}

/// A question or an order, as one frame without its length, as far as whom it means and what it brings.
fn request(bytes: &[u8]) -> bool {
    let Ok((Head::Request(head), used)) = decode_head(bytes, &LIMITS) else { return false };
    assert!(head.names.iter().chain(&head.to.rooms).all(|name| name.len() <= LIMITS.max_room_bytes));
    let payload = Bytes::copy_from_slice(&bytes[used..]);
    let _ = (head.timeout(), crate::plain::whom_it_means(&head));
    if head.op == Op::ServerEvent {
        let _ = serde_json::from_slice::<serde_json::Value>(&payload);
    }
    #[cfg(feature = "socketioxide")]
    crate::socketioxide::fuzz::delivery(&head.to, &payload);
    true
}

/// The body of an answer, as each kind of question reads it.
fn answer(bytes: &[u8]) -> bool {
    let body = Bytes::copy_from_slice(bytes);
    let mut read = list::<SocketRecord>(bytes) | list::<RoomRecord>(bytes) | list::<String>(bytes);
    read |= decode_body::<u64>(bytes).is_ok();
    if let Ok(acknowledged) = Acknowledged::decode(&body) {
        assert_eq!(acknowledged.encode(), body);
        read = true;
    }
    if let Ok(relayed) = Relayed::decode(&body) {
        let again = relayed.encode().map(|body| Relayed::decode(&body));
        assert_eq!(again, Ok(Ok(relayed)));
        read = true;
    }
    read |= !matches!(Handled::decode(bytes), Handled::Failed);
    let (mut presence, mut out) = (Presence::new(MAX_ROOMS), Vec::new());
    read |= cluster_rooms::apply(&mut presence, 1, bytes, &mut out);
    presence.gone(1, &mut out);
    assert!(presence.rooms() == 0 && out.len() % 2 == 0, "each room that opened has closed: {out:?}");
    #[cfg(feature = "socketioxide")]
    {
        read |= crate::socketioxide::fuzz::acknowledgement(&body);
    }
    read
}

/// A list is what it was written from, and holds no more than its bytes can say.
fn list<T>(bytes: &[u8]) -> bool
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(list) = decode_body::<Vec<T>>(bytes) else { return false };
    assert!(list.len() <= bytes.len());
    let again = encode_body(&list).and_then(|body| decode_body::<Vec<T>>(&body));
    assert_eq!(again, Ok(list));
    true
}
