//! The agent that served comes back, or one that was about to.

use super::{Refusal, Returning};
use crate::agents::{AgentState, Growing, pool_bytes, table_bytes};
use crate::connections::Role;
use crate::regions::ConnId;
use crate::state::{State, SuccessorWaits};
use podshm_layout::step::{self, Step};
use podshm_proto::{Down, Left, Offer, RefusalKind, RegionIds, Services, TakeOver, Use};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

impl State {
    /// Whether an agent of this epoch (0: one that has not served) is expected back from there.
    pub(super) fn check_agents_return(&self, conn: ConnId, epoch: u64) -> Result<(), Refusal> {
        let (Some(connection), Some(domain)) = (self.connections.get(&conn), self.home(conn)) else { return Ok(()) };
        let expected = domain.absent_agent.as_ref().is_some_and(|(absent, _)| *absent == connection.who);
        if epoch == 0 || epoch == domain.epoch && expected && domain.agent.is_none() {
            return Ok(());
        }
        let (name, known) = (connection.who.name(), domain.epoch);
        let reason = format!(
            "an agent of epoch {epoch} is not expected back from {name} (the domain is at {known}): another has served since, or is about to; end this one"
        );
        // One that this broker knows nothing of may go on with those who know it.
        let kind = if epoch > known { RefusalKind::NotAllowed } else { RefusalKind::Superseded };
        Err((kind, reason))
    }

    pub(super) fn agent_is_back(&mut self, conn: ConnId, returning: &Returning) -> Result<(), Refusal> {
        // Again: what it was expected for may have happened while it presented.
        self.check_agents_return(conn, returning.rejoin.epoch)?;
        let Some(domain) = self.home(conn) else { return Ok(()) };
        let (name, epoch) = (domain.config.name.clone(), returning.rejoin.epoch);
        // That it serves was written down, and not said before the broker died.
        let presents = |id: &u64| returning.offers.iter().any(|o| o.id == *id && o.used == Use::Table as i32);
        let is_absent = domain
            .absent_agent
            .as_ref()
            .is_some_and(|(absent, _)| self.connections.get(&conn).is_some_and(|connection| *absent == connection.who));
        let unheard = epoch == 0 && is_absent && !domain.tables.is_empty() && domain.tables.values().all(presents);
        let serves = epoch != 0 || unheard;
        if !serves && domain.successor.is_some() {
            let reason = "a successor is already waiting to take over; try again when it serves";
            return Err((RefusalKind::OverLimit, reason.into()));
        }
        let services = |e: String| (RefusalKind::Services, e);
        let offers = Services::check(returning.services.clone()).map_err(|e| services(e.to_string()))?;
        let offers = match &domain.services {
            Some(known) => known.extended_by(&offers).map_err(|e| services(e.to_string()))?,
            None => offers,
        };
        let state = self.agent_from(&returning.offers, &offers, serves || returning.rejoin.ready)?;
        if !serves {
            self.admit_returning_successor(conn, &offers)?;
        }
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };
        connection.role = Role::Agent;
        self.send_rejoined(conn, returning)?;
        if unheard && let Some(domain) = self.home(conn) {
            let take_over = TakeOver { epoch: domain.epoch, state: domain.left_state.give_again(domain.epoch) };
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.send(Down::TakeOver(take_over), Vec::new());
            }
        }
        let keeps: Vec<u64> = state.pool.iter().chain(state.tables.values()).copied().collect();
        keeps.iter().for_each(|id| self.regions.want(*id));
        let Some(domain) = self.domain_of(conn) else { return Ok(()) };
        domain.agents.insert(conn, state);
        if serves {
            domain.absent_agent = None;
            domain.agent = Some(conn);
        } else {
            domain.services.get_or_insert(offers);
            domain.successor = Some(conn);
        }
        step::at(Step::RejoinAgent);
        tracing::info!(domain = name, epoch, serves, "agent is back");
        self.drop_given(conn, &returning.offers);
        if serves {
            self.published_meanwhile(conn);
            self.serving_again(conn, &returning.offers);
        } else {
            self.take_over_if_possible(conn);
        }
        Ok(())
    }

    /// Answer regions that the ledger has with a client which the agent has not got, are no use to anybody else.
    fn drop_given(&mut self, conn: ConnId, offers: &[Offer]) {
        for id in offers.iter().filter(|o| o.used == Use::Pool as i32).map(|o| o.id) {
            let Some(given) = self.regions.at(id).map(|held| held.owner.given).filter(|given| *given != 0) else {
                continue;
            };
            let client = self.home(conn).and_then(|domain| domain.clients.get(&given));
            // As long as the client has it, it is what the next one starts from.
            let needed = client.is_some_and(|c| [c.answer, c.before, c.shown].contains(&Some(id)));
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.send(Down::Drop(RegionIds { ids: vec![id] }), Vec::new());
            }
            self.regions.drop_holder(id, conn);
            if !needed {
                self.regions.unwant(id);
            }
        }
    }

    fn admit_returning_successor(&mut self, conn: ConnId, offers: &Services) -> Result<(), Refusal> {
        let over = |refusal: podshm_domain::Refusal| (RefusalKind::OverLimit, refusal.to_string());
        let Some(domain) = self.home(conn) else { return Ok(()) };
        let known = domain.services.as_ref().map_or(0, Services::count);
        // As it was booked; what has grown since has more.
        let new = offers.tables().filter(|i| *i >= known).map(|i| i as u32);
        let booked: Vec<u32> = domain.books.tables().map(|(service, _)| service).collect();
        let tables: Vec<(u32, u64)> =
            new.filter(|i| !booked.contains(i)).map(|i| (i, table_bytes(offers, i as usize))).collect();
        let Some(domain) = self.domain_of(conn) else { return Ok(()) };
        let before = domain.books.clone();
        let pool = pool_bytes(offers).max(domain.books.pool());
        let admitted = domain.books.admit_tables(&tables).and_then(|()| domain.books.admit_pool(pool));
        let admitted = admitted.and_then(|()| self.admit_moves(conn, offers));
        if let (Err(_), Some(domain)) = (&admitted, self.domain_of(conn)) {
            domain.books = before;
        }
        admitted.map_err(over)
    }

    fn agent_from(&self, offers: &[Offer], services: &Services, ready: bool) -> Result<AgentState, Refusal> {
        let of = |used: Use| offers.iter().filter(move |o| o.used == used as i32);
        let is_free = |o: &&Offer| self.regions.at(o.id).is_some_and(|held| held.owner.given == 0);
        let pool: VecDeque<u64> = of(Use::Pool).filter(is_free).map(|o| o.id).collect();
        let service = |id: u64| self.region_of(id).map(|region| region.owner as usize);
        let mut tables: BTreeMap<usize, u64> = of(Use::Table).filter_map(|o| Some((service(o.id)?, o.id))).collect();
        if let Some(missing) = services.tables().find(|i| !tables.contains_key(i)) {
            let reason =
                format!("the table of service {missing} is missing: expected one of every table of this agent");
            return Err((RefusalKind::Region, reason));
        }
        let (mut growing, mut unpublished) = (BTreeMap::new(), BTreeSet::new());
        for (service, next) in of(Use::NextTable).filter_map(|o| Some((service(o.id)?, o.id))) {
            let replaces = tables.insert(service, next);
            growing.insert(service, Growing { replaces, rewrite: None, then: None });
            unpublished.insert(next);
        }
        let ready = ready.then(Instant::now);
        let (services, unmapped) = (services.clone(), BTreeMap::new());
        Ok(AgentState {
            services,
            pool,
            unmapped,
            tables,
            unpublished,
            growing,
            ready,
            asked_to_close: None,
            waits: SuccessorWaits::Ready,
            since: Instant::now(),
            forced: false,
        })
    }

    /// A table that the agent goes on with, and whose publication the broker before this one did not hear of.
    fn published_meanwhile(&mut self, conn: ConnId) {
        let Some(domain) = self.home(conn) else { return };
        let Some(agent) = domain.agents.get(&conn) else { return };
        let current = |service: &usize, id: &u64| agent.growing.get(service).map_or(Some(*id), |g| g.replaces);
        let current: Vec<(usize, u64)> =
            agent.tables.iter().filter_map(|(service, id)| Some((*service, current(service, id)?))).collect();
        let new: Vec<(usize, u64)> =
            current.into_iter().filter(|(service, id)| domain.tables.get(service) != Some(id)).collect();
        for (service, id) in new {
            let generation = self.region_of(id).map_or(0, |region| region.generation);
            let Some(domain) = self.domain_of(conn) else { return };
            let old = domain.tables.insert(service, id);
            domain.publish_table(service, generation);
            if let Some(old) = old {
                self.regions.unwant(old);
            }
        }
    }

    fn serving_again(&mut self, conn: ConnId, offers: &[Offer]) {
        let hung_up: BTreeMap<u64, bool> =
            offers.iter().filter(|o| o.used == Use::Answer as i32).map(|o| (o.client, o.hung_up)).collect();
        let Some(domain) = self.domain_of(conn) else { return };
        let name = domain.config.name.clone();
        for (id, client) in domain.clients.iter_mut() {
            client.vouched = client.absent && hung_up.get(id) == Some(&false);
        }
        let clients: Vec<(u64, bool, bool)> = domain
            .clients
            .iter()
            .filter(|(_, c)| c.sealed && !c.absent)
            .map(|(id, c)| (*id, c.conn.is_some(), c.held_open))
            .collect();
        // Cursors of predecessors that it has read; that it let them go was not heard.
        let shown = |c: &crate::clients::Client| c.shown.filter(|s| !self.regions.is_held_by(*s, conn));
        let read: Vec<u64> = self.home(conn).map_or_else(Vec::new, |d| d.clients.values().filter_map(shown).collect());
        self.agent_released(conn, &read);
        for (id, connected, held_open) in clients {
            let client = self.home(conn).and_then(|d| d.clients.get(&id));
            let Some((region, answer)) = client.map(|c| (c.region, c.answer)) else { continue };
            if connected {
                self.reconcile(conn, id);
            } else if answer.is_some_and(|a| self.regions.is_held_by(a, conn)) {
                self.tell_left(conn, Left { client: id, held_open });
            } else if self.regions.at(region).is_some_and(|held| held.is_here()) {
                self.adopt(conn, id);
            } else {
                // It was drained, which was not heard: nobody has its region any more.
                self.forget_client(&name, id);
            }
        }
        self.serve_waiting(conn);
        let _ = self.top_up(conn); // tried again when the next one is wanted
        self.move_clients(conn);
    }

    /// The agent hears that a client, which has not come back, is not there any more.
    pub(crate) fn hung_up(&mut self, conn: ConnId, id: u64) {
        let over = self.expecting_until.is_none();
        let Some(domain) = self.domain_of(conn).filter(|domain| domain.agent == Some(conn)) else { return };
        let name = domain.config.name.clone();
        let Some(client) = domain.clients.get_mut(&id).filter(|client| client.absent) else { return };
        client.vouched = false;
        if over {
            self.client_gone(&name, id);
        }
    }
}
