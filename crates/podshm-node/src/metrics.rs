//! What Prometheus is told, in the OpenMetrics text format. What lives in the daemon is counted as it happens; what the broker and the
//! volumes know is asked of them when it is scraped, so a domain that is gone leaves no series behind.

use crate::report::{DomainView, NodeView};
use podshm_broker::RefusalKind;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The call by which a pod gets a volume.
pub const PUBLISH: &str = "publish";

/// How a call of the kubelet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it was asked.
    Done,
    /// The pod, the domain or the request is in the way, by this rule.
    Refused(&'static str),
    /// The node is.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rule {
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Domain {
    domain: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DomainRule {
    domain: String,
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DomainRole {
    domain: String,
    role: &'static str,
}

/// Whole numbers.
type Number = Gauge<u64, AtomicU64>;

/// What is counted as it happens.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<Call, Histogram, fn() -> Histogram>,
    refused: Family<Rule, Counter>,
    failed: Arc<AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        // 1 ms to 16 s: a mount takes a millisecond or two, the kubelet gives a call up after minutes.
        let histogram: fn() -> Histogram = || Histogram::new((0..8).map(|power| 0.001 * 4f64.powi(power)));
        Metrics { calls: Family::new_with_constructor(histogram), refused: Family::default(), failed: Arc::default() }
    }
}

impl Metrics {
    /// A call of the kubelet has ended.
    pub fn called(&self, call: &'static str, outcome: Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Done => "done",
            Outcome::Refused(_) => "refused",
            Outcome::Failed => "failed",
        };
        self.calls.get_or_create(&Call { call, result }).observe(took.as_secs_f64());
        if call == PUBLISH && outcome == Outcome::Failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if let Outcome::Refused(rule) = outcome {
            self.refused.get_or_create(&Rule { rule }).inc();
        }
    }

    /// Volumes that could not be published because of the node.
    pub fn failed_publishes(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// All of it, as text.
    pub fn text(&self, node: &NodeView, is_registered: bool, limit: Option<u64>) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("podshm");
        registry.register("build", "The daemon", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        let (seconds, help) = (Unit::Seconds, "Calls of the kubelet, by what became of them");
        registry.register_with_unit("csi_call_duration", help, seconds, self.calls.clone());
        let help = "Volumes that were not published because of who asked, or for what, by the rule";
        registry.register("csi_refusals", help, self.refused.clone());
        number(&mut registry, "registered", "Whether the kubelet has registered the driver", is_registered.into());
        let help = "Volumes on the node that no daemon could make sense of";
        number(&mut registry, "unserved_volumes", help, node.unserved_volumes);
        number(&mut registry, "regions", "Regions alive in the broker", node.regions);
        bytes(&mut registry, "region", "Regions alive in the broker, those inherited among them", node.region_bytes);
        if let Some(limit) = limit {
            bytes(&mut registry, "memory_limit", "The daemon's own memory limit", limit);
        }
        domains(registry.sub_registry_with_prefix("domain"), node);
        let mut all = String::new();
        text::encode(&mut all, &registry)?;
        Ok(all)
    }
}

fn number(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Number::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn bytes(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Number::default();
    gauge.set(value);
    registry.register_with_unit(name, help, Unit::Bytes, gauge);
}

/// One number of each domain.
type Of = fn(&DomainView) -> u64;

fn stat(domain: &DomainView, of: fn(&podshm_broker::DomainStats) -> u64) -> u64 {
    domain.stats.as_ref().map_or(0, of)
}

const GAUGES: [(&str, &str, Of); 9] = [
    ("served", "Whether an agent serves it", |d| stat(d, |s| s.agent.into())),
    ("agent_epoch", "Agents that have served it so far: the generation of its tables' writer", |d| {
        stat(d, |s| s.epoch)
    }),
    ("successor_waiting", "Whether an agent waits to take over", |d| stat(d, |s| s.successor.is_some().into())),
    ("clients", "Clients, dead ones that are not drained included", |d| stat(d, |s| s.clients.len() as u64)),
    ("stale_clients", "Clients that keep as many old generations as they may and get no newer one", |d| {
        stat(d, |s| s.clients.iter().filter(|client| client.stale).count() as u64)
    }),
    ("waiting_clients", "Joins that wait for an agent", |d| stat(d, |s| s.waiting as u64)),
    (
        "stalled_seconds",
        "For how long a dead client's records, or an agent that is to take over, have been waiting",
        |d| d.stalled_for().as_secs(),
    ),
    ("expected", "Participants that are expected back after a restart of the daemon", |d| {
        stat(d, |s| s.expected as u64)
    }),
    ("conditions", "What is wrong with it, by the number; /domains says it in words", |d| d.conditions.len() as u64),
];

const BYTES: [(&str, &str, Of); 6] = [
    ("budget", "What its regions may take", |d| d.budget),
    ("reserved", "What of that is reserved, for successors too", |d| stat(d, |s| s.reserved)),
    ("region", "Its regions", |d| stat(d, |s| s.domain_bytes)),
    ("inherited", "Its regions that daemons before this one have made, charged where those ran", |d| {
        stat(d, |s| s.inherited_bytes)
    }),
    ("shm_used", "What lies in its /dev/shm", |d| d.shm.map_or(0, |(used, _)| used)),
    ("shm_size", "The size of its /dev/shm", |d| d.shm.map_or(0, |(_, size)| size)),
];

const COUNTERS: [(&str, &str, Of); 3] = [
    ("discarded_clients", "Clients whose records were dropped after the drain grace", |d| stat(d, |s| s.discarded)),
    ("held_open", "Participants that died while somebody kept their socket open", |d| stat(d, |s| s.held_open)),
    ("unclaimed_regions", "Regions that nobody presented after a restart: out of the books", |d| {
        stat(d, |s| s.unclaimed)
    }),
];

fn domains(registry: &mut Registry, node: &NodeView) {
    for (name, help, of) in GAUGES {
        registry.register(name, help, gauges(node, of));
    }
    for (name, help, of) in BYTES {
        registry.register_with_unit(name, help, Unit::Bytes, gauges(node, of));
    }
    for (name, help, of) in COUNTERS {
        let family = Family::<Domain, Counter>::default();
        for (domain, view) in &node.domains {
            family.get_or_create(&Domain { domain: domain.clone() }).inc_by(of(view));
        }
        registry.register(name, help, family);
    }
    let (volumes, refused) = (Family::<DomainRole, Number>::default(), Family::<DomainRule, Counter>::default());
    for (name, view) in &node.domains {
        for (role, count) in [("agent", view.agents), ("member", view.members)] {
            volumes.get_or_create(&DomainRole { domain: name.clone(), role }).set(count.into());
        }
        for (kind, count) in view.stats.iter().flat_map(|stats| &stats.refused_by) {
            refused.get_or_create(&DomainRule { domain: name.clone(), rule: rule(*kind) }).inc_by(*count);
        }
    }
    registry.register("volumes", "Volumes published to pods", volumes);
    registry.register("join_refusals", "Participants that the broker has refused, by the rule", refused);
}

fn rule(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::Other => "other",
        RefusalKind::Version => "version",
        RefusalKind::NotAllowed => "not_allowed",
        RefusalKind::OverLimit => "over_limit",
        RefusalKind::Protocol => "protocol",
        RefusalKind::Services => "services",
        RefusalKind::Region => "region",
        RefusalKind::Superseded => "superseded",
    }
}

fn gauges(node: &NodeView, of: Of) -> Family<Domain, Number> {
    let family = Family::<Domain, Number>::default();
    for (domain, view) in &node.domains {
        family.get_or_create(&Domain { domain: domain.clone() }).set(of(view));
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;
    use podshm_broker::DomainStats;

    #[test]
    fn names_have_units_and_a_domain_that_is_gone_leaves_no_series() {
        let metrics = Metrics::default();
        metrics.called(PUBLISH, Outcome::Refused("join"), Duration::from_millis(3));
        metrics.called(PUBLISH, Outcome::Failed, Duration::from_millis(3));
        assert_eq!(metrics.failed_publishes(), 1);
        let stats = DomainStats {
            domain_bytes: 8192,
            refused_by: [(RefusalKind::OverLimit, 3)].into(),
            ..DomainStats::default()
        };
        let view = DomainView { stats: Some(stats), budget: 1 << 20, members: 2, ..DomainView::default() };
        let mut node = NodeView { domains: [("routing".to_owned(), view)].into(), ..NodeView::default() };
        let text = metrics.text(&node, true, Some(7)).unwrap();
        for line in [
            "podshm_registered 1",
            "podshm_memory_limit_bytes 7",
            "podshm_domain_budget_bytes{domain=\"routing\"} 1048576",
            "podshm_domain_region_bytes{domain=\"routing\"} 8192",
            "podshm_domain_volumes{domain=\"routing\",role=\"member\"} 2",
            "podshm_domain_join_refusals_total{domain=\"routing\",rule=\"over_limit\"} 3",
            "podshm_csi_refusals_total{rule=\"join\"} 1",
            "podshm_csi_call_duration_seconds_count{call=\"publish\",result=\"refused\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        node.domains.clear();
        assert!(!metrics.text(&node, true, None).unwrap().contains("routing"));
    }
}
