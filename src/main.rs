//! The `roomcast` command line. Secrets are never an argument: arguments are visible to every user of the machine.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use args::Command;
use roomcast::ClusterSecret;
use serde_json::Value;

#[path = "main/args.rs"]
mod args;
#[path = "main/cluster.rs"]
mod cluster;

const HELP: &str = "\
roomcast: joins Socket.IO servers into one cluster without a broker

Usage:
  roomcast keygen                                  print a new cluster secret
  roomcast status --admin URL [--json | --watch]   show a node's members, links, emitters and seeds
  roomcast emit --seed HOST:PORT EVENT [JSON]      emit an event to clients of the whole cluster
  roomcast rooms --seed HOST:PORT                  list the rooms, each with its members on all nodes
  roomcast sockets --seed HOST:PORT                list the sockets, each with its node and rooms
  roomcast disconnect --seed HOST:PORT --room R    disconnect the members of a room; --all for everyone

status asks one node over HTTP. The others link to a node of the cluster, with its secret, without being a member: give the
address of one node or more with --seed. The secret is taken from ROOMCAST_SECRET or a file, never from an argument.

Who is meant (emit, sockets, disconnect):
  --namespace PATH    the namespace, for rooms as well [/]
  --room ROOM         only members of this room; may be given again for more rooms [everyone]
  --except ROOM       leave out the members of this room; may be given again

How to reach the cluster:
  --seed HOST:PORT    a node, or a name that resolves to nodes; may be given again
  --cluster NAME      the name of the cluster [roomcast]
  --secret-file FILE  the secret of the cluster [the environment variable ROOMCAST_SECRET]
  --timeout SECONDS   how long all of it may take [10]

What to send (emit):
  --msgpack           the servers use the MessagePack parser
  --plain             the argument is the TEXT of a message for the plain API, not an event
  --volatile          drop it rather than queue it, if it cannot go at once

What to show:
  --admin URL         the admin address of a node, for example http://127.0.0.1:9001
  --json              JSON instead of a table: one object, or for sockets one a line
  --watch             show it again every 2 seconds, until interrupted
  --count             how many sockets, not which

  -h, --help          print this
  -V, --version       print the version

Examples:
  export ROOMCAST_SECRET=$(cat /run/secrets/roomcast)
  roomcast emit --seed 10.0.0.7:7946 --cluster chat --room lobby --namespace /chat message '{\"text\":\"hi\"}'
  roomcast emit --seed peers.example:7946 --except muted said '\"text is JSON in quotes\"'
  roomcast sockets --seed 10.0.0.7:7946 --room lobby --count
  roomcast status --admin http://127.0.0.1:9001 --watch

Exit codes: 0 done, 1 could not (unreachable, refused, lost, or some nodes did not answer), 2 wrong usage.
";

/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(2);
/// The largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let command = match args::parse(args) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("roomcast: {error}; see roomcast --help");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(missing) if missing.is_empty() => ExitCode::SUCCESS,
        Ok(missing) => {
            eprintln!("roomcast: this is not all, nodes are missing: {}", missing.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("roomcast: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command says; returns what is missing in what was printed.
fn run(command: Command) -> Result<Vec<String>, String> {
    let (text, missing) = match command {
        Command::Help => (HELP.to_owned(), Vec::new()),
        Command::Version => (format!("roomcast {}\n", env!("CARGO_PKG_VERSION")), Vec::new()),
        Command::Keygen => {
            let secret = ClusterSecret::generate().map_err(|error| format!("failed to {error}"))?;
            (format!("{}\n", secret.to_text()), Vec::new())
        }
        Command::Status { admin, watch: true, timeout, .. } => return watch(&admin, timeout),
        Command::Status { admin, json, timeout, .. } => (status(&admin, json, timeout)?, Vec::new()),
        Command::Cluster(command) => {
            let output = cluster::run(&command)?;
            (output.text, output.missing)
        }
    };
    print(&text).map_err(|error| format!("failed to write: {error}"))?;
    Ok(missing)
}

/// Shows the status again and again; a node that does not answer is no reason to end.
#[expect(
    clippy::disallowed_methods,
    reason = "a program with one thread, and nothing else to do in the meantime"
)]
fn watch(admin: &Admin, timeout: Duration) -> Result<Vec<String>, String> {
    loop {
        let shown = status(admin, false, timeout).unwrap_or_else(|error| format!("roomcast: {error}\n"));
        // Clears the terminal.
        print(&format!("\u{1b}[2J\u{1b}[H{shown}")).map_err(|error| format!("failed to write: {error}"))?;
        std::thread::sleep(WATCH);
    }
}

/// Where the status of a node is: plain HTTP.
#[derive(Debug, PartialEq, Eq)]
struct Admin {
    /// Host and port, as in the `Host` header.
    authority: String,
    path: String,
}

impl Admin {
    fn parse(url: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{url:?} is no admin URL: {why}, for example http://127.0.0.1:9001");
        let rest = match url.split_once("://") {
            None => url,
            Some(("http", rest)) => rest,
            Some(_) => return Err(bad("it must begin with http://")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains(['@', '?', '#']) || url.contains(|c: char| c.is_control() || c.is_whitespace())
        {
            return Err(bad("give host, port and at most a path"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon may be one of an IPv6 address in brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| bad("bad port"))?),
            _ => (authority, 80u16),
        };
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        let path = path.trim_end_matches('/');
        let path = if path.ends_with("/status") { path.to_owned() } else { format!("{path}/status") };
        Ok(Self { authority: format!("{host}:{port}"), path })
    }
}

fn status(admin: &Admin, json: bool, timeout: Duration) -> Result<String, String> {
    let Admin { authority, path } = admin;
    let answer =
        get(admin, timeout).map_err(|error| format!("failed to get http://{authority}{path}: {error}"))?;
    let text =
        String::from_utf8(answer).map_err(|_| "failed to read the answer: it is no text".to_owned())?;
    if json {
        return Ok(text);
    }
    let report: Value =
        serde_json::from_str(&text).map_err(|error| format!("failed to read the answer: {error}"))?;
    if report["schema_version"] != 1 {
        let version = &report["schema_version"];
        return Err(format!(
            "failed to read the answer: schema version {version}, this build knows 1; use --json"
        ));
    }
    Ok(table(&report))
}

/// One GET, HTTP/1.0: the answer is not chunked and ends with the connection.
fn get(admin: &Admin, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut stream = connect(&admin.authority, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let Admin { authority, path } = admin;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: application/json\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    body(answer)
}

fn connect(authority: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The body of an HTTP answer with the code 200.
fn body(mut answer: Vec<u8>) -> io::Result<Vec<u8>> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| bad("the answer is not HTTP".to_owned()))?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.") || status.split(' ').nth(1) != Some("200") {
        return Err(bad(format!(
            "the answer is {:?}, not 200: is that the address of the status endpoint?",
            status.chars().take(80).collect::<String>()
        )));
    }
    answer.drain(..end + 4);
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    match length.map(|(_, value)| value.trim().parse::<usize>()) {
        Some(Ok(length)) if answer.len() < length => Err(bad("the answer is cut off".to_owned())),
        Some(Ok(length)) => {
            answer.truncate(length);
            Ok(answer)
        }
        Some(Err(_)) => Err(bad("the answer has a bad length".to_owned())),
        None => Ok(answer),
    }
}

/// The status for readers: the node, its members, its links, its emitters, how its seeds do.
fn table(report: &Value) -> String {
    let node = &report["node"];
    let ready = if report["ready"] == true { "ready" } else { "not ready" };
    let mut out = format!(
        "node {} (incarnation {}, roomcast {}, up {}) in cluster {}: {ready}\n",
        text(&node["id"]),
        text(&node["incarnation"]),
        text(&node["version"]),
        duration(&node["uptime_ms"]),
        text(&report["cluster"]),
    );
    if !report["conflict"].is_null() {
        out.push_str(&format!("conflict: {}\n", text(&report["conflict"])));
    }
    out.push('\n');
    let members = rows(&report["members"], |member| {
        vec![
            text(&member["id"]),
            text(&member["state"]),
            text(&member["address"]),
            duration(&member["since_ms_ago"]),
            text(&member["incarnation"]),
        ]
    });
    write_rows(&mut out, &["MEMBER", "STATE", "ADDRESS", "SINCE", "INCARNATION"], &members);
    out.push('\n');
    let links = rows(&report["links"], |link| {
        let round_trip = link["round_trip_us"].as_f64();
        vec![
            text(&link["peer"]),
            text(&link["state"]),
            text(&link["protocol"]),
            round_trip.map_or_else(|| "-".to_owned(), |us| format!("{:.2} ms", us / 1000.0)),
            duration(&link["uptime_ms"]),
            text(&link["queue_frames"]),
            text(&link["frames_sent"]),
            text(&link["frames_received"]),
            text(&link["rooms"]),
        ]
    });
    let titles = ["LINK", "STATE", "PROTOCOL", "ROUND TRIP", "UP", "QUEUED", "SENT", "RECEIVED", "ROOMS"];
    write_rows(&mut out, &titles, &links);
    let emitters = rows(&report["emitters"], |emitter| {
        vec![
            text(&emitter["id"]),
            text(&emitter["address"]),
            duration(&emitter["since_ms_ago"]),
            text(&emitter["frames_received"]),
            text(&emitter["volatile_received"]),
        ]
    });
    if !emitters.is_empty() {
        out.push('\n');
        write_rows(&mut out, &["EMITTER", "ADDRESS", "SINCE", "RECEIVED", "VOLATILE"], &emitters);
    }
    let seeds = rows(&report["discovery"], seed);
    if !seeds.is_empty() {
        out.push('\n');
        write_rows(&mut out, &["SEED", "ADDRESSES", "LAST SUCCESS", "LAST ERROR"], &seeds);
    }
    out
}

fn seed(seed: &Value) -> Vec<String> {
    let addresses = seed["addresses"].as_array().map_or(&[][..], Vec::as_slice);
    let addresses: Vec<String> = addresses.iter().map(text).collect();
    let ago = match duration(&seed["last_success_ms_ago"]) {
        never if never == "-" => "never".to_owned(),
        ago => format!("{ago} ago"),
    };
    let shown = if addresses.is_empty() { "-".to_owned() } else { addresses.join(" ") };
    vec![text(&seed["source"]), shown, ago, text(&seed["last_error"])]
}

fn rows(list: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    list.as_array().map_or_else(Vec::new, |list| list.iter().map(row).collect())
}

/// A value for a terminal: without control characters, which could come from anywhere.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain_text(text),
        other => other.to_string(),
    }
}

fn plain_text(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn duration(ms: &Value) -> String {
    let Some(ms) = ms.as_u64() else { return "-".to_owned() };
    match ms / 1000 {
        0 => format!("{ms}ms"),
        s @ 1..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

fn write_rows(out: &mut String, titles: &[&str], rows: &[Vec<String>]) {
    let titles: Vec<String> = titles.iter().map(ToString::to_string).collect();
    let all = || std::iter::once(&titles).chain(rows);
    let width =
        |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..titles.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in all() {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(authority: &str, path: &str) -> Admin {
        Admin { authority: authority.to_owned(), path: path.to_owned() }
    }

    #[test]
    fn admin_addresses_are_parsed() {
        assert_eq!(Admin::parse("[::1]:9001"), Ok(at("[::1]:9001", "/status")));
        assert_eq!(Admin::parse("http://[::1]/"), Ok(at("[::1]:80", "/status")));
        assert_eq!(Admin::parse("http://host/admin/status"), Ok(at("host:80", "/admin/status")));
        assert!(Admin::parse("http://a:1/x\r\nEvil: 1").is_err());
    }

    #[test]
    fn answers_are_checked() {
        let body = |text: &str| body(text.as_bytes().to_vec());
        assert_eq!(body("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}x").unwrap(), b"{}");
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\n{}").unwrap(), b"{}");
        assert!(body("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n{}").is_err());
        assert!(body("HTTP/1.1 503 no\r\n\r\n").unwrap_err().to_string().contains("503"));
        assert!(body("SSH-2.0").is_err());
    }

    #[test]
    fn a_table_shows_members_links_and_seeds() {
        let report = serde_json::json!({
            "node": {"id": "a", "incarnation": 7, "version": "0.1.0", "uptime_ms": 61_000}, "cluster": "c",
            "ready": true,
            "members": [{"id": "a", "state": "live", "address": "127.0.0.1:1", "since_ms_ago": 10, "incarnation": 7}],
            "links": [{"peer": "long\u{1b}name", "state": "up", "protocol": 2, "round_trip_us": 250, "uptime_ms": null, "rooms": 3}],
            "emitters": [
                {"id": "job", "address": "127.0.0.1:9", "since_ms_ago": 5_000, "frames_received": 4, "volatile_received": 2},
                {"id": "gone", "address": null, "since_ms_ago": 60_000, "frames_received": 0, "volatile_received": 0},
            ],
            "discovery": [
                {"source": "a.:7", "addresses": ["10.0.0.1:7", "10.0.0.2:7"], "last_success_ms_ago": 3_000, "last_error": null},
                {"source": "b.:7", "addresses": [], "last_success_ms_ago": null, "last_error": "no such name"},
            ],
        });
        let text = table(&report);
        assert!(text.contains("\nSEED  ADDRESSES              LAST SUCCESS  LAST ERROR\n"), "{text}");
        assert!(text.contains("\na.:7  10.0.0.1:7 10.0.0.2:7  3s ago        -\n"), "{text}");
        assert!(text.contains("\nb.:7  -                      never         no such name\n"), "{text}");
        assert!(
            text.starts_with("node a (incarnation 7, roomcast 0.1.0, up 61s) in cluster c: ready\n"),
            "{text}"
        );
        assert!(text.contains("\na       live   127.0.0.1:1  10ms   7\n"), "{text}");
        assert!(text.contains("\nlong?name  up     2         0.25 ms     -   -"), "{text}");
        assert!(text.contains("\nEMITTER  ADDRESS      SINCE  RECEIVED  VOLATILE\n"), "{text}");
        assert!(text.contains("\ngone     -            60s    0         0\n"), "{text}");
    }

    #[test]
    fn a_table_shows_a_conflict_below_the_node() {
        let report = serde_json::json!({"ready": false, "conflict": "another process", "discovery": []});
        let text = table(&report);
        assert!(text.contains(": not ready\nconflict: another process\n\nMEMBER"), "{text}");
        assert!(!text.contains("SEED") && !text.contains("EMITTER"), "{text}");
    }
}
