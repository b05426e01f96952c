//! Quantiles, and the CPU time of processes.

use crate::Outcome;

/// The value at this share of the sorted values; NaN when there is none.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// How long each took, in microseconds, sorted: from when it was due, not from when it was sent. `arrived` is in
/// nanoseconds from when the first one was due. A sender that is held up makes those behind it late, which counts.
pub(crate) fn from_due(arrived: &[u64], interval_ns: u64) -> Vec<f64> {
    let late = |(number, at): (usize, &u64)| at.saturating_sub(number as u64 * interval_ns) as f64 / 1e3;
    let mut took: Vec<f64> = arrived.iter().enumerate().map(late).collect();
    took.sort_by(f64::total_cmp);
    took
}

/// User and system time of a process until now, in microseconds; the system counts in steps of 10 ms.
pub(crate) fn cpu_us(process: u32) -> Outcome<f64> {
    cpu_of(&std::fs::read_to_string(format!("/proc/{process}/stat"))?)
        .ok_or_else(|| "read the CPU time".into())
}

fn cpu_of(stat: &str) -> Option<f64> {
    // The name of the program is in brackets, and may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) * 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_behind_a_slow_one_is_late_too() {
        // Due each microsecond. The third is held up until the ninth is due, and so are those behind it.
        let arrived = [100, 1_100, 9_000, 9_000, 9_000, 9_000];
        assert_eq!(from_due(&arrived, 1_000), [0.1, 0.1, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(
            [quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)],
            [50.0, 99.0, 100.0]
        );
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn cpu_time_is_user_and_system() {
        let stat = "7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        assert_eq!(cpu_of(stat), Some(3_000_000.0));
    }
}
