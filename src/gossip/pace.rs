//! How often this node gossips. In a large cluster in which nothing happens the lists of all nodes, sent to three others four
//! times a second, would be most of what is sent at all; so they are sent less often there, and at full pace again from the
//! first sign that something is wrong.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

/// With lists up to so many times the budget nothing is left out: it would save little.
const WORTHWHILE: f64 = 1.5;
/// However long the list is, a node begins an exchange at least this often.
const SLOWEST: Duration = Duration::from_secs(1);
/// Exchanges that chitchat begins in each interval.
const EXCHANGES: f64 = 3.0;
/// The most addresses kept that are to get the next list whatever the pace is. Over it they wait for their turn.
const MAX_ASKED: usize = 1024;

/// Decides which of the exchanges that chitchat wants to begin take place, and what silence means at that pace.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    /// Silence that is death at full pace.
    silence: Duration,
    /// Bytes a second for lists that are sent unasked.
    budget: f64,
    /// At full pace, since when. The node begins so.
    alert: Option<Instant>,
    /// What may be sent now, in bytes, and when that was counted.
    credit: f64,
    counted: Instant,
    /// Who gets a list whatever the pace is.
    asked: HashSet<SocketAddr>,
}

impl Pace {
    /// At full pace a sign of life comes every half interval: after `phi_threshold` of those silence is death.
    pub(super) fn new(interval: Duration, phi_threshold: f64, budget: usize, now: Instant) -> Self {
        let silence = Duration::try_from_secs_f64(interval.as_secs_f64() / 2.0 * phi_threshold);
        Self {
            interval,
            silence: silence.unwrap_or(Duration::MAX),
            budget: budget as f64,
            alert: Some(now),
            credit: 0.0,
            counted: now,
            asked: HashSet::new(),
        }
    }

    /// Full pace from now on, or no longer.
    pub(super) fn set_alert(&mut self, alert: bool, now: Instant) {
        match (alert, self.alert) {
            (true, None) => self.alert = Some(now),
            (false, Some(_)) => (self.alert, self.credit, self.counted) = (None, 0.0, now),
            _ => {}
        }
    }

    /// The next list for this address is sent in any case.
    pub(super) fn ask(&mut self, addr: SocketAddr) {
        if self.asked.len() < MAX_ASKED {
            self.asked.insert(addr);
        }
    }

    /// How many times as far apart exchanges are in calm, with lists of so many bytes: 1 is full pace.
    fn slower(&self, bytes: usize) -> f64 {
        let seconds = self.interval.as_secs_f64();
        let slower = EXCHANGES * bytes as f64 / seconds / self.budget.max(1.0);
        let most = (SLOWEST.as_secs_f64() * EXCHANGES / seconds).max(1.0);
        if slower <= WORTHWHILE { 1.0 } else { slower.min(most) }
    }

    /// Whether an exchange begins, with a list of so many bytes.
    pub(super) fn begins(&mut self, to: SocketAddr, bytes: usize, now: Instant) -> bool {
        let slower = self.slower(bytes);
        if self.asked.remove(&to) || self.alert.is_some() || slower <= 1.0 {
            return true;
        }
        let cost = bytes as f64;
        let earned = EXCHANGES * cost / self.interval.as_secs_f64() / slower;
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        // No more is saved up than chitchat can use at once.
        self.credit = (self.credit + earned * passed).min(EXCHANGES * cost);
        let begins = self.credit >= cost;
        if begins {
            self.credit -= cost;
        }
        begins
    }

    /// Whether silence since `heard` is nothing to wonder at, at the pace of calm with lists of so many bytes, though it would
    /// be at full pace.
    pub(super) fn excuses(&self, heard: Instant, bytes: usize, now: Instant) -> bool {
        let slower = self.slower(bytes);
        slower > 1.0 && now.saturating_duration_since(heard) <= self.silence.mul_f64(slower)
    }

    /// Whether this node asked for signs of life at full pace for long enough, and none came. Only of interest where the pace of
    /// calm is slower, as else the failure detector says so.
    pub(super) fn is_missed(&self, heard: Instant, bytes: usize, now: Instant) -> bool {
        let for_long = |since| now.saturating_duration_since(since) > self.silence;
        self.slower(bytes) > 1.0 && self.alert.is_some_and(for_long) && for_long(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: usize = 4400;

    fn pace(now: Instant) -> Pace {
        Pace::new(Duration::from_millis(250), 16.0, 6 << 10, now)
    }

    fn to(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    /// Exchanges of a minute, three tries every 250 ms.
    fn minute(pace: &mut Pace, bytes: usize, begun: Instant) -> usize {
        let tries = (0..240).flat_map(|tick| [tick; 3]);
        tries.filter(|tick| pace.begins(to(1), bytes, begun + Duration::from_millis(250) * *tick)).count()
    }

    #[test]
    fn calm_costs_what_the_budget_allows_and_small_clusters_notice_nothing() {
        let now = Instant::now();
        let mut pace = pace(now);
        assert_eq!(minute(&mut pace, LIST, now), 720, "it begins at full pace");
        pace.set_alert(false, now);
        let begun = minute(&mut pace, LIST, now);
        let budget = 60 * (6 << 10) / LIST;
        assert!((budget * 8 / 10..=budget).contains(&begun), "{begun} of {budget}");
        assert_eq!(minute(&mut pace, 500, now), 720, "a list of ten nodes costs little");
        let slowest = minute(&mut pace, 60_000, now);
        assert!((48..=60).contains(&slowest), "once a second at least: {slowest}");
        pace.set_alert(true, now);
        assert_eq!(minute(&mut pace, LIST, now), 720);
    }

    #[test]
    fn who_is_asked_for_is_met_at_once_and_once() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.set_alert(false, now);
        pace.ask(to(7));
        assert!(pace.begins(to(7), LIST, now));
        assert!(!pace.begins(to(7), LIST, now));
        for port in 0..2000 {
            pace.ask(to(port));
        }
        assert_eq!(pace.asked.len(), MAX_ASKED);
    }

    #[test]
    fn silence_means_more_at_full_pace() {
        let begun = Instant::now();
        let mut pace = pace(begun);
        let at = |ms| begun + Duration::from_millis(ms);
        pace.set_alert(false, begun);
        assert!(pace.excuses(begun, LIST, at(10_000)));
        assert!(!pace.excuses(begun, LIST, at(30_000)));
        assert!(!pace.is_missed(begun, LIST, at(10_000)), "nobody asked");
        pace.set_alert(true, at(10_000));
        assert!(!pace.is_missed(begun, LIST, at(12_000)), "not asked for long enough");
        assert!(pace.is_missed(begun, LIST, at(12_001)));
        assert!(!pace.is_missed(at(11_000), LIST, at(12_001)), "it was heard of meanwhile");
        pace.set_alert(true, at(12_000));
        assert!(pace.is_missed(begun, LIST, at(12_001)), "the alert goes on");
        assert!(!pace.excuses(begun, 500, at(1)), "where nothing is left out the failure detector is right");
        assert!(!pace.is_missed(begun, 500, at(60_000)));
    }
}
