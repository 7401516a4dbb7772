//! Pods that push, pick or ask for as long as something is done, and how far each had come when that began and when it was over.
//!
//! ```text
//!           begin              over                        end
//!  ─ load ────┼─── the fault ────┼───────────────────────────┼──
//!             │◄──── During ────►│                           │
//!             │◄────────────────── MANY ────────────────────►│
//! ```

use crate::testing::{Cluster, Space, until};
use anyhow::{Context, bail};
use std::time::{Duration, Instant};

/// Records of each pod from when the fault begins; the load goes on for as long.
pub const MANY: u64 = 100_000;

/// How many of [`MANY`] have to come before the fault is over, or the load has stalled.
#[derive(Clone, Copy, Debug)]
pub struct During(pub u64);

impl During {
    /// More than the rings of two agents hold, 1,024 each.
    pub const RECORDS: During = During(2_500);
    /// Each waits for its answer: of a load that stalls there is one.
    pub const QUESTIONS: During = During(250);
}

/// How far a load has come; an error that says what it printed where it has ended.
fn count(cluster: &Cluster, space: &Space, pod: &str) -> anyhow::Result<u64> {
    let said = cluster.run(space, pod, &["/podshm-cluster-pod", "count"])?;
    said.text.trim().parse().with_context(|| format!("{pod} has said {said:?}"))
}

/// A load that has come no further than so many in all the time that anything may take has stalled.
const FURTHER: u64 = 64;

/// How far a load has come once it is as far as `least`. It may take its time, as long as it comes further.
fn counted(cluster: &Cluster, space: &Space, pod: &str, least: u64, what: &str) -> u64 {
    let mut found = 0;
    loop {
        found = counted_in_time(cluster, space, pod, least.min(found + FURTHER), what);
        if found >= least {
            return found;
        }
        // Each question takes processor time from the load.
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The same, once whoever carries the question is there: a kubelet or containerd may only just have come back.
fn counted_in_time(cluster: &Cluster, space: &Space, pod: &str, least: u64, what: &str) -> u64 {
    let found = until(&format!("{what}: {pod} to have {least}"), || {
        let found = count(cluster, space, pod);
        if found.is_err() && phase(cluster, space, pod)? == "Failed" {
            return Ok(Some(Err(cluster.within(space, &["logs", pod])?)));
        }
        found.map(|found| (found >= least).then_some(Ok(found)))
    });
    found.unwrap_or_else(|error| panic!("{error:#}")).unwrap_or_else(|said| panic!("{what}: {pod} has failed: {said}"))
}

fn phase(cluster: &Cluster, space: &Space, pod: &str) -> anyhow::Result<String> {
    cluster.within(space, &["get", "pod", pod, "-o", "jsonpath={.status.phase}"])
}

/// What was during a fault and what came since it began, of one load; why it is too little.
fn judged(least: During, begin: u64, over: u64, end: u64) -> anyhow::Result<(u64, u64)> {
    let (during, since) = (over.saturating_sub(begin), end.saturating_sub(begin));
    if during < least.0 {
        bail!("{during} while it lasted: expected {} at least, or the load has stalled", least.0);
    }
    if since < MANY {
        bail!("{since} from when it began: expected {MANY} at least");
    }
    Ok((during, since))
}

/// Does something while the loads of these pods run, and lets them run on until each has enough. They are still running then.
pub fn meanwhile(cluster: &Cluster, pods: &[(&Space, String)], (what, during): (&str, During), act: impl FnOnce()) {
    let all = |least: &dyn Fn(usize) -> u64| -> Vec<u64> {
        let of = |(at, (space, pod)): (usize, &(&Space, String))| counted(cluster, space, pod, least(at), what);
        pods.iter().enumerate().map(of).collect()
    };
    all(&|_| 64);
    let begin = all(&|_| 64);
    let began = Instant::now();
    act();
    let lasted = began.elapsed().as_secs_f64();
    let over = all(&|_| 0);
    let end = all(&|at| begin[at] + MANY);
    let seconds = began.elapsed().as_secs_f64();
    for (at, (space, pod)) in pods.iter().enumerate() {
        let found = judged(during, begin[at], over[at], end[at]);
        let (during, since) = found.unwrap_or_else(|why| panic!("{what}: {}/{pod}: {why}", space.name));
        println!(
            "{what}: {}/{pod}: {during} in the {lasted:.1} s that it lasted, {since} in {seconds:.1} s from when it began",
            space.name
        );
    }
}

/// Tells a load to end, and takes its pod away: the last line that it has printed.
pub fn ended(cluster: &Cluster, space: &Space, pod: &str, what: &str) -> String {
    // The command may end with its container, before it has said that it is done.
    cluster.run(space, pod, &["/podshm-cluster-pod", "stop"]).unwrap();
    let found = until("the load to end", || {
        let phase = phase(cluster, space, pod)?;
        Ok(["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase))
    });
    let (phase, said) = (found.unwrap(), cluster.within(space, &["logs", pod]).unwrap());
    assert_eq!(phase, "Succeeded", "{what}: {pod}: {said}");
    cluster.within(space, &["delete", "pod", pod, "--grace-period=1"]).unwrap();
    said.lines().last().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_stalls_for_the_whole_fault_is_too_little_however_far_it_comes_after_it() {
        let full_rings = 2 * 1024;
        let stalled = judged(During::RECORDS, 50_000, 50_000 + full_rings, 1_000_000).unwrap_err().to_string();
        assert!(stalled.contains("2048 while it lasted"), "{stalled}");
        // Before it began does not count.
        let before = judged(During::RECORDS, 500_000, 510_000, 510_001).unwrap_err().to_string();
        assert!(before.contains("10001 from when it began"), "{before}");
        assert_eq!(judged(During::RECORDS, 1_000, 11_000, 101_000).unwrap(), (10_000, 100_000));
    }
}
