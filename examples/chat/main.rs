//! A chat whose rooms span all nodes of a roomcast cluster. `--help` says how to run it.

mod args;
mod presence;
mod server;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use roomcast::{ClusterMember, ClusterSecret, MemberState, Node};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

use crate::args::{Command, HELP, NodeArgs, Parser};
use crate::server::{Server, Sockets};

type BoxError = Box<dyn Error + Send + Sync>;

/// The command line is wrong.
const USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(!plain && std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let command = match args::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(error) => return usage(&error),
    };
    let result = match command {
        Command::Help => {
            say(format_args!("{}", HELP.trim_end()));
            return ExitCode::SUCCESS;
        }
        Command::Three { parser } => three(parser).await,
        Command::Node(args) => {
            if args.secret_file.is_none() && std::env::var_os("ROOMCAST_SECRET").is_none() {
                return usage(
                    "--node needs the secret of the cluster: set ROOMCAST_SECRET or give --secret-file",
                );
            }
            one(*args).await
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &str) -> ExitCode {
    eprintln!("chat: {error}\nTry --help.");
    ExitCode::from(USAGE)
}

/// Prints a line. Whoever started the program may have read enough and closed the pipe: it serves all the same.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Three nodes in this process.
async fn three(parser: Parser) -> Result<(), BoxError> {
    let mut sockets = Vec::new();
    for number in 1..=3 {
        let [clients, admin] = [3000, 9000].map(|base| SocketAddr::from(([127, 0, 0, 1], base + number)));
        sockets.push(Sockets::bind(clients, admin).await?);
    }
    let secret = ClusterSecret::generate()?;
    let start = Instant::now();
    let mut nodes: Vec<Node> = Vec::new();
    for id in ["a", "b", "c"] {
        let builder = Node::builder().cluster("chat").id(id).listen("127.0.0.1:0").secret(secret.clone());
        nodes.push(builder.seeds(nodes.iter().map(Node::local_addr)).start().await?);
    }
    for node in &nodes {
        node.members_until(|members| members.iter().filter(|other| is_linked(node, other)).count() == 3)
            .await;
    }
    say(format_args!("three nodes found each other in {} ms", start.elapsed().as_millis()));

    let mut servers = Vec::new();
    for (node, sockets) in nodes.into_iter().zip(sockets) {
        let server = Server::start(node, sockets, parser).await?;
        let (node, http, admin) = (server.node(), server.http(), server.admin());
        let (id, quic) = (node.id(), node.local_addr());
        say(format_args!("node {id}  chat http://{http}/  status http://{admin}/status  QUIC {quic}"));
        servers.push(server);
    }
    stopped().await?;
    for server in servers {
        server.stop().await;
    }
    Ok(())
}

fn is_linked(node: &Node, other: &ClusterMember) -> bool {
    other.state == MemberState::Live && (other.linked || other.id == *node.id())
}

/// One node of a cluster of processes.
async fn one(args: NodeArgs) -> Result<(), BoxError> {
    let secret = match &args.secret_file {
        Some(file) => ClusterSecret::from_file(file)?,
        None => ClusterSecret::from_env("ROOMCAST_SECRET")?,
    };
    // Before the other nodes and clients hear of this one.
    let sockets = Sockets::bind(args.http, args.admin).await?;
    let mut builder = Node::builder().cluster(args.cluster).id(args.id).listen(args.listen).seeds(args.seeds);
    if let Some(advertise) = args.advertise {
        builder = builder.advertise(advertise);
    }
    let node = builder.secret(secret).start().await?;
    let server = Server::start(node, sockets, args.parser).await?;
    let (http, admin, listen) = (server.http(), server.admin(), server.node().local_addr());
    say(format_args!("ready http={http} admin={admin} listen={listen}"));
    stopped().await?;
    server.stop().await;
    Ok(())
}

/// Waits for Ctrl-C, or for the signal by which Kubernetes and others ask a process to end.
async fn stopped() -> Result<(), BoxError> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result?,
            _ = terminate.recv() => (),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await?;
    Ok(())
}
