//! roomcast through its plain API: an emit to a room for each message.

use bytes::Bytes;
use roomcast::{ClusterSecret, Member, Namespace, Node};

use super::{Place, Sink, Wire};
use crate::Outcome;
use crate::message::Message;

/// It guards nothing: these nodes are on loopback for some seconds.
pub(crate) const SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

pub(crate) struct Roomcast {
    _node: Node,
    space: Namespace,
    to: &'static str,
    _member: Member,
}

impl Wire for Roomcast {
    async fn open(mut place: Place, sink: Sink) -> Outcome<Self> {
        let (listens, to) = place.names();
        let builder = Node::builder().cluster("bench").secret(ClusterSecret::parse(SECRET)?);
        let node = if place.bound.is_some() {
            builder.id("emitter").listen(place.address.to_string()).start().await?
        } else {
            let id = format!("receiver-{}", place.at);
            builder.id(&id).listen("127.0.0.1:0").seeds([place.address]).start().await?
        };
        let space = node.namespace("/bench")?;
        let member = space.connect(move |message: Bytes| {
            Message::read(&message).into_iter().for_each(|message| sink(message));
        });
        member.join(listens)?;
        place.announce("");
        member.settled().await;
        Ok(Self { _node: node, space, to, _member: member })
    }

    async fn send(&mut self, messages: &[Message]) -> Outcome<()> {
        for message in messages {
            let receipt = self.space.to(self.to).emit(message.bytes())?;
            if !receipt.dropped.is_empty() {
                return Err(format!("emit: {:?}", receipt.dropped).into());
            }
        }
        Ok(())
    }
}
