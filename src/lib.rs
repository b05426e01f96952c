//! roomcast joins Socket.IO servers into one cluster without a broker.
//!
//! Every server is a node. Nodes find each other by gossip, keep one QUIC connection per pair, tell each other which
//! rooms they have members in, and send each broadcast straight to the nodes that need it.
//!
//! ```no_run
//! # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
//! use roomcast::{ClusterSecret, Node};
//!
//! let node = Node::builder()
//!     .cluster("chat-prod")
//!     .id("chat-0")
//!     .listen("0.0.0.0:7946")
//!     .seeds(["roomcast-peers.default.svc.cluster.local.:7946"])
//!     .secret(ClusterSecret::from_env("ROOMCAST_SECRET")?)
//!     .start()
//!     .await?;
//! let chat = node.namespace("/chat")?;
//! let member = chat.connect(|message| println!("{message:?}"));
//! member.join("lobby")?;
//! chat.to("lobby").emit("hello")?;
//! println!("{} in the lobby", *chat.room_size("lobby").await?);
//! node.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! Servers on socketioxide use the module `socketioxide`, processes that are no servers an [`Emitter`].
//!
//! # Layout
//!
//! * [`node`]: builder, start, ready, drain, stop.
//! * [`config`], [`error`], [`event`], [`ids`]: what users set, see and name.
//! * [`core`]: the rules, pure: interest, routes, outbox, inbox, frames, members, acquaintances, versions,
//!   watchdog.
//! * `hub`: the data path that fronts and links share.
//! * `actors`: the owners of state that changes: registry, peers, membership.
//! * [`quic`]: endpoint, certificates, handshake, the tasks of a link.
//! * [`emitter`]: publishing from a process that is no server.
//! * [`gossip`]: chitchat over the links, and discovery (`gossip/srv.rs`: SRV records, with the feature `srv`).
//! * [`plain`]: the front for servers without Socket.IO.
//! * [`servers`]: events for the servers themselves (`hub/handlers.rs`: who handles them).
//! * `socketioxide`: the front for socketioxide.
//! * `status`: the status endpoint.
//! * [`trace`]: traces across nodes (`hub/trace.rs`: on the way through a node; `trace/opentelemetry.rs`: for the crate
//!   `tracing`, with the feature `opentelemetry`).
//! * `connections`: connections of clients that are closed a few at a time.
//! * `fuzz`: every decoder that bytes from the network reach, for the fuzz targets; no part of the API.
//!
//! # Life of an emit
//!
//! 1. A front ([`plain`] or `socketioxide/adapter.rs`) serves the members of this node first.
//! 2. `hub/mod.rs` (`Hub::send`) asks [`core::routes`] which peers are interested: one look into a published snapshot.
//! 3. The head is encoded once ([`core::frame`]), and the frame goes into the bounded queue of each interested peer
//!    (`hub/peer.rs`), where [`core::outbox`] numbers it.
//! 4. The writer of the link (`quic/writer.rs`) takes what has gathered and writes it to the QUIC stream.
//! 5. On the other node the reader of the link cuts frames, [`core::inbox`] says whether a frame is new, and
//!    `Hub::deliver` hands it to the front of the namespace, which serves its members
//!    (`socketioxide/inbound.rs`, `plain/mod.rs`).
//!
//! Joins take another way: a front notes them in the hub, the registry (`actors/registry.rs`) gathers them into a
//! delta of [`core::interest`], and every link sends it; the registry of the other node puts it into its
//! [`core::routes`].

pub(crate) mod actors;
pub mod config;
#[cfg(feature = "status")]
pub mod connections;
pub mod core;
pub mod emitter;
pub mod error;
pub mod event;
#[doc(hidden)]
pub mod fuzz;
pub mod gossip;
#[cfg_attr(not(feature = "socketioxide"), expect(dead_code, reason = "some of it is for that front alone"))]
pub(crate) mod hub;
pub mod ids;
pub mod node;
pub mod plain;
pub mod quic;
pub mod servers;
#[cfg(feature = "socketioxide")]
pub mod socketioxide;
pub mod status;
pub mod trace;

pub use config::Config;
pub use core::members::{Member as ClusterMember, MemberState};
pub use emitter::{Emitter, EmitterBuilder, Parser};
pub use error::{AskError, DataError, DropReason, EnvError, IdError, StartError};
pub use event::{Event, Events, RoomEvent, RoomEvents};
pub use hub::Receipt;
pub use hub::cluster_rooms::RoomWatch;
pub use hub::requests::{Missing, MissingReason};
pub use ids::{Incarnation, NodeId};
pub use node::{ClientSlices, Node, NodeBuilder};
pub use plain::{
    AckError, AckSender, Acks, Emit, EmitError, Gathered, Member, MemberAck, MemberId,
    NamespaceHandle as Namespace, Rooms, Sink, SocketInfo,
};
pub use quic::tls::ClusterSecret;
pub use servers::{ServerAcks, ServerEvent, ServerEventError, ServerEventHandler, Servers};
