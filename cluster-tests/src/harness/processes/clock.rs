//! One clock for all processes of a machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::wait::DEADLINE;

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(2);

/// The time since a cluster began. Set by the wall clock when it is made, and steady from then on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    begun_us: u64,
    /// The time when the clock was made.
    offset: Duration,
    made: Instant,
}

impl Clock {
    /// The clock of a cluster that begins now.
    pub(super) fn begin() -> Self {
        let (unix, made) = both();
        Self { begun_us: micros(unix), offset: Duration::ZERO, made }
    }

    /// The clock of a cluster that began so many microseconds after the Unix epoch.
    pub(super) fn of(begun_us: u64) -> Self {
        let (unix, made) = both();
        Self { begun_us, offset: unix.saturating_sub(Duration::from_micros(begun_us)), made }
    }

    /// When the cluster began, for [`of`](Self::of).
    pub(super) fn begun_us(&self) -> u64 {
        self.begun_us
    }

    /// The time since the cluster began.
    pub(super) fn now(&self) -> Duration {
        self.offset + self.made.elapsed()
    }
}

/// The same moment on both clocks: of some tries the one in which the least time passed between the two.
#[expect(clippy::disallowed_methods, reason = "processes have no other clock in common")]
fn both() -> (Duration, Instant) {
    let tries = (0..5).map(|_| {
        let before = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (before.elapsed(), unix, before)
    });
    let (_, unix, made) = tries.min_by_key(|(passed, ..)| *passed).expect("there are five");
    (unix, made)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Lets time pass for other processes.
#[expect(clippy::disallowed_methods, reason = "the thread of a test: what it waits for goes on elsewhere")]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Waits until `condition` holds; says whether it does before the deadline.
pub(super) fn holds(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        pause(PAUSE);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clocks_of_one_cluster_agree() {
        let one = Clock::begin();
        let (before, two) = (one.now(), Clock::of(one.begun_us()));
        let (there, after) = (two.now(), one.now());
        // The two readings of a clock may be apart by what a busy machine takes between them.
        let slack = Duration::from_secs(1);
        assert!(before <= there + slack && there <= after + slack, "{before:?} {there:?} {after:?}");
    }
}
