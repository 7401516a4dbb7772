//! Taking over: the old agent is asked to close, every client goes to the new one, and gets its regions.
//!
//! ```text
//!  successor ready ─► old one asked to close ─► closed, hung up or forced ─► epoch on the notice page
//!                                                └─► for each client: C and old A to the successor, new A to the client
//! ```

use super::SPARE;
use crate::connections::Role;
use crate::regions::{ConnId, Held};
use crate::state::State;
use podshm_layout::step::{self, Step};
use podshm_layout::{Layouts, RegionKind};
use podshm_proto::{Down, NewAgent, Nothing, RefusalKind, Region, Serve, TakeOver, Written};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::time::Instant;

impl State {
    pub(super) fn take_over_if_possible(&mut self, conn: ConnId) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let clients = domain.clients.len();
        if domain.successor != Some(conn) || !domain.agents.get(&conn).is_some_and(|a| a.ready) {
            return;
        }
        // Who came or went since its hello may have changed what everybody reads.
        self.rewrite_tables(conn);
        self.sort_out(conn);
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let Some(agent) = domain.agents.get(&conn) else {
            return;
        };
        if !agent.growing.is_empty() {
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
                    step::at(Step::BrokerAskedClose);
                }
            }
        }
    }

    pub(super) fn take_over(&mut self, conn: ConnId) {
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
        for client in ids {
            self.hand_over_client(conn, client);
            step::at(Step::BrokerHanded);
        }
        self.serve_waiting(conn);
        let _ = self.top_up(conn); // tried again when the next one is wanted
        self.trim(conn);
    }

    /// Gives a client of the predecessor to the agent, and the agent's regions to the client.
    pub(super) fn hand_over_client(&mut self, conn: ConnId, client_id: u64) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let answer = domain.agents.get_mut(&conn).and_then(|a| a.pool.pop_front());
        let (Some(answer), Some(client)) = (answer, domain.clients.get_mut(&client_id)) else {
            return;
        };
        let old = client.answer.replace(answer);
        let before = client.before.take();
        let forced = domain.agents.values().any(|a| a.forced);
        let epoch = domain.epoch;
        let (c, member, gone) = (client.region, client.member.name(), client.conn.is_none());
        let old = self.last_that_began(conn, before, old);
        if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&client_id)) {
            client.before = old;
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
        if let Some(old) = old {
            push(self.regions.lend(old, conn));
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

    /// Which of a client's last two answer regions has the cursors that count, and lets the other go. An agent that died while it took
    /// over has begun on some clients and not on others.
    fn last_that_began(&mut self, conn: ConnId, before: Option<u64>, last: Option<u64>) -> Option<u64> {
        let (Some(before), Some(last)) = (before, last) else { return before.or(last) };
        let (kept, other) = if self.has_begun(conn, last) { (last, before) } else { (before, last) };
        self.regions.unwant(other);
        Some(kept)
    }

    /// Whether an agent has begun on the client that it got this answer region for: it starts every ring before it looks into one.
    fn has_begun(&mut self, conn: ConnId, answer: u64) -> bool {
        let Some(held) = self.regions.at(answer) else { return false };
        let (Ok(layout), Ok(map)) = (Layouts::ALL.parse(held.region.layout), Held::read(held)) else { return false };
        let services = self.domain_of(conn).and_then(|d| d.services.as_ref());
        services
            .and_then(|s| s.channel(0, 0, Written::both(layout)).ok())
            .is_some_and(|g| g.to_agent.iter().all(|ring| ring.cursor_line().started(&map).is_some()))
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
            .filter_map(|(id, client)| Some((*id, client.before?, client.answer)))
            .filter(|(_, before, _)| ids.contains(before))
            .collect();
        for (id, before, answer) in began {
            if !answer.is_some_and(|a| self.regions.is_held_by(a, conn)) {
                continue;
            }
            if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)) {
                client.before = None;
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
    pub(super) fn adopt_unserved(&mut self, conn: ConnId) {
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
}
