//! What the bench `peers` does with its numbers: medians, ratios, the JSON file and the tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

/// The systems, in the order of the tables.
pub const SYSTEMS: [&str; 8] =
    ["roomcast", "quinn", "tcp", "redis", "nats", "zenoh-tcp", "zenoh-quic", "socketioxide-redis"];

/// Values of all rounds, by metric, size and system.
#[derive(Default)]
pub struct Results(BTreeMap<(String, u64, String), Vec<f64>>);

impl Results {
    /// Takes a line of a worker: `{"metric", "payload_bytes", "value"}`. Other lines are nothing.
    pub fn take(&mut self, system: &str, line: &str) {
        let Ok(line) = serde_json::from_str::<Value>(line) else { return };
        let (metric, payload, value) =
            (line["metric"].as_str(), line["payload_bytes"].as_u64(), line["value"].as_f64());
        if let (Some(metric), Some(payload), Some(value)) = (metric, payload, value) {
            self.0.entry((metric.to_owned(), payload, system.to_owned())).or_default().push(value);
        }
    }

    /// The median over the rounds.
    pub fn median(&self, system: &str, metric: &str, payload: u64) -> Option<f64> {
        self.0.get(&(metric.to_owned(), payload, system.to_owned())).map(|values| median(values))
    }

    /// By how much one system's median is larger than that of another.
    pub fn ratio(&self, system: &str, other: &str, metric: &str, payload: u64) -> Option<f64> {
        Some(self.median(system, metric, payload)? / self.median(other, metric, payload)?)
    }

    /// An array of `{system, metric, payload_bytes, median}`.
    pub fn json(&self) -> Value {
        let row = |((metric, payload, system), values): (&(String, u64, String), &Vec<f64>)| json!({ "system": system, "metric": metric, "payload_bytes": payload, "median": median(values) });
        self.0.iter().map(row).collect()
    }

    /// Markdown: a row for each metric and size, a column for each system, and in brackets what roomcast has of it.
    pub fn table(&self) -> String {
        let present = |system: &&str| self.0.keys().any(|(_, _, of)| of == system);
        let systems: Vec<&str> = SYSTEMS.into_iter().filter(present).collect();
        let mut text = format!("| measure | bytes | {} |\n", systems.join(" | "));
        let _ = writeln!(text, "|---|---:|{}", "---:|".repeat(systems.len()));
        let mut rows: Vec<(&str, u64)> = self.0.keys().map(|(metric, size, _)| (&**metric, *size)).collect();
        rows.dedup();
        for (metric, payload) in rows {
            let _ = write!(text, "| {metric} | {payload} |");
            for system in &systems {
                let cell = self.median(system, metric, payload).map(short).unwrap_or_default();
                let _ = match self.ratio("roomcast", system, metric, payload) {
                    Some(ratio) if *system != "roomcast" => write!(text, " {cell} ({ratio:.2}) |"),
                    _ => write!(text, " {cell} |"),
                };
            }
            text.push('\n');
        }
        text
    }
}

/// The value in the middle, or the mean of the two there; NaN when there is none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

/// Three digits or a little more, with a letter for thousands and millions.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut results = Results::default();
        for (system, value) in
            [("roomcast", 30.0), ("roomcast", 10.0), ("roomcast", 20.0), ("redis", 5.0), ("redis", 3.0)]
        {
            results.take(system, &json!({ "metric": "m", "payload_bytes": 256, "value": value }).to_string());
        }
        results
    }

    #[test]
    fn medians_and_ratios() {
        let results = results();
        assert_eq!(results.median("roomcast", "m", 256), Some(20.0));
        assert_eq!(results.ratio("roomcast", "redis", "m", 256), Some(5.0));
        assert_eq!(results.ratio("roomcast", "nats", "m", 256), None);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_file_reads_back_as_rows() {
        let rows: Vec<Value> = serde_json::from_str(&results().json().to_string()).unwrap();
        let expected = [
            json!({ "system": "redis", "metric": "m", "payload_bytes": 256, "median": 4.0 }),
            json!({ "system": "roomcast", "metric": "m", "payload_bytes": 256, "median": 20.0 }),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn the_table_names_those_that_were_measured() {
        let expected = "| measure | bytes | roomcast | redis |\n|---|---:|---:|---:|\n| m | 256 | 20.00 | 4.00 (5.00) |\n";
        assert_eq!(results().table(), expected);
    }

    #[test]
    fn lines_that_are_no_result_are_nothing() {
        let mut results = Results::default();
        ["", "hello", "{}", r#"{"metric":"m","payload_bytes":1,"value":null}"#]
            .into_iter()
            .for_each(|line| results.take("tcp", line));
        assert_eq!(results.json(), json!([]));
    }
}
