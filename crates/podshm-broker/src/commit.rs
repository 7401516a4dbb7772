//! What was decided is written down, and only then said: the one place where messages leave.
//!
//! ```text
//!  messages of one round ─► decisions: state changes, messages are queued ─► commit: one frame in the ledger ─► messages are sent
//! ```

use crate::clients::Client;
use crate::ledger::records::{
    Changes, ClientKey, ClientRecord, DomainRecord, EpochRecord, OfService, Range, Shape, Who,
};
use crate::ledger::{Entries, Ledger};
use crate::state::{Domain, State};
use podshm_proto::Services;
use std::collections::BTreeSet;
use std::time::Instant;

impl State {
    /// To be called where everything is consistent: once a round of the event loop, and where somebody would wait for no reason.
    pub(crate) fn commit(&mut self) {
        if !self.write_down() {
            // Nothing may be let out that no successor would know of. The next commit tries again.
            return;
        }
        for connection in self.connections.values_mut().filter(|c| c.has_waiting()) {
            connection.flush();
        }
    }

    fn write_down(&mut self) -> bool {
        let Some(mut ledger) = self.ledger.take() else {
            self.domains.values_mut().for_each(|domain| domain.clients.written());
            return true;
        };
        let regions = self.regions.take_changed();
        let changes = self.changes(&ledger, &regions);
        let written = if changes == (Changes { last_region: changes.last_region, ..Changes::default() }) {
            Ok(())
        } else {
            ledger.append(changes)
        };
        self.ledger = Some(ledger);
        match written {
            Ok(()) => {
                self.unwritten = None;
                self.domains.values_mut().for_each(|domain| domain.clients.written());
                true
            }
            Err(error) => {
                self.regions.put_changed_back(regions);
                let since = *self.unwritten.get_or_insert_with(|| {
                    tracing::error!(%error, "nothing is handed out until the ledger can be written");
                    Instant::now()
                });
                tracing::debug!(%error, waits = ?since.elapsed(), "the ledger can't be written");
                false
            }
        }
    }

    /// Writes down an epoch that is about to be shown, and what was left to its agent; says whether it may be.
    pub(crate) fn write_epoch(&mut self, domain: &str, epoch: u64) -> bool {
        let Some(ledger) = &mut self.ledger else { return true };
        let (known, left) = (ledger.entries().domains.get(domain), self.domains.get(domain).map(|d| &d.left_state));
        let domains = known.zip(left).map(|(known, left)| DomainRecord {
            left_state: left.bytes.clone(),
            left_state_given: left.given_to,
            ..known.clone()
        });
        let domains = domains.filter(|new| Some(new) != known).into_iter().collect();
        let epochs = vec![EpochRecord { domain: domain.to_owned(), epoch }];
        match ledger.append(Changes { domains, epochs, ..Changes::default() }) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "nobody takes over until the ledger can be written");
                false
            }
        }
    }

    /// Everything that the ledger does not say yet.
    fn changes(&self, ledger: &Ledger, regions: &BTreeSet<u64>) -> Changes {
        let known = ledger.entries();
        let mut changes = Changes { last_region: self.regions.last(), ..Changes::default() };
        for &id in regions {
            match self.regions.at(id) {
                Some(held) => changes.regions.push(held.record()),
                None => changes.gone_regions.push(id),
            }
        }
        for (name, domain) in &self.domains {
            let record = self.domain_record(domain);
            if known.domains.get(name) != Some(&record) {
                changes.domains.push(record);
            }
            for id in domain.clients.touched() {
                self.change_of(known, name, domain, *id, &mut changes);
            }
        }
        // Those that nobody has added again have their time, too.
        let kept = |name: &String| self.domains.contains_key(name) || self.restored.domains.contains_key(name);
        changes.gone_domains.extend(known.domains.keys().filter(|name| !kept(name)).cloned());
        if !changes.gone_domains.is_empty() {
            let gone = known.clients.keys().filter(|key| !kept(&key.domain));
            changes.gone_clients.extend(gone.cloned());
        }
        changes
    }

    /// What of a client the ledger does not say yet.
    fn change_of(&self, known: &Entries, name: &str, domain: &Domain, id: u64, changes: &mut Changes) {
        let key = ClientKey { domain: name.to_owned(), client: id };
        let written = known.clients.get(&key);
        let Some(client) = domain.clients.get(&id) else {
            changes.gone_clients.extend(written.map(|_| key));
            return;
        };
        let shape = client.shape(domain.books.held_by(id));
        if written.is_none_or(|written| written.shape != Some(shape)) {
            changes.clients.push(ClientRecord {
                domain: key.domain,
                client: id,
                member: Some(Who::from(&client.member)),
                shape: Some(shape),
                previous: client.previous.clone(),
            });
        }
    }

    fn domain_record(&self, domain: &Domain) -> DomainRecord {
        let pairs = |pairs: &mut dyn Iterator<Item = (u32, u64)>| -> Vec<OfService> {
            pairs.map(|(service, value)| OfService { service, value }).collect()
        };
        let agent = domain.agent.and_then(|conn| self.connections.get(&conn)).map(|c| (&c.who, c.layouts));
        let agent = agent.or(domain.absent_agent.as_ref().map(|(who, speaks)| (who, *speaks)));
        DomainRecord {
            name: domain.config.name.clone(),
            epoch: domain.epoch,
            services: domain.services.as_ref().map_or_else(Vec::new, Services::to_message),
            agent: agent.map(|(who, _)| Who::from(who)),
            agent_speaks: agent.map(|(_, speaks)| Range::from(speaks)),
            last_client: domain.last_client,
            last_place: domain.last_place,
            table_generation: domain.table_generation,
            tables: pairs(&mut domain.tables.iter().map(|(service, id)| (*service as u32, *id))),
            refused: domain.refused,
            discarded: domain.discarded,
            held_open: domain.held_open,
            left_state: domain.left_state.bytes.clone(),
            left_state_given: domain.left_state.given_to,
            passed_over: self.is_beside_one_passed_over(domain),
            pool: domain.books.pool(),
            booked: pairs(&mut domain.books.tables()),
            notice_generation: domain.notice_generation,
            unclaimed: domain.unclaimed,
        }
    }
}

impl Client {
    fn shape(&self, booked: u64) -> Shape {
        let (next, next_sealed, next_told) = self.next.as_ref().map_or((0, false, false), |n| n.parts());
        Shape {
            region: self.region,
            answer: self.answer.unwrap_or(0),
            next,
            next_sealed,
            next_told,
            before: self.before.unwrap_or(0),
            shown: self.shown.unwrap_or(0),
            handed: self.handed,
            sealed: self.sealed,
            left: self.left.is_some(),
            held_open: self.held_open,
            booked,
            speaks: Some(Range::from(self.speaks)),
            previous: self.previous.len() as u64,
            last_previous: self.previous.last().copied().unwrap_or(0),
        }
    }
}
