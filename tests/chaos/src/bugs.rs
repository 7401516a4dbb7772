//! Bugs that are planted in the library, in the process of an agent that is told to have them: for tests of the harness itself.

use podshm::steps::{Bug, Step, plant, set_hook};
use std::time::Duration;

/// A table's entry leads to its record before that is written, and for long enough to be seen.
pub fn entry_first() {
    plant(Bug::EntryFirst);
    set_hook(|step| {
        if step == Step::TableSwung {
            std::thread::sleep(Duration::from_micros(200));
        }
    });
}

/// Every other acknowledgement of a batch is skipped.
pub fn skip_acknowledgements() {
    plant(Bug::SkippedAcknowledgement);
}
