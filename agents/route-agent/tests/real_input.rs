//! The real input in `examples/data`: counts that were worked out independently (by a Python script), and a replay.

use std::{collections::BTreeSet, path::PathBuf, time::Instant};

use route_agent::{FileSource, FullWeights, Pace, Source, SourceEvent, Store, WatchEvent, slices::List};
use route_client::{Locality, Route, RouteKey, SmallRandom, Why, pick};

/// Routes in the list: pairs of a service and a port.
const ROUTES: usize = 708;
/// [`census`] of the list.
const BEFORE: [usize; 5] = [708, 9004, 8595, 214, 0];
/// [`census`] after all events.
const AFTER: [usize; 5] = [708, 9004, 8072, 214, 0];

fn data(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data")).join(name)
}

fn input() -> (List, Vec<WatchEvent>) {
    let mut source =
        FileSource::new(data("endpointslices.json"), Some(data("endpointslice-events.jsonl")), Pace::Unpaced);
    let Some(SourceEvent::Snapshot(list)) = source.poll(0) else { panic!("no list") };
    let mut events = Vec::new();
    loop {
        match source.poll(0) {
            Some(SourceEvent::Event(event)) => events.push(event),
            Some(SourceEvent::End) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(source.connections(), 1);
    (list, events)
}

/// Routes, their endpoints, ready ones, routes that follow hints, routes without a ready endpoint.
fn census(store: &Store) -> [usize; 5] {
    let mut counts = [0; 5];
    for (key, value) in store.values() {
        let route = Route::decode(&mut &**value).unwrap();
        assert_eq!((route.route, route.left_out), (key.id(), 0));
        let ready = route.endpoints.iter().filter(|e| e.ready).count();
        let hinted = ready > 0 && route.endpoints.iter().all(|e| !e.ready || !e.hints.is_empty());
        let add = [1, route.endpoints.len(), ready, usize::from(hinted), usize::from(ready == 0)];
        counts.iter_mut().zip(add).for_each(|(count, n)| *count += n);
    }
    counts
}

#[test]
fn counts_agree() {
    let (list, events) = input();
    assert!(list.complete && list.bad.is_empty());
    assert_eq!(list.slices.len(), 458);
    assert_eq!(list.slices.iter().map(|s| s.endpoints.len()).sum::<usize>(), 5741);
    let count = |f: fn(&route_agent::slices::SliceEndpoint) -> bool| {
        list.slices.iter().flat_map(|s| &s.endpoints).filter(|e| f(e)).count()
    };
    assert_eq!(count(|e| e.ready), 5474);
    assert_eq!(count(|e| e.terminating), 125);
    assert_eq!(count(|e| !e.serving), 171);
    assert_eq!(count(|e| !e.hints.is_empty()), 1479);
    assert_eq!(count(|e| e.zone.as_deref() == Some("zone-c")), 1983);
    assert_eq!(events.len(), 400);

    let mut store = Store::new();
    let changes = store.replace(list, &FullWeights);
    assert_eq!((changes.routes.len(), changes.stale, changes.bad.len()), (ROUTES, 0, 0));
    // 450 services and `default/kubernetes`.
    assert_eq!(store.counts(), (458, 451, ROUTES));
    assert_eq!(census(&store), BEFORE);

    let started = Instant::now();
    let mut changed = 0;
    for event in events {
        let changes = store.apply(event, &FullWeights);
        assert_eq!((changes.stale, changes.bad.len()), (0, 0));
        changed += changes.routes.len();
    }
    println!("400 events: {:?}, {changed} changed values", started.elapsed());
    assert_eq!(store.counts(), (458, 451, ROUTES));
    assert_eq!(census(&store), AFTER);
}

#[test]
fn replay_is_the_same_as_a_relist_of_its_end() {
    let (list, events) = input();
    let mut store = Store::new();
    store.replace(list.clone(), &FullWeights);
    let mut last = list.clone();
    for event in events {
        if let WatchEvent::Applied(slice) = &event {
            let held = last.slices.iter_mut().find(|held| held.name == slice.name).unwrap();
            *held = slice.clone();
        }
        store.apply(event.clone(), &FullWeights);
        assert_eq!(store.apply(event, &FullWeights).stale, 1, "the same event again is stale");
    }
    let mut fresh = Store::new();
    fresh.replace(last.clone(), &FullWeights);
    assert!(store.values().eq(fresh.values()));
    assert!(store.replace(last, &FullWeights).routes.is_empty(), "a relist of the same changes nothing");

    // Back to the beginning: exactly the routes that differ are named.
    let before: BTreeSet<RouteKey> = {
        let mut old = Store::new();
        old.replace(list.clone(), &FullWeights);
        old.values().filter(|(key, value)| fresh.value(key) != Some(value)).map(|(key, _)| key.clone()).collect()
    };
    let named: BTreeSet<RouteKey> = store.replace(list, &FullWeights).routes.into_iter().map(|c| c.key).collect();
    assert!(!named.is_empty());
    assert_eq!(named, before);
}

#[test]
fn every_route_can_be_picked_from() {
    let (list, _) = input();
    let mut store = Store::new();
    store.replace(list, &FullWeights);
    let mut random = SmallRandom::new(1);
    let (mut hints, mut none) = (0, 0);
    for (_, value) in store.values() {
        for zone in ["zone-a", "zone-b", "zone-c"] {
            match pick(&mut &**value, &Locality::zone(zone), &mut random) {
                Ok(picked) => hints += usize::from(picked.why == Why::Hint),
                Err(_) => none += 1,
            }
        }
    }
    assert_eq!(none % 3, 0, "with or without a zone, a route has somebody or nobody");
    assert_eq!((hints > 0, none / 3), (true, 0));
}

#[test]
fn a_paced_source_keeps_time() {
    let mut source =
        FileSource::new(data("endpointslices.json"), Some(data("endpointslice-events.jsonl")), Pace::Over(4_000));
    assert!(matches!(source.poll(1_000), Some(SourceEvent::Snapshot(_))));
    assert_eq!((source.next_due_ns(), source.poll(1_009)), (Some(1_010), None));
    let mut seen = 0;
    for now in (1_010..=5_000).step_by(10) {
        assert!(matches!(source.poll(now), Some(SourceEvent::Event(_))), "{now}");
        assert_eq!(source.poll(now), None);
        seen += 1;
    }
    assert_eq!((seen, source.poll(5_010), source.next_due_ns()), (400, Some(SourceEvent::End), None));
}
