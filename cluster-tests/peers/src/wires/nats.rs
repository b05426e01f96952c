//! NATS core with the crate `async-nats` and its own settings: publish, and a flush behind many messages.

use async_nats::Client;
use futures_util::StreamExt;

use super::{Place, Sink, Wire};
use crate::Outcome;
use crate::message::Message;

pub(crate) struct Nats {
    client: Client,
    to: &'static str,
}

impl Wire for Nats {
    async fn open(mut place: Place, sink: Sink) -> Outcome<Self> {
        let (listens, to) = place.names();
        let client = async_nats::connect(place.address.to_string()).await?;
        let mut messages = client.subscribe(listens).await?;
        client.flush().await?;
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                Message::read(&message.payload).into_iter().for_each(|message| sink(message));
            }
        });
        place.announce("");
        Ok(Self { client, to })
    }

    async fn send(&mut self, messages: &[Message]) -> Outcome<()> {
        for &message in messages {
            self.send_now(message).await?;
        }
        Ok(self.client.flush().await?)
    }

    /// The task of the client writes it at once when it has nothing else to do.
    async fn send_now(&mut self, message: Message) -> Outcome<()> {
        Ok(self.client.publish(self.to, message.bytes().into()).await?)
    }
}
