//! A cluster that can be disturbed, on simulated or on real ground, and a record of what it did.
//!
//! * [`ground`]: what a cluster stands on, and what both grounds can do.
//! * [`agent`]: what runs beside each node: one member that joins, emits and records.
//! * [`history`]: the record.

pub mod agent;
pub mod ground;
pub mod history;
