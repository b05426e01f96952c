//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Shown by `--help`.
pub(crate) const HELP: &str = "\
A chat on a roomcast cluster.

Without --node: three nodes in this process, with a secret of their own.
  clients  http://127.0.0.1:3001 .. 3003
  status   http://127.0.0.1:9001 .. 9003

With --node: one node of a cluster of processes.
  chat --node --id NAME --http ADDR --admin ADDR --listen ADDR [--seed HOST:PORT]...
What is not given is taken from the environment: ROOMCAST_ID (or POD_NAME), ROOMCAST_HTTP, ROOMCAST_ADMIN,
ROOMCAST_LISTEN, ROOMCAST_ADVERTISE (or POD_IP), ROOMCAST_SEEDS, ROOMCAST_CLUSTER, ROOMCAST_SECRET or
ROOMCAST_SECRET_FILE or ROOMCAST_CERT_CA, ROOMCAST_CERT and ROOMCAST_CERT_KEY, and a variable for each setting of a node.

  --id NAME           name of the node, unique in the cluster
  --http ADDR         TCP address for clients, as ip:port
  --admin ADDR        TCP address for the status endpoint; one beyond loopback is open to whoever reaches it
  --listen ADDR       UDP address for other nodes
  --advertise ADDR    address that other nodes dial, where it is not the one of --listen
  --seed HOST:PORT    another node, or a name that resolves to the other nodes; repeatable
  --secret-file FILE  the secret of the cluster
  --cluster NAME      name of the cluster [chat]

Both:
  --parser NAME       common or msgpack, for all nodes and clients alike [common]
  --help              this text

Port 0 takes a free port. A node prints one line when it serves:
  ready http=ADDR admin=ADDR listen=ADDR
RUST_LOG sets what is logged to standard error [warn].
";

/// What to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Three { parser: Parser },
    Node(Box<NodeArgs>),
}

/// One node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NodeArgs {
    pub(crate) id: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) advertise: Option<String>,
    pub(crate) seeds: Vec<String>,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) parser: Parser,
}

/// The form of Socket.IO packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Parser {
    #[default]
    Common,
    MsgPack,
}

impl Parser {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Common => "common",
            Self::MsgPack => "msgpack",
        }
    }
}

/// Reads the command line, without the name of the program. What a node needs and is not given there may be a variable of
/// the environment; those that the builder reads are only looked for.
///
/// # Errors
/// What is wrong with it, for the user.
pub(crate) fn parse(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Command, String> {
    let mut args = args.into_iter();
    let (mut node, mut parser) = (false, Parser::default());
    let (mut id, mut cluster, mut advertise, mut secret_file) = (None, None, None, None);
    let (mut http, mut admin, mut listen) = (None, None, None);
    let mut seeds = Vec::new();
    let mut only_for_nodes = None;
    while let Some(arg) = args.next() {
        // Both `--flag value` and `--flag=value`.
        let (flag, mut inline) = match arg.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        let mut value =
            || inline.take().or_else(|| args.next()).ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--node" => node = true,
            "--parser" => parser = parse_parser(&value()?)?,
            "--id" => once(&mut id, &flag, value()?)?,
            "--cluster" => once(&mut cluster, &flag, value()?)?,
            "--advertise" => once(&mut advertise, &flag, value()?)?,
            "--secret-file" => once(&mut secret_file, &flag, PathBuf::from(value()?))?,
            "--http" => once(&mut http, &flag, parse_addr(&flag, &value()?)?)?,
            "--admin" => once(&mut admin, &flag, parse_addr(&flag, &value()?)?)?,
            "--listen" => once(&mut listen, &flag, parse_addr(&flag, &value()?)?)?,
            "--seed" => seeds.push(value()?),
            _ => return Err(format!("unknown argument {flag:?}")),
        }
        if inline.is_some() {
            return Err(format!("{flag} takes no value"));
        }
        if !matches!(flag.as_str(), "--node" | "--parser") {
            only_for_nodes = Some(flag);
        }
    }
    if !node {
        return match only_for_nodes {
            Some(flag) => Err(format!("{flag} goes with --node only")),
            None => Ok(Command::Three { parser }),
        };
    }
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let missing = |flag: &str, name: &str| format!("--node needs {flag} or {name}");
    let addr = |given: Option<SocketAddr>, flag: &str, name: &str| match given {
        Some(addr) => Ok(addr),
        None => parse_addr(name, &env(name).ok_or_else(|| missing(flag, name))?),
    };
    let is_there = |given: bool, flag: &str, name: &str| match given || env(name).is_some() {
        true => Ok(()),
        false => Err(missing(flag, name)),
    };
    is_there(id.is_some() || env("POD_NAME").is_some(), "--id", "ROOMCAST_ID")?;
    is_there(listen.is_some(), "--listen", "ROOMCAST_LISTEN")?;
    if secret_file.is_none()
        && !["ROOMCAST_SECRET", "ROOMCAST_SECRET_FILE", "ROOMCAST_CERT"]
            .iter()
            .any(|name| env(name).is_some())
    {
        return Err(
            "--node needs the secret of the cluster: set ROOMCAST_SECRET or give --secret-file".to_owned()
        );
    }
    Ok(Command::Node(Box::new(NodeArgs {
        id,
        // Only where the environment says nothing else.
        cluster: cluster.or_else(|| env("ROOMCAST_CLUSTER").is_none().then(|| "chat".to_owned())),
        http: addr(http, "--http", "ROOMCAST_HTTP")?,
        admin: addr(admin, "--admin", "ROOMCAST_ADMIN")?,
        listen,
        advertise,
        seeds,
        secret_file,
        parser,
    })))
}

fn once<T>(place: &mut Option<T>, flag: &str, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{flag} is given twice")),
    }
}

fn parse_addr(flag: &str, text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{flag} {text:?} is not an address like 127.0.0.1:3001"))
}

fn parse_parser(text: &str) -> Result<Parser, String> {
    let known = [Parser::Common, Parser::MsgPack].into_iter().find(|parser| parser.name() == text);
    known.ok_or_else(|| format!("--parser {text:?} is neither common nor msgpack"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Command, String> {
        line_in(text, &[("ROOMCAST_SECRET", "x")])
    }

    fn line_in(text: &str, env: &[(&str, &str)]) -> Result<Command, String> {
        let get =
            |wanted: &str| env.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned());
        parse(text.split_whitespace().map(str::to_owned), get)
    }

    #[test]
    fn a_pod_needs_no_arguments() {
        let env = [
            ("POD_NAME", "chat-0"),
            ("ROOMCAST_HTTP", "0.0.0.0:3000"),
            ("ROOMCAST_ADMIN", "[::]:9001"),
            ("ROOMCAST_LISTEN", "0.0.0.0:7946"),
            ("ROOMCAST_CERT", "/tls.crt"),
        ];
        let Ok(Command::Node(node)) = line_in("--node", &env) else { panic!("not a node") };
        assert_eq!((node.admin.to_string().as_str(), node.cluster.as_deref()), ("[::]:9001", Some("chat")));
        assert_eq!((node.id, node.listen), (None, None));
        for missing in 0..env.len() {
            let mut less = env.to_vec();
            less.remove(missing);
            assert!(line_in("--node", &less).unwrap_err().starts_with("--node needs"), "{missing}");
        }
        let error =
            line_in("--node", &[("ROOMCAST_HTTP", "3000"), env[0], env[2], env[3], env[4]]).unwrap_err();
        assert!(error.starts_with("ROOMCAST_HTTP"), "{error}");
        let own = [env[0], env[1], env[2], env[3], env[4], ("ROOMCAST_CLUSTER", "mine")];
        let Ok(Command::Node(node)) = line_in("--node", &own) else { panic!("not a node") };
        assert_eq!(node.cluster, None, "the builder takes it");
    }

    #[test]
    fn three_nodes_need_nothing() {
        assert_eq!(line(""), Ok(Command::Three { parser: Parser::Common }));
        assert_eq!(line("--parser msgpack"), Ok(Command::Three { parser: Parser::MsgPack }));
        assert_eq!(line("--http 127.0.0.1:1 --help"), Ok(Command::Help));
    }

    #[test]
    fn one_node_is_described_in_full() {
        let text = "--node --id a --http 127.0.0.1:3001 --admin=127.0.0.1:9001 --listen 127.0.0.1:7001 \
                    --seed 127.0.0.1:7002 --seed=peers.default.svc:7003 --secret-file /run/secret";
        let Ok(Command::Node(node)) = line(text) else { panic!("not a node") };
        assert_eq!((node.id.as_deref(), node.cluster.as_deref()), (Some("a"), Some("chat")));
        assert_eq!(node.admin, SocketAddr::from(([127, 0, 0, 1], 9001)));
        assert_eq!(node.seeds, ["127.0.0.1:7002", "peers.default.svc:7003"]);
        assert_eq!(node.secret_file, Some(PathBuf::from("/run/secret")));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("--port 1", "--port"),
            ("--id a", "--node"),
            ("--node --id", "value"),
            ("--node=1", "no value"),
            ("--node --id a --listen 127.0.0.1:1", "--http"),
            ("--node --id a", "--listen"),
            ("--node --http localhost", "\"localhost\""),
            ("--node --id a --id b", "twice"),
            ("--parser xml", "xml"),
        ] {
            let error = line(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
