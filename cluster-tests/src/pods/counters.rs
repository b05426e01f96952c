//! Pods with the node of the harness: its members count, and its checker knows what is missing.

use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use super::{PORT, Space};
use crate::harness::processes::{Processes, Site, get};
use crate::netns::Pod;

/// Nodes in pods of a network; each has the next address. `program` is that of `cluster-node`.
///
/// Nobody is in the DNS: [`Space::list`] is up to the test, with [`Ground::address`](crate::harness::ground::Ground).
pub fn counters(space: &Arc<Space>, program: impl Into<PathBuf>) -> Processes {
    let site = Pods { space: Arc::clone(space), pods: Mutex::default() };
    Processes::new(program).at(Box::new(site))
}

struct Pods {
    space: Arc<Space>,
    pods: Mutex<Vec<Pod>>,
}

impl Pods {
    fn pod(&self, node: usize) -> Pod {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        while pods.len() <= node {
            pods.push(self.space.add());
        }
        pods[node].clone()
    }
}

impl Site for Pods {
    fn address(&self, node: usize) -> SocketAddr {
        (self.pod(node).ip(), PORT).into()
    }

    fn admin(&self, _node: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 9000).into()
    }

    fn readdress(&mut self, _node: usize) {
        unreachable!("a pod keeps its address: start another one");
    }

    fn command(&self, node: usize, program: &OsStr) -> Command {
        self.pod(node).command(program)
    }

    fn cut(&mut self, _from: usize, _to: usize, _cut: bool) -> bool {
        false
    }

    fn get(&self, node: usize, path: &str) -> io::Result<(u16, String)> {
        let admin = self.admin(node);
        self.pod(node).run(|| get(admin, path))?
    }
}
