//! What a broker before this one has written down becomes this one's state, with everybody away.

use crate::clients::Client;
use crate::ledger::Ledger;
use crate::ledger::records::{ClientKey, ClientRecord, DomainRecord, Shape};
use crate::left_state::LeftState;
use crate::moving::Coming;
use crate::state::{Domain, DomainConfig, State};
use crate::{BrokerError, Identity};
use podshm_domain::{Books, Spoken};
use podshm_proto::Services;
use podshm_region::Memory;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

impl State {
    /// Goes on from what a broker before this one has written down.
    pub(crate) fn begin_from(&mut self, ledger: Ledger, passed: BTreeMap<u64, Memory>) {
        self.passed = passed;
        self.restored = ledger.entries().clone();
        self.regions.begin_after(self.restored.last_region);
        self.ledger = Some(ledger);
    }

    /// A domain as the ledger says, or a new one. Those who were in it have `grace` to come back.
    pub(crate) fn begin_domain(&mut self, config: DomainConfig, grace: Duration) -> Result<(), BrokerError> {
        let name = config.name.clone();
        let domain = match self.restored.domains.remove(&name) {
            Some(record) => self.restored_domain(config, record)?,
            None => Domain::new(config)?,
        };
        if self.regions.is_expecting() {
            tracing::info!(domain = name, clients = domain.clients.len(), "participants are expected back");
            self.expect_for(grace);
        }
        self.domains.insert(name, domain);
        Ok(())
    }

    /// Regions of domains that have not begun.
    pub(crate) fn unserved_bytes(&self, except: &str) -> u64 {
        self.restored.regions.values().filter(|record| record.domain != except).map(|record| record.region.bytes).sum()
    }

    /// `who` can come to the domain from now on. Where it is expected back its time begins: there was nowhere to come to before.
    pub(crate) fn may_come(&mut self, domain: &str, who: &Identity, grace: Duration) {
        let Some(domain) = self.domains.get(domain).filter(|_| self.expecting_until.is_some()) else { return };
        let is_agent = domain.absent_agent.as_ref().is_some_and(|(absent, _)| absent == who);
        if is_agent || domain.clients.values().any(|client| client.absent && client.member == *who) {
            self.expect_for(grace);
        }
    }

    fn expect_for(&mut self, grace: Duration) {
        let now = Instant::now();
        self.expecting_until = Some((now + grace, now + 2 * grace));
    }

    fn restored_domain(&mut self, config: DomainConfig, record: DomainRecord) -> Result<Domain, BrokerError> {
        let (name, limits) = (config.name.clone(), config.limits);
        let mut domain = Domain::with_notice(config, record.notice_generation + 1)?;
        let shown = self.restored.epochs.get(&name).copied().unwrap_or(0);
        domain.epoch = record.epoch.max(shown);
        if !record.services.is_empty() {
            let services = Services::check(record.services).map_err(|e| self.bad_ledger(&name, &e.to_string()))?;
            domain.services = Some(services);
        }
        let agent =
            record.agent.map(|who| (Identity::from(who), record.agent_speaks.map_or(Spoken::OURS, Spoken::from)));
        // One that a successor's epoch was shown to ends by itself; it may have been at work on a batch.
        domain.passed_over = record.passed_over || agent.is_some() && record.epoch < domain.epoch;
        domain.absent_agent = agent.filter(|_| record.epoch == domain.epoch);
        domain.tables = record.tables.iter().map(|of| (of.service as usize, of.value)).collect();
        (domain.table_generation, domain.last_client, domain.last_place) =
            (record.table_generation, record.last_client, record.last_place);
        (domain.refused, domain.discarded, domain.held_open) = (record.refused, record.discarded, record.held_open);
        domain.left_state = LeftState { bytes: record.left_state, given_to: record.left_state_given };
        domain.unclaimed = record.unclaimed;

        let from = ClientKey { domain: name.clone(), client: 0 };
        let theirs = self.restored.clients.range(from..).take_while(|(key, _)| key.domain == name);
        let theirs: Vec<ClientRecord> = theirs.map(|(_, record)| record.clone()).collect();
        let mut booked = BTreeMap::new();
        let mut wanted: BTreeSet<u64> = domain.tables.values().copied().collect();
        for record in theirs {
            let id = record.client;
            // In the ledger, whether or not it goes on.
            domain.clients.touch([id]);
            let shape = record.shape.unwrap_or_default();
            // A half-joined client has been told of nothing yet: it joins anew.
            if !shape.sealed {
                continue;
            }
            let client = self.restored_client(&name, record, shape)?;
            booked.insert(id, (client.member.clone(), shape.booked));
            wanted.extend([shape.region, shape.answer, shape.before, shape.shown]);
            wanted.extend(client.next.as_ref().map(|next| next.region));
            domain.clients.insert(id, client);
        }
        let tables = record.booked.iter().map(|of| (of.service, of.value));
        domain.books = Books::restored(limits, tables, record.pool, booked);

        let regions: Vec<u64> =
            self.restored.regions.iter().filter(|(_, r)| r.domain == name).map(|(id, _)| *id).collect();
        for id in regions {
            let Some(record) = self.restored.regions.remove(&id) else { continue };
            if record.sealed {
                self.regions.restore(record, wanted.contains(&id));
                let passed = self.passed.remove(&id).map(|memory| self.regions.present(id, memory));
                if let Some(Err(error)) = passed {
                    tracing::error!(region = id, %error, "what the broker before this one has passed on is not in its ledger");
                }
            } else {
                self.regions.forget_half_joined(id);
            }
        }
        domain.publish_epoch();
        for (service, id) in &domain.tables {
            let generation = self.regions.at(*id).map_or(0, |held| held.region.generation);
            domain.publish_table(*service, generation);
        }
        Ok(domain)
    }

    fn restored_client(&self, domain: &str, record: ClientRecord, shape: Shape) -> Result<Client, BrokerError> {
        let bad = |what: &str| self.bad_ledger(domain, &format!("client {}: {what}", record.client));
        if !self.restored.regions.get(&shape.region).is_some_and(|r| r.sealed) {
            return Err(bad("its region is not there, expected it sealed"));
        }
        let some = |id: u64| (id != 0).then_some(id);
        Ok(Client {
            member: record.member.clone().map(Identity::from).ok_or_else(|| bad("no member, expected one"))?,
            conn: None,
            region: shape.region,
            answer: some(shape.answer),
            next: some(shape.next).filter(|_| shape.next_sealed).map(|region| Coming {
                region,
                sealed: true,
                told: shape.next_told,
            }),
            previous: record.previous,
            before: some(shape.before),
            shown: some(shape.shown),
            handed: shape.handed,
            sealed: true,
            agent_doorbell: None,
            next_doorbell: None,
            stale: false,
            held_open: shape.held_open,
            joined: Instant::now(),
            left: shape.left.then(Instant::now),
            speaks: shape.speaks.map_or(Spoken::OURS, Spoken::from),
            absent: !shape.left,
            vouched: false,
            given_to: None,
            linked: None,
            began: Vec::new(),
            lost: false,
            says_hung_up: false,
        })
    }

    fn bad_ledger(&self, domain: &str, what: &str) -> BrokerError {
        let path = self.ledger.as_ref().map(|ledger| ledger.path().to_owned()).unwrap_or_default();
        BrokerError::Ledger { path, at: 0, what: format!("domain {domain}: {what}") }
    }
}
