//! The 200-byte record that is changed 1,000 times a second: its content, and the writer's pace.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::clock::Clock;
use crate::control::Control;
use crate::transport::Order;

/// Bytes of the record.
pub const SIZE: usize = 200;

/// How often it changes.
const PERIOD: Duration = Duration::from_millis(1);

/// Publishes versions 1, 2, 3 … through `publish`, one a millisecond, until [`Order::End`]. Fill
/// version n with `payload::fill(record, n)`.
pub fn write_at_1_khz(control: &mut Control, mut publish: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    for version in 1_u32.. {
        publish(version.into())?;
        let wait = (begun + PERIOD * version).saturating_duration_since(Instant::now());
        if control.has_order_within(wait)? && matches!(control.recv()?, Order::End) {
            break;
        }
    }
    Ok(())
}

/// Nanoseconds a read takes, over about `budget`: `read` copies the record into the buffer. Every
/// 1,024th copy is checked for being whole, and versions must have moved on by as much as time did.
pub fn time_reads(budget: Duration, mut read: impl FnMut(&mut [u8; SIZE]) -> Result<()>) -> Result<f64> {
    const BURST: u32 = 1024;
    let mut record = [0; SIZE];
    let warm = Instant::now();
    while warm.elapsed() < budget / 4 {
        read(&mut record)?;
    }
    let first = whole_version(&record)?;
    let clock = Clock::shared();
    let (begun, mut ticks, mut reads) = (Instant::now(), 0, 0);
    while begun.elapsed() < budget {
        let start = clock.now();
        for _ in 0..BURST {
            read(&mut record)?;
            std::hint::black_box(&mut record);
        }
        ticks += clock.now() - start;
        reads += BURST;
        whole_version(&record)?;
    }
    let (seen, due) = (whole_version(&record)? - first, begun.elapsed().as_millis() as u64);
    anyhow::ensure!(seen >= due / 2, "expected about {due} versions of the record in as many ms, found {seen}");
    Ok(clock.ns(ticks) / f64::from(reads))
}

/// The version that the record holds, or that it holds parts of two.
fn whole_version(record: &[u8; SIZE]) -> Result<u64> {
    let words = record.as_chunks::<8>().0;
    let version = u64::from_le_bytes(words[0]);
    let whole = (version..).zip(words).all(|(expected, word)| u64::from_le_bytes(*word) == expected);
    anyhow::ensure!(whole, "the record of version {version} is torn");
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload;

    #[test]
    fn a_torn_record_is_noticed() {
        let mut record = [0; SIZE];
        payload::fill(&mut record, 7);
        assert_eq!(whole_version(&record).ok(), Some(7));
        payload::fill(&mut record[..96], 8);
        assert!(whole_version(&record).is_err());
    }
}
