//! How much memory this daemon may have, and which budgets fit into it. Regions are charged to the daemon's own cgroup, so budgets that
//! together exceed its limit would have it killed instead of a member refused.
//!
//! ```text
//!  limit = reserve (the daemon itself) + budgets of the domains that are served + regions of domains that are not + room
//! ```
//! What a domain has inherited from daemons before this one is within its budget, and counted once; where it is more than the budget,
//! it counts instead.

use crate::domains::Bytes;
use std::fs;
use std::path::{Path, PathBuf};

/// The daemon's own part, unless another is said: its program, its stacks, what the kernel keeps for its sockets and descriptors.
pub const RESERVE: u64 = 48 << 20;
/// cgroup v1 writes no limit as the greatest number of pages.
const NO_LIMIT: u64 = 1 << 60;

/// What the daemon may have, and what of it is not for regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// None: nobody bounds it, as on a plain machine.
    pub limit: Option<u64>,
    /// The daemon's own.
    pub reserve: u64,
}

/// A budget that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its budget of {budget} does not fit: podshmd's memory limit on this node is {limit}, of which {reserve} are its own and {others} are \
     other domains'; give podshmd {needed} or more (request and limit), or lower a domain's budget",
    budget = text(*budget), limit = text(*limit), reserve = text(*reserve), others = text(*others),
    needed = text(budget.saturating_add(*reserve).saturating_add(*others))
)]
pub struct OverLimit {
    /// What it asks for.
    pub budget: u64,
    /// The daemon's limit.
    pub limit: u64,
    /// The daemon's own part.
    pub reserve: u64,
    /// What is other domains'.
    pub others: u64,
}

impl OverLimit {
    /// What it could have.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.reserve).saturating_sub(self.others)
    }
}

impl Memory {
    /// Without a limit.
    pub const UNBOUNDED: Memory = Memory { limit: None, reserve: 0 };

    /// As this process's cgroup says.
    pub fn of_this_process(reserve: u64) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let files = files(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        let limits = files.iter().filter_map(|file| value(&fs::read_to_string(file).ok()?));
        Memory { limit: limits.min(), reserve }
    }

    /// Whether a budget fits beside what is other domains'.
    pub fn admit(&self, budget: u64, others: u64) -> Result<(), OverLimit> {
        let Some(limit) = self.limit else { return Ok(()) };
        let refused = OverLimit { budget, limit, reserve: self.reserve, others };
        if budget > refused.room() { Err(refused) } else { Ok(()) }
    }
}

/// A size for people.
fn text(bytes: u64) -> String {
    Bytes(bytes).into()
}

fn value(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

/// Where the limits of this process are: its cgroup's, and those above it as far as they can be seen from here.
fn files(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    let own = |is_ours: &dyn Fn(&str) -> bool| {
        let mut lines = cgroup.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.find(|(controllers, _)| is_ours(controllers)).map(|(_, path)| path.to_owned())
    };
    let mut all = Vec::new();
    for line in mountinfo.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let (place, kind): (Vec<&str>, Vec<&str>) = (place.split(' ').collect(), kind.split(' ').collect());
        let (Some(root), Some(point), Some(kind), Some(options)) =
            (place.get(3), place.get(4), kind.first(), kind.get(2))
        else {
            continue;
        };
        let (path, file) = match *kind {
            "cgroup2" => (own(&str::is_empty), "memory.max"),
            "cgroup" if options.split(',').any(|option| option == "memory") => {
                (own(&|names| names.split(',').any(|name| name == "memory")), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let Some(path) = path else { continue };
        // A container that sees its own group alone has it at the mount point.
        let below = Path::new(&path).strip_prefix(root).unwrap_or(Path::new(""));
        all.extend(below.ancestors().map(|part| Path::new(point).join(part).join(file)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_fits_or_is_told_what_to_change() {
        let memory = Memory { limit: Some(192 << 20), reserve: 48 << 20 };
        memory.admit(64 << 20, 80 << 20).unwrap();
        let refused = memory.admit(65 << 20, 80 << 20).unwrap_err();
        assert_eq!(refused.room(), 64 << 20);
        let said = refused.to_string();
        assert!(said.contains("budget of 65Mi") && said.contains("give podshmd 193Mi"), "{said}");
        assert_eq!(memory.admit(1, u64::MAX).unwrap_err().room(), 0);
        Memory::UNBOUNDED.admit(u64::MAX, u64::MAX).unwrap();
    }

    #[test]
    fn a_domain_that_says_no_sizes_fits_into_what_the_chart_gives() {
        let values = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart/values.yaml");
        let values = fs::read_to_string(values).unwrap();
        let given = values.split("\npodshmd:\n").nth(1).and_then(|part| part.split("  memory: ").nth(1)).unwrap();
        let given = Bytes::try_from(given.lines().next().unwrap().to_owned()).unwrap();
        let memory = Memory { limit: Some(given.0), reserve: RESERVE };
        let spec: podshm_api::DomainSpec = serde_json::from_str(r#"{"modes": ["channel"]}"#).unwrap();
        memory.admit(spec.budget.0, 0).unwrap();
        let sysv = podshm_api::SysvSpec::default();
        memory.admit(sysv.shmall.0 + spec.shm_bytes(), 0).unwrap();
    }

    #[test]
    fn a_containers_limit_is_found_in_both_versions() {
        // As runc mounts it without a cgroup namespace; with one, path and root are "/".
        let v1 = "36 25 0:30 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n\
                  37 25 0:31 /kubepods/pod1/c1 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu";
        let found = files("9:memory:/kubepods/pod1/c1\n1:cpu:/kubepods/pod1/c1\n0::/", v1);
        assert_eq!(found, [Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes")]);
        let v2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw";
        assert_eq!(files("0::/", v2), [Path::new("/sys/fs/cgroup/memory.max")]);
        let found = files("0::/kubepods/pod1", v2);
        let expected = ["kubepods/pod1/memory.max", "kubepods/memory.max", "memory.max"];
        assert_eq!(found, expected.map(|file| Path::new("/sys/fs/cgroup").join(file)));
        assert_eq!((value("max\n"), value("9223372036854771712\n"), value("4096\n")), (None, None, Some(4096)));
    }
}
