//! Taking over: the old agent is asked to close, every client goes to the new one, and gets its regions.
//!
//! ```text
//!  successor ready ─► old one asked to close ─► closed, hung up or forced ─► epoch on the notice page
//!                                                └─► for each client: C and old A to the successor, new A to the client
//! ```

use super::SPARE;
use super::cursors::Known;
use crate::clients::Client;
use crate::connections::Role;
use crate::regions::{ConnId, Held};
use crate::state::{Domain, State, SuccessorWaits};
use podshm_layout::RegionKind;
use podshm_layout::step::{self, Step};
use podshm_proto::{Down, NewAgent, Nothing, RefusalKind, Region, Serve, Services, TakeOver};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Clients after which those who got something are told, and work on it beside the broker.
const HANDED_AT_ONCE: usize = 8;

impl State {
    /// Goes on with the change of agents, as far as that can be.
    pub(crate) fn take_over_if_possible(&mut self, conn: ConnId) {
        let Some(waits) = self.go_on_taking_over(conn) else { return };
        if let Some(agent) = self.agent_state(conn) {
            agent.waits = waits;
        }
    }

    /// What it waits for; nothing where it has taken over or is not to.
    fn go_on_taking_over(&mut self, conn: ConnId) -> Option<SuccessorWaits> {
        let domain = self.home(conn).filter(|domain| domain.successor == Some(conn))?;
        let clients = domain.clients.len();
        if domain.agents.get(&conn)?.ready.is_none() {
            return Some(SuccessorWaits::Ready);
        }
        if self.waits_for_returns(conn) {
            return Some(SuccessorWaits::Returns);
        }
        // Who came or went since its hello may have changed what everybody reads.
        self.rewrite_tables(conn);
        self.sort_out(conn);
        let agent = self.agent_state(conn)?;
        let Some(ready) = agent.ready.filter(|_| agent.growing.is_empty()) else {
            return Some(SuccessorWaits::Tables);
        };
        if self.waits_for_moves(conn, ready) {
            return Some(SuccessorWaits::Moves);
        }
        let domain = self.domain_of(conn)?;
        let agent = domain.agents.get(&conn)?;
        let (has, old) = (agent.pool.len(), domain.agent);
        // Where nobody serves, clients come to it as their regions do; one that serves goes on until all are there.
        if has < clients && (old.is_some() || has == 0) {
            if agent.unmapped.is_empty() {
                let wanted = self.new_answers(conn, clients - has + SPARE);
                self.send_for_writing(conn, wanted);
            }
            return Some(SuccessorWaits::Answers);
        }
        let Some(old) = old else {
            self.take_over(conn);
            return None;
        };
        let asked = &mut domain.agents.get_mut(&old)?.asked_to_close;
        if asked.is_none() {
            *asked = Some(Instant::now());
            self.connections.get_mut(&old)?.send(Down::Close(Nothing {}), Vec::new());
            step::at(Step::BrokerAskedClose);
        }
        Some(SuccessorWaits::Close)
    }

    pub(super) fn take_over(&mut self, conn: ConnId) {
        let Some(domain) = self.home(conn) else {
            return;
        };
        let (name, next) = (domain.config.name.clone(), domain.epoch + 1);
        if !self.write_epoch(&name, next) {
            return; // tried again at the next look at the clock
        }
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        domain.successor = None;
        domain.agent = Some(conn);
        domain.epoch += 1;
        let Some(agent) = domain.agents.get(&conn) else {
            return;
        };
        let take_over = TakeOver { epoch: domain.epoch, state: domain.left_state.give(domain.epoch) };
        let old_tables: Vec<u64> = domain.tables.values().copied().collect();
        domain.tables = agent.tables.clone();
        domain.services = Some(agent.services.clone());
        let tables = domain.tables.clone();
        let ids: Vec<u64> = domain.clients.iter().filter(|(_, c)| c.sealed).map(|(id, _)| *id).collect();
        domain.publish_epoch();
        step::at(Step::BrokerEpoch);
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
        for some in ids.chunks(HANDED_AT_ONCE) {
            for client in some {
                self.hand_over_client(conn, *client);
                step::at(Step::BrokerHanded);
            }
            self.commit();
        }
        self.forget_who_was_passed_over(conn);
        self.settle_books(conn);
        self.serve_waiting(conn);
        self.ask_for_answers(conn);
        self.trim(conn);
        self.move_clients(conn);
    }

    /// Gives a client of the predecessor to the agent, and the agent's regions to the client.
    pub(super) fn hand_over_client(&mut self, conn: ConnId, client_id: u64) {
        let Some(name) = self.connections.get(&conn).map(|c| c.domain.clone()) else { return };
        self.settle_move(&name, client_id);
        if self.home(conn).and_then(|d| d.clients.get(&client_id)).is_some_and(|client| self.is_gone_whole(client)) {
            return;
        }
        let unread = |client: &Client| !self.reads_c(conn, client) || self.is_lost_to(conn, client);
        if self.home(conn).and_then(|d| d.clients.get(&client_id)).is_some_and(unread) {
            return self.leave_behind(client_id, conn);
        }
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let (forced, epoch) = (domain.is_passed_over(), domain.epoch);
        let answer = domain.agents.get_mut(&conn).and_then(|a| a.pool.pop_front());
        let (Some(answer), Some(client)) = (answer, domain.clients.get_mut(&client_id)) else {
            return;
        };
        let known = Known::take(client, answer);
        let (c, member, gone) = (client.region, client.member.name(), client.conn.is_none());
        self.regions.give(answer, client_id);
        let (old, outdated) = self.last_that_began(conn, client_id, known);
        let next = self.home(conn).and_then(|d| self.next_for(conn, d.clients.get(&client_id)?));
        let cursors = old.map(|old| self.readable_cursors(conn, old));
        let handed = self.regions.at(c).map_or(0, |held| held.region.services);
        if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&client_id)) {
            (client.before, client.shown, client.handed) = (old, cursors, handed);
        }
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
        if let (Some(old), Some(cursors)) = (old, cursors) {
            push(self.regions.lend(cursors, conn));
            if cursors != old {
                self.regions.unwant(cursors);
            }
        }
        let doorbell = if gone { None } else { self.doorbell(conn) };
        let mine = doorbell.map(|(agent_end, client_end)| {
            fds.push(agent_end);
            client_end
        });
        let next = next.and_then(|next| self.regions.lend(next, conn).ok()).map(|(region, fd)| {
            fds.push(fd);
            region
        });
        if let Some(connection) = self.connections.get_mut(&conn) {
            let serve = Serve { client: client_id, member, regions, answer, gone, epoch, forced, next, outdated };
            connection.send(Down::Serve(serve), fds);
        }
        if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&client_id)) {
            (client.next_doorbell, client.given_to) = (mine, Some(conn));
            client.stale = client.conn.is_some();
            if let Some(client_conn) = client.conn {
                self.catch_up(client_conn);
            }
        }
    }

    /// The agent has let regions go: a predecessor's cursors among them are not needed any more, if it serves that client.
    pub(crate) fn agent_released(&mut self, conn: ConnId, ids: &[u64]) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        if domain.agent != Some(conn) {
            return;
        }
        let began: Vec<(u64, u64, Option<u64>)> = domain
            .clients
            .iter()
            .filter(|(_, client)| client.shown.is_some_and(|shown| ids.contains(&shown)))
            .filter_map(|(id, client)| Some((*id, client.before?, client.answer)))
            .collect();
        if !began.is_empty() {
            // It was given these after the state, on the same socket.
            domain.left_state.is_heard();
        }
        for (id, before, answer) in began {
            if !answer.is_some_and(|a| self.regions.is_held_by(a, conn)) {
                continue;
            }
            if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)) {
                (client.before, client.shown) = (None, None);
            }
            self.regions.unwant(before);
        }
    }

    /// Gives the serving agent a client that was let in by its predecessor and sealed only now.
    pub(crate) fn adopt(&mut self, agent: ConnId, client: u64) {
        self.sort_out(agent);
        if self.agent_state(agent).is_some_and(|a| a.pool.is_empty()) {
            // It waits for the agent's next answer regions, which are asked for now.
            let _ = self.top_up(agent);
            return;
        }
        self.hand_over_client(agent, client);
        let _ = self.top_up(agent);
    }

    /// Clients that were sealed while this agent had no answer region ready.
    pub(crate) fn adopt_unserved(&mut self, conn: ConnId) {
        let Some(domain) = self.home(conn).filter(|domain| domain.agent == Some(conn)) else { return };
        let unserved = self.unserved(domain, conn);
        if unserved.is_empty() {
            return;
        }
        self.sort_out(conn);
        for client in unserved {
            if self.agent_state(conn).is_none_or(|agent| agent.pool.is_empty()) {
                break;
            }
            self.hand_over_client(conn, client);
        }
        self.ask_for_answers(conn);
        self.forget_who_was_passed_over(conn);
    }

    /// Clients that this agent has yet to be given.
    pub(super) fn unserved(&self, domain: &Domain, conn: ConnId) -> Vec<u64> {
        let may_be = |client: &Client| client.sealed && !client.absent && !self.is_gone_whole(client);
        let all = domain.clients.iter().filter(|(_, client)| may_be(client)).map(|(id, _)| *id);
        all.filter(|id| !self.is_served(conn, *id)).collect()
    }

    /// Whether it is dead, and what it wrote is gone with it or has yet to be presented: then it is served, or given up with the others.
    fn is_gone_whole(&self, client: &Client) -> bool {
        client.conn.is_none() && !self.regions.at(client.region).is_some_and(Held::is_here)
    }

    /// Whether this agent has the client.
    pub(crate) fn is_served(&self, conn: ConnId, client: u64) -> bool {
        let client = self.home(conn).and_then(|d| d.clients.get(&client));
        client.and_then(|c| c.answer).is_some_and(|answer| self.regions.is_held_by(answer, conn))
    }

    /// That its predecessor was passed over concerns the clients that it has not got yet.
    fn forget_who_was_passed_over(&mut self, conn: ConnId) {
        if self.home(conn).is_some_and(|domain| domain.passed_over && self.serves_all(domain, conn))
            && let Some(domain) = self.domain_of(conn)
        {
            domain.passed_over = false;
        }
    }

    /// Whether the one that serves has yet to be given clients of one that was passed over, and may be at work on a batch of theirs.
    pub(crate) fn is_beside_one_passed_over(&self, domain: &Domain) -> bool {
        domain.is_passed_over() && domain.agent.is_some_and(|conn| !self.serves_all(domain, conn))
    }

    fn serves_all(&self, domain: &Domain, conn: ConnId) -> bool {
        domain.clients.iter().filter(|(_, c)| c.sealed).all(|(id, _)| self.is_served(conn, *id))
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
        let (epoch, tables, agent) = (domain.epoch, domain.tables.clone(), domain.agent);
        let services = domain.services.as_ref().map_or_else(Vec::new, Services::to_message);
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
            connection.send(Down::NewAgent(NewAgent { epoch, regions, services }), fds);
        }
        if let Some(agent) = agent {
            self.move_client(agent, id);
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
}
