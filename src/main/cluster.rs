//! The commands that link to the cluster as an emitter.

use std::fmt::Write;

use roomcast::emitter::{EmitterError, Gathered, Selection};
use roomcast::{ClusterSecret, Emitter, Parser};
use serde_json::json;

use super::args::{Action, ClusterCommand};
use super::{plain_text, write_rows};

/// What a command has to say, and what is missing in it.
pub(super) struct Output {
    pub(super) text: String,
    pub(super) missing: Vec<String>,
}

/// Does what the command says, within its time.
pub(super) fn run(command: &ClusterCommand) -> Result<Output, String> {
    let secret = match &command.secret_file {
        Some(file) => ClusterSecret::from_file(file),
        None => ClusterSecret::from_env("ROOMCAST_SECRET"),
    };
    let secret = secret.map_err(|error| {
        format!(
            "failed to {error} (here it is the secret that the cluster has already, or --secret-file FILE)"
        )
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| format!("failed to start: {error}"))?;
    runtime.block_on(async {
        let limit = command.timeout;
        match tokio::time::timeout(limit, link(command, secret)).await {
            Ok(done) => done,
            Err(_) => Err(format!(
                "failed to finish within {} s: a node is slow or went; see `roomcast status`, or raise --timeout",
                limit.as_secs_f32()
            )),
        }
    })
}

async fn link(command: &ClusterCommand, secret: ClusterSecret) -> Result<Output, String> {
    let parser = match &command.action {
        Action::Emit { msgpack: true, .. } => Parser::MsgPack,
        _ => Parser::Common,
    };
    let builder = Emitter::builder().cluster(&command.cluster).seeds(&command.seeds).secret(secret);
    // A little less, so that the reason is said and not only that the time is over.
    let within = command.timeout * 9 / 10;
    let builder = builder.parser(parser).connect_timeout(within).request_timeout(command.timeout * 7 / 10);
    let emitter = builder.connect().await.map_err(|error| format!("failed to {error}"))?;
    let output = act(&emitter, command).await.map_err(|error| format!("failed to {error}"))?;
    emitter.close().await.map_err(|lost| format!("failed to {lost}; look before you repeat it"))?;
    Ok(output)
}

async fn act(emitter: &Emitter, command: &ClusterCommand) -> Result<Output, EmitterError> {
    let mut selection = emitter.of(&command.namespace).except(&command.except);
    if !command.rooms.is_empty() {
        selection = selection.to(&command.rooms);
    }
    match &command.action {
        Action::Emit { event, data, volatile, .. } => {
            let selection = if *volatile { selection.volatile() } else { selection };
            match data {
                Some(data) => selection.emit(event, data)?,
                // No argument at all.
                None => selection.emit(event, &[(); 0])?,
            }
            Ok(Output { text: String::new(), missing: Vec::new() })
        }
        Action::EmitPlain { text, volatile } => {
            let selection = if *volatile { selection.volatile() } else { selection };
            selection.emit_bytes(text.clone())?;
            Ok(Output { text: String::new(), missing: Vec::new() })
        }
        Action::Rooms => rooms(selection, command.json).await,
        Action::Sockets { count: true } => {
            let Gathered { value, missing } = selection.count().await?;
            Ok(Output {
                text: format!("{value}\n"),
                missing: missing.iter().map(ToString::to_string).collect(),
            })
        }
        Action::Sockets { count: false } => sockets(selection, command.json).await,
        Action::Disconnect => {
            selection.disconnect()?;
            Ok(Output { text: String::new(), missing: Vec::new() })
        }
    }
}

async fn rooms(selection: Selection<'_>, json: bool) -> Result<Output, EmitterError> {
    let Gathered { value, missing } = selection.rooms().await?;
    let missing = missing.iter().map(ToString::to_string).collect();
    if json {
        let value: std::collections::BTreeMap<_, _> = value.into_iter().collect();
        return Ok(Output { text: format!("{}\n", json!(value)), missing });
    }
    let rows: Vec<Vec<String>> =
        value.iter().map(|(room, members)| vec![plain_text(room), members.to_string()]).collect();
    let mut text = String::new();
    write_rows(&mut text, &["ROOM", "MEMBERS"], &rows);
    Ok(Output { text, missing })
}

async fn sockets(selection: Selection<'_>, json: bool) -> Result<Output, EmitterError> {
    let Gathered { mut value, missing } = selection.sockets().await?;
    let missing = missing.iter().map(ToString::to_string).collect();
    value.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
    let mut text = String::new();
    if json {
        for socket in &value {
            let object = json!({
                "node": socket.node.as_str(), "id": socket.id, "server": socket.server, "rooms": socket.rooms,
            });
            let _ = writeln!(text, "{object}");
        }
        return Ok(Output { text, missing });
    }
    let rows: Vec<Vec<String>> = value
        .iter()
        .map(|socket| {
            let server = socket.server.as_deref().map_or_else(|| "-".to_owned(), plain_text);
            let rooms: Vec<String> = socket.rooms.iter().map(|room| plain_text(room)).collect();
            vec![plain_text(&socket.id), socket.node.as_str().to_owned(), server, rooms.join(" ")]
        })
        .collect();
    write_rows(&mut text, &["SOCKET", "NODE", "SERVER", "ROOMS"], &rows);
    Ok(Output { text, missing })
}
