//! Whether the parts of a node still run.

/// One part that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Its name, for operators.
    pub name: &'static str,
    /// How long it may be quiet, in milliseconds.
    pub limit_ms: u64,
    /// For how long it has been quiet while somebody looked, in milliseconds.
    pub quiet_ms: u64,
    /// Whether that is too long.
    pub hangs: bool,
    beats: u64,
}

impl Watched {
    /// A part that has just run.
    pub fn new(name: &'static str, limit_ms: u64) -> Self {
        Self { name, limit_ms, quiet_ms: 0, hangs: false, beats: 0 }
    }
}

/// What began or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchChange {
    /// The part of this name hangs, and was quiet for so many milliseconds.
    Hangs(&'static str, u64),
    /// It runs again, after so many.
    Runs(&'static str, u64),
}

/// Counts for how long each part has been quiet, from numbers of beats that only grow.
///
/// [`look`](Self::look) is called often, by whoever still runs. The time since the look before counts for one step at most:
/// after the whole process was frozen, every part gets its chance to run before it is said to hang.
#[derive(Debug)]
pub struct Watchdog {
    step_ms: u64,
    looked_ms: Option<u64>,
    parts: Vec<Watched>,
}

impl Watchdog {
    /// Watches these parts. `step_ms`: the most that the time between two looks counts; well below the limits, and at
    /// least the time between two looks when all is well.
    pub fn new(step_ms: u64, parts: Vec<Watched>) -> Self {
        Self { step_ms, looked_ms: None, parts }
    }

    /// Looks at the beats of the parts, in their order. Returns what is new.
    pub fn look(&mut self, beats: &[u64], now_ms: u64) -> Vec<WatchChange> {
        let before = self.looked_ms.unwrap_or(now_ms);
        // Two that look at the same time may come here in the other order.
        self.looked_ms = Some(before.max(now_ms));
        let step = now_ms.saturating_sub(before).min(self.step_ms);
        let mut changes = Vec::new();
        for (part, beats) in self.parts.iter_mut().zip(beats) {
            if std::mem::replace(&mut part.beats, *beats) != *beats {
                if std::mem::take(&mut part.hangs) {
                    changes.push(WatchChange::Runs(part.name, part.quiet_ms));
                }
                part.quiet_ms = 0;
                continue;
            }
            part.quiet_ms += step;
            if part.quiet_ms > part.limit_ms && !std::mem::replace(&mut part.hangs, true) {
                changes.push(WatchChange::Hangs(part.name, part.quiet_ms));
            }
        }
        changes
    }

    /// The parts as they were at the last look.
    pub fn parts(&self) -> &[Watched] {
        &self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dog() -> Watchdog {
        Watchdog::new(1_000, vec![Watched::new("a", 5_000), Watched::new("b", 20_000)])
    }

    #[test]
    fn each_hang_is_told_once_and_so_is_its_end() {
        let mut dog = dog();
        let mut told = Vec::new();
        for now in (0..30_000).step_by(500) {
            // The first part stops after 2 s and goes on after 12 s; the other one beats all the time.
            let first = if (2_000..12_000).contains(&now) { 2_000 } else { now };
            told.extend(dog.look(&[first + 1, now + 1], now).into_iter().map(|change| (now, change)));
            assert_eq!(dog.parts()[0].hangs, (7_500..12_000).contains(&now), "at {now}");
        }
        assert_eq!(told, [(7_500, WatchChange::Hangs("a", 5_500)), (12_000, WatchChange::Runs("a", 9_500))]);
    }

    #[test]
    fn each_part_has_its_own_limit() {
        let mut dog = dog();
        for now in (0..=25_000).step_by(500) {
            let _ = dog.look(&[now, 0], now);
        }
        let [a, b] = [dog.parts()[0], dog.parts()[1]];
        assert_eq!((a.hangs, a.quiet_ms, b.hangs, b.quiet_ms), (false, 0, true, 25_000));
    }

    #[test]
    fn after_a_pause_of_the_whole_process_everyone_gets_a_chance() {
        let mut dog = dog();
        let _ = dog.look(&[1, 1], 0);
        assert_eq!(dog.look(&[1, 1], 3_600_000), [], "frozen for an hour");
        assert_eq!(dog.parts()[0].quiet_ms, 1_000);
        assert_eq!(dog.look(&[2, 2], 3_600_100), []);
        assert_eq!(dog.parts()[0].quiet_ms, 0);
    }

    #[test]
    fn many_who_look_count_the_time_once() {
        let mut dog = dog();
        for now in 0..4_900 {
            let _ = dog.look(&[0, 0], now);
            assert_eq!(dog.look(&[0, 0], now.saturating_sub(3)), [], "one that is late");
        }
        assert_eq!(dog.parts()[0].quiet_ms, 4_899);
    }
}
