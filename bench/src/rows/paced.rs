//! Round trips with a pause between them, so that both sides sleep: what waking up costs. Nobody is pinned: where the
//! scheduler puts who is woken is a part of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::clock::Clock;
use crate::control::Control;
use crate::machine;
use crate::metric::Metric;
use crate::row::{Plan, Row, Sample};
use crate::transport::{Latencies, Order};

/// Between two round trips.
const PAUSE: Duration = Duration::from_millis(2);
/// Round trips in a round.
const TRIPS: usize = 25;

/// p50 of them.
pub const PACED: Metric = Metric::Once { what: "round trip 64 B, one every 2 ms, p50" };
/// p90 of them: of 25 that is what can be told.
pub const PACED_P90: Metric = Metric::Once { what: "round trip 64 B, one every 2 ms, p90" };

/// Runs `trip` with pauses, from a thread that nobody has pinned.
pub fn paced(mut trip: impl FnMut() -> Result<()> + Send) -> Result<Vec<Sample>> {
    std::thread::scope(|scope| {
        let run = || -> Result<Vec<Sample>> {
            machine::unpin()?;
            let clock = Clock::shared();
            let mut ticks = Vec::with_capacity(TRIPS);
            for _ in 0..TRIPS {
                std::thread::sleep(PAUSE);
                let begun = clock.now();
                trip()?;
                ticks.push(u32::try_from(clock.now() - begun).unwrap_or(u32::MAX));
            }
            let trips = Latencies::new(&ticks, clock);
            Ok(vec![
                Sample { metric: PACED, value: trips.quantile(0.5) },
                Sample { metric: PACED_P90, value: trips.quantile(0.9) },
            ])
        };
        scope.spawn(run).join().ok().context("the thread that measures ended early")?
    })
}

/// A Unix socket pair and an echo that blocks in `read`.
pub struct PacedUnix;

impl Row for PacedUnix {
    fn name(&self) -> &'static str {
        "unix-paced"
    }

    fn title(&self) -> String {
        "Unix stream socket".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![PACED, PACED_P90]
    }

    fn measure(&self, peer: &mut Control, _plan: Plan) -> Result<Vec<Sample>> {
        let (mut mine, theirs) = UnixStream::pair()?;
        peer.send_fd(theirs)?;
        let samples = paced(|| {
            let mut bytes = [7; 64];
            mine.write_all(&bytes)?;
            mine.read_exact(&mut bytes)?;
            ensure!(bytes == [7; 64], "another answer came");
            Ok(())
        });
        drop(mine);
        samples
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        machine::unpin()?;
        let mut socket = UnixStream::from(control.recv_fd()?);
        let mut bytes = [0; 64];
        while socket.read_exact(&mut bytes).is_ok() {
            socket.write_all(&bytes)?;
        }
        while !matches!(control.recv()?, Order::End) {}
        Ok(())
    }
}
