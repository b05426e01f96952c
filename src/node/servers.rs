//! Events for other nodes: what [`crate::servers`] does, on a whole node.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Node;
use crate::error::{AskError, IdError};
use crate::hub::Receipt;
use crate::plain::EmitError;
use crate::servers::{self, ServerAcks, ServerEvent, ServerEventHandler, Servers};

impl Node {
    /// Registers a handler of the events that other nodes emit to whole nodes, by name. What the handler returns is the
    /// acknowledgement; `()` is one, too. It stays registered until the guard is dropped, or for ever by
    /// [`ServerEventHandler::detach`].
    ///
    /// Of several handlers of one name all run, and the one that was registered first answers. An event whose data does
    /// not fit `T` runs no handler: the emitter is told, or the log here when it does not wait for an answer.
    ///
    /// Handlers are called in the order in which events came and run in place up to their first wait, on the task that
    /// reads the link: do not block there. What waits goes on beside, with at most
    /// [`LinkConfig::max_server_events`](crate::config::LinkConfig::max_server_events) events at a time; one more is
    /// refused. No lock is held: a handler may emit, also to the node that it answers. A panic is logged and answered as
    /// [`ServerEventError::Failed`](crate::ServerEventError::Failed). (Not with `panic = "abort"`.)
    ///
    /// ```no_run
    /// # async fn example(node: roomcast::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use roomcast::{ServerAcks, ServerEvent};
    ///
    /// let _handler = node.on_server_event("load", async |event: ServerEvent<String>| {
    ///     println!("{} asks for the load of {}", event.from, event.data);
    ///     0.25
    /// })?;
    ///
    /// node.server_side_emit("reload", "prices")?;
    ///
    /// let timeout = Duration::from_secs(1);
    /// let acks: ServerAcks<f64> = node.server_side_emit_with_ack("load", "cpu", timeout).await?;
    /// for (node, load) in &acks.answers {
    ///     println!("{node}: {load:?}");
    /// }
    /// for missing in &acks.missing {
    ///     println!("no answer of {missing}");
    /// }
    ///
    /// let receipt = node.servers().only(["chat-1", "chat-2"]).emit("reload", "prices")?;
    /// println!("not queued for {:?}", receipt.dropped);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`IdError::Event`] when the name is over [`crate::config::LinkConfig::max_room_bytes`];
    /// [`IdError::TooManyNamespaces`] when this would be one more than may be, which the first handler of a node may be.
    pub fn on_server_event<T, R, F, Fut>(&self, name: &str, handler: F) -> Result<ServerEventHandler, IdError>
    where
        T: DeserializeOwned + 'static,
        R: Serialize + 'static,
        F: Fn(ServerEvent<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let hub = &self.inner.hub;
        servers::on(hub, &hub.handlers.node, name, handler)
    }

    /// The other nodes, to emit events to that are for servers and not for clients.
    pub fn servers(&self) -> Servers<'_> {
        Servers::new(&self.inner.hub, &self.inner.hub.handlers.node)
    }

    /// Emits an event to all other nodes that have handlers of [server events](Self::on_server_event): as
    /// [`Servers::emit`].
    ///
    /// # Errors
    /// [`EmitError`]: nobody gets it.
    pub fn server_side_emit<T: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &T,
    ) -> Result<Receipt, EmitError> {
        self.servers().emit(name, data)
    }

    /// Emits an event to all other nodes that have handlers of [server events](Self::on_server_event), and waits for
    /// their acknowledgements: as [`Servers::emit_with_ack`].
    ///
    /// # Errors
    /// [`AskError`]: nobody gets it.
    pub async fn server_side_emit_with_ack<R: DeserializeOwned>(
        &self,
        name: &str,
        data: &(impl Serialize + ?Sized),
        timeout: Duration,
    ) -> Result<ServerAcks<R>, AskError> {
        self.servers().emit_with_ack(name, data, timeout).await
    }
}
