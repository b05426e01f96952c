//! A chat over plain WebSockets with actix-web: the rooms span all nodes of a roomcast cluster, without Socket.IO.
//!
//! Without arguments: two nodes in this process. Or one node per process, with one secret in `ROOMCAST_SECRET`:
//! `actix_ws --id a --http 127.0.0.1:8081 --listen 127.0.0.1:7101 --seed 127.0.0.1:7102 [--secret-file FILE]`
//!
//! Messages are JSON text. In: `{"join":"lobby"}`, `{"leave":"lobby"}`, `{"to":"lobby","text":"hi"}`. Out:
//! `{"room":"lobby","text":"hi","from":"1","node":"a"}`, `{"joined":"lobby"}`, `{"left":"lobby"}`, `{"error":"..."}`,
//! and `{"missed":3}` where the client was too slow for so many.
//!
//! Two kinds of actix live here side by side. roomcast runs its own actors in an actix `System` on a thread of its own,
//! and QUIC on the tokio runtime in which the node is started. actix-web needs no `System` under `#[tokio::main]`: each
//! worker is a thread with a small runtime, and the tasks of a client stay on it. A `System` belongs to its thread, so
//! neither sees or stops the other's. They meet only in `Namespace` and `Member`, which any thread may call and which
//! never wait for an actor, and in the queue of each client.

mod client;

use std::error::Error;
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::web::{self, Data, Html};
use actix_web::{App, HttpServer};
use roomcast::{ClusterSecret, Node};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::client::{Chat, connect};

/// Shown by `--help`.
const USAGE: &str = "\
Without arguments: two nodes in this process, http://127.0.0.1:8081 and 8082.
One node per process, with one secret in ROOMCAST_SECRET or a file:
  actix_ws --id NAME --http ADDR --listen ADDR [--seed HOST:PORT]... [--secret-file FILE]";

/// How long a client may take to go, and, in whole seconds, all of them when the server stops.
const CLOSE: Duration = Duration::from_secs(3);

type BoxError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("actix_ws: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let mut servers = Vec::new();
    if std::env::args().len() > 1 {
        let args = Args::parse(std::env::args().skip(1))?;
        let secret = match &args.secret_file {
            Some(file) => ClusterSecret::from_file(file)?,
            None => ClusterSecret::from_env("ROOMCAST_SECRET")?,
        };
        servers.push(Server::start(args, secret).await?);
    } else {
        let secret = ClusterSecret::generate()?;
        let a = Server::start(Args::local("a", 8081, Vec::new()), secret.clone()).await?;
        let seeds = vec![a.node.local_addr().to_string()];
        servers.extend([a, Server::start(Args::local("b", 8082, seeds), secret).await?]);
    }
    for Server { node, http, .. } in &servers {
        println!("ready http=http://{http}/ listen={} node={}", node.local_addr(), node.id());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => (),
    }
    for server in servers {
        server.stop().await;
    }
    Ok(())
}

/// A node that serves clients.
struct Server {
    node: Node,
    http: SocketAddr,
    web: ServerHandle,
    stopping: watch::Sender<bool>,
}

impl Server {
    async fn start(args: Args, secret: ClusterSecret) -> Result<Self, BoxError> {
        // Before other nodes hear of this one: a port that is taken must not be noticed later.
        let listener =
            TcpListener::bind(args.http).map_err(|error| format!("listen on {}: {error}", args.http))?;
        let http = listener.local_addr()?;
        let builder = Node::builder().cluster("chat").id(args.id).listen(args.listen).seeds(args.seeds);
        let node = builder.secret(secret).start().await?;
        let (stopping, stopped) = watch::channel(false);
        let chat =
            Chat { node: node.id().as_str().into(), rooms: node.namespace("/chat")?, stopping: stopped };
        let page = async || Html::new(include_str!("index.html"));
        let app = move || {
            let app = App::new().app_data(Data::new(chat.clone()));
            app.route("/", web::get().to(page)).route("/ws", web::get().to(connect))
        };
        // The signals are for `main`: clients go before the node does.
        let server = HttpServer::new(app).workers(2).shutdown_timeout(CLOSE.as_secs()).disable_signals();
        let server = server.listen(listener)?.run();
        let web = server.handle();
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "no longer serving clients");
            }
        });
        Ok(Self { node, http, web, stopping })
    }

    /// Lets the clients go, hands over to the other nodes what is queued for them, and stops.
    async fn stop(self) {
        self.stopping.send_replace(true);
        self.web.stop(true).await;
        self.node.drain().await;
        self.node.stop().await;
    }
}

/// One node.
struct Args {
    id: String,
    http: SocketAddr,
    listen: SocketAddr,
    seeds: Vec<String>,
    secret_file: Option<PathBuf>,
}

impl Args {
    /// A node on loopback.
    fn local(id: &str, http: u16, seeds: Vec<String>) -> Self {
        let [http, listen] = [http, 0].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Self { id: id.into(), http, listen, seeds, secret_file: None }
    }

    fn parse(mut line: impl Iterator<Item = String>) -> Result<Self, BoxError> {
        let mut args = Self::local("", 0, Vec::new());
        while let Some(flag) = line.next() {
            if flag == "--help" || flag == "-h" {
                println!("{USAGE}");
                std::process::exit(0);
            }
            let value = line.next().ok_or_else(|| format!("read the arguments: {flag} needs a value"))?;
            match flag.as_str() {
                "--id" => args.id = value,
                "--http" => args.http = addr(&flag, &value)?,
                "--listen" => args.listen = addr(&flag, &value)?,
                "--seed" => args.seeds.push(value),
                "--secret-file" => args.secret_file = Some(value.into()),
                _ => return Err(format!("read the arguments: {flag:?} is unknown").into()),
            }
        }
        Ok(args)
    }
}

fn addr(flag: &str, value: &str) -> Result<SocketAddr, String> {
    value
        .parse()
        .map_err(|_| format!("read the arguments: {flag} {value:?} is not an address like 127.0.0.1:8081"))
}
