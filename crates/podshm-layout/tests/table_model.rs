//! The table against a `BTreeMap`, and against garbage.

use podshm_layout::TableGeometry;
use podshm_layout::heap::Heap;
use podshm_layout::mem::Store;
use podshm_layout::sync::Ordering;
use podshm_layout::table::{MAX_VALUE, ReadError, TableError, TableReader, TableWriter};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    Put(u16, usize),
    Remove(u16),
}

fn key(n: u16) -> Vec<u8> {
    let mut key = format!("namespace-{n}/service").into_bytes();
    key.truncate(1 + n as usize % 40);
    key.extend(n.to_le_bytes());
    key
}

fn value(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed * 13 + i) as u8).collect()
}

proptest! {
    #[test]
    fn behaves_as_a_map(ops in proptest::collection::vec(prop_oneof![
        3 => (0u16..120, prop_oneof![0usize..300, 0usize..5000]).prop_map(|(k, n)| Op::Put(k, n)),
        1 => (0u16..120).prop_map(Op::Remove)], 1..400), keys in 1u64..150)
    {
        let geometry = TableGeometry::sized_for(keys, 64 * 1024).unwrap();
        let memory = Heap::new(geometry.size() as usize);
        let mut writer = TableWriter::new(memory.clone(), geometry);
        let reader = TableReader::new(memory, geometry);
        let mut model = BTreeMap::new();
        let mut lanes = BTreeMap::new();
        let mut buffer = vec![0; MAX_VALUE];
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Put(k, n) => {
                    let data = value(step, n);
                    match writer.put(&key(k), &data, step as u64) {
                        Ok(()) => { model.insert(k, data); }
                        Err(error) => prop_assert!(error.wants_growth(), "{}", error),
                    }
                }
                Op::Remove(k) => prop_assert_eq!(writer.remove(&key(k), step as u64), model.remove(&k).is_some()),
            }
            prop_assert_eq!(reader.len(), model.len() as u64);
            let probe = (step * 7 % 120) as u16;
            let found = reader.copy(&key(probe), &mut buffer).unwrap().map(|n| buffer[..n].to_vec());
            prop_assert_eq!(found.as_ref(), model.get(&probe));
            if let Some(lane) = lanes.get_mut(&probe) {
                let found = reader.copy_in_lane(lane, &key(probe), &mut buffer).unwrap().map(|n| buffer[..n].to_vec());
                prop_assert_eq!(found.as_ref(), model.get(&probe));
            } else if let Some(found) = reader.find(&key(probe)).unwrap() {
                lanes.insert(probe, found.lane());
            }
        }
        let mut scanned = BTreeMap::new();
        reader.scan(|k, v| { scanned.insert(k.to_vec(), v.to_vec()); }).unwrap();
        prop_assert_eq!(scanned, model.iter().map(|(k, v)| (key(*k), v.clone())).collect::<BTreeMap<_, _>>());

        let larger = TableGeometry::sized_for(keys * 2 + 200, writer.live_bytes() * 2).unwrap();
        let memory = Heap::new(larger.size() as usize);
        let mut grown = TableWriter::new(memory.clone(), larger);
        writer.copy_into(&mut grown, 0).unwrap();
        let reader = TableReader::new(memory, larger);
        for (k, v) in &model {
            let n = reader.copy(&key(*k), &mut buffer).unwrap().expect("copied");
            prop_assert_eq!(&buffer[..n], &v[..]);
        }
    }

    #[test]
    fn survives_any_bytes(noise in proptest::collection::vec((0usize..2048, any::<u64>()), 0..400)) {
        let geometry = TableGeometry::sized_for(20, 4096).unwrap();
        let memory = Heap::new(geometry.size() as usize);
        let mut writer = TableWriter::new(memory.clone(), geometry);
        for k in 0..20 { writer.put(&key(k), &value(k as usize, 50), 0).unwrap(); }
        for (at, word) in noise { memory.store(at * 8 % geometry.size() as usize, word, Ordering::Relaxed); }
        let reader = TableReader::new(memory, geometry);
        let mut buffer = vec![0; 100];
        for k in 0..20 {
            match reader.copy(&key(k), &mut buffer) {
                Ok(_) | Err(ReadError::Corrupt { .. } | ReadError::BufferTooSmall { .. }) => {}
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
        let _ = reader.scan(|_, _| {});
    }
}

#[test]
fn limits_are_named() {
    let geometry = TableGeometry::sized_for(4, 256).unwrap();
    let mut writer = TableWriter::new(Heap::new(geometry.size() as usize), geometry);
    assert_eq!(writer.put(&[], b"v", 0), Err(TableError::Key { found: 0 }));
    assert_eq!(writer.put(&[1; 256], b"v", 0), Err(TableError::Key { found: 256 }));
    assert_eq!(writer.put(b"k", &[0; MAX_VALUE + 1], 0), Err(TableError::Value { found: MAX_VALUE + 1 }));
    assert_eq!(writer.put(&[1; 255], &[0; MAX_VALUE], 0), Ok(()));
}

#[test]
fn a_snapshot_says_that_the_table_changed() {
    let geometry = TableGeometry::sized_for(4, 256).unwrap();
    let memory = Heap::new(geometry.size() as usize);
    let mut writer = TableWriter::new(memory.clone(), geometry);
    let reader = TableReader::new(memory, geometry);
    let mut buffer = [0; 8];
    writer.put(b"a", b"1", 0).unwrap();
    let snapshot = reader.snapshot();
    snapshot.copy(b"a", &mut buffer).unwrap();
    assert_eq!(snapshot.finish(), Some(2));
    let snapshot = reader.snapshot();
    writer.put(b"a", b"2", 0).unwrap();
    assert_eq!(snapshot.finish(), None);
    let batch = writer.batch();
    assert_eq!(reader.snapshot().finish(), None, "a batch in hand is not a version");
    drop(batch);
    assert!(reader.snapshot().finish().is_some());
}
