//! The tests with real nodes on loopback, in one binary.
//!
//! Every node has a name that no other test uses, because all tests share one process and one log. Conditions have a
//! deadline that only a fault reaches; nothing asserts on how long something took.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod browser;
mod clients;
mod cluster_rooms;
mod compat;
mod emitters;
mod events;
mod examples;
mod formation;
mod fronts;
mod fuzz;
mod goals;
mod healing;
mod hostile;
mod insiders;
mod isolation;
mod large;
mod leaving;
mod links;
mod lives;
mod metrics;
mod mtu;
mod netns;
mod operations;
mod operations_js;
mod order;
mod people;
mod plain;
mod pods;
mod pure;
mod queues;
mod real;
mod rooms;
mod rotation;
mod seeds;
mod servers;
mod settled;
mod sim;
mod sockets;
mod srv;
mod stalls;
mod sticky;
mod supply;
mod tracing;
mod trust;
mod versions;
