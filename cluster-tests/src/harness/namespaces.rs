//! Real ground with a network: every process in a network namespace of its own.
//!
//! A way that is cut is cut between the nodes, where nobody is told. When all ways of a node are cut, its cable is pulled.
//! Loss, delay and disorder are made at the sockets of the nodes, as on loopback. A new address of a node is another IP.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use super::processes::{Site, get};
use crate::netns::{Net, Pod};

/// The addresses of the nodes: those of other clusters may be the same.
const SUBNET: &str = "10.77.0.0/24";
/// The last byte of the first new address of a node; there are at most so many nodes.
const FIRST_NEW: u8 = 128;
/// The port of every node.
const PORT: u16 = 7946;
/// The port of the status of every node, on its own loopback.
const ADMIN_PORT: u16 = 9000;

/// Processes in network namespaces.
pub(super) struct Pods {
    net: Net,
    next_new: u8,
    cuts: BTreeSet<(usize, usize)>,
    /// The nodes whose cable is pulled.
    pulled: BTreeSet<usize>,
    /// The nodes that were named so far are below this.
    nodes: std::cell::Cell<usize>,
}

impl Pods {
    /// # Panics
    /// When the system has no namespaces for us.
    pub(super) fn new(prefix: &str) -> Self {
        let net = works(Net::new(prefix, SUBNET));
        Self {
            net,
            next_new: FIRST_NEW,
            cuts: BTreeSet::new(),
            pulled: BTreeSet::new(),
            nodes: std::cell::Cell::new(0),
        }
    }

    fn pod(&self, node: usize) -> Pod {
        assert!(node < FIRST_NEW.into(), "there is no address for node {node}");
        while self.nodes.get() <= node {
            works(self.net.add());
            self.nodes.set(self.nodes.get() + 1);
        }
        self.net.pod(node).expect("it was added")
    }

    /// Whether all ways from and to a node are cut.
    fn is_alone(&self, node: usize) -> bool {
        let mut others = (0..self.nodes.get()).filter(|other| *other != node).peekable();
        others.peek().is_some()
            && others.all(|other| self.cuts.contains(&(node, other)) && self.cuts.contains(&(other, node)))
    }

    /// Pulls and plugs cables as the cuts say.
    fn cables(&mut self) {
        for node in 0..self.nodes.get() {
            let alone = self.is_alone(node);
            if alone && self.pulled.insert(node) {
                works(self.pod(node).link_down());
            } else if !alone && self.pulled.remove(&node) {
                works(self.pod(node).link_up());
            }
        }
    }
}

impl Site for Pods {
    fn address(&self, node: usize) -> SocketAddr {
        (self.pod(node).ip(), PORT).into()
    }

    fn admin(&self, _node: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, ADMIN_PORT).into()
    }

    fn readdress(&mut self, node: usize) {
        let pod = self.pod(node);
        let old = pod.ip();
        let [a, b, c, _] = old.octets();
        let new = Ipv4Addr::from([a, b, c, self.next_new]);
        self.next_new = self.next_new.checked_add(1).expect("a test does not use 127 new addresses");
        works(pod.readdress(new));
        // Cuts are by address.
        for (from, to) in &self.cuts {
            if *to == node {
                works(self.pod(*from).pass_to(old));
                works(self.pod(*from).drop_to(new));
            } else if *from == node {
                works(pod.drop_to(self.pod(*to).ip()));
            }
        }
    }

    fn command(&self, node: usize, program: &OsStr) -> Command {
        self.pod(node).command(program)
    }

    fn cut(&mut self, from: usize, to: usize, cut: bool) -> bool {
        let (one, other) = (self.pod(from), self.pod(to));
        if cut && self.cuts.insert((from, to)) {
            works(one.drop_to(other.ip()));
        } else if !cut && self.cuts.remove(&(from, to)) {
            works(one.pass_to(other.ip()));
        }
        self.cables();
        true
    }

    fn get(&self, node: usize, path: &str) -> io::Result<(u16, String)> {
        let admin = self.admin(node);
        self.pod(node).run(|| get(admin, path))?
    }
}

fn works<T>(result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("failed to change the network: {error}"))
}
