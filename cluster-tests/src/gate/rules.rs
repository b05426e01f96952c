//! What happens to packets to and from single addresses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::AsyncUdpSocket;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::harness::ground::Rule;

/// Packets that are on their way at the same time; more are lost, as on a way that is full.
const ON_THE_WAY: usize = 8192;

/// The rules of one socket.
pub(super) struct Rules {
    /// Whether there was ever a rule: a socket without any pays for one look.
    any: AtomicBool,
    shared: Arc<Shared>,
    /// Sends what is delayed. None before the first rule.
    carrier: Mutex<Option<JoinHandle<()>>>,
    lost: AtomicU64,
}

struct Shared {
    inner: Mutex<Inner>,
    /// A packet was delayed that is due before all others.
    sooner: Notify,
}

struct Inner {
    dice: StdRng,
    out: HashMap<SocketAddr, Way>,
    /// Nothing of what these send is heard.
    deaf_to: HashSet<SocketAddr>,
    delayed: BTreeMap<(Instant, u64), Packet>,
    number: u64,
}

/// The way to one address.
struct Way {
    rule: Rule,
    /// When the last packet is through that keeps its place: later ones come later.
    last: Instant,
}

/// One packet on its way.
struct Packet {
    to: SocketAddr,
    from: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    data: Vec<u8>,
}

impl Rules {
    pub(super) fn new(seed: u64) -> Self {
        let inner = Inner {
            dice: StdRng::seed_from_u64(seed),
            out: HashMap::new(),
            deaf_to: HashSet::new(),
            delayed: BTreeMap::new(),
            number: 0,
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), sooner: Notify::new() });
        Self { any: AtomicBool::new(false), shared, carrier: Mutex::new(None), lost: AtomicU64::new(0) }
    }

    /// Sets what happens to what goes to `to`. Needs a tokio runtime.
    pub(super) fn to(&self, to: SocketAddr, rule: Rule, socket: &Arc<dyn AsyncUdpSocket>) {
        let mut carrier = self.carrier.lock().unwrap_or_else(PoisonError::into_inner);
        carrier.get_or_insert_with(|| tokio::spawn(carry(Arc::clone(&self.shared), Arc::clone(socket))));
        let mut inner = self.shared.lock();
        let last = inner.out.get(&to).map_or_else(Instant::now, |way| way.last);
        inner.out.insert(to, Way { rule, last });
        self.any.store(true, Ordering::SeqCst);
    }

    /// Sets whether what comes from `from` is lost.
    pub(super) fn from(&self, from: SocketAddr, cut: bool) {
        let mut inner = self.shared.lock();
        if cut {
            inner.deaf_to.insert(from);
        } else {
            inner.deaf_to.remove(&from);
        }
        self.any.store(true, Ordering::SeqCst);
    }

    /// Packets that a rule lost.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }

    /// Sends as the rules say. False when none is for this address, and nothing was sent.
    pub(super) fn send(&self, transmit: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> bool {
        if !self.any.load(Ordering::SeqCst) {
            return false;
        }
        let (to, now) = (transmit.destination, Instant::now());
        let mut inner = self.shared.lock();
        let Inner { dice, out, delayed, number, .. } = &mut *inner;
        let Some(way) = out.get_mut(&to).filter(|way| way.rule != Rule::clear() || way.last > now) else {
            return false;
        };
        let mut at_once = Vec::new();
        let mut first = delayed.keys().next().map(|(at, _)| *at);
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for data in transmit.contents.chunks(size) {
            let copies = way.rule.throw(dice);
            if copies.is_empty() {
                self.lost.fetch_add(1, Ordering::SeqCst);
            }
            for copy in copies {
                let mut at = now + copy.delay;
                if !copy.held_back {
                    at = at.max(way.last);
                    way.last = at;
                }
                if at <= now {
                    at_once.push(data);
                } else if delayed.len() < ON_THE_WAY {
                    *number += 1;
                    let (from, ecn) = (transmit.src_ip, transmit.ecn);
                    delayed.insert((at, *number), Packet { to, from, ecn, data: data.to_vec() });
                    if first.is_none_or(|first| at < first) {
                        first = Some(at);
                        self.shared.sooner.notify_one();
                    }
                } else {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        drop(inner);
        for contents in at_once {
            let one = Transmit { contents, segment_size: None, ..copy_of(transmit) };
            // What the socket does not take now is lost: the rule is for a bad way.
            let _ = socket.try_send(&one);
        }
        true
    }

    /// Empties the packets that must not be heard.
    pub(super) fn receive(&self, packets: &mut [RecvMeta]) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let inner = self.shared.lock();
        for packet in packets.iter_mut().filter(|packet| inner.deaf_to.contains(&packet.addr)) {
            // The endpoint reads nothing from an empty one.
            packet.len = 0;
            self.lost.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        if let Some(carrier) = &*self.carrier.lock().unwrap_or_else(PoisonError::into_inner) {
            carrier.abort();
        }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("any", &self.any).field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is due at `now`, and when the next one is.
    fn due(&self, now: Instant) -> (Vec<Packet>, Option<Instant>) {
        let mut inner = self.lock();
        let later = inner.delayed.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut inner.delayed, later);
        (due.into_values().collect(), inner.delayed.keys().next().map(|(at, _)| *at))
    }
}

/// Sends delayed packets when they are due, in the order of their times.
async fn carry(shared: Arc<Shared>, socket: Arc<dyn AsyncUdpSocket>) {
    loop {
        let (packets, next) = shared.due(Instant::now());
        for packet in packets {
            let Packet { to, from, ecn, data } = packet;
            let transmit =
                Transmit { destination: to, ecn, contents: &data, segment_size: None, src_ip: from };
            let _: io::Result<()> = socket.try_send(&transmit);
        }
        let sooner = shared.sooner.notified();
        match next {
            Some(next) => tokio::select! {
                () = sleep_until(next) => {}
                () = sooner => {}
            },
            None => sooner.await,
        }
    }
}

fn copy_of<'a>(transmit: &Transmit<'a>) -> Transmit<'a> {
    Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn,
        contents: transmit.contents,
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    }
}
