//! The network of simulated nodes: packets on their way, by the address that they go to.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::harness::dice::between;
use crate::harness::ground::Rule;

/// How long every packet takes before rules add to it. No packet arrives sooner than the start of this range: the time
/// that nodes can be driven one after the other without seeing the difference.
pub(crate) const BASE: Range<Duration> = Duration::from_millis(4)..Duration::from_millis(8);

/// The largest UDP payload that gets through: Ethernet's 1500 bytes less the headers of IPv4 and UDP.
const MTU: usize = 1472;

/// What may be on its way to an address or wait in its socket, in bytes; more is lost, as in the buffer of a system.
const BUFFER: usize = 2 << 20;

/// What became of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// They were sent.
    pub sent: u64,
    /// The bytes of those, without headers of UDP and IP.
    pub sent_bytes: u64,
    /// A rule lost them.
    pub lost: u64,
    /// They were larger than the path carries.
    pub too_large: u64,
    /// The buffer of their receiver was full.
    pub overflowed: u64,
}

/// All packets and all rules.
#[derive(Debug)]
pub(crate) struct Network {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    seed: u64,
    rules: HashMap<(usize, usize), Rule>,
    pairs: HashMap<(usize, usize), Pair>,
    /// Who has which address; who had it last while nobody has it.
    owners: HashMap<SocketAddr, usize>,
    wires: HashMap<SocketAddr, Wire>,
    number: u64,
    traffic: Traffic,
}

/// The way from one node to another.
#[derive(Debug)]
struct Pair {
    dice: StdRng,
    /// When the last packet arrives that kept its place: later ones come later.
    last: Duration,
}

/// What goes to one address.
#[derive(Debug, Default)]
struct Wire {
    /// By the time of arrival, then in the order in which they were sent.
    packets: BTreeMap<(Duration, u64), Packet>,
    bytes: usize,
    /// The run that is bound to it; packets for an address without one vanish when they arrive.
    bound: Option<u64>,
    waker: Option<Waker>,
    /// Packets up to here were announced to the receiver.
    announced: Duration,
}

/// A packet that arrives.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) data: Bytes,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        let inner = Inner {
            seed,
            rules: HashMap::new(),
            pairs: HashMap::new(),
            owners: HashMap::new(),
            wires: HashMap::new(),
            number: 0,
            traffic: Traffic::default(),
        };
        Self { inner: Mutex::new(inner) }
    }

    pub(crate) fn rule(&self, from: usize, to: usize, rule: Rule) {
        self.lock().rules.insert((from, to), rule);
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.lock().traffic
    }

    /// Gives an address to a run of a node. What was still on its way to it arrives.
    pub(crate) fn bind(&self, addr: SocketAddr, node: usize, run: u64, now: Duration) {
        let mut inner = self.lock();
        inner.owners.insert(addr, node);
        let wire = inner.wires.entry(addr).or_default();
        wire.forget_before(now);
        (wire.bound, wire.announced) = (Some(run), now);
    }

    /// Nobody has the address any more; what waits in its socket is gone.
    pub(crate) fn unbind(&self, addr: SocketAddr, now: Duration) {
        let waker = {
            let mut inner = self.lock();
            let wire = inner.wires.entry(addr).or_default();
            wire.forget_before(now);
            wire.bound = None;
            wire.waker.take()
        };
        drop(waker);
    }

    /// Sends a packet. It never fails: what cannot arrive is lost.
    pub(crate) fn send(&self, run: u64, from: SocketAddr, to: SocketAddr, data: &[u8], now: Duration) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        // The last words of a killed run are not heard.
        if inner.wires.get(&from).is_none_or(|wire| wire.bound != Some(run)) {
            return;
        }
        inner.traffic.sent += 1;
        inner.traffic.sent_bytes += data.len() as u64;
        if data.len() > MTU {
            inner.traffic.too_large += 1;
            return;
        }
        let (Some(&source), Some(&target)) = (inner.owners.get(&from), inner.owners.get(&to)) else {
            inner.traffic.lost += 1;
            return;
        };
        let seed = inner.seed ^ ((source as u64) << 40) ^ ((target as u64) << 20);
        let pair = inner
            .pairs
            .entry((source, target))
            .or_insert_with(|| Pair { dice: StdRng::seed_from_u64(seed), last: Duration::ZERO });
        let ways = match inner.rules.get(&(source, target)) {
            Some(rule) => rule.throw(&mut pair.dice),
            None => Rule::clear().throw(&mut pair.dice),
        };
        inner.traffic.lost += u64::from(ways.is_empty());
        let wire = inner.wires.entry(to).or_default();
        let data = Bytes::copy_from_slice(data);
        for way in ways {
            let mut at = now + between(&BASE, &mut pair.dice) + way.delay;
            if !way.held_back {
                at = at.max(pair.last);
                pair.last = at;
            }
            if wire.bytes + data.len() > BUFFER {
                inner.traffic.overflowed += 1;
                continue;
            }
            inner.number += 1;
            wire.bytes += data.len();
            wire.packets.insert((at, inner.number), Packet { from, data: data.clone() });
        }
    }

    /// Takes the next packet that has arrived; keeps the waker when there is none.
    pub(crate) fn receive(&self, addr: SocketAddr, run: u64, now: Duration, waker: &Waker) -> Option<Packet> {
        let mut inner = self.lock();
        let wire = inner.wires.get_mut(&addr).filter(|wire| wire.bound == Some(run))?;
        let packet = wire.take(now);
        if packet.is_none() && !wire.waker.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            wire.waker = Some(waker.clone());
        }
        packet
    }

    /// When the next packet arrives that was not announced yet, at the latest at `until`.
    pub(crate) fn next_arrival(&self, addr: SocketAddr, until: Duration) -> Option<Duration> {
        let inner = self.lock();
        let wire = inner.wires.get(&addr)?;
        let after = (wire.announced, u64::MAX);
        let (&(at, _), _) = wire.packets.range(after..).next()?;
        (at <= until).then_some(at)
    }

    /// Wakes the receiver: everything up to `now` has arrived.
    pub(crate) fn announce(&self, addr: SocketAddr, now: Duration) {
        let waker = {
            let mut inner = self.lock();
            let Some(wire) = inner.wires.get_mut(&addr) else { return };
            wire.announced = now;
            wire.waker.take()
        };
        // Not under the lock: waking runs code of the runtime.
        waker.inspect(Waker::wake_by_ref);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    fn take(&mut self, now: Duration) -> Option<Packet> {
        let first = self.packets.first_entry().filter(|first| first.key().0 <= now)?;
        let packet = first.remove();
        self.bytes -= packet.data.len();
        Some(packet)
    }

    fn forget_before(&mut self, now: Duration) {
        while self.take(now).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn network() -> (Network, SocketAddr, SocketAddr) {
        let (network, a, b) = (Network::new(7), ([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 1).into());
        network.bind(a, 0, 1, ms(0));
        network.bind(b, 1, 2, ms(0));
        (network, a, b)
    }

    fn received(network: &Network, at: SocketAddr, run: u64, now: Duration) -> Vec<u8> {
        let next = || network.receive(at, run, now, Waker::noop());
        std::iter::from_fn(next).map(|packet| packet.data[0]).collect()
    }

    #[test]
    fn packets_take_their_time_and_keep_their_order() {
        let (network, a, b) = network();
        (0..100).for_each(|number| network.send(1, a, b, &[number], ms(10)));
        assert_eq!(received(&network, b, 2, ms(10) + BASE.start - ms(1)), [0; 0]);
        let first = network.next_arrival(b, ms(1000)).unwrap();
        assert!(first >= ms(10) + BASE.start && network.next_arrival(b, first - ms(1)).is_none());
        assert_eq!(received(&network, b, 2, ms(10) + BASE.end), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_passes_a_cut_nor_reaches_who_is_gone() {
        let (network, a, b) = network();
        network.rule(0, 1, Rule::cut());
        network.send(1, a, b, &[1], ms(0));
        network.rule(0, 1, Rule::clear());
        network.send(1, a, b, &vec![2; MTU + 1], ms(0));
        network.send(1, a, ([10, 0, 0, 3], 1).into(), &[3], ms(0));
        network.send(1, a, b, &[4], ms(0));
        assert_eq!(received(&network, b, 2, ms(100)), [4]);
        // A run that ended does not speak, and the next one at its address does not hear what came before it.
        network.unbind(a, ms(100));
        network.send(1, a, b, &[5], ms(100));
        network.send(2, b, a, &[6], ms(100));
        network.bind(a, 0, 3, ms(200));
        network.send(2, b, a, &[7], ms(200));
        assert_eq!(received(&network, a, 1, ms(300)), [0; 0]);
        assert_eq!(received(&network, a, 3, ms(300)), [7]);
        assert_eq!(received(&network, b, 2, ms(300)), [0; 0]);
    }

    #[test]
    fn what_does_not_fit_the_buffer_is_lost_and_counted() {
        let (network, a, b) = network();
        let sent = BUFFER / 1000 + 10;
        (0..sent).for_each(|_| network.send(1, a, b, &[1; 1000], ms(0)));
        let arrived = received(&network, b, 2, ms(1000)).len();
        assert_eq!(arrived, BUFFER / 1000);
        assert_eq!(network.traffic().overflowed, (sent - arrived) as u64);
    }
}
