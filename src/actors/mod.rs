//! Thin actix shells: take a message, call `core`, carry out what it says. No other folder knows actix.

pub(crate) mod dials;
pub(crate) mod guests;
pub(crate) mod incoming;
pub(crate) mod links;
pub(crate) mod listeners;
pub(crate) mod membership;
pub(crate) mod peer;
pub(crate) mod registry;
pub(crate) mod system;
pub(crate) mod watch;
