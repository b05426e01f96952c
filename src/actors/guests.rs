//! The links of emitters: each greeted connection takes its turn as the link of its emitter.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::error::LinkError;
use crate::hub::Hub;
use crate::hub::feed::InterestSnapshot;
use crate::hub::guests::Guest;
use crate::hub::peer::{PeerQueue, count};
use crate::quic::connection::{self, Applied, InterestUpdate, LinkHost};
use crate::quic::handshake::{Card, CloseCode, Greeted};

/// Takes in an emitter that has greeted, and serves its link in a task of its own.
pub(crate) async fn welcome(mut greeted: Greeted, hub: &Arc<Hub>, card: &Card) -> Result<(), LinkError> {
    let guest = match hub.guests.admit(hub, &greeted.theirs) {
        Ok(guest) => guest,
        Err(error) => {
            greeted.refuse(&error).await;
            return Err(error);
        }
    };
    let seat = Seat { guest, hub: Arc::clone(hub), for_good: false };
    greeted.welcome(card).await?;
    tokio::spawn(async move {
        let for_good = serve(greeted, &seat.guest, &seat.hub).await;
        seat.leave(for_good);
    });
    Ok(())
}

/// A connection of an emitter, from the moment it is taken in until it has ended, however it ends.
struct Seat {
    guest: Arc<Guest>,
    hub: Arc<Hub>,
    for_good: bool,
}

impl Seat {
    fn leave(mut self, for_good: bool) {
        self.for_good = for_good;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.guests.ended(&self.guest, self.hub.now_ms(), self.for_good);
    }
}

/// Runs the link until it ends; whether the emitter has said goodbye.
async fn serve(greeted: Greeted, guest: &Guest, hub: &Arc<Hub>) -> bool {
    let queue = &guest.queue;
    // The emitter dials again only when it has lost the link before, also if this side has not noticed.
    queue.close_link(CloseCode::Duplicate, "another link is kept");
    let _turn = guest.turn.lock().await;
    if guest.nonce.load(Ordering::Acquire) > greeted.nonce || greeted.conn.close_reason().is_some() {
        CloseCode::Duplicate.close(&greeted.conn, "another link is kept");
        return false;
    }
    count(&queue.counters.links, 1);
    tracing::info!(node = %hub.id, peer = %queue.id, addr = %greeted.conn.remote_address(), "emitter linked");
    connection::open(&greeted, queue, Handle::current());
    if guest.nonce.load(Ordering::Acquire) > greeted.nonce {
        // A later one came while there was nothing to close yet.
        queue.close_link(CloseCode::Duplicate, "another link is kept");
    }
    let error = connection::run(greeted, Arc::clone(queue), Arc::clone(hub), Arc::new(NoInterest)).await;
    tracing::info!(node = %hub.id, peer = %queue.id, reason = %error, "link of an emitter down");
    if matches!(error, LinkError::Violation(_)) {
        count(&hub.counters.violations, 1);
    }
    error == LinkError::Left
}

/// A link without interest and gossip: frames of these kinds have been refused when this would be asked.
pub(crate) struct NoInterest;

#[async_trait]
impl LinkHost for NoInterest {
    async fn interest(&self, _: &Arc<PeerQueue>, _: InterestUpdate) -> Result<Applied, LinkError> {
        Err(LinkError::Violation("interest on the link of an emitter".into()))
    }

    async fn snapshot(&self) -> Result<InterestSnapshot, LinkError> {
        Err(LinkError::Violation("interest on the link of an emitter".into()))
    }

    fn gossip(&self, _: SocketAddr, _: Bytes) {}
}
