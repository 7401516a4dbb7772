//! Ejection, its bounds, the way back, and what a hand-over keeps.

use proptest::prelude::*;
use route_agent::{Health, HealthConfig, Member, SnapshotError, Weights};
use route_client::{FULL_WEIGHT, Outcome, Report};

const S: u64 = 1_000_000_000;
const ROUTE: u64 = 7;

fn members(n: u64) -> Vec<Member> {
    (0..n).map(|endpoint| Member { endpoint, ready: true }).collect()
}

fn health(n: u64) -> Health {
    let mut health = Health::new(HealthConfig::default());
    health.set_members(ROUTE, &members(n), 0);
    health
}

fn report(endpoint: u64, outcome: Outcome) -> Report {
    Report { route: ROUTE, endpoint, outcome, latency_ns: 1_000_000, seq: 0 }
}

/// Two members in turn.
const TWO: [u64; 2] = [11, 12];

fn fail(health: &mut Health, endpoint: u64, times: u32, now: u64) {
    (0..times).for_each(|n| health.record(TWO[n as usize % 2], &report(endpoint, Outcome::Refused), now));
}

#[test]
fn errors_in_a_row_eject_and_a_success_starts_anew() {
    let mut h = health(10);
    fail(&mut h, 3, 4, S);
    h.record(TWO[0], &report(3, Outcome::Success), S);
    fail(&mut h, 3, 4, S);
    assert_eq!((h.tick(S), h.weight(ROUTE, 3)), (vec![], FULL_WEIGHT));
    fail(&mut h, 3, 1, S);
    assert_eq!((h.tick(S), h.weight(ROUTE, 3), h.ejected(ROUTE)), (vec![ROUTE], 0, 1));
    assert_eq!(h.tick(S), Vec::<u64>::new(), "said once");
}

#[test]
fn it_comes_back_by_a_ramp_and_the_next_time_takes_twice_as_long() {
    let mut h = health(10);
    let mut now = S;
    for seconds in [30, 60, 120, 240, 300, 300] {
        fail(&mut h, 3, 5, now);
        assert_eq!(h.tick(now), vec![ROUTE]);
        assert_eq!(h.endpoint(ROUTE, 3).unwrap().ejected_until_ns, Some(now + seconds * S));
        now += seconds * S;
        assert_eq!((h.tick(now - 1), h.weight(ROUTE, 3)), (vec![], 0));
        let mut seen = Vec::new();
        for tenth in 0..=10 {
            h.tick(now + tenth * S);
            seen.push(h.weight(ROUTE, 3));
        }
        assert_eq!(seen, [25, 51, 76, 102, 128, 153, 179, 204, 230, 256, 256]);
        now += 10 * S;
    }
    // 900 s without an ejection forgive three of the six.
    now += 900 * S;
    fail(&mut h, 3, 5, now);
    assert_eq!(h.endpoint(ROUTE, 3).unwrap().ejected_until_ns, Some(now + 240 * S));
}

#[test]
fn a_ramping_endpoint_that_errs_again_goes_at_once() {
    let mut h = health(10);
    fail(&mut h, 3, 5, 0);
    h.tick(31 * S);
    assert!((1..FULL_WEIGHT).contains(&h.weight(ROUTE, 3)));
    fail(&mut h, 3, 5, 32 * S);
    assert_eq!((h.tick(32 * S), h.weight(ROUTE, 3)), (vec![ROUTE], 0));
}

#[test]
fn an_error_rate_is_judged_against_the_peers() {
    let mix = |h: &mut Health, bad_only: Option<u64>| {
        for n in 0..200u64 {
            for endpoint in 0..10 {
                let errs = bad_only.is_none_or(|bad| bad == endpoint) && n % 2 == 0;
                h.record(
                    TWO[(n / 2 % 2) as usize],
                    &report(endpoint, if errs { Outcome::Error } else { Outcome::Success }),
                    S,
                );
            }
        }
    };
    let mut one = health(10);
    mix(&mut one, Some(4));
    assert_eq!((one.tick(S), one.weight(ROUTE, 4), one.ejected(ROUTE)), (vec![ROUTE], 0, 1));
    let rate = one.endpoint(ROUTE, 4).unwrap().error_rate;
    assert!((0.3..0.7).contains(&rate), "{rate}");
    let mut all = health(10);
    mix(&mut all, None);
    assert_eq!((all.tick(S), all.ejected(ROUTE)), (vec![], 0), "when all err alike it isn't the endpoint");
    let mut alone = health(1);
    fail(&mut alone, 0, 100, S);
    assert_eq!((alone.tick(S), alone.ejected(ROUTE)), (vec![], 0));
}

/// Reports of one member: successes of all endpoints but one, errors of that.
fn lies(h: &mut Health, member: u64, about: u64, reports: u64, now: u64) {
    for n in 0..reports {
        let endpoint = n % 10;
        let outcome = if endpoint == about { Outcome::Error } else { Outcome::Success };
        h.record(member, &report(endpoint, outcome), now);
        h.record(member, &report(about, Outcome::Timeout), now);
    }
}

#[test]
fn a_member_that_lies_ejects_nobody_alone() {
    let mut h = health(10);
    lies(&mut h, 1, 4, 10_000, S);
    assert_eq!((h.tick(S), h.ejected(ROUTE)), (vec![], 0), "neither by errors in a row nor by rate");
    // Others use it and are content; now and then one of them meets an error, as happens.
    for n in 0..1000 {
        (2..6).for_each(|member| h.record(member, &report(n % 10, Outcome::Success), 2 * S));
        lies(&mut h, 1, 4, 10, 2 * S);
        if n % 100 == 0 {
            h.record(2, &report(4, Outcome::Error), 2 * S);
        }
    }
    assert_eq!((h.tick(2 * S), h.ejected(ROUTE)), (vec![], 0));
    // Nor does it by making others look good or bad: two that find the same errors still eject, by rate …
    for n in 0..100 {
        for member in [2, 3] {
            h.record(member, &report(7, if n % 3 == 0 { Outcome::Success } else { Outcome::Error }), 3 * S);
        }
        h.record(1, &report(7, Outcome::Success), 3 * S);
    }
    assert_eq!((h.tick(3 * S), h.weight(ROUTE, 7)), (vec![ROUTE], 0));
    // … and by errors in a row, of which one member gives at most three of five.
    h.record(2, &report(8, Outcome::Success), 4 * S);
    (0..1000).for_each(|_| h.record(1, &report(8, Outcome::Error), 4 * S));
    h.record(2, &report(8, Outcome::Error), 4 * S);
    assert_ne!(h.weight(ROUTE, 8), 0);
    h.record(3, &report(8, Outcome::Error), 4 * S);
    assert_eq!(h.weight(ROUTE, 8), 0);
}

#[test]
fn a_member_that_lies_before_and_after_an_upgrade_is_still_alone() {
    let mut h = health(10);
    lies(&mut h, 1, 4, 10_000, S);
    let mut next = Health::restore(HealthConfig::default(), &h.snapshot(S), 2 * S).unwrap();
    next.set_members(ROUTE, &members(10), 2 * S);
    lies(&mut next, 1, 4, 10_000, 2 * S);
    assert_eq!((next.tick(2 * S), next.ejected(ROUTE)), (vec![], 0));
    // Nor does one honest error suffice beside it, as it would not have without the upgrade.
    next.record(2, &report(4, Outcome::Error), 2 * S);
    assert_eq!(next.ejected(ROUTE), 0);
}

#[test]
fn as_many_members_as_configured_must_agree() {
    let errors_until_ejected = |consecutive_errors, min_members| {
        let mut h = Health::new(HealthConfig { consecutive_errors, min_members, ..HealthConfig::default() });
        h.set_members(ROUTE, &members(10), 0);
        (1..=8u64).find(|&member| {
            (0..100).for_each(|_| h.record(member, &report(4, Outcome::Error), S));
            h.ejected(ROUTE) == 1
        })
    };
    let rows = [1, 2, 3, 5, 20];
    for needed in 1..=4 {
        let found = rows.map(|row| errors_until_ejected(row, needed));
        assert_eq!(found, [Some(needed as u64); 5], "members until an ejection, of {needed}, by rows of {rows:?}");
    }
}

#[test]
fn the_only_member_decides_once_the_others_have_been_silent_for_a_minute() {
    let mut h = health(10);
    let alone = |h: &mut Health, endpoint, now| {
        (0..5).for_each(|_| h.record(1, &report(endpoint, Outcome::Error), now));
        h.tick(now);
        h.weight(ROUTE, endpoint) == 0
    };
    assert!(!alone(&mut h, 0, S), "an agent that has just begun does not know who else is there");
    h.record(2, &report(9, Outcome::Success), 50 * S);
    assert!(!alone(&mut h, 1, 70 * S));
    assert!(alone(&mut h, 2, 111 * S));
    let mut each = Health::new(HealthConfig { min_members: 1, ..HealthConfig::default() });
    each.set_members(ROUTE, &members(10), 0);
    assert!(alone(&mut each, 3, S));
}

#[test]
fn latency_follows_successes() {
    let mut h = health(2);
    for _ in 0..500 {
        h.record(TWO[0], &Report { latency_ns: 2_000_000, ..report(0, Outcome::Success) }, S);
        h.record(TWO[0], &Report { latency_ns: u64::MAX, ..report(0, Outcome::Timeout) }, S);
    }
    assert_eq!(h.endpoint(ROUTE, 0).unwrap().latency_ns, 2_000_000.0);
    h.record(TWO[0], &Report { latency_ns: u64::MAX, ..report(1, Outcome::Success) }, S);
    assert!(h.endpoint(ROUTE, 1).unwrap().latency_ns <= 3.6e12, "one report can't say more than an hour");
}

#[test]
fn the_bound_holds_and_holds_when_the_route_shrinks() {
    for (n, most) in [(1, 0), (2, 1), (3, 1), (7, 2), (10, 3), (100, 30)] {
        let mut h = health(n);
        (0..n).for_each(|endpoint| fail(&mut h, endpoint, 5, endpoint));
        h.tick(S);
        assert_eq!(h.ejected(ROUTE), most, "{n}");
        assert!(n == 1 || h.counts().refused > 0);
    }
    let mut h = health(10);
    for endpoint in 0..3 {
        fail(&mut h, endpoint, 5, endpoint * S);
    }
    h.tick(3 * S);
    h.set_members(ROUTE, &members(4), 4 * S);
    assert_eq!((h.ejected(ROUTE), h.tick(4 * S)), (1, vec![ROUTE]));
    assert_eq!(
        (h.weight(ROUTE, 0) > 0, h.weight(ROUTE, 1) > 0, h.weight(ROUTE, 2)),
        (true, true, 0),
        "who was first comes back first"
    );
    h.set_members(ROUTE, &[Member { endpoint: 2, ready: true }, Member { endpoint: 3, ready: false }], 5 * S);
    assert_eq!((h.ejected(ROUTE), h.weight(ROUTE, 2) > 0), (0, true), "the last ready one is not left out");
}

#[test]
fn unknown_reports_are_counted_and_kept_nowhere() {
    let mut h = health(3);
    for route in 0..1000 {
        h.record(TWO[0], &Report { route: route + 100, ..report(1, Outcome::Error) }, S);
    }
    fail(&mut h, 99, 1000, S);
    assert_eq!((h.counts().unknown, h.counts().reports, h.tick(S)), (2000, 0, vec![]));
    assert_eq!(h.snapshot(S).len(), Health::new(HealthConfig::default()).snapshot(S).len());
}

#[test]
fn a_hand_over_keeps_ejections_and_averages_even_if_the_clock_starts_anew() {
    let mut h = health(10);
    fail(&mut h, 3, 5, 100 * S);
    fail(&mut h, 4, 2, 100 * S);
    (0..20).for_each(|_| h.record(TWO[0], &report(5, Outcome::Success), 100 * S));
    h.tick(100 * S);
    let bytes = h.snapshot(110 * S);

    let mut next = Health::restore(HealthConfig::default(), &bytes, 5 * S).unwrap();
    assert_eq!(next.weight(ROUTE, 3), 0, "before the source has named anybody");
    assert_eq!(next.snapshot(5 * S), bytes, "handed on once more, unchanged");
    next.set_members(ROUTE, &members(10), 5 * S);
    let (old, new) = (h.endpoint(ROUTE, 3).unwrap(), next.endpoint(ROUTE, 3).unwrap());
    assert_eq!((new.ejected_until_ns, new.ejections, new.reports), (Some(25 * S), 1, 5));
    assert_eq!((new.error_rate, h.endpoint(ROUTE, 5)), (old.error_rate, next.endpoint(ROUTE, 5)));
    fail(&mut next, 4, 4, 6 * S);
    assert_ne!(next.weight(ROUTE, 4), 0, "errors in a row start anew");
    fail(&mut next, 4, 1, 6 * S);
    assert_eq!((next.tick(6 * S), next.weight(ROUTE, 4)), (vec![ROUTE], 0));
    next.tick(25 * S);
    assert!(next.weight(ROUTE, 3) > 0);
    next.forget_pending();

    // A crash has no snapshot: everybody is healthy again.
    assert_eq!(health(10).weight(ROUTE, 3), FULL_WEIGHT);
}

#[test]
fn a_restored_ejection_still_obeys_the_bound() {
    let mut h = health(10);
    (0..3).for_each(|endpoint| fail(&mut h, endpoint, 5, S));
    let mut next = Health::restore(HealthConfig::default(), &h.snapshot(S), S).unwrap();
    next.set_members(ROUTE, &members(3), S);
    assert_eq!(next.ejected(ROUTE), 1);
}

#[test]
fn bad_snapshots_are_refused_by_name() {
    let config = HealthConfig::default();
    let mut h = health(3);
    fail(&mut h, 1, 3, S);
    let good = h.snapshot(S);
    let error = |bytes: &[u8]| Health::restore(config, bytes, S).unwrap_err();
    assert!(matches!(error(&[]), SnapshotError::Length { .. }));
    assert!(matches!(error(&good[..good.len() - 1]), SnapshotError::Length { .. }));
    let mut newer = good.clone();
    newer[3] = 9;
    assert!(matches!(error(&newer), SnapshotError::Magic { .. }));
    let mut torn = good.clone();
    torn[40] ^= 1;
    assert!(matches!(error(&torn), SnapshotError::Checksum { .. }));
    let mut lies = good;
    lies[32..40].copy_from_slice(&f64::NAN.to_le_bytes());
    let end = lies.len() - 8;
    let sum = xxhash_rust::xxh3::xxh3_64(&lies[..end]);
    lies[end..].copy_from_slice(&sum.to_le_bytes());
    let text = error(&lies).to_string();
    assert!(
        text.contains("expected entry 0's error rate") && text.contains("found") && text.contains("start without"),
        "{text}"
    );
}

#[derive(Debug, Clone)]
enum Step {
    Report(usize, u64, usize),
    Members(u64, u64),
    Wait(u64),
    HandOver,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0usize..2, 0u64..12, 0usize..4).prop_map(|(m, e, o)| Step::Report(m, e, o)),
        2 => (0u64..12, any::<u64>()).prop_map(|(n, r)| Step::Members(n, r)),
        3 => (0u64..40).prop_map(|s| Step::Wait(s * S)),
        1 => Just(Step::HandOver),
    ]
}

proptest! {
    #[test]
    fn bounds_hold_whatever_happens_and_ticks_tell_every_change(steps in proptest::collection::vec(any_step(), 0..300)) {
        let config = HealthConfig { consecutive_errors: 2, min_reports: 4, ..HealthConfig::default() };
        let (mut h, mut now, mut ready) = (Health::new(config), 0, Vec::<u64>::new());
        let mut told = [FULL_WEIGHT; 12];
        for step in steps {
            let mut all = false;
            match step {
                Step::Report(member, endpoint, o) => h.record(TWO[member], &report(endpoint, Outcome::ALL[o]), now),
                Step::Members(n, bits) => {
                    let m: Vec<_> = (0..n).map(|endpoint| Member { endpoint, ready: bits >> endpoint & 1 == 1 }).collect();
                    ready = m.iter().filter(|m| m.ready).map(|m| m.endpoint).collect();
                    h.set_members(ROUTE, &m, now);
                    all = true;
                }
                Step::Wait(ns) => now += ns,
                Step::HandOver => {
                    let mut next = Health::restore(config, &h.snapshot(now), now).unwrap();
                    let known = (0..12).filter(|&e| h.endpoint(ROUTE, e).is_some());
                    let m: Vec<_> = known.map(|e| Member { endpoint: e, ready: ready.contains(&e) }).collect();
                    next.set_members(ROUTE, &m, now);
                    (h, all) = (next, true);
                }
            }
            let changed = !h.tick(now).is_empty();
            let weights: [u16; 12] = std::array::from_fn(|e| h.weight(ROUTE, e as u64));
            prop_assert!(changed || all || weights == told, "a weight changed and nobody said so");
            told = weights;
            let out = ready.iter().filter(|&&e| told[e as usize] == 0).count();
            prop_assert_eq!(out, h.ejected(ROUTE));
            let most = if ready.len() > 1 { (ready.len() * 30 / 100).max(1) } else { 0 };
            prop_assert!(out <= most, "{} of {} ejected", out, ready.len());
        }
    }

    #[test]
    fn garbage_is_no_snapshot(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Health::restore(HealthConfig::default(), &bytes, 0).is_err());
    }
}

#[test]
fn a_bounded_snapshot_keeps_the_ejected() {
    let mut h = health(100);
    for endpoint in 0..100 {
        h.record(TWO[0], &report(endpoint, Outcome::Success), S);
    }
    fail(&mut h, 97, 5, S);
    fail(&mut h, 50, 2, S);
    h.tick(S);
    let (bytes, left_out) = h.snapshot_within(S, 24 + 2 * 80 + 79);
    assert_eq!((bytes.len(), left_out), (24 + 2 * 80, 98));
    let mut restored = Health::restore(HealthConfig::default(), &bytes, 0).unwrap();
    restored.set_members(ROUTE, &members(100), 0);
    assert_eq!((restored.ejected(ROUTE), restored.weight(ROUTE, 97)), (1, 0));
    assert_eq!(restored.endpoint(ROUTE, 50).unwrap().errors, 2, "who errs is kept before who doesn't");
    assert_eq!(h.snapshot_within(S, 1 << 20), (h.snapshot(S), 0));
}
