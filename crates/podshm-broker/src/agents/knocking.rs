//! A successor at the door of a domain that has no room for it yet.
//!
//! What is reserved for tables is K generations that are kept, one that stands and the successor's. Clients keep different ones: one that is stopped
//! the first two, say, and one that runs, for the moment that it takes to let go, the last. The next one waits out that moment.

use super::{answer_bytes, first_answers};
use crate::regions::ConnId;
use crate::state::State;
use podshm_proto::{Service, Services};
use std::collections::BTreeSet;
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Knocking {
    pub(crate) conn: ConnId,
    pub(crate) offered: Vec<Service>,
    pub(crate) since: Instant,
}

impl State {
    /// Whether the regions that this successor begins with have to wait until clients have let go of older ones. Readers that are stopped
    /// may never do so: it does not wait for long, and is let in then all the same.
    pub(super) fn waits_for_room(&self, conn: ConnId, services: &Services, since: Instant) -> bool {
        let Some(domain) = self.home(conn) else { return false };
        let tables: u64 = self.first_tables(conn, services).iter().map(|(_, geometry)| geometry.size()).sum();
        let asked = tables.saturating_add(first_answers(domain) as u64 * answer_bytes(services));
        let (name, budget) = (&domain.config.name, domain.books.limits().budget);
        // Where it would not fit into an empty domain, the books say so.
        let over = self.regions.domain_bytes(name).saturating_add(asked).saturating_sub(budget);
        if over == 0 || asked > budget {
            return false;
        }
        // Who lets go at all does so as soon as it has seen the next generation.
        if since.elapsed() < domain.config.room_grace {
            return true;
        }
        let current: BTreeSet<u64> = domain.tables.values().copied().collect();
        let keeps = |client: &crate::clients::Client| {
            client.conn.is_some_and(|conn| self.regions.keeps_others_than(&current, conn))
        };
        let by: BTreeSet<String> =
            domain.clients.values().filter(|client| keeps(client)).map(|client| client.member.name()).collect();
        tracing::warn!(
            domain = name,
            over,
            ?by,
            "these keep more old generations than are reserved for; an agent comes all the same, above the budget"
        );
        false
    }

    /// Those that have waited may come in, where there is room or they have waited for long enough.
    pub(crate) fn answer_knocks(&mut self) {
        let at_door = self.domains.values_mut().filter_map(|domain| domain.knocking.take());
        for Knocking { conn, offered, since } in at_door.collect::<Vec<_>>() {
            self.agent_hello_since(conn, offered, since);
        }
    }

    /// [`State::answer_knocks`] of the one domain in which somebody let go.
    pub(crate) fn answer_knock(&mut self, domain: &str) {
        if let Some(Knocking { conn, offered, since }) = self.domains.get_mut(domain).and_then(|d| d.knocking.take()) {
            self.agent_hello_since(conn, offered, since);
        }
    }
}
