//! Agents: coming, mapping what they are to write, leaving.

mod pool;
mod tables;
mod take_over;

use crate::connections::Role;
use crate::regions::ConnId;
use crate::state::State;
use podshm_layout::step::{self, Step};
use podshm_layout::{Layout, RegionKind, TableGeometry};
use podshm_proto::{Down, Grow, Left, RefusalKind, Region, RegionIds, Regions, Service, Services, Welcome, Written};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;
use tables::{table_bytes, table_geometry};

/// Ready-sealed answer regions kept for the next joins.
const SPARE: usize = 4;

#[derive(Debug)]
pub(crate) struct AgentState {
    /// Sealed and mapped by the agent, not given to a client yet.
    pool: VecDeque<u64>,
    /// Sent for writing, not acknowledged yet, with the time of sending.
    unmapped: BTreeMap<u64, Instant>,
    /// Tables by service: the newest that this agent has mapped and that is sealed.
    tables: BTreeMap<usize, u64>,
    /// Sealed tables that are not published yet.
    unpublished: BTreeSet<u64>,
    /// Tables whose next generation is asked for and not published.
    growing: BTreeMap<usize, Growing>,
    ready: bool,
    asked_to_close: Option<Instant>,
    /// It was passed over without having closed: it may still be at work on one batch.
    forced: bool,
}

/// A table's next generation on its way.
#[derive(Debug)]
struct Growing {
    /// The generation that it replaces, once that is known.
    replaces: Option<u64>,
    /// The broker asked for it, and when: somebody came who does not read the one that stands.
    rewrite: Option<Instant>,
    /// The agent wants a larger one meanwhile; its turn is when this one is published.
    then: Option<Grow>,
}

impl State {
    pub(crate) fn agent_hello(&mut self, conn: ConnId, offered: Vec<Service>) {
        let services = match Services::check(offered) {
            Ok(services) => services,
            Err(error) => return self.reject(conn, RefusalKind::Services, error),
        };
        let refused = self.home(conn).and_then(|domain| self.check_agent(domain, conn, &services).err());
        if let Some((kind, reason)) = refused {
            return self.reject(conn, kind, reason);
        }
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        if let Some(known) = &domain.services
            && *known != services
        {
            let reason = "the services offered are not those that this domain's clients have joined with; offer the same names, kinds and sizes, or use another domain";
            return self.reject(conn, RefusalKind::Services, reason);
        }
        if domain.successor.is_some() {
            let reason = "a successor is already waiting to take over; try again when it serves";
            return self.reject(conn, RefusalKind::OverLimit, reason);
        }
        // What it is to write, kept and sent, and the notice page.
        let regions = services.tables().count() + domain.clients.len() + SPARE;
        if let Err(refusal) = domain.has_descriptors(2 * regions + 1) {
            return self.reject(conn, RefusalKind::OverLimit, refusal);
        }
        if domain.services.is_none() {
            let tables: Vec<(u32, u64)> = services.tables().map(|i| (i as u32, table_bytes(&services, i))).collect();
            // Layouts differ within the first page: the size is the same for all of them.
            let answer = services.channel(0, 0, Written::both(Layout::OLDEST)).map_or(0, |g| g.agent_bytes);
            let mut books = domain.books.clone();
            // Each of two agents at a time keeps some in spare.
            if let Err(refusal) = books.admit_tables(&tables).and_then(|()| books.admit_pool(2 * SPARE as u64 * answer))
            {
                return self.reject(conn, RefusalKind::OverLimit, refusal);
            }
            domain.books = books;
            domain.services = Some(services.clone());
        }
        domain.successor = Some(conn);
        domain.agents.insert(
            conn,
            AgentState {
                pool: VecDeque::new(),
                unmapped: BTreeMap::new(),
                tables: BTreeMap::new(),
                unpublished: BTreeSet::new(),
                growing: BTreeMap::new(),
                ready: false,
                asked_to_close: None,
                forced: false,
            },
        );
        let welcome = Welcome {
            protocol: podshm_proto::PROTOCOL,
            domain: domain.config.name.clone(),
            epoch: domain.epoch,
            ..Welcome::default()
        };
        let notice = domain.notice();
        let spare = domain.clients.len() + SPARE;
        let grown: BTreeMap<usize, Region> =
            domain.tables.clone().into_iter().filter_map(|(i, id)| Some((i, self.regions.at(id)?.region))).collect();
        let layout = self.next_layout(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.role = Role::Agent;
        let welcome = Welcome { layout: layout.number(), member: connection.who.name(), ..welcome };
        match notice {
            Ok(fd) => connection.send(Down::Welcome(welcome), vec![fd]),
            Err(error) => return self.reject(conn, RefusalKind::Region, error),
        }
        let mut wanted = Vec::new();
        for index in services.tables() {
            // A table that has grown keeps its size over a change of agents.
            let geometry = match grown.get(&index) {
                Some(region) => TableGeometry { buckets: region.buckets, units: region.units },
                None => table_geometry(&services, index),
            };
            wanted.push(self.new_table(conn, index, geometry, layout));
        }
        for _ in 0..spare {
            wanted.push(self.new_answer(conn));
        }
        self.send_for_writing(conn, wanted);
    }

    /// Makes regions and sends them to their writer, in messages that hold as many as fit.
    fn send_for_writing(&mut self, conn: ConnId, wanted: Vec<Region>) {
        for chunk in wanted.chunks(128) {
            let (mut regions, mut fds) = (Vec::new(), Vec::new());
            for region in chunk {
                match self.regions.make(*region).and_then(|id| self.regions.lend(id, conn)) {
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
        agent.ready = true;
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
            domain.left_state = state;
            domain.agent = None;
            if let Some(successor) = domain.successor {
                self.take_over_if_possible(successor);
            }
        }
    }

    pub(crate) fn agent_gone(&mut self, domain: &str, conn: ConnId) {
        let Some(domain) = self.domains.get_mut(domain) else {
            return;
        };
        if let Some(agent) = domain.agents.remove(&conn) {
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
        }
        if domain.agent == Some(conn) {
            domain.agent = None;
            tracing::warn!(domain = domain.config.name, "agent is gone; clients go on with what they have");
        }
        if let (None, Some(successor)) = (domain.agent, domain.successor) {
            self.take_over_if_possible(successor);
        }
    }

    /// Tells the serving agent that a client is gone.
    pub(crate) fn tell_left(&mut self, agent: ConnId, left: Left) {
        if let Some(connection) = self.connections.get_mut(&agent) {
            connection.send(Down::Left(left), Vec::new());
        }
    }

    /// What is overdue: agents that don't map or don't close.
    pub(crate) fn check_agents(&mut self, now: Instant) {
        let (mut late, mut unwritten, mut forced) = (Vec::new(), Vec::new(), Vec::new());
        for domain in self.domains.values() {
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
