//! A cluster that can be disturbed, on simulated or on real ground, and a record of what it did.
//!
//! * [`ground`]: what a cluster stands on, and what both grounds can do.
//! * [`agent`]: what runs beside each node: one member that joins, emits and records.
//! * [`builder`], [`cluster`]: the cluster as a test sees it.
//! * [`check`]: what must hold of the record, and of the nodes when all is well again.
//! * [`counts`]: what is counted where a record would cost too much.
//! * [`dice`]: what a rule of the network does to one packet.
//! * [`goals`]: what the goals ask for, measured.
//! * [`history`], [`story`]: the record, and the record in words.
//! * [`processes`], [`namespaces`]: real ground.
//! * [`scenarios`]: what a cluster has to survive.
//! * [`sim`]: simulated ground.

pub mod agent;
pub mod builder;
pub mod check;
pub mod cluster;
pub mod counts;
pub mod dice;
pub mod goals;
pub mod ground;
pub mod history;
pub mod namespaces;
pub mod processes;
pub mod scenarios;
pub mod sim;
pub mod story;
