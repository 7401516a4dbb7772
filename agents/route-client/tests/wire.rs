//! The route value's format: what goes in comes out, nothing is trusted, the choice is fair.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use proptest::prelude::*;
use route_client::wire::{HEADER_LEN, Protocol, checksum, encode};
use route_client::*;

fn endpoint(n: u32) -> Endpoint {
    Endpoint::new(Address::V4(Ipv4Addr::from(0x0a00_0000 + n)), 8080)
}

fn zoned(n: u32, zone: &str, hints: &[&str]) -> Endpoint {
    Endpoint { zone: Some(zone.into()), hints: hints.iter().map(|h| Arc::from(*h)).collect(), ..endpoint(n) }
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let address = prop_oneof![
        any::<u32>().prop_map(|ip| Address::V4(ip.into())),
        any::<u128>().prop_map(|ip| Address::V6(ip.into())),
        "[a-z]{1,20}(\\.[a-z]{1,20}){1,3}".prop_map(|name| Address::Fqdn(name.into())),
    ];
    let zone = || "zone-[a-e]".prop_map(Arc::<str>::from);
    let hints = proptest::collection::btree_set(zone(), 0..3).prop_map(|h| h.into_iter().collect());
    let bits = any::<(bool, bool, bool)>();
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let weight = prop_oneof![Just(0u16), Just(FULL_WEIGHT), any::<u16>()];
    (address, any::<u16>(), protocol, bits, weight, proptest::option::of(zone()), hints).prop_map(
        |(address, port, protocol, (ready, serving, terminating), weight, zone, hints)| Endpoint {
            address,
            port,
            protocol,
            ready,
            serving,
            terminating,
            weight,
            zone,
            hints,
        },
    )
}

/// What `encode` and `pick` promise together, said plainly.
fn model(endpoints: &[Endpoint], zone: &str, local_from: Option<usize>) -> (Why, BTreeSet<Endpoint>) {
    let ready: Vec<_> = endpoints.iter().filter(|e| e.ready).cloned().collect();
    let hinted = !ready.is_empty() && ready.iter().all(|e| !e.hints.is_empty());
    let mut candidates = ready;
    if candidates.is_empty() {
        candidates = endpoints.iter().filter(|e| e.serving && e.terminating).cloned().collect();
    }
    if candidates.iter().any(|e| e.weight > 0) {
        candidates.retain(|e| e.weight > 0);
    }
    let for_zone: BTreeSet<_> = candidates.iter().filter(|e| e.hints.iter().any(|h| &**h == zone)).cloned().collect();
    let local: BTreeSet<_> = candidates.iter().filter(|e| e.zone.as_deref() == Some(zone)).cloned().collect();
    if hinted && !for_zone.is_empty() {
        (Why::Hint, for_zone)
    } else if local_from.is_some_and(|n| local.len() >= n) {
        (Why::Local, local)
    } else {
        (Why::All, candidates.into_iter().collect())
    }
}

fn back(mut value: &[u8], picked: &Picked) -> (Address, u16) {
    (picked.record.address(&picked.header, &mut value).unwrap(), picked.record.port)
}

proptest! {
    #[test]
    fn roundtrip(endpoints in proptest::collection::vec(any_endpoint(), 0..40), route: u64) {
        let bytes = encode(route, &endpoints);
        let decoded = Route::decode(&mut bytes.as_slice()).unwrap();
        prop_assert_eq!((decoded.route, decoded.left_out), (route, 0));
        let sorted = |mut all: Vec<Endpoint>| { all.sort(); all };
        prop_assert_eq!(sorted(decoded.endpoints.clone()), sorted(endpoints.clone()));
        let mut turned = endpoints;
        turned.reverse();
        prop_assert_eq!(encode(route, &turned), bytes);
    }

    #[test]
    fn pick_agrees_with_the_model(
        endpoints in proptest::collection::btree_map(any::<u32>(), any_endpoint(), 0..20),
        zone in "zone-[a-f]",
        local_from in proptest::option::of(1u16..4),
        seed: u64,
    ) {
        // One endpoint per id, as a route has them.
        let endpoints: BTreeMap<u64, Endpoint> = endpoints.into_values().map(|e| (e.id(), e)).collect();
        let endpoints: Vec<Endpoint> = endpoints.into_values().collect();
        let value = encode(7, &endpoints);
        let locality = Locality::zone(&zone);
        let locality = local_from.map_or(locality, |n| locality.prefer_local_from(n));
        let (why, expected) = model(&endpoints, &zone, local_from.map(usize::from));
        let expected: BTreeSet<_> = expected.into_iter().map(|e| (e.address, e.port)).collect();
        let mut random = SmallRandom::new(seed);
        for _ in 0..50 {
            match pick(&mut value.as_slice(), &locality, &mut random) {
                Ok(picked) => {
                    prop_assert_eq!(picked.why, why);
                    prop_assert!(expected.contains(&back(&value, &picked)));
                }
                Err(error) => {
                    prop_assert!(expected.is_empty(), "{}", error);
                    let none = matches!(error, PickError::NoCandidate { .. });
                    prop_assert!(none);
                }
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), seed: u64) {
        prop_assert!(Route::decode(&mut bytes.as_slice()).is_err());
        let _ = pick(&mut bytes.as_slice(), &Locality::zone("zone-a"), &mut SmallRandom::new(seed));
    }

    /// A peer that knows the format, and lies in some bytes: also where it made the checksum fit.
    #[test]
    fn lies_never_panic(
        endpoints in proptest::collection::vec(any_endpoint(), 0..12),
        lies in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        header_only: bool,
        seed: u64,
    ) {
        let mut bytes = encode(1, &endpoints);
        let honest = bytes.clone();
        let range = if header_only { 40 } else { bytes.len() };
        for (at, lie) in lies {
            bytes[at.index(range)] = lie;
        }
        prop_assert!(bytes == honest || Route::decode(&mut bytes.as_slice()).is_err());
        let sum = checksum(&bytes);
        bytes[32..40].copy_from_slice(&sum.to_le_bytes());
        let _ = Route::decode(&mut bytes.as_slice());
        let mut random = SmallRandom::new(seed);
        for locality in [Locality::ANYWHERE, Locality::zone("zone-a"), Locality::zone("zone-b").prefer_local_from(1)] {
            if let Ok(picked) = pick(&mut bytes.as_slice(), &locality, &mut random) {
                let _ = picked.record.address(&picked.header, &mut bytes.as_slice());
            }
        }
    }
}

#[test]
fn choice_follows_weights() {
    let weights = [256u16, 128, 64, 0, 512, 1];
    let endpoints: Vec<_> = weights.iter().zip(0..).map(|(&weight, n)| Endpoint { weight, ..endpoint(n) }).collect();
    let value = encode(0, &endpoints);
    let mut counts = BTreeMap::<u64, u32>::new();
    let mut random = SmallRandom::new(1);
    let rounds = 1_000_000;
    for _ in 0..rounds {
        *counts.entry(pick(&mut value.as_slice(), &Locality::ANYWHERE, &mut random).unwrap().record.id).or_default() +=
            1;
    }
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    for e in &endpoints {
        let expected = f64::from(e.weight) / total;
        let found = f64::from(counts.get(&e.id()).copied().unwrap_or(0)) / f64::from(rounds);
        assert!((found - expected).abs() < 0.002, "weight {} expected {expected:.4}, found {found:.4}", e.weight);
    }
    assert!(!counts.contains_key(&endpoints[3].id()), "weight 0 is never picked");
}

#[test]
fn hints_need_every_candidate_and_a_zone_with_some() {
    let mut endpoints = vec![zoned(1, "a", &["a"]), zoned(2, "b", &["b"]), zoned(3, "b", &["b"])];
    let why = |endpoints: &[Endpoint], locality: Locality| {
        pick(&mut encode(0, endpoints).as_slice(), &locality, &mut SmallRandom::new(3)).unwrap().why
    };
    assert_eq!(why(&endpoints, Locality::zone("a")), Why::Hint);
    assert_eq!(why(&endpoints, Locality::zone("a").ignore_hints()), Why::All);
    assert_eq!(why(&endpoints, Locality::zone("c")), Why::All);
    assert_eq!(why(&endpoints, Locality::ANYWHERE), Why::All);
    endpoints[2].hints.clear();
    assert_eq!(why(&endpoints, Locality::zone("a")), Why::All, "one ready endpoint without a hint spoils them");
    assert_eq!(why(&endpoints, Locality::zone("b").prefer_local_from(2)), Why::Local);
    assert_eq!(why(&endpoints, Locality::zone("b").prefer_local_from(3)), Why::All);
    endpoints[2].ready = false;
    assert_eq!(why(&endpoints, Locality::zone("a")), Why::Hint, "an unready one doesn't");
    endpoints[0].weight = 0;
    assert_eq!(why(&endpoints, Locality::zone("a")), Why::All, "nobody left in the zone: all, not none");
}

#[test]
fn terminating_serves_only_when_nothing_is_ready_and_all_ejected_is_none() {
    let going = Endpoint { ready: false, terminating: true, ..endpoint(1) };
    let starting = Endpoint { ready: false, serving: false, ..endpoint(2) };
    let value = encode(0, &[going.clone(), starting.clone()]);
    let picked = pick(&mut value.as_slice(), &Locality::ANYWHERE, &mut SmallRandom::new(1)).unwrap();
    assert!(picked.header.terminating() && picked.record.id == going.id());
    let none = pick(&mut encode(0, &[starting]).as_slice(), &Locality::ANYWHERE, &mut SmallRandom::new(1)).unwrap_err();
    assert_eq!(none, PickError::NoCandidate { endpoints: 1 });
    assert!(none.to_string().contains("found none among 1"), "{none}");
    let ejected = Endpoint { weight: 0, ..endpoint(3) };
    let picked =
        pick(&mut encode(0, &[going, ejected.clone()]).as_slice(), &Locality::ANYWHERE, &mut SmallRandom::new(1))
            .unwrap();
    assert!(picked.header.all_ejected() && picked.record.id == ejected.id());
}

#[test]
fn a_big_service_is_cut_ready_first_and_always_alike() {
    let mut endpoints: Vec<_> = (0..3000).map(|n| zoned(n, "zone-a", &["zone-a"])).collect();
    for e in &mut endpoints[..1500] {
        (e.ready, e.serving) = (false, false);
    }
    let value = encode(9, &endpoints);
    assert!(value.len() <= MAX_VALUE_LEN && value.len() > MAX_VALUE_LEN - 128, "{}", value.len());
    let route = Route::decode(&mut value.as_slice()).unwrap();
    assert_eq!(route.left_out as usize + route.endpoints.len(), 3000);
    assert!(route.endpoints.len() > 1000 && route.endpoints.iter().all(|e| e.ready));
    endpoints.reverse();
    assert_eq!(encode(9, &endpoints), value);
    let few = encode(9, &endpoints[..700]);
    assert_eq!(Route::decode(&mut few.as_slice()).unwrap().left_out, 0);
}

#[test]
fn more_zones_than_bits_are_left_out_without_a_lie() {
    let endpoints: Vec<_> = (0..100).map(|n| zoned(n, &format!("z{n:03}"), &[&format!("z{n:03}")])).collect();
    let value = encode(0, &endpoints);
    let route = Route::decode(&mut value.as_slice()).unwrap();
    assert_eq!((route.zones.len(), route.endpoints.len()), (64, 100));
    let picked = |zone: &str| pick(&mut value.as_slice(), &Locality::zone(zone), &mut SmallRandom::new(2)).unwrap().why;
    assert_eq!((picked("z063"), picked("z064")), (Why::Hint, Why::All));
}

#[test]
fn errors_say_what_was_expected() {
    let value = encode(0, &[endpoint(1)]);
    let error = |bytes: &[u8]| Route::decode(&mut &*bytes).unwrap_err().to_string();
    let mut newer = value.clone();
    newer[3] = 2;
    let mut torn = value.clone();
    torn[HEADER_LEN + 20] ^= 1;
    for text in
        [error(&[]), error(&value[..value.len() - 1]), error(&newer), error(&torn), error(&vec![0; MAX_VALUE_LEN + 1])]
    {
        assert!(text.contains("expected") && text.contains("found") && text.contains(';'), "{text}");
    }
}

#[test]
fn a_zone_that_points_beyond_the_slots_is_found_out() {
    let mut value = encode(0, &[zoned(1, "a", &[]), zoned(2, "a", &[])]);
    let slots = u32::from_le_bytes(value[12..16].try_into().unwrap());
    value[HEADER_LEN + 16..HEADER_LEN + 20].copy_from_slice(&slots.to_le_bytes());
    let locality = Locality::zone("a").prefer_local_from(1);
    let error = pick(&mut value.as_slice(), &locality, &mut SmallRandom::new(1)).unwrap_err();
    let PickError::Wire(WireError::Field { field, .. }) = error else { panic!("{error}") };
    assert_eq!(field, "a slot's number");
}

#[test]
fn addresses_of_all_families_come_back() {
    let all =
        [Address::V4(Ipv4Addr::LOCALHOST), Address::V6(Ipv6Addr::LOCALHOST), Address::Fqdn("db.example.com".into())];
    for address in all {
        let value = encode(0, &[Endpoint::new(address.clone(), 443)]);
        let picked = pick(&mut value.as_slice(), &Locality::ANYWHERE, &mut SmallRandom::new(1)).unwrap();
        assert_eq!(back(&value, &picked), (address.clone(), 443));
        assert_eq!(picked.record.id, address.endpoint_id(443));
        let mut buf = [0; 255];
        let name = picked.record.name(&picked.header, &mut value.as_slice(), &mut buf).unwrap();
        assert_eq!(name.is_some(), matches!(address, Address::Fqdn(_)));
    }
}
