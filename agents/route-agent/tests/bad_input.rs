//! Malformed input: an error that names what is at fault, and everything else goes on.

use std::io::{BufReader, Cursor, Read};

use proptest::prelude::*;
use route_agent::{
    FileSource, FullWeights, Pace, Slice, SliceError, Source, SourceEvent, Store, WatchEvent,
    slices::{WatchLines, parse_event, parse_list, read::MAX_OBJECT_LEN},
};
use route_client::{Address, Route, RouteKey, wire::Protocol};

fn slice(name: &str, kind: &str, rest: &str) -> String {
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"{kind}","metadata":{{"namespace":"shop","name":"{name}","resourceVersion":"5","labels":{{"kubernetes.io/service-name":"cart"}}}}{rest}}}"#
    )
}

fn good(name: &str, ip: &str) -> String {
    slice(name, "IPv4", &format!(r#","endpoints":[{{"addresses":["{ip}"]}}],"ports":[{{"name":"http","port":80}}]"#))
}

fn list(items: &[String]) -> String {
    format!(r#"{{"apiVersion":"v1","items":[{}],"kind":"List","metadata":{{"resourceVersion":""}}}}"#, items.join(","))
}

fn parse(text: &str) -> Result<Slice, SliceError> {
    match parse_event(format!(r#"{{"type":"ADDED","object":{text}}}"#).as_bytes(), "test") {
        Ok(WatchEvent::Applied(slice)) => Ok(slice),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

fn says_all(error: &SliceError) {
    let text = error.to_string();
    assert!(text.contains("expected") && text.contains("found") && text.len() < 1000, "{text}");
}

#[test]
fn what_is_missing_means_what_the_api_says() {
    let text = r#","endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"],"conditions":{"ready":false},"hints":null},
        {"addresses":["10.0.0.3"],"conditions":{"ready":null,"serving":null,"terminating":null},"zone":null},
        {"addresses":["10.0.0.4","10.0.0.5"],"conditions":{"ready":false,"serving":true,"terminating":true},"hints":{"forZones":[{"name":"a"}]}}],
        "ports":[{"port":80},{"name":"","port":81,"protocol":"UDP"},{"name":"any","port":null},{"name":"any2"}]"#;
    let s = parse(&slice("a", "IPv4", text)).unwrap();
    let conditions: Vec<_> = s.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(conditions, [(true, true, false), (false, false, false), (true, true, false), (false, true, true)]);
    assert_eq!(
        (s.ports.len(), s.ports_skipped, s.ports[0].protocol, s.ports[1].protocol),
        (2, 2, Protocol::Tcp, Protocol::Udp)
    );
    assert!(s.ports.iter().all(|p| p.name.is_none()));
    assert_eq!(s.endpoints[3].address, Address::V4("10.0.0.4".parse().unwrap()), "the first address counts");
    assert_eq!(&*s.endpoints[3].hints[0], "a");
    let empty = parse(&slice("a", "IPv6", r#","endpoints":null,"ports":null"#)).unwrap();
    assert!(empty.endpoints.is_empty() && empty.ports.is_empty());
    let no_labels = r#"{"addressType":"IPv4","metadata":{"namespace":"n","name":"s","labels":null}}"#;
    assert_eq!(parse(no_labels).unwrap().service, None);
}

#[test]
fn dual_stack_names_and_unnamed_ports_become_routes() {
    let v6 = slice("cart-6", "IPv6", r#","endpoints":[{"addresses":["fd00::1"]}],"ports":[{"name":"http","port":80}]"#);
    let fqdn = slice("cart-n", "FQDN", r#","endpoints":[{"addresses":["db.example.com."]}],"ports":[{"port":5432}]"#);
    let read = parse_list(list(&[good("cart-4", "10.0.0.1"), v6, fqdn]).as_bytes());
    assert!(read.complete && read.bad.is_empty());
    let mut store = Store::new();
    store.replace(read, &FullWeights);
    let addresses = |key: &str| {
        let value = store.value(&key.parse::<RouteKey>().unwrap()).unwrap();
        let mut all: Vec<_> =
            Route::decode(&mut &**value).unwrap().endpoints.iter().map(|e| e.address.to_string()).collect();
        all.sort();
        all
    };
    assert_eq!(addresses("shop/cart:http"), ["10.0.0.1", "fd00::1"]);
    assert_eq!(addresses("shop/cart:5432"), ["db.example.com"]);
}

#[test]
fn ports_and_endpoints_are_bounded_together() {
    let parse_of = |ports: usize, endpoints: usize| {
        let endpoints: Vec<String> =
            (0..endpoints).map(|n| format!(r#"{{"addresses":["10.0.{}.{}"]}}"#, n / 250, n % 250)).collect();
        let ports: Vec<String> = (1..=ports).map(|n| format!(r#"{{"port":{n}}}"#)).collect();
        let text = format!(r#","endpoints":[{}],"ports":[{}]"#, endpoints.join(","), ports.join(","));
        parse(&slice("wide", "IPv4", &text))
    };
    for (ports, endpoints) in [(200, 1000), (2000, 100), (20_000, 10)] {
        let slice = parse_of(ports, endpoints).unwrap();
        assert_eq!((slice.ports.len(), slice.endpoints.len()), (ports, endpoints));
    }
    let refused = [
        (201, 1000, "ports times endpoints to be at most 200000, found \"201000\""),
        (20_000, 1000, "ports times endpoints to be at most 200000, found \"20000000\""),
        (20_001, 0, "ports to be at most 20000, found \"20001\""),
    ];
    for (ports, endpoints, expected) in refused {
        let error = parse_of(ports, endpoints).unwrap_err();
        says_all(&error);
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("shop/wide") && text.contains("split the slice"), "{text}");
    }
}

#[test]
fn a_bad_slice_is_named_and_costs_only_itself() {
    let one = r#","endpoints":[{"addresses":["10.0.0.9"]}]"#;
    let many = format!(r#","endpoints":[{}]"#, vec![r#"{"addresses":["10.0.0.9"]}"#; 1001].join(","));
    let bad = [
        (slice("b", "IPX", one), "addressType to be IPv4, IPv6 or FQDN, found \"IPX\""),
        (slice("b", "", one), "addressType"),
        (slice("b", "IPv6", one), "an IPv6 address, as addressType says, found \"10.0.0.9\""),
        (slice("b", "FQDN", one), "a domain name"),
        (slice("b", "IPv4", r#","endpoints":[{"addresses":[]}]"#), "an IPv4 address"),
        (slice("b", "IPv4", r#","endpoints":[{"addresses":["10.0.0.999"]}]"#), "10.0.0.999"),
        (slice("b", "IPv4", r#","endpoints":{"a":1}"#), "an EndpointSlice"),
        (slice("b", "IPv4", r#","ports":[{"port":"http"}]"#), "an EndpointSlice"),
        (slice("b", "IPv4", r#","ports":[{"port":70000}]"#), "from 1 to 65535, found \"70000\""),
        (slice("b", "IPv4", r#","ports":[{"port":0}]"#), "from 1 to 65535"),
        (slice("b", "IPv4", r#","ports":[{"port":1,"protocol":"QUIC"}]"#), "TCP, UDP or SCTP, found \"QUIC\""),
        (slice("b", "IPv4", &many), "at most 1000, found \"1001\""),
        (
            slice("b", "IPv4", "").replace("v1\"", "v1beta1\""),
            "discovery.k8s.io/v1, found \"discovery.k8s.io/v1beta1\"",
        ),
        (slice("b", "IPv4", "").replace("\"EndpointSlice\"", "\"Pod\""), "kind to be EndpointSlice, found \"Pod\""),
        (slice("b", "IPv4", "").replace("\"5\"", "\"five\""), "a whole number, found \"five\""),
    ];
    let mut store = Store::new();
    let before = parse_list(list(&[good("a", "10.0.0.1"), good("b", "10.0.0.2"), good("c", "10.0.0.3")]).as_bytes());
    store.replace(before, &FullWeights);
    for (text, expected) in bad {
        let read = parse_list(list(&[good("a", "10.0.0.1"), text.clone(), good("c", "10.0.0.3")]).as_bytes());
        assert!(read.complete && read.slices.len() == 2 && read.bad.len() == 1, "{text}: {read:?}");
        says_all(&read.bad[0]);
        let said = read.bad[0].to_string();
        assert!(said.contains(expected) && said.contains("shop/b") && said.contains("skipped"), "{said}");
        assert_eq!(parse(&text).unwrap_err().name().unwrap().to_string(), "shop/b");
        assert!(store.replace(read, &FullWeights).routes.is_empty(), "the last good version stays");
    }
    for nonsense in ["null", "1", "[]", "\"x\"", "{}", r#"{"metadata":7}"#] {
        let read = parse_list(list(&[good("a", "10.0.0.1"), nonsense.into(), good("c", "10.0.0.3")]).as_bytes());
        assert!(read.complete && read.slices.len() == 2 && read.bad.len() == 1, "{nonsense}");
        says_all(&read.bad[0]);
    }
}

#[test]
fn a_list_that_breaks_off_removes_nothing() {
    let whole = list(&[good("a", "10.0.0.1"), good("b", "10.0.0.2")]);
    let mut store = Store::new();
    assert_eq!(store.replace(parse_list(whole.as_bytes()), &FullWeights).routes.len(), 1);
    for cut in 0..whole.len() {
        let read = parse_list(&whole.as_bytes()[..cut]);
        assert!(!read.complete && read.bad.len() == 1, "{cut}");
        says_all(&read.bad[0]);
        assert!(store.replace(read, &FullWeights).routes.is_empty(), "{cut}");
    }
    for other in [r#"{"kind":"List"}"#, "[]", "", r#"{"items":7}"#, r#"{"items":[]} x"#] {
        let read = parse_list(other.as_bytes());
        assert!(!read.complete && read.bad.len() == 1, "{other}");
    }
    assert!(parse_list(r#"{"items":null}"#.as_bytes()).complete);
    assert_eq!(store.replace(parse_list(list(&[]).as_bytes()), &FullWeights).routes.len(), 1, "an empty list does");
}

#[test]
fn bad_events_are_passed_over_one_by_one() {
    let object = good("a", "10.0.0.1");
    let text = format!(
        "{{\"type\":\"ADDED\",\"object\":{object}}}\n\nnot json\n{{\"type\":\"ADDED\"}}\n{{\"type\":\"MOVED\",\"object\":{object}}}\n{{\"type\":\"MODIFIED\",\"object\":{}}}\n{{\"type\":\"BOOKMARK\",\"object\":{{\"metadata\":{{\"resourceVersion\":\"99\"}}}}}}\n{{\"type\":\"ERROR\",\"object\":{{\"kind\":\"Status\",\"code\":410,\"message\":\"too old\"}}}}\n{{\"type\":\"DELETED\",\"object\":{{}}}}\n\u{fffd}\n{{\"type\":\"DELETED\",\"object\":{}}}",
        slice("b", "IPX", ""),
        slice("a", "IPX", "")
    );
    let all: Vec<_> = WatchLines::new(Cursor::new(text), "events").collect();
    let good: Vec<bool> = all.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, false, false, false, true, true, false, false, true]);
    all.iter().filter_map(|r| r.as_ref().err()).for_each(says_all);
    assert!(all[1].as_ref().unwrap_err().to_string().starts_with("events line 3: "));
    assert_eq!(all[5], Ok(WatchEvent::Bookmark { resource_version: 99 }));
    assert_eq!(all[6], Ok(WatchEvent::Error { code: 410, message: "too old".into() }));
    assert!(matches!(&all[9], Ok(WatchEvent::Deleted { name, resource_version: 5 }) if name.to_string() == "shop/a"));
}

#[test]
fn absurd_sizes_are_bounded() {
    let next = format!("\n{{\"type\":\"ADDED\",\"object\":{}}}\n", good("a", "10.0.0.1"));
    let long = std::io::repeat(b'x').take(3 * MAX_OBJECT_LEN as u64).chain(Cursor::new(next));
    let all: Vec<_> = WatchLines::new(BufReader::new(long), "events").collect();
    assert!(matches!(&all[..], [Err(SliceError::TooLong { .. }), Ok(WatchEvent::Applied(_))]), "{all:?}");
    assert!(all[0].as_ref().unwrap_err().to_string().contains("at most 16777216 bytes in one object"));

    let start = format!(r#"{{"items":[{},{{"x":""#, good("a", "10.0.0.1"));
    let endless = Cursor::new(start).chain(std::io::repeat(b'x'));
    let read = parse_list(endless);
    assert_eq!((read.slices.len(), read.complete), (1, false));
    assert!(
        matches!(&read.bad[..], [SliceError::TooLong { .. }]) && read.bad[0].to_string().contains("item 1"),
        "{:?}",
        read.bad
    );
    for deep in ["[", "{\"a\":"] {
        let read = parse_list(format!(r#"{{"items":[{}"#, deep.repeat(1_000_000)).as_bytes());
        assert!(!read.complete && read.bad.len() == 1);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let read = parse_list(list(&[slice("b", "IPv4", &format!(r#","x":{deep}"#)), good("c", "10.0.0.3")]).as_bytes());
    assert!(read.slices.iter().any(|s| &*s.name.name == "c"), "{:?}", read.bad);
}

#[test]
fn files_that_are_missing_are_bad_and_not_the_end() {
    let mut source = FileSource::new("/nonexistent/list", Some("/nonexistent/events".into()), Pace::Unpaced);
    for expected in ["/nonexistent/events", "/nonexistent/list"] {
        let Some(SourceEvent::Bad(error)) = source.poll(0) else { panic!() };
        assert!(error.to_string().contains(expected), "{error}");
        says_all(&error);
    }
    assert_eq!((source.poll(0), source.poll(0)), (Some(SourceEvent::End), Some(SourceEvent::End)));
}

#[test]
fn names_that_make_no_key_are_said_and_skipped() {
    let odd = good("odd", "10.0.0.1").replace("\"http\"", "\"a b\"");
    let mut store = Store::new();
    let changes = store.replace(parse_list(list(&[odd, good("fine", "10.0.0.2")]).as_bytes()), &FullWeights);
    assert_eq!((changes.routes.len(), changes.bad.len()), (1, 1));
}

/// The bound is on one object; a list of many is as long as the cluster is big.
#[test]
fn a_list_longer_than_the_bound_for_one_object_is_read() {
    let pad = "x".repeat(1 << 20);
    let padded = |n: u32| {
        let rest = format!(r#","pad":"{pad}","endpoints":[{{"addresses":["10.0.0.{n}"]}}]"#);
        slice(&format!("s{n}"), "IPv4", &rest)
    };
    let text = list(&(0..20).map(padded).collect::<Vec<_>>());
    assert!(text.len() > MAX_OBJECT_LEN);
    let read = parse_list(text.as_bytes());
    assert_eq!((read.complete, read.slices.len(), read.bad), (true, 20, vec![]));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!parse_list(bytes.as_slice()).complete);
        WatchLines::new(Cursor::new(bytes), "events").for_each(drop);
    }

    #[test]
    fn damaged_lists_never_panic(at in any::<prop::sample::Index>(), byte: u8) {
        let mut text = list(&[good("a", "10.0.0.1"), good("b", "10.0.0.2")]).into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let read = parse_list(text.as_slice());
        read.bad.iter().for_each(says_all);
        Store::new().replace(read, &FullWeights);
    }
}
