//! C's next generation: with more rings where the agent offers more services, or at another layout where a successor does not read
//! the one that stands.
//!
//! ```text
//!  broker                       client                                agent
//!    ├─ Next(C') ──────────────► maps it
//!    │◄──────────────── Mapped ──┤   pushes on into C
//!    ├─ (seals C') Next(C') ──────────────────────────────────────────► maps it
//!    │◄─────────────────────────────────────────────────────── Taken ──┤   reads on in C
//!    ├─ Sealed(C') ────────────► ring by ring: copies it, marks it in   │
//!    │                           C, goes on in C' where it was ───────► sees a mark, goes on with that ring in C'
//!    │                           marks all ───────────────────────────► goes on in C' as a whole
//!    │◄───────────────── Moved ──┤                                      ├── lets C go
//! ```
//! Nothing is drained for it and nothing repeated: positions stay, so whoever reads goes on where it is, and whoever comes after it
//! too. Where no agent serves the client, it moves alone. What counts is the mark in C, not the message: whoever comes next gets C and
//! C' until all is marked, and C' alone from then on.
//!
//! A client goes over once at a time, not before the agent that serves it has followed, and where others hold on to what it had before,
//! not beyond the generations that may be kept.

use crate::clients::Client;
use crate::layouts::Who;
use crate::regions::{ConnId, Held, Owner};
use crate::state::{Domain, State};
use podshm_domain::Refusal;
use podshm_layout::geometry::{MOVED, MOVED_ALL};
use podshm_layout::mem::Load;
use podshm_layout::step::{self, Step};
use podshm_layout::sync::{Ordering, fence};
use podshm_layout::{Layout, Layouts, RegionKind};
use podshm_proto::{Down, Next, PROTOCOL_MOVES, RefusalKind, Region, RegionIds, ServiceKind, Services, Written};
use std::time::Instant;

/// The next C of a client that has not gone over to it yet, as far as the broker knows.
#[derive(Debug)]
pub(crate) struct Coming {
    pub(crate) region: u64,
    pub(crate) sealed: bool,
    /// The client was told to go over.
    pub(crate) told: bool,
}

impl Coming {
    /// Region, sealed, told.
    pub(crate) fn parts(&self) -> (u64, bool, bool) {
        (self.region, self.sealed, self.told)
    }
}

impl State {
    /// Asks the clients of a serving agent that offers more than their C has rings for, or that does not read what they have, to go
    /// over to another one.
    pub(crate) fn move_clients(&mut self, agent: ConnId) {
        let Some(domain) = self.home(agent).filter(|domain| domain.agent == Some(agent)) else { return };
        let Some(services) = &domain.services else { return };
        let due = |c: &Client| self.may_move(domain, c) && self.has_to_move(c, agent, services);
        let due: Vec<u64> = domain.clients.iter().filter(|(_, c)| due(c)).map(|(id, _)| *id).collect();
        for client in due {
            self.move_due(agent, client);
        }
    }

    /// [`State::move_clients`] of one of them: nothing has changed for the others.
    pub(crate) fn move_client(&mut self, agent: ConnId, id: u64) {
        let Some(domain) = self.home(agent).filter(|domain| domain.agent == Some(agent)) else { return };
        let (Some(services), Some(client)) = (&domain.services, domain.clients.get(&id)) else { return };
        if self.may_move(domain, client) && self.has_to_move(client, agent, services) {
            self.move_due(agent, id);
        }
    }

    fn move_due(&mut self, agent: ConnId, client: u64) {
        if let Err(error) = self.ask_to_move(agent, client) {
            tracing::warn!(client, error, "client keeps the region that it has");
        }
    }

    /// Asks clients whose C this successor does not read to go over to one that it does; says whether it has to wait for any. Dead
    /// clients don't go over: the agent that serves drains them first. Whoever has not got so far in time is left behind until it has.
    pub(crate) fn waits_for_moves(&mut self, successor: ConnId, ready: Instant) -> bool {
        let Some(domain) = self.home(successor) else { return false };
        let late = ready.elapsed() > domain.config.map_deadline;
        let unread = domain.clients.iter().filter(|(_, c)| c.sealed && !self.reads_c(successor, c));
        // What a dead one left is for the agent that serves, if that one reads it; else it waits for one that does.
        let serves = |c: &Client| domain.agent.is_some_and(|agent| self.reads_c(agent, c));
        let unread: Vec<(u64, bool, bool, bool)> =
            unread.map(|(id, c)| (*id, c.conn.is_some(), serves(c), self.may_move(domain, c))).collect();
        let mut waits = false;
        for (client, connected, serves, may_move) in unread {
            if may_move && let Err(error) = self.ask_to_move(successor, client) {
                tracing::warn!(client, error, "client stays at a layout that the next agent does not read");
            } else {
                waits |= connected || serves;
            }
        }
        waits && !late
    }

    /// Whether this participant is of a release that knows how to go over, or to follow.
    fn knows_moves(&self, conn: ConnId) -> bool {
        self.connections.get(&conn).is_none_or(|connection| connection.protocol >= PROTOCOL_MOVES)
    }

    /// Whether everybody can go over who has to for the sake of an agent that `offers` these services, and so has all these `services` of
    /// the domain, where releases are there that know nothing of going over.
    pub(crate) fn check_moves(
        &self,
        agent: ConnId,
        known: &Services,
        offers: &Services,
        services: &Services,
    ) -> Result<(), (RefusalKind, String)> {
        let Some(domain) = self.home(agent) else { return Ok(()) };
        if !self.knows_moves(agent) && offers != services {
            let reason = format!(
                "{} speaks protocol 1 and offers services in another order than this domain counts them in; offer them as they were, or upgrade it",
                self.name_of(Who::Participant(agent))
            );
            return Err((RefusalKind::Services, reason));
        }
        for client in domain.clients.values() {
            let Some(conn) = client.conn.filter(|conn| !self.knows_moves(*conn)) else { continue };
            let name = self.name_of(Who::Participant(conn));
            if services.count() > known.count() {
                let reason = format!("{name} speaks protocol 1 and can't go over to more services; upgrade it first");
                return Err((RefusalKind::Services, reason));
            }
            if !self.reads_c(agent, client) {
                let layout = self.regions.at(client.region).map_or(0, |held| held.region.layout);
                let reason = format!(
                    "{name} speaks protocol 1 and has records at memory layout {layout}, which {} does not speak; upgrade either",
                    self.name_of(Who::Participant(agent))
                );
                return Err((RefusalKind::Version, reason));
            }
        }
        Ok(())
    }

    /// Whether this newcomer could not go over to what the agent offers that is about to serve: it comes in after that.
    pub(crate) fn would_be_left_behind(&self, conn: ConnId) -> bool {
        let Some(domain) = self.home(conn).filter(|_| !self.knows_moves(conn)) else { return false };
        let successor = domain.successor.and_then(|successor| domain.agents.get(&successor));
        successor.is_some_and(|agent| domain.services.as_ref() != Some(agent.services()))
    }

    /// Whether this client goes over by now, and this agent can't follow it.
    pub(crate) fn is_lost_to(&self, agent: ConnId, client: &Client) -> bool {
        !self.knows_moves(agent) && client.next.as_ref().is_some_and(|next| next.told)
    }

    /// What this agent is shown of where the client goes over to.
    pub(crate) fn next_for(&self, agent: ConnId, client: &Client) -> Option<u64> {
        client.next.as_ref().filter(|next| next.sealed && self.knows_moves(agent)).map(|next| next.region)
    }

    /// Whether this agent reads what the client has written, and its layout has a cursor line for each of the agent's calls.
    pub(crate) fn reads_c(&self, agent: ConnId, client: &Client) -> bool {
        let (Some(held), Some(connection)) = (self.regions.at(client.region), self.connections.get(&agent)) else {
            return true;
        };
        let services = self.home(agent).and_then(|domain| domain.agents.get(&agent)).map(|agent| agent.services());
        let calls = services.map_or(0, |services| services.ring_to_client(services.count()));
        let most = Layouts::ALL.parse(held.region.layout).map_or(0, Layout::max_rings);
        connection.layouts.reads(held.region.layout) && calls <= most
    }

    /// Whether it can be asked to go over to another C now.
    fn may_move(&self, domain: &Domain, client: &Client) -> bool {
        let follows = |id: &u64| domain.agent.is_some_and(|agent| self.regions.is_held_by(*id, agent));
        let kept = client.previous.iter().filter(|id| self.regions.at(**id).is_some()).count();
        let is_there = client.conn.is_some_and(|conn| self.knows_moves(conn)) && client.sealed && client.next.is_none();
        let serves = |agent: &ConnId| client.answer.is_some_and(|answer| self.regions.is_held_by(answer, *agent));
        let is_followed = domain.agent.filter(serves).is_none_or(|agent| self.knows_moves(agent));
        is_there
            && is_followed
            && !client.previous.iter().any(follows)
            && kept < domain.books.limits().kept_generations as usize
    }

    /// Whether what it has does not do for this agent, which offers these services. What more services need comes after the agent
    /// itself has come: a client can't use them without.
    fn has_to_move(&self, client: &Client, agent: ConnId, services: &Services) -> bool {
        let has_agent = !client.stale && client.answer.is_some_and(|answer| self.regions.is_held_by(answer, agent));
        !self.reads_c(agent, client) || has_agent && self.lacks_rings(client.region, services)
    }

    fn lacks_rings(&self, c: u64, services: &Services) -> bool {
        let has = self.regions.at(c).map_or(usize::MAX, |held| held.region.services as usize);
        services.iter().skip(has).any(|(_, kind)| kind != ServiceKind::Table)
    }

    fn ask_to_move(&mut self, agent: ConnId, id: u64) -> Result<(), String> {
        let Some(domain) = self.home(agent) else { return Ok(()) };
        let (Some(services), Some(client)) = (&domain.services, domain.clients.get(&id)) else { return Ok(()) };
        let (Some(conn), Some(old)) = (client.conn, self.regions.at(client.region).map(|held| held.region)) else {
            return Ok(());
        };
        domain.has_descriptors(3).map_err(|refusal| refusal.to_string())?;
        let layout = self.meeting(domain, None).layout();
        // One that has not got the agent that offers more can't use more.
        let services = if client.stale { services.first(old.services as usize) } else { services.clone() };
        let geometry = services.channel(id, 0, Written::both(layout)).map_err(|e| e.to_string())?;
        let region = Region {
            kind: RegionKind::Client as u32,
            generation: old.generation + 1,
            bytes: geometry.client_bytes,
            owner: id,
            layout: layout.number(),
            services: services.count() as u32,
            ..Region::default()
        };
        let services = services.to_message();
        let owner = Owner::new(&domain.config.name, Some(&client.member));
        let made = self.regions.make(region, owner).and_then(|id| self.regions.lend(id, conn));
        let (region, fd) = made.map_err(|e| e.to_string())?;
        if let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)) {
            client.next = Some(Coming { region: region.id, sealed: false, told: false });
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.send(Down::Next(Next { client: id, region, services }), vec![fd]);
        }
        Ok(())
    }

    /// The client has mapped its next C: seal it, and show it to the agent that serves it.
    pub(crate) fn next_mapped(&mut self, conn: ConnId, id: u64, next: u64) {
        if let Err(error) = self.regions.seal(next) {
            return self.reject(conn, RefusalKind::Region, error);
        }
        step::at(Step::BrokerNext);
        let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)) else { return };
        if let Some(coming) = &mut client.next {
            coming.sealed = true;
        }
        let Some(domain) = self.home(conn) else { return };
        let serves = |agent: &ConnId| {
            let client = &domain.clients[&id];
            client.answer.is_some_and(|a| self.regions.is_held_by(a, *agent)) && self.reads_c(*agent, client)
        };
        match domain.agent.filter(serves) {
            // It waits for an agent that follows.
            Some(agent) if !self.knows_moves(agent) => {}
            Some(agent) => self.show_next(agent, id, next),
            None => self.tell_to_move(conn, id),
        }
    }

    /// Client and agent are back in the midst of a move: what was said to either may be lost with the broker before.
    pub(crate) fn resume_move(&mut self, agent: ConnId, conn: ConnId, id: u64, next: u64) {
        if !self.regions.is_held_by(next, agent) {
            return self.show_next(agent, id, next);
        }
        if let Some(coming) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)).and_then(|c| c.next.as_mut()) {
            coming.told = false;
        }
        self.tell_to_move(conn, id);
    }

    fn show_next(&mut self, agent: ConnId, id: u64, next: u64) {
        match self.regions.lend(next, agent) {
            Ok((region, fd)) => {
                if let Some(connection) = self.connections.get_mut(&agent) {
                    connection.send(Down::Next(Next { client: id, region, services: Vec::new() }), vec![fd]);
                }
            }
            Err(error) => tracing::error!(%error, "a region could not be lent"),
        }
    }

    /// The agent has mapped the next C of these clients.
    pub(crate) fn taken(&mut self, agent: ConnId, ids: &[u64]) {
        let Some(domain) = self.home(agent).filter(|domain| domain.agent == Some(agent)) else { return };
        let coming = |c: &Client| c.next.as_ref().is_some_and(|next| next.sealed && ids.contains(&next.region));
        let clients: Vec<(ConnId, u64)> =
            domain.clients.iter().filter(|(_, c)| coming(c)).filter_map(|(id, c)| Some((c.conn?, *id))).collect();
        for (conn, client) in clients {
            self.tell_to_move(conn, client);
        }
    }

    /// A client that this agent does not serve, because it does not read what there is, goes over alone.
    pub(crate) fn leave_behind(&mut self, id: u64, agent: ConnId) {
        tracing::warn!(
            client = id,
            "the agent does not read where this client writes; it has none until it has gone over"
        );
        let client = self.home(agent).and_then(|d| d.clients.get(&id));
        if let Some(conn) = client.filter(|c| c.next.as_ref().is_some_and(|next| next.sealed)).and_then(|c| c.conn) {
            self.tell_to_move(conn, id);
        }
    }

    fn tell_to_move(&mut self, conn: ConnId, id: u64) {
        let client = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id));
        let Some(coming) = client.and_then(|c| c.next.as_mut()) else { return };
        if std::mem::replace(&mut coming.told, true) {
            return;
        }
        let ids = vec![coming.region];
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.send(Down::Sealed(RegionIds { ids }), Vec::new());
        }
        step::at(Step::BrokerTold);
    }

    /// Takes a client for one that has gone over if it has marked all in its C.
    pub(crate) fn settle_move(&mut self, domain: &str, id: u64) {
        let client = self.domains.get(domain).and_then(|d| d.clients.get(&id));
        let Some(client) = client.filter(|c| c.next.as_ref().is_some_and(|next| next.told)) else { return };
        // Behind the epoch: an agent that saw the mark, and has not seen the epoch, may be at work in what is new.
        fence(Ordering::SeqCst);
        let map = self.regions.at(client.region).map(Held::read);
        if !map.is_some_and(|map| map.is_ok_and(|map| map.load(MOVED, Ordering::Acquire) & MOVED_ALL != 0)) {
            return;
        }
        let client = self.domains.get_mut(domain).and_then(|d| d.clients.get_mut(&id));
        let Some((client, coming)) = client.and_then(|c| c.next.take().map(|coming| (c, coming))) else { return };
        let old = std::mem::replace(&mut client.region, coming.region);
        client.previous.push(old);
        step::at(Step::BrokerMoved);
        self.regions.unwant(old);
    }

    /// The client writes into its next C; whoever has the one before lets it go by itself.
    pub(crate) fn client_moved(&mut self, conn: ConnId, id: u64, ids: &[u64]) {
        let Some(name) = self.connections.get(&conn).map(|c| c.domain.clone()) else { return };
        self.settle_move(&name, id);
        let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get(&id)) else { return };
        if ids != [client.region] {
            let reason = format!("moved to {ids:?}: expected the region that it was told to go over to, with its mark");
            return self.reject(conn, RefusalKind::Protocol, reason);
        }
        let answer = client.answer;
        self.settle_books_of(&name);
        let agent = self.home(conn).and_then(|domain| domain.agent);
        // One that the agent could not read before.
        if let Some(agent) = agent.filter(|agent| !answer.is_some_and(|a| self.regions.is_held_by(a, *agent))) {
            self.adopt(agent, id);
        }
        self.go_on_moving(&name);
    }

    /// Some regions were let go; a client or a successor may have waited for one of them.
    pub(crate) fn previous_released(&mut self, domain: &str, ids: &[u64]) {
        let Some(found) = self.domains.get_mut(domain) else { return };
        let waits = |c: &Client| c.previous.iter().any(|id| ids.contains(id));
        let waited: Vec<u64> = found.clients.iter().filter(|(_, c)| waits(c)).map(|(id, _)| *id).collect();
        for client in &waited {
            if let Some(client) = found.clients.get_mut(client) {
                client.previous.retain(|id| self.regions.at(*id).is_some());
            }
        }
        if !waited.is_empty() {
            self.settle_books_of(domain);
            self.go_on_moving(domain);
        }
    }

    /// Something that a client or a successor may have waited for to go over has happened.
    pub(crate) fn go_on_moving(&mut self, domain: &str) {
        let Some(domain) = self.domains.get(domain) else { return };
        let (agent, successor) = (domain.agent, domain.successor);
        if let Some(agent) = agent {
            self.move_clients(agent);
        }
        if let Some(successor) = successor {
            self.take_over_if_possible(successor);
        }
    }

    /// The client is gone: what it can't have gone over to is nobody's.
    pub(crate) fn forget_coming(&mut self, domain: &str, id: u64) {
        self.settle_move(domain, id);
        let client = self.domains.get_mut(domain).and_then(|d| d.clients.get_mut(&id));
        if let Some(coming) = client.and_then(|c| c.next.take_if(|next| !next.told)) {
            self.regions.unwant(coming.region);
        }
    }

    /// What each client takes of the books: its C, those before it that somebody holds, the one that it goes over to, and the one that it
    /// is to go over to for the sake of an agent that offers `more`, or that speaks other layouts.
    fn sizes(&self, domain: &Domain, more: Option<(ConnId, &Services)>) -> Vec<(u64, u64, u64)> {
        let successor = domain.successor.and_then(|conn| Some((conn, domain.agents.get(&conn)?.services())));
        let serving = domain.agent.zip(domain.services.as_ref());
        let Some((agent, services)) = more.or(successor).or(serving) else { return Vec::new() };
        let at = Written::both(self.meeting(domain, None).layout());
        let bytes =
            |services: &Services| services.channel(0, 0, at).map_or((0, 0), |g| (g.client_bytes, g.agent_bytes));
        let (larger, answer) = bytes(services);
        // It may have to go over twice: first to another layout, with what is offered now.
        let (now, answer_now) = domain.services.as_ref().map_or((larger, answer), bytes);
        let size = |id: &u64| self.regions.at(*id).map_or(0, |held| held.region.bytes);
        let one = |(id, client): (&u64, &Client)| {
            let coming = client.next.as_ref().map(|next| &next.region);
            let there: u64 = client.previous.iter().chain([&client.region]).chain(coming).map(size).sum();
            let newest = coming.unwrap_or(&client.region);
            let relays = coming.is_none() && !self.reads_c(agent, client);
            let moves = [(relays, now), (self.lacks_rings(*newest, services), larger)];
            let to_come: u64 =
                moves.iter().filter(|(due, _)| *due && client.conn.is_some()).map(|(_, size)| size).sum();
            (*id, there + to_come, answer.max(answer_now))
        };
        domain.clients.iter().map(one).collect()
    }

    /// What one more client takes: it, too, goes over to what a larger successor offers.
    pub(crate) fn size_of_join(&self, domain: &Domain, c: u64, a: u64) -> (u64, u64) {
        let successor = domain.successor.and_then(|conn| domain.agents.get(&conn)).map(|agent| agent.services());
        let larger = successor.filter(|services| domain.services.as_ref() != Some(*services));
        let at = Written::both(self.meeting(domain, None).layout());
        match larger.and_then(|services| services.channel(0, 0, at).ok()) {
            Some(geometry) => (c + geometry.client_bytes, a.max(geometry.agent_bytes)),
            None => (c, a),
        }
    }

    /// Books what the clients will need for a successor that offers these services, before anything is made.
    pub(crate) fn admit_moves(&mut self, conn: ConnId, services: &Services) -> Result<(), Refusal> {
        let Some(domain) = self.home(conn) else { return Ok(()) };
        let sizes = self.sizes(domain, Some((conn, services)));
        let Some(domain) = self.domain_of(conn) else { return Ok(()) };
        domain.clients.touch(sizes.iter().map(|(id, ..)| *id));
        domain.books.resize_clients(&sizes)
    }

    /// Books what the clients need as things are.
    pub(crate) fn settle_books(&mut self, conn: ConnId) {
        if let Some(name) = self.connections.get(&conn).map(|c| c.domain.clone()) {
            self.settle_books_of(&name);
        }
    }

    /// [`State::settle_books`] of a domain by its name.
    pub(crate) fn settle_books_of(&mut self, name: &str) {
        let Some(domain) = self.domains.get(name) else { return };
        let sizes = self.sizes(domain, None);
        let Some(domain) = self.domains.get_mut(name) else { return };
        domain.clients.touch(sizes.iter().map(|(id, ..)| *id));
        if let Err(refusal) = domain.books.resize_clients(&sizes) {
            tracing::error!(%refusal, "what was admitted does not fit any more");
        }
    }
}
