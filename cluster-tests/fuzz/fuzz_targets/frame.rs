//! Any bytes as the data stream of a link, and as one frame: errors are fine, panics and unbounded work are not.
//!
//! Run with `cargo +nightly fuzz run frame` in `cluster-tests`. The seeds in `corpus/frame` are real frames, written by
//! the test `fuzz_seeds_are_real_frames`, and inputs that once broke something.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roomcast::core::frame::{FrameLimits, Head, decode_broadcast, decode_head, decode_keys, decode_stream};

/// Small limits, so that inputs of fuzzing size go over them, too.
const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 16 * 1024, max_room_bytes: 64 };

fuzz_target!(|bytes: &[u8]| {
    let _ = decode_stream(bytes, &LIMITS);
    let decoded = decode_head(bytes, &LIMITS);
    // The fast decoder leaves a frame to the other, or reads the same.
    match decode_broadcast(bytes, &LIMITS) {
        Ok(Some((head, used))) => assert_eq!(decoded, Ok((Head::Broadcast(head), used))),
        Ok(None) => {}
        Err(_) => assert!(decoded.is_err()),
    }
    let Ok((head, used)) = decoded else { return };
    let payload = &bytes[used..];
    match &head {
        Head::Interest(interest) => {
            if let Ok((added, removed)) = decode_keys(interest, payload) {
                assert_eq!((added.len() + removed.len()) * 8, payload.len());
            }
        }
        Head::Broadcast(broadcast) => {
            assert!(broadcast.rooms.iter().all(|room| room.len() <= LIMITS.max_room_bytes));
            let attached: u64 = broadcast.attachments.iter().map(|len| u64::from(*len)).sum();
            assert!(attached <= payload.len() as u64);
        }
        _ => {}
    }
});
