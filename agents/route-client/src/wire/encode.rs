//! Endpoints to bytes: the agent's side.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    ALL_EJECTED, Address, Endpoint, HEADER_LEN, HINTED, MAGIC, MAX_NAME_LEN, MAX_ZONES, NO_ZONE, RECORD_LEN, SLOT_LEN,
    SUM_AT, TERMINATING, TRUNCATED, ZONE_LEN, checksum, zone_hash,
};
use crate::MAX_VALUE_LEN;

/// The value of the route with the id `route`. The order of `endpoints` doesn't matter; the same set gives the same bytes,
/// never more than [`MAX_VALUE_LEN`] of them.
///
/// The candidates are settled here and not at each pick: the ready endpoints, or where none is ready those that serve
/// while terminating. An ejected one (weight 0) is no candidate, unless all are: then none is, with equal weight.
pub fn encode(route: u64, endpoints: &[Endpoint]) -> Vec<u8> {
    let mut sorted: Vec<(u64, &Endpoint)> = endpoints.iter().map(|e| (e.id(), e)).collect();
    sorted.sort_unstable_by_key(|&(id, e)| (rank(e), id, e));
    let whole = build(route, &sorted, sorted.len());
    if whole.len() <= MAX_VALUE_LEN {
        return whole;
    }
    // The length grows with the number kept, so the most that fits can be found by halving.
    let (mut fits, mut too_many) = (0, sorted.len().min(MAX_VALUE_LEN / RECORD_LEN));
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if build(route, &sorted, middle).len() <= MAX_VALUE_LEN { fits = middle } else { too_many = middle }
    }
    build(route, &sorted, fits)
}

/// What is kept first when not all fit.
fn rank(e: &Endpoint) -> (bool, Reverse<bool>, Reverse<bool>, Reverse<bool>) {
    (!e.ready, Reverse(e.serving && e.terminating), Reverse(e.weight > 0), Reverse(e.serving))
}

/// The value with the first `keep` endpoints, whatever its length.
fn build(route: u64, sorted: &[(u64, &Endpoint)], keep: usize) -> Vec<u8> {
    let any_ready = sorted.iter().any(|(_, e)| e.ready);
    // As kube-proxy does: hints count only if every ready endpoint has one. Of all, not only of those kept.
    let hinted = any_ready && sorted.iter().all(|(_, e)| !e.ready || !e.hints.is_empty());
    let kept = &sorted[..keep];
    let candidate = |e: &Endpoint| {
        if any_ready { e.ready } else { e.serving && e.terminating }
    };
    let some = kept.iter().any(|(_, e)| candidate(e));
    let all_ejected = some && !kept.iter().any(|(_, e)| candidate(e) && e.weight > 0);
    let candidates: Vec<Candidate<'_>> = kept
        .iter()
        .zip(0u16..)
        .filter(|((_, e), _)| candidate(e) && (e.weight > 0 || all_ejected))
        .map(|(&(_, endpoint), record)| Candidate { endpoint, record, weight: endpoint.weight.max(1) })
        .collect();

    let zones = zones(kept);
    let mut pool = Vec::new();
    let mut slots = alias_slots(&candidates.iter().collect::<Vec<_>>());
    let all_slots = count(slots.len());
    let mut zone_bytes = Vec::with_capacity(zones.len() * ZONE_LEN);
    for &zone in zones.keys() {
        let mut put = |run: Vec<[u16; 3]>| {
            let first = slots.len() as u32;
            let count = count(run.len());
            slots.extend(run);
            (first, count)
        };
        let local: Vec<_> = candidates.iter().filter(|c| c.endpoint.zone.as_deref() == Some(zone)).collect();
        let local = put(alias_slots(&local));
        let hint: Vec<_> =
            candidates.iter().filter(|c| hinted && c.endpoint.hints.iter().any(|h| &**h == zone)).collect();
        let hint = put(alias_slots(&hint));
        zone_bytes.extend(zone_hash(zone).to_le_bytes());
        zone_bytes.extend((pool.len() as u32).to_le_bytes());
        zone_bytes.extend(count(zone.len()).to_le_bytes());
        zone_bytes.extend([0; 2]);
        zone_bytes.extend(local.0.to_le_bytes());
        zone_bytes.extend(local.1.to_le_bytes());
        zone_bytes.extend(hint.1.to_le_bytes());
        zone_bytes.extend(hint.0.to_le_bytes());
        zone_bytes.extend([0; 4]);
        pool.extend(zone.as_bytes());
    }
    let mut records = Vec::with_capacity(kept.len() * RECORD_LEN);
    for &(id, endpoint) in kept {
        put_record(&mut records, &mut pool, id, endpoint, &zones);
    }

    let left_out = sorted.len() - keep;
    let flags =
        [(left_out > 0, TRUNCATED), (hinted, HINTED), (some && !any_ready, TERMINATING), (all_ejected, ALL_EJECTED)];
    let flags = flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag);
    let mut value =
        Vec::with_capacity(HEADER_LEN + zone_bytes.len() + slots.len() * SLOT_LEN + records.len() + pool.len());
    value.extend(MAGIC.to_le_bytes());
    for half in [flags, count(keep), count(zones.len()), all_slots] {
        value.extend(half.to_le_bytes());
    }
    for word in [slots.len(), pool.len(), left_out] {
        value.extend(u32::try_from(word).unwrap_or(u32::MAX).to_le_bytes());
    }
    value.extend(route.to_le_bytes());
    value.resize(HEADER_LEN, 0);
    value.extend(zone_bytes);
    for slot in slots {
        slot.iter().chain(&[0]).for_each(|half| value.extend(half.to_le_bytes()));
    }
    value.extend(records);
    value.extend(pool);
    let sum = checksum(&value);
    value[SUM_AT..SUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
    value
}

struct Candidate<'a> {
    endpoint: &'a Endpoint,
    record: u16,
    weight: u16,
}

/// The zones by name, with their numbers. A name that is too long or beyond [`MAX_ZONES`] counts as no zone.
fn zones<'a>(kept: &[(u64, &'a Endpoint)]) -> BTreeMap<&'a str, u8> {
    let own = kept.iter().filter_map(|(_, e)| e.zone.as_deref());
    let hints = kept.iter().flat_map(|(_, e)| e.hints.iter().map(|h| &**h));
    let names: BTreeSet<&str> = own.chain(hints).filter(|z| (1..=MAX_NAME_LEN).contains(&z.len())).collect();
    names.into_iter().take(MAX_ZONES).zip(0u8..).collect()
}

/// Vose's alias table in whole numbers: a uniform choice of a slot, then of its record or its alias, is a choice by weight.
fn alias_slots(candidates: &[&Candidate<'_>]) -> Vec<[u16; 3]> {
    let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    let mut shares: Vec<u64> = candidates.iter().map(|c| u64::from(c.weight) * candidates.len() as u64).collect();
    let mut slots: Vec<[u16; 3]> = candidates.iter().map(|c| [c.record, u16::MAX, c.record]).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..candidates.len()).partition(|&i| shares[i] < total);
    while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
        slots[poor][1] = ((shares[poor] << 16) / total) as u16;
        slots[poor][2] = candidates[rich].record;
        shares[rich] -= total - shares[poor];
        if shares[rich] < total {
            large.pop();
            small.push(rich);
        }
    }
    slots
}

fn put_record(records: &mut Vec<u8>, pool: &mut Vec<u8>, id: u64, e: &Endpoint, zones: &BTreeMap<&str, u8>) {
    let mut address = [0; 16];
    let family = match &e.address {
        Address::V4(ip) => {
            address[..4].copy_from_slice(&ip.octets());
            4
        }
        Address::V6(ip) => {
            address = ip.octets();
            6
        }
        Address::Fqdn(name) => {
            let name = &name.as_bytes()[..name.len().min(MAX_NAME_LEN)];
            address[..4].copy_from_slice(&(pool.len() as u32).to_le_bytes());
            address[4..6].copy_from_slice(&count(name.len()).to_le_bytes());
            pool.extend(name);
            1
        }
    };
    let hints = e.hints.iter().filter_map(|h| zones.get(&**h)).fold(0u64, |all, zone| all | 1 << zone);
    let flags = [(e.ready, 1), (e.serving, 2), (e.terminating, 4), (!e.hints.is_empty(), 8)];
    records.extend(address);
    records.extend(id.to_le_bytes());
    records.extend(hints.to_le_bytes());
    records.extend(e.port.to_le_bytes());
    records.extend(e.weight.to_le_bytes());
    records.push(e.zone.as_deref().and_then(|z| zones.get(z)).copied().unwrap_or(NO_ZONE));
    records.push(flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag));
    records.extend([family, e.protocol as u8]);
}

/// A count as the format holds it. A value that would need more is over the limit anyway and never leaves [`encode`].
fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
