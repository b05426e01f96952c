//! Which address is linked: where gossip goes out and comes in.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hashbrown::HashMap;
use tokio::sync::mpsc;

use crate::gossip::transport::Carrier;
use crate::hub::peer::{PeerQueue, count};
use crate::hub::{Hub, lock};

/// The links by address, both the address they go to and the one that the peer advertises.
pub(crate) struct LinkTable {
    hub: Arc<Hub>,
    by_addr: Mutex<HashMap<SocketAddr, Arc<PeerQueue>>>,
    /// Addresses that gossip wants to reach and that have no link.
    wanted: mpsc::Sender<SocketAddr>,
    /// Gossip messages from links.
    arrived: mpsc::Sender<(SocketAddr, Bytes)>,
}

impl LinkTable {
    pub(crate) fn new(
        hub: Arc<Hub>,
        wanted: mpsc::Sender<SocketAddr>,
        arrived: mpsc::Sender<(SocketAddr, Bytes)>,
    ) -> Self {
        Self { hub, by_addr: Mutex::default(), wanted, arrived }
    }

    /// A link is up.
    pub(crate) fn add(&self, peer: &Arc<PeerQueue>, remote: SocketAddr) {
        let mut by_addr = lock(&self.by_addr);
        by_addr.insert(remote, Arc::clone(peer));
        by_addr.insert(peer.advertise, Arc::clone(peer));
    }

    /// A link has ended.
    pub(crate) fn remove(&self, peer: &Arc<PeerQueue>, remote: SocketAddr) {
        let mut by_addr = lock(&self.by_addr);
        for addr in [remote, peer.advertise] {
            if by_addr.get(&addr).is_some_and(|held| Arc::ptr_eq(held, peer)) {
                by_addr.remove(&addr);
            }
        }
    }

    /// Whether a link goes to that address.
    pub(crate) fn is_linked(&self, addr: SocketAddr) -> bool {
        lock(&self.by_addr).contains_key(&addr)
    }

    /// A gossip message came from the peer that advertises `from`.
    pub(crate) fn gossip_arrived(&self, from: SocketAddr, message: Bytes) {
        if self.arrived.try_send((from, message)).is_err() {
            count(&self.hub.counters.gossip_drops, 1);
        }
    }
}

impl Carrier for LinkTable {
    fn send_gossip(&self, to: SocketAddr, message: Bytes) {
        let peer = lock(&self.by_addr).get(&to).cloned();
        let sent = match peer {
            Some(peer) => peer.gossip(message).is_ok(),
            None => {
                // The dial is what matters; gossip repeats itself once the link is up.
                let _ = self.wanted.try_send(to);
                false
            }
        };
        if !sent {
            count(&self.hub.counters.gossip_drops, 1);
        }
    }
}
