//! A region's header, and what the broker says of a region, as whoever maps it checks them.

use crate::input::Input;
use podshm_layout::heap::Heap;
use podshm_layout::mem::{Load, Store};
use podshm_layout::sync::Ordering;
use podshm_layout::{PAGE, RegionHeader, RegionKind};
use podshm_proto::Region;

const FIELDS: [&str; 5] = ["magic", "layout and kind", "generation", "size", "owner"];

/// The target.
pub fn region(data: &[u8]) {
    let mut input = Input::new(data);
    let region = Region {
        services: 0,
        id: input.u64(),
        kind: u32::from(input.choice(6)),
        generation: input.word(),
        bytes: input.word(),
        owner: input.word(),
        buckets: input.word() as u32,
        units: input.word() as u32,
        layout: input.u32(),
    };
    let header = region.header();
    assert_eq!(header.is_some(), (1..=4).contains(&region.kind), "kind {}", region.kind);
    if let Ok(geometry) = region.table() {
        assert!(geometry.buckets > 0 && geometry.units > 0);
        assert!(geometry.data() >= 4096 + u64::from(geometry.buckets) * 64);
        assert!(geometry.data() + u64::from(geometry.units) * 64 <= geometry.size());
        assert!(geometry.size() <= region.bytes, "{geometry:?} in {region:?}");
    }
    let Some(header) = header else { return };
    let memory = Heap::new(PAGE);
    header.write(&memory);
    assert_eq!(header.check(&memory), Ok(()));
    let honest: Vec<u64> = (0..5).map(|n| memory.load(n * 8, Ordering::Relaxed)).collect();
    // Words of the region that its writer changed.
    while !input.is_empty() {
        let at = usize::from(input.choice(8));
        let word =
            if input.choice(2) == 0 { input.word() } else { honest.get(at).map_or(0, |w| w ^ 1 << input.choice(64)) };
        memory.store(at * 8, word, Ordering::Relaxed);
    }
    let lie = (0..5).find(|&n| memory.load(n * 8, Ordering::Relaxed) != honest[n]);
    match (header.check(&memory), lie) {
        (Ok(()), None) => {}
        (Err(error), Some(n)) => {
            let found = memory.load(n * 8, Ordering::Relaxed);
            assert_eq!((error.field, error.expected, error.found), (FIELDS[n], honest[n], found));
            assert!(error.to_string().contains(&format!("{found:#x}")), "{error}");
        }
        (result, lie) => panic!("{result:?} where field {lie:?} lies"),
    }
    let other = RegionHeader { kind: RegionKind::Notice, ..header };
    assert_eq!(other.check(&memory).is_ok(), lie.is_none() && header.kind == RegionKind::Notice);
}
