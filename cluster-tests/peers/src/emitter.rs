//! The node that sends and measures. Each system goes through the same loop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::control::Receivers;
use crate::measure::{cpu_us, from_due, quantile};
use crate::message::{ACK, ECHO, FINAL, Message, PROBE};
use crate::wires::Wire;
use crate::{Outcome, PATIENCE, Plan};

/// Bytes under way to each receiver; nothing that is measured drops messages below that.
const WINDOW_BYTES: usize = 4 << 20;
/// Messages that are handed over at once, where the system has a way to do so.
const BATCH: usize = 100;
/// Messages that are sent again and again until all receivers are there: one each of these.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// What came back, when.
#[derive(Default)]
pub(crate) struct Echoes {
    state: Mutex<Came>,
    all: Notify,
}

#[derive(Default)]
struct Came {
    /// When the first one was due.
    begun: Option<Instant>,
    /// Nanoseconds from then on until each came; 0 for those that did not.
    at: Vec<u64>,
    missing: usize,
    /// A probe came back.
    way: bool,
}

impl Echoes {
    fn state(&self) -> MutexGuard<'_, Came> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message came from a receiver.
    pub(crate) fn take(&self, message: Message) {
        let mut state = self.state();
        if message.is(PROBE) {
            state.way = true;
            return;
        }
        let Some(begun) = state.begun else { return };
        let at = (begun.elapsed().as_nanos() as u64).max(1);
        let Some(slot) = state.at.get_mut(message.number() as usize).filter(|slot| **slot == 0) else {
            return;
        };
        *slot = at;
        state.missing -= 1;
        if state.missing == 0 {
            self.all.notify_one();
        }
    }

    fn expect(&self, count: usize, begun: Instant) {
        *self.state() = Came { begun: Some(begun), at: vec![0; count], missing: count, way: true };
    }
}

/// One system, ready to be measured.
pub(crate) struct Bench<W> {
    wire: W,
    receivers: Receivers,
    echoes: Arc<Echoes>,
    /// The broker's process.
    broker: Option<u32>,
    /// Messages sent so far, without probes and those that come back.
    sent: u64,
}

impl<W: Wire> Bench<W> {
    /// Waits until there is a way to each receiver and one back.
    pub(crate) async fn ready(
        mut wire: W,
        receivers: Receivers,
        echoes: Arc<Echoes>,
        broker: Option<u32>,
    ) -> Outcome<Self> {
        let begun = Instant::now();
        while !(receivers.ready() && echoes.state().way) {
            if begun.elapsed() > PATIENCE {
                return Err("find a way to all receivers and back".into());
            }
            wire.send(&[Message { word: PROBE, length: 64 }]).await?;
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        Ok(Self { wire, receivers, echoes, broker, sent: 0 })
    }

    /// Measures what the plan says and prints a line for each value.
    pub(crate) async fn run(&mut self, plan: &Plan) -> Outcome<()> {
        for &payload in &plan.payloads {
            // Windows, caches and the estimate of the path settle; this does not count.
            self.stream(payload, plan.seconds / 4.0).await?;
            let (rate, cpu) = self.stream(payload, plan.seconds).await?;
            if plan.fan_out {
                print(&format!("fanout_{}_msgs_per_s", self.receivers.processes.len()), payload, rate);
                continue;
            }
            print("throughput_msgs_per_s", payload, rate);
            for (metric, value) in cpu {
                print(metric, payload, value);
            }
            for (per_second, suffix) in [(1_000, ""), (20_000, "_20k")] {
                // 20,000 a second of the largest would be 10 Gbit/s. What can hardly be held, there and back, would
                // measure how long the queues get, and a broker drops those who are behind.
                let held = rate >= 2.0 * per_second as f64 && (payload <= 4096 || per_second == 1_000);
                if held {
                    self.round_trips(payload, per_second, suffix, plan.seconds).await?;
                }
            }
        }
        Ok(())
    }

    /// As many as go: messages a second until the last has arrived, and CPU microseconds for each.
    async fn stream(&mut self, payload: usize, seconds: f64) -> Outcome<(f64, Vec<(&'static str, f64)>)> {
        let window = (WINDOW_BYTES / payload).clamp(64, 1 << 15) as u64;
        let step = window / 8;
        let before = self.cpu()?;
        let (first, begun) = (self.sent, Instant::now());
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let last = begun.elapsed().as_secs_f64() > seconds;
            let size = (BATCH as u64).min(window / 4);
            for at in self.sent..self.sent + size {
                let end = last && at + 1 == self.sent + size;
                let marks = if end { ACK | FINAL } else { u64::from((at + 1) % step == 0) * ACK };
                batch.push(Message { word: at | marks, length: payload });
            }
            self.wire.send(&batch).await?;
            batch.clear();
            self.sent += size;
            if last {
                break;
            }
            if self.sent - first > window {
                self.receivers.have(self.sent - window).await?;
            }
        }
        self.receivers.have(self.sent).await?;
        let (count, took) = ((self.sent - first) as f64, begun.elapsed().as_secs_f64());
        let names = ["cpu_sender_us_per_msg", "cpu_receiver_us_per_msg", "cpu_broker_us_per_msg"];
        let used: Vec<f64> = self.cpu()?.iter().zip(before).map(|(now, then)| (now - then) / count).collect();
        let mut cpu = vec![("cpu_us_per_msg", used.iter().sum())];
        cpu.extend(names.into_iter().zip(used));
        Ok((count / took, cpu))
    }

    /// CPU microseconds so far of the sender, the receivers, and the broker if there is one.
    fn cpu(&self) -> Outcome<Vec<f64>> {
        let receivers: Outcome<Vec<f64>> = self.receivers.processes.iter().copied().map(cpu_us).collect();
        let mut used = vec![cpu_us(std::process::id())?, receivers?.iter().sum()];
        used.extend(self.broker.map(cpu_us).transpose()?);
        Ok(used)
    }

    /// So many a second, each sent when it is due whether or not those before it are back.
    async fn round_trips(&mut self, payload: usize, rate: u64, suffix: &str, seconds: f64) -> Outcome<()> {
        // The first fifth does not count.
        let count = (rate as f64 * seconds * 1.25) as u64;
        let interval = Duration::from_nanos(1_000_000_000 / rate);
        let begun = Instant::now() + Duration::from_millis(1);
        self.echoes.expect(count as usize, begun);
        for number in 0..count {
            pause(begun + interval * number as u32);
            self.wire.send_now(Message { word: number | ECHO, length: payload }).await?;
        }
        if timeout(PATIENCE, self.echoes.all.notified()).await.is_err() {
            let missing = self.echoes.state().missing;
            return Err(format!("see {missing} of {count} messages come back").into());
        }
        let (skip, interval) = (count as usize / 5, interval.as_nanos() as u64);
        let shift = skip as u64 * interval;
        let arrived: Vec<u64> =
            self.echoes.state().at[skip..].iter().map(|at| at.saturating_sub(shift)).collect();
        let took = from_due(&arrived, interval);
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            print(&format!("rtt_{name}{suffix}_us"), payload, quantile(&took, share));
        }
        Ok(())
    }
}

/// Until then. The thread sleeps: a timer of tokio has steps of a millisecond, and spinning would take a core from what
/// is measured.
#[expect(clippy::disallowed_methods, reason = "one of 20,000 a second is due each 50 microseconds")]
fn pause(until: Instant) {
    let rest = until.saturating_duration_since(Instant::now());
    if !rest.is_zero() {
        std::thread::sleep(rest);
    }
}

fn print(metric: &str, payload: usize, value: f64) {
    println!("{}", serde_json::json!({ "metric": metric, "payload_bytes": payload, "value": value }));
}
