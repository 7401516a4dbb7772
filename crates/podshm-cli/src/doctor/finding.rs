//! What the doctor says.

use serde::Serialize;
use std::fmt::Write;

/// How bad it is.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// podshm works; somebody should know, or something that is not used here would not.
    Warning,
    /// Something that podshm needs is missing.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: stable, for machines.
    pub check: String,
    pub level: Level,
    pub found: String,
    pub expected: String,
    /// What to do; empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    /// All is well.
    pub fn ok(check: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        let (check, found, expected) = (check.into(), found.into(), expected.into());
        Finding { check, level: Level::Ok, found, expected, remedy: String::new() }
    }

    /// Ok where `is_good`, and otherwise `level` with what to do.
    pub fn judged(self, is_good: bool, level: Level, remedy: impl Into<String>) -> Self {
        if is_good { self } else { Finding { level, remedy: remedy.into(), ..self } }
    }
}

/// The worst of all, as an exit status: 0, or 2 for a warning, 3 for a problem; 1 is the doctor's own.
pub fn status(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.level).max() {
        None | Some(Level::Ok) => 0,
        Some(Level::Warning) => 2,
        Some(Level::Problem) => 3,
    }
}

/// For people.
pub fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { check, level, found, expected, remedy } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        let expected = if expected.is_empty() { String::new() } else { format!("; expected {expected}") };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{level:<8} {check:<width$}  {found}{expected}");
        if !remedy.is_empty() {
            let _ = writeln!(text, "{:<8} {:<width$}  → {remedy}", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_the_status_and_each_has_its_remedy() {
        let good = Finding::ok("kernel", "6.18", "6.1 or newer");
        let bad = Finding::ok("csi", "none", "one").judged(false, Level::Problem, "install the chart");
        let fair = Finding::ok("shm", "90 % full", "").judged(false, Level::Warning, "look");
        assert_eq!(status(&[]), 0);
        assert_eq!(status(std::slice::from_ref(&good)), 0);
        assert_eq!(status(&[good.clone(), fair.clone()]), 2);
        assert_eq!(status(&[bad.clone(), fair.clone(), good.clone()]), 3);
        let text = text(&[good, bad, fair]);
        assert_eq!(
            text,
            "ok       kernel  6.18; expected 6.1 or newer\n\
             PROBLEM  csi     none; expected one\n                 → install the chart\n\
             warning  shm     90 % full\n                 → look\n"
        );
    }
}
