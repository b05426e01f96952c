//! The rules, without sockets, clocks, actors or hidden randomness: each type takes what happened and says what to do.

pub mod acquaintances;
pub mod frame;
pub mod inbox;
pub mod interest;
pub mod link;
pub mod members;
pub mod outbox;
pub mod presence;
pub mod refusals;
pub mod requests;
pub mod routes;
pub mod slices;
pub mod trace;
pub mod version;
pub mod watchdog;
