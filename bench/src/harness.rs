//! Rounds, interleaved over all rows.
//!
//! The cores are rarely in one of the two [places](crate::placement). When a row ends in the one that there are fewer rounds
//! of, that is used: rounds of the judged rows alone are put in for as long as it lasts.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::machine::{self, Cores};
use crate::metric::Metric;
use crate::outcome::{Figure, Outcome, Taken};
use crate::peer::Peer;
use crate::placement::{Line, Place};
use crate::row::{Plan, Row};
use crate::watchdog;

/// When to end.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// After so many rounds.
    pub rounds: u32,
    /// Or once so much time has gone by; at least `FEWEST` rounds are measured.
    pub time: Duration,
}

/// Rounds that are measured whatever the time.
const FEWEST: u32 = 3;
/// Rounds of a place from which on it isn't hunted for.
const PLENTY: usize = 15;

/// Keeps the rows that `only` matches (a name, or part of some), and the rows they are compared with.
pub fn select(rows: Vec<Box<dyn Row>>, only: &[String]) -> Result<Vec<Box<dyn Row>>> {
    if only.is_empty() {
        return Ok(rows);
    }
    let mut wanted: Vec<&str> = Vec::new();
    for pattern in only {
        let before = wanted.len();
        let names = || rows.iter().map(|row| row.name());
        let is_whole = names().any(|name| name == pattern);
        wanted.extend(names().filter(|name| name == pattern || (!is_whole && name.contains(pattern.as_str()))));
        ensure!(
            wanted.len() > before,
            "no row is called {pattern}; there are: {}",
            rows.iter().map(|row| row.name()).collect::<Vec<_>>().join(", ")
        );
    }
    let wanted: Vec<String> = with_companions(&rows, wanted).into_iter().map(str::to_owned).collect();
    Ok(rows.into_iter().filter(|row| wanted.iter().any(|name| name == row.name())).collect())
}

/// These rows, those they are compared with, those that those are compared with …
fn with_companions<'a>(rows: &'a [Box<dyn Row>], mut wanted: Vec<&'a str>) -> Vec<&'a str> {
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
    wanted
}

/// Measures until it has been enough.
pub fn run(rows: &[Box<dyn Row>], length: Length, plan: Plan, cores: Cores) -> Result<Outcome> {
    let begun = Instant::now();
    machine::pin_to(cores.first)?;
    let judged =
        rows.iter().filter(|row| !row.targets().is_empty() && row.every() == 1).map(|row| row.name()).collect();
    let judged = with_companions(rows, judged);
    let metrics = rows.iter().flat_map(|row| row.metrics().into_iter().map(|metric| (row.name(), metric)));
    let figures = metrics.map(|(row, metric)| Figure::blank(row, metric)).collect();
    let mut run = Run {
        plan,
        cores,
        line: Line::start(cores.second)?,
        outcome: Outcome { figures, ..Outcome::default() },
        kept: [0; Place::ALL.len()],
        plenty: PLENTY * judged.len(),
    };
    let mut whole_rounds = 0;
    while whole_rounds < length.rounds && (whole_rounds < FEWEST || begun.elapsed() < length.time) {
        let round = run.next_round();
        for row in rows.iter().filter(|row| whole_rounds.is_multiple_of(row.every())) {
            progress(&format!("round {round}, {:.0} s: {}", begun.elapsed().as_secs_f64(), row.name()));
            let mut place = run.measure(row.as_ref(), round)?;
            while run.is_rare(place) && length.rounds > FEWEST && begun.elapsed() < length.time {
                let round = run.next_round();
                progress(&format!("round {round}, {:.0} s: rarer", begun.elapsed().as_secs_f64()));
                for row in rows.iter().filter(|row| judged.contains(&row.name())) {
                    let rare = place;
                    place = run.measure(row.as_ref(), round)?;
                    if place != rare {
                        break;
                    }
                }
            }
        }
        whole_rounds += 1;
    }
    progress("");
    let mut outcome = run.outcome;
    for figure in &outcome.figures {
        ensure!(!figure.taken.is_empty(), "row {} announced {:?} but did not yield it", figure.row, figure.metric);
    }
    outcome.conclude(rows);
    outcome.seconds = begun.elapsed().as_secs_f64();
    Ok(outcome)
}

struct Run {
    plan: Plan,
    cores: Cores,
    line: Line,
    outcome: Outcome,
    /// How often a row was kept in each place.
    kept: [usize; Place::ALL.len()],
    /// From so many on a place isn't hunted for.
    plenty: usize,
}

impl Run {
    fn next_round(&mut self) -> u32 {
        self.outcome.rounds += 1;
        self.outcome.rounds
    }

    /// Whether there is too little of that place, and less than of the other.
    fn is_rare(&self, place: Option<Place>) -> bool {
        let Some(place) = place else { return false };
        let (here, most) = (self.kept[place as usize], self.kept.into_iter().max().unwrap_or(0));
        here < most && here < self.plenty
    }

    /// Measures a row once; says where the cores were, if they stayed there.
    fn measure(&mut self, row: &dyn Row, round: u32) -> Result<Option<Place>> {
        self.measure_once(row, round).with_context(|| format!("row {}, round {round}", row.name()))
    }

    fn measure_once(&mut self, row: &dyn Row, round: u32) -> Result<Option<Place>> {
        let mut peer = Peer::start(row.name(), self.cores)?;
        let _watched = watchdog::watch(row.name(), peer.pid());
        let before = self.line.measure()?;
        let samples = row.measure(&mut peer.control, self.plan)?;
        let line_ns = [before, self.line.measure()?];
        peer.finish()?;
        let [before, after] = line_ns.map(Place::of);
        let place = (before == after).then_some(before);
        match place {
            Some(place) => self.kept[place as usize] += 1,
            None => *self.outcome.thrown_away.entry(row.name()).or_default() += 1,
        }
        for sample in samples {
            let figure = self
                .outcome
                .figures
                .iter_mut()
                .find(|figure| figure.row == row.name() && figure.metric == sample.metric)
                .with_context(|| format!("{:?} is not among its metrics", sample.metric))?;
            figure.taken.push(Taken { round, place, line_ns, value: sample.value });
        }
        Ok(place)
    }
}

fn compared_with(row: &dyn Row) -> Vec<&'static str> {
    let baselines = row.metrics().into_iter().filter_map(Metric::baseline);
    let bounds = row.targets().into_iter().filter_map(|t| t.bound.against());
    baselines.chain(bounds).collect()
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

    #[test]
    fn the_rows_that_a_row_is_compared_with_come_along() -> Result<()> {
        let rows = select(crate::rows::all(), &["unix-stream".to_owned()])?;
        let names: Vec<_> = rows.iter().map(|row| row.name()).collect();
        assert_eq!(names, ["cache-line", "raw-ring", "unix-stream"]);
        assert!(select(crate::rows::all(), &["nonsense".to_owned()]).is_err());
        Ok(())
    }
}
