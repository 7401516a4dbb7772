//! The figures as tables people read, and as JSON.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::harness::{Figure, Outcome};
use crate::machine::Machine;
use crate::metric::{Metric, SIZES, Size};
use crate::row::Row;

/// The whole report as text.
pub fn text(machine: &Machine, rows: &[Box<dyn Row>], rounds: usize, outcome: &Outcome) -> String {
    let mut out = format!("{machine}\n\n");
    let _ = writeln!(out, "best / median of {rounds} rounds; × is the ratio to the baseline, median over rounds\n");
    let trips: Vec<Metric> = SIZES.iter().map(|&size| Metric::Rtt { size }).collect();
    let names = SIZES.map(|size| Size(size).to_string());
    table(&mut out, "Round trip, p50 in µs", rows, outcome, &trips, &names);
    let tails: Vec<Metric> = SIZES.iter().map(|&size| Metric::RttP99 { size }).collect();
    table(&mut out, "Round trip, p99 in µs", rows, outcome, &tails, &names);
    let rates = [(64, false), (64, true), (1 << 20, false)].map(|(size, batched)| Metric::Rate { size, batched });
    let names = ["64 B", "64 B, batched", "1 MiB"].map(str::to_owned);
    table(&mut out, "One way", rows, outcome, &rates, &names);
    others(&mut out, rows, outcome);
    verdicts(&mut out, outcome);
    steadiness(&mut out, outcome);
    let _ = writeln!(out, "took {:.0} s", outcome.seconds);
    out
}

/// The whole report as JSON, into a file.
pub fn json(path: &Path, machine: &Machine, outcome: &Outcome) -> Result<()> {
    #[derive(Serialize)]
    struct Report<'a> {
        machine: &'a Machine,
        #[serde(flatten)]
        outcome: &'a Outcome,
    }
    let report = serde_json::to_string_pretty(&Report { machine, outcome })?;
    std::fs::write(path, report).with_context(|| format!("writing {}", path.display()))
}

fn table(
    out: &mut String,
    title: &str,
    rows: &[Box<dyn Row>],
    outcome: &Outcome,
    metrics: &[Metric],
    names: &[String],
) {
    let lines: Vec<(String, Vec<String>)> = rows
        .iter()
        .filter_map(|row| {
            let figures: Vec<_> = metrics.iter().map(|&m| outcome.figure(row.name(), m)).collect();
            let any = figures.iter().any(Option::is_some);
            any.then(|| (row.title(), figures.into_iter().map(cell).collect()))
        })
        .collect();
    if lines.is_empty() {
        return;
    }
    let first = width(lines.iter().map(|(title, _)| title.as_str()).chain([title]));
    let widths: Vec<usize> = names
        .iter()
        .enumerate()
        .map(|(at, name)| width(lines.iter().map(|(_, cells)| cells[at].as_str()).chain([name.as_str()])))
        .collect();
    let mut line = |head: &str, cells: &[String]| {
        let _ = write!(out, "{}", pad(head, first));
        for (cell, &width) in cells.iter().zip(&widths) {
            let _ = write!(out, " │ {}", pad(cell, width));
        }
        out.push('\n');
    };
    line(title, names);
    line(&"─".repeat(first), &widths.iter().map(|&w| "─".repeat(w)).collect::<Vec<_>>());
    for (title, cells) in &lines {
        line(title, cells);
    }
    out.push('\n');
}

fn others(out: &mut String, rows: &[Box<dyn Row>], outcome: &Outcome) {
    let lines: Vec<(String, String)> = outcome
        .figures
        .iter()
        .filter(|f| !matches!(f.metric, Metric::Rtt { .. } | Metric::RttP99 { .. } | Metric::Rate { .. }))
        .map(|figure| {
            let title = rows.iter().find(|row| row.name() == figure.row).map(|row| row.title());
            let head = format!("{}: {}", title.unwrap_or_default(), figure.metric);
            (head, cell(Some(figure)))
        })
        .collect();
    let first = width(lines.iter().map(|(head, _)| head.as_str()));
    for (head, cell) in &lines {
        let _ = writeln!(out, "{} │ {cell}", pad(head, first));
    }
    if !lines.is_empty() {
        out.push('\n');
    }
}

fn verdicts(out: &mut String, outcome: &Outcome) {
    for verdict in &outcome.verdicts {
        let found = if verdict.bound.starts_with("under") {
            verdict.metric.format(verdict.found)
        } else {
            format!("{:.2}", verdict.found)
        };
        let _ = writeln!(
            out,
            "{} {}: {} is to be {}, found {found}",
            if verdict.met { "met   " } else { "MISSED" },
            verdict.row,
            verdict.metric,
            verdict.bound,
        );
    }
    if !outcome.verdicts.is_empty() {
        out.push('\n');
    }
}

/// A virtual machine's cores may move about (siblings of one core, one cache, two caches), which
/// changes every absolute figure; ratios within a round stand.
fn steadiness(out: &mut String, outcome: &Outcome) {
    let floor = outcome.figure("cache-line", Metric::Rtt { size: 64 });
    let rounds = floor.map_or(&[][..], |figure| &figure.rounds);
    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rounds.iter().copied().fold(0.0, f64::max);
    if most > 1.5 * least {
        let _ = writeln!(
            out,
            "note: the bounced cache line took {least:.0} to {most:.0} ns from round to round: the host moved the \
             cores or something else ran; compare ratios, not absolute values, and least of all the best ones\n"
        );
    }
}

fn cell(figure: Option<&Figure>) -> String {
    let Some(figure) = figure else {
        return "–".to_owned();
    };
    let (best, median) = (figure.metric.format(figure.best), figure.metric.format(figure.median));
    // The unit once is enough.
    let best = best.split(' ').next().unwrap_or_default();
    match figure.ratio {
        Some(ratio) => format!("{best} / {median}  {ratio:.2}×"),
        None => format!("{best} / {median}"),
    }
}

fn width<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0)
}

fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}
