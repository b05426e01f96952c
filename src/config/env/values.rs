//! The forms of values in environment variables: strict, so that a slip is an error and not another value.

use std::time::Duration;

use crate::config::QueuePolicy;

/// The longest time: longer ones do not fit the clocks of every system.
const MAX_TIME_MS: u64 = 3650 * DAY_MS;
const DAY_MS: u64 = 86_400_000;
/// Units of time with their milliseconds, the largest first.
const TIMES: [(&str, u64); 5] = [("d", DAY_MS), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// Units of size with their bytes, the largest first.
const SIZES: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A form of values for fields of type `T`.
pub(super) trait Value<T> {
    /// Reads a value.
    fn parse(text: &str) -> Result<T, String>;
    /// Writes a value, so that [`parse`](Self::parse) reads it.
    fn show(value: &T) -> String;
}

/// Bytes.
pub(super) struct Size;
/// How many.
pub(super) struct Count;
/// A time.
pub(super) struct Time;
/// A time, kept as milliseconds.
pub(super) struct Millis;
/// A time, or none.
pub(super) struct MaybeTime;
/// Yes or no.
pub(super) struct Flag;
/// A part of the whole.
pub(super) struct Ratio;
/// A number above 0.
pub(super) struct Factor;
/// What happens at the limit of a queue.
pub(super) struct Policy;

impl Size {
    pub(super) const FORM: &'static str = "bytes, for example 65536, 512KiB, 64MiB or 1GiB";
}
impl Count {
    pub(super) const FORM: &'static str = "a whole number";
}
impl Time {
    pub(super) const FORM: &'static str =
        "a time, for example 250ms, 15s, 5m, 24h or 1d (a number alone is milliseconds)";
}
impl Millis {
    #[cfg(test)]
    pub(super) const FORM: &'static str = Time::FORM;
}
impl MaybeTime {
    pub(super) const FORM: &'static str = "none, or a time, for example 250ms, 15s or 5m";
}
impl Flag {
    pub(super) const FORM: &'static str = "true or false";
}
impl Ratio {
    pub(super) const FORM: &'static str = "a number from 0 to 1, for example 0.2";
}
impl Factor {
    pub(super) const FORM: &'static str = "a number above 0, for example 16";
}
impl Policy {
    pub(super) const FORM: &'static str =
        "drop_newest, drop_oldest, or wait: with a time, for example wait:500ms";
}

impl<T: TryFrom<u64> + Copy + TryInto<u64>> Value<T> for Size {
    fn parse(text: &str) -> Result<T, String> {
        let unit = SIZES.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
        let (digits, unit) = unit.unwrap_or((text, 1));
        fitting(digits, unit, Self::FORM)
    }

    fn show(value: &T) -> String {
        let bytes = number(*value);
        let unit = SIZES.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
        unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
    }
}

impl<T: TryFrom<u64> + Copy + TryInto<u64>> Value<T> for Count {
    fn parse(text: &str) -> Result<T, String> {
        fitting(text, 1, Self::FORM)
    }

    fn show(value: &T) -> String {
        number(*value).to_string()
    }
}

impl Value<u64> for Millis {
    fn parse(text: &str) -> Result<u64, String> {
        millis(text, Time::FORM)
    }

    fn show(value: &u64) -> String {
        let unit = TIMES.iter().find(|(_, unit)| *value >= *unit && value.is_multiple_of(*unit));
        unit.map_or_else(|| format!("{value}ms"), |(name, unit)| format!("{}{name}", value / unit))
    }
}

impl Value<Duration> for Time {
    fn parse(text: &str) -> Result<Duration, String> {
        millis(text, Self::FORM).map(Duration::from_millis)
    }

    fn show(value: &Duration) -> String {
        Millis::show(&u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Value<Option<Duration>> for MaybeTime {
    fn parse(text: &str) -> Result<Option<Duration>, String> {
        match text {
            "none" => Ok(None),
            text => millis(text, Self::FORM).map(|ms| Some(Duration::from_millis(ms))),
        }
    }

    fn show(value: &Option<Duration>) -> String {
        value.as_ref().map_or_else(|| "none".to_owned(), Time::show)
    }
}

impl Value<bool> for Flag {
    fn parse(text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| give(Self::FORM))
    }

    fn show(value: &bool) -> String {
        value.to_string()
    }
}

impl Value<f64> for Ratio {
    fn parse(text: &str) -> Result<f64, String> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or_else(|| give(Self::FORM))
    }

    fn show(value: &f64) -> String {
        value.to_string()
    }
}

impl Value<f64> for Factor {
    fn parse(text: &str) -> Result<f64, String> {
        let factor = text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor > 0.0);
        factor.ok_or_else(|| give(Self::FORM))
    }

    fn show(value: &f64) -> String {
        value.to_string()
    }
}

impl Value<QueuePolicy> for Policy {
    fn parse(text: &str) -> Result<QueuePolicy, String> {
        match (text, text.strip_prefix("wait:")) {
            ("drop_newest", _) => Ok(QueuePolicy::DropNewest),
            ("drop_oldest", _) => Ok(QueuePolicy::DropOldest),
            (_, Some(time)) => {
                let deadline = Duration::from_millis(millis(time, Self::FORM)?);
                Ok(QueuePolicy::Wait { deadline })
            }
            _ => Err(give(Self::FORM)),
        }
    }

    fn show(value: &QueuePolicy) -> String {
        match value {
            QueuePolicy::DropNewest => "drop_newest".to_owned(),
            QueuePolicy::DropOldest => "drop_oldest".to_owned(),
            QueuePolicy::Wait { deadline } => format!("wait:{}", Time::show(deadline)),
        }
    }
}

fn millis(text: &str, form: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        unit => TIMES.iter().find(|(name, _)| *name == unit).ok_or_else(|| give(form))?.1,
    };
    let ms: u64 = fitting(digits, unit, form)?;
    if ms > MAX_TIME_MS {
        return Err(format!("it may be at most {}; {}", Millis::show(&MAX_TIME_MS), give(form)));
    }
    Ok(ms)
}

/// Digits only: no sign, no separators.
fn fitting<T: TryFrom<u64>>(digits: &str, unit: u64, form: &str) -> Result<T, String> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(give(form));
    }
    let value = digits.parse::<u64>().ok().and_then(|value| value.checked_mul(unit));
    let value = value.and_then(|value| T::try_from(value).ok());
    value.ok_or_else(|| format!("it is too large; {}", give(form)))
}

fn number<T: TryInto<u64>>(value: T) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

fn give(form: &str) -> String {
    format!("give {form}")
}
