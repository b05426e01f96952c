//! The command line, parsed once.

use std::time::Duration;

use super::Admin;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Version,
    Keygen,
    Status { admin: Admin, json: bool, watch: bool, timeout: Duration },
    Cluster(ClusterCommand),
}

/// Something that needs the cluster.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClusterCommand {
    pub(super) seeds: Vec<String>,
    pub(super) cluster: String,
    pub(super) secret_file: Option<String>,
    pub(super) namespace: String,
    /// None for everyone.
    pub(super) rooms: Vec<String>,
    pub(super) except: Vec<String>,
    pub(super) timeout: Duration,
    pub(super) json: bool,
    pub(super) action: Action,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// An event for Socket.IO clients, with its data as JSON.
    Emit {
        event: String,
        data: Option<serde_json::Value>,
        msgpack: bool,
        volatile: bool,
    },
    /// Text for members of the plain API.
    EmitPlain {
        text: String,
        volatile: bool,
    },
    Rooms,
    Sockets {
        count: bool,
    },
    Disconnect,
}

/// Options of all commands that need the cluster.
const LINK: [&str; 5] = ["--seed", "--cluster", "--secret-file", "--namespace", "--timeout"];
/// How long a command may take, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The options that a command takes; none when there is no such command.
fn takes(command: &str) -> Option<Vec<&'static str>> {
    let more: &[&str] = match command {
        "keygen" => return Some(Vec::new()),
        "status" => return Some(vec!["--admin", "--json", "--watch", "--timeout"]),
        "emit" => &["--room", "--except", "--msgpack", "--plain", "--volatile"],
        "rooms" => &["--json"],
        "sockets" => &["--room", "--except", "--json", "--count"],
        "disconnect" => &["--room", "--except", "--all"],
        _ => return None,
    };
    Some(LINK.iter().chain(more).copied().collect())
}

/// What was given, in any order.
#[derive(Default)]
struct Given {
    /// Every option that was given.
    names: Vec<String>,
    words: Vec<String>,
    seeds: Vec<String>,
    rooms: Vec<String>,
    except: Vec<String>,
    cluster: Option<String>,
    secret_file: Option<String>,
    namespace: Option<String>,
    admin: Option<String>,
    timeout: Option<Duration>,
}

impl Given {
    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|given| given == name)
    }
}

/// Reads the arguments.
///
/// # Errors
/// What is wrong, for the user.
pub(super) fn parse(args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut given = Given::default();
    let (mut args, mut options_end) = (args, false);
    while let Some(arg) = args.next() {
        // A single dash and a negative number are words.
        let is_word = options_end || !arg.starts_with('-') || arg.len() < 2 || arg.parse::<f64>().is_ok();
        if is_word {
            given.words.push(arg);
            continue;
        }
        match arg.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "-V" | "--version" => return Ok(Command::Version),
            "--" => options_end = true,
            _ => option(&mut given, &arg, &mut args)?,
        }
    }
    let words = std::mem::take(&mut given.words);
    let mut words = words.into_iter();
    let Some(name) = words.next() else { return Err("no command given".to_owned()) };
    if name == "help" {
        return Ok(Command::Help);
    }
    let Some(takes) = takes(&name) else { return Err(format!("unknown command {name:?}")) };
    if let Some(stranger) = given.names.iter().find(|given| !takes.contains(&given.as_str())) {
        return Err(format!("{name} takes no {stranger}"));
    }
    let command = match name.as_str() {
        "keygen" => Command::Keygen,
        "status" => {
            let admin = given.admin.as_deref().ok_or("status needs --admin URL")?;
            let timeout = given.timeout.unwrap_or(TIMEOUT);
            let (json, watch) = (given.has("--json"), given.has("--watch"));
            if json && watch {
                return Err("status takes --json or --watch, not both".to_owned());
            }
            Command::Status { admin: Admin::parse(admin)?, json, watch, timeout }
        }
        _ => Command::Cluster(cluster(&name, given, &mut words)?),
    };
    match words.next() {
        Some(word) => Err(format!("unexpected argument {word:?}")),
        None => Ok(command),
    }
}

/// Reads one option, with its value where it has one.
fn option(given: &mut Given, arg: &str, args: &mut impl Iterator<Item = String>) -> Result<(), String> {
    let (name, inline) = match arg.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (arg, None),
    };
    if matches!(name, "--json" | "--watch" | "--msgpack" | "--plain" | "--volatile" | "--all" | "--count") {
        if inline.is_some() {
            return Err(format!("{name} takes no value"));
        }
        given.names.push(name.to_owned());
        return Ok(());
    }
    let mut value =
        |what: &str| inline.clone().or_else(|| args.next()).ok_or_else(|| format!("{name} needs {what}"));
    match name {
        "--seed" => given.seeds.push(value("HOST:PORT")?),
        "--room" => given.rooms.push(value("a room")?),
        "--except" => given.except.push(value("a room")?),
        "--cluster" => given.cluster = Some(value("a name")?),
        "--namespace" => given.namespace = Some(value("a path, for example /chat")?),
        "--secret-file" => given.secret_file = Some(value("a file")?),
        "--admin" => given.admin = Some(value("a URL")?),
        "--timeout" => given.timeout = Some(seconds(&value("a number of seconds")?)?),
        "--secret" => {
            return Err(
                "a secret is never an argument, because every user of the machine sees those: put it into \
                        ROOMCAST_SECRET or give --secret-file"
                    .to_owned(),
            );
        }
        _ => return Err(format!("unknown option {name:?}")),
    }
    given.names.push(name.to_owned());
    Ok(())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0);
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("--timeout {text:?}: give a number of seconds above 0, at most 86400"))
}

fn cluster(
    name: &str,
    given: Given,
    words: &mut impl Iterator<Item = String>,
) -> Result<ClusterCommand, String> {
    if given.seeds.is_empty() {
        return Err(format!("{name} needs --seed HOST:PORT, the address of a node"));
    }
    let action = match name {
        "emit" => emit(&given, words)?,
        "rooms" => Action::Rooms,
        "sockets" => {
            if given.has("--count") && given.has("--json") {
                return Err("sockets takes --json or --count, not both".to_owned());
            }
            Action::Sockets { count: given.has("--count") }
        }
        _ => {
            // Everyone is never what was left out by mistake.
            if given.rooms.is_empty() != given.has("--all") {
                return Err("disconnect needs either --room ROOM or --all".to_owned());
            }
            Action::Disconnect
        }
    };
    let json = given.has("--json");
    let Given { seeds, cluster, secret_file, namespace, rooms, except, timeout, .. } = given;
    Ok(ClusterCommand {
        seeds,
        cluster: cluster.unwrap_or_else(|| "roomcast".to_owned()),
        secret_file,
        namespace: namespace.unwrap_or_else(|| "/".to_owned()),
        rooms,
        except,
        timeout: timeout.unwrap_or(TIMEOUT),
        json,
        action,
    })
}

fn emit(given: &Given, words: &mut impl Iterator<Item = String>) -> Result<Action, String> {
    let volatile = given.has("--volatile");
    if given.has("--plain") {
        if given.has("--msgpack") {
            return Err("emit takes --plain or --msgpack, not both".to_owned());
        }
        let text = words.next().ok_or("emit --plain needs the TEXT of the message")?;
        return Ok(Action::EmitPlain { text, volatile });
    }
    let event = words.next().ok_or("emit needs the name of an EVENT")?;
    let data = words.next().map(|text| {
        serde_json::from_str(&text).map_err(|error| {
            format!("the data {text:?} is no JSON ({error}); text needs quotes of its own: '\"hello\"'")
        })
    });
    Ok(Action::Emit { event, data: data.transpose()?, msgpack: given.has("--msgpack"), volatile })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn action(line: &str) -> ClusterCommand {
        match parsed(line) {
            Ok(Command::Cluster(command)) => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_are_parsed() {
        assert_eq!(parsed("keygen"), Ok(Command::Keygen));
        assert_eq!(parsed("status --help"), Ok(Command::Help));
        assert_eq!(parsed("help"), Ok(Command::Help));
        assert_eq!(parsed("-V"), Ok(Command::Version));
        let admin = || Admin { authority: "127.0.0.1:9001".to_owned(), path: "/status".to_owned() };
        let status = |json, watch, timeout| Ok(Command::Status { admin: admin(), json, watch, timeout });
        assert_eq!(parsed("status --admin http://127.0.0.1:9001"), status(false, false, TIMEOUT));
        assert_eq!(parsed("--json status --admin=127.0.0.1:9001/"), status(true, false, TIMEOUT));
        let quick = Duration::from_millis(500);
        assert_eq!(parsed("status --watch --timeout 0.5 --admin 127.0.0.1:9001"), status(false, true, quick));

        let command = action(
            "emit --seed a:1 --seed=b:2 --room x --room y --except z --namespace /chat said {\"a\":1}",
        );
        assert_eq!((command.seeds.len(), command.rooms.len(), command.except.len()), (2, 2, 1));
        assert_eq!((command.cluster.as_str(), command.namespace.as_str()), ("roomcast", "/chat"));
        let data = Some(serde_json::json!({ "a": 1 }));
        let event = "said".to_owned();
        assert_eq!(command.action, Action::Emit { event, data, msgpack: false, volatile: false });
        let Action::Emit { data, .. } = action("emit --seed a:1 temperature -5").action else { panic!() };
        assert_eq!(data, Some(serde_json::json!(-5)));
        let Action::EmitPlain { text, .. } = action("emit --seed a:1 --plain -- --text").action else {
            panic!()
        };
        assert_eq!(text, "--text");
        assert_eq!(action("disconnect --seed a:1 --all").rooms.len(), 0);
        assert_eq!(action("sockets --seed a:1 --count").action, Action::Sockets { count: true });
        assert_eq!(action("rooms --seed a:1 --json").action, Action::Rooms);
    }

    #[test]
    fn wrong_usage_is_said() {
        for (line, says) in [
            ("", "no command"),
            ("emmit", "unknown command"),
            ("status", "needs --admin"),
            ("status --admin", "needs a URL"),
            ("status --admin https://a:1", "http://"),
            ("status --admin http://:1", "no host"),
            ("status --admin http://a:b", "bad port"),
            ("status --admin http://u:p@a:1", "at most a path"),
            ("status --admin a:1 --timeout 0", "above 0"),
            ("status --admin a:1 --room x", "status takes no --room"),
            ("status --admin a:1 --watch --json", "not both"),
            ("keygen --json", "keygen takes no --json"),
            ("keygen --secret=abc", "never an argument"),
            ("keygen --salt", "unknown option \"--salt\""),
            ("keygen now", "unexpected argument"),
            ("emit hello", "needs --seed"),
            ("emit --seed a:1", "EVENT"),
            ("emit --seed a:1 hello world", "quotes of its own"),
            ("emit --seed a:1 hello 1 2", "unexpected argument \"2\""),
            ("emit --seed a:1 --plain --msgpack x", "not both"),
            ("emit --seed a:1 --all x", "emit takes no --all"),
            ("rooms --seed a:1 --room x", "rooms takes no --room"),
            ("rooms --seed a:1 --json=yes", "takes no value"),
            ("disconnect --seed a:1", "--room ROOM or --all"),
            ("disconnect --seed a:1 --room x --all", "--room ROOM or --all"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(says), "{line:?}: {error}");
        }
    }
}
