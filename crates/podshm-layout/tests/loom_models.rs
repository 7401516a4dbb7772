//! loom models of ring, table and wake-up. Run by `make loom`; empty otherwise.
#![cfg(loom)]

use loom::thread;
use podshm_layout::geometry::{RingGeometry, TableGeometry};
use podshm_layout::heap::Heap;
use podshm_layout::mem::{Load, Store};
use podshm_layout::ring::{Consumer, Part, Producer};
use podshm_layout::sync::Ordering;
use podshm_layout::table::{TableReader, TableWriter};
use podshm_layout::wake::{Sleeper, Waker, Wants};

/// A ring of 64 bytes: small enough that loom sees it wrap.
fn tiny() -> RingGeometry {
    RingGeometry { offset: 4096, bytes: 64, max_record: 16, start: 0, cursor: 0 }
}

fn drain(consumer: &mut Consumer<Heap>, cursors: &Heap, expect: &mut u64) {
    while let Some(record) = consumer.peek().expect("a correct producer writes correct headers") {
        let mut out = [0; 8];
        consumer.copy_out(&record, 0, &mut out);
        assert_eq!(u64::from_le_bytes(out), *expect, "record read before it was written");
        *expect += 1;
        consumer.advance(&record);
        tiny().cursor_line().acknowledge(cursors, consumer.position());
    }
}

fn ring_model(faulty: bool) {
    loom::model(move || {
        let (memory, cursors) = (Heap::new(64), Heap::new(64));
        let (m, c) = (memory.clone(), cursors.clone());
        let producer = thread::spawn(move || {
            let mut producer = Producer::new(m, &tiny());
            for n in 1..=3u64 {
                if faulty {
                    let _ = producer.push_index_first(&n.to_le_bytes(), &c);
                } else {
                    let _ = producer.push(&n.to_le_bytes(), &c);
                }
            }
        });
        let mut consumer = Consumer::new(memory, &tiny(), 0);
        let mut expect = 1;
        drain(&mut consumer, &cursors, &mut expect);
        producer.join().expect("producer");
        drain(&mut consumer, &cursors, &mut expect);
        assert_eq!(expect, 4, "every accepted record arrives");
    });
}

#[test]
fn ring_delivers_in_order_and_whole() {
    ring_model(false);
}

#[test]
#[should_panic(expected = "record read before it was written")]
fn planted_index_before_record_is_caught() {
    ring_model(true);
}

#[test]
fn ring_reuses_space_only_after_acknowledge() {
    loom::model(|| {
        let (memory, cursors) = (Heap::new(64), Heap::new(64));
        let mut producer = Producer::new(memory.clone(), &tiny());
        // Three records of 16 bytes fill the ring but for the next header's word.
        for n in 1..=3u64 {
            producer.push(&n.to_le_bytes(), &cursors).expect("room");
        }
        let c = cursors.clone();
        let consumer = thread::spawn(move || {
            let mut consumer = Consumer::new(memory, &tiny(), 0);
            let mut expect = 1;
            drain(&mut consumer, &c, &mut expect);
            (consumer, expect)
        });
        let mut sent = 3;
        for n in 4..=5u64 {
            if n == sent + 1 && producer.push(&n.to_le_bytes(), &cursors).is_ok() {
                sent = n;
            }
        }
        let (mut consumer, mut expect) = consumer.join().expect("consumer");
        drain(&mut consumer, &cursors, &mut expect);
        assert_eq!(expect, sent + 1);
    });
}

#[test]
fn ring_batch_appears_whole_or_not() {
    loom::model(|| {
        let (memory, cursors) = (Heap::new(64), Heap::new(64));
        let (m, c) = (memory.clone(), cursors.clone());
        let producer = thread::spawn(move || {
            let mut producer = Producer::new(m, &tiny());
            for n in 1..=2u64 {
                let room = producer.reserve(8, &c).expect("room");
                producer.write(&room, 0, &n.to_le_bytes());
                producer.commit(room, Part::Whole);
            }
            producer.publish();
        });
        let mut consumer = Consumer::new(memory, &tiny(), 0);
        let mut expect = 1;
        drain(&mut consumer, &cursors, &mut expect);
        assert!(expect == 1 || expect == 3, "half a batch was visible");
        producer.join().expect("producer");
    });
}

fn wake_model(faulty: bool) {
    loom::model(move || {
        let (sleeper_region, record) = (Heap::new(8), Heap::new(8));
        let (s, r) = (sleeper_region.clone(), record.clone());
        let waker = thread::spawn(move || {
            r.store(0, 1, Ordering::Release);
            Waker::at(0).check(&s).is_some()
        });
        let mut sleeper = Sleeper::at(0);
        if faulty {
            sleeper.announce(&sleeper_region, Wants::FUTEX);
        } else {
            sleeper.arm(&sleeper_region, Wants::FUTEX);
        }
        let sleeps = record.load(0, Ordering::Acquire) == 0;
        let woken = waker.join().expect("waker");
        assert!(!sleeps || woken, "lost wake-up");
    });
}

#[test]
fn wake_up_is_never_lost() {
    wake_model(false);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn planted_missing_fence_is_caught() {
    wake_model(true);
}

#[test]
fn table_reader_never_sees_a_torn_value() {
    loom::model(|| {
        // Two spare units: the third publication reuses the first one's under the reader.
        let geometry = TableGeometry { buckets: 1, units: 3 };
        let memory = Heap::new(geometry.size() as usize);
        let mut writer = TableWriter::new(memory.clone(), geometry);
        writer.put(b"k", &[1; 16], 0).expect("room");
        let writer = thread::spawn(move || {
            for n in 2..=3u8 {
                writer.put(b"k", &[n; 16], 0).expect("room");
            }
        });
        let reader = TableReader::new(memory, geometry);
        let mut value = [0; 16];
        if let Some(found) = reader.find(b"k").expect("not corrupt") {
            if reader.read(&found, 0, &mut value).is_ok() {
                assert!(value.iter().all(|b| *b == value[0] && *b > 0), "torn value {value:?}");
            }
        } else {
            panic!("a key that is always there was not found");
        }
        writer.join().expect("writer");
    });
}

/// What a resolved key goes by: the entry that it found last.
#[test]
fn a_resolved_key_never_sees_a_torn_value() {
    loom::model(|| {
        let geometry = TableGeometry { buckets: 1, units: 3 };
        let memory = Heap::new(geometry.size() as usize);
        let mut writer = TableWriter::new(memory.clone(), geometry);
        writer.put(b"k", &[1; 16], 0).expect("room");
        let reader = TableReader::new(memory, geometry);
        let lane = reader.find(b"k").expect("not corrupt").expect("it is there").lane();
        let writer = thread::spawn(move || {
            for n in 2..=3u8 {
                writer.put(b"k", &[n; 16], 0).expect("room");
            }
        });
        let mut value = [0; 16];
        if reader.copy_unchanged(&lane, &mut value).is_some() {
            assert_eq!(value, [1; 16], "torn, or another value than the entry's");
        }
        writer.join().expect("writer");
    });
}
