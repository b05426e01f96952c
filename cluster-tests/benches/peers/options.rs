//! The command line.

use cluster_tests::peers::SYSTEMS;

/// What `--help` says.
pub(crate) const HELP: &str = "\
cargo bench -p cluster-tests --bench peers -- [options]

  --systems a,b     only these: roomcast, quinn, tcp, redis, nats, zenoh-tcp, zenoh-quic, socketioxide-redis
  --payloads 64,256 only these sizes of a message, in bytes; default 64,256,4096,65536
  --rounds N        how often each is measured; default 3
  --quick           one short round of 256 bytes, without fan-out: to see that it works, not to compare";

/// What was asked for.
pub(crate) struct Options {
    pub(crate) systems: Vec<&'static str>,
    pub(crate) payloads: Vec<usize>,
    pub(crate) rounds: usize,
    /// How long each measurement takes.
    pub(crate) seconds: f64,
    pub(crate) fan_out: bool,
}

impl Options {
    /// Nothing when help was asked for.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            systems: SYSTEMS.to_vec(),
            payloads: vec![64, 256, 4096, 65536],
            rounds: 3,
            seconds: 0.8,
            fan_out: true,
        };
        let (mut payloads, mut rounds, mut args) = (None, None, args);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match &*arg {
                // cargo says so to each bench.
                "--bench" => {}
                "--quick" => {
                    (options.payloads, options.rounds, options.seconds) = (vec![256], 1, 0.3);
                    options.fan_out = false;
                }
                "--systems" => options.systems = value()?.split(',').map(system).collect::<Result<_, _>>()?,
                "--payloads" => payloads = Some(value()?.split(',').map(size).collect::<Result<_, _>>()?),
                "--rounds" => {
                    rounds = Some(value()?.parse().ok().filter(|n| *n > 0).ok_or("--rounds needs a number")?);
                }
                "--help" | "-h" => return Ok(None),
                other => return Err(format!("what is {other:?}? See --help")),
            }
        }
        options.payloads = payloads.unwrap_or(options.payloads);
        options.rounds = rounds.unwrap_or(options.rounds);
        Ok(Some(options))
    }
}

fn system(name: &str) -> Result<&'static str, String> {
    SYSTEMS
        .into_iter()
        .find(|system| *system == name)
        .ok_or_else(|| format!("what is the system {name:?}? See --help"))
}

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (64..=1 << 20).contains(size));
    size.ok_or_else(|| format!("a message of {text:?} bytes? From 64 to 1048576"))
}
