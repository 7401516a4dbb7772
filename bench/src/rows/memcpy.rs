//! How fast this machine copies memory, in cache and from DRAM: big payloads can't beat it.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;

use crate::control::Control;
use crate::metric::Metric;
use crate::row::{Plan, Row, Sample};

const SIZES: [usize; 2] = [1 << 20, 128 << 20];

pub struct Memcpy;

impl Row for Memcpy {
    fn name(&self) -> &'static str {
        "memcpy"
    }

    fn title(&self) -> String {
        "memcpy".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        SIZES.iter().map(|&size| Metric::Copy { size }).collect()
    }

    fn measure(&self, _peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let samples = SIZES.iter().map(|&size| {
            let (from, mut to) = (vec![1_u8; size], vec![0_u8; size]);
            let mut copy = || to.copy_from_slice(black_box(&from));
            copy();
            let (begun, mut copies) = (Instant::now(), 0_u32);
            while copies == 0 || begun.elapsed() < plan.budget {
                copy();
                copies += 1;
            }
            let bytes = f64::from(copies) * size as f64;
            let value = bytes / begun.elapsed().as_secs_f64();
            black_box(&to);
            let metric = Metric::Copy { size };
            Sample { metric, value }
        });
        Ok(samples.collect())
    }
}
