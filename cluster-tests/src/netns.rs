//! Network namespaces: pods with addresses of their own on a switch, real links that go down, and cuts that nobody is
//! told of.
//!
//! Nothing touches the network of the machine: the switch has a namespace of its own, too, so every [`Net`] may have the
//! same addresses. Needs Linux, root and iproute2: ask [`requirement::namespaces`](crate::requirement::namespaces)
//! first.
//!
//! ```no_run
//! # fn doc() -> std::io::Result<()> {
//! use cluster_tests::netns::Net;
//!
//! let net = Net::new("mine", "10.0.0.0/24")?;
//! let (a, b) = (net.add()?, net.add()?);
//! let mut program = a.command("my-server").arg(b.ip().to_string()).spawn()?;
//! a.drop_to(b.ip())?; // b still reaches a
//! a.pass_to(b.ip())?;
//! b.link_down()?;
//! program.kill()?;
//! # Ok(())
//! # }
//! ```
//!
//! All of it is removed with the last of the [`Net`] and its pods, also after a panic; when the process is killed, a shell
//! that waits for that does it. What is left when that one is killed, too, is removed by the next [`Net`] of the same
//! prefix. The functions run `ip` and block for a few milliseconds.

mod clean;

use std::ffi::OsStr;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::clean::{guard, started, sweep};
use crate::afterwards::Afterwards;

/// Where `ip` keeps the names of namespaces.
const NAMES: &str = "/run/netns";
/// Where `ip` looks for files that stand in for those of `/etc` in a namespace.
const FILES: &str = "/etc/netns";
/// The longest prefix, in bytes.
const MAX_PREFIX: usize = 32;
/// The longest and the shortest prefix length of a subnet: two pods at least, and not more than anyone could want.
const SUBNET_BITS: std::ops::RangeInclusive<u8> = 16..=29;
/// The interface of a pod.
const DEVICE: &str = "eth0";
/// A hardware address that nobody has: what is sent to it is lost without a word.
const NOBODY: &str = "02:00:00:00:00:01";

/// A switch in a namespace of its own, and pods on it.
#[derive(Debug)]
pub struct Net {
    wires: Arc<Wires>,
    pods: Mutex<Vec<Pod>>,
}

/// A namespace with one interface on the switch of its [`Net`], and `lo`. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct Pod {
    wires: Arc<Wires>,
    index: usize,
    ip: Arc<Mutex<Ipv4Addr>>,
}

/// What is removed at the end.
#[derive(Debug)]
struct Wires {
    /// What the names of all its namespaces begin with.
    name: String,
    base: Ipv4Addr,
    bits: u8,
    /// How many pods have been made.
    made: AtomicU32,
    /// Removes them. None where there are none.
    _guard: Option<Afterwards>,
}

impl Net {
    /// Makes a switch. `prefix` begins the names of its namespaces, which are unique for each process and each `Net`:
    /// 1 to 32 letters, digits and `-`. `subnet` is for example `10.0.0.0/24`, from /16 to /29.
    ///
    /// What earlier processes left that had the same prefix and do not run any more is removed first. Programs that still
    /// run in a namespace when it is removed are killed.
    ///
    /// # Errors
    /// When the arguments are none, or `ip` fails; what it says is in the error.
    pub fn new(prefix: &str, subnet: &str) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if prefix.is_empty() || prefix.len() > MAX_PREFIX || !prefix.bytes().all(good) {
            return Err(invalid(format!(
                "not a prefix of 1 to {MAX_PREFIX} letters, digits and -: {prefix:?}"
            )));
        }
        let (base, bits) = parse(subnet)?;
        sweep(prefix)?;
        let pid = std::process::id();
        let started = started(pid).ok_or_else(|| io::Error::other("/proc does not tell of this process"))?;
        let name = format!("{prefix}.{pid}.{started}.{}", COUNT.fetch_add(1, Ordering::Relaxed));
        // Before anything else, so that half of it is removed, too.
        let guard = guard(&format!("{name}."))?;
        let wires = Arc::new(Wires { name, base, bits, made: AtomicU32::new(0), _guard: Some(guard) });
        let switch = wires.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        Ok(Self { wires, pods: Mutex::default() })
    }

    /// Adds a pod, with the next address of the subnet.
    ///
    /// # Errors
    /// When the subnet is full, or `ip` fails.
    pub fn add(&self) -> io::Result<Pod> {
        let index = self.wires.made.fetch_add(1, Ordering::Relaxed);
        let ip_of_pod = self.wires.address(index)?;
        let pod = Pod {
            wires: Arc::clone(&self.wires),
            index: index as usize,
            ip: Arc::new(Mutex::new(ip_of_pod)),
        };
        let (switch, name, port) = (self.wires.switch(), pod.name(), pod.port());
        ip(&["netns", "add", &name])?;
        let ends = ["type", "veth", "peer", "name", DEVICE, "netns", &name];
        ip(&[&["-n", &switch, "link", "add", &port], &ends[..]].concat())?;
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        pod.ip_command(&["address", "add", &pod.cidr(ip_of_pod), "dev", DEVICE])?;
        pod.ip_command(&["link", "set", "lo", "up"])?;
        pod.ip_command(&["link", "set", DEVICE, "up"])?;
        lock(&self.pods).push(pod.clone());
        Ok(pod)
    }

    /// A pod that was added: 0 is the first one.
    pub fn pod(&self, index: usize) -> Option<Pod> {
        lock(&self.pods).iter().find(|pod| pod.index == index).cloned()
    }

    /// Cuts two pods off from each other; all others hear both.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn cut(&self, a: &Pod, b: &Pod) -> io::Result<()> {
        a.drop_to(b.ip())?;
        b.drop_to(a.ip())
    }

    /// Ends a [`cut`](Self::cut).
    ///
    /// # Errors
    /// When `ip` fails, also when there was no cut.
    pub fn heal(&self, a: &Pod, b: &Pod) -> io::Result<()> {
        a.pass_to(b.ip())?;
        b.pass_to(a.ip())
    }
}

impl Pod {
    /// The index in its [`Net`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// The name of the namespace, as `ip netns` shows it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.wires.name, self.index)
    }

    /// The address now.
    pub fn ip(&self) -> Ipv4Addr {
        *lock(&self.ip)
    }

    /// A command that runs in the pod. The process that it starts is the program itself, so its id may be signalled.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name()]).arg(program);
        command
    }

    /// Runs `work` on a thread of its own in the pod, and waits for it. Sockets that it makes and processes that it
    /// starts belong to the pod for ever, wherever they are used.
    ///
    /// # Errors
    /// When the namespace cannot be entered: no root, or no Linux.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let path = format!("{NAMES}/{}", self.name());
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || enter(&path).map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Pulls the cable at the switch: the pod keeps its address and its routes, and hears nobody.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link_down(&self) -> io::Result<()> {
        ip(&["-n", &self.wires.switch(), "link", "set", &self.port(), "down"]).map(drop)
    }

    /// Ends [`link_down`](Self::link_down). It takes up to a second until packets pass: Linux looks at links that
    /// change not more often.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link_up(&self) -> io::Result<()> {
        ip(&["-n", &self.wires.switch(), "link", "set", &self.port(), "up"]).map(drop)
    }

    /// What this pod sends to `other` is lost from now on; nobody is told, and the other direction works. (A blackhole
    /// route would tell the sender with an error.)
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn drop_to(&self, other: Ipv4Addr) -> io::Result<()> {
        let to = other.to_string();
        self.ip_command(&["neigh", "replace", &to, "lladdr", NOBODY, "dev", DEVICE, "nud", "permanent"])
            .map(drop)
    }

    /// Ends [`drop_to`](Self::drop_to).
    ///
    /// # Errors
    /// When `ip` fails, also when nothing was dropped.
    pub fn pass_to(&self, other: Ipv4Addr) -> io::Result<()> {
        self.ip_command(&["neigh", "delete", &other.to_string(), "dev", DEVICE]).map(drop)
    }

    /// Gives the pod another address of the subnet in place of its own, at once and for everyone. Cuts stay with the
    /// address for which they were made.
    ///
    /// # Errors
    /// When the address is not of the subnet, or `ip` fails.
    pub fn readdress(&self, new: Ipv4Addr) -> io::Result<()> {
        if !self.wires.has(new) {
            return Err(invalid(format!("{new} is not in {}", self.cidr(self.wires.base))));
        }
        let mut ip = lock(&self.ip);
        self.ip_command(&["address", "flush", "dev", DEVICE])?;
        self.ip_command(&["address", "add", &self.cidr(new), "dev", DEVICE])?;
        // The others may know an earlier pod by the new address.
        for index in 0..self.wires.made.load(Ordering::Relaxed) {
            let other = format!("{}.{index}", self.wires.name);
            crate::netns::ip(&["-n", &other, "neigh", "flush", "to", &new.to_string()])?;
        }
        *ip = new;
        Ok(())
    }

    /// Gives programs that [`command`](Self::command) starts from now on a file of their own in place of `/etc/<name>`,
    /// which must exist. Another call with this name changes it in place. Returns where the file is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_file(&self, name: &str, content: &str) -> io::Result<PathBuf> {
        let folder = Path::new(FILES).join(self.name());
        // Once more: another net may have removed the folder above it, because it was empty.
        std::fs::create_dir_all(&folder).or_else(|_| std::fs::create_dir_all(&folder))?;
        let path = folder.join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// Runs `ip` with these arguments in the pod, for example `["route", "add", "default", "dev", "eth0"]`; returns
    /// what it prints.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn ip_command(&self, args: &[&str]) -> io::Result<String> {
        ip(&[&["-n", &self.name()], args].concat())
    }

    fn port(&self) -> String {
        format!("pod{}", self.index)
    }

    fn cidr(&self, ip: Ipv4Addr) -> String {
        format!("{ip}/{}", self.wires.bits)
    }
}

impl Wires {
    fn switch(&self) -> String {
        format!("{}.switch", self.name)
    }

    /// The address of a pod: the first one is 1 in the subnet.
    fn address(&self, index: u32) -> io::Result<Ipv4Addr> {
        let address = Ipv4Addr::from_bits(self.base.to_bits().saturating_add(index).saturating_add(1));
        if self.has(address) {
            Ok(address)
        } else {
            Err(io::Error::other("no address of the subnet is left"))
        }
    }

    /// Whether an address is of the subnet and may be one of a pod.
    fn has(&self, ip: Ipv4Addr) -> bool {
        let mask = u32::MAX >> self.bits;
        let host = ip.to_bits() & mask;
        ip.to_bits() & !mask == self.base.to_bits() && host != 0 && host != mask
    }
}

fn parse(subnet: &str) -> io::Result<(Ipv4Addr, u8)> {
    let parts =
        subnet.split_once('/').and_then(|(base, bits)| Some((base.parse().ok()?, bits.parse().ok()?)));
    match parts {
        Some((base, bits)) if SUBNET_BITS.contains(&bits) && Ipv4Addr::to_bits(base) << bits == 0 => {
            Ok((base, bits))
        }
        _ => Err(invalid(format!("not a subnet such as 10.0.0.0/24, from /16 to /29: {subnet:?}"))),
    }
}

/// Runs `ip`; returns what it prints.
fn ip(args: &[&str]) -> io::Result<String> {
    let output = Command::new("ip").args(args).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("ip {}: {}", args.join(" "), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Moves the calling thread into a namespace.
#[cfg(target_os = "linux")]
fn enter(path: &str) -> io::Result<()> {
    use std::os::fd::AsFd;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    let namespace = std::fs::File::open(path)?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(not(target_os = "linux"))]
fn enter(_path: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
