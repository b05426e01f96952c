//! Memory over time as a picture and as a slope.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::memory::Sample;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;
/// Colours that can be told apart on white and on black.
const COLOURS: [&str; 5] = ["#2f7ed8", "#d9662b", "#2aa876", "#9a9a9a", "#b07ad0"];

/// How the memory of a node went on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Growth {
    /// The node.
    pub node: usize,
    /// What it had allocated and not freed.
    pub in_use: Slope,
    /// RssAnon.
    pub anonymous: Slope,
    /// How long it was looked at.
    pub over: Duration,
}

/// How one kind of memory went on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slope {
    /// At the end of the warm-up, and at the end.
    pub first_kib: u64,
    pub last_kib: u64,
    /// By how many KiB a minute it grew: the line with the least squares.
    pub slope: f64,
}

impl fmt::Display for Slope {
    /// As columns of a table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_kib, last_kib, slope } = self;
        write!(f, "{first_kib} KiB | {last_kib} KiB | {slope:+.1}")
    }
}

impl fmt::Display for Growth {
    /// As a line of a table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, in_use, anonymous, .. } = self;
        write!(f, "| n{node} | {in_use} | {anonymous} |")
    }
}

/// The samples of each node.
pub(crate) struct Graph {
    nodes: Vec<Vec<Sample>>,
}

impl Graph {
    /// From all samples, in the order of time.
    pub(crate) fn of(samples: &[Sample], nodes: usize) -> Self {
        let of = |node| samples.iter().filter(|sample| sample.node == node).copied().collect();
        Self { nodes: (0..nodes).map(of).collect() }
    }

    /// What each node has grown by after the warm-up; without those that were not looked at since.
    pub(crate) fn growth(&self, warm_up: Duration) -> Vec<Growth> {
        let growth = self.nodes.iter().enumerate().filter_map(|(node, samples)| {
            let warm: Vec<Sample> = samples.iter().filter(|sample| sample.at >= warm_up).copied().collect();
            let (first, last) = (warm.first()?, warm.last()?);
            Some(Growth {
                node,
                in_use: slope(&warm, in_use)?,
                anonymous: slope(&warm, anonymous)?,
                over: last.at - first.at,
            })
        });
        growth.collect()
    }

    /// The picture, readable on light and on dark ground. The first `steady` nodes are those that live all the time.
    pub(crate) fn svg(&self, title: &str, steady: usize) -> String {
        let all = || self.nodes.iter().flatten();
        let minutes = all().map(|sample| minutes(sample.at)).fold(1.0, f64::max);
        let highest = all().map(|sample| mib(sample.anonymous_kib)).fold(1.0, f64::max).ceil();
        let x = |at: f64| LEFT + at / minutes * (WIDTH - LEFT - RIGHT);
        let y = |size: f64| HEIGHT - BOTTOM - size / highest * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\">\n<style>text{{font:12px sans-serif;fill:#333}}.grid{{stroke:#8886}}\
             @media(prefers-color-scheme:dark){{text{{fill:#ccc}}}}</style>\n\
             <text x=\"{LEFT}\" y=\"16\">{title}</text>\n"
        );
        for part in 0..=5 {
            let (size, at) = (highest * f64::from(part) / 5.0, minutes * f64::from(part) / 5.0);
            let (level, place) = (y(size), x(at));
            let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {level:.1}H{right}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{size:.1} MiB</text>\
                 <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.0} min</text>",
                LEFT - 6.0,
                level + 4.0,
                bottom + 18.0
            );
        }
        for (node, samples) in self.nodes.iter().enumerate() {
            let colour = COLOURS[node % COLOURS.len()];
            // A line for each run.
            for run in samples.chunk_by(|one, next| one.process == next.process) {
                for (size, dashes) in [(anonymous as Size, "none"), (in_use, "2 3")] {
                    let points =
                        run.iter().filter_map(|sample| Some((x(minutes_of(sample)), y(mib(size(sample)?)))));
                    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                    let points = points.join(" ");
                    let _ = writeln!(
                        svg,
                        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-linecap=\"round\" \
                         stroke-dasharray=\"{dashes}\" points=\"{points}\"/>"
                    );
                }
            }
            let label = if node < steady { "" } else { ", restarted" };
            let place = LEFT + 130.0 * node as f64;
            let _ = writeln!(
                svg,
                "<text x=\"{place}\" y=\"{:.1}\" style=\"fill:{colour}\">n{node}{label}</text>",
                HEIGHT - 6.0
            );
        }
        svg + "</svg>\n"
    }
}

fn minutes_of(sample: &Sample) -> f64 {
    minutes(sample.at)
}

fn minutes(time: Duration) -> f64 {
    time.as_secs_f64() / 60.0
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// One kind of memory of a sample.
type Size = fn(&Sample) -> Option<u64>;

fn anonymous(sample: &Sample) -> Option<u64> {
    Some(sample.anonymous_kib)
}

fn in_use(sample: &Sample) -> Option<u64> {
    sample.in_use_kib
}

/// How a kind of memory went on. None when no sample has it.
fn slope(samples: &[Sample], size: Size) -> Option<Slope> {
    let points = samples.iter().filter_map(|sample| Some((minutes_of(sample), size(sample)?)));
    let points: Vec<(f64, u64)> = points.collect();
    let count = points.len() as f64;
    let middle_x = points.iter().map(|(at, _)| at).sum::<f64>() / count;
    let middle_y = points.iter().map(|(_, kib)| *kib as f64).sum::<f64>() / count;
    let (mut above, mut below) = (0.0, 0.0);
    for (at, kib) in &points {
        let x = at - middle_x;
        above += x * (*kib as f64 - middle_y);
        below += x * x;
    }
    let slope = if below > 0.0 { above / below } else { 0.0 };
    Some(Slope { first_kib: points.first()?.1, last_kib: points.last()?.1, slope })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(process: u32, sizes: &[u64]) -> Vec<Sample> {
        let sample = |(minute, size): (usize, &u64)| Sample {
            at: Duration::from_secs(60 * minute as u64),
            node: 0,
            process,
            resident_kib: 0,
            anonymous_kib: *size,
            in_use_kib: (minute > 0).then_some(size / 2),
        };
        sizes.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn the_slope_is_that_of_the_line() {
        let slope_of = |sizes: &[u64]| slope(&samples(1, sizes), anonymous).unwrap().slope;
        assert!((slope_of(&[100, 110, 120, 130]) - 10.0).abs() < 1e-9);
        assert!(slope_of(&[100, 120, 120, 100]).abs() < 1e-9);
        assert_eq!(slope_of(&[100]), 0.0);
        assert_eq!(slope(&samples(1, &[100]), in_use), None, "it has not said so yet");
        let in_use = slope(&samples(1, &[100, 110, 120, 130]), in_use).unwrap();
        assert!(in_use.first_kib == 55 && (in_use.slope - 5.0).abs() < 1e-9);
    }

    #[test]
    fn the_picture_has_two_lines_for_each_run() {
        let two: Vec<Sample> = [samples(1, &[1, 2]), samples(2, &[1, 2])].concat();
        let graph = Graph::of(&two, 1);
        assert_eq!(graph.svg("memory", 1).matches("<polyline").count(), 4);
    }

    #[test]
    fn what_was_before_the_end_of_the_warm_up_does_not_count() {
        let graph = Graph::of(&samples(1, &[100, 900, 1000, 1010, 1020]), 2);
        let [growth] = graph.growth(Duration::from_secs(120))[..] else { panic!("one node was looked at") };
        assert_eq!((growth.node, growth.over), (0, Duration::from_secs(120)));
        assert_eq!(growth.to_string(), "| n0 | 500 KiB | 510 KiB | +5.0 | 1000 KiB | 1020 KiB | +10.0 |");
        assert!(graph.growth(Duration::from_secs(600)).is_empty());
    }
}
