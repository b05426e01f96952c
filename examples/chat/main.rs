//! A chat whose rooms span all nodes of a roomcast cluster. `--help` says how to run it.

mod args;
mod presence;
mod server;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use roomcast::{ClusterMember, ClusterSecret, MemberState, Node, NodeBuilder};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

use crate::args::{Command, HELP, NodeArgs, Parser};
use crate::server::{Server, Sockets};

type BoxError = Box<dyn Error + Send + Sync>;

/// Variables with the prefix of the nodes that are not theirs: two of this program, one of the tests that start it.
const OTHERS: &[&str] = &["ROOMCAST_HTTP", "ROOMCAST_ADMIN", "ROOMCAST_REQUIRE_ALL"];
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
    let command = match args::parse(std::env::args().skip(1), |name| std::env::var(name).ok()) {
        Ok(command) => command,
        Err(error) => return usage(&error),
    };
    let result = match command {
        Command::Help => {
            say(format_args!("{}", HELP.trim_end()));
            return ExitCode::SUCCESS;
        }
        Command::Three { parser } => three(parser).await,
        Command::Node(args) => one(*args).await,
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
    let mut signals = Signals::new()?;
    signals.next().await;
    let stop = async {
        for server in servers {
            server.stop().await;
        }
    };
    signals.or_at_once(stop).await;
    Ok(())
}

fn is_linked(node: &Node, other: &ClusterMember) -> bool {
    other.state == MemberState::Live && (other.linked || other.id == *node.id())
}

/// One node of a cluster of processes.
async fn one(args: NodeArgs) -> Result<(), BoxError> {
    let builder = builder(&args)?;
    let mut signals = Signals::new()?;
    // Before the other nodes and clients hear of this one.
    let sockets = Sockets::bind(args.http, args.admin).await?;
    let node = builder.start().await?;
    let server = Server::start(node, sockets, args.parser).await?;
    let (http, admin, listen) = (server.http(), server.admin(), server.node().local_addr());
    say(format_args!("ready http={http} admin={admin} listen={listen}"));
    signals.next().await;
    signals.or_at_once(server.stop()).await;
    Ok(())
}

/// The environment, and what the command line says instead.
fn builder(args: &NodeArgs) -> Result<NodeBuilder, BoxError> {
    let mut builder = NodeBuilder::from_env_beside(OTHERS)?;
    if let Some(id) = &args.id {
        builder = builder.id(id);
    }
    if let Some(cluster) = &args.cluster {
        builder = builder.cluster(cluster);
    }
    if let Some(listen) = args.listen {
        builder = builder.listen(listen);
    }
    if let Some(advertise) = &args.advertise {
        builder = builder.advertise(advertise);
    }
    if !args.seeds.is_empty() {
        builder = builder.clear_seeds().seeds(&args.seeds);
    }
    if let Some(file) = &args.secret_file {
        builder = builder.secret(ClusterSecret::from_file(file)?);
    }
    Ok(builder)
}

/// Ctrl-C, and the signal by which Kubernetes and others ask a process to end.
struct Signals {
    #[cfg(unix)]
    all: [tokio::signal::unix::Signal; 2],
}

impl Signals {
    /// From now on the signals do not end the process by themselves.
    #[cfg(unix)]
    fn new() -> Result<Self, BoxError> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { all: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?] })
    }

    #[cfg(not(unix))]
    fn new() -> Result<Self, BoxError> {
        Ok(Self {})
    }

    /// Waits for the next of them.
    #[cfg(unix)]
    async fn next(&mut self) {
        let [terminate, interrupt] = &mut self.all;
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }

    /// Stops in order, unless somebody asks once more.
    async fn or_at_once(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => (),
            () = self.next() => {
                eprintln!("chat: asked twice to end, so it ends at once");
                std::process::exit(1);
            }
        }
    }
}
