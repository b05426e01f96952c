//! Bytes, no policy: the endpoint, certificates, the handshake and the tasks of a link.

pub(crate) mod connection;
pub mod endpoint;
mod guest;
pub(crate) mod handshake;
mod reader;
mod short;
mod stall;
pub mod tls;
mod together;
mod writer;
