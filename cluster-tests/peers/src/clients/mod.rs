//! All clients of `--bench clients`, in one process: they say what they are told to, and count what comes.

mod client;
mod servers;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::client::{Client, Counted};
use self::servers::{Numbers, Servers};
use crate::measure::quantile;
use crate::{Outcome, PATIENCE};

/// Messages that are on their way at once while it is measured how many can be sent.
const WINDOW: u64 = 128;
/// Clients that connect at once.
const TOGETHER: usize = 64;
/// From when clients have connected until they count as idle.
const SETTLE: Duration = Duration::from_secs(3);

/// What is measured.
#[derive(Deserialize)]
pub(crate) struct Plan {
    servers: Servers,
    /// Rooms, their members, and on how many servers the members of each are.
    rooms: usize,
    members: usize,
    spread: usize,
    /// Bytes of the text of a message.
    payload: usize,
    /// How long each measurement takes.
    seconds: f64,
    /// Messages a second where it is measured how long they take.
    rate: f64,
    /// So many idle clients instead of all that.
    idle: Option<usize>,
}

/// Raises the limit of open files as far as it may be raised.
pub(crate) fn many_files() -> Outcome<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// Measures, and prints the results as lines of JSON.
pub(crate) async fn run(plan: Plan) -> Outcome<()> {
    many_files()?;
    match plan.idle {
        Some(clients) => idle(&plan, clients).await,
        None => messages(&plan).await,
    }
}

fn say(plan: &Plan, metric: &str, value: f64) {
    println!("{}", json!({ "metric": metric, "payload_bytes": plan.payload, "value": value }));
}

/// Clients that do nothing.
async fn idle(plan: &Plan, clients: usize) -> Outcome<()> {
    let (memory, before) = (plan.servers.memory()?, plan.servers.numbers().await?);
    let counted = Arc::new(Counted::default());
    let (urls, begun) = (&plan.servers.http, Instant::now());
    let connected = connect((0..clients).map(|at| (urls[at % urls.len()].clone(), None)), &counted).await?;
    let took = begun.elapsed();
    let after = plan.servers.numbers().await?;
    sleep(SETTLE).await;
    let (grown, settled) = (plan.servers.memory()?.saturating_sub(memory), plan.servers.numbers().await?);
    sleep(Duration::from_secs_f64(plan.seconds)).await;
    let rest = plan.servers.numbers().await?;
    let thousands = clients as f64 / 1e3;
    say(plan, "memory_mib_per_10000_clients", grown as f64 / f64::from(1 << 20) / thousands * 10.0);
    say(plan, "cpu_ms_per_1000_connects", (after.cpu_us - before.cpu_us) / 1e3 / thousands);
    say(plan, "connects_per_s", clients as f64 / took.as_secs_f64());
    let idle = (rest.cpu_us - settled.cpu_us) / (plan.seconds * 1e6);
    say(plan, "idle_cores_per_10000_clients", idle / thousands * 10.0);
    drop(connected);
    Ok(())
}

/// Rooms whose members say something, one after the other.
async fn messages(plan: &Plan) -> Outcome<()> {
    let counted = Arc::new(Counted::default());
    let urls = &plan.servers.http;
    // The members of a room are on the servers from that of its number on.
    let seats = (0..plan.rooms * plan.members).map(|seat| {
        let (room, member) = (seat / plan.members, seat % plan.members);
        let server = (room + member % plan.spread) % urls.len();
        (urls[server].clone(), Some(format!("room-{room}")))
    });
    let clients = connect(seats, &counted).await?;
    let mut talk = Talk { plan, clients, counted, next: 0 };
    talk.until_all_hear().await?;

    talk.as_fast_as_they_go(plan.seconds / 4.0).await?;
    let before = plan.servers.numbers().await?;
    let begun = Instant::now();
    let sent = talk.as_fast_as_they_go(plan.seconds).await?;
    let took = begun.elapsed().as_secs_f64();
    let numbers = plan.servers.numbers().await?.since(&before);
    report(plan, sent, took, &numbers);

    let before = plan.servers.numbers().await?;
    let late = talk.at_a_rate().await?;
    let numbers = plan.servers.numbers().await?.since(&before);
    let rate = format!("{}_per_s", plan.rate);
    say(plan, &format!("{rate}_deliveries_per_cpu_s"), late.len() as f64 / (numbers.cpu_us / 1e6));
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        say(plan, &format!("{rate}_latency_{name}_us"), quantile(&late, share));
    }
    Ok(())
}

fn report(plan: &Plan, sent: u64, took: f64, numbers: &Numbers) {
    let deliveries = sent as f64 * (plan.members - 1) as f64;
    say(plan, "publishes_per_s", sent as f64 / took);
    say(plan, "deliveries_per_s", deliveries / took);
    say(plan, "deliveries_per_cpu_s", deliveries / (numbers.cpu_us / 1e6));
    say(plan, "broker_cpu_share", numbers.broker_cpu_us / numbers.cpu_us);
    say(plan, "internode_messages_per_publish", numbers.messages as f64 / sent as f64);
    say(plan, "internode_bytes_per_publish", numbers.bytes as f64 / sent as f64);
}

/// Connects clients, some at once, in the order given.
async fn connect(
    seats: impl Iterator<Item = (String, Option<String>)>,
    counted: &Arc<Counted>,
) -> Outcome<Vec<Client>> {
    let (mut clients, mut under_way) = (Vec::new(), JoinSet::new());
    for (at, (url, room)) in seats.enumerate() {
        if under_way.len() >= TOGETHER
            && let Some(client) = under_way.join_next().await
        {
            clients.push(client??);
        }
        let counted = Arc::clone(counted);
        under_way.spawn(async move {
            let client = timeout(PATIENCE, Client::connect(&url, room, counted)).await??;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((at, client))
        });
    }
    while let Some(client) = under_way.join_next().await {
        clients.push(client??);
    }
    clients.sort_by_key(|(at, _)| *at);
    Ok(clients.into_iter().map(|(_, client)| client).collect())
}

/// The members of all rooms.
struct Talk<'a> {
    plan: &'a Plan,
    clients: Vec<Client>,
    counted: Arc<Counted>,
    /// Who speaks next.
    next: usize,
}

impl Talk<'_> {
    /// The next member of the next room says `number`.
    fn speak(&mut self, number: u64) -> Outcome<()> {
        let (rooms, members) = (self.plan.rooms, self.plan.members);
        let (room, member) = (self.next % rooms, self.next / rooms % members);
        self.next += 1;
        self.clients[room * members + member].say(room, number, self.plan.payload)
    }

    /// What comes when so many have been sent.
    fn due(&self, sent: u64) -> u64 {
        sent * (self.plan.members as u64 - 1)
    }

    /// Rooms that were just joined may not be known everywhere: tries until one message of each member comes to all.
    async fn until_all_hear(&mut self) -> Outcome<()> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            self.counted.begin(None);
            let all = (self.plan.rooms * self.plan.members) as u64;
            for number in 0..all {
                self.speak(number)?;
            }
            if timeout(Duration::from_secs(1), self.counted.reach(self.due(all))).await.is_ok() {
                return Ok(());
            }
        }
        Err("see all members hear each other".into())
    }

    /// As many as there can be; returns how many, when the last of them has come to all.
    async fn as_fast_as_they_go(&mut self, seconds: f64) -> Outcome<u64> {
        self.counted.begin(None);
        let (end, mut sent) = (Instant::now() + Duration::from_secs_f64(seconds), 0);
        while Instant::now() < end {
            let before = sent.max(WINDOW) - WINDOW;
            // In some order or other: so many have come, whichever they are.
            self.arrived(before).await?;
            let room = WINDOW - (sent - self.counted.count() / self.due(1)).min(WINDOW);
            for _ in 0..room.max(1) {
                self.speak(sent)?;
                sent += 1;
            }
        }
        self.arrived(sent).await?;
        self.exactly(sent).await?;
        Ok(sent)
    }

    /// So many a second, whatever comes. Returns how long each took to each member from when it was due, in microseconds,
    /// sorted.
    async fn at_a_rate(&mut self) -> Outcome<Vec<f64>> {
        let every = Duration::from_secs_f64(1.0 / self.plan.rate);
        let all = (self.plan.seconds * self.plan.rate) as u64;
        let begun = Instant::now() + Duration::from_millis(5);
        self.counted.begin(Some((begun, every)));
        let mut due = VecDeque::from_iter(0..all);
        while let Some(number) = due.pop_front() {
            sleep_until(begun + every * number as u32).await;
            self.speak(number)?;
        }
        self.arrived(all).await?;
        self.exactly(all).await?;
        let mut late = self.counted.latencies();
        late.sort_by(f64::total_cmp);
        Ok(late)
    }

    async fn arrived(&self, sent: u64) -> Outcome<()> {
        let due = self.due(sent);
        let waited = timeout(PATIENCE, self.counted.reach(due)).await;
        waited
            .map_err(|_| format!("see {due} messages arrive, of which came {}", self.counted.count()).into())
    }

    /// More than are due are wrong, too.
    async fn exactly(&self, sent: u64) -> Outcome<()> {
        sleep(Duration::from_millis(50)).await;
        let (due, came) = (self.due(sent), self.counted.count());
        if came == due { Ok(()) } else { Err(format!("get {due} messages: {came} came").into()) }
    }
}
