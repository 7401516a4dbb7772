//! Agents: coming, mapping what they are to write, leaving.

mod cursors;
mod knocking;
mod pool;
mod tables;
mod take_over;

use crate::connections::Role;
use crate::left_state::LeftState;
use crate::regions::{ConnId, Owner};
use crate::state::{Domain, State, SuccessorWaits};
pub(crate) use knocking::Knocking;
use podshm_layout::step::{self, Step};
use podshm_layout::{Layout, RegionKind, TableGeometry};
use podshm_proto::{Down, Grow, Left, RefusalKind, Region, RegionIds, Regions, Service, Services, Welcome, Written};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;
pub(crate) use tables::table_bytes;
use tables::table_geometry;

/// Ready-sealed answer regions kept for the next joins.
const SPARE: usize = 4;

/// What agents keep in spare: each of two at a time does.
pub(crate) fn pool_bytes(services: &Services) -> u64 {
    2 * SPARE as u64 * answer_bytes(services)
}

/// Layouts differ within the first page, so the size is the same for all.
fn answer_bytes(services: &Services) -> u64 {
    services.channel(0, 0, Written::both(Layout::OLDEST)).map_or(0, |g| g.agent_bytes)
}

/// Answer regions that a successor begins with: where nobody serves some in spare, and the others come with their clients.
fn first_answers(domain: &Domain) -> usize {
    SPARE + domain.agent.map_or(0, |_| domain.clients.len())
}

#[derive(Debug)]
pub(crate) struct AgentState {
    /// What it offers: the domain's services, and more behind them where it is to take over with more.
    pub(crate) services: Services,
    /// Sealed and mapped by the agent, not given to a client yet.
    pub(crate) pool: VecDeque<u64>,
    /// Sent for writing, not acknowledged yet, with the time of sending.
    pub(crate) unmapped: BTreeMap<u64, Instant>,
    /// Tables by service: the newest that this agent has mapped and that is sealed.
    pub(crate) tables: BTreeMap<usize, u64>,
    /// Sealed tables that are not published yet.
    pub(crate) unpublished: BTreeSet<u64>,
    /// Tables whose next generation is asked for and not published.
    pub(crate) growing: BTreeMap<usize, Growing>,
    /// Since when its tables are filled.
    pub(crate) ready: Option<Instant>,
    pub(crate) asked_to_close: Option<Instant>,
    /// As a successor: what for.
    pub(crate) waits: SuccessorWaits,
    /// Since when it is here.
    pub(crate) since: Instant,
    /// It was passed over without having closed: it may still be at work on one batch.
    pub(crate) forced: bool,
}

/// A table's next generation on its way.
#[derive(Debug)]
pub(crate) struct Growing {
    /// The generation that it replaces, once that is known.
    pub(crate) replaces: Option<u64>,
    /// The broker asked for it, and when: somebody came who does not read the one that stands.
    pub(crate) rewrite: Option<Instant>,
    /// The agent wants a larger one meanwhile; its turn is when this one is published.
    pub(crate) then: Option<Grow>,
}

impl AgentState {
    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    /// Whether this agent has the region for writing, with no client yet.
    pub(crate) fn writes(&self, id: u64) -> bool {
        let replaced = self.growing.values().any(|growing| growing.replaces == Some(id));
        replaced || self.pool.contains(&id) || self.tables.values().any(|table| *table == id)
    }
}

impl State {
    pub(crate) fn agent_hello(&mut self, conn: ConnId, offered: Vec<Service>) {
        self.agent_hello_since(conn, offered, Instant::now());
    }

    /// One that said hello at `since`, and may have waited for room.
    fn agent_hello_since(&mut self, conn: ConnId, offered: Vec<Service>, since: Instant) {
        let offers = match Services::check(offered.clone()) {
            Ok(services) => services,
            Err(error) => return self.reject(conn, RefusalKind::Services, error),
        };
        // Whoever offers more than its predecessors does so behind what they offered: everybody counts services in one order.
        let known = self.home(conn).and_then(|domain| domain.services.clone());
        let services = match known.as_ref().map_or(Ok(offers.clone()), |known| known.extended_by(&offers)) {
            Ok(services) => services,
            Err(contradiction) => return self.reject(conn, RefusalKind::Services, contradiction),
        };
        let refused = self.home(conn).and_then(|domain| self.check_agent(domain, conn, &services).err());
        let refused =
            refused.or_else(|| self.check_moves(conn, known.as_ref().unwrap_or(&offers), &offers, &services).err());
        if let Some((kind, reason)) = refused {
            return self.reject(conn, kind, reason);
        }
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        if domain.successor.is_some() || domain.knocking.is_some() {
            let reason = "a successor is already waiting to take over; try again when it serves";
            return self.reject(conn, RefusalKind::OverLimit, reason);
        }
        if self.waits_for_room(conn, &services, since) {
            if let Some(domain) = self.domain_of(conn) {
                domain.knocking = Some(Knocking { conn, offered, since });
            }
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.role = Role::Knocking;
            }
            return;
        }
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        // What it is to write, kept and sent, and the notice page.
        let regions = services.tables().count() + domain.clients.len() + SPARE;
        if let Err(refusal) = domain.has_descriptors(2 * regions + 1) {
            return self.reject(conn, RefusalKind::OverLimit, refusal);
        }
        let known = known.map_or(0, |known| known.count());
        let new = services.tables().filter(|i| *i >= known);
        let tables: Vec<(u32, u64)> = new.map(|i| (i as u32, table_bytes(&services, i))).collect();
        let before = domain.books.clone();
        let pool = pool_bytes(&services);
        if let Err(refusal) = domain.books.admit_tables(&tables).and_then(|()| domain.books.admit_pool(pool)) {
            domain.books = before;
            return self.reject(conn, RefusalKind::OverLimit, refusal);
        }
        if let Err(refusal) = self.admit_moves(conn, &services) {
            if let Some(domain) = self.domain_of(conn) {
                domain.books = before;
            }
            return self.reject(conn, RefusalKind::OverLimit, refusal);
        }
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        domain.services.get_or_insert_with(|| services.clone());
        domain.successor = Some(conn);
        domain.agents.insert(
            conn,
            AgentState {
                services: services.clone(),
                pool: VecDeque::new(),
                unmapped: BTreeMap::new(),
                tables: BTreeMap::new(),
                unpublished: BTreeSet::new(),
                growing: BTreeMap::new(),
                ready: None,
                asked_to_close: None,
                waits: SuccessorWaits::Ready,
                since: Instant::now(),
                forced: false,
            },
        );
        let welcome = Welcome {
            domain: domain.config.name.clone(),
            epoch: domain.epoch,
            services: services.to_message(),
            ..Welcome::default()
        };
        let notice = domain.notice();
        let spare = first_answers(domain);
        let geometries = self.first_tables(conn, &services);
        let layout = self.next_layout(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.role = Role::Agent;
        let (protocol, member) = (connection.protocol, connection.who.name());
        let welcome = Welcome { protocol, layout: layout.number(), member, ..welcome };
        match notice {
            Ok(fd) => connection.send(Down::Welcome(welcome), vec![fd]),
            Err(error) => return self.reject(conn, RefusalKind::Region, error),
        }
        let mut wanted = Vec::new();
        for (index, geometry) in geometries {
            wanted.push(self.new_table(conn, index, geometry, layout));
        }
        wanted.extend(self.new_answers(conn, spare));
        self.send_for_writing(conn, wanted);
    }

    /// The tables that a successor begins with: one that has grown keeps its size over a change of agents.
    fn first_tables(&self, conn: ConnId, services: &Services) -> Vec<(usize, TableGeometry)> {
        let standing = |index| self.regions.at(*self.home(conn)?.tables.get(&index)?).map(|held| held.region);
        let geometry = |index| match standing(index) {
            Some(region) => TableGeometry { buckets: region.buckets, units: region.units },
            None => table_geometry(services, index),
        };
        services.tables().map(|index| (index, geometry(index))).collect()
    }

    /// Makes regions and sends them to their writer, in messages that hold as many as fit.
    fn send_for_writing(&mut self, conn: ConnId, wanted: Vec<Region>) {
        let Some(owner) = self.connections.get(&conn).map(|c| Owner::new(&c.domain, Some(&c.who))) else { return };
        for chunk in wanted.chunks(pool::AT_ONCE) {
            let (mut regions, mut fds) = (Vec::new(), Vec::new());
            for region in chunk {
                match self.regions.make(*region, owner.clone()).and_then(|id| self.regions.lend(id, conn)) {
                    Ok((region, fd)) => {
                        regions.push(region);
                        fds.push(fd);
                    }
                    Err(error) => return self.reject(conn, RefusalKind::Region, error),
                }
            }
            let now = Instant::now();
            if let Some(agent) = self.agent_state(conn) {
                agent.unmapped.extend(regions.iter().map(|r| (r.id, now)));
            }
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.send(Down::Write(Regions { regions }), fds);
            }
        }
    }

    fn agent_state(&mut self, conn: ConnId) -> Option<&mut AgentState> {
        self.domain_of(conn)?.agents.get_mut(&conn)
    }

    /// The agent has mapped regions: seal them; from here on they may go to readers.
    pub(crate) fn agent_mapped(&mut self, conn: ConnId, ids: &[u64]) {
        for &id in ids {
            let Some(agent) = self.agent_state(conn) else {
                return;
            };
            if agent.unmapped.remove(&id).is_none() {
                let reason = format!("region {id} was not sent for writing, or was acknowledged before");
                return self.reject(conn, RefusalKind::Protocol, reason);
            }
            if let Err(error) = self.regions.seal(id) {
                self.regions.unwant(id);
                return self.reject(conn, RefusalKind::Region, error);
            }
            step::at(Step::BrokerPool);
            let Some(region) = self.regions.at(id).map(|h| h.region) else {
                continue;
            };
            let Some(agent) = self.agent_state(conn) else {
                return;
            };
            if region.kind == RegionKind::Table as u32 {
                let service = region.owner as usize;
                let replaced = agent.tables.insert(service, id);
                if let Some(growing) = agent.growing.get_mut(&service) {
                    growing.replaces = replaced;
                }
                agent.unpublished.insert(id);
            } else {
                agent.pool.push_back(id);
            }
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.send(Down::Sealed(RegionIds { ids: ids.to_vec() }), Vec::new());
        }
        self.take_over_if_possible(conn);
        self.adopt_unserved(conn);
        self.serve_waiting(conn);
    }

    pub(crate) fn agent_ready(&mut self, conn: ConnId) {
        let Some(agent) = self.agent_state(conn) else {
            return;
        };
        // Nothing is asked of an agent between its first regions and this: its author is busy filling tables.
        if !agent.unmapped.is_empty() {
            return self.reject(conn, RefusalKind::Protocol, "ready before every region was acknowledged as mapped");
        }
        agent.ready.get_or_insert_with(Instant::now);
        agent.unpublished.clear();
        self.take_over_if_possible(conn);
    }

    fn refuse(&mut self, conn: ConnId, kind: RefusalKind, reason: impl ToString) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.refuse(kind, reason);
        }
    }

    pub(crate) fn agent_closed(&mut self, conn: ConnId, state: Vec<u8>) {
        let Some(domain) = self.domain_of(conn) else { return };
        if domain.agent == Some(conn) {
            domain.left_state = LeftState::new(state);
            domain.agent = None;
            let name = domain.config.name.clone();
            self.give_up_vouched(&name);
            let Some(domain) = self.domain_of(conn) else { return };
            if let Some(successor) = domain.successor {
                self.take_over_if_possible(successor);
            }
        }
    }

    pub(crate) fn agent_gone(&mut self, name: &str, conn: ConnId) {
        let Some(domain) = self.domains.get_mut(name) else {
            return;
        };
        let known = domain.services.as_ref().map_or(0, Services::count);
        let mut new_tables = Vec::new();
        if let Some(agent) = domain.agents.remove(&conn) {
            new_tables.extend(agent.services.tables().filter(|i| *i >= known).map(|i| i as u32));
            let current: BTreeSet<u64> = domain.tables.values().copied().collect();
            for id in agent
                .pool
                .into_iter()
                .chain(agent.unmapped.into_keys())
                .chain(agent.tables.into_values())
                .chain(agent.growing.into_values().filter_map(|g| g.replaces))
            {
                if !current.contains(&id) {
                    self.regions.unwant(id);
                }
            }
        }
        if domain.successor == Some(conn) {
            domain.successor = None;
            // It has not brought what it offered beyond its predecessors.
            domain.books.release_tables(new_tables);
            let pool = domain.services.as_ref().map_or(0, pool_bytes);
            let _ = domain.books.admit_pool(pool); // no more than it was
            let agent = domain.agent;
            self.settle_books_of(name);
            if let Some(agent) = agent {
                self.serve_waiting(agent); // some may have waited for it
            }
        }
        let Some(domain) = self.domains.get_mut(name) else {
            return;
        };
        if domain.agent == Some(conn) {
            domain.agent = None;
            tracing::warn!(domain = domain.config.name, "agent is gone; clients go on with what they have");
            self.give_up_vouched(name);
        }
        let Some(domain) = self.domains.get_mut(name) else {
            return;
        };
        if let (None, Some(successor)) = (domain.agent, domain.successor) {
            self.take_over_if_possible(successor);
        }
        // It may have been the last that held what clients had before.
        self.settle_books_of(name);
        self.go_on_moving(name);
    }

    /// Tells the serving agent that a client is gone.
    pub(crate) fn tell_left(&mut self, agent: ConnId, left: Left) {
        if let Some(connection) = self.connections.get_mut(&agent) {
            connection.send(Down::Left(left), Vec::new());
        }
    }

    /// What is overdue: agents that don't map or don't close.
    pub(crate) fn check_agents(&mut self, now: Instant) {
        self.answer_knocks();
        let (mut late, mut unwritten, mut forced) = (Vec::new(), Vec::new(), Vec::new());
        let mut successors = Vec::new();
        for domain in self.domains.values() {
            successors.extend(domain.successor);
            for (conn, agent) in &domain.agents {
                if agent.unmapped.values().any(|sent| now - *sent > domain.config.map_deadline) {
                    late.push(*conn);
                }
                let overdue = |g: &Growing| g.rewrite.is_some_and(|asked| now - asked > 2 * domain.config.map_deadline);
                if agent.growing.values().any(overdue) {
                    unwritten.push(*conn);
                }
                if domain.agent == Some(*conn)
                    && agent.asked_to_close.is_some_and(|at| now - at > domain.config.close_grace)
                {
                    forced.push(*conn);
                }
            }
        }
        for conn in late {
            self.reject(conn, RefusalKind::Region, "a region was not acknowledged as mapped in time; it is freed");
        }
        // Those that it waited for may have had their time.
        for conn in successors {
            self.take_over_if_possible(conn);
        }
        for conn in unwritten {
            let reason = "a table was not written at the layout that was asked for in time; poll the agent more often";
            self.reject(conn, RefusalKind::Region, reason);
        }
        for conn in forced {
            tracing::warn!("agent does not close; its successor goes on without it");
            if let Some(agent) = self.agent_state(conn) {
                agent.forced = true;
            }
            self.agent_closed(conn, Vec::new());
        }
    }
}
