//! Looks whether a link gets on: beside its reader and writer, so that it sees when one of them does not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::core::link::{Progress, Stall};
use crate::error::LinkError;
use crate::hub::peer::{PeerRole, count};
use crate::quic::connection::Ends;

/// The least that a peer may read without acknowledging any of it. It acknowledges far more often; between messages
/// there may be a whole snapshot of this node's rooms.
const READ_BYTES: u64 = 64 << 20;
/// The frames of the largest size that a peer may read without acknowledging any.
const READ_FRAMES: u64 = 4;

/// Ends with [`LinkError::Stalled`] when the link stands and gets nothing done.
pub(super) async fn watch(ends: Ends) -> Result<(), LinkError> {
    let Ends { peer, hub, signals, .. } = ends;
    let config = &hub.config.link;
    let in_a_row = peer.stalls_in_a_row.load(Ordering::Acquire);
    let limit_ms = u64::try_from(config.stall_limit.as_millis()).unwrap_or(u64::MAX);
    let limit_ms = Stall::limit_after(limit_ms, in_a_row);
    let read_bytes = READ_BYTES.max((config.max_frame_bytes as u64).saturating_mul(READ_FRAMES));
    let mut stall = Stall::new(limit_ms, read_bytes);
    let mut tick = interval(Duration::from_millis((limit_ms / u64::from(Stall::LOOKS)).max(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let odd = |number: u64| (number % 2 == 1, number);
        let (sent, known) =
            (signals.interest_sent.load(Ordering::Acquire), peer.interest_acked.load(Ordering::Acquire));
        let (owed, acked) = peer.owed();
        let progress = Progress {
            frames: (owed, acked.0),
            interest: (sent > known && peer.role == PeerRole::Member, known),
            heard: signals.heard.load(Ordering::Acquire),
            reader: odd(signals.reader.load(Ordering::Acquire)),
            writer: odd(signals.writer.load(Ordering::Acquire)),
        };
        let Some((part, ms)) = stall.look(&progress, hub.now_ms()) else { continue };
        count(&peer.counters.stalls, 1);
        count(&hub.counters.stalls, 1);
        if peer.stalls_in_a_row.fetch_add(1, Ordering::AcqRel) == 0 {
            tracing::warn!(node = %hub.id, peer = %peer.id, reason = %part, ms, "a link gets nothing done and is replaced");
        }
        return Err(LinkError::Stalled { part, ms });
    }
}
