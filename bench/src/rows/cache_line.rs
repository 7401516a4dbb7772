//! One cache line bounced between two cores: no message can make a round trip faster.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::control::Control;
use crate::metric::Metric;
use crate::row::{Plan, Row, Sample};
use crate::shm::Mapping;
use crate::transport::{Order, timed_rtt};

const PAGE: usize = 4096;

pub struct CacheLine;

impl Row for CacheLine {
    fn name(&self) -> &'static str {
        "cache-line"
    }

    fn title(&self) -> String {
        "one cache line bounced (the floor)".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::Rtt { size: 64 }]
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let (mapping, fd) = Mapping::create(PAGE)?;
        peer.send_fd(fd)?;
        let word = word(&mapping);
        // Odd: the peer's turn. Even: ours.
        let mut turn = 0;
        let latencies = timed_rtt(
            plan.budget,
            |count| peer.send(&Order::Echo { size: 64, count }),
            |_| {
                word.store(turn + 1, Ordering::Release);
                turn += 2;
                while word.load(Ordering::Acquire) != turn {
                    std::hint::spin_loop();
                }
                Ok(())
            },
        )?;
        Ok(vec![Sample { metric: Metric::Rtt { size: 64 }, value: latencies.quantile(0.5) }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let mapping = Mapping::open(control.recv_fd()?, PAGE)?;
        let word = word(&mapping);
        let mut turn = 1;
        while let Order::Echo { count, .. } = control.recv()? {
            for _ in 0..count {
                while word.load(Ordering::Acquire) != turn {
                    std::hint::spin_loop();
                }
                word.store(turn + 1, Ordering::Release);
                turn += 2;
            }
        }
        Ok(())
    }
}

fn word(mapping: &Mapping) -> &AtomicU64 {
    // SAFETY: `at` checked that an aligned word lies inside the mapping, which the result borrows;
    // both processes touch it only as an atomic.
    unsafe { &*mapping.at::<AtomicU64>(0) }
}
