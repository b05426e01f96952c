//! Letting the clients of a node that leaves go a few at a time.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::core::slices::Slices;

/// How many clients to close now, and when the next ones: see [`Node::client_slices`](crate::Node::client_slices).
#[derive(Debug)]
pub struct ClientSlices {
    slices: Slices,
    rng: StdRng,
    begun: bool,
}

impl ClientSlices {
    pub(super) fn new(slices: Slices, seed: u64) -> Self {
        Self { slices, rng: StdRng::seed_from_u64(seed), begun: false }
    }

    /// Waits for the time of the next slice and returns how many clients are in it; none when all have gone. The first is
    /// at once. Not cancel safe: a slice that was waited for is waited for again.
    pub async fn next(&mut self) -> Option<usize> {
        let slice = self.slices.take()?;
        if std::mem::replace(&mut self.begun, true) {
            tokio::time::sleep(self.slices.pause(self.rng.random())).await;
        }
        Some(slice)
    }
}
