//! A status stays small, whatever gates say, however many there are and however often a rollout was resumed.

use podshm_api::clipped;
use podshm_api::rollout::{BatchRecord, Verdict, VerdictResult};

/// What one gate may say, in bytes.
const MESSAGE: usize = 250;
/// Records that are kept: the last.
const RECORDS: usize = 60;
/// What records may have together, in bytes, before the older ones lose their gates.
const ROOM: usize = 24_000;
/// What is left of how a batch ended then, in bytes.
const OUTCOME: usize = 100;

/// Gates as the status has them.
pub(super) fn brief(mut gates: Vec<Verdict>) -> Vec<Verdict> {
    gates.iter_mut().for_each(|gate| gate.message = clipped(&gate.message, MESSAGE));
    gates
}

/// Records as the status has them: those of the last batches whole; of others how they ended, and what had not passed if there is room.
pub(super) fn kept(history: &mut Vec<BatchRecord>) {
    history.drain(..history.len().saturating_sub(RECORDS));
    let size = |record: &BatchRecord| serde_json::to_vec(record).map_or(0, |text| text.len());
    let mut room = ROOM;
    for record in history.iter_mut().rev() {
        if size(record) > room {
            record.gates.retain(|gate| gate.result != VerdictResult::Passed);
        }
        if size(record) > room {
            record.gates.clear();
            record.outcome = clipped(&record.outcome, OUTCOME);
        }
        room = room.saturating_sub(size(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(result: VerdictResult) -> Verdict {
        Verdict { gate: "g".repeat(63), result, message: "µ".repeat(5000) }
    }

    fn record(batch: u32, gates: usize) -> BatchRecord {
        let gates = (0..gates).map(|at| gate([VerdictResult::Passed, VerdictResult::Failed][usize::from(at == 0)]));
        BatchRecord { batch, outcome: "o".repeat(1000), gates: brief(gates.collect()), ..BatchRecord::default() }
    }

    #[test]
    fn of_many_records_the_last_are_whole_and_once_more_changes_nothing() {
        let mut history: Vec<BatchRecord> = (1..=100).map(|batch| record(batch, 36)).collect();
        kept(&mut history);
        let batches: Vec<u32> = history.iter().map(|record| record.batch).collect();
        assert_eq!(batches, (41..=100).collect::<Vec<_>>());
        assert_eq!(history.last(), Some(&record(100, 36)));
        assert!(history[0].gates.is_empty() && history[0].outcome.len() == OUTCOME);
        assert!(history.iter().any(|record| record.gates.len() == 1), "what had failed is kept longer");
        let bytes = serde_json::to_vec(&history).unwrap().len();
        assert!(bytes < 40_000, "{bytes} bytes");
        let once = history.clone();
        kept(&mut history);
        assert_eq!(history, once);
    }

    #[test]
    fn few_gates_stay_as_they_are() {
        let mut history: Vec<BatchRecord> = (1..=10).map(|batch| record(batch, 4)).collect();
        history.iter_mut().for_each(|record| record.outcome = "passed".into());
        let before = history.clone();
        kept(&mut history);
        assert_eq!(history, before);
    }
}
