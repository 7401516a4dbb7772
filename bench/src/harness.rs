//! Rounds, interleaved over all rows, and what they add up to.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::machine::{self, Cores};
use crate::metric::Metric;
use crate::peer::Peer;
use crate::row::{Bound, Plan, Row, Target};
use crate::watchdog;

/// One metric of one row over all rounds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The row's name.
    pub row: &'static str,
    /// What was measured.
    pub metric: Metric,
    /// One value a round.
    pub rounds: Vec<f64>,
    /// The best round.
    pub best: f64,
    /// The median round.
    pub median: f64,
    /// Median over rounds of value divided by the baseline's value in the same round.
    pub ratio: Option<f64>,
}

/// How a target turned out.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The row's name.
    pub row: &'static str,
    /// What was bounded.
    pub metric: Metric,
    /// The bound in words.
    pub bound: String,
    /// What was found: a ratio, or a value in the metric's unit.
    pub found: f64,
    /// Whether the bound was kept.
    pub met: bool,
    /// Whether missing it fails the run.
    pub fatal: bool,
}

/// Everything that a run found.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Row by row, metric by metric.
    pub figures: Vec<Figure>,
    /// Target by target.
    pub verdicts: Vec<Verdict>,
    /// How long the run took; s.
    pub seconds: f64,
}

impl Outcome {
    /// One metric of one row.
    pub fn figure(&self, row: &str, metric: Metric) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.row == row && figure.metric == metric)
    }
}

/// Keeps the rows that `only` matches (part of a name), and the rows they are compared with.
pub fn select(rows: Vec<Box<dyn Row>>, only: &[String]) -> Result<Vec<Box<dyn Row>>> {
    if only.is_empty() {
        return Ok(rows);
    }
    let mut wanted: Vec<&str> = Vec::new();
    for pattern in only {
        let before = wanted.len();
        let matching = rows.iter().map(|row| row.name());
        wanted.extend(matching.filter(|name| name.contains(pattern.as_str())));
        ensure!(
            wanted.len() > before,
            "no row is called {pattern}; there are: {}",
            rows.iter().map(|row| row.name()).collect::<Vec<_>>().join(", ")
        );
    }
    let mut at = 0;
    while let Some(name) = wanted.get(at) {
        let row = rows.iter().find(|row| row.name() == *name);
        let companions: Vec<&str> = row.map(|row| compared_with(row.as_ref())).unwrap_or_default();
        for companion in companions {
            if !wanted.contains(&companion) {
                wanted.push(companion);
            }
        }
        at += 1;
    }
    let wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
    Ok(rows.into_iter().filter(|row| wanted.iter().any(|name| name == row.name())).collect())
}

/// Measures `rounds` times.
pub fn run(rows: &[Box<dyn Row>], rounds: usize, plan: Plan, cores: Cores) -> Result<Outcome> {
    let begun = Instant::now();
    machine::pin_to(cores.first)?;
    let mut figures: Vec<Figure> =
        rows.iter().flat_map(|row| row.metrics().into_iter().map(|metric| blank(row.name(), metric))).collect();
    for round in 1..=rounds {
        for row in rows {
            progress(&format!("round {round} of {rounds}: {}", row.name()));
            measure(row.as_ref(), plan, cores, &mut figures)
                .with_context(|| format!("row {}, round {round}", row.name()))?;
        }
    }
    progress("");
    for figure in &mut figures {
        ensure!(
            figure.rounds.len() == rounds,
            "row {} announced {:?} but yielded it {} times in {rounds} rounds",
            figure.row,
            figure.metric,
            figure.rounds.len()
        );
        figure.median = median(&figure.rounds);
        figure.best = best(&figure.rounds, figure.metric);
    }
    let mut outcome = Outcome { figures, ..Outcome::default() };
    let ratios: Vec<_> = outcome
        .figures
        .iter()
        .map(|figure| {
            let baseline = figure.metric.baseline().filter(|name| *name != figure.row)?;
            ratio(&outcome, figure, baseline)
        })
        .collect();
    for (figure, ratio) in outcome.figures.iter_mut().zip(ratios) {
        figure.ratio = ratio;
    }
    outcome.verdicts = rows
        .iter()
        .flat_map(|row| {
            let targets = row.targets().into_iter();
            targets.filter_map(|target| judge(&outcome, row.name(), target))
        })
        .collect();
    outcome.seconds = begun.elapsed().as_secs_f64();
    Ok(outcome)
}

fn measure(row: &dyn Row, plan: Plan, cores: Cores, figures: &mut [Figure]) -> Result<()> {
    let mut peer = Peer::start(row.name(), cores)?;
    let _watched = watchdog::watch(row.name(), peer.pid());
    for sample in row.measure(&mut peer.control, plan)? {
        let figure = figures
            .iter_mut()
            .find(|figure| figure.row == row.name() && figure.metric == sample.metric)
            .with_context(|| format!("{:?} is not among its metrics", sample.metric))?;
        figure.rounds.push(sample.value);
    }
    peer.finish()
}

fn compared_with(row: &dyn Row) -> Vec<&'static str> {
    let baselines = row.metrics().into_iter().filter_map(Metric::baseline);
    let bounds = row.targets().into_iter().filter_map(|t| t.bound.against());
    baselines.chain(bounds).collect()
}

fn judge(outcome: &Outcome, row: &'static str, target: Target) -> Option<Verdict> {
    let figure = outcome.figure(row, target.metric)?;
    let (bound, found, met) = match target.bound {
        Bound::AtMost(limit, against) => {
            let found = ratio(outcome, figure, against)?;
            (format!("at most {limit} × {against}"), found, found <= limit)
        }
        Bound::AtLeast(limit, against) => {
            let found = ratio(outcome, figure, against)?;
            (format!("at least {limit} × {against}"), found, found >= limit)
        }
        Bound::Under(limit) => {
            let words = format!("under {}", target.metric.format(limit));
            (words, figure.median, figure.median < limit)
        }
    };
    Some(Verdict { row, metric: target.metric, bound, found, met, fatal: target.fatal })
}

/// Median over rounds of the figure divided by the same of `against` in the same round.
fn ratio(outcome: &Outcome, figure: &Figure, against: &str) -> Option<f64> {
    let baseline =
        outcome.figure(against, figure.metric).or_else(|| outcome.figure(against, figure.metric.of_baseline()))?;
    let pairs = figure.rounds.iter().zip(&baseline.rounds);
    Some(median(&pairs.map(|(a, b)| a / b).collect::<Vec<_>>()))
}

fn blank(row: &'static str, metric: Metric) -> Figure {
    Figure { row, metric, rounds: Vec::new(), best: f64::NAN, median: f64::NAN, ratio: None }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

fn best(values: &[f64], metric: Metric) -> f64 {
    let better = if metric.is_rate() { f64::max } else { f64::min };
    values.iter().copied().fold(f64::NAN, better)
}

/// One line that overwrites itself on a terminal, nothing elsewhere.
fn progress(line: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K{line}").and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Metric = Metric::Rtt { size: 64 };

    fn figure(row: &'static str, metric: Metric, rounds: &[f64]) -> Figure {
        Figure { rounds: rounds.to_vec(), ..blank(row, metric) }
    }

    #[test]
    fn ratios_pair_what_was_measured_in_the_same_round() {
        let outcome = Outcome {
            figures: vec![
                figure("raw-ring", RTT, &[100.0, 200.0, 400.0]),
                figure("other", RTT, &[110.0, 220.0, 440.0]),
            ],
            ..Outcome::default()
        };
        let found = ratio(&outcome, &outcome.figures[1], "raw-ring");
        assert!((found.unwrap_or(0.0) - 1.1).abs() < 1e-9);
    }

    #[test]
    fn an_unfair_denominator_is_found_out() {
        let outcome = Outcome {
            figures: vec![figure("cache-line", RTT, &[100.0]), figure("raw-ring", RTT, &[251.0])],
            ..Outcome::default()
        };
        let target = Target { metric: RTT, bound: Bound::AtMost(2.5, "cache-line"), fatal: true };
        let verdict = judge(&outcome, "raw-ring", target);
        assert!(verdict.is_some_and(|verdict| !verdict.met && verdict.fatal));
    }

    #[test]
    fn a_batched_rate_is_compared_with_the_plain_one() {
        let rate = |batched| Metric::Rate { size: 64, batched };
        let outcome = Outcome {
            figures: vec![figure("raw-ring", rate(false), &[10.0]), figure("other", rate(true), &[20.0])],
            ..Outcome::default()
        };
        assert_eq!(ratio(&outcome, &outcome.figures[1], "raw-ring"), Some(2.0));
    }

    #[test]
    fn the_rows_that_a_row_is_compared_with_come_along() -> Result<()> {
        let rows = select(crate::rows::all(), &["unix-stream".to_owned()])?;
        let names: Vec<_> = rows.iter().map(|row| row.name()).collect();
        assert_eq!(names, ["cache-line", "raw-ring", "unix-stream"]);
        assert!(select(crate::rows::all(), &["nonsense".to_owned()]).is_err());
        Ok(())
    }
}
