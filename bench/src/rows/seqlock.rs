//! A bare seqlock: the least that a consistent read of a record in shared memory can cost. Its
//! readers spin for ever when its writer dies inside an update.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::Result;

use crate::control::Control;
use crate::metric::{Metric, SEQLOCK};
use crate::payload;
use crate::record;
use crate::row::{Plan, Row, Sample};
use crate::shm::Mapping;

const METRIC: Metric = Metric::Read { size: record::SIZE };
const PAGE: usize = 4096;
const RECORD: usize = 64;

pub struct Seqlock;

impl Row for Seqlock {
    fn name(&self) -> &'static str {
        SEQLOCK
    }

    fn title(&self) -> String {
        "bare seqlock".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![METRIC]
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let (mapping, fd) = Mapping::create(PAGE)?;
        let (sequence, shared) = (sequence(&mapping), mapping.at::<[u8; record::SIZE]>(RECORD));
        peer.send_fd(fd)?;
        peer.recv::<()>()?; // the first version is there
        let value = record::time_reads(plan.budget, |out| {
            loop {
                // Pairs with the writer's closing release store: an even number means that the
                // bytes of that version are visible.
                let before = sequence.load(Ordering::Acquire);
                // SAFETY: RECORD is the start of SIZE bytes inside the mapping. The writer may be
                // at work: then the sequence differs below and the copy is thrown away. (A plain
                // racing copy is what a bare seqlock does; a sound one can only be slower.)
                unsafe { out.as_mut_ptr().copy_from_nonoverlapping(shared.cast(), out.len()) };
                // Pairs with the writer's release fence: whoever copied a byte of an update sees
                // its odd number.
                fence(Ordering::Acquire);
                if before.is_multiple_of(2) && sequence.load(Ordering::Relaxed) == before {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
        })?;
        Ok(vec![Sample { metric: METRIC, value }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let mapping = Mapping::open(control.recv_fd()?, PAGE)?;
        let (sequence, shared) = (sequence(&mapping), mapping.at::<[u8; record::SIZE]>(RECORD));
        let write = |version: u64| {
            let mut record = [0; record::SIZE];
            payload::fill(&mut record, version);
            sequence.store(version * 2 - 1, Ordering::Relaxed);
            fence(Ordering::Release);
            // SAFETY: SIZE bytes inside the mapping, written by this process alone.
            unsafe { shared.write(record) };
            sequence.store(version * 2, Ordering::Release);
        };
        write(1);
        control.send(&())?;
        record::write_at_1_khz(control, |version| {
            write(version + 1);
            Ok(())
        })
    }
}

fn sequence(mapping: &Mapping) -> &AtomicU64 {
    // SAFETY: `at` checked that an aligned word lies inside the mapping, which the result borrows;
    // both processes touch it only as an atomic.
    unsafe { &*mapping.at::<AtomicU64>(0) }
}
