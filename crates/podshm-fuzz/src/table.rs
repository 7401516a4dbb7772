//! A table's reader over a region that a hostile writer writes, between reads and during them.

use crate::input::Input;
use crate::racing::Racing;
use podshm_layout::TableGeometry;
use podshm_layout::heap::Heap;
use podshm_layout::mem::{Load, Store};
use podshm_layout::sync::Ordering;
use podshm_layout::table::{ATTEMPTS, Lane, MAX_KEY, MAX_VALUE, ReadError, TableReader, TableWriter};
use std::collections::BTreeSet;
use xxhash_rust::xxh3::xxh3_64;

/// Key and value.
type Entry = (Vec<u8>, Vec<u8>);

const LANES: u64 = 7;
/// Words that one attempt at a lookup may load: 256 buckets of tags and seven entries, each with its record's header, a key and
/// a second look.
const MOST_LOADS: u64 = 256 * (1 + LANES * (1 + 1 + MAX_KEY.div_ceil(8) as u64 + 1));

/// The target.
pub fn table(data: &[u8]) {
    let mut input = Input::new(data);
    let geometry = TableGeometry { buckets: 1 + u32::from(input.choice(6)), units: 2 + u32::from(input.u8()) };
    let memory = Racing::new(Heap::new(geometry.size() as usize));
    let mut writer = TableWriter::new(memory.heap.clone(), geometry);
    for _ in 0..input.choice(24) {
        let (key, len) = (key(&mut input), input.below(200));
        let _ = writer.put(&key, &vec![input.u8(); len], 7);
    }
    let reader = TableReader::new(memory.clone(), geometry);
    let mut lanes: Vec<(Vec<u8>, Lane)> = Vec::new();
    let mut buffer = vec![0; MAX_VALUE];
    let words = geometry.size() as usize / 8;
    // A writer trusts its own memory: after a lie there is none any more.
    let mut honest = true;
    while !input.is_empty() {
        let choice = input.choice(10);
        honest &= choice > 3;
        match choice {
            0 => memory.heap.store(input.below(words) * 8, input.word(), Ordering::Relaxed),
            1 => {
                // An entry that points somewhere, and a tag and a reach that lead to it.
                let (key, at) = (key(&mut input), bucket_of(&geometry, &mut input));
                let lane = u64::from(input.choice(LANES as u8));
                let tag = (xxh3_64(&key) & 0xff).max(1);
                let word = tag << (lane * 8) | u64::from(input.u8()) << 56;
                memory.heap.store(at, word, Ordering::Relaxed);
                let unit = u64::from(input.u16()) % (u64::from(geometry.units) + 2);
                memory.heap.store(at + 8 + lane as usize * 8, unit << 32 | 1, Ordering::Relaxed);
            }
            2 => {
                let unit = input.below(geometry.units as usize) * 64;
                let word = input.word() << 8 | u64::from(input.u8());
                memory.heap.store(geometry.data() as usize + unit, word, Ordering::Relaxed);
            }
            3 => memory.plan((input.u8(), input.below(words) * 8, input.word())),
            4 => scan(&reader, &memory, &geometry),
            5 => snapshot(&reader, &memory, &key(&mut input)),
            6 => in_lane(&reader, &memory, &mut lanes, &mut input, &mut buffer),
            7 => {
                let (key, byte) = (key(&mut input), input.u8());
                if honest && writer.put(&key, &[byte; 20], 8).is_ok() {
                    assert_eq!(reader.copy(&key, &mut buffer), Ok(Some(20)), "what was published is found");
                }
            }
            _ => {
                let key = key(&mut input);
                let room = if input.choice(8) == 0 { input.below(64) } else { MAX_VALUE };
                lookup(&reader, &memory, &geometry, &key, &mut buffer[..room]);
                if let Ok(Some(found)) = reader.find(&key) {
                    lanes.push((key, found.lane()));
                }
            }
        }
    }
}

/// One of a few keys, short ones and long ones.
fn key(input: &mut Input<'_>) -> Vec<u8> {
    let n = input.choice(32);
    let len = [1, 7, 8, 9, 60, 255][usize::from(n % 6)];
    vec![n; len]
}

fn bucket_of(geometry: &TableGeometry, input: &mut Input<'_>) -> usize {
    TableGeometry::BUCKETS as usize + input.below(geometry.buckets as usize) * 64
}

fn lookup(reader: &TableReader<Racing>, memory: &Racing, geometry: &TableGeometry, key: &[u8], buffer: &mut [u8]) {
    let planned = memory.planned() as u64;
    memory.take_loads();
    let result = reader.copy(key, buffer);
    let loads = memory.take_loads();
    // Only a word that changed is a reason for another attempt.
    let attempts = (planned + 1).min(u64::from(ATTEMPTS) * u64::from(ATTEMPTS));
    assert!(loads <= attempts * (MOST_LOADS + 2), "a lookup loaded {loads} words with {planned} changes");
    if planned > 0 {
        return named(memory, geometry, result.err(), false);
    }
    let there = entries(&memory.heap, geometry);
    match result {
        Ok(Some(len)) => {
            let value = buffer[..len].to_vec();
            assert!(there.contains(&(key.to_vec(), value.clone())), "{key:?} has no value of {len} bytes");
            let found = reader.find(key).expect("as before").expect("as before");
            assert_eq!(found.value_len(), len);
            let mut part = vec![0; len / 2];
            reader.read(&found, len - part.len(), &mut part).expect("memory holds still");
            assert_eq!(part, value[len - part.len()..]);
            let beyond = reader.read(&found, len, &mut [0]);
            assert_eq!(beyond, Err(ReadError::OutOfValue { offset: len, len: 1, value: len }));
        }
        Ok(None) => assert!(!within_reach(&memory.heap, geometry, key), "{key:?} is there and was not found"),
        Err(error) => named(memory, geometry, Some(error), true),
    }
}

/// An error says what was found where, and the memory says so too.
fn named(memory: &Racing, geometry: &TableGeometry, error: Option<ReadError>, still: bool) {
    let Some(error) = error else { return };
    match error {
        ReadError::Corrupt { what, found, offset } => {
            assert!(offset < geometry.size() && offset.is_multiple_of(8), "{error}");
            if still {
                let word = memory.heap.load(offset as usize, Ordering::Relaxed);
                assert_eq!(found, if what == "unit" { word >> 32 } else { word }, "{error}");
            }
        }
        ReadError::BufferTooSmall { needed, found } => assert!(needed > found && needed <= MAX_VALUE, "{error}"),
        ReadError::Contended(_) => assert!(!still, "{error}"),
        other => panic!("{other}"),
    }
}

/// Every record that an entry leads to and that could be one.
fn entries(heap: &Heap, geometry: &TableGeometry) -> BTreeSet<Entry> {
    let each = |bucket: u64| (0..LANES).filter_map(move |lane| record(heap, geometry, bucket, lane).ok().flatten());
    (0..u64::from(geometry.buckets)).flat_map(each).collect()
}

fn record(heap: &Heap, geometry: &TableGeometry, bucket: u64, lane: u64) -> Result<Option<Entry>, &'static str> {
    let entry = heap.load((TableGeometry::BUCKETS + bucket * 64 + 8 + lane * 8) as usize, Ordering::Relaxed);
    let unit = entry >> 32;
    if unit == 0 {
        return Ok(None);
    }
    if unit >= u64::from(geometry.units) {
        return Err("unit");
    }
    let at = geometry.data() + unit * 64;
    let word = heap.load(at as usize, Ordering::Relaxed);
    let (key_len, value_len) = (word & 0xff, word >> 8);
    let value_at = at + 8 + key_len.next_multiple_of(8);
    if value_len > MAX_VALUE as u64 || value_at + value_len > geometry.size() {
        return Err("header");
    }
    let (mut key, mut value) = (vec![0; key_len as usize], vec![0; value_len as usize]);
    heap.copy_out(at as usize + 8, &mut key);
    heap.copy_out(value_at as usize, &mut value);
    Ok(Some((key, value)))
}

/// Whether a search for `key` passes a lane with its tag and its record.
fn within_reach(heap: &Heap, geometry: &TableGeometry, key: &[u8]) -> bool {
    let (hash, buckets) = (xxh3_64(key), u64::from(geometry.buckets));
    let (home, tag) = (((hash >> 32) * buckets) >> 32, (hash & 0xff).max(1));
    let tags = |bucket: u64| heap.load((TableGeometry::BUCKETS + bucket * 64) as usize, Ordering::Relaxed);
    (0..=tags(home) >> 56).any(|step| {
        let bucket = (home + step) % buckets;
        (0..LANES).any(|lane| {
            let is_tagged = tags(bucket) >> (lane * 8) & 0xff == tag;
            // Padding is part of what is compared; an honest writer's is zero.
            is_tagged && record(heap, geometry, bucket, lane).ok().flatten().is_some_and(|r| r.0 == key)
        })
    }) && key.len().is_multiple_of(8)
}

fn scan(reader: &TableReader<Racing>, memory: &Racing, geometry: &TableGeometry) {
    let planned = memory.planned();
    let mut seen = BTreeSet::new();
    let mut count = 0;
    let result = reader.scan(|key, value| {
        count += 1;
        assert!(key.len() <= MAX_KEY && value.len() <= MAX_VALUE);
        seen.insert((key.to_vec(), value.to_vec()));
    });
    assert!(count <= u64::from(geometry.buckets) * LANES);
    if planned > 0 {
        return named(memory, geometry, result.err(), false);
    }
    let there = entries(&memory.heap, geometry);
    match result {
        Ok(()) => assert_eq!(seen, there),
        Err(error) => {
            named(memory, geometry, Some(error), true);
            assert!(seen.is_subset(&there));
        }
    }
}

fn snapshot(reader: &TableReader<Racing>, memory: &Racing, key: &[u8]) {
    let still = memory.planned() == 0;
    let snapshot = reader.snapshot();
    let _ = snapshot.copy(key, &mut [0; 64]);
    let version = memory.heap.load(64, Ordering::Relaxed);
    let good = version.is_multiple_of(2).then_some(version);
    match snapshot.finish() {
        found if still => assert_eq!(found, good),
        found => assert!(found.is_none_or(|version| version.is_multiple_of(2))),
    }
}

fn in_lane(
    reader: &TableReader<Racing>,
    memory: &Racing,
    lanes: &mut [(Vec<u8>, Lane)],
    input: &mut Input<'_>,
    buffer: &mut [u8],
) {
    if lanes.is_empty() {
        return;
    }
    let n = input.below(lanes.len());
    let (key, lane) = &mut lanes[n];
    let still = memory.planned() == 0;
    let unchanged = reader.copy_unchanged(lane, buffer).map(|len| buffer[..len].to_vec());
    match reader.copy_in_lane(lane, key, buffer) {
        Ok(found) => {
            let found = found.map(|len| buffer[..len].to_vec());
            assert!(found.as_ref().is_none_or(|value| value.len() <= MAX_VALUE));
            if still && unchanged.is_some() {
                assert_eq!(found, unchanged, "two reads of one lane that held still");
            }
        }
        Err(ReadError::Corrupt { .. }) => {}
        Err(error) => assert!(!still, "{error}"),
    }
}
