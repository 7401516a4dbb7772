//! EndpointSlices as they come from outside: lists, watch events, lines of them, and the store that they go into.

use crate::input::Input;
use route_agent::slices::{
    List, MAX_ENDPOINTS, MAX_HINTS, MAX_PORTS, MAX_PORTS_TIMES_ENDPOINTS, WatchLines, parse_event, parse_list,
};
use route_agent::{FullWeights, Slice, SliceError, SliceName, Store, WatchEvent};
use route_client::{MAX_VALUE_LEN, Route};

/// The target.
pub fn slices(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.choice(3);
    let bytes = input.rest();
    let mut store = Store::new();
    match mode {
        0 => {
            let list = parse_list(bytes);
            whole_list(&list);
            // The same items as a watch's events: each is what it was in the list.
            for slice in list.slices.clone() {
                store.apply(WatchEvent::Applied(slice), &FullWeights);
            }
            let mut replaced = Store::new();
            replaced.replace(list, &FullWeights);
            settled(&replaced);
        }
        1 => {
            if let Ok(event) = single(bytes) {
                store.apply(event.clone(), &FullWeights);
                let again = store.apply(event, &FullWeights);
                assert!(again.routes.is_empty(), "the same event twice changes nothing: {again:?}");
            }
        }
        _ => {
            let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
            let events: Vec<_> = WatchLines::new(bytes, "fuzz").collect();
            assert_eq!(events.len(), lines, "an event or an error for each line");
            for event in events {
                match event {
                    Ok(event) => {
                        check_event(&event);
                        store.apply(event, &FullWeights);
                    }
                    Err(error) => named(&error),
                }
            }
        }
    }
    settled(&store);
}

/// An event, which is the same whether it comes as a line or inside a list.
fn single(bytes: &[u8]) -> Result<WatchEvent, ()> {
    match parse_event(bytes, "fuzz") {
        Ok(event) => {
            check_event(&event);
            Ok(event)
        }
        Err(error) => {
            named(&error);
            Err(())
        }
    }
}

fn check_event(event: &WatchEvent) {
    match event {
        WatchEvent::Applied(slice) => check_slice(slice),
        WatchEvent::Deleted { name, .. } => check_name(name),
        WatchEvent::Bookmark { .. } => {}
        WatchEvent::Error { message, .. } => assert!(message.chars().count() <= 80),
    }
}

fn check_name(name: &SliceName) {
    assert!((1..=253).contains(&name.namespace.len()) && (1..=253).contains(&name.name.len()), "{name}");
}

fn check_slice(slice: &Slice) {
    check_name(&slice.name);
    assert!(slice.endpoints.len() <= MAX_ENDPOINTS && slice.ports.len() + slice.ports_skipped <= MAX_PORTS);
    assert!(slice.endpoints.len() * slice.ports.len() <= MAX_PORTS_TIMES_ENDPOINTS);
    for port in &slice.ports {
        assert!(port.number > 0 && port.name.as_ref().is_none_or(|name| !name.is_empty()));
    }
    for endpoint in &slice.endpoints {
        assert!(endpoint.hints.len() <= MAX_HINTS);
        assert!(endpoint.zone.iter().chain(&endpoint.hints).all(|zone| (1..=255).contains(&zone.len())));
    }
}

fn whole_list(list: &List) {
    list.slices.iter().for_each(check_slice);
    list.bad.iter().for_each(named);
    assert!(list.complete || !list.bad.is_empty(), "a list that broke off says so");
}

fn named(error: &SliceError) {
    let text = error.to_string();
    assert!(text.contains("expected") && text.contains("found") && text.contains(';'), "{text}");
    assert!(text.len() < 2500, "{} bytes of an error", text.len());
    if let Some(name) = error.name() {
        assert!(name.namespace.len() <= 320 && name.name.len() <= 320, "{name}");
    }
}

/// Every value in the store is one that a client reads, and it belongs to its key.
fn settled(store: &Store) {
    let (slices, services, routes) = store.counts();
    assert!(services <= slices);
    let mut count = 0;
    for (key, value) in store.values() {
        count += 1;
        assert!(value.len() <= MAX_VALUE_LEN);
        let route = Route::decode(&mut &value[..]).expect("what the store encodes is decoded");
        assert_eq!(route.route, key.id());
        assert_eq!(store.key(key.id()), Some(key));
        let members = store.members(key);
        assert_eq!(route.endpoints.len() + route.left_out as usize, members.len());
    }
    assert_eq!(count, routes);
}
