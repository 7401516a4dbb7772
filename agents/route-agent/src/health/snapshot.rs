//! Health as bytes, from an agent to its successor.
//!
//! ```text
//! 0      4        8       16                 (entries, 80 bytes each)         end - 8
//! magic │ zeros │ count │ route │ endpoint │ error rate │ latency │ reports │ … │ xxh3 of all before
//! ```
//! Times are stored as what is left or past at the snapshot, since the successor's clock may count from elsewhere. Only
//! endpoints that there is something to say of are stored. Who reported is not, nor are errors in a row: a successor asks every
//! member anew, or one could err half a row before an upgrade and half a row after.

use std::cmp::Reverse;

use xxhash_rust::xxh3::xxh3_64;

use route_client::{FULL_WEIGHT, report::MAX_LATENCY_NS};

use super::{
    Health, HealthConfig,
    reporters::Reporters,
    state::{Phase, State, elapsed, ramp_weight},
};

/// `RHS` and the version of the format.
const MAGIC: u32 = u32::from_le_bytes(*b"RHS\x01");
const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 80;
const SUM_LEN: usize = 8;
/// The longest snapshot in bytes: about 200,000 endpoints. Healthy ones are left out first where there are more.
pub const MAX_SNAPSHOT_LEN: usize = 16 << 20;
const MAX_ENTRIES: usize = (MAX_SNAPSHOT_LEN - HEADER_LEN - SUM_LEN) / ENTRY_LEN;

/// Why bytes are no snapshot. The agent then starts as after a crash: with everybody healthy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The length can't be right.
    #[error("expected a health snapshot of {expected} bytes, found {found}; start without it")]
    Length {
        /// What the header says, or the limit.
        expected: usize,
        /// The length.
        found: usize,
    },
    /// Another format or version.
    #[error("expected a health snapshot that starts with {MAGIC:#010x}, found {found:#010x}; start without it")]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// The bytes were damaged.
    #[error("expected the snapshot's checksum to be {expected:#018x}, found {found:#018x}; start without it")]
    Checksum {
        /// What the bytes give.
        expected: u64,
        /// What the snapshot says.
        found: u64,
    },
    /// A number is out of its range.
    #[error("expected entry {entry}'s {field} in its range, found {found:#018x}; start without the snapshot")]
    Field {
        /// Which entry.
        entry: usize,
        /// Which field.
        field: &'static str,
        /// Its bits.
        found: u64,
    },
}

impl Health {
    /// What a successor should know, at most [`MAX_SNAPSHOT_LEN`] bytes.
    pub fn snapshot(&self, now_ns: u64) -> Vec<u8> {
        self.snapshot_within(now_ns, MAX_SNAPSHOT_LEN).0
    }

    /// [`Health::snapshot`] in at most `most` bytes, and how many endpoints were left out for that. Who is ejected or
    /// ramping is kept first, then who was ejected most often, then who errs most.
    pub fn snapshot_within(&self, now_ns: u64, most: usize) -> (Vec<u8>, usize) {
        let now_ns = self.now_ns.max(now_ns);
        let known = self.routes.iter().flat_map(|(&route, members)| members.iter().map(move |(&id, s)| (route, id, s)));
        let pending = self.pending.iter().map(|(&(route, id), s)| (route, id, s));
        let worth = |(_, _, s): &(u64, u64, &State)| {
            s.reports > 0 || s.ejections > 0 || !matches!(s.phase, Phase::Healthy { .. })
        };
        let mut entries: Vec<_> = known.chain(pending).filter(worth).collect();
        let healthy = |s: &State| matches!(s.phase, Phase::Healthy { .. });
        let room = (most.saturating_sub(HEADER_LEN + SUM_LEN) / ENTRY_LEN).min(MAX_ENTRIES);
        let left_out = entries.len().saturating_sub(room);
        if left_out > 0 {
            // Bits of floats that aren't negative order as the floats do.
            let worth = |s: &State| (healthy(s), Reverse((s.ejections, s.error_rate.to_bits(), s.reports)));
            entries.sort_by_key(|&(route, id, s)| (worth(s), route, id));
            entries.truncate(room);
        }
        entries.sort_by_key(|&(route, id, s)| (healthy(s), route, id));
        let mut bytes = Vec::with_capacity(HEADER_LEN + entries.len() * ENTRY_LEN + SUM_LEN);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((entries.len() as u64).to_le_bytes());
        for (route, id, s) in entries {
            let (phase, time) = match s.phase {
                Phase::Healthy { since_ns } => (0, elapsed(now_ns, since_ns)),
                Phase::Ejected { until_ns } => (1, until_ns.saturating_sub(now_ns)),
                Phase::Ramping { since_ns } => (2, elapsed(now_ns, since_ns)),
            };
            let words =
                [route, id, s.error_rate.to_bits(), s.latency_ns.to_bits(), s.reports, s.errors, s.fresh, phase, time];
            words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            bytes.extend([0; 4]); // once errors in a row
            bytes.extend(s.ejections.to_le_bytes());
        }
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        (bytes, left_out)
    }

    /// Begins with what a predecessor knew. Each entry waits until [`Health::set_members`] names its endpoint; its weight
    /// counts from now on, so the first values that are published already leave the ejected out.
    pub fn restore(config: HealthConfig, bytes: &[u8], now_ns: u64) -> Result<Self, SnapshotError> {
        let found = bytes.len();
        if !(HEADER_LEN + SUM_LEN..=MAX_SNAPSHOT_LEN).contains(&found) {
            return Err(SnapshotError::Length { expected: MAX_SNAPSHOT_LEN, found });
        }
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |all, &b| all << 8 | u64::from(b));
        if word(0) != u64::from(MAGIC) {
            return Err(SnapshotError::Magic { found: word(0) as u32 });
        }
        let count = usize::try_from(word(8)).unwrap_or(usize::MAX);
        let expected = count.saturating_mul(ENTRY_LEN).saturating_add(HEADER_LEN + SUM_LEN);
        if expected != found {
            return Err(SnapshotError::Length { expected, found });
        }
        let sum = xxh3_64(&bytes[..found - SUM_LEN]);
        if word(found - SUM_LEN) != sum {
            return Err(SnapshotError::Checksum { expected: sum, found: word(found - SUM_LEN) });
        }
        let mut health = Self::new(config);
        health.now_ns = now_ns;
        for entry in 0..count {
            let field = |n: usize| word(HEADER_LEN + entry * ENTRY_LEN + n * 8);
            let bad = |field, found| SnapshotError::Field { entry, field, found };
            let float = |n: usize, name, max: f64| {
                let value = f64::from_bits(field(n));
                if (0.0..=max).contains(&value) { Ok(value) } else { Err(bad(name, field(n))) }
            };
            let time = field(8);
            let (phase, weight) = match field(7) {
                0 => (Phase::Healthy { since_ns: i128::from(now_ns) - i128::from(time) }, FULL_WEIGHT),
                // Nobody stays out longer than the configuration of today allows.
                1 => (Phase::Ejected { until_ns: now_ns.saturating_add(time.min(config.max_ejection_ns)) }, 0),
                2 => (
                    Phase::Ramping { since_ns: i128::from(now_ns) - i128::from(time) },
                    ramp_weight(time, config.ramp_ns),
                ),
                found => return Err(bad("phase", found)),
            };
            let state = State {
                ready: true,
                error_rate: float(2, "error rate", 1.0)?,
                latency_ns: float(3, "latency", MAX_LATENCY_NS as f64)?,
                reports: field(4),
                errors: field(5),
                fresh: field(6),
                reporters: Reporters::default(),
                ejections: (field(9) >> 32) as u32,
                weight,
                phase,
            };
            health.pending.insert((field(0), field(1)), state);
        }
        Ok(health)
    }
}
