//! Where processes live: what addresses they have, and what can be done to their network from outside.

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::http;
use crate::chat::own_ip;

/// The first port that is given away: below those that systems give to sockets of their own accord.
const FIRST_PORT: u16 = 20_000;

/// Where processes live. What goes wrong in it is a panic.
pub(crate) trait Site {
    /// The UDP address of a node.
    fn address(&self, node: usize) -> SocketAddr;
    /// A TCP address for the status of a node.
    fn admin(&self, node: usize) -> SocketAddr;
    /// Gives a node that does not run another UDP address.
    fn readdress(&mut self, node: usize);
    /// A command that runs where the node lives.
    fn command(&self, node: usize, program: &OsStr) -> Command;
    /// Cuts or opens the way from one node to another, from outside of both. False where that cannot be done.
    fn cut(&mut self, from: usize, to: usize, cut: bool) -> bool;
    /// `GET` of the status endpoint of a node, asked where it lives: the code and the body.
    fn get(&self, node: usize, path: &str) -> io::Result<(u16, String)>;
}

/// Loopback: an address that no other test uses, a port for each node.
#[derive(Debug)]
pub(super) struct Loopback {
    ip: IpAddr,
    places: Mutex<Places>,
}

#[derive(Debug)]
struct Places {
    next_port: u16,
    /// The UDP address of each node, and the one of its status.
    nodes: Vec<[SocketAddr; 2]>,
}

impl Loopback {
    pub(super) fn new() -> Self {
        let places = Places { next_port: FIRST_PORT, nodes: Vec::new() };
        Self { ip: own_ip(), places: Mutex::new(places) }
    }

    fn place(&self, node: usize, change: bool) -> [SocketAddr; 2] {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        while places.nodes.len() <= node {
            let place = [places.free(self.ip), places.free(self.ip)];
            places.nodes.push(place);
        }
        if change {
            places.nodes[node][0] = places.free(self.ip);
        }
        places.nodes[node]
    }
}

impl Places {
    /// The next port that nobody has.
    fn free(&mut self, ip: IpAddr) -> SocketAddr {
        loop {
            let addr = SocketAddr::new(ip, self.next_port);
            self.next_port = self.next_port.checked_add(1).expect("a test does not use 40,000 ports");
            if UdpSocket::bind(addr).is_ok() && std::net::TcpListener::bind(addr).is_ok() {
                return addr;
            }
        }
    }
}

impl Site for Loopback {
    fn address(&self, node: usize) -> SocketAddr {
        self.place(node, false)[0]
    }

    fn admin(&self, node: usize) -> SocketAddr {
        self.place(node, false)[1]
    }

    fn readdress(&mut self, node: usize) {
        self.place(node, true);
    }

    fn command(&self, _node: usize, program: &OsStr) -> Command {
        Command::new(program)
    }

    fn cut(&mut self, _from: usize, _to: usize, _cut: bool) -> bool {
        false
    }

    fn get(&self, node: usize, path: &str) -> io::Result<(u16, String)> {
        http::get(self.admin(node), path)
    }
}
