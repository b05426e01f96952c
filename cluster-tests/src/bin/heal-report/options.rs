//! What is asked for: systems, faults, and how long.

use std::net::SocketAddr;
use std::time::Duration;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Roomcast,
    /// socketioxide-redis with its default driver.
    Redis,
    /// socketioxide-redis with the driver that reconnects.
    Fred,
    Nats,
}

/// What is done to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    Cut(Duration),
    Freeze(Duration),
    Restart,
}

/// The command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) systems: Vec<System>,
    pub(crate) faults: Vec<(&'static str, Fault)>,
}

pub(crate) const HELP: &str = "\
heal-report: the same faults for roomcast and for brokers, as a table

  --system NAME  only this system: roomcast, redis, nats, or fred (which does not work yet); may be repeated
  --fault NAME   only this fault: kill, cut-short, cut, cut-long, freeze, restart; may be repeated
  --quick        cuts of 1, 3 and 8 s instead of 2, 10 and 60 s

Systems run beside each other, faults one after the other; all of it takes about five minutes. Links can be cut as root
with iproute2 only; brokers are measured where redis-server and nats-server are installed.";

impl System {
    pub(crate) const ALL: [Self; 4] = [Self::Roomcast, Self::Redis, Self::Fred, Self::Nats];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Roomcast => "roomcast",
            Self::Redis => "redis",
            Self::Fred => "fred",
            Self::Nats => "nats",
        }
    }

    /// The name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Roomcast => "roomcast",
            Self::Redis => "socketioxide-redis, driver redis",
            Self::Fred => "socketioxide-redis, driver fred",
            Self::Nats => "NATS",
        }
    }

    /// The program and the Debian package of its broker.
    pub(crate) fn broker_program(self) -> Option<&'static str> {
        match self {
            Self::Roomcast => None,
            Self::Redis | Self::Fred => Some("redis-server"),
            Self::Nats => Some("nats-server"),
        }
    }

    /// How its broker is started, and what it says when it is ready.
    pub(crate) fn broker(self, addr: SocketAddr) -> Option<(&'static str, Vec<String>, &'static str)> {
        let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let program = self.broker_program()?;
        Some(match self {
            Self::Nats => (program, words(&["--addr", &ip, "--port", &port]), "Server is ready"),
            _ => {
                let quiet = ["--save", "", "--appendonly", "no", "--protected-mode", "no"];
                let args = [&["--bind", &ip, "--port", &port], &quiet[..]].concat();
                (program, words(&args), "Ready to accept connections")
            }
        })
    }
}

impl Fault {
    /// The name in the table.
    pub(crate) fn title(self) -> String {
        match self {
            Self::Kill => "a node is killed".into(),
            Self::Cut(time) => format!("a link is cut for {} s", time.as_secs()),
            Self::Freeze(time) => format!("a node is frozen for {} s", time.as_secs()),
            Self::Restart => "rolling restart of all".into(),
        }
    }
}

/// The faults by name.
fn faults(quick: bool) -> [(&'static str, Fault); 6] {
    let [short, middle, long] = if quick { [1, 3, 8] } else { [2, 10, 60] }.map(Duration::from_secs);
    [
        ("kill", Fault::Kill),
        ("cut-short", Fault::Cut(short)),
        ("cut", Fault::Cut(middle)),
        ("cut-long", Fault::Cut(long)),
        ("freeze", Fault::Freeze(Duration::from_secs(5))),
        ("restart", Fault::Restart),
    ]
}

impl Options {
    /// Reads the arguments; none when help is asked for.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let (mut systems, mut names, mut quick) = (Vec::new(), Vec::new(), false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a name; --help lists them"));
            match &*arg {
                "--help" | "-h" => return Ok(None),
                "--quick" => quick = true,
                "--system" => {
                    let name = value()?;
                    let found = System::ALL.into_iter().find(|system| system.name() == name);
                    systems.push(found.ok_or_else(|| format!("no system {name:?}; --help lists them"))?);
                }
                "--fault" => names.push(value()?),
                other => return Err(format!("unknown argument {other:?}; --help lists what there is")),
            }
        }
        let known = faults(quick);
        if let Some(name) = names.iter().find(|name| !known.iter().any(|(known, _)| known == name)) {
            return Err(format!("no fault {name:?}; --help lists them"));
        }
        if systems.is_empty() {
            // Through fred no message has come yet, on a Redis without a cluster: for whoever wants to look into it.
            systems = System::ALL.into_iter().filter(|system| *system != System::Fred).collect();
        }
        let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
        let faults = known.into_iter().filter(|(name, _)| wanted(name)).collect();
        Ok(Some(Self { systems, faults }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_asked_for() {
        let all = parse("").unwrap().unwrap();
        assert_eq!((all.systems.len(), all.faults.len()), (3, 6));
        let some = parse("--system nats --quick --fault cut-long --fault kill").unwrap().unwrap();
        assert_eq!(some.systems, [System::Nats]);
        assert_eq!(some.faults, [("kill", Fault::Kill), ("cut-long", Fault::Cut(Duration::from_secs(8)))]);
        assert_eq!(parse("--fault kill --help"), Ok(None));
        for bad in ["--system zenoh", "--system", "--fault flood", "fast"] {
            assert!(parse(bad).unwrap_err().contains("--help"), "{bad}");
        }
    }
}
