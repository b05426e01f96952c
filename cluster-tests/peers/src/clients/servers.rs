//! What the servers and their broker took, as the clients see it from outside.

use std::net::SocketAddr;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::Outcome;
use crate::measure::cpu_us;

/// The servers, and the broker if there is one.
#[derive(Deserialize)]
pub(crate) struct Servers {
    /// Where clients connect, `host:port`.
    pub(super) http: Vec<String>,
    /// Where each says what it has sent to the others.
    numbers: Vec<SocketAddr>,
    processes: Vec<u32>,
    /// A Redis: its process and its address.
    broker: Option<(u32, SocketAddr)>,
}

/// Sums over all servers and the broker since they began.
pub(super) struct Numbers {
    /// User and system time.
    pub(super) cpu_us: f64,
    /// The broker's part of it.
    pub(super) broker_cpu_us: f64,
    /// Messages between servers: frames of roomcast, or what was published to Redis and what that passed on.
    pub(super) messages: u64,
    /// Their bytes, without headers of UDP and TCP, and with all else that was said on these connections.
    pub(super) bytes: u64,
}

impl Numbers {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            cpu_us: self.cpu_us - before.cpu_us,
            broker_cpu_us: self.broker_cpu_us - before.broker_cpu_us,
            messages: self.messages - before.messages,
            bytes: self.bytes - before.bytes,
        }
    }
}

impl Servers {
    pub(super) async fn numbers(&self) -> Outcome<Numbers> {
        let mut sum = Numbers { cpu_us: 0.0, broker_cpu_us: 0.0, messages: 0, bytes: 0 };
        for address in &self.numbers {
            let mut line = String::new();
            BufReader::new(TcpStream::connect(address).await?).read_line(&mut line).await?;
            let (messages, bytes) = line.trim().split_once(' ').ok_or("read what a server has sent")?;
            sum.messages += messages.parse::<u64>()?;
            sum.bytes += bytes.parse::<u64>()?;
        }
        if let Some((process, address)) = self.broker {
            let info = info(address).await?;
            let published = published(&info);
            // Each goes to every server that has subscribed: all of them, as they share the channel of the namespace.
            sum.messages += published * (1 + self.processes.len() as u64);
            sum.bytes += field(&info, "total_net_input_bytes:") + field(&info, "total_net_output_bytes:");
            sum.broker_cpu_us = cpu_us(process)?;
        }
        // Last: looking costs something, too.
        sum.cpu_us = sum.broker_cpu_us;
        for process in &self.processes {
            sum.cpu_us += cpu_us(*process)?;
        }
        Ok(sum)
    }

    /// Memory of all servers and the broker that no file backs, in bytes.
    pub(super) fn memory(&self) -> Outcome<u64> {
        let all = self.processes.iter().copied().chain(self.broker.map(|(process, _)| process));
        all.map(|process| {
            let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
            Ok(1024 * field(&status, "RssAnon:"))
        })
        .sum()
    }
}

/// The number behind this name at the begin of a line; 0 when there is none.
fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let digits = value.trim_start();
    digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().unwrap_or(0)
}

/// How often something was published, sharded or not.
fn published(info: &str) -> u64 {
    field(info, "cmdstat_publish:calls=") + field(info, "cmdstat_spublish:calls=")
}

/// What Redis says of itself.
async fn info(address: SocketAddr) -> Outcome<String> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.write_all(b"INFO everything\r\n").await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let length = line.trim().strip_prefix('$').ok_or("read what Redis says of itself")?.parse()?;
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    Ok(String::from_utf8(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "RssAnon:\t    128 kB\r\ncmdstat_publish:calls=7,usec=1\r\ntotal_net_input_bytes:31\r\n";
        assert_eq!(
            [field(text, "RssAnon:"), published(text), field(text, "total_net_input_bytes:")],
            [128, 7, 31]
        );
        assert_eq!(field(text, "other:"), 0);
    }
}
