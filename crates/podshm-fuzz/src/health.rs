//! What a predecessor knew of the endpoints' health, as the successor reads it; and reports by the thousand.

use crate::input::Input;
use route_agent::{Health, HealthConfig, Member, SnapshotError};
use route_client::{FULL_WEIGHT, Outcome, Report};

/// The target.
pub fn health(data: &[u8]) {
    let mut input = Input::new(data);
    let now = input.word();
    let fix = input.choice(2) == 0;
    let len = input.below(2048);
    let mut bytes = input.bytes(len).to_vec();
    if fix && bytes.len() >= 24 {
        bytes[..8].copy_from_slice(b"RHS\x01\0\0\0\0");
        let entries = (bytes.len() - 24) / 80;
        bytes.truncate(24 + entries * 80);
        bytes[8..16].copy_from_slice(&(entries as u64).to_le_bytes());
        let end = bytes.len() - 8;
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
    }
    let config = HealthConfig::default();
    let mut health = match Health::restore(config, &bytes, now) {
        Ok(health) => {
            // What was read is written again, and read again.
            let again = health.snapshot(now);
            let entries = |bytes: &[u8]| (bytes.len() - 24) / 80;
            assert!(entries(&again) <= entries(&bytes), "{} bytes of {}", again.len(), bytes.len());
            let restored = Health::restore(config, &again, now).expect("what a snapshot says is read");
            assert_eq!(restored.snapshot(now), again, "a snapshot of a snapshot");
            health
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("expected") && text.contains("found") && text.contains("start without"), "{text}");
            if let SnapshotError::Field { entry, .. } = error {
                assert!(entry < bytes.len() / 80);
            }
            Health::new(config)
        }
    };
    let members: Vec<Member> =
        (0..u64::from(input.choice(12))).map(|n| Member { endpoint: n, ready: n % 5 != 4 }).collect();
    health.set_members(1, &members, now);
    let mut present = members.len();
    let mut time = now;
    while !input.is_empty() {
        match input.choice(4) {
            0 => {
                time = time.saturating_add(u64::from(input.u32()));
                health.tick(time);
            }
            1 => {
                present = input.below(members.len() + 1);
                health.set_members(1, &members[..present], time);
            }
            _ => {
                let outcome = Outcome::ALL[usize::from(input.choice(4))];
                let (endpoint, latency_ns) = (u64::from(input.choice(14)), input.word());
                let route = u64::from(input.choice(8).min(1));
                // One alone, or more than are remembered of an endpoint.
                let reporters = 1 + latency_ns % 40;
                for n in 0..=u64::from(input.u8()) {
                    let member = 1 + n % reporters;
                    health.record(member, &Report { route, endpoint, outcome, latency_ns, seq: 0 }, time);
                }
            }
        }
        let ready = members[..present].iter().filter(|m| m.ready).count();
        let allowed = (ready * config.max_ejection_percent as usize / 100).max(1).min(ready.saturating_sub(1));
        assert!(health.ejected(1) <= allowed, "{} of {ready} are ejected, allowed {allowed}", health.ejected(1));
        for member in &members {
            if let Some(state) = health.endpoint(1, member.endpoint) {
                assert!(state.weight <= FULL_WEIGHT, "{state:?}");
            }
        }
    }
}
