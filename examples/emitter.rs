//! Publishes to a running cluster from a process that is no server, for example to the nodes of the example `chat`:
//!
//! ```text
//! ROOMCAST_SECRET=... cargo run --example emitter -- 127.0.0.1:7946 lobby "the shop opens"
//! ```

use std::error::Error;
use std::process::ExitCode;

use roomcast::{ClusterSecret, Emitter};
use serde_json::json;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("emitter: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(seed), Some(room)) = (args.next(), args.next()) else {
        return Err("usage: emitter SEED ROOM [TEXT]".into());
    };
    let text = args.next().unwrap_or_else(|| "hello from a script".to_owned());

    let secret = ClusterSecret::from_env("ROOMCAST_SECRET")?;
    let emitter = Emitter::builder().cluster("chat").seeds([seed]).secret(secret).connect().await?;
    emitter
        .of("/")
        .to(&room)
        .emit("message", &json!({ "room": room, "text": text, "from": "a script", "node": "none" }))?;
    // Until a node has taken over: a process that ends earlier may lose the message.
    emitter.close().await?;
    Ok(())
}
