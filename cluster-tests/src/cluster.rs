//! Whole nodes on loopback.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use roomcast::status::{LinkReport, MemberReport, Report};
use roomcast::{ClusterSecret, Config, Event, Events, Node, NodeBuilder};

use crate::gate::Gate;
use crate::logs;
use crate::wait::{eventually, soon};

/// Who is told of whom at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seeds {
    /// Every node has the addresses of all, its own too.
    All,
    /// Every node has the address of the first, that one too.
    First,
    /// Every node has the address of the one before it.
    Chain,
    /// Nobody knows anybody.
    None,
}

/// How the nodes of a test are made.
#[derive(Clone)]
pub struct Setup {
    /// The start of the node ids; unique in the process.
    pub name: String,
    /// The name of the cluster. Default is `test`.
    pub cluster: String,
    /// The secret that the nodes share. Default is a random one.
    pub secret: ClusterSecret,
    /// Their settings.
    pub config: Config,
}

/// A place for a node: its socket, bound before the node starts so that others can be told where it is.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The id of the node.
    pub id: String,
    /// Its socket.
    pub gate: Arc<Gate>,
}

/// A running node and its socket.
pub struct Live {
    /// The node. [`Live`] derefs to it.
    pub node: Node,
    /// Its socket.
    pub gate: Arc<Gate>,
}

impl Setup {
    /// The defaults, and a name that no other test has.
    pub fn new(name: &str) -> Self {
        logs::capture();
        let secret = ClusterSecret::generate().expect("the system has random numbers");
        Self { name: name.to_owned(), cluster: "test".to_owned(), secret, config: Config::default() }
    }

    /// Changes the settings.
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// The id of node `index`.
    pub fn id(&self, index: usize) -> String {
        format!("{}-{index}", self.name)
    }

    /// A place for node `index`, on a free port.
    pub fn seat(&self, index: usize) -> Seat {
        let gate = Gate::bind(([127, 0, 0, 1], 0).into()).expect("loopback has a free port");
        Seat { id: self.id(index), gate }
    }

    /// A builder for the node of a place; it has no seeds yet.
    pub fn builder(&self, seat: &Seat) -> NodeBuilder {
        Node::builder()
            .cluster(&self.cluster)
            .id(&seat.id)
            .secret(self.secret.clone())
            .config(self.config.clone())
            .socket(Arc::clone(&seat.gate) as Arc<_>)
    }

    /// Starts the node of a place.
    pub async fn start_at(&self, seat: &Seat, seeds: impl IntoIterator<Item = SocketAddr>) -> Live {
        self.launch(seat, self.builder(seat).seeds(seeds)).await
    }

    /// Starts a node whose builder a test has changed.
    pub async fn launch(&self, seat: &Seat, builder: NodeBuilder) -> Live {
        let node = builder.start().await.expect("the settings of tests are good");
        Live { node, gate: Arc::clone(&seat.gate) }
    }

    /// Starts nodes 0 to `count - 1` together, and does not wait until they know each other.
    pub async fn start(&self, count: usize, seeds: Seeds) -> Vec<Live> {
        let seats: Vec<Seat> = (0..count).map(|index| self.seat(index)).collect();
        let addrs: Vec<SocketAddr> = seats.iter().map(Seat::addr).collect();
        let mut nodes = Vec::new();
        for (index, seat) in seats.iter().enumerate() {
            let seeds = match seeds {
                Seeds::All => addrs.clone(),
                Seeds::First => vec![addrs[0]],
                Seeds::Chain => index.checked_sub(1).map(|before| addrs[before]).into_iter().collect(),
                Seeds::None => Vec::new(),
            };
            nodes.push(self.start_at(seat, seeds).await);
        }
        nodes
    }

    /// Starts nodes 0 to `count - 1` and waits until they are all linked and know each other's rooms.
    pub async fn formed(&self, count: usize) -> Vec<Live> {
        let nodes = self.start(count, Seeds::First).await;
        formed(&nodes).await;
        nodes
    }
}

impl Seat {
    /// Where the node will be.
    pub fn addr(&self) -> SocketAddr {
        self.gate.addr()
    }
}

impl Live {
    /// Its id.
    pub fn name(&self) -> &str {
        self.node.id().as_str()
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.gate.addr()
    }

    /// Its status.
    pub fn report(&self) -> Report {
        Report::collect(&self.node)
    }

    /// What it keeps for a peer: the newest run, when it keeps two for a moment.
    pub fn link(&self, peer: &str) -> Option<LinkReport> {
        self.report().links.into_iter().filter(|link| link.peer == peer).max_by_key(|link| link.incarnation)
    }

    /// What it says of another member.
    pub fn member(&self, id: &str) -> Option<MemberReport> {
        self.report().members.into_iter().find(|member| member.id == id)
    }

    /// Whether its link to `peer` is up and the peer's rooms are known.
    pub fn is_linked_to(&self, peer: &str) -> bool {
        self.link(peer).is_some_and(|link| link.state == "up")
    }

    /// Counted frames that it has queued for all peers so far.
    pub fn frames_sent(&self) -> u64 {
        self.report().counters.frames_sent
    }

    /// Ends the node without a goodbye, as a crash does; returns when its port is free.
    pub async fn kill(self) -> SocketAddr {
        let addr = self.addr();
        self.gate.cut();
        self.node.stop().await;
        drop(self);
        eventually("the port of a dead node is free", || std::net::UdpSocket::bind(addr).is_ok()).await;
        addr
    }
}

impl Deref for Live {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// Waits until all nodes are linked to all others, know each other's rooms and list nobody else.
///
/// # Panics
/// After the deadline, with the line of the caller.
#[track_caller]
pub fn formed(nodes: &[Live]) -> impl Future<Output = ()> {
    eventually(format!("{} linked nodes", nodes.len()), move || {
        nodes.iter().all(|node| {
            let report = node.report();
            let others = nodes.iter().filter(|other| other.name() != node.name());
            report.members.len() == nodes.len()
                && report.members.iter().all(|member| member.state == "live")
                && report.links.len() == nodes.len() - 1
                && others.into_iter().all(|other| node.is_linked_to(other.name()))
        })
    })
}

/// Waits for an event, and skips the others.
///
/// # Panics
/// When the node stops or the deadline passes first.
pub async fn event(events: &mut Events, what: &str, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    let find = async {
        loop {
            let event = events.recv().await.expect("the node has not stopped");
            if wanted(&event) {
                return event;
            }
        }
    };
    soon(format!("the event {what}"), find).await
}
