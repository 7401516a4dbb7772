//! A ring's producer whose consumer lies in its cursors: it may lose what it claims to have read, nothing more.

use crate::input::Input;
use podshm_layout::heap::Heap;
use podshm_layout::mem::{Load, Store};
use podshm_layout::ring::{Consumer, Part, Producer, PushError};
use podshm_layout::sync::Ordering;
use podshm_layout::{PAGE, RingGeometry};
use std::collections::VecDeque;

/// A record that was committed: its position, the position behind it, its bytes.
type Sent = (u64, u64, Vec<u8>);

/// The target.
pub fn producer(data: &[u8]) {
    let mut input = Input::new(data);
    let bytes = 4096;
    let max_record = input.below(RingGeometry::most_record(bytes) as usize + 1) as u32;
    let start = u64::from(input.u16()) / 64 * 64 + 64;
    let ring = RingGeometry { offset: PAGE as u32, bytes, max_record, start, cursor: 256 };
    let incarnation = u64::from(input.choice(3));
    let (memory, cursors) = (Heap::new(bytes as usize), Heap::new(PAGE));
    if input.choice(4) != 0 {
        ring.cursor_line().reset_for(&cursors, incarnation, start);
    }
    let mut producer = Producer::new(memory.clone(), &ring).of_incarnation(incarnation);
    let (mut live, mut held): (VecDeque<Sent>, Vec<Sent>) = Default::default();
    // Head before the first record that is committed and not published: no consumer can have read further.
    let mut open = None;
    let mut seed = 0u8;
    while !input.is_empty() {
        match input.choice(8) {
            0 => cursors.store(256, lie(&mut input, &producer), Ordering::Relaxed),
            1 => cursors.store(256 + 8 * input.below(8), input.word(), Ordering::Relaxed),
            2 => {
                let published = producer.publish();
                assert_eq!(published, !held.is_empty(), "a publication publishes what was committed");
                live.extend(held.drain(..));
                open = None;
            }
            3 => check_refresh(&mut producer, open, &ring, &cursors, incarnation),
            _ => {
                let len = input.below(max_record as usize + 2);
                seed = seed.wrapping_add(1);
                let (head, acked) = (producer.head(), producer.acked());
                match producer.reserve(len, &cursors) {
                    Ok(room) => {
                        let data: Vec<u8> = (0..len).map(|i| seed.wrapping_add(i as u8)).collect();
                        producer.fill(&room, |part| part.copy_from_slice(&data));
                        let position = producer.commit(room, Part::Whole);
                        assert!(
                            producer.head() - producer.acked() <= u64::from(bytes),
                            "written over what is not read"
                        );
                        held.push((position, producer.head(), data));
                        open.get_or_insert(head);
                    }
                    Err(error) => refused(error, len, open.unwrap_or(head), acked, &ring, &cursors),
                }
            }
        }
        // What the cursor gave back may be overwritten from here on; all else must be whole.
        let acked = producer.acked();
        live.retain(|sent| sent.0 >= acked);
        if let Some(first) = live.front() {
            all_there(&memory, &ring, first.0, &live);
        }
    }
}

/// A cursor near where it may be, on either side.
fn lie(input: &mut Input<'_>, producer: &Producer<Heap>) -> u64 {
    let span = producer.head() - producer.acked() + 32;
    let near = (producer.acked() + input.u16() as u64 % span).wrapping_sub(16);
    if input.choice(2) == 0 { near & !7 } else { near }
}

fn check_refresh(
    producer: &mut Producer<Heap>,
    open: Option<u64>,
    ring: &RingGeometry,
    cursors: &Heap,
    incarnation: u64,
) {
    let (head, acked) = (producer.head(), producer.acked());
    let published = open.unwrap_or(head);
    let mine = incarnation == 0 || cursors.load(256 + 32, Ordering::Relaxed) == incarnation;
    let word = cursors.load(256, Ordering::Relaxed);
    let believed = if mine && word != 0 { word } else { acked };
    let good = (acked..=published).contains(&believed) && believed.is_multiple_of(8);
    match producer.refresh(cursors) {
        Ok(free) => {
            assert!(good, "cursor {believed} was believed between {acked} and {published}");
            assert_eq!(producer.acked(), believed);
            assert_eq!(free, u64::from(ring.bytes) - (head - believed));
        }
        Err(error) => {
            assert!(!good, "{error}");
            assert_eq!(error, PushError::BadCursor { found: believed, lowest: acked, highest: published });
            assert_eq!(producer.acked(), acked, "a lie changes nothing");
        }
    }
}

fn refused(error: PushError, len: usize, published: u64, acked: u64, ring: &RingGeometry, cursors: &Heap) {
    match error {
        PushError::Full { needed, free } => assert!(needed > free && free <= u64::from(ring.bytes), "{error}"),
        PushError::TooLong { found, most } => {
            assert!(found == len as u64 && most == u64::from(ring.max_record) && found > most, "{error}");
        }
        PushError::BadCursor { found, lowest, highest } => {
            assert_eq!((found, lowest, highest), (cursors.load(256, Ordering::Relaxed), acked, published), "{error}");
        }
        other => panic!("{other}"),
    }
}

/// Everything that was published and not given back is there, whole and in order.
fn all_there(memory: &Heap, ring: &RingGeometry, from: u64, live: &VecDeque<Sent>) {
    let mut consumer = Consumer::new(memory.clone(), ring, from);
    for (position, next, data) in live {
        let record = consumer.peek().expect("an honest producer").expect("a published record");
        // A pad in front of it was passed by.
        assert_eq!((record.position, record.next), (*position, *next));
        let mut out = vec![0; record.len];
        consumer.copy_out(&record, 0, &mut out);
        assert_eq!(out, *data);
        consumer.advance(&record);
    }
}
