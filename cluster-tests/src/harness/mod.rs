//! A cluster that can be disturbed, on simulated or on real ground, and a record of what it did.
//!
//! * [`ground`]: what a cluster stands on, and what both grounds can do.
//! * [`agent`]: what runs beside each node: one member that joins, emits and records.
//! * [`dice`]: what a rule of the network does to one packet.
//! * [`history`]: the record.
//! * [`sim`]: simulated ground.

pub mod agent;
pub mod dice;
pub mod ground;
pub mod history;
pub mod sim;
