//! One client: a WebSocket on one side, a member of rooms on the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::web::{Bytes, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, Closed, ProtocolError, Session};
use roomcast::{Member, Namespace};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};

use crate::{BoxError, CLOSE};

/// The most rooms of one client: every node holds the rooms of all clients.
const MAX_ROOMS: usize = 100;
/// The largest message from a client, in bytes. A client that sends a larger one is disconnected.
const MAX_MESSAGE_BYTES: usize = 4 * 1024;
/// How many messages wait for one client. When as many wait, further ones are lost to this client, and it is told how
/// many: the memory stays bounded, the room goes on, and a chat with a gap is worth more to the client than a new
/// connection, during which it would lose as much.
const QUEUE: usize = 64;
/// How often a client is asked whether it is there; browsers answer by themselves.
const PING: Duration = Duration::from_secs(15);
/// A client from which nothing comes for so long, or that takes nothing for so long after a request, is disconnected.
const IDLE: Duration = Duration::from_secs(45);
/// How long a join waits for other nodes to hear of it. One whose link is down may take longer.
const SETTLE: Duration = Duration::from_secs(2);

/// What a client sends.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Request {
    Join { join: String },
    Leave { leave: String },
    Say { to: String, text: String },
}

/// What every client works with.
#[derive(Clone)]
pub(crate) struct Chat {
    /// The name of the node.
    pub(crate) node: Arc<str>,
    /// Where the rooms are.
    pub(crate) rooms: Namespace,
    /// Becomes true when the server stops.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Opens the WebSocket of one client.
pub(crate) async fn connect(
    req: HttpRequest,
    body: Payload,
    chat: Data<Chat>,
) -> actix_web::Result<HttpResponse> {
    let (response, session, messages) = actix_ws::handle(&req, body)?;
    let messages = messages.max_frame_size(MAX_MESSAGE_BYTES).aggregate_continuations();
    actix_web::rt::spawn(serve(session, messages.max_continuation_size(MAX_MESSAGE_BYTES), chat));
    Ok(response)
}

/// Serves one client until it goes, is too slow, or the server stops.
async fn serve(session: Session, messages: AggregatedMessageStream, chat: Data<Chat>) {
    let (queue, queued) = mpsc::channel(QUEUE);
    let missed = Arc::new(AtomicU64::new(0));
    let (to_client, lost) = (queue.clone(), Arc::clone(&missed));
    // Runs on the task that emits or reads a link: it must not wait.
    let member = chat.rooms.connect(move |message: Bytes| {
        // A copy: one from another node shares the buffer of its link, which must not be kept while it waits here.
        if to_client.try_send(Bytes::copy_from_slice(&message)).is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut stopping = chat.stopping.clone();
    let code = tokio::select! {
        code = read(messages, session.clone(), &queue, &member, &chat) => code,
        _ = write(queued, session.clone(), &missed) => CloseCode::Normal,
        _ = stopping.wait_for(|stopping| *stopping) => CloseCode::Away,
    };
    // Leaves all its rooms.
    drop(member);
    let _ = timeout(CLOSE, session.close(Some(code.into()))).await;
}

/// Carries out what the client sends. Returns why no more comes.
async fn read(
    mut messages: AggregatedMessageStream,
    mut session: Session,
    queue: &mpsc::Sender<Bytes>,
    member: &Member,
    chat: &Chat,
) -> CloseCode {
    // One message, and the place in the queue for its answer: answers wait, so that they are never lost.
    let mut one = async || {
        let request = match messages.recv().await {
            Some(Ok(AggregatedMessage::Text(text))) => serde_json::from_str::<Request>(&text),
            Some(Ok(AggregatedMessage::Ping(data))) => {
                return session.pong(&data).await.map_err(|Closed| CloseCode::Normal);
            }
            Some(Ok(AggregatedMessage::Pong(_))) => return Ok(()),
            Some(Ok(AggregatedMessage::Binary(_))) => return Err(CloseCode::Unsupported),
            Some(Ok(AggregatedMessage::Close(_))) | None => return Err(CloseCode::Normal),
            Some(Err(ProtocolError::Overflow)) => return Err(CloseCode::Size),
            Some(Err(_)) => return Err(CloseCode::Protocol),
        };
        let answer = match request {
            Ok(request) => answer(request, member, chat).await,
            Err(_) => Err("expected join, leave, or to and text".into()),
        };
        match answer.unwrap_or_else(|error| json!({ "error": error.to_string() })) {
            Value::Null => Ok(()),
            answer => queue.send(answer.to_string().into()).await.map_err(|_| CloseCode::Normal),
        }
    };
    loop {
        match timeout(IDLE, one()).await {
            Ok(Ok(())) => {}
            Ok(Err(code)) => return code,
            Err(_) => return CloseCode::Policy,
        }
    }
}

/// Carries out one request. `null` is no answer.
async fn answer(request: Request, member: &Member, chat: &Chat) -> Result<Value, BoxError> {
    match request {
        Request::Join { join: room } => {
            let rooms = member.rooms();
            if rooms.len() >= MAX_ROOMS && !rooms.iter().any(|joined| **joined == *room) {
                return Err(format!("in {MAX_ROOMS} rooms already, leave one first").into());
            }
            member.join(&room)?;
            // Who is told that it joined misses nothing from then on, whichever node it is sent on.
            let _ = timeout(SETTLE, member.settled()).await;
            Ok(json!({ "joined": room }))
        }
        Request::Leave { leave: room } => {
            member.leave(&room);
            Ok(json!({ "left": room }))
        }
        Request::Say { to: room, text } => {
            // The number of a member is unique on its node only.
            let from = member.id().to_string();
            let message = json!({ "room": room, "text": text, "from": from, "node": &*chat.node });
            // For all in the room, the sender too; `member.to(..)` would leave it out.
            chat.rooms.to(&room).emit(message.to_string())?;
            Ok(Value::Null)
        }
    }
}

/// Sends the client what waits for it. Ends when it has gone.
async fn write(
    mut queued: mpsc::Receiver<Bytes>,
    mut session: Session,
    missed: &AtomicU64,
) -> Result<(), Closed> {
    let mut pings = interval(PING);
    loop {
        tokio::select! {
            _ = pings.tick() => session.ping(b"").await?,
            Some(message) = queued.recv() => {
                // The gap is behind what waited when the queue was full: at most QUEUE messages later.
                let missed = missed.swap(0, Ordering::Relaxed);
                if missed > 0 {
                    session.text(json!({ "missed": missed }).to_string()).await?;
                }
                session.text(String::from_utf8_lossy(&message).into_owned()).await?;
            }
        }
    }
}
