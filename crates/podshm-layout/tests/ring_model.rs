//! The ring against a plain queue, and against garbage.

use podshm_layout::heap::Heap;
use podshm_layout::mem::{Load, Store};
use podshm_layout::ring::{Consumer, Part, Producer, PushError};
use podshm_layout::sync::Ordering;
use podshm_layout::{ChannelGeometry, Layout, geometry::RingSize};
use proptest::prelude::*;
use std::collections::VecDeque;

#[derive(Clone, Debug)]
enum Op {
    Push(usize),
    Batch(Vec<usize>),
    Pop(usize),
    Acknowledge,
    Move,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = prop_oneof![0usize..100, 0usize..2033];
    proptest::collection::vec(
        prop_oneof![
            len.clone().prop_map(Op::Push),
            proptest::collection::vec(len, 1..6).prop_map(Op::Batch),
            (1usize..8).prop_map(Op::Pop),
            Just(Op::Acknowledge),
            Just(Op::Move),
        ],
        1..200,
    )
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (seed.wrapping_mul(31).wrapping_add(i * 7)) as u8).collect()
}

proptest! {
    #[test]
    fn behaves_as_a_queue(ops in ops(), spread in any::<u64>()) {
        let size = RingSize { bytes: 4096, max_record: 2032 };
        let ring = ChannelGeometry::lay_out(&[size], spread, Layout::NEWEST).unwrap().1[0];
        let memory = Heap::new(4096);
        let cursors = Heap::new(4096);
        ring.cursor_line().reset(&cursors, ring.start);
        let mut producer = Producer::new(memory.clone(), &ring);
        let mut consumer = Consumer::new(memory.clone(), &ring, ring.start);
        let mut model: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        let mut seed = 0;
        for op in ops {
            let lens = match op { Op::Push(n) => vec![n], Op::Batch(n) => n, Op::Pop(n) => {
                for _ in 0..n {
                    let found = consumer.peek().unwrap();
                    prop_assert_eq!(found.map(|r| r.position), model.front().map(|r| r.0));
                    let Some(record) = found else { break };
                    let mut out = vec![0; record.len];
                    consumer.copy_out(&record, 0, &mut out);
                    prop_assert_eq!(&out, &model.pop_front().unwrap().1);
                    consumer.advance(&record);
                }
                continue;
            } Op::Acknowledge => {
                ring.cursor_line().acknowledge(&cursors, consumer.position());
                continue;
            } Op::Move => {
                let next = Heap::new(4096);
                producer.move_to(next.clone());
                consumer.move_to(next);
                continue;
            } };
            let mut pending = Vec::new();
            for len in lens {
                seed += 1;
                match producer.reserve(len, &cursors) {
                    Ok(room) => {
                        let data = bytes(seed, len);
                        producer.fill(&room, |slot| slot.copy_from_slice(&data));
                        pending.push((producer.commit(room, Part::Whole), data));
                    }
                    Err(PushError::Full { .. }) => {}
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
            if model.is_empty() {
                prop_assert_eq!(consumer.peek().unwrap(), None, "nothing is visible before publish");
            }
            producer.publish();
            model.extend(pending);
        }
        while let Some((position, data)) = model.pop_front() {
            let record = consumer.peek().unwrap().expect("published records are found");
            prop_assert_eq!(record.position, position);
            let mut out = vec![0; record.len];
            consumer.copy_out(&record, 0, &mut out);
            prop_assert_eq!(out, data);
            consumer.advance(&record);
        }
        prop_assert_eq!(consumer.peek().unwrap(), None);
    }

    /// A ring full of anything: an error or bounded garbage within the limits, never a panic, never endless.
    #[test]
    fn survives_any_bytes(words in proptest::collection::vec(any::<u64>(), 512), start in 0u64..4096) {
        let size = RingSize { bytes: 4096, max_record: 1000 };
        let ring = ChannelGeometry::lay_out(&[size], 1, Layout::NEWEST).unwrap().1[0];
        let memory = Heap::new(4096);
        for (i, word) in words.iter().enumerate() {
            memory.store(i * 8, *word, Ordering::Relaxed);
        }
        // Half of the headers look right, so that the checks behind the tag are reached.
        for at in (0..4096u64).step_by(16) {
            let word = memory.load(at as usize, Ordering::Relaxed);
            memory.store(at as usize, (at >> 3) << 32 | (word & 0xffff_ffff) | 1 << 31, Ordering::Relaxed);
        }
        let mut consumer = Consumer::new(memory, &ring, start);
        for _ in 0..1000 {
            match consumer.peek() {
                Ok(Some(record)) => {
                    prop_assert!(record.len <= 1000);
                    let mut out = vec![0; record.len];
                    consumer.copy_out(&record, 0, &mut out);
                    consumer.advance(&record);
                }
                Ok(None) | Err(_) => break,
            }
        }
    }

    #[test]
    fn a_lying_cursor_is_refused(found in any::<u64>()) {
        let size = RingSize { bytes: 4096, max_record: 2032 };
        let ring = ChannelGeometry::lay_out(&[size], 0, Layout::NEWEST).unwrap().1[0];
        let cursors = Heap::new(4096);
        ring.cursor_line().reset(&cursors, ring.start);
        let mut producer = Producer::new(Heap::new(4096), &ring);
        producer.push(&[1; 100], &cursors).unwrap();
        ring.cursor_line().acknowledge(&cursors, found);
        let honest = found == 0 || (ring.start..=producer.head()).contains(&found) && found % 8 == 0;
        prop_assert_eq!(producer.refresh(&cursors).is_ok(), honest);
    }
}

/// A cursor beyond what is published would let a held header be written over a later record.
#[test]
fn a_cursor_that_claims_what_is_not_published_is_refused() {
    let size = RingSize { bytes: 4096, max_record: 2032 };
    let ring = ChannelGeometry::lay_out(&[size], 0, Layout::NEWEST).unwrap().1[0];
    let cursors = Heap::new(4096);
    ring.cursor_line().reset(&cursors, ring.start);
    let mut producer = Producer::new(Heap::new(4096), &ring);
    let published = producer.push(&[1; 100], &cursors).map(|_| producer.head()).unwrap();
    let room = producer.reserve(100, &cursors).unwrap();
    producer.commit(room, Part::Whole);
    ring.cursor_line().acknowledge(&cursors, producer.head());
    let refused = PushError::BadCursor { found: producer.head(), lowest: ring.start, highest: published };
    assert_eq!(producer.refresh(&cursors), Err(refused));
    producer.publish();
    assert_eq!(producer.refresh(&cursors), Ok(4096));
}

/// A successor reckons with what its predecessor wrote: none of it may overflow or lie between words.
#[test]
fn a_predecessors_cursors_are_positions_whatever_it_wrote() {
    let line = podshm_layout::cursor::CursorLine::at(256);
    let page = Heap::new(4096);
    for word in [u64::MAX, u64::MAX - 8, 1 << 63, 33_361] {
        for at in 0..5 {
            page.store(256 + at * 8, word, Ordering::Relaxed);
        }
        let found = line.read(&page);
        for position in [found.acked, found.claim, found.closed.unwrap()] {
            assert!(position % 8 == 0 && position <= word && position <= u64::MAX / 2, "{position} of {word}");
        }
    }
}
