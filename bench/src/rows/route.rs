//! What the route agent and its clients add to a table and a queue: choosing an endpoint out of a route's value, and the log by
//! which the demo proves that nothing was lost.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use route_agent::delivered::{Delivered, Log};
use route_client::wire::{Address, Endpoint, encode};
use route_client::{Locality, SmallRandom, pick};

use crate::control::Control;
use crate::metric::Metric;
use crate::row::{Bound, Plan, Row, Sample, Target};

const PICK: Metric = Metric::Once { what: "an endpoint chosen out of 900 in three zones" };
const LOGGED: Metric = Metric::Once { what: "a delivered record logged on tmpfs" };

/// See above.
pub struct RouteCost;

impl Row for RouteCost {
    fn name(&self) -> &'static str {
        "route"
    }

    fn title(&self) -> String {
        "routes".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![PICK, LOGGED]
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target { metric: PICK, bound: Bound::Under(100.0), fatal: false }]
    }

    fn measure(&self, _peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let value = encode(0, &endpoints());
        let (locality, mut random) = (Locality::zone("c").prefer_local_from(3), SmallRandom::new(5));
        let pick = mean_ns(plan.budget, || {
            black_box(pick(&mut value.as_slice(), &locality, &mut random)?.record.id);
            Ok(())
        })?;
        let path = Path::new("/dev/shm").join(format!("podshm-bench-log-{}", std::process::id()));
        let mut log = Log::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut position = 0;
        let logged = mean_ns(plan.budget, || {
            position += 1;
            log.append(&Delivered { client: 1, position, maybe_seen: false, trailer: None })?;
            Ok(())
        });
        std::fs::remove_file(&path)?;
        Ok(vec![Sample { metric: PICK, value: pick }, Sample { metric: LOGGED, value: logged? }])
    }
}

fn endpoints() -> Vec<Endpoint> {
    let zones = ["a", "b", "c"].map(Arc::<str>::from);
    (0..900u32)
        .map(|n| {
            let endpoint = Endpoint::new(Address::V4(Ipv4Addr::from(0x0a00_0000 + n)), 8080);
            Endpoint { zone: Some(zones[n as usize % 3].clone()), hints: vec![zones[0].clone()], ..endpoint }
        })
        .collect()
}

/// Nanoseconds that `each` takes in the mean, over about `budget`.
fn mean_ns(budget: Duration, mut each: impl FnMut() -> Result<()>) -> Result<f64> {
    let (begun, mut times) = (Instant::now(), 0_u32);
    while times == 0 || begun.elapsed() < budget {
        // A reading of the clock would be a third of what is measured.
        for _ in 0..100 {
            each()?;
        }
        times += 100;
    }
    Ok(begun.elapsed().as_nanos() as f64 / f64::from(times))
}
