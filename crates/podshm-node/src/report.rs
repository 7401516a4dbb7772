//! What the daemon says of its node: `/domains` as it is, `/metrics` by way of it.

use podshm_api::report::{DomainReport, NodeCondition, NodeReport};
use podshm_broker::DomainStats;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is known of one domain, as it is now.
#[derive(Clone, Debug, Default)]
pub struct DomainView {
    /// The broker's part; absent where the domain is not served.
    pub stats: Option<DomainStats>,
    /// `metadata.generation` of its object, 0 where it has none.
    pub generation: i64,
    /// Its budget, as the node goes by it.
    pub budget: u64,
    /// Volumes of its agent.
    pub agents: u32,
    /// Volumes of its members.
    pub members: u32,
    /// Bytes in its /dev/shm, of so many.
    pub shm: Option<(u64, u64)>,
    /// What the daemon has found wrong itself.
    pub conditions: Vec<NodeCondition>,
}

/// What is known of the node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// Whether the container runtime asks us; absent where it is not meant to.
    pub nri: Option<bool>,
    /// All domains.
    pub domains: BTreeMap<String, DomainView>,
    /// Bytes of regions, what was inherited among them.
    pub region_bytes: u64,
    /// Regions.
    pub regions: u64,
    /// Volumes on the node that no daemon could make sense of: they stay until they are unpublished.
    pub unserved_volumes: u64,
}

impl DomainView {
    /// Clients that are connected.
    fn clients(&self) -> u32 {
        let clients = self.stats.iter().flat_map(|stats| &stats.clients);
        clients.filter(|client| client.connected).count() as u32
    }

    /// For how long something has been waiting for an agent, the longest.
    pub fn stalled_for(&self) -> Duration {
        let Some(stats) = &self.stats else { return Duration::ZERO };
        let left = stats.clients.iter().filter_map(|client| client.left_for);
        left.chain(stats.successor_for).max().unwrap_or_default()
    }

    /// For whoever asks.
    fn report(&self, name: &str) -> DomainReport {
        let (shm_bytes, shm_size) = self.shm.unwrap_or_default();
        let of = |number: fn(&DomainStats) -> u64| self.stats.as_ref().map_or(0, number);
        DomainReport {
            name: name.to_owned(),
            generation: self.generation,
            served: self.stats.as_ref().is_some_and(|stats| stats.agent),
            volumes: self.agents + self.members,
            clients: self.clients(),
            region_bytes: of(|stats| stats.domain_bytes),
            budget_bytes: self.budget,
            shm_bytes,
            shm_size,
            epoch: of(|stats| stats.epoch),
            refused: of(|stats| stats.refused),
            discarded: of(|stats| stats.discarded),
            unclaimed: of(|stats| stats.unclaimed),
            held_open: of(|stats| stats.held_open),
            stale_clients: of(|stats| stats.clients.iter().filter(|client| client.stale).count() as u64) as u32,
            waiting_clients: of(|stats| stats.waiting as u64) as u32,
            stalled_seconds: self.stalled_for().as_secs(),
            conditions: self.conditions.iter().cloned().chain(self.found()).collect(),
        }
    }

    /// What the broker's numbers say.
    fn found(&self) -> Vec<NodeCondition> {
        let mut found = Vec::new();
        let Some(stats) = &self.stats else { return found };
        if self.members > 0 && self.agents == 0 {
            found.push(condition(
                "NoAgent",
                format!(
                    "{} pods of this node have the domain's volume, and no pod has it as its agent; run the agent here, as a DaemonSet that \
                     tolerates this node's taints",
                    self.members
                ),
            ));
        }
        let stale: Vec<&str> = stats.clients.iter().filter(|c| c.stale).map(|client| client.member.as_str()).collect();
        if let Some(first) = stale.first() {
            let rest = stale.len() - 1;
            found.push(condition(
                "StaleClients",
                format!(
                    "{first} and {rest} more keep old generations and get no newer one: their process is stopped or never calls the \
                     library; restart it"
                ),
            ));
        }
        if stats.discarded > 0 {
            found.push(condition(
                "RecordsDiscarded",
                format!(
                    "{} clients ended with records that no agent came for in time; the log names them. An agent that is back sooner \
                     prevents it",
                    stats.discarded
                ),
            ));
        }
        if stats.unclaimed > 0 {
            found.push(condition(
                "RegionsUnclaimed",
                format!(
                    "{} regions were not presented after a restart of the daemon and are out of the books; the log names their owners",
                    stats.unclaimed
                ),
            ));
        }
        found
    }
}

impl NodeView {
    /// For whoever asks.
    pub fn report(&self, node: &str, registered: bool, limit_bytes: Option<u64>, failed_publishes: u64) -> NodeReport {
        NodeReport {
            node: node.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            registered,
            nri: self.nri,
            charged_bytes: self.region_bytes,
            limit_bytes,
            failed_publishes,
            domains: self.domains.iter().map(|(name, domain)| domain.report(name)).collect(),
        }
    }
}

/// A condition.
pub fn condition(reason: &str, message: String) -> NodeCondition {
    NodeCondition { reason: reason.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podshm_broker::ClientStats;

    #[test]
    fn a_report_says_what_is_wrong_and_what_to_do() {
        let client = |connected, stale| ClientStats {
            client: 1,
            member: "shop/cart".into(),
            connected,
            stale,
            left_for: (!connected).then_some(Duration::from_secs(7)),
        };
        let stats = DomainStats {
            agent: true,
            domain_bytes: 4096,
            epoch: 2,
            refused: 3,
            waiting: 1,
            clients: vec![client(true, false), client(false, false), client(true, true)],
            ..DomainStats::default()
        };
        let well =
            DomainView { stats: Some(DomainStats { clients: vec![], ..stats.clone() }), ..DomainView::default() };
        let ill = DomainView { stats: Some(stats), members: 2, shm: Some((1, 2)), ..DomainView::default() };
        let domains = [("audit".to_owned(), well), ("routing".to_owned(), ill)].into();
        let report =
            NodeView { domains, region_bytes: 4096, ..NodeView::default() }.report("n", true, Some(1 << 20), 4);
        assert_eq!(
            (report.charged_bytes, report.limit_bytes, report.domains[0].conditions.len()),
            (4096, Some(1 << 20), 0)
        );
        let ill = &report.domains[1];
        assert_eq!((ill.served, ill.volumes, ill.clients, ill.shm_bytes, ill.shm_size), (true, 2, 2, 1, 2));
        assert_eq!((ill.epoch, ill.refused, ill.stale_clients, ill.waiting_clients), (2, 3, 1, 1));
        assert_eq!((ill.stalled_seconds, report.domains[0].stalled_seconds, report.failed_publishes), (7, 0, 4));
        let reasons: Vec<&str> = ill.conditions.iter().map(|condition| condition.reason.as_str()).collect();
        assert_eq!(reasons, ["NoAgent", "StaleClients"]);
        assert!(ill.conditions[1].message.contains("shop/cart"), "{ill:?}");
    }
}
