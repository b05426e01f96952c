//! One configuration, made of each part's own. Every limit says what it costs.

pub(crate) mod env;

use std::time::Duration;

use crate::core::frame::PROTOCOL;
use crate::core::interest::InterestConfig;
use crate::core::link::BackoffConfig;
use crate::core::members::MembersConfig;
pub use crate::core::slices::DrainConfig;
use crate::gossip::GossipConfig;
use crate::gossip::discovery::DiscoveryConfig;
use crate::quic::endpoint::QuicConfig;
use crate::quic::tls::CertificateConfig;

/// The settings of a node beyond names and addresses. The defaults suit a cluster in one data centre.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Config {
    /// Which versions of the protocol are spoken.
    pub protocol: ProtocolConfig,
    /// Links and queues.
    pub link: LinkConfig,
    /// QUIC and UDP.
    pub quic: QuicConfig,
    /// The certificates that nodes make from the cluster secret.
    pub certificates: CertificateConfig,
    /// Gossip and failure detection.
    pub gossip: GossipConfig,
    /// How seeds are looked up.
    pub discovery: DiscoveryConfig,
    /// When members are listed and forgotten.
    pub members: MembersConfig,
    /// This node's own rooms.
    pub interest: InterestConfig,
    /// How clients are let go when the node leaves.
    pub drain: DrainConfig,
    /// Events that a slow listener may be behind before it misses some. Default is 1,024.
    /// Cost: about 100 bytes each, once per node.
    pub event_buffer: EventBuffer,
    /// Room events that a slow listener may be behind before it misses some. Default is 4,096.
    /// Cost: about 100 bytes each, and the names of rooms that are no more, once per node and from the first listener on.
    pub room_event_buffer: RoomEventBuffer,
    /// The most rooms of the cluster that one [`RoomWatch`](crate::RoomWatch) holds. Default is 2,000,000. Rooms beyond it
    /// open and close unnoticed, which is logged once. Cost: 80 to 135 bytes for each room with a short name.
    pub watched_rooms: WatchedRooms,
    /// How long a part of this node (an actor, gossip, the tokio runtime) may not run before the node is no longer live.
    /// Default is 5 s, the least is 1 s. Time in which the whole process stood still does not count.
    pub watchdog_limit: WatchdogLimit,
    /// How long after its start a node waits for another one before it counts as ready without. Default is 10 s. It waits for
    /// nobody when it has no seeds, or when all of them lead to this node itself. Cost of less: a node that has not found
    /// its cluster yet is sent clients.
    pub ready_wait: ReadyWait,
}

/// See [`Config::ready_wait`].
#[derive(Debug, Clone, Copy)]
pub struct ReadyWait(pub Duration);

impl Default for ReadyWait {
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

/// See [`Config::watchdog_limit`].
#[derive(Debug, Clone, Copy)]
pub struct WatchdogLimit(pub Duration);

impl Default for WatchdogLimit {
    fn default() -> Self {
        Self(Duration::from_secs(5))
    }
}

/// See [`Config::watched_rooms`].
#[derive(Debug, Clone, Copy)]
pub struct WatchedRooms(pub usize);

impl Default for WatchedRooms {
    fn default() -> Self {
        Self(2_000_000)
    }
}

/// See [`Config::event_buffer`].
#[derive(Debug, Clone, Copy)]
pub struct EventBuffer(pub usize);

impl Default for EventBuffer {
    fn default() -> Self {
        Self(1024)
    }
}

/// See [`Config::room_event_buffer`]: at least 1, at most 16,777,216.
#[derive(Debug, Clone, Copy)]
pub struct RoomEventBuffer(pub usize);

impl Default for RoomEventBuffer {
    fn default() -> Self {
        Self(4096)
    }
}

/// Which versions of the protocol are spoken.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProtocolConfig {
    /// The newest version that this node speaks. Default is the newest that this build knows (2); the least is 1. Each link
    /// uses the newest version that both of its ends speak, so nodes of an older release need no setting. Hold the nodes of
    /// a new release to the old version while they are rolled out, to be able to go back with nothing new ever said.
    /// Cost of less: what came with the newer versions is not there (2: the tracing contexts of emits).
    pub max: u16,
}

impl Default for ProtocolConfig {
    fn default() -> Self {
        Self { max: PROTOCOL }
    }
}

/// What happens to a frame that the queue of a peer has no room for ([`LinkConfig::outbox_bytes`]). Other peers are not
/// affected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuePolicy {
    /// The newest is dropped: it has no number, is in the receipt, and counts as `queue_full`. Cost: nothing.
    #[default]
    DropNewest,
    /// The oldest make room: while a link stands those that were not sent yet, without one the oldest held. They count as
    /// `displaced`, and as a gap on both sides as soon as the link gets there; questions between the two nodes that are open
    /// then are over for their askers. Small frames go together, up to 16 KiB of them. What was sent over a link that stands
    /// stays: a frame that even all the others leave no room for is dropped as the newest. Cost: a full queue gives up a
    /// chunk for each chunk that comes, without copying.
    DropOldest,
    /// What can wait does, in the order in which it was issued, until there is room, but for at most `deadline`; then it is
    /// dropped and counts as `waited_too_long`. `emit_wait` of the plain API and broadcasts of socketioxide can wait; what
    /// cannot (`emit`, orders, questions, what an emitter sends) is dropped as the newest. Cost: who emits to a full queue
    /// is held up, and holds its message: up to 65,536 for each peer.
    Wait {
        /// The longest that one message waits.
        deadline: Duration,
    },
}

/// Links and queues.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LinkConfig {
    /// The largest frame (one message with its head), in bytes. Default is 16 MiB. A larger message is refused here;
    /// a larger frame from a peer closes that link. Cost: a reader may hold one frame of this size per link.
    pub max_frame_bytes: usize,
    /// The longest room name, in bytes. Default is 512. Cost: bounds the head of a frame.
    pub max_room_bytes: usize,
    /// The most rooms that one peer may advertise. Default is 2,000,000; beyond it the link is closed.
    /// Cost: 16 bytes or more for each room of a peer.
    pub max_rooms_per_peer: usize,
    /// The most namespaces that one peer may advertise. Default is 65,536; beyond it the link is closed.
    /// Cost: about 400 bytes for each namespace of a peer.
    pub max_namespaces_per_peer: usize,
    /// The most namespaces on this node. Default is 16,384; one more is refused. socketioxide keeps every dynamic
    /// namespace that a client ever connected to, so clients decide how many there are. Keep it well below
    /// `max_namespaces_per_peer` of the other nodes. Cost: about 1 KiB each here, and on each peer what a namespace
    /// costs there.
    pub max_namespaces: usize,
    /// What is queued or not acknowledged for one peer, in bytes. Default is 64 MiB. What happens at the limit says
    /// `queue_policy`. Cost: up to this per peer, when the peer does not keep up; payloads over 2 KiB are held once for all
    /// peers, so M peers that are away cost `outbox_bytes` together and about 200 bytes for each frame and peer.
    pub outbox_bytes: usize,
    /// What happens to a frame that a peer's queue has no room for. Default is
    /// [`QueuePolicy::DropNewest`]. Cost: see there.
    pub queue_policy: QueuePolicy,
    /// How long a frame may wait to be sent to a peer whose link stands and does not move, because the peer does not read.
    /// Default is none: as long as there is room. Older ones are given up, counted (`expired`) and reported as a gap. It is
    /// looked at every 100 ms. For nodes; emitters do not look at it. Cost: a look at each queue each time.
    pub max_queue_age: Option<Duration>,
    /// How long frames for a peer without a link are kept: as soon as there was none for so long, older ones are lost and
    /// reported as a gap. Default is 15 s. It begins anew with each link that comes up. Cost: memory within `outbox_bytes`.
    pub resume_window: Duration,
    /// The deltas of this node's interest that are kept for slow links, in bytes of memory (128 for each beside its own).
    /// Default is 1 MiB. A link that is further behind is sent a snapshot. Cost: up to this, once per node, while a link is
    /// behind; nothing while all keep up.
    pub interest_log_bytes: usize,
    /// The shortest time between two deltas of this node's interest. Default is 5 ms. Joins in between go together.
    /// Cost: the delay until other nodes learn of a join.
    pub interest_tick: Duration,
    /// How often a link says what it has applied when nothing else is to be said. Default is 500 ms.
    /// Cost: about 60 bytes on the wire each time, per link and direction.
    pub heartbeat: Duration,
    /// How long not a byte may be heard on a data stream before the link is replaced. Default is 4 s. A frame that takes
    /// longer to arrive is no silence.
    pub silence_limit: Duration,
    /// How long a link may get nothing done although it stands: the peer says heartbeats but acknowledges nothing of what it
    /// was sent, or this node does not get done with what came. Then it is replaced. Default is 10 s. A slow reader that
    /// gets on is no stall. Keep it well above `heartbeat` of the other nodes, and above what a sink or a handler may block.
    /// After a link that got nothing done at all the limit of the next one is twice as long, up to 32 times.
    pub stall_limit: Duration,
    /// How long a handshake may take, TLS and hello together. Default is 5 s.
    pub handshake_timeout: Duration,
    /// How often an unreachable address is dialled. Default is after 100 ms, doubling up to 2 s, for ever.
    pub dial_backoff: BackoffConfig,
    /// How long the node with the larger id waits for the other to dial before it dials itself. Default is 500 ms.
    pub dial_yield: Duration,
    /// The most addresses that are dialled at the same time. Default is 64. Others wait their turn.
    /// Cost: one handshake each.
    pub max_dials: usize,
    /// The most handshakes from other nodes under way at the same time. Default is 256. Others are refused.
    /// Cost: one handshake each.
    pub max_handshakes: usize,
    /// The most questions to other nodes that wait for answers at the same time. Default is 65,536; one more is an
    /// error. Cost: about 300 bytes each, and the answers that wait to be taken.
    pub max_requests: usize,
    /// The most questions of one node (or emitter) that are being answered at the same time. Default is 65,536; one
    /// more is answered with "busy". Cost: about 300 bytes each.
    pub max_serving_per_peer: usize,
    /// The longest user-set data of one socket or member, in bytes. Default is 1,024; more is refused.
    /// Cost: up to this for each that sets it.
    pub max_data_bytes: usize,
    /// The most events of other servers that are being handled at the same time. Default is 1,024; one more is not
    /// handled, and answered with "busy" where an answer is wanted. Cost: about 1 KiB each, and what the handlers hold.
    pub max_server_events: usize,
    /// How long a question to other nodes (rooms, sockets, counts) waits for their answers where no other time is given.
    /// Default is 5 s. The nodes that have not answered by then are named as missing.
    pub request_timeout: Duration,
    /// The most emitters that this node serves at the same time. Default is 256; one more is refused with the reason. One
    /// whose link broke counts until `resume_window` is over. Cost: up to that of a peer each: `outbox_bytes` of answers that
    /// it does not take, and what its link holds.
    pub max_emitters: usize,
    /// How long `drain` waits for peers to acknowledge what was queued. Default is 5 s.
    pub drain_timeout: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            max_frame_bytes: 16 << 20,
            max_room_bytes: 512,
            max_rooms_per_peer: 2_000_000,
            max_namespaces_per_peer: 65_536,
            max_namespaces: 16_384,
            outbox_bytes: 64 << 20,
            queue_policy: QueuePolicy::default(),
            max_queue_age: None,
            resume_window: Duration::from_secs(15),
            interest_log_bytes: 1 << 20,
            interest_tick: Duration::from_millis(5),
            heartbeat: Duration::from_millis(500),
            silence_limit: Duration::from_secs(4),
            stall_limit: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            dial_backoff: BackoffConfig::default(),
            dial_yield: Duration::from_millis(500),
            max_dials: 64,
            max_handshakes: 256,
            max_requests: 65_536,
            max_serving_per_peer: 65_536,
            max_data_bytes: 1024,
            max_server_events: 1024,
            request_timeout: Duration::from_secs(5),
            max_emitters: 256,
            drain_timeout: Duration::from_secs(5),
        }
    }
}
