//! Clients: joining, the seal, leaving, draining.

use crate::connections::Role;
use crate::moving::Coming;
use crate::regions::{ConnId, Owner};
use crate::state::State;
use podshm_domain::{Identity, Spoken};
use podshm_layout::step::{self, Step};
use podshm_layout::{Layout, RegionKind};
use podshm_proto::{Down, Left, RefusalKind, Region, RegionIds, Serve, Stood, Welcome, Written};
use std::os::fd::OwnedFd;
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) member: Identity,
    pub(crate) conn: Option<ConnId>,
    /// C.
    pub(crate) region: u64,
    /// The serving agent's A.
    pub(crate) answer: Option<u64>,
    /// The C that it is to go over to.
    pub(crate) next: Option<Coming>,
    /// The C's before this one that somebody may hold yet, oldest first.
    pub(crate) previous: Vec<u64>,
    /// The predecessor's A, until the serving agent has started where that one ended: whoever comes next may need it still.
    pub(crate) before: Option<u64>,
    /// What the serving agent got to see of it: that region, or a copy at a layout that it reads.
    pub(crate) shown: Option<u64>,
    /// For how many services C had rings when the serving agent got it.
    pub(crate) handed: u32,
    pub(crate) sealed: bool,
    /// The agent's end of the doorbell until C is sealed.
    pub(crate) agent_doorbell: Option<OwnedFd>,
    /// The client's end of a new agent's doorbell until it may have it.
    pub(crate) next_doorbell: Option<OwnedFd>,
    /// The agent that was given it last.
    pub(crate) given_to: Option<ConnId>,
    /// It has not got the serving agent's regions.
    pub(crate) stale: bool,
    /// Its process died while somebody kept its socket open.
    pub(crate) held_open: bool,
    pub(crate) joined: Instant,
    pub(crate) left: Option<Instant>,
    /// What it reads and writes.
    pub(crate) speaks: Spoken,
    /// It was here when the broker was started anew, and has not come back.
    pub(crate) absent: bool,
    /// Its agent says that it is there all the same.
    pub(crate) vouched: bool,
    /// The A that it had when it came back.
    pub(crate) linked: Option<u64>,
    /// Where the last agent stood that had begun, if the one of that A has not.
    pub(crate) began: Vec<Stood>,
    /// An A that it was given is gone with agent and broker.
    pub(crate) lost: bool,
    /// When it came back, the doorbell of its agent had hung up.
    pub(crate) says_hung_up: bool,
}

impl State {
    pub(crate) fn client_hello(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.role = Role::Waiting;
        let Some(domain) = self.domains.get_mut(&connection.domain) else {
            return;
        };
        domain.waiting.push_back(conn);
        let agent = domain.agent;
        if let Err((kind, reason)) = self.still_meets(conn) {
            return self.reject(conn, kind, reason);
        }
        if let Some(agent) = agent {
            self.serve_waiting(agent);
        }
    }

    fn still_meets(&self, conn: ConnId) -> Result<(), (RefusalKind, String)> {
        self.home(conn).map_or(Ok(()), |domain| self.check_client(domain, conn))
    }

    /// Lets clients in that waited for an agent, for an answer region of its, or for tables that they can read.
    pub(crate) fn serve_waiting(&mut self, agent: ConnId) {
        let Some(domain) = self.domain_of(agent) else {
            return;
        };
        if domain.agent != Some(agent) {
            return;
        }
        self.rewrite_tables(agent);
        self.sort_out(agent);
        let _ = self.top_up(agent);
        for conn in self.domain_of(agent).map_or_else(Vec::new, |d| d.waiting.iter().copied().collect()) {
            if let Err((kind, reason)) = self.still_meets(conn) {
                self.stop_waiting(conn);
                self.reject(conn, kind, reason);
                continue;
            }
            if !self.reads_tables(conn) || self.would_be_left_behind(conn) {
                // The agent was asked to write them once more, or another is about to serve; others need not wait for that.
                continue;
            }
            let Some(answer) = self.take_answer(agent) else {
                // More are on their way, or can't be had.
                let Err(refusal) = self.top_up(agent) else { return };
                self.stop_waiting(conn);
                self.reject(conn, RefusalKind::OverLimit, refusal);
                continue;
            };
            // It has its say in the layout by waiting until it has it by being in.
            let result = self.let_in(conn, answer);
            self.stop_waiting(conn);
            if let Err((kind, reason)) = result {
                if self.regions.is_held_by(answer, conn) {
                    self.discard_answer(agent, answer);
                } else {
                    self.give_answer_back(agent, answer);
                }
                self.reject(conn, kind, reason);
            }
        }
    }

    fn stop_waiting(&mut self, conn: ConnId) {
        if let Some(domain) = self.domain_of(conn) {
            domain.waiting.retain(|c| *c != conn);
        }
    }

    fn reads_tables(&self, conn: ConnId) -> bool {
        let (Some(connection), Some(domain)) = (self.connections.get(&conn), self.home(conn)) else { return true };
        let layout = |id: &u64| self.regions.at(*id).map_or(0, |held| held.region.layout);
        domain.tables.values().all(|id| connection.layouts.reads(layout(id)))
    }

    fn let_in(&mut self, conn: ConnId, answer: u64) -> Result<(), (RefusalKind, String)> {
        let Some(connection) = self.connections.get(&conn) else {
            return Ok(());
        };
        let (member, name, speaks) = (connection.who.clone(), connection.domain.clone(), connection.layouts);
        let region_error = |e: podshm_region::RegionError| (RefusalKind::Region, e.to_string());
        let Some(domain) = self.domains.get_mut(&name) else {
            return Ok(());
        };
        let Some(services) = domain.services.clone() else {
            return Ok(());
        };
        domain.last_client += 1;
        let client = domain.last_client;
        let layout = self.domains.get(&name).map_or(Layout::OLDEST, |domain| self.meeting(domain, None).layout());
        let geometry =
            services.channel(client, 0, Written::both(layout)).map_err(|e| (RefusalKind::Services, e.to_string()))?;
        let (c, a) = match self.domains.get(&name) {
            Some(domain) => self.size_of_join(domain, geometry.client_bytes, geometry.agent_bytes),
            None => return Ok(()),
        };
        let Some(domain) = self.domains.get_mut(&name) else {
            return Ok(());
        };
        // C, and for sending: the notice page, C, A, the tables, both ends of the doorbell.
        domain
            .has_descriptors(6 + domain.tables.len())
            .map_err(|refusal| (RefusalKind::OverLimit, refusal.to_string()))?;
        domain
            .books
            .admit_client(client, &member, c, a)
            .map_err(|refusal| (RefusalKind::OverLimit, refusal.to_string()))?;
        let welcome = Welcome {
            protocol: connection.protocol,
            layout: layout.number(),
            domain: name.clone(),
            member: member.name(),
            client,
            epoch: domain.epoch,
            services: services.to_message(),
            regions: Vec::new(),
        };
        let tables: Vec<u64> = domain.tables.values().copied().collect();
        let made = (|| {
            let mut fds = vec![self.domains[&name].notice().map_err(region_error)?];
            let c = Region {
                kind: RegionKind::Client as u32,
                generation: 1,
                bytes: geometry.client_bytes,
                owner: client,
                layout: layout.number(),
                services: services.count() as u32,
                ..Region::default()
            };
            let c = self.regions.make(c, Owner::new(&name, Some(&member))).map_err(region_error)?;
            let mut regions = Vec::new();
            for id in [c, answer].into_iter().chain(tables) {
                let (region, fd) = self.regions.lend(id, conn).map_err(region_error)?;
                regions.push(region);
                fds.push(fd);
            }
            Ok((c, regions, fds))
        })();
        let (c, regions, mut fds) = match made {
            Ok(made) => made,
            Err(error) => {
                self.release_books(&name, client);
                return Err(error);
            }
        };
        let Some((agent_end, client_end)) = self.doorbell(conn) else {
            self.regions.unwant(c);
            self.release_books(&name, client);
            return Err((RefusalKind::OverLimit, "the broker has no descriptors left; raise its RLIMIT_NOFILE".into()));
        };
        fds.push(client_end);
        self.regions.give(answer, client);
        if let Some(domain) = self.domains.get_mut(&name) {
            domain.clients.insert(
                client,
                Client {
                    member,
                    conn: Some(conn),
                    region: c,
                    answer: Some(answer),
                    next: None,
                    previous: Vec::new(),
                    before: None,
                    shown: None,
                    handed: services.count() as u32,
                    sealed: false,
                    agent_doorbell: Some(agent_end),
                    next_doorbell: None,
                    stale: false,
                    held_open: false,
                    joined: Instant::now(),
                    left: None,
                    speaks,
                    absent: false,
                    vouched: false,
                    given_to: None,
                    linked: None,
                    began: Vec::new(),
                    lost: false,
                    says_hung_up: false,
                },
            );
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.role = Role::Client(client);
            connection.send(Down::Welcome(Welcome { regions, ..welcome }), fds);
        }
        step::at(Step::BrokerLetIn);
        Ok(())
    }

    fn release_books(&mut self, domain: &str, client: u64) {
        if let Some(domain) = self.domains.get_mut(domain) {
            domain.books.release_client(client);
        }
    }

    /// The client has mapped C: seal it, and only then show it to the agent.
    pub(crate) fn client_mapped(&mut self, conn: ConnId, id: u64, ids: &[u64]) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let (agent, epoch) = (domain.agent, domain.epoch);
        let Some(client) = domain.clients.get_mut(&id) else {
            return;
        };
        if let Some(next) = client.next.as_ref().filter(|next| !next.sealed && ids == [next.region]) {
            let next = next.region;
            return self.next_mapped(conn, id, next);
        }
        if client.sealed || ids != [client.region] {
            let reason = format!("mapped {ids:?}: expected region {} once", client.region);
            return self.reject(conn, RefusalKind::Protocol, reason);
        }
        let region = client.region;
        if let Err(error) = self.regions.seal(region) {
            return self.reject(conn, RefusalKind::Region, error);
        }
        step::at(Step::BrokerSealed);
        let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)) else {
            return;
        };
        client.sealed = true;
        let (member, answer, doorbell) = (client.member.name(), client.answer, client.agent_doorbell.take());
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.send(Down::Sealed(RegionIds { ids: vec![region] }), Vec::new());
        }
        let answers_this_agent = answer.is_some_and(|a| agent.is_some_and(|agent| self.regions.is_held_by(a, agent)));
        match (agent, answer, doorbell) {
            (Some(agent), Some(answer), Some(doorbell)) if answers_this_agent => {
                if let Ok((region, fd)) = self.regions.lend(region, agent)
                    && let Some(connection) = self.connections.get_mut(&agent)
                {
                    let regions = vec![region];
                    let serve = Serve { client: id, member, regions, answer, epoch, ..Serve::default() };
                    connection.send(Down::Serve(serve), vec![fd, doorbell]);
                    step::at(Step::BrokerServed);
                    if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)) {
                        client.given_to = Some(agent);
                    }
                }
            }
            // The agent that the client was let in by is gone: its successor takes the client over from here.
            (Some(agent), _, _) => self.adopt(agent, id),
            (None, _, _) => {}
        }
        // It was let in by what the agent before this one offered.
        if let Some(agent) = agent {
            self.move_client(agent, id);
        }
        self.commit();
        // Only now, when the client has all it waits for: making regions for the next ones takes as long as its whole join.
        if let Some(agent) = agent {
            let _ = self.top_up(agent); // tried again when the next one is wanted
        }
    }

    pub(crate) fn client_gone(&mut self, domain: &str, id: u64) {
        let Some(domain) = self.domains.get_mut(domain) else {
            return;
        };
        let Some(client) = domain.clients.get_mut(&id) else {
            return;
        };
        client.conn = None;
        (client.absent, client.vouched) = (false, false);
        client.stale = false;
        client.next_doorbell = None;
        client.left = Some(Instant::now());
        let left = Left { client: id, held_open: client.held_open };
        step::at(Step::BrokerLeft);
        let (sealed, agent, name) = (client.sealed, domain.agent, domain.config.name.clone());
        let given_to = client.given_to;
        if !sealed {
            self.forget_client(&name, id);
        } else if let Some(agent) = agent.filter(|agent| given_to == Some(*agent) || self.is_served(*agent, id)) {
            self.tell_left(agent, left);
        }
        // Whoever it has yet to be given to drains it then.
        self.forget_coming(&name, id);
        self.settle_books_of(&name);
    }

    pub(crate) fn drained(&mut self, agent: ConnId, id: u64) {
        let Some(domain) = self.domain_of(agent) else {
            return;
        };
        let name = domain.config.name.clone();
        if domain.agent == Some(agent) && domain.clients.get(&id).is_some_and(|c| c.conn.is_none() && !c.absent) {
            self.forget_client(&name, id);
        }
    }

    pub(crate) fn forget_client(&mut self, domain: &str, id: u64) {
        let Some(domain) = self.domains.get_mut(domain) else {
            return;
        };
        let Some(client) = domain.clients.remove(&id) else {
            return;
        };
        domain.books.release_client(id);
        step::at(Step::BrokerForgot);
        let agent = domain.agent;
        self.regions.unwant(client.region);
        if let Some(coming) = client.next {
            self.regions.unwant(coming.region);
        }
        if let Some(before) = client.before {
            self.regions.unwant(before);
        }
        match (client.answer, agent) {
            // The agent was never told of this client: it must be told to let its answer region go.
            (Some(answer), Some(agent)) if !client.sealed => self.discard_answer(agent, answer),
            (Some(answer), _) => self.regions.unwant(answer),
            (None, _) => {}
        }
    }

    /// What is overdue: clients that don't map, and dead ones that nobody drains.
    pub(crate) fn check_clients(&mut self, now: Instant) {
        let (mut late, mut discard) = (Vec::new(), Vec::new());
        for (name, domain) in &self.domains {
            for (id, client) in domain.clients.iter() {
                if let Some(conn) = client.conn
                    && !client.sealed
                    && now - client.joined > domain.config.map_deadline
                {
                    late.push(conn);
                }
                if client.left.is_some_and(|left| now - left > domain.config.drain_grace) {
                    discard.push((name.clone(), *id));
                }
            }
        }
        for conn in late {
            self.reject(conn, RefusalKind::Region, "the region was not acknowledged as mapped in time; it is freed");
        }
        for (name, id) in discard {
            if let Some(domain) = self.domains.get_mut(&name) {
                domain.discarded += 1;
                let member = domain.clients.get(&id).map(|c| c.member.name());
                tracing::warn!(
                    domain = name,
                    member,
                    client = id,
                    "records of a dead client were discarded after the drain grace"
                );
            }
            self.forget_client(&name, id);
        }
    }
}
