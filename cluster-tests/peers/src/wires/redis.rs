//! Redis pub/sub with the crate `redis`: a pipeline of PUBLISH commands for many messages.

use futures_util::StreamExt;
use redis::aio::MultiplexedConnection;
use redis::{Client, Pipeline};

use super::{Place, Sink, Wire};
use crate::Outcome;
use crate::message::Message;

pub(crate) struct Redis {
    connection: MultiplexedConnection,
    to: &'static str,
}

impl Wire for Redis {
    async fn open(mut place: Place, sink: Sink) -> Outcome<Self> {
        let (listens, to) = place.names();
        let client = Client::open(format!("redis://{}", place.address))?;
        let connection = client.get_multiplexed_async_connection().await?;
        let mut subscription = client.get_async_pubsub().await?;
        subscription.subscribe(listens).await?;
        let mut messages = subscription.into_on_message();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                Message::read(message.get_payload_bytes()).into_iter().for_each(|message| sink(message));
            }
        });
        place.announce("");
        Ok(Self { connection, to })
    }

    async fn send(&mut self, messages: &[Message]) -> Outcome<()> {
        Ok(self.pipeline(messages).query_async::<()>(&mut self.connection).await?)
    }

    /// Without waiting for the answer: the next one may be due before.
    async fn send_now(&mut self, message: Message) -> Outcome<()> {
        let (pipeline, mut connection) = (self.pipeline(&[message]), self.connection.clone());
        // What fails is missed by the emitter, which ends this.
        tokio::spawn(async move { pipeline.query_async::<()>(&mut connection).await });
        Ok(())
    }
}

impl Redis {
    fn pipeline(&self, messages: &[Message]) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(messages.len());
        for message in messages {
            pipeline.publish(self.to, message.bytes()).ignore();
        }
        pipeline
    }
}
