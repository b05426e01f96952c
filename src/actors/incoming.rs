//! Greeted connections, in both directions: who is asked, and what becomes of those that are not wanted.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use tokio::time::Instant;

use crate::actors::guests;
use crate::actors::membership::{Membership, Offer};
use crate::actors::peer::{NewLink, Peer};
use crate::error::LinkError;
use crate::hub::Hub;
use crate::hub::peer::count;
use crate::ids::NodeId;
use crate::quic::handshake::{self, Card, CloseCode, Greeted};

/// What a handshake may take beyond its limit when it ends in a refusal: the other side is told why.
const REFUSAL: Duration = Duration::from_secs(2);

/// Asks the membership whether a greeted dial is wanted, and hands it to its peer.
pub(crate) async fn offer(
    greeted: Greeted,
    hub: &Hub,
    membership: &Addr<Membership>,
) -> Result<NodeId, LinkError> {
    let card = greeted.theirs.clone();
    let id = card.id.clone();
    match ask(hub, membership, card).await {
        Ok(peer) => {
            let _ = peer.send(NewLink(greeted)).await;
            Ok(id)
        }
        Err(error) => {
            CloseCode::Refused.close(&greeted.conn, &error.to_string());
            Err(error)
        }
    }
}

async fn ask(hub: &Hub, membership: &Addr<Membership>, card: Card) -> Result<Addr<Peer>, LinkError> {
    let _letter = hub.membership_mailbox.letter();
    membership.send(Offer(card)).await.unwrap_or(Err(LinkError::Stopping))
}

/// Takes incoming connections until the endpoint is closed.
pub(crate) async fn accept_all(
    hub: Arc<Hub>,
    endpoint: quinn::Endpoint,
    card: Card,
    membership: Addr<Membership>,
) {
    let slots = Arc::new(tokio::sync::Semaphore::new(hub.config.link.max_handshakes));
    while let Some(incoming) = endpoint.accept().await {
        // Strangers with borrowed addresses cannot take the last places: under load an address has to answer first.
        let busy = slots.available_permits() < hub.config.link.max_handshakes.div_ceil(2);
        if busy && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            count(&hub.counters.refused_busy, 1);
            incoming.refuse();
            continue;
        };
        let (hub, card, membership) = (Arc::clone(&hub), card.clone(), membership.clone());
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            let deadline = Instant::now() + hub.config.link.handshake_timeout;
            let accepted = accept_one(incoming, &hub, &card, &membership, deadline);
            let outcome = tokio::time::timeout_at(deadline + REFUSAL, accepted).await;
            drop(slot);
            let error = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => LinkError::Lost("the handshake took too long".into()),
            };
            count(&hub.counters.refused, 1);
            match error {
                LinkError::Own | LinkError::Duplicate | LinkError::Stopping | LinkError::Lost(_) => {
                    tracing::debug!(node = %hub.id, %remote, %error, "incoming connection not used");
                }
                error => hub.log_refusal(remote, &error),
            }
        });
    }
}

async fn accept_one(
    incoming: quinn::Incoming,
    hub: &Arc<Hub>,
    card: &Card,
    membership: &Addr<Membership>,
    deadline: Instant,
) -> Result<(), LinkError> {
    let mut greeted = handshake::accept(incoming, card, hub.limits, deadline).await?;
    if greeted.theirs.emitter {
        return guests::welcome(greeted, hub, card).await;
    }
    match ask(hub, membership, greeted.theirs.clone()).await {
        Ok(peer) => {
            greeted.welcome(card).await?;
            let _ = peer.send(NewLink(greeted)).await;
            Ok(())
        }
        Err(error) => {
            greeted.refuse(&error).await;
            Err(error)
        }
    }
}
