//! A quinn stream to each receiver, with the TLS and the transport settings that nodes of roomcast have; many messages
//! are one write.

use std::time::SystemTime;

use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use roomcast::ClusterSecret;
use roomcast::quic::endpoint::{QuicConfig, async_socket, bind, endpoint, server_name};
use roomcast::quic::tls::{CertificateConfig, ClusterName, Identity};

use super::{Place, Sink, Wire};
use crate::Outcome;
use crate::message::{Cutter, Message};

pub(crate) struct Quic {
    streams: Vec<SendStream>,
    buffer: Vec<u8>,
    _endpoint: Endpoint,
    _connections: Vec<Connection>,
}

impl Wire for Quic {
    async fn open(mut place: Place, sink: Sink) -> Outcome<Self> {
        let name = ClusterName::new("bench")?;
        let own = if place.bound.is_some() { place.address } else { ([127, 0, 0, 1], 0).into() };
        let end = side(&name, own)?;
        let (mut streams, mut connections) = (Vec::new(), Vec::new());
        if place.bound.is_some() {
            place.announce("");
            for _ in 0..place.peers {
                let connection = end.accept().await.ok_or("accept: the endpoint is closed")?.await?;
                let (to, mut from) = connection.accept_bi().await?;
                from.read_exact(&mut [0]).await?;
                tokio::spawn(read(from, sink.clone()));
                streams.push(to);
                connections.push(connection);
            }
        } else {
            let connection = end.connect(place.address, &server_name(&name))?.await?;
            let (mut to, from) = connection.open_bi().await?;
            // The other side learns of a stream when something is in it.
            to.write_all(&[0]).await?;
            tokio::spawn(read(from, sink));
            streams.push(to);
            connections.push(connection);
        }
        Ok(Self { streams, buffer: Vec::new(), _endpoint: end, _connections: connections })
    }

    async fn send(&mut self, messages: &[Message]) -> Outcome<()> {
        self.buffer.clear();
        messages.iter().for_each(|message| message.write(&mut self.buffer));
        for stream in &mut self.streams {
            stream.write_all(&self.buffer).await?;
        }
        Ok(())
    }
}

async fn read(mut from: RecvStream, sink: Sink) -> Outcome<()> {
    let mut chunks: [Bytes; 32] = Default::default();
    let mut cutter = Cutter::default();
    while let Some(read) = from.read_chunks(&mut chunks).await? {
        for chunk in &chunks[..read] {
            cutter.feed(chunk, &*sink)?;
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "certificates are made for the time that it is")]
fn side(name: &ClusterName, own: std::net::SocketAddr) -> Outcome<Endpoint> {
    let secret = ClusterSecret::parse(super::roomcast::SECRET)?;
    let certificate = CertificateConfig::default();
    let identity = Identity::from_secret(name.clone(), &secret, &[], certificate, SystemTime::now())?;
    let config = QuicConfig { max_bidi_streams: 4, ..QuicConfig::default() };
    let bound = bind(own, &config)?;
    Ok(endpoint(async_socket(bound.socket)?, &config, &identity)?)
}
