//! The programs that the bench starts: brokers, and the worker, which it builds first.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cluster_tests::peers::Results;
use cluster_tests::requirement::in_path;
use serde_json::json;

use crate::Outcome;

/// A program that ends with the bench.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It fails when the program has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The cargo feature of the worker that a system needs.
pub(crate) fn feature(system: &str) -> Option<&'static str> {
    match system {
        "redis" => Some("redis"),
        "nats" => Some("nats"),
        "zenoh-tcp" | "zenoh-quic" => Some("zenoh"),
        "socketioxide-redis" => Some("socketioxide"),
        _ => None,
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

/// One system, once: an emitter and its receivers. What they measured goes into the results.
pub(crate) fn measure(
    worker: &Path,
    system: &str,
    (receivers, payloads, seconds): (usize, &[usize], f64),
    fan_out: bool,
    results: &mut Results,
) -> Outcome<()> {
    let (control, address) = (free()?, free()?);
    let broker = start_broker(system, address)?;
    let plan = json!({
        "receivers": receivers,
        "payloads": payloads,
        "seconds": seconds,
        "fan_out": fan_out,
        "broker": broker.as_ref().map(|broker| broker.0.id()),
    });
    let (control, address) = (control.to_string(), address.to_string());
    let start = |role: &str| {
        let mut command = Command::new(worker);
        command.args([role, system, &control, &address]);
        command
    };
    let _receivers = (0..receivers)
        .map(|_| start("receive").stdout(Stdio::null()).spawn().map(Running))
        .collect::<Result<Vec<_>, _>>()?;
    let output = start("emit").arg(plan.to_string()).stderr(Stdio::inherit()).output()?;
    String::from_utf8_lossy(&output.stdout).lines().for_each(|line| results.take(system, line));
    if !output.status.success() {
        return Err(format!("measure {system}").into());
    }
    Ok(())
}

/// A port on loopback that nobody has, of TCP and UDP.
fn free() -> Outcome<SocketAddr> {
    loop {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}
