//! When a node acknowledges what an emitter sent: not before the other nodes have it. The emitter keeps it until then, so
//! that a node that dies takes nothing with it that nobody is told of.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use crate::error::LinkError;
use crate::hub::peer::PeerQueue;
use crate::ids::Seq;
use crate::quic::connection::Ends;

/// How long an acknowledgement waits for the other nodes. One that is slow or away must not hold up emitters for long; it
/// gets what it is owed as any peer does, while this node lives.
const CONFIRM_TIME: Duration = Duration::from_secs(2);

/// Runs beside a link of an emitter. What was passed on was queued for the others before it was counted as relayed, so
/// what is queued for them now includes it.
pub(super) async fn confirm(ends: Ends) -> Result<(), LinkError> {
    let Ends { peer, hub, signals, .. } = ends;
    let mut told = 0;
    loop {
        let relayed = peer.relayed.load(Ordering::Acquire);
        if relayed == told {
            peer.relay_wake.notified().await;
            continue;
        }
        let owed: Vec<(Arc<PeerQueue>, Seq)> =
            hub.peers().into_iter().map(|other| (Arc::clone(&other), other.last())).collect();
        let taken = async {
            for (other, last) in &owed {
                other.reached(*last).await;
            }
        };
        let _ = timeout(CONFIRM_TIME, taken).await;
        told = relayed;
        peer.applied.fetch_max(relayed, Ordering::AcqRel);
        signals.ack.store(true, Ordering::Release);
        peer.wake.notify_one();
    }
}
