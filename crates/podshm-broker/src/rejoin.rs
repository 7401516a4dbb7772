//! Participants of the broker before this one come back with what they hold.
//!
//! ```text
//!  participant                                broker, which has the ledger
//!    ├─ Hello(rejoin: who, epoch) ──────────────► is that one expected, and is this its socket?
//!    ├─ Present(ids) + descriptors ─────────────► each: device, inode, size, owner, seals, blocks, header as the ledger says?
//!    ├─ Presented ──────────────────────────────► it is back
//!    │◄───────────── Rejoined + a new notice page
//!  client and agent both back ──────────────────► same A on both sides: nothing to do; else the agent gets the client anew
//!  grace over ──────────────────────────────────► clients that are away are gone, what nobody presented is freed, both are named
//! ```
//! A descriptor proves that a region is alive and what it holds, nothing else: who may have it is in the ledger. Whoever offers what
//! is not his is refused as a whole.

mod agent;
mod settle;

use crate::connections::Role;
use crate::regions::ConnId;
use crate::state::State;
use podshm_layout::RegionKind;
use podshm_layout::geometry::MAX_SERVICES;
use podshm_layout::step::{self, Step};
use podshm_proto::{Down, Offer, PROTOCOL_REJOINS, Present, RefusalKind, Region, Rejoin, Rejoined, Service, Use};
use podshm_region::Memory;
use std::os::fd::OwnedFd;

/// A participant that is presenting what it holds.
#[derive(Debug)]
pub(crate) struct Returning {
    is_agent: bool,
    rejoin: Rejoin,
    /// Agent: what it offers.
    services: Vec<Service>,
    /// What came with the message that is being read.
    pub(crate) fds: Vec<OwnedFd>,
    /// What it has presented.
    offers: Vec<Offer>,
    /// What it is to let go of.
    dropped: Vec<u64>,
}

type Refusal = (RefusalKind, String);

impl State {
    pub(crate) fn rejoin_hello(&mut self, conn: ConnId, is_agent: bool, rejoin: Rejoin, services: Vec<Service>) {
        let checked = if is_agent {
            self.check_agents_return(conn, rejoin.epoch)
        } else {
            self.check_return(conn, rejoin.client)
        };
        if let Err((kind, reason)) = checked {
            return self.reject(conn, kind, reason);
        }
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.protocol < PROTOCOL_REJOINS {
            let found = connection.protocol;
            let reason = format!("to rejoin takes protocol {PROTOCOL_REJOINS}, found {found}; join anew");
            return self.reject(conn, RefusalKind::Version, reason);
        }
        let (fds, offers, dropped) = (Vec::new(), Vec::new(), Vec::new());
        connection.role = Role::Returning(Box::new(Returning { is_agent, rejoin, services, fds, offers, dropped }));
    }

    /// Whether this client is expected back from there.
    fn check_return(&self, conn: ConnId, id: u64) -> Result<(), Refusal> {
        let (Some(connection), Some(domain)) = (self.connections.get(&conn), self.home(conn)) else { return Ok(()) };
        let name = connection.who.name();
        let Some(client) = domain.clients.get(&id) else {
            let reason =
                format!("client {id} is not in the ledger, or was given up; expected one of {name}; join anew");
            return Err((RefusalKind::NotAllowed, reason));
        };
        if client.member != connection.who {
            let reason = format!("client {id} is another member's; expected one of {name}");
            return Err((RefusalKind::NotAllowed, reason));
        }
        if !client.absent {
            let reason = format!("client {id} of {name} is here, or was taken for gone; join anew");
            return Err((RefusalKind::NotAllowed, reason));
        }
        Ok(())
    }

    pub(crate) fn present(&mut self, conn: ConnId, present: &Present) {
        let Some(Role::Returning(returning)) = self.connections.get_mut(&conn).map(|c| &mut c.role) else { return };
        let fds = std::mem::take(&mut returning.fds);
        if fds.len() != present.offers.len() {
            let (expected, found) = (present.offers.len(), fds.len());
            let reason = format!("{found} descriptors with regions to present, expected {expected}");
            return self.reject(conn, RefusalKind::Protocol, reason);
        }
        for (offer, fd) in present.offers.iter().zip(fds) {
            if let Err((kind, reason)) = self.present_one(conn, *offer, fd) {
                let what = format!("region {} is refused: {reason}", offer.id);
                return self.reject(conn, kind, what);
            }
        }
    }

    fn present_one(&mut self, conn: ConnId, offer: Offer, fd: OwnedFd) -> Result<(), Refusal> {
        let id = offer.id;
        if self.regions.was_half_joined(id) {
            if let Some(returning) = self.returning(conn) {
                returning.dropped.push(id);
            }
            return Ok(());
        }
        self.check_holder(conn, offer)?;
        let memory = Memory::from_fd(fd).and_then(|memory| self.regions.present(id, memory));
        let expected = "expected the memory that a broker has made under this number";
        memory.map_err(|e| (RefusalKind::Region, format!("{e}; {expected}")))?;
        self.regions.hold(id, conn);
        if let Some(returning) = self.returning(conn) {
            returning.offers.push(offer);
        }
        Ok(())
    }

    /// Whether the ledger says that this participant may have the region, and use it so.
    fn check_holder(&self, conn: ConnId, offer: Offer) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get(&conn) else { return Ok(()) };
        let Role::Returning(returning) = &connection.role else { return Ok(()) };
        let Some(held) = self.regions.at(offer.id) else {
            let last = self.regions.last();
            let reason = format!(
                "it is not in the ledger (which goes up to {last}); expected a region that this participant was given and has not let go"
            );
            return Err((RefusalKind::Region, reason));
        };
        if self.regions.is_held_by(offer.id, conn) {
            return Err((RefusalKind::Region, "it was presented before; expected each region once".into()));
        }
        let refuse = |what: &str| {
            let (whose, who) =
                (held.owner.writer.as_ref().map_or("the broker".into(), |w| w.name()), connection.who.name());
            let kind = held.region.kind;
            let reason = format!(
                "{what}: found one of kind {kind} of {whose} in domain {}, presented by {who} of domain {}",
                held.owner.domain, connection.domain
            );
            Err((RefusalKind::NotAllowed, reason))
        };
        if !held.is_inherited() {
            return refuse("this broker has made it itself; expected one that was there before it");
        }
        if held.owner.domain != connection.domain {
            return refuse("it is another domain's; expected one of this domain");
        }
        let used = Use::try_from(offer.used).unwrap_or(Use::Held);
        let is = |kind: RegionKind| held.region.kind == kind as u32;
        let (c, a, t) = (is(RegionKind::Client), is(RegionKind::Agent), is(RegionKind::Table));
        let fits = match used {
            Use::Held => c || a || t,
            Use::Own | Use::Next => c,
            Use::Answer => a,
            Use::Pool => a && returning.is_agent,
            Use::Table => t,
            Use::NextTable => t && returning.is_agent,
        };
        if !fits {
            return refuse(&format!(
                "it can't be used as {used:?} by whoever presents it; expected a region of that kind"
            ));
        }
        let client = returning.rejoin.client;
        if !returning.is_agent {
            if c && held.region.owner != client {
                return refuse(&format!("it is another client's; expected one of client {client}"));
            }
            if a && held.owner.given != client {
                return refuse(&format!("it answers another client; expected one that answers client {client}"));
            }
            return Ok(());
        }
        // What it says that it writes, its own pod must have been given for writing.
        let writes = matches!(used, Use::Answer | Use::Pool | Use::Table | Use::NextTable);
        if writes && held.owner.writer.as_ref() != Some(&connection.who) {
            return refuse("another pod writes it; expected one that this agent writes");
        }
        if used == Use::Answer && held.owner.given != offer.client {
            return refuse(&format!(
                "it does not answer client {}; expected client {}",
                offer.client, held.owner.given
            ));
        }
        if writes && self.is_used_by_another(conn, returning, offer.id) {
            return refuse("another agent of this pod writes it; expected one that this agent writes");
        }
        Ok(())
    }

    /// Whether an agent that is here has this region for writing, or the domain has it from one that is not this.
    fn is_used_by_another(&self, conn: ConnId, returning: &Returning, id: u64) -> bool {
        let Some(domain) = self.home(conn) else { return false };
        let of_agents = domain.agents.values().any(|agent| agent.writes(id));
        // Before it has served nothing of its own can stand, unless it has not heard yet that it serves.
        let who = self.connections.get(&conn).map(|c| &c.who);
        let may_serve = domain.absent_agent.as_ref().is_some_and(|(absent, _)| Some(absent) == who);
        let stands = domain.tables.values().any(|table| *table == id);
        of_agents || returning.rejoin.epoch == 0 && !may_serve && stands
    }

    fn returning(&mut self, conn: ConnId) -> Option<&mut Returning> {
        match self.connections.get_mut(&conn).map(|c| &mut c.role) {
            Some(Role::Returning(returning)) => Some(returning),
            _ => None,
        }
    }

    /// It has presented everything.
    pub(crate) fn presented(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let Role::Returning(returning) = std::mem::replace(&mut connection.role, Role::New) else { return };
        let done = if returning.is_agent {
            self.agent_is_back(conn, &returning)
        } else {
            self.client_is_back(conn, &returning)
        };
        if let Err((kind, reason)) = done {
            return self.reject(conn, kind, reason);
        }
        self.check_returns(std::time::Instant::now(), false);
    }

    fn client_is_back(&mut self, conn: ConnId, returning: &Returning) -> Result<(), Refusal> {
        let id = returning.rejoin.client;
        self.check_return(conn, id)?;
        let offered = |used: Use| returning.offers.iter().find(|o| o.used == used as i32).map(|o| o.id);
        let Some(domain) = self.home(conn) else { return Ok(()) };
        let (name, client) = (domain.config.name.clone(), &domain.clients[&id]);
        // It may have gone over to the next C, and the mark is in the one before, which is gone or not here.
        let went_over = client.next.as_ref().filter(|next| next.told && offered(Use::Own) == Some(next.region));
        let expected = went_over.map_or(client.region, |next| next.region);
        if offered(Use::Own) != Some(expected) {
            let reason =
                format!("the region of client {id} is missing: expected {expected}, found {:?}", offered(Use::Own));
            return Err((RefusalKind::Region, reason));
        }
        let keeps_next = client.next.as_ref().is_some_and(|next| offered(Use::Next) == Some(next.region));
        let went_over = went_over.is_some();
        let hung_up = returning.rejoin.hung_up && returning.rejoin.epoch == domain.epoch;
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };
        connection.role = Role::Client(id);
        let speaks = connection.layouts;
        let began = returning.rejoin.began.iter().take(MAX_SERVICES).copied().collect();
        self.send_rejoined(conn, returning)?;
        let Some(client) = self.domain_of(conn).and_then(|d| d.clients.get_mut(&id)) else { return Ok(()) };
        (client.conn, client.absent, client.vouched, client.speaks) = (Some(conn), false, false, speaks);
        (client.linked, client.began) = (offered(Use::Answer), began);
        client.says_hung_up = hung_up;
        let gone = match client.next.take() {
            Some(next) if went_over => {
                let old = std::mem::replace(&mut client.region, next.region);
                client.previous.push(old);
                Some(old)
            }
            // It has it not any more, or never got it: it will be asked anew.
            Some(next) if !keeps_next => Some(next.region),
            other => {
                client.next = other;
                None
            }
        };
        if let Some(gone) = gone {
            self.regions.unwant(gone);
        }
        step::at(Step::RejoinClient);
        tracing::debug!(domain = name, client = id, "client is back");
        match self.home(conn).and_then(|d| d.agent) {
            Some(agent) => self.reconcile(agent, id),
            None => self.agent_may_be_dead(&name),
        }
        Ok(())
    }

    pub(super) fn send_rejoined(&mut self, conn: ConnId, returning: &Returning) -> Result<(), Refusal> {
        let Some(domain) = self.home(conn) else { return Ok(()) };
        let epoch = domain.epoch;
        let notice = domain.notice().map_err(|e| (RefusalKind::OverLimit, e.to_string()))?;
        if let Some(connection) = self.connections.get_mut(&conn) {
            let rejoined = Rejoined { protocol: connection.protocol, epoch, dropped: returning.dropped.clone() };
            connection.send(Down::Rejoined(rejoined), vec![notice]);
        }
        Ok(())
    }

    /// Client and agent are back: what one of them has not got of the other yet comes now.
    pub(crate) fn reconcile(&mut self, agent: ConnId, id: u64) {
        let Some(client) = self.home(agent).and_then(|d| d.clients.get(&id)) else { return };
        let (Some(conn), true) = (client.conn, client.sealed && !client.absent) else { return };
        let (answer, linked) = (client.answer, client.linked);
        let serves = answer.is_some_and(|answer| self.regions.is_held_by(answer, agent));
        if !serves || linked != answer {
            // Its A is one that the client never got, or the agent: neither is used by both.
            if let Some(answer) = answer.filter(|_| serves) {
                self.regions.drop_holder(answer, agent);
            }
            return self.adopt(agent, id);
        }
        if let Some(next) = self.home(agent).and_then(|d| self.next_for(agent, d.clients.get(&id)?)) {
            self.resume_move(agent, conn, id, next);
        }
        self.catch_up(conn);
    }

    /// The region as the ledger has it, for messages.
    pub(super) fn region_of(&self, id: u64) -> Option<Region> {
        self.regions.at(id).map(|held| held.region)
    }
}
