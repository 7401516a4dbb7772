//! Agents: joining, the pool of answer regions, taking over, tables.

use crate::connections::Role;
use crate::regions::ConnId;
use crate::state::State;
use podshm_layout::{RegionKind, TableGeometry};
use podshm_proto::{
    ClientId, Down, Grow, NewAgent, Nothing, RefusalKind, Region, RegionIds, Regions, Serve, Service, Services,
    TakeOver, Welcome,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Instant;

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
    /// Tables whose next generation is asked for and not published, with the generation that it replaces once that is known.
    growing: BTreeMap<usize, Option<u64>>,
    ready: bool,
    asked_to_close: Option<Instant>,
    /// It was passed over without having closed: it may still be at work on one batch.
    forced: bool,
}

impl State {
    pub(crate) fn agent_hello(&mut self, conn: ConnId, offered: Vec<Service>) {
        let services = match Services::check(offered) {
            Ok(services) => services,
            Err(error) => return self.reject(conn, RefusalKind::Services, error),
        };
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
        if domain.services.is_none() {
            let tables: Vec<(u32, u64)> = services.tables().map(|i| (i as u32, table_bytes(&services, i))).collect();
            if let Err(refusal) = domain.books.admit_tables(&tables) {
                return self.reject(conn, RefusalKind::OverLimit, refusal);
            }
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
            layout: domain.layout,
            domain: domain.config.name.clone(),
            epoch: domain.epoch,
            ..Welcome::default()
        };
        let notice = domain.notice();
        let spare = domain.clients.len() + SPARE;
        let grown: BTreeMap<usize, Region> =
            domain.tables.clone().into_iter().filter_map(|(i, id)| Some((i, self.regions.at(id)?.region))).collect();
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.role = Role::Agent;
        match notice {
            Ok(fd) => connection.send(Down::Welcome(Welcome { member: connection.who.name(), ..welcome }), vec![fd]),
            Err(error) => return self.reject(conn, RefusalKind::Region, error),
        }
        let mut wanted = Vec::new();
        for index in services.tables() {
            // A table that has grown keeps its size over a change of agents.
            let geometry = match grown.get(&index) {
                Some(region) => TableGeometry { buckets: region.buckets, units: region.units },
                None => table_geometry(&services, index),
            };
            wanted.push(self.new_table(conn, index, geometry));
        }
        for _ in 0..spare {
            wanted.push(self.new_answer(conn));
        }
        self.send_for_writing(conn, wanted);
    }

    fn new_table(&mut self, conn: ConnId, service: usize, geometry: TableGeometry) -> Region {
        let generation = self.domain_of(conn).map_or(0, |d| {
            d.table_generation += 1;
            d.table_generation
        });
        Region {
            kind: RegionKind::Table as u32,
            generation,
            bytes: geometry.size(),
            owner: service as u64,
            buckets: geometry.buckets,
            units: geometry.units,
            ..Region::default()
        }
    }

    fn new_answer(&mut self, conn: ConnId) -> Region {
        let Some(domain) = self.domain_of(conn) else {
            return Region::default();
        };
        domain.last_place += 1;
        let place = domain.last_place;
        let bytes = domain.services.as_ref().and_then(|s| s.channel(0, place).ok()).map_or(0, |g| g.agent_bytes);
        Region { kind: RegionKind::Agent as u32, generation: 1, bytes, owner: place, ..Region::default() }
    }

    /// Makes regions and sends them to their writer, in messages that hold as many as fit.
    fn send_for_writing(&mut self, conn: ConnId, wanted: Vec<Region>) {
        for chunk in wanted.chunks(128) {
            let (mut regions, mut fds) = (Vec::new(), Vec::new());
            for region in chunk {
                let layout = self.domain_of(conn).map_or(1, |d| d.layout);
                let made = self.regions.make(*region, layout).and_then(|id| self.regions.lend(id, conn));
                match made {
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
                    *growing = replaced;
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

    /// Clients that were sealed while this agent had no answer region ready.
    fn adopt_unserved(&mut self, conn: ConnId) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        if domain.agent != Some(conn) {
            return;
        }
        let sealed: Vec<(u64, Option<u64>)> =
            domain.clients.iter().filter(|(_, c)| c.sealed).map(|(id, c)| (*id, c.answer)).collect();
        for (client, answer) in sealed {
            if !answer.is_some_and(|a| self.regions.is_held_by(a, conn)) {
                self.adopt(conn, client);
            }
        }
    }

    pub(crate) fn agent_ready(&mut self, conn: ConnId) {
        let Some(agent) = self.agent_state(conn) else {
            return;
        };
        if !agent.unmapped.is_empty() {
            return self.reject(conn, RefusalKind::Protocol, "ready before every region was acknowledged as mapped");
        }
        agent.ready = true;
        agent.unpublished.clear();
        self.take_over_if_possible(conn);
    }

    fn take_over_if_possible(&mut self, conn: ConnId) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let clients = domain.clients.len();
        let Some(agent) = domain.agents.get(&conn) else {
            return;
        };
        if domain.successor != Some(conn) || !agent.ready {
            return;
        }
        if agent.pool.len() < clients {
            if agent.unmapped.is_empty() {
                let missing = clients - agent.pool.len() + SPARE;
                let wanted: Vec<Region> = (0..missing).map(|_| self.new_answer(conn)).collect();
                self.send_for_writing(conn, wanted);
            }
            return;
        }
        match domain.agent {
            None => self.take_over(conn),
            Some(old) => {
                let asked = domain.agents.get_mut(&old).map(|old| old.asked_to_close.replace(Instant::now()));
                if asked == Some(None)
                    && let Some(connection) = self.connections.get_mut(&old)
                {
                    connection.send(Down::Close(Nothing {}), Vec::new());
                }
            }
        }
    }

    fn take_over(&mut self, conn: ConnId) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        domain.successor = None;
        domain.agent = Some(conn);
        domain.epoch += 1;
        let Some(agent) = domain.agents.get(&conn) else {
            return;
        };
        let take_over = TakeOver { epoch: domain.epoch, state: std::mem::take(&mut domain.left_state) };
        let old_tables: Vec<u64> = domain.tables.values().copied().collect();
        domain.tables = agent.tables.clone();
        let tables = domain.tables.clone();
        let ids: Vec<u64> = domain.clients.iter().filter(|(_, c)| c.sealed).map(|(id, _)| *id).collect();
        domain.publish_epoch();
        tracing::info!(domain = domain.config.name, epoch = domain.epoch, clients = ids.len(), "agent takes over");
        for (service, id) in &tables {
            let generation = self.regions.at(*id).map_or(0, |h| h.region.generation);
            if let Some(domain) = self.domain_of(conn) {
                domain.publish_table(*service, generation);
            }
        }
        for id in old_tables {
            self.regions.unwant(id);
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.send(Down::TakeOver(take_over), Vec::new());
        }
        for client in ids {
            self.hand_over_client(conn, client);
        }
        self.serve_waiting(conn);
        self.top_up(conn);
    }

    /// Gives a client of the predecessor to the agent, and the agent's regions to the client.
    fn hand_over_client(&mut self, conn: ConnId, client_id: u64) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let answer = domain.agents.get_mut(&conn).and_then(|a| a.pool.pop_front());
        let (Some(answer), Some(client)) = (answer, domain.clients.get_mut(&client_id)) else {
            return;
        };
        let old = client.answer.replace(answer);
        let forced = domain.agents.values().any(|a| a.forced);
        let epoch = domain.epoch;
        let (c, member, gone) = (client.region, client.member.name(), client.conn.is_none());
        let mut fds = Vec::new();
        let mut regions = Vec::new();
        let mut push = |lent: Result<(Region, OwnedFd), podshm_region::RegionError>| match lent {
            Ok((region, fd)) => {
                regions.push(region);
                fds.push(fd);
            }
            Err(error) => tracing::error!(%error, "a region could not be lent"),
        };
        push(self.regions.lend(c, conn));
        if let Some(old) = old {
            push(self.regions.lend(old, conn));
            self.regions.unwant(old);
        }
        let doorbell = if gone { None } else { self.doorbell(conn) };
        let mine = doorbell.map(|(agent_end, client_end)| {
            fds.push(agent_end);
            client_end
        });
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection
                .send(Down::Serve(Serve { client: client_id, member, regions, answer, gone, epoch, forced }), fds);
        }
        if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&client_id)) {
            client.next_doorbell = mine;
            client.stale = client.conn.is_some();
            if let Some(client_conn) = client.conn {
                self.catch_up(client_conn);
            }
        }
    }

    /// Gives the serving agent a client that was let in by its predecessor and sealed only now.
    pub(crate) fn adopt(&mut self, agent: ConnId, client: u64) {
        if self.agent_state(agent).is_some_and(|a| a.pool.is_empty()) {
            // It waits for the agent's next answer regions, which are asked for now.
            self.top_up(agent);
            return;
        }
        self.hand_over_client(agent, client);
        self.top_up(agent);
    }

    /// Sends a client the serving agent's regions if it has not got them and does not pin too many old ones.
    pub(crate) fn catch_up(&mut self, conn: ConnId) {
        let Some(Role::Client(id)) = self.connections.get(&conn).map(|c| &c.role) else {
            return;
        };
        let id = *id;
        let pinned = self.regions.held_by(conn, RegionKind::Agent);
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let keep = domain.books.limits().kept_generations as usize;
        let (epoch, tables) = (domain.epoch, domain.tables.clone());
        let Some(client) = domain.clients.get_mut(&id) else {
            return;
        };
        if !client.stale {
            return self.send_new_tables(conn);
        }
        if pinned >= keep {
            tracing::warn!(
                member = client.member.name(),
                client = id,
                pinned,
                "client keeps old generations; it gets no newer one until it lets go"
            );
            return;
        }
        let (Some(answer), Some(doorbell)) = (client.answer, client.next_doorbell.take()) else {
            return;
        };
        client.stale = false;
        let (mut regions, mut fds) = (Vec::new(), Vec::new());
        for region in std::iter::once(answer).chain(tables.values().copied()) {
            match self.regions.lend(region, conn) {
                Ok((region, fd)) => {
                    regions.push(region);
                    fds.push(fd);
                }
                Err(error) => return self.reject(conn, RefusalKind::Region, error),
            }
        }
        fds.push(doorbell);
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.send(Down::NewAgent(NewAgent { epoch, regions }), fds);
        }
    }

    pub(crate) fn doorbell(&mut self, conn: ConnId) -> Option<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None) {
            Ok(pair) => Some(pair),
            Err(error) => {
                let refusal = podshm_domain::Refusal::Descriptors { asked: 2, left: 0 };
                self.reject(conn, RefusalKind::OverLimit, format!("{refusal} ({error})"));
                None
            }
        }
    }

    /// Takes an answer region from the serving agent's pool.
    pub(crate) fn take_answer(&mut self, agent: ConnId) -> Option<u64> {
        let id = self.agent_state(agent)?.pool.pop_front();
        self.top_up(agent);
        id
    }

    /// An answer region that no client has seen goes back to the pool.
    pub(crate) fn give_answer_back(&mut self, agent: ConnId, id: u64) {
        if let Some(agent) = self.agent_state(agent) {
            agent.pool.push_front(id);
        }
    }

    /// An answer region that a client may have mapped can't be given to another one.
    pub(crate) fn discard_answer(&mut self, agent: ConnId, id: u64) {
        self.regions.unwant(id);
        if self.regions.is_held_by(id, agent)
            && let Some(connection) = self.connections.get_mut(&agent)
        {
            connection.send(Down::Drop(RegionIds { ids: vec![id] }), Vec::new());
        }
    }

    fn top_up(&mut self, conn: ConnId) {
        let Some(agent) = self.agent_state(conn) else {
            return;
        };
        if agent.pool.len() + agent.unmapped.len() < SPARE.div_ceil(2) {
            let wanted: Vec<Region> = (0..SPARE).map(|_| self.new_answer(conn)).collect();
            self.send_for_writing(conn, wanted);
        }
    }

    pub(crate) fn grow(&mut self, conn: ConnId, grow: Grow) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let index = grow.service as usize;
        let is_table = domain.services.as_ref().is_some_and(|s| s.tables().any(|i| i == index));
        let geometry = match TableGeometry::sized_for(grow.keys, grow.bytes) {
            Ok(geometry) if is_table => geometry,
            Ok(_) => {
                return self.refuse(conn, RefusalKind::Services, format!("service {index} is not a table"));
            }
            Err(error) => return self.refuse(conn, RefusalKind::OverLimit, error),
        };
        if domain.agents.get(&conn).is_none_or(|a| a.growing.contains_key(&index)) {
            let reason = "this table's next generation is not published yet; publish it before asking for another";
            return self.refuse(conn, RefusalKind::OverLimit, reason);
        }
        // What the books reserve is for the generations that are kept; an agent that lets none go gets no more.
        let tables = domain.services.as_ref().map_or(0, |s| s.tables().count());
        let most = (domain.books.limits().kept_generations as usize + 2) * tables;
        let held = self.regions.held_by(conn, RegionKind::Table);
        if held >= most {
            let reason = format!(
                "this agent holds {held} generations of its tables: expected at most {most}; release those that it has replaced"
            );
            return self.refuse(conn, RefusalKind::OverLimit, reason);
        }
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        if let Err(refusal) = domain.books.admit_tables(&[(grow.service, geometry.size())]) {
            return self.refuse(conn, RefusalKind::OverLimit, refusal);
        }
        if let Some(agent) = domain.agents.get_mut(&conn) {
            agent.growing.insert(index, None);
        }
        let region = self.new_table(conn, index, geometry);
        self.send_for_writing(conn, vec![region]);
    }

    fn refuse(&mut self, conn: ConnId, kind: RefusalKind, reason: impl ToString) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.refuse(kind, reason);
        }
    }

    pub(crate) fn publish(&mut self, conn: ConnId, id: u64) {
        let Some(agent) = self.agent_state(conn) else {
            return;
        };
        if !agent.unpublished.remove(&id) {
            return self.reject(
                conn,
                RefusalKind::Protocol,
                format!("region {id} is not a table that waits to be published"),
            );
        }
        let Some(region) = self.regions.at(id).map(|h| h.region) else {
            return;
        };
        let replaced = self.agent_state(conn).and_then(|a| a.growing.remove(&(region.owner as usize)).flatten());
        let Some(domain) = self.domain_of(conn) else { return };
        if domain.agent != Some(conn) {
            // A successor's tables are published when it takes over; one that it has outgrown before is nobody's.
            if let Some(replaced) = replaced {
                self.regions.unwant(replaced);
            }
            return;
        }
        let service = region.owner as usize;
        let old = domain.tables.insert(service, id);
        domain.publish_table(service, region.generation);
        let conns: Vec<ConnId> = domain.clients.values().filter(|c| !c.stale).filter_map(|c| c.conn).collect();
        if let Some(old) = old {
            self.regions.unwant(old);
        }
        for client in conns {
            self.send_new_tables(client);
        }
    }

    /// Sends a client every current table that it has not got, as long as it doesn't pin too many old ones.
    fn send_new_tables(&mut self, conn: ConnId) {
        let Some(domain) = self.domain_of(conn) else { return };
        let keep = domain.books.limits().kept_generations as usize * domain.tables.len();
        let current: Vec<u64> = domain.tables.values().copied().collect();
        for id in current {
            if self.regions.is_held_by(id, conn) {
                continue;
            }
            if self.regions.held_by(conn, RegionKind::Table) >= keep {
                tracing::warn!(client = conn, "client keeps old tables; it gets no newer one until it lets go");
                return;
            }
            if let Ok((region, fd)) = self.regions.lend(id, conn)
                && let Some(connection) = self.connections.get_mut(&conn)
            {
                connection.send(Down::NewTable(region), vec![fd]);
            }
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
                .chain(agent.growing.into_values().flatten())
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
    pub(crate) fn tell_left(&mut self, agent: ConnId, client: u64) {
        if let Some(connection) = self.connections.get_mut(&agent) {
            connection.send(Down::Left(ClientId { client }), Vec::new());
        }
    }

    /// What is overdue: agents that don't map or don't close.
    pub(crate) fn check_agents(&mut self, now: Instant) {
        let mut late = Vec::new();
        let mut forced = Vec::new();
        for domain in self.domains.values() {
            for (conn, agent) in &domain.agents {
                if agent.unmapped.values().any(|sent| now - *sent > domain.config.map_deadline) {
                    late.push(*conn);
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
        for conn in forced {
            tracing::warn!("agent does not close; its successor goes on without it");
            if let Some(agent) = self.agent_state(conn) {
                agent.forced = true;
            }
            self.agent_closed(conn, Vec::new());
        }
    }
}

fn table_geometry(services: &Services, index: usize) -> TableGeometry {
    let (service, _) = services.at(index).expect("an index of this set");
    TableGeometry::sized_for(service.keys, service.bytes).expect("checked with the offer")
}

fn table_bytes(services: &Services, index: usize) -> u64 {
    table_geometry(services, index).size()
}
