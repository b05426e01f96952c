//! The UDP socket and the QUIC endpoint of a node: one port for everything, dialing and accepting alike.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    AsyncUdpSocket, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, NoneTokenStore, Runtime, TokioRuntime,
    TransportConfig, ValidationTokenConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::tls::{ClusterName, Identity};

/// The limits and times of QUIC. Both directions of a link use the same.
///
/// What peers can make a node hold is bounded: at most `peers * (receive_window_bytes + datagram_receive_bytes)` for
/// data that it does not read, `peers * (send_window_bytes + datagram_send_bytes)` for data that they do not take, and
/// `incoming_total_bytes` for strangers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicConfig {
    /// How often an idle link sends a packet to show that it stands. Default is 1 s. Must be well below
    /// `idle_timeout`, to outlive the loss of some. Cost: 1 small packet each way per link and interval.
    pub keep_alive: Duration,
    /// How long a link may hear nothing before it counts as lost; also the limit of a handshake. Default is 5 s. Cost
    /// of less: links break in longer pauses of a busy machine; of more: a dead peer is noticed later. QUIC waits for
    /// at least 3 probe timeouts, whatever this says.
    pub idle_timeout: Duration,
    /// What to ask the system for as buffer of the UDP socket, each for receiving and sending, in bytes. Default is
    /// 4 MiB. Linux grants at most `net.core.rmem_max` and `net.core.wmem_max`; [`BoundSocket`] says what was granted.
    /// Cost: this much kernel memory, twice, when full. Cost of less: bursts of many peers are dropped and sent again.
    pub udp_buffer_bytes: usize,
    /// The most unread stream bytes of one link. Default is 5 MiB: one full stream and some room for gossip beside it.
    /// Cost: this much memory per peer while this node does not read.
    pub receive_window_bytes: u32,
    /// The most unread bytes of one stream. Default is 4 MiB, which fills 10 Gbit/s at 3 ms round trip: throughput of a
    /// link is at most this per round trip. Cost: as `receive_window_bytes`.
    pub stream_receive_window_bytes: u32,
    /// The most stream bytes written and not acknowledged, per link. Default is 4 MiB. Throughput of a link is at most
    /// this per round trip. Cost: this much memory per peer that does not take its data.
    pub send_window_bytes: u32,
    /// Unread datagrams (volatile emits) of one link, in bytes; the oldest go first. Default is 1 MiB. Cost: this much
    /// memory per peer while this node does not read.
    pub datagram_receive_bytes: usize,
    /// Datagrams not sent yet, per link, in bytes; the oldest go first. Default is 1 MiB. Cost: this much memory per
    /// peer that does not take its data, and volatile emits that are old when they leave.
    pub datagram_send_bytes: usize,
    /// Streams that a peer may have open towards this node, one way; each gossip message is one. Default is 64. Cost:
    /// some hundred bytes each; their data counts to `receive_window_bytes`.
    pub max_uni_streams: u32,
    /// Streams that a peer may have open towards this node, both ways; data needs one. Default is 1.
    pub max_bidi_streams: u32,
    /// The UDP payload that is taken for granted before any probe, in bytes. Default is 1200, the least that QUIC
    /// allows (RFC 9000, section 14). Cost of more: no connection over a path that does not carry it.
    pub initial_mtu: u16,
    /// The largest UDP payload to probe for, in bytes. Default is 1452: Ethernet's 1500 less IPv6 and UDP headers.
    /// Raise to 8952 where every path has jumbo frames; not above `initial_mtu` switches probing off. Cost: the receive
    /// buffer of the endpoint grows with it (up to 2048 times as much), and probes of a size that gets lost.
    pub mtu_upper_bound: u16,
    /// Whether the system cuts large writes into packets (GSO). Default is true. Cost of false: a system call per
    /// packet. Switch off where a network driver or a virtual network gets it wrong.
    pub segmentation_offload: bool,
    /// The round trip assumed before the first is measured. Default is 10 ms: a lost first packet is sent again after
    /// 3 times this, 30 ms, where QUIC's default of 333 ms costs a second before nodes even meet. Cost on paths
    /// longer than 30 ms, or with a busy peer: 1 or 2 needless packets at the start, as each wait is twice the last.
    pub initial_rtt: Duration,
    /// Connections that wait to be accepted, of anyone. Default is 256; more are refused. Cost:
    /// `incoming_bytes` each.
    pub max_incoming: usize,
    /// Bytes kept of one connection that waits to be accepted. Default is 16 KiB, some packets: a waiting connection
    /// has nothing but its first flight to send.
    pub incoming_bytes: u64,
    /// Bytes kept of all connections that wait to be accepted. Default is 2 MiB. Cost: this much memory under attack.
    pub incoming_total_bytes: u64,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(5),
            udp_buffer_bytes: 4 << 20,
            receive_window_bytes: 5 << 20,
            stream_receive_window_bytes: 4 << 20,
            send_window_bytes: 4 << 20,
            datagram_receive_bytes: 1 << 20,
            datagram_send_bytes: 1 << 20,
            max_uni_streams: 64,
            max_bidi_streams: 1,
            initial_mtu: 1200,
            mtu_upper_bound: 1452,
            segmentation_offload: true,
            initial_rtt: Duration::from_millis(10),
            max_incoming: 256,
            incoming_bytes: 16 << 10,
            incoming_total_bytes: 2 << 20,
        }
    }
}

impl QuicConfig {
    /// The settings of every connection, dialed or accepted.
    pub(crate) fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let probing = self.mtu_upper_bound > self.initial_mtu;
        let discovery = probing.then(|| {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(self.mtu_upper_bound);
            discovery
        });
        transport
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(Some(idle_timeout(self.idle_timeout)))
            .receive_window(self.receive_window_bytes.into())
            .stream_receive_window(self.stream_receive_window_bytes.into())
            .send_window(self.send_window_bytes.into())
            .datagram_receive_buffer_size(Some(self.datagram_receive_bytes))
            .datagram_send_buffer_size(self.datagram_send_bytes)
            .max_concurrent_uni_streams(self.max_uni_streams.into())
            .max_concurrent_bidi_streams(self.max_bidi_streams.into())
            .initial_mtu(self.initial_mtu)
            .mtu_discovery_config(discovery)
            .enable_segmentation_offload(self.segmentation_offload)
            .initial_rtt(self.initial_rtt);
        transport
    }

    fn endpoint(&self) -> io::Result<EndpointConfig> {
        let mut config = EndpointConfig::default();
        let accepted =
            u64::from(self.mtu_upper_bound.max(self.initial_mtu)).max(config.get_max_udp_payload_size());
        let accepted = u16::try_from(accepted).unwrap_or(u16::MAX);
        config
            .max_udp_payload_size(accepted)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(config)
    }
}

fn idle_timeout(timeout: Duration) -> IdleTimeout {
    let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    VarInt::from_u64(millis).unwrap_or(VarInt::MAX).into()
}

/// A UDP socket and the buffers that it got.
#[derive(Debug)]
pub struct BoundSocket {
    /// The socket: bound and non-blocking. An IPv6 wildcard address takes IPv4 as well.
    pub socket: UdpSocket,
    /// The granted receive buffer, in bytes of use; a part of it goes to the bookkeeping of the system.
    pub recv_bytes: usize,
    /// The granted send buffer, in bytes of use.
    pub send_bytes: usize,
}

/// Opens the UDP port of a node.
///
/// Smaller buffers than asked for are not an error; compare [`BoundSocket`] with the config and say so.
///
/// # Errors
/// [`BindError`] when the address is in use, is not one of this machine, or the system refuses otherwise.
pub fn bind(listen: SocketAddr, config: &QuicConfig) -> Result<BoundSocket, BindError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if listen.ip() == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) {
            // Systems differ in the default; without this some would not hear IPv4 peers.
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        // Linux cuts to its limit without an error, others refuse: what counts is what is granted in the end.
        let _ = socket.set_recv_buffer_size(config.udp_buffer_bytes);
        let _ = socket.set_send_buffer_size(config.udp_buffer_bytes);
        socket.bind(&listen.into())?;
        let (recv_bytes, send_bytes) =
            (usable(socket.recv_buffer_size()?), usable(socket.send_buffer_size()?));
        Ok(BoundSocket { socket: socket.into(), recv_bytes, send_bytes })
    };
    open().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(listen),
        io::ErrorKind::AddrNotAvailable => BindError::NotAvailable(listen),
        _ => BindError::Io { listen, source: error },
    })
}

/// Linux reserves, and reports, twice of what was asked for (socket(7)).
fn usable(reported: usize) -> usize {
    if cfg!(target_os = "linux") { reported / 2 } else { reported }
}

/// Why a node cannot have its port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket has the port. The node does not start.
    #[error("listen: address {0}/udp is in use: stop the other process or listen on another port")]
    InUse(SocketAddr),
    /// The machine does not have the address. The node does not start.
    #[error(
        "listen: address {0}/udp is not one of this machine: listen on one that it has, or on 0.0.0.0 or [::]"
    )]
    NotAvailable(SocketAddr),
    /// The system refuses for another reason, for example because it has no IPv6. The node does not start.
    #[error("listen: address {listen}/udp: {source}")]
    Io {
        /// The address asked for.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes a bound socket ready for [`endpoint`]. Tests put their own in its place.
///
/// # Errors
/// When the system does not take the socket options of QUIC. Needs a tokio runtime.
pub fn async_socket(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    TokioRuntime.wrap_udp_socket(socket)
}

/// Starts QUIC on a socket, for dialing (with [`server_name`]) and accepting.
///
/// Nobody is asked here to prove its address first: peers are authenticated by their certificate, and QUIC sends at most
/// 3 times of what it received before an address has answered (RFC 9000, section 8.1). Who accepts may ask (Retry), and
/// does so under load.
///
/// # Errors
/// When the config has an MTU that QUIC does not allow or the socket has no address. Needs a tokio runtime.
pub fn endpoint(
    socket: Arc<dyn AsyncUdpSocket>,
    config: &QuicConfig,
    identity: &Identity,
) -> io::Result<quinn::Endpoint> {
    let mut no_tokens = ValidationTokenConfig::default();
    no_tokens.sent(0);
    let mut server = identity.server_config();
    server
        .transport_config(Arc::new(config.transport()))
        .validation_token_config(no_tokens)
        .max_incoming(config.max_incoming)
        .incoming_buffer_size(config.incoming_bytes)
        .incoming_buffer_size_total(config.incoming_total_bytes);
    start(socket, config, identity, Some(server))
}

/// As [`endpoint`], for dialing only: what comes from others is dropped.
///
/// # Errors
/// As [`endpoint`].
pub(crate) fn dialer(
    socket: Arc<dyn AsyncUdpSocket>,
    config: &QuicConfig,
    identity: &Identity,
) -> io::Result<quinn::Endpoint> {
    start(socket, config, identity, None)
}

fn start(
    socket: Arc<dyn AsyncUdpSocket>,
    config: &QuicConfig,
    identity: &Identity,
    server: Option<quinn::ServerConfig>,
) -> io::Result<quinn::Endpoint> {
    let mut client = identity.client_config();
    client.transport_config(Arc::new(config.transport())).token_store(Arc::new(NoneTokenStore));
    let runtime = Arc::new(TokioRuntime);
    let mut endpoint =
        quinn::Endpoint::new_with_abstract_socket(config.endpoint()?, server, socket, runtime)?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// The name to dial a node of the cluster with: `node.<cluster>.roomcast`.
pub fn server_name(cluster: &ClusterName) -> String {
    cluster.server_name()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::tls::tests::{connect, endpoint_at, identity};

    fn any() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[test]
    fn a_port_in_use_says_what_to_do() {
        let first = bind(any(), &QuicConfig::default()).unwrap();
        let addr = first.socket.local_addr().unwrap();
        let error = bind(addr, &QuicConfig::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("listen: address {addr}/udp is in use: stop the other process or listen on another port")
        );
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        // TEST-NET-1 (RFC 5737) belongs to nobody.
        let error = bind(([192, 0, 2, 1], 0).into(), &QuicConfig::default()).unwrap_err();
        assert!(matches!(error, BindError::NotAvailable(_)), "{error}");
        assert!(error.to_string().starts_with("listen: address 192.0.2.1:0/udp is not one of this machine"));
    }

    #[test]
    fn granted_buffers_are_reported() {
        // Far below the limit of any system: granted in full.
        let config = QuicConfig { udp_buffer_bytes: 64 << 10, ..Default::default() };
        let bound = bind(any(), &config).unwrap();
        assert_eq!((bound.recv_bytes, bound.send_bytes), (64 << 10, 64 << 10));
        // Above the limit of every system: bound anyway, and the answer is what the system has.
        let config = QuicConfig { udp_buffer_bytes: i32::MAX as usize, ..Default::default() };
        let bound = bind(any(), &config).unwrap();
        assert!(bound.recv_bytes >= 64 << 10 && bound.recv_bytes < i32::MAX as usize, "{bound:?}");
    }

    #[test]
    fn the_ipv6_wildcard_hears_ipv4() {
        let listen = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
        let bound = match bind(listen, &QuicConfig::default()) {
            Ok(bound) => bound,
            Err(error) => {
                println!("skipped: this machine has no IPv6 ({error})");
                assert!(std::env::var_os("ROOMCAST_REQUIRE_ALL").is_none_or(|all| all != "1"));
                return;
            }
        };
        let port = bound.socket.local_addr().unwrap().port();
        bound.socket.set_nonblocking(false).unwrap();
        bound.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        UdpSocket::bind(any()).unwrap().send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(bound.socket.recv_from(&mut buffer).unwrap().0, 5);
    }

    #[tokio::test]
    async fn two_endpoints_pass_a_stream_and_a_datagram() {
        for config in [
            QuicConfig::default(),
            QuicConfig { mtu_upper_bound: 8952, segmentation_offload: false, ..Default::default() },
            QuicConfig { mtu_upper_bound: 0, ..Default::default() },
        ] {
            let (a, b) = (identity("secret", "chat"), identity("secret", "chat"));
            let (a, b) = (endpoint_at(&a, &config), endpoint_at(&b, &config));
            let (dialed, accepted) = connect(&a, &b, "chat").await;
            let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());

            // More than a window, so that both must keep going.
            let sent: Vec<u8> = (0..config.receive_window_bytes + 1_000_000).map(|i| i as u8).collect();
            let mut stream = dialed.open_uni().await.unwrap();
            let data = sent.clone();
            let writer = tokio::spawn(async move {
                stream.write_all(&data).await.unwrap();
                stream.finish().unwrap();
                stream.stopped().await.unwrap();
            });
            let received = accepted.accept_uni().await.unwrap().read_to_end(sent.len()).await.unwrap();
            assert!(received == sent);
            writer.await.unwrap();

            accepted.send_datagram(bytes::Bytes::from_static(b"volatile")).unwrap();
            assert_eq!(&dialed.read_datagram().await.unwrap()[..], b"volatile");
        }
    }

    #[tokio::test]
    async fn a_bad_mtu_is_an_error_and_not_a_panic() {
        let config = QuicConfig { mtu_upper_bound: u16::MAX, ..Default::default() };
        let socket = async_socket(bind(any(), &config).unwrap().socket).unwrap();
        let error = endpoint(socket, &config, &identity("secret", "chat")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn streams_over_the_limit_wait() {
        let config = QuicConfig::default();
        let (a, b) = (identity("secret", "chat"), identity("secret", "chat"));
        let (a, b) = (endpoint_at(&a, &config), endpoint_at(&b, &config));
        let (dialed, accepted) = connect(&a, &b, "chat").await;
        let (dialed, _accepted) = (dialed.unwrap(), accepted.unwrap());
        let _one = dialed.open_bi().await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(100), dialed.open_bi()).await;
        assert!(second.is_err());
    }
}
