//! What is said of gates before anything is touched.

use super::{Plan, refuse, warn};
use crate::world::{World, name};
use podshm_api::domain::Mode;
use podshm_api::rollout::{AgentRollout, Verification};

const VERIFICATION: &str = "gates.verification";

pub(super) fn look_at_gates(rollout: &AgentRollout, world: &World, plan: &mut Plan) {
    for query in &rollout.spec.gates.prometheus {
        if !query.url.starts_with("http://") && !query.url.starts_with("https://") {
            let what = format!("url is {:?}; expected http://… or https://…", query.url);
            refuse(plan, &format!("gate {}", query.name), what);
        }
    }
    for query in &world.queries {
        let what = "no batch would pass; correct query, url or limits (a query that finds nothing while all is well: … or vector(0))";
        refuse(plan, &format!("gate {}", query.gate), format!("{}; {what}", query.message));
    }
    match &rollout.spec.gates.verification {
        None => {
            let what = "there is none: agents that are Ready and answer wrongly are met by business first; have it run `podshm verify`, or a program of your own";
            warn(plan, VERIFICATION, what.into());
        }
        Some(gate) if gate.command.is_empty() => {
            let what = "its command is empty: what the image starts by itself is taken for a verification; say `podshm verify …`, or a program of your own";
            warn(plan, VERIFICATION, what.into());
        }
        Some(gate) => look_at_command(rollout, world, gate, plan),
    }
}

/// What `podshm verify` is not told to try of what the domain has. Of another program nothing is known.
fn look_at_command(rollout: &AgentRollout, world: &World, gate: &Verification, plan: &mut Plan) {
    let (Some(of), Some(domains)) = (&rollout.spec.domain, &world.domains) else { return };
    let Some(domain) = domains.iter().find(|one| name(&one.metadata) == of) else {
        let what = format!(
            "there is no ShmDomain {of}: agents would have nothing to serve, and a verification pod no volume; create it"
        );
        return warn(plan, "domain", what);
    };
    let modes = &domain.spec.modes;
    if modes.contains(&Mode::Posix) && !gate.dev_shm {
        let what =
            format!("devShm is not set, and domain {of} has mode posix: the pod has a /dev/shm of its own; set it");
        warn(plan, VERIFICATION, what);
    }
    let program = gate.command.first().map_or("", |first| first.rsplit('/').next().unwrap_or_default());
    if program != "podshm" || gate.command.get(1).map(String::as_str) != Some("verify") {
        return;
    }
    let says = |option: &str| {
        let is = |word: &String| word == option || word.strip_prefix(option).is_some_and(|rest| rest.starts_with('='));
        gate.command.iter().any(is)
    };
    // What shows that a kind works: any one of the options in a row.
    let rows: [(Mode, &str, &[&str]); 5] = [
        (Mode::Channel, "lookups", &["--lookup"]),
        (Mode::Channel, "reports", &["--report"]),
        (Mode::Channel, "calls", &["--call"]),
        (Mode::Posix, "POSIX shared memory", &["--posix", "--posix-write"]),
        (Mode::Sysv, "System V memory", &["--sysv", "--sysv-write"]),
    ];
    for (mode, what, options) in rows {
        if modes.contains(&mode) && !options.iter().any(|option| says(option)) {
            let what = format!("its command has no {}: {what} of domain {of} are not tried", options.join(" or "));
            warn(plan, VERIFICATION, what);
        }
    }
}
