//! How many clients to let go at a time, so that they do not all come to the other nodes at once.

use std::time::Duration;

/// How a node that leaves lets its clients go.
#[derive(Debug, Clone)]
pub struct DrainConfig {
    /// How many clients go at a time. Default is 50. More go at a time where all would not be gone within
    /// `clients_timeout`. Cost of more: the other nodes take so many handshakes at once.
    pub clients_per_slice: usize,
    /// The time between two slices. Default is 200 ms. Cost: leaving takes so long for each slice.
    pub interval: Duration,
    /// By how much of it `interval` is varied up and down. From 0 to 1; default is 0.5.
    pub jitter: f64,
    /// How long letting all clients go may take. Default is 15 s. Keep it, with
    /// [`drain_timeout`](crate::config::LinkConfig::drain_timeout), well below the time after which the process is killed.
    pub clients_timeout: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            clients_per_slice: 50,
            interval: Duration::from_millis(200),
            jitter: 0.5,
            clients_timeout: Duration::from_secs(15),
        }
    }
}

/// Clients cut into slices.
///
/// - Command: [`take`](Self::take), until it gives none; between two of them wait for [`pause`](Self::pause).
#[derive(Debug)]
pub struct Slices {
    left: usize,
    size: usize,
    interval: Duration,
    jitter: f64,
}

impl Slices {
    /// Cuts so many clients.
    pub fn new(config: &DrainConfig, clients: usize) -> Self {
        let jitter = config.jitter.clamp(0.0, 1.0);
        let longest = config.interval.mul_f64(1.0 + jitter).as_nanos().max(1);
        let most = usize::try_from(config.clients_timeout.as_nanos() / longest).unwrap_or(usize::MAX).max(1);
        let size = clients.div_ceil(most).max(config.clients_per_slice).max(1);
        Self { left: clients, size, interval: config.interval, jitter }
    }

    /// The size of the next slice; none when all are gone.
    pub fn take(&mut self) -> Option<usize> {
        let slice = self.size.min(self.left);
        self.left -= slice;
        (slice > 0).then_some(slice)
    }

    /// How long to wait before the next slice. `random` is a number from 0 to 1.
    pub fn pause(&self, random: f64) -> Duration {
        self.interval.mul_f64((1.0 + self.jitter * (2.0 * random - 1.0)).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slices(config: &DrainConfig, clients: usize) -> Vec<usize> {
        let mut slices = Slices::new(config, clients);
        std::iter::from_fn(|| slices.take()).collect()
    }

    #[test]
    fn clients_go_in_slices_that_grow_with_their_number() {
        let config = DrainConfig::default();
        assert_eq!(slices(&config, 0), [0; 0]);
        assert_eq!(slices(&config, 120), [50, 50, 20]);
        // 50 slices of at most 300 ms fit into 15 s.
        assert_eq!(slices(&config, 10_000), [200; 50]);
        let none = DrainConfig { clients_per_slice: 0, interval: Duration::ZERO, ..config };
        assert_eq!(slices(&none, 3), [1, 1, 1], "without a pause there is time for all");
        let no_time = DrainConfig { clients_timeout: Duration::ZERO, ..DrainConfig::default() };
        assert_eq!(slices(&no_time, 300), [300]);
    }

    proptest! {
        #[test]
        fn everyone_goes_once_and_in_time(
            clients in 0usize..100_000,
            per_slice in 0usize..500,
            interval_ms in 0u64..1000,
            jitter in -1.0f64..2.0,
            timeout_ms in 0u64..30_000,
        ) {
            let config = DrainConfig {
                clients_per_slice: per_slice,
                interval: Duration::from_millis(interval_ms),
                jitter,
                clients_timeout: Duration::from_millis(timeout_ms),
            };
            let cut = slices(&config, clients);
            prop_assert_eq!(cut.iter().sum::<usize>(), clients);
            let pauses = cut.len().saturating_sub(1);
            let longest = Slices::new(&config, clients).pause(1.0);
            prop_assert!(longest * u32::try_from(pauses).unwrap() <= config.clients_timeout || pauses == 0);
        }
    }
}
