//! The store against a plain model: whatever the order of events, what it holds is what the slices say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;
use route_agent::{
    FullWeights, Slice, SliceName, Store, WatchEvent, Weights,
    slices::{List, Port, SliceEndpoint},
};
use route_client::{
    Address, Route, RouteKey,
    wire::{Endpoint, Protocol},
};

fn any_slice() -> impl Strategy<Value = Slice> {
    let address =
        prop_oneof![(0u32..6).prop_map(|n| Address::V4(n.into())), (0u128..3).prop_map(|n| Address::V6(n.into())),];
    let endpoint = (address, any::<(bool, bool, bool)>(), proptest::option::of("z[ab]"), proptest::option::of("z[ab]"));
    let endpoint = endpoint.prop_map(|(address, (ready, serving, terminating), zone, hint)| SliceEndpoint {
        address,
        ready,
        serving,
        terminating,
        zone: zone.map(Arc::from),
        hints: hint.map(Arc::from).into_iter().collect(),
    });
    let port = (proptest::option::of("http|grpc"), prop_oneof![Just(80u16), Just(81)]);
    let port = port.prop_map(|(name, number)| Port { name: name.map(Arc::from), number, protocol: Protocol::Tcp });
    (
        (0u8..2, 0u8..4),
        proptest::option::weighted(0.9, 0u8..2),
        0u64..12,
        proptest::collection::vec(port, 0..3),
        proptest::collection::vec(endpoint, 0..4),
    )
        .prop_map(|((ns, name), service, resource_version, ports, endpoints)| Slice {
            name: SliceName { namespace: format!("ns{ns}").into(), name: format!("s{name}").into() },
            service: service.map(|s| format!("svc{s}").into()),
            resource_version,
            ports,
            ports_skipped: 0,
            endpoints,
        })
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Slice),
    Delete(SliceName, u64),
    List(Vec<Slice>, bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_slice().prop_map(Step::Apply),
        2 => (any_slice(), 0u64..12).prop_map(|(s, v)| Step::Delete(s.name, v)),
        1 => (proptest::collection::vec(any_slice(), 0..6), any::<bool>()).prop_map(|(s, c)| Step::List(s, c)),
    ]
}

/// Who says what of an endpoint, and at which version.
type Claims = BTreeMap<(Address, u16), Vec<(u64, Endpoint)>>;

/// Slices and tombstones, nothing else.
#[derive(Default)]
struct Model {
    slices: BTreeMap<SliceName, Slice>,
    deleted: BTreeMap<SliceName, u64>,
}

impl Model {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Apply(s) => {
                let held = self.slices.get(&s.name).map(|h| h.resource_version).or(self.deleted.get(&s.name).copied());
                if s.resource_version == 0 || held.is_none_or(|held| s.resource_version > held) {
                    self.deleted.remove(&s.name);
                    self.slices.insert(s.name.clone(), s.clone());
                }
            }
            Step::Delete(name, version) => {
                let held = self.slices.get(name).map_or(0, |h| h.resource_version);
                if *version == 0 || *version >= held {
                    self.slices.remove(name);
                    self.deleted.insert(name.clone(), held.max(*version));
                }
            }
            Step::List(slices, complete) => {
                if *complete {
                    self.slices.clear();
                    self.deleted.clear();
                }
                let mut newest: BTreeMap<SliceName, Slice> = BTreeMap::new();
                for s in slices {
                    if newest.get(&s.name).is_none_or(|h| h.resource_version <= s.resource_version) {
                        newest.insert(s.name.clone(), s.clone());
                    }
                }
                self.slices.extend(newest);
            }
        }
    }

    fn routes(&self) -> BTreeMap<RouteKey, BTreeSet<Endpoint>> {
        // All claims on an endpoint first, then the best of them.
        let mut claims: BTreeMap<RouteKey, Claims> = BTreeMap::new();
        for s in self.slices.values().filter(|s| s.service.is_some()) {
            for p in &s.ports {
                let port = p.name.as_deref().map_or(p.number.to_string(), str::to_owned);
                let key = RouteKey::new(&s.name.namespace, s.service.as_deref().unwrap(), &port).unwrap();
                let route = claims.entry(key).or_default();
                for e in &s.endpoints {
                    let (zone, hints) = (e.zone.clone(), e.hints.clone());
                    let (ready, serving, terminating) = (e.ready, e.serving, e.terminating);
                    let new = Endpoint {
                        ready,
                        serving,
                        terminating,
                        zone,
                        hints,
                        ..Endpoint::new(e.address.clone(), p.number)
                    };
                    route.entry((e.address.clone(), p.number)).or_default().push((s.resource_version, new));
                }
            }
        }
        let best = |all: Vec<(u64, Endpoint)>| {
            all.into_iter().max_by_key(|(v, e)| (*v, e.ready, e.serving, !e.terminating, e.clone())).unwrap().1
        };
        claims.into_iter().map(|(key, route)| (key, route.into_values().map(best).collect())).collect()
    }
}

fn list(slices: Vec<Slice>, complete: bool) -> List {
    List { slices, bad: vec![], complete }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn incremental_is_the_model(steps in proptest::collection::vec(any_step(), 1..40)) {
        let (mut store, mut model) = (Store::new(), Model::default());
        // What somebody knows who only ever heard of changes.
        let mut told: BTreeMap<RouteKey, Arc<[u8]>> = BTreeMap::new();
        for step in steps {
            model.step(&step);
            let changes = match step {
                Step::Apply(slice) => store.apply(WatchEvent::Applied(slice), &FullWeights),
                Step::Delete(name, resource_version) => store.apply(WatchEvent::Deleted { name, resource_version }, &FullWeights),
                Step::List(slices, complete) => store.replace(list(slices, complete), &FullWeights),
            };
            for change in changes.routes {
                let before = match change.value.clone() {
                    Some(value) => told.insert(change.key.clone(), value),
                    None => told.remove(&change.key),
                };
                prop_assert_ne!(before, change.value, "{} was told without a change", change.key);
            }
            prop_assert!(store.values().eq(told.iter()));

            let mut found = BTreeMap::new();
            for (key, value) in store.values() {
                let route = Route::decode(&mut &**value).unwrap();
                prop_assert_eq!(route.route, key.id());
                prop_assert_eq!(store.key(key.id()), Some(key));
                prop_assert_eq!(store.members(key).len(), route.endpoints.len());
                found.insert(key.clone(), route.endpoints.into_iter().collect::<BTreeSet<_>>());
            }
            prop_assert_eq!(found, model.routes());

            let mut fresh = Store::new();
            fresh.replace(list(model.slices.values().cloned().collect(), true), &FullWeights);
            prop_assert!(store.values().eq(fresh.values()), "a fresh start gives the same bytes");
            prop_assert_eq!(store.counts(), fresh.counts());
        }
    }
}

#[test]
fn weights_reach_the_value_and_only_then_is_it_a_change() {
    struct Without(u64);
    impl Weights for Without {
        fn weight(&self, _: u64, endpoint: u64) -> u16 {
            if endpoint == self.0 { 0 } else { 256 }
        }
    }
    let endpoint = |n: u32| SliceEndpoint {
        address: Address::V4(n.into()),
        ready: true,
        serving: true,
        terminating: false,
        zone: None,
        hints: vec![],
    };
    let slice = Slice {
        name: SliceName { namespace: "n".into(), name: "s-1".into() },
        service: Some("s".into()),
        resource_version: 1,
        ports: vec![Port { name: None, number: 80, protocol: Protocol::Tcp }],
        ports_skipped: 0,
        endpoints: vec![endpoint(1), endpoint(2)],
    };
    let mut store = Store::new();
    store.replace(list(vec![slice], true), &FullWeights);
    let key: RouteKey = "n/s:80".parse().unwrap();
    let out = Address::V4(1.into()).endpoint_id(80);
    assert_eq!(store.reweigh(key.id(), &FullWeights), None);
    assert_eq!(store.reweigh(key.id() ^ 1, &FullWeights), None);
    let change = store.reweigh(key.id(), &Without(out)).unwrap();
    assert_eq!(Some(change.value.as_ref().unwrap()), store.value(&key));
    let route = Route::decode(&mut &**change.value.as_ref().unwrap()).unwrap();
    assert!(route.endpoints.iter().all(|e| (e.weight == 0) == (e.id() == out)));
}
