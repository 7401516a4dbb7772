//! What podshm supports: one table, which the doctor goes by and docs/support.md shows.

use serde::Deserialize;

/// The table, as it is in the sources.
const TEXT: &str = include_str!("support.json");

/// All of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Support {
    pub floors: Floors,
    pub rows: Vec<Row>,
}

impl Support {
    /// What the table says of something, for a finding's remedy.
    pub fn says(&self, what: &str) -> String {
        let row = self.rows.iter().find(|row| row.what == what);
        let row = row.expect("each that is asked for is in the table: a test asks for all");
        let note = if row.note.is_empty() { String::new() } else { format!(": {}", row.note) };
        format!("{} is {}{note} (docs/support.md)", row.what, row.state.word())
    }
}

/// What is compared with what is found.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floors {
    pub kernel: String,
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code))]
    pub kubernetes: String,
    pub page_size: usize,
    /// Those that tests ran on.
    pub architectures: Vec<String>,
}

/// A line of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub what: String,
    pub state: State,
    /// What was run there; empty where nothing was. For docs/support.md: a test puts it there.
    #[cfg_attr(not(test), expect(dead_code))]
    pub seen: String,
    pub note: String,
}

/// Untested is written as untested.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Supported,
    Untested,
    Refused,
}

impl State {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            State::Supported => "supported",
            State::Untested => "untested",
            State::Refused => "not supported",
        }
    }
}

/// The table.
pub fn table() -> Support {
    serde_json::from_str(TEXT).expect("the table is part of the program, and a test reads it")
}

/// Major and minor number of a version as kernels and API servers write it: `6.1.0-13-amd64`, `v1.36.2+k3s1`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split('.');
    let number = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    Some((number(parts.next()?)?, number(parts.next()?)?))
}

/// Whether a version is not below a floor; `None` where it is no version.
pub fn reaches(found: &str, floor: &str) -> Option<bool> {
    Some(version(found)? >= version(floor)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markdown(support: &Support) -> String {
        let line = |row: &Row| {
            format!("| {} | {} | {} | {} |\n", row.what, row.state.word(), row.seen, row.note).replace("|  |", "| |")
        };
        let head = "| what | | seen on it | |\n|---|---|---|---|\n";
        head.to_owned() + &support.rows.iter().map(line).collect::<String>().replace("|  |", "| |")
    }

    #[test]
    fn docs_show_this_table() {
        let docs = include_str!("../../../../docs/support.md");
        let table = markdown(&table());
        assert!(docs.contains(&table), "docs/support.md: expected\n{table}");
    }

    #[test]
    fn what_is_supported_was_seen_and_what_is_untested_was_not() {
        for row in table().rows {
            assert_eq!(row.state == State::Supported, !row.seen.is_empty(), "{}", row.what);
        }
    }

    #[test]
    fn what_findings_cite_is_in_the_table() {
        let sources = [include_str!("node.rs"), include_str!("cluster/judge.rs")].concat();
        let cited: Vec<&str> =
            ["Linux before 6.1", "Pages of 64 KiB", "CRI-O", "SELinux, enforcing", "Kubernetes before 1.30", "arm64"]
                .into_iter()
                .chain(["Kata Containers", "gVisor (runsc)"])
                .collect();
        for what in &cited {
            assert!(sources.contains(&format!("\"{what}\"")), "{what} is cited by nobody");
            assert!(table().says(what).contains(" (docs/support.md)"), "{what}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (found, floor, expected) in [
            ("6.1.0-13-amd64", "6.1", Some(true)),
            ("6.18.44-fc-v782", "6.1", Some(true)),
            ("5.15.0", "6.1", Some(false)),
            ("v1.9.11", "1.30", Some(false)),
            ("v1.30.2-gke.1587003", "1.30", Some(true)),
            ("1.30+", "1.30", Some(true)),
            ("nonsense", "1.30", None),
        ] {
            assert_eq!(reaches(found, floor), expected, "{found}");
        }
    }
}
