//! A ring's consumer over bytes that a hostile producer writes, between polls and during them.

use crate::input::Input;
use crate::racing::Racing;
use podshm_layout::heap::Heap;
use podshm_layout::mem::{Load, Store};
use podshm_layout::ring::{Consumer, Part, Record};
use podshm_layout::sync::Ordering;
use podshm_layout::{PAGE, RingGeometry};

/// Header words that one poll may look at: the record's, and the one behind a pad.
const MOST_LOADS: u64 = 2;

/// What a poll must find in memory that holds still.
#[derive(Debug, PartialEq)]
enum Expected {
    Nothing,
    Record { position: u64, len: u64, kind: u64 },
    Corrupt { position: u64, found: u64 },
}

/// The consumer's rules, said plainly: see the picture in `podshm_layout::ring`.
fn expected(memory: &Heap, ring: &RingGeometry, mut position: u64) -> Expected {
    let bytes = u64::from(ring.bytes);
    let mut pads = 0;
    loop {
        let at = position % bytes;
        let found = memory.load(at as usize, Ordering::Relaxed);
        let (tag, present, kind, len) = (found >> 32, found >> 31 & 1, found >> 26 & 0x1f, found & 0x3ff_ffff);
        if found == 0 {
            return Expected::Nothing;
        }
        let corrupt = Expected::Corrupt { position, found };
        if present == 0 || tag != position / 8 % (1 << 32) {
            return corrupt;
        }
        match kind {
            0..=3 if len <= u64::from(ring.max_record) && at + 8 + len <= bytes => {
                return Expected::Record { position, len, kind };
            }
            4 if pads == 0 && at + 8 + len == bytes => {
                pads = 1;
                position += 8 + len;
            }
            _ => return corrupt,
        }
    }
}

fn header(position: u64, kind: u64, len: u64) -> u64 {
    position >> 3 << 32 | 1 << 31 | (kind & 0x1f) << 26 | len & 0x3ff_ffff
}

/// The target.
pub fn ring(data: &[u8]) {
    let mut input = Input::new(data);
    let bytes = 4096u32 << input.choice(2);
    let max_record = input.below(RingGeometry::most_record(bytes) as usize + 1) as u32;
    // Where an honest ring starts, or where a predecessor's cursor said: as far as a cursor can be read.
    let start = if input.choice(2) == 0 { u64::from(input.u16()) } else { input.u64() >> 1 } & !7;
    let ring = RingGeometry { offset: PAGE as u32, bytes, max_record, start, cursor: 256 };
    let memory = Racing::new(Heap::new(bytes as usize));
    let mut consumer = Consumer::new(memory.clone(), &ring, start);
    let mut out = vec![0; max_record as usize];
    while !input.is_empty() {
        let position = consumer.position();
        let here = (position % u64::from(bytes)) as usize;
        match input.choice(8) {
            0 => memory.heap.store(input.below(bytes as usize / 8) * 8, input.word(), Ordering::Relaxed),
            1 => memory.heap.store(here, input.word(), Ordering::Relaxed),
            2 => {
                let len = input.below(max_record as usize + 9) as u64;
                memory.heap.store(here, header(position, u64::from(input.choice(6)), len), Ordering::Relaxed);
            }
            3 => {
                let len = u64::from(bytes) - here as u64 - 8;
                let behind = header(position + 8 + len, u64::from(input.choice(5)), u64::from(input.u8()));
                memory.heap.store(here, header(position, 4, len), Ordering::Relaxed);
                memory.heap.store(0, behind, Ordering::Relaxed);
            }
            4 => {
                let at = if input.choice(2) == 0 { here } else { input.below(bytes as usize / 8) * 8 };
                memory.plan((input.choice(4), at, header(position, u64::from(input.u8()), u64::from(input.u16()))));
            }
            _ => poll(&memory, &ring, &mut consumer, &mut out),
        }
    }
}

fn poll(memory: &Racing, ring: &RingGeometry, consumer: &mut Consumer<Racing>, out: &mut [u8]) {
    let (before, still) = (consumer.position(), memory.planned() == 0);
    let expected = expected(&memory.heap, ring, before);
    memory.take_loads();
    let found = consumer.peek();
    let loads = memory.take_loads();
    assert!(loads <= MOST_LOADS, "a poll loaded {loads} words, expected at most {MOST_LOADS}");
    let after = consumer.position();
    assert!(after - before <= u64::from(ring.bytes) && after.is_multiple_of(8), "a poll went from {before} to {after}");
    let found = match found {
        Ok(None) => Expected::Nothing,
        Ok(Some(record)) => {
            take(memory, ring, consumer, &record, out);
            Expected::Record { position: record.position, len: record.len as u64, kind: part(record.part) }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(&error.position.to_string()) && text.contains("expected"), "{text}");
            Expected::Corrupt { position: error.position, found: error.found }
        }
    };
    if still {
        assert_eq!(found, expected, "at {before} of {ring:?}");
    }
}

fn take(memory: &Racing, ring: &RingGeometry, consumer: &mut Consumer<Racing>, record: &Record, out: &mut [u8]) {
    assert!(record.len <= ring.max_record as usize, "{record:?} in {ring:?}");
    assert_eq!(record.next, record.position + (8 + record.len as u64).next_multiple_of(8));
    consumer.copy_out(record, 0, &mut out[..record.len]);
    let (at, len) = memory.last_copy();
    assert_eq!(at as u64, record.position % u64::from(ring.bytes) + 8);
    assert!(len == record.len && at + len <= ring.bytes as usize, "a copy of {len} bytes at {at} leaves {ring:?}");
    consumer.advance(record);
    assert_eq!(consumer.position(), record.next);
}

fn part(part: Part) -> u64 {
    part as u64
}
