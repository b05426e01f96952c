//! The harness for tests with real nodes: whole nodes in one process, on loopback, and what is needed to disturb them
//! and to see what they did.
//!
//! * [`cluster`]: nodes that know each other, on sockets that can be cut.
//! * [`chat`]: nodes of the example, each in a process of its own.
//! * [`client`]: clients of the official JavaScript library.
//! * [`gate`]: a socket that can be cut, or slow.
//! * [`harness`]: clusters on simulated and on real ground.
//! * [`netns`]: network namespaces, links that go down, one-way cuts.
//! * [`peers`]: medians, ratios and tables of the bench beside Redis, NATS and Zenoh.
//! * [`pods`]: a stand-in for Kubernetes: pods found by DNS, a service for clients, an end with a grace period.
//! * [`process`]: programs whose output is kept, and which end with the test.
//! * [`recorder`]: a sink that records numbered messages and checks order, repeats and losses.
//! * [`heal`]: what the heal report notes and what follows from it.
//! * [`logs`]: what each node logged.
//! * [`raw`]: a peer with the right secret that says what a test wants, in any order.
//! * [`requirement`]: what some tests need beyond Rust, and what happens where it is missing.
//! * [`wait`]: conditions with a deadline. Nothing sleeps for luck.
//!
//! Tests of one process share the log, so node ids must be unique in the process: [`cluster::Setup`] makes them from
//! the name that the test gives.

mod afterwards;
pub mod chat;
pub mod client;
pub mod cluster;
pub mod gate;
pub mod harness;
pub mod heal;
pub mod logs;
pub mod netns;
pub mod peers;
pub mod pods;
pub mod process;
pub mod raw;
pub mod recorder;
pub mod requirement;
pub mod scale;
pub mod wait;

pub use cluster::{Live, Seat, Seeds, Setup};
pub use harness::builder::{ClusterBuilder, SeedNodes};
pub use harness::cluster::Cluster;
pub use raw::{RawLink, RawPeer};
pub use recorder::{Recorder, probe, stamp};
pub use wait::eventually;
