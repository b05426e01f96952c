//! What a [`Rule`] does to one packet. Both grounds throw the same dice.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::ground::Rule;

/// By how much a packet is held back that later ones overtake, beyond its delay.
const HELD_BACK_MS: std::ops::Range<u64> = 5..40;

/// The way of one copy of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// How long it takes, beyond what the ground takes by itself.
    pub delay: Duration,
    /// Later packets may overtake it. Of all others the order is kept.
    pub held_back: bool,
}

impl Rule {
    /// What becomes of a packet: none when it is lost, else one way for each copy.
    pub fn throw(&self, dice: &mut StdRng) -> Vec<Way> {
        if self.cut || (self.loss > 0.0 && dice.random_bool(self.loss.min(1.0))) {
            return Vec::new();
        }
        let copies = if self.duplicate > 0.0 && dice.random_bool(self.duplicate.min(1.0)) { 2 } else { 1 };
        (0..copies).map(|_| self.way(dice)).collect()
    }

    fn way(&self, dice: &mut StdRng) -> Way {
        let held_back = self.reorder > 0.0 && dice.random_bool(self.reorder.min(1.0));
        let mut delay = between(&self.delay, dice);
        if held_back {
            delay += Duration::from_millis(dice.random_range(HELD_BACK_MS));
        }
        Way { delay, held_back }
    }
}

/// A time in a range, in whole milliseconds; its start when it is empty.
pub(crate) fn between(range: &std::ops::Range<Duration>, dice: &mut StdRng) -> Duration {
    let (start, end) = (range.start.as_millis() as u64, range.end.as_millis() as u64);
    if start >= end { range.start } else { Duration::from_millis(dice.random_range(start..end)) }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn each_rule_does_what_it_says() {
        let mut dice = StdRng::seed_from_u64(1);
        let mut copies = |rule: &Rule| (0..1000).map(|_| rule.throw(&mut dice)).collect::<Vec<_>>();
        assert!(copies(&Rule::cut()).iter().all(Vec::is_empty));
        let usual = Way { delay: Duration::ZERO, held_back: false };
        assert!(copies(&Rule::clear()).iter().all(|ways| *ways == [usual]));
        let lost = copies(&Rule { loss: 0.3, ..Rule::clear() }).iter().filter(|ways| ways.is_empty()).count();
        assert!((200..400).contains(&lost), "{lost}");
        let twice = copies(&Rule { duplicate: 0.5, ..Rule::clear() });
        assert!(twice.iter().any(|ways| ways.len() == 2) && twice.iter().any(|ways| ways.len() == 1));
        let held = copies(&Rule { reorder: 0.5, ..Rule::clear() });
        let held = held.iter().flatten().filter(|way| way.held_back && way.delay > Duration::ZERO).count();
        assert!((350..650).contains(&held), "{held}");
        let slow = Rule { delay: Duration::from_millis(10)..Duration::from_millis(20), ..Rule::clear() };
        assert!(copies(&slow).iter().flatten().all(|way| slow.delay.contains(&way.delay)));
    }
}
