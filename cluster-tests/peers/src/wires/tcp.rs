//! A TCP connection to each receiver, without delay of small segments; many messages are one write.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::{Place, Sink, Wire};
use crate::Outcome;
use crate::message::{Cutter, Message};

pub(crate) struct Tcp {
    streams: Vec<OwnedWriteHalf>,
    buffer: Vec<u8>,
}

impl Wire for Tcp {
    async fn open(mut place: Place, sink: Sink) -> Outcome<Self> {
        let mut tcp = Self { streams: Vec::new(), buffer: Vec::new() };
        if place.bound.is_none() {
            tcp.keep(TcpStream::connect(place.address).await?, &sink)?;
            return Ok(tcp);
        }
        let listener = TcpListener::bind(place.address).await?;
        place.announce("");
        for _ in 0..place.peers {
            tcp.keep(listener.accept().await?.0, &sink)?;
        }
        Ok(tcp)
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

impl Tcp {
    fn keep(&mut self, stream: TcpStream, sink: &Sink) -> Outcome<()> {
        stream.set_nodelay(true)?;
        let (from, to) = stream.into_split();
        self.streams.push(to);
        tokio::spawn(read(from, sink.clone()));
        Ok(())
    }
}

async fn read(mut from: OwnedReadHalf, sink: Sink) -> Outcome<()> {
    let (mut buffer, mut cutter) = (vec![0; 256 << 10], Cutter::default());
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            read => cutter.feed(&buffer[..read], &*sink)?,
        }
    }
}
