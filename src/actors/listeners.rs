//! Events for the actors of users: what a listener hears, as messages to a recipient.

use std::future::Future;

use actix::Message;
pub(crate) use actix::Recipient;
use actix::prelude::SendError;

use crate::event::{Event, Events, RoomEvent, RoomEvents};
use crate::hub::cluster_rooms::RoomWatch;

impl Message for Event {
    type Result = ();
}

impl Message for RoomEvent {
    type Result = ();
}

/// Where events come from, one after another.
pub(crate) trait Source: Send + 'static {
    /// What comes.
    type Item: Message<Result = ()> + Send + 'static;

    /// The next one; none at the end.
    fn next(&mut self) -> impl Future<Output = Option<Self::Item>> + Send;
}

impl Source for Events {
    type Item = Event;

    async fn next(&mut self) -> Option<Event> {
        self.recv().await
    }
}

impl Source for RoomEvents {
    type Item = RoomEvent;

    async fn next(&mut self) -> Option<RoomEvent> {
        self.recv().await
    }
}

impl Source for RoomWatch {
    type Item = RoomEvent;

    async fn next(&mut self) -> Option<RoomEvent> {
        self.recv().await
    }
}

/// Hands events to a recipient, until it or the source ends.
///
/// While the mailbox is full, the events wait in the buffer of the source, which counts those that it cannot keep.
pub(crate) async fn forward<S: Source>(mut source: S, recipient: Recipient<S::Item>) {
    while let Some(event) = source.next().await {
        let there = match recipient.try_send(event) {
            Ok(()) => true,
            // Waits until there is room, and until this one was handled.
            Err(SendError::Full(event)) => recipient.send(event).await.is_ok(),
            Err(SendError::Closed(_)) => false,
        };
        if !there {
            return;
        }
    }
}
