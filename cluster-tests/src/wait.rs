//! Conditions with a deadline.

use std::fmt::Display;
use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

/// How long a condition may take. Far more than it takes on a busy machine: reaching it means that it never holds.
pub const DEADLINE: Duration = Duration::from_secs(40);
/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
///
/// # Panics
/// After [`DEADLINE`], with `what` and the line of the caller.
#[track_caller]
pub fn eventually(what: impl Display, condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    within(DEADLINE, what, condition)
}

/// Waits until `condition` holds, at most for `deadline`.
///
/// # Panics
/// After the deadline, with `what` and the line of the caller.
#[track_caller]
pub fn within(
    deadline: Duration,
    what: impl Display,
    mut condition: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        while !condition() {
            assert!(Instant::now() < end, "{caller}: not within {deadline:?}: {what}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Waits for a future, at most for [`DEADLINE`].
///
/// # Panics
/// After the deadline, with `what` and the line of the caller.
#[track_caller]
pub fn soon<F: Future>(what: impl Display, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: not within {DEADLINE:?}: {what}"),
        }
    }
}
