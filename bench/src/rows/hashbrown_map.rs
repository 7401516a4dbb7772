//! A hash map inside the process: what a look-up by key would cost if nothing were shared.

use anyhow::Result;
use hashbrown::HashMap;

use crate::control::Control;
use crate::metric::{HASHBROWN, Metric};
use crate::routes::{self, COUNTS, MAX_VALUE, Queries};
use crate::row::{Plan, Row, Sample};

/// Keys and values where hashbrown's users have them: on the heap, a pointer away.
pub const BOXED: HashbrownMap = HashbrownMap { inline: false };
/// Not the baseline: values inside the map's own array, one cache miss less and no growth.
pub const INLINE: HashbrownMap = HashbrownMap { inline: true };

pub struct HashbrownMap {
    inline: bool,
}

impl Row for HashbrownMap {
    fn name(&self) -> &'static str {
        if self.inline { "hashbrown-inline" } else { HASHBROWN }
    }

    fn title(&self) -> String {
        let values = if self.inline { ", values inline" } else { "" };
        format!("hashbrown in the process{values}")
    }

    fn metrics(&self) -> Vec<Metric> {
        COUNTS.iter().map(|&routes| Metric::Lookup { routes }).collect()
    }

    fn measure(&self, _peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let sample = |&count: &usize| {
            let queries = Queries::shuffled(count);
            let value = if self.inline { inline(count, &queries, plan)? } else { boxed(count, &queries, plan)? };
            let metric = Metric::Lookup { routes: count };
            Ok(Sample { metric, value })
        };
        COUNTS.iter().map(sample).collect()
    }
}

fn boxed(count: usize, queries: &Queries, plan: Plan) -> Result<f64> {
    let map: HashMap<Box<[u8]>, Box<[u8]>> =
        (0..count).map(|index| (routes::key(index).into(), routes::value(index).into())).collect();
    let lookup = |key: &[u8], out: &mut [u8]| {
        let value = map.get(key)?;
        out[..value.len()].copy_from_slice(value);
        Some(value.len())
    };
    queries.verify(lookup)?;
    Ok(queries.time(plan.budget, lookup))
}

fn inline(count: usize, queries: &Queries, plan: Plan) -> Result<f64> {
    struct Inline {
        len: u32,
        bytes: [u8; MAX_VALUE],
    }
    let map: HashMap<Box<[u8]>, Inline> = (0..count)
        .map(|index| {
            let (mut bytes, value) = ([0; MAX_VALUE], routes::value(index));
            bytes[..value.len()].copy_from_slice(&value);
            let len = value.len() as u32;
            (routes::key(index).into(), Inline { len, bytes })
        })
        .collect();
    let lookup = |key: &[u8], out: &mut [u8]| {
        let value = map.get(key)?;
        let len = value.len as usize;
        out[..len].copy_from_slice(&value.bytes[..len]);
        Some(len)
    };
    queries.verify(lookup)?;
    Ok(queries.time(plan.budget, lookup))
}
