//! The settings of a node from environment variables: one table for [`Config`], and the names and addresses beside it.

mod values;

use std::ffi::OsString;

use super::Config;
use crate::error::EnvError;
use values::{Count, Factor, Flag, MaybeTime, Millis, Policy, Ratio, Size, Time, Value};

/// What every variable of ours begins with.
pub(crate) const PREFIX: &str = "ROOMCAST_";
/// The variables beside those of [`SETTINGS`], with what they are.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("ROOMCAST_ID", "the name of the node; default is POD_NAME"),
    ("ROOMCAST_CLUSTER", "the name of the cluster"),
    ("ROOMCAST_LISTEN", "the UDP address to listen on, as ip:port"),
    ("ROOMCAST_ADVERTISE", "the address that others dial, as ip or ip:port; default is POD_IP"),
    ("ROOMCAST_SEEDS", "where other nodes may be, as host:port, separated by commas"),
    ("ROOMCAST_SECRET", "the secret of the cluster"),
    ("ROOMCAST_SECRET_FILE", "a file with the secret of the cluster"),
    ("ROOMCAST_ALSO_ACCEPT", "other secrets whose nodes are let in, separated by commas"),
    ("ROOMCAST_ALSO_ACCEPT_FILE", "a file with another secret whose nodes are let in"),
    ("ROOMCAST_CERT_CA", "PEM file: the accepted authorities"),
    ("ROOMCAST_CERT", "PEM file: the certificate of this node"),
    ("ROOMCAST_CERT_KEY", "PEM file: the key of that certificate"),
];

/// One setting of [`Config`].
pub(crate) struct Setting {
    /// The field, as in Rust: `link.outbox_bytes`.
    field: &'static str,
    /// What a value looks like.
    #[cfg(test)]
    form: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
    #[cfg(test)]
    show: fn(&Config) -> String,
}

/// Makes [`SETTINGS`]: each line is a field and the form of its values.
macro_rules! settings {
    ($($($field:tt).+ : $kind:ident,)*) => {
        /// Every setting, in the order of the fields. A test compares it with [`Config`] itself.
        pub(crate) static SETTINGS: &[Setting] = &[$(Setting {
            field: stringify!($($field).+),
            #[cfg(test)]
            form: $kind::FORM,
            set: |config, text| {
                config.$($field).+ = <$kind as Value<_>>::parse(text)?;
                Ok(())
            },
            #[cfg(test)]
            show: |config| <$kind as Value<_>>::show(&config.$($field).+),
        }),*];
    };
}

settings! {
    protocol.max: Count,
    link.max_frame_bytes: Size,
    link.max_room_bytes: Size,
    link.max_rooms_per_peer: Count,
    link.max_namespaces_per_peer: Count,
    link.max_namespaces: Count,
    link.outbox_bytes: Size,
    link.queue_policy: Policy,
    link.max_queue_age: MaybeTime,
    link.resume_window: Time,
    link.interest_log_bytes: Size,
    link.interest_tick: Time,
    link.heartbeat: Time,
    link.silence_limit: Time,
    link.stall_limit: Time,
    link.handshake_timeout: Time,
    link.dial_backoff.min_ms: Millis,
    link.dial_backoff.max_ms: Millis,
    link.dial_yield: Time,
    link.max_dials: Count,
    link.max_handshakes: Count,
    link.max_requests: Count,
    link.max_serving_per_peer: Count,
    link.max_data_bytes: Size,
    link.max_server_events: Count,
    link.request_timeout: Time,
    link.max_emitters: Count,
    link.drain_timeout: Time,
    quic.keep_alive: Time,
    quic.idle_timeout: Time,
    quic.udp_buffer_bytes: Size,
    quic.receive_window_bytes: Size,
    quic.stream_receive_window_bytes: Size,
    quic.send_window_bytes: Size,
    quic.datagram_receive_bytes: Size,
    quic.datagram_send_bytes: Size,
    quic.max_uni_streams: Count,
    quic.max_bidi_streams: Count,
    quic.initial_mtu: Count,
    quic.mtu_upper_bound: Count,
    quic.segmentation_offload: Flag,
    quic.initial_rtt: Time,
    quic.max_incoming: Count,
    quic.incoming_bytes: Size,
    quic.incoming_total_bytes: Size,
    certificates.backdate: Time,
    certificates.lifetime: Time,
    gossip.interval: Time,
    gossip.calm_bytes_per_second: Size,
    gossip.initial_interval: Time,
    gossip.phi_threshold: Factor,
    gossip.dead_node_grace: Time,
    gossip.max_message_bytes: Size,
    discovery.alone_interval: Time,
    discovery.interval: Time,
    discovery.jitter: Ratio,
    discovery.resolve_timeout: Time,
    members.dead_linger_ms: Millis,
    members.unheard_ms: Millis,
    members.remember_ms: Millis,
    members.revisit_ms: Millis,
    interest.linger_ms: Millis,
    interest.max_rooms: Count,
    drain.clients_per_slice: Count,
    drain.interval: Time,
    drain.jitter: Ratio,
    drain.clients_timeout: Time,
    event_buffer.0: Count,
    room_event_buffer.0: Count,
    watched_rooms.0: Count,
    watchdog_limit.0: Time,
    ready_wait.0: Time,
}

impl Setting {
    /// The field as users name it: without the number inside a wrapper.
    pub(crate) fn path(&self) -> String {
        let path: String = self.field.split_whitespace().collect();
        path.strip_suffix(".0").map(str::to_owned).unwrap_or(path)
    }

    /// The variable: `ROOMCAST_LINK_OUTBOX_BYTES`.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.path().replace('.', "_").to_uppercase())
    }

    /// Its value, as it would be given.
    #[cfg(test)]
    fn value(&self, config: &Config) -> String {
        (self.show)(config)
    }

    /// Takes a value.
    ///
    /// # Errors
    /// What is wrong with it; `config` is as before.
    pub(crate) fn take(&self, config: &mut Config, text: &str) -> Result<(), String> {
        (self.set)(config, text)
    }
}

/// Reads every variable with our prefix into `config`, and hands those of [`NAMES`] on, with `POD_NAME` and `POD_IP`.
/// Those in `others` are left alone, and so are those that Kubernetes sets for a service with such a name. Empty is not set.
///
/// # Errors
/// [`EnvError`] for the first variable that is unknown or whose value cannot be used.
pub(crate) fn read(
    vars: impl IntoIterator<Item = (OsString, OsString)>,
    others: &[&str],
    config: &mut Config,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut names = Vec::new();
    for (name, value) in vars {
        let Some(name) = name.to_str() else { continue };
        let ours = name.starts_with(PREFIX) && !others.contains(&name);
        if value.is_empty() || !(ours || name == "POD_NAME" || name == "POD_IP") {
            continue;
        }
        let named = !ours || NAMES.iter().any(|(known, _)| *known == name);
        let setting = SETTINGS.iter().find(|setting| setting.variable() == name);
        if !named && setting.is_none() {
            if is_service_link(name) {
                continue;
            }
            return Err(EnvError::Unknown { name: name.to_owned(), nearest: nearest(name) });
        }
        let Some(text) = value.to_str() else { return Err(EnvError::Encoding { name: name.to_owned() }) };
        match setting {
            Some(setting) => setting.take(config, text.trim()).map_err(|reason| EnvError::Value {
                name: name.to_owned(),
                value: text.chars().take(100).collect(),
                reason,
            })?,
            None => names.push((name.to_owned(), text.trim().to_owned())),
        }
    }
    Ok(names)
}

/// Whether Kubernetes sets a variable of that name for a service, of which the pod knows nothing.
fn is_service_link(name: &str) -> bool {
    let after_port = name.rsplit_once("_PORT_").map(|(_, rest)| rest);
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || after_port.is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
}

/// The known variable that is most like an unknown one.
fn nearest(name: &str) -> String {
    let named = NAMES.iter().map(|(known, _)| (*known).to_owned());
    let known = named.chain(SETTINGS.iter().map(Setting::variable));
    known.min_by_key(|known| distance(name, known)).unwrap_or_default()
}

/// How many letters have to be put in, taken out or changed (Levenshtein). Names are short; a long one is cut.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let changed = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::QueuePolicy;

    fn env(vars: &[(&str, &str)]) -> Result<(Config, Vec<(String, String)>), EnvError> {
        let mut config = Config::default();
        let vars = vars.iter().map(|(name, value)| (name.into(), value.into()));
        let names = read(vars, &["ROOMCAST_HTTP"], &mut config)?;
        Ok((config, names))
    }

    /// The fields of a configuration, as its own `Debug` lists them.
    fn fields(config: &Config) -> Vec<String> {
        let (mut path, mut fields) = (Vec::<String>::new(), Vec::new());
        for line in format!("{config:#?}").lines().skip(1) {
            let Some((name, value)) = line.trim().split_once(": ") else {
                if line.trim_start().starts_with(['}', ')']) {
                    path.pop();
                }
                continue;
            };
            path.push(name.to_owned());
            let is_struct = value.ends_with('{');
            if !is_struct {
                fields.push(path.join("."));
            }
            if !is_struct && !value.ends_with('(') {
                path.pop();
            }
        }
        fields.retain(|field| !["discovery.jitter_seed", "discovery.node"].contains(&field.as_str()));
        fields
    }

    #[test]
    fn every_setting_has_a_variable() {
        let table: Vec<String> = SETTINGS.iter().map(Setting::path).collect();
        assert_eq!(fields(&Config::default()), table);
    }

    #[test]
    fn every_variable_sets_its_field_alone() {
        for setting in SETTINGS {
            let other = match setting.form {
                Size::FORM => "3KiB",
                Count::FORM => "77",
                Time::FORM | MaybeTime::FORM => "1234ms",
                Flag::FORM => "false",
                Ratio::FORM => "0.75",
                Factor::FORM => "2.5",
                Policy::FORM => "wait:250ms",
                form => panic!("{form}"),
            };
            let (config, names) = env(&[(&setting.variable(), other)]).unwrap();
            assert_eq!(setting.value(&config), other, "{}", setting.variable());
            assert!(names.is_empty());
            let changed = SETTINGS.iter().filter(|s| s.value(&config) != s.value(&Config::default())).count();
            assert_eq!(changed, 1, "{}", setting.variable());
            // And a default can be given as it is shown.
            let default = setting.value(&Config::default());
            let (config, _) = env(&[(&setting.variable(), &default)]).unwrap();
            assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
        }
    }

    #[test]
    fn values_have_units() {
        let (config, names) = env(&[
            ("ROOMCAST_LINK_RESUME_WINDOW", "15s"),
            ("ROOMCAST_LINK_OUTBOX_BYTES", "1048576"),
            ("ROOMCAST_LINK_QUEUE_POLICY", "drop_oldest"),
            ("ROOMCAST_LINK_HEARTBEAT", "250"),
            ("ROOMCAST_MEMBERS_REMEMBER_MS", "2h"),
            ("ROOMCAST_CLUSTER", " chat "),
            ("ROOMCAST_LISTEN", ""),
            ("ROOMCAST_HTTP", "of somebody else"),
            ("POD_IP", "10.0.0.7"),
            ("PATH", "/bin"),
        ])
        .unwrap();
        assert_eq!(config.link.resume_window, Duration::from_secs(15));
        assert_eq!(config.link.outbox_bytes, 1 << 20);
        assert_eq!(config.link.queue_policy, QueuePolicy::DropOldest);
        assert_eq!(config.link.heartbeat, Duration::from_millis(250));
        assert_eq!(config.members.remember_ms, 7_200_000);
        assert_eq!(
            names,
            [("ROOMCAST_CLUSTER", "chat"), ("POD_IP", "10.0.0.7")].map(|(a, b)| (a.into(), b.into()))
        );
    }

    #[test]
    fn mistakes_are_named_with_what_is_allowed() {
        for (name, value, parts) in [
            ("ROOMCAST_LINK_OUTBOX_BYTE", "1", ["ROOMCAST_LINK_OUTBOX_BYTES", "not a setting"]),
            ("ROOMCAST_SEED", "a:1", ["ROOMCAST_SEEDS", "not a setting"]),
            ("ROOMCAST_LINK_OUTBOX_BYTES", "64MB", ["\"64MB\"", "64MiB"]),
            ("ROOMCAST_LINK_OUTBOX_BYTES", "-1", ["\"-1\"", "64MiB"]),
            ("ROOMCAST_LINK_OUTBOX_BYTES", "99999999999GiB", ["too large", "64MiB"]),
            ("ROOMCAST_QUIC_INITIAL_MTU", "70000", ["too large", "number"]),
            ("ROOMCAST_LINK_HEARTBEAT", "1.5s", ["\"1.5s\"", "250ms"]),
            ("ROOMCAST_LINK_HEARTBEAT", "5 s", ["\"5 s\"", "250ms"]),
            ("ROOMCAST_LINK_HEARTBEAT", "99999d", ["at most 3650d", "250ms"]),
            ("ROOMCAST_DISCOVERY_JITTER", "2", ["0 to 1", "\"2\""]),
            ("ROOMCAST_GOSSIP_PHI_THRESHOLD", "NaN", ["above 0", "\"NaN\""]),
            ("ROOMCAST_QUIC_SEGMENTATION_OFFLOAD", "yes", ["true or false", "\"yes\""]),
            ("ROOMCAST_LINK_QUEUE_POLICY", "wait", ["drop_newest", "wait:"]),
        ] {
            let error = env(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_is_left_alone() {
        let links = [
            ("ROOMCAST_SERVICE_HOST", "10.96.0.1"),
            ("ROOMCAST_SERVICE_PORT_HTTP", "80"),
            ("ROOMCAST_PORT", "tcp://10.96.0.1:80"),
            ("ROOMCAST_PEERS_PORT_7946_UDP_ADDR", "10.96.0.2"),
        ];
        assert!(env(&links).unwrap().1.is_empty());
    }

    #[test]
    fn the_document_lists_every_variable_with_its_default() {
        let text = include_str!("../../docs/operations.md");
        let mut missing = Vec::new();
        for setting in SETTINGS {
            let default = setting.value(&Config::default());
            let row = format!("| `{}` | `{}` | `{default}` |", setting.path(), setting.variable());
            if !text.contains(&row) {
                missing.push(row);
            }
        }
        let rows = NAMES.iter().map(|(name, _)| format!("| `{name}`")).filter(|row| !text.contains(row));
        missing.extend(rows);
        assert!(missing.is_empty(), "docs/operations.md lacks:\n{}", missing.join("\n"));
        // And no row of a setting that is no more.
        for name in text.split('`').filter(|word| {
            word.len() > PREFIX.len()
                && word.starts_with(PREFIX)
                && word.bytes().all(|byte| !b".*=".contains(&byte))
        }) {
            let known = NAMES.iter().any(|(known, _)| *known == name)
                || SETTINGS.iter().any(|setting| setting.variable() == name);
            assert!(known, "docs/operations.md names {name}, which nothing reads");
        }
    }
}
