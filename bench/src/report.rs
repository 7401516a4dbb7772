//! The figures as tables people read, and as JSON.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::metric::{Metric, SIZES, Size};
use crate::outcome::{ENOUGH, Figure, Outcome};
use crate::placement::Place;
use crate::row::Row;

/// The whole report as text.
pub fn text(machine: &Machine, rows: &[Box<dyn Row>], outcome: &Outcome) -> String {
    let mut out = format!("{machine}\n\n");
    let thrown: usize = outcome.thrown_away.values().sum();
    let _ = writeln!(
        out,
        "{} rounds in {:.0} s; medians, × is the ratio to the baseline in the same round (median over rounds). Near and far: \
         how far apart\nthe host had the two cores; a row during which they moved was thrown away ({thrown} times).",
        outcome.rounds, outcome.seconds
    );
    for place in Place::ALL {
        section(&mut out, rows, outcome, place);
    }
    single(&mut out, rows, outcome, None);
    out.push('\n');
    verdicts(&mut out, outcome);
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

/// Everything that was measured in one place.
fn section(out: &mut String, rows: &[Box<dyn Row>], outcome: &Outcome, place: Place) {
    let taken = outcome.figures.iter().flat_map(|figure| &figure.taken).filter(|taken| taken.place == Some(place));
    let lines = taken.flat_map(|taken| taken.line_ns);
    let (least, most) = lines.fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), ns| (a.min(ns), b.max(ns)));
    let name = place.name().to_uppercase();
    if least > most {
        let _ = writeln!(out, "\n━━ {name}: the cores were never so");
        return;
    }
    let _ = writeln!(out, "\n━━ {name}: a bounced cache line takes {least:.0} to {most:.0} ns\n");
    let trips: Vec<Metric> = SIZES.iter().map(|&size| Metric::Rtt { size }).collect();
    let names = SIZES.map(|size| Size(size).to_string());
    table(out, "Round trip, p50 in µs", rows, outcome, &trips, &names, place);
    let tails: Vec<Metric> = SIZES.iter().map(|&size| Metric::RttP99 { size }).collect();
    table(out, "Round trip, p99 in µs", rows, outcome, &tails, &names, place);
    let rates = [(64, false), (64, true), (1 << 20, false)].map(|(size, batched)| Metric::Rate { size, batched });
    let names = ["64 B", "64 B, batched", "1 MiB"].map(str::to_owned);
    table(out, "One way", rows, outcome, &rates, &names, place);
    single(out, rows, outcome, Some(place));
}

fn table(
    out: &mut String,
    title: &str,
    rows: &[Box<dyn Row>],
    outcome: &Outcome,
    metrics: &[Metric],
    names: &[String],
    place: Place,
) {
    let place = Some(place);
    let lines: Vec<(String, Vec<String>)> = rows
        .iter()
        .filter_map(|row| {
            let figures: Vec<_> = metrics.iter().map(|&m| outcome.figure(row.name(), m)).collect();
            let rounds = figures.iter().flatten().filter_map(|f| f.summary(place)).map(|s| s.rounds).max()?;
            let cells = figures.into_iter().map(|figure| cell(figure, place)).chain([rounds.to_string()]);
            Some((row.title(), cells.collect()))
        })
        .collect();
    if lines.is_empty() {
        return;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["rounds"]).collect();
    let first = width(lines.iter().map(|(title, _)| title.as_str()).chain([title]));
    let widths: Vec<usize> = names
        .iter()
        .enumerate()
        .map(|(at, name)| width(lines.iter().map(|(_, cells)| cells[at].as_str()).chain([*name])))
        .collect();
    let mut line = |head: &str, cells: &[&str]| {
        let _ = write!(out, "{}", pad(head, first));
        for (cell, &width) in cells.iter().zip(&widths) {
            let _ = write!(out, " │ {}", pad(cell, width));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    };
    line(title, &names);
    let rule: Vec<String> = widths.iter().map(|&w| "─".repeat(w)).collect();
    line(&"─".repeat(first), &rule.iter().map(String::as_str).collect::<Vec<_>>());
    for (title, cells) in &lines {
        line(title, &cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    out.push('\n');
}

/// What has no place in the tables, a line each.
fn single(out: &mut String, rows: &[Box<dyn Row>], outcome: &Outcome, place: Option<Place>) {
    let lines: Vec<(String, String)> = outcome
        .figures
        .iter()
        .filter(|f| !matches!(f.metric, Metric::Rtt { .. } | Metric::RttP99 { .. } | Metric::Rate { .. }))
        .filter_map(|figure| {
            let rounds = figure.summary(place)?.rounds;
            let title = rows.iter().find(|row| row.name() == figure.row).map(|row| row.title());
            let head = format!("{}: {}", title.unwrap_or_default(), figure.metric);
            Some((head, format!("{} ({rounds})", cell(Some(figure), place))))
        })
        .collect();
    let first = width(lines.iter().map(|(head, _)| head.as_str()));
    for (head, cell) in &lines {
        let _ = writeln!(out, "{} │ {cell}", pad(head, first));
    }
}

fn verdicts(out: &mut String, outcome: &Outcome) {
    if outcome.verdicts.is_empty() {
        let _ = writeln!(out, "no goal was judged: that takes {ENOUGH} rounds in one place");
    }
    for verdict in &outcome.verdicts {
        let found = if verdict.bound.starts_with("under") {
            verdict.metric.format(verdict.found)
        } else {
            format!("{:.2}", verdict.found)
        };
        let _ = writeln!(
            out,
            "{} {:4} {}: {} is to be {}, found {found} ({} rounds)",
            if verdict.met { "met   " } else { "MISSED" },
            verdict.place.map_or("", Place::name),
            verdict.row,
            verdict.metric,
            verdict.bound,
            verdict.rounds,
        );
    }
}

fn cell(figure: Option<&Figure>, place: Option<Place>) -> String {
    let Some((figure, summary)) = figure.and_then(|figure| Some((figure, figure.summary(place)?))) else {
        return "–".to_owned();
    };
    let median = figure.metric.format(summary.median);
    match summary.ratio {
        Some(ratio) => format!("{median}  {:.2}×", ratio.value),
        None => median,
    }
}

fn width<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0)
}

fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}
