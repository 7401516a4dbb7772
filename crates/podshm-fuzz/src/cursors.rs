//! A dead agent's cursors as its successor reads them, and what it finds in the ring from there.

use crate::input::Input;
use podshm_layout::cursor::{CursorLine, Cursors};
use podshm_layout::heap::Heap;
use podshm_layout::mem::Store;
use podshm_layout::ring::Consumer;
use podshm_layout::sync::Ordering;
use podshm_layout::{PAGE, RingGeometry};

/// Records that a ring of 4,096 bytes can hold at once.
const MOST_RECORDS: usize = 512;

/// The target.
pub fn cursors(data: &[u8]) {
    let mut input = Input::new(data);
    let line = CursorLine::at(256);
    let page = Heap::new(PAGE);
    let honest = input.choice(4) == 0;
    if honest {
        // What a consumer writes comes back as it was written.
        let (start, claim) = (input.u64() >> 2 & !7, input.u64() >> 2 & !7);
        line.reset(&page, start);
        line.claim(&page, claim);
        assert_eq!(line.read(&page), Cursors { acked: start, claim, closed: None });
        line.close(&page, start, claim);
        assert_eq!(line.read(&page), Cursors { acked: start, claim: start.max(claim), closed: Some(start) });
        assert_eq!(line.started(&page), Some(start).filter(|s| *s != 0));
    } else {
        for word in 0..5 {
            page.store(256 + word * 8, input.word(), Ordering::Relaxed);
        }
    }
    let found = line.read(&page);
    for position in [found.acked, found.claim].into_iter().chain(found.closed) {
        assert!(position.is_multiple_of(8) && position <= u64::MAX / 2, "no record can be at {position}");
    }
    let ring = RingGeometry { offset: PAGE as u32, bytes: 4096, max_record: 2032, start: 64, cursor: 256 };
    let memory = Heap::new(4096);
    let start = found.closed.unwrap_or(found.acked);
    // Records that look right from there on, as a client would have left them, and then anything.
    let mut position = start;
    for _ in 0..input.choice(16) {
        let len = input.u16() as u64 % 200;
        if position % 4096 + 8 + len > 4096 {
            break;
        }
        memory.store((position % 4096) as usize, position >> 3 << 32 | 1 << 31 | len, Ordering::Relaxed);
        position += (8 + len).next_multiple_of(8);
    }
    while !input.is_empty() {
        memory.store(input.below(512) * 8, input.word(), Ordering::Relaxed);
    }
    let mut consumer = Consumer::new(memory, &ring, start);
    let mut records = 0;
    while let Ok(Some(record)) = consumer.peek() {
        assert!(record.next > record.position, "{record:?} goes backwards");
        consumer.advance(&record);
        records += 1;
        assert!(records <= MOST_RECORDS, "a ring that holds still is endless");
    }
}
