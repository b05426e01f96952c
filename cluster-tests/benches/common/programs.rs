//! The programs that the benches `peers` and `clients` start: brokers, and the worker, which they build first.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cluster_tests::peers::Results;
use cluster_tests::requirement::in_path;

use crate::Outcome;

/// A program that ends with the bench.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It fails when the program has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server that a system needs: the name of its program, which is that of its package in Debian, too.
pub(crate) fn broker(system: &str) -> Option<&'static str> {
    match system {
        "redis" | "socketioxide-redis" => Some("redis-server"),
        "nats" => Some("nats-server"),
        _ => None,
    }
}

/// Builds the worker with these features into this target directory.
pub(crate) fn build(target: &Path, features: &[&str]) -> Outcome<PathBuf> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/Cargo.toml");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--locked", "--no-default-features", "--manifest-path", manifest])
        .args(["--features", &features.join(",")])
        .arg("--target-dir")
        .arg(target)
        .status()?;
    if !status.success() {
        return Err(format!("build the worker with {features:?}").into());
    }
    Ok(target.join("release/peers-worker"))
}

/// Where the program that runs was built: `<target>/<profile>/deps/peers-...`.
pub(crate) fn target() -> Outcome<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(3).ok_or("find the target directory")?.to_owned())
}

/// Writes the results to `file` in the target directory. After each round: a run that is broken off leaves what it has.
pub(crate) fn save(target: &Path, file: &str, results: &Results) -> Outcome<()> {
    std::fs::create_dir_all(target.join("bench"))?;
    Ok(std::fs::write(target.join(file), format!("{:#}\n", results.json()))?)
}

/// A broker on a free port, when the system has one.
pub(crate) fn start_broker(system: &str, address: SocketAddr) -> Outcome<Option<Running>> {
    let Some(name) = broker(system) else { return Ok(None) };
    let program = in_path(&[name]).ok_or("find the broker")?;
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new(program);
    match name {
        "redis-server" => command.args(["--bind", &ip, "--port", &port, "--save", "", "--appendonly", "no"]),
        _ => command.args(["-a", &ip, "-p", &port]),
    };
    let mut running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    while TcpStream::connect(address).is_err() {
        if let Some(status) = running.0.try_wait()? {
            return Err(format!("start {name}: {status}").into());
        }
        std::thread::yield_now();
    }
    Ok(Some(running))
}

/// A port on loopback that nobody has, of TCP and UDP.
pub(crate) fn free() -> Outcome<SocketAddr> {
    loop {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}
