//! What the rounds add up to: medians, ratios and verdicts, for near and far cores apart.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::metric::Metric;
use crate::placement::Place;
use crate::row::{BESIDE, Bound, Row, Target};

/// A target is judged where at least so many rounds have both figures.
pub const ENOUGH: usize = 2;

/// One value, when and where it was taken.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Taken {
    /// In which round.
    pub round: u32,
    /// Where the cores were, before and after; `None` if they moved in between.
    pub place: Option<Place>,
    /// What a bounced line took just before and just after; ns.
    pub line_ns: [f64; 2],
    /// In the metric's unit.
    pub value: f64,
}

/// One metric of one row over all rounds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The row's name.
    pub row: &'static str,
    /// What was measured.
    pub metric: Metric,
    /// One value a round, also those that count nowhere because the cores moved.
    pub taken: Vec<Taken>,
    /// What they add up to in each place that there were rounds of.
    pub summaries: Vec<Summary>,
}

/// A figure over the rounds of one place.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    /// Which; `None` for what doesn't depend on it.
    pub place: Option<Place>,
    /// How many rounds.
    pub rounds: usize,
    /// The best round.
    pub best: f64,
    /// The median round.
    pub median: f64,
    /// To the row's baseline, where there is one.
    pub ratio: Option<Ratio>,
}

/// Median over rounds of a value divided by another row's in the same round and place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The median.
    pub value: f64,
    /// How many rounds have both.
    pub rounds: usize,
}

/// How a target turned out in one place.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The row's name.
    pub row: &'static str,
    /// What was bounded.
    pub metric: Metric,
    /// Where; `None` for what doesn't depend on it.
    pub place: Option<Place>,
    /// How many rounds it is judged by.
    pub rounds: usize,
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
    /// Target by target, place by place.
    pub verdicts: Vec<Verdict>,
    /// How often a row was thrown away because the cores moved while it was measured.
    pub thrown_away: BTreeMap<&'static str, usize>,
    /// Rounds in all.
    pub rounds: u32,
    /// How long the run took; s.
    pub seconds: f64,
}

impl Outcome {
    /// One metric of one row.
    pub fn figure(&self, row: &str, metric: Metric) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.row == row && figure.metric == metric)
    }

    /// Adds everything up.
    pub fn conclude(&mut self, rows: &[Box<dyn Row>]) {
        let summaries: Vec<Vec<Summary>> = self
            .figures
            .iter()
            .map(|f| places(f.metric).filter_map(|place| self.summary(f, place)).collect())
            .collect();
        for (figure, summaries) in self.figures.iter_mut().zip(summaries) {
            figure.summaries = summaries;
        }
        let targets = rows.iter().flat_map(|row| row.targets().into_iter().map(|target| (row.name(), target)));
        let cases = targets.flat_map(|(row, target)| places(target.metric).map(move |place| (row, target, place)));
        self.verdicts = cases.filter_map(|(row, target, place)| self.judge(row, target, place)).collect();
    }

    fn summary(&self, figure: &Figure, place: Option<Place>) -> Option<Summary> {
        let values: Vec<f64> = figure.at(place).map(|taken| taken.value).collect();
        let baseline = figure.metric.baseline().filter(|name| *name != figure.row);
        (!values.is_empty()).then(|| Summary {
            place,
            rounds: values.len(),
            best: best(&values, figure.metric),
            median: median(&values),
            ratio: baseline.and_then(|name| self.ratio(figure, name, place)),
        })
    }

    /// The figure to that of `against`, over the rounds in which both were taken in that place.
    fn ratio(&self, figure: &Figure, against: &str, place: Option<Place>) -> Option<Ratio> {
        self.compare(figure, against, place, |value, other| value / other)
    }

    /// The median of what `by` makes of the figure and that of `against`, as [`Outcome::ratio`].
    fn compare(
        &self,
        figure: &Figure,
        against: &str,
        place: Option<Place>,
        by: impl Fn(f64, f64) -> f64,
    ) -> Option<Ratio> {
        let metric = figure.metric;
        let baseline = self.figure(against, metric).or_else(|| self.figure(against, metric.of_baseline()))?;
        let by_round: BTreeMap<u32, f64> = baseline.at(place).map(|taken| (taken.round, taken.value)).collect();
        let compared: Vec<f64> =
            figure.at(place).filter_map(|taken| Some(by(taken.value, *by_round.get(&taken.round)?))).collect();
        (!compared.is_empty()).then(|| Ratio { value: median(&compared), rounds: compared.len() })
    }

    fn judge(&self, row: &'static str, target: Target, place: Option<Place>) -> Option<Verdict> {
        let figure = self.figure(row, target.metric)?;
        let (bound, found, rounds, met) = match target.bound {
            Bound::AtMost(limit, against) => {
                let found = self.ratio(figure, against, place)?;
                (format!("at most {limit} × {against}"), found.value, found.rounds, found.value <= limit)
            }
            Bound::AtLeast(limit, against) => {
                let found = self.ratio(figure, against, place)?;
                (format!("at least {limit} × {against}"), found.value, found.rounds, found.value >= limit)
            }
            Bound::Beside(against) => {
                let each = |value| figure.metric.ns_each(value);
                let times = self.compare(figure, against, place, |value, other| each(value) / each(other))?;
                let more = self.compare(figure, against, place, |value, other| each(value) - each(other))?;
                let met = times.value <= BESIDE.0 || more.value <= BESIDE.1;
                let bound =
                    format!("at most {} × {against} for each, or {} ns more ({:+.1})", BESIDE.0, BESIDE.1, more.value);
                (bound, times.value, times.rounds, met)
            }
            Bound::Under(limit) => {
                let values: Vec<f64> = figure.at(place).map(|taken| taken.value).collect();
                let found = median(&values);
                (format!("under {}", target.metric.format(limit)), found, values.len(), found < limit)
            }
        };
        let enough = rounds >= if place.is_some() { ENOUGH } else { 1 };
        enough.then_some(Verdict { row, metric: target.metric, place, rounds, bound, found, met, fatal: target.fatal })
    }
}

impl Figure {
    /// A figure without any values yet.
    pub fn blank(row: &'static str, metric: Metric) -> Self {
        Self { row, metric, taken: Vec::new(), summaries: Vec::new() }
    }

    /// What was taken in that place, or at all.
    fn at(&self, place: Option<Place>) -> impl Iterator<Item = &Taken> {
        self.taken.iter().filter(move |taken| place.is_none() || taken.place == place)
    }

    /// What it adds up to there.
    pub fn summary(&self, place: Option<Place>) -> Option<&Summary> {
        self.summaries.iter().find(|summary| summary.place == place)
    }
}

/// The places in which a metric is summed up.
fn places(metric: Metric) -> impl Iterator<Item = Option<Place>> {
    let (each, any) = if metric.depends_on_place() { (&Place::ALL[..], None) } else { (&[][..], Some(None)) };
    each.iter().map(|&place| Some(place)).chain(any)
}

/// The median; not a number where there are no values.
pub fn median(values: &[f64]) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Metric = Metric::Rtt { size: 64 };
    const NEAR: Option<Place> = Some(Place::Near);
    const FAR: Option<Place> = Some(Place::Far);

    fn figure(row: &'static str, metric: Metric, taken: &[(u32, Option<Place>, f64)]) -> Figure {
        let taken = taken.iter().map(|&(round, place, value)| Taken { round, place, line_ns: [0.0; 2], value });
        Figure { taken: taken.collect(), ..Figure::blank(row, metric) }
    }

    fn outcome(figures: Vec<Figure>) -> Outcome {
        let mut outcome = Outcome { figures, ..Outcome::default() };
        outcome.conclude(&[]);
        outcome
    }

    fn ratio(outcome: &Outcome, row: &str, metric: Metric, place: Option<Place>) -> Option<(f64, usize)> {
        let ratio = outcome.figure(row, metric)?.summary(place)?.ratio?;
        Some(((ratio.value * 1000.0).round() / 1000.0, ratio.rounds))
    }

    #[test]
    fn ratios_pair_what_was_measured_in_the_same_round_and_place() {
        let outcome = outcome(vec![
            figure(
                "raw-ring",
                RTT,
                &[(1, NEAR, 100.0), (2, NEAR, 200.0), (3, FAR, 400.0), (4, NEAR, 100.0), (5, None, 1.0)],
            ),
            figure(
                "other",
                RTT,
                &[
                    (1, NEAR, 110.0),
                    (2, NEAR, 220.0),
                    (3, FAR, 800.0),
                    (4, FAR, 900.0),
                    (5, NEAR, 100.0),
                    (6, NEAR, 9.0),
                ],
            ),
        ]);
        assert_eq!(ratio(&outcome, "other", RTT, NEAR), Some((1.1, 2)));
        assert_eq!(ratio(&outcome, "other", RTT, FAR), Some((2.0, 1)));
        assert_eq!(outcome.figure("other", RTT).and_then(|f| f.summary(NEAR)).map(|s| s.rounds), Some(4));
        assert_eq!(ratio(&outcome, "raw-ring", RTT, NEAR), None, "the baseline has no ratio");
    }

    #[test]
    fn an_unfair_denominator_is_found_out_in_the_place_where_it_is_one() {
        let outcome = outcome(vec![
            figure("cache-line", RTT, &[(1, NEAR, 100.0), (2, NEAR, 100.0), (3, FAR, 400.0), (4, FAR, 400.0)]),
            figure("raw-ring", RTT, &[(1, NEAR, 251.0), (2, NEAR, 252.0), (3, FAR, 500.0), (4, FAR, 500.0)]),
        ]);
        let target = Target { metric: RTT, bound: Bound::AtMost(2.5, "cache-line"), fatal: true };
        assert!(outcome.judge("raw-ring", target, NEAR).is_some_and(|verdict| !verdict.met && verdict.fatal));
        assert!(outcome.judge("raw-ring", target, FAR).is_some_and(|verdict| verdict.met));
    }

    #[test]
    fn beside_another_row_either_five_per_cent_or_a_nanosecond_is_allowed() {
        let rate = Metric::Rate { size: 64, batched: false };
        let read = Metric::Read { size: 200 };
        let judged = |metric, ours: f64, theirs: f64| {
            let both = |value| [(1, NEAR, value), (2, NEAR, value)];
            let outcome = outcome(vec![figure("ours", metric, &both(ours)), figure("theirs", metric, &both(theirs))]);
            let target = Target { metric, bound: Bound::Beside("theirs"), fatal: false };
            outcome.judge("ours", target, NEAR).unwrap()
        };
        assert!(judged(read, 10.9, 10.0).met, "0.9 ns");
        assert!(!judged(read, 11.1, 10.0).met, "1.1 ns and 11 %");
        assert!(judged(read, 104.0, 100.0).met, "4 %");
        assert!(!judged(read, 106.0, 100.0).met, "6 %");
        // Rates are told by what one takes: 10 and 10.9 ns, 10 and 11.2.
        assert!(judged(rate, 1e9 / 10.9, 1e8).met);
        let slower = judged(rate, 1e9 / 11.2, 1e8);
        assert!(!slower.met && (slower.found - 1.12).abs() < 1e-9, "{slower:?}");
    }

    #[test]
    fn one_round_of_a_place_is_not_judged() {
        let outcome = outcome(vec![
            figure("cache-line", RTT, &[(1, NEAR, 100.0), (2, FAR, 400.0)]),
            figure("raw-ring", RTT, &[(1, NEAR, 300.0), (2, FAR, 500.0)]),
        ]);
        let target = Target { metric: RTT, bound: Bound::AtMost(2.5, "cache-line"), fatal: true };
        assert!(outcome.judge("raw-ring", target, NEAR).is_none());
    }

    #[test]
    fn what_does_not_depend_on_the_place_is_judged_over_all_rounds() {
        let memory = Metric::Memory { what: "a client" };
        let outcome = outcome(vec![figure("clients", memory, &[(1, NEAR, 10.0), (2, None, 30.0), (3, FAR, 20.0)])]);
        let target = Target { metric: memory, bound: Bound::Under(25.0), fatal: false };
        let verdict = outcome.judge("clients", target, None);
        assert!(verdict.is_some_and(|v| v.met && v.found == 20.0 && v.rounds == 3));
    }

    #[test]
    fn a_batched_rate_is_compared_with_the_plain_one() {
        let rate = |batched| Metric::Rate { size: 64, batched };
        let outcome = outcome(vec![
            figure("raw-ring", rate(false), &[(1, NEAR, 10.0)]),
            figure("other", rate(true), &[(1, NEAR, 20.0)]),
        ]);
        assert_eq!(ratio(&outcome, "other", rate(true), NEAR), Some((2.0, 1)));
    }
}
