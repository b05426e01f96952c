//! One system at a time: its broker, and the processes of the worker.

use std::path::Path;
use std::process::{Command, Stdio};

use cluster_tests::peers::Results;
use serde_json::json;

use crate::Outcome;
use crate::programs::{Running, free, start_broker};

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
