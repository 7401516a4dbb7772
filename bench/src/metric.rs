//! What can be measured, in which unit, and beside what it is a ratio.

use std::fmt;

use serde::Serialize;

/// Message sizes of the round trips.
pub const SIZES: [usize; 4] = [64, 1 << 10, 64 << 10, 1 << 20];

/// One column of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Metric {
    /// p50 of a round trip with this many bytes each way; ns.
    Rtt {
        /// Bytes each way.
        size: usize,
    },
    /// p99 of the same; ns.
    RttP99 {
        /// Bytes each way.
        size: usize,
    },
    /// One way, as fast as it goes; messages a second.
    Rate {
        /// Bytes a message.
        size: usize,
        /// Published in batches, not one by one.
        batched: bool,
    },
    /// One read of a record of this many bytes that is changed 1,000 times a second; ns.
    Read {
        /// Bytes of the record.
        size: usize,
    },
    /// One look-up by key, the value copied out; ns.
    Lookup {
        /// How many routes the table has.
        routes: usize,
    },
    /// Copying memory; bytes a second.
    Copy {
        /// Bytes a copy.
        size: usize,
    },
    /// So many threads push records of 64 bytes through one handle; records a second.
    Pushing {
        /// How many.
        threads: usize,
    },
    /// CPU that something uses; ns a second.
    Cpu {
        /// What: "an idle agent", say.
        what: &'static str,
    },
    /// How often something happens a second.
    PerSecond {
        /// What: "wake-ups", say.
        what: &'static str,
    },
    /// How long something takes that happens once; ns.
    Once {
        /// What: "first join", say.
        what: &'static str,
    },
    /// How much memory something takes; bytes.
    Memory {
        /// What: "a client", say.
        what: &'static str,
    },
}

/// The row that message transports are divided by.
pub const RAW_RING: &str = "raw-ring";
/// The row that reads are divided by.
pub const SEQLOCK: &str = "seqlock";
/// The row that look-ups are divided by.
pub const HASHBROWN: &str = "hashbrown";

impl Metric {
    /// The row whose figure a ratio is made with, if ratios make sense.
    pub fn baseline(self) -> Option<&'static str> {
        match self {
            Self::Rtt { .. } | Self::RttP99 { .. } | Self::Rate { .. } => Some(RAW_RING),
            Self::Read { .. } => Some(SEQLOCK),
            Self::Lookup { .. } => Some(HASHBROWN),
            Self::Pushing { .. } => Some(RAW_RING),
            Self::Copy { .. } | Self::Once { .. } | Self::Memory { .. } | Self::Cpu { .. } | Self::PerSecond { .. } => {
                None
            }
        }
    }

    /// The metric of the baseline row to divide by: a batched rate, and one of many threads, is compared with the
    /// baseline's plain one.
    pub fn of_baseline(self) -> Self {
        match self {
            Self::Rate { size, .. } => Self::Rate { size, batched: false },
            Self::Pushing { .. } => Self::Rate { size: 64, batched: false },
            other => other,
        }
    }

    /// Whether it matters how far apart the cores are.
    pub fn depends_on_place(self) -> bool {
        !matches!(self, Self::Memory { .. } | Self::Cpu { .. } | Self::PerSecond { .. })
    }

    /// Whether more is better.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Rate { .. } | Self::Pushing { .. } | Self::Copy { .. })
    }

    /// How long one takes, in ns, where a value says that.
    pub fn ns_each(self, value: f64) -> f64 {
        if self.is_rate() { 1e9 / value } else { value }
    }

    /// A figure of this metric in the unit people read.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Rtt { .. } | Self::RttP99 { .. } => micros(value),
            Self::Once { .. } => format!("{} µs", micros(value)),
            Self::Read { .. } | Self::Lookup { .. } => format!("{value:.1} ns"),
            Self::Rate { size, .. } if size >= 1 << 16 => {
                format!("{:.1} GB/s", value * size as f64 / 1e9)
            }
            Self::Rate { .. } | Self::Pushing { .. } => format!("{:.2} M/s", value / 1e6),
            Self::Cpu { .. } => format!("{:.0} µs/s", value / 1e3),
            Self::PerSecond { .. } => format!("{value:.0} /s"),
            Self::Copy { .. } => format!("{:.1} GB/s", value / 1e9),
            Self::Memory { .. } => format!("{:.1} KiB", value / 1024.0),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rtt { size } => write!(f, "round trip {}, p50", Size(*size)),
            Self::RttP99 { size } => write!(f, "round trip {}, p99", Size(*size)),
            Self::Rate { size, batched } => {
                let how = if *batched { ", batched" } else { "" };
                write!(f, "one way {}{how}", Size(*size))
            }
            Self::Read { size } => write!(f, "read of {size} B, written at 1 kHz"),
            Self::Lookup { routes } => write!(f, "look-up by key, {routes} routes"),
            Self::Copy { size } => write!(f, "copy of {}", Size(*size)),
            Self::Pushing { threads: 1 } => f.write_str("1 thread pushes 64 B"),
            Self::Pushing { threads } => write!(f, "{threads} threads push 64 B"),
            Self::Once { what } | Self::Memory { what } | Self::Cpu { what } | Self::PerSecond { what } => {
                f.write_str(what)
            }
        }
    }
}

/// A number of bytes as people say it.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

fn micros(ns: f64) -> String {
    match ns / 1000.0 {
        us if us < 1.0 => format!("{us:.3}"),
        us if us < 10.0 => format!("{us:.2}"),
        us if us < 100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}
