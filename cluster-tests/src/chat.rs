//! Nodes of the example `chat`, each in a process of its own.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use roomcast::ClusterSecret;
use roomcast::status::Report;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::process::{Process, chat_program};
use crate::wait::{DEADLINE, soon};

/// How the nodes of a cluster are started.
#[derive(Clone, Debug)]
pub struct ChatCluster {
    /// The secret that the nodes share. Default is a random one.
    pub secret: ClusterSecret,
    /// `common` or `msgpack`.
    pub parser: &'static str,
    /// More variables of their environment, for example settings. Default is none.
    pub settings: Vec<(&'static str, &'static str)>,
    ip: IpAddr,
}

/// A node that serves clients.
pub struct ChatNode {
    /// Its name.
    pub id: String,
    /// Where clients connect.
    pub http: SocketAddr,
    /// Where the status is.
    pub admin: SocketAddr,
    /// Where other nodes connect.
    pub listen: SocketAddr,
    /// The process.
    pub process: Process,
    cluster: ChatCluster,
    seeds: Vec<SocketAddr>,
}

impl ChatCluster {
    /// A cluster whose nodes and clients use `parser`, on addresses that no other cluster uses.
    ///
    /// # Panics
    /// When the example does not build.
    pub fn new(parser: &'static str) -> Self {
        chat_program();
        let secret = ClusterSecret::generate().expect("the system has random numbers");
        Self { secret, parser, settings: Vec::new(), ip: own_ip() }
    }

    /// Starts a node, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(&self, id: &str, seeds: &[SocketAddr]) -> ChatNode {
        let free = SocketAddr::new(self.ip, 0);
        self.start_at(id, [free; 3], seeds).await
    }

    /// Starts nodes `a`, `b` and `c`, and waits until all of them are linked.
    ///
    /// # Panics
    /// When they do not serve or do not find each other.
    pub async fn three(&self) -> [ChatNode; 3] {
        let a = self.start("a", &[]).await;
        let seeds = [a.listen];
        let (b, c) = tokio::join!(self.start("b", &seeds), self.start("c", &seeds));
        let nodes = [a, b, c];
        linked(&nodes.each_ref()).await;
        nodes
    }

    /// The command line of a node. The addresses are those for clients, for the status and for other nodes.
    pub fn command(&self, id: &str, addrs: [SocketAddr; 3], seeds: &[SocketAddr]) -> Command {
        let mut command = Command::new(chat_program());
        command.args(["--node", "--id", id, "--parser", self.parser]);
        for (flag, addr) in ["--http", "--admin", "--listen"].into_iter().zip(addrs) {
            command.arg(flag).arg(addr.to_string());
        }
        for seed in seeds {
            command.arg("--seed").arg(seed.to_string());
        }
        command.env("ROOMCAST_SECRET", self.secret.to_text()).env("RUST_LOG", "info").env("NO_COLOR", "1");
        command.envs(self.settings.iter().copied());
        command
    }

    async fn start_at(&self, id: &str, addrs: [SocketAddr; 3], seeds: &[SocketAddr]) -> ChatNode {
        let process = Process::spawn(format!("node {id}"), self.command(id, addrs, seeds));
        let ready = process.line("ready ").await;
        let [http, admin, listen] = ["http", "admin", "listen"].map(|name| field(&ready, name));
        ChatNode {
            id: id.to_owned(),
            http,
            admin,
            listen,
            process,
            cluster: self.clone(),
            seeds: seeds.to_vec(),
        }
    }
}

impl ChatNode {
    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Its status.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn report(&self) -> Report {
        let (code, body) = self.admin("/status").await;
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("the status is a report")
    }

    /// What the status endpoint answers: the code and the body.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let get = soon(format!("GET {path} of node {}", self.id), get(self.admin, path));
        get.await.unwrap_or_else(|error| panic!("failed to GET {path} of node {}: {error}", self.id))
    }

    /// Waits until its status is as `holds` says.
    ///
    /// # Panics
    /// After the deadline, with the last status.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Report) -> bool) -> Report {
        let end = Instant::now() + DEADLINE;
        loop {
            let report = self.report().await;
            if holds(&report) {
                return report;
            }
            assert!(Instant::now() < end, "node {}: not within {DEADLINE:?}: {what}: {report:#?}", self.id);
            sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Kills it with SIGKILL.
    ///
    /// # Panics
    /// When the system does not let it go.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts it again under its name and addresses, after its end.
    ///
    /// # Panics
    /// When it does not serve.
    pub async fn restart(&mut self) {
        let addrs = [self.http, self.admin, self.listen];
        *self = self.cluster.clone().start_at(&self.id, addrs, &self.seeds).await;
        assert_eq!([self.http, self.admin, self.listen], addrs);
    }
}

/// Waits until every node lists exactly these nodes as live and has a link that is up to each of them.
///
/// # Panics
/// After the deadline, with the last status.
pub async fn linked(nodes: &[&ChatNode]) {
    let mut ids: Vec<&str> = nodes.iter().map(|node| &*node.id).collect();
    ids.sort_unstable();
    for node in nodes {
        node.until("it is linked to all", |report| {
            let live = report.members.iter().filter(|member| member.state == "live" && member.linked);
            let up = report.links.iter().filter(|link| link.state == "up");
            live.map(|member| &*member.id).eq(ids.iter().copied())
                && report.members.len() == ids.len()
                && up.map(|link| &*link.peer).eq(ids.iter().copied().filter(|id| *id != node.id))
        })
        .await;
    }
}

/// An address of loopback that no other test uses, so that the ports of a node that was killed are still free when it
/// starts again. Only Linux gives the whole of 127.0.0.0/8 to loopback.
pub(crate) fn own_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    if !cfg!(target_os = "linux") {
        return Ipv4Addr::LOCALHOST.into();
    }
    let [.., high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed) % 126;
    Ipv4Addr::from([127, 128 + u8::try_from(next).expect("it is below 126"), high, low.clamp(1, 254)]).into()
}

/// Reads `name=value` from the line that a node prints when it serves.
fn field<T: FromStr<Err: Debug>>(line: &str, name: &str) -> T {
    let mut fields = line.split_whitespace().filter_map(|word| word.split_once('='));
    let value = fields.find_map(|(key, value)| (key == name).then_some(value));
    let value = value.unwrap_or_else(|| panic!("no {name} in {line:?}"));
    value.parse().unwrap_or_else(|error| panic!("{name} in {line:?}: {error:?}"))
}

/// One request of HTTP/1.0: the answer ends with the connection.
async fn get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    Ok((code, body.to_owned()))
}
