//! Tables: their next generation, asked for, filled by the agent, published to the clients.

use super::Growing;
use crate::regions::{ConnId, Owner};
use crate::state::State;
use podshm_layout::step::{self, Step};
use podshm_layout::{Layout, RegionKind, TableGeometry};
use podshm_proto::{Down, Grow, RefusalKind, Region, Services};
use std::time::Instant;

impl State {
    pub(super) fn new_table(
        &mut self,
        conn: ConnId,
        service: usize,
        geometry: TableGeometry,
        layout: Layout,
    ) -> Region {
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
            layout: layout.number(),
            ..Region::default()
        }
    }

    /// Asks the agent to write those of its tables once more that somebody in the domain, or at its door, does not read.
    pub(crate) fn rewrite_tables(&mut self, conn: ConnId) {
        let Some(domain) = self.home(conn) else { return };
        let Some(agent) = domain.agents.get(&conn).filter(|agent| agent.ready.is_some()) else { return };
        let meeting = self.meeting(domain, Some(conn));
        let standing = if domain.agent == Some(conn) { &domain.tables } else { &agent.tables };
        let standing = standing.iter().filter(|(service, _)| !agent.growing.contains_key(service));
        let unsuited: Vec<Region> = standing
            .filter_map(|(_, id)| Some(self.regions.at(*id)?.region))
            .filter(|region| !meeting.suits(region.layout))
            .collect();
        for old in unsuited {
            let service = old.owner as usize;
            let geometry = TableGeometry { buckets: old.buckets, units: old.units };
            let region = self.new_table(conn, service, geometry, meeting.layout());
            tracing::info!(service, from = old.layout, to = region.layout, "table is written at another layout");
            let growing = Growing { replaces: None, rewrite: Some(Instant::now()), then: None };
            if let Some(agent) = self.agent_state(conn) {
                agent.growing.insert(service, growing);
            }
            let Some(owner) = self.connections.get(&conn).map(|c| Owner::new(&c.domain, Some(&c.who))) else { return };
            match self.regions.make(region, owner).and_then(|id| self.regions.lend(id, conn)) {
                Ok((region, fd)) => {
                    if let Some(agent) = self.agent_state(conn) {
                        agent.unmapped.insert(region.id, Instant::now());
                    }
                    if let Some(connection) = self.connections.get_mut(&conn) {
                        connection.send(Down::Rewrite(region), vec![fd]);
                    }
                }
                Err(error) => return self.reject(conn, RefusalKind::Region, error),
            }
        }
    }

    /// The agent lets go of a table that it was to write once more, before it has published it: the one before stands.
    pub(crate) fn rewrite_declined(&mut self, conn: ConnId, id: u64) {
        let Some(agent) = self.agent_state(conn).filter(|agent| agent.unpublished.contains(&id)) else { return };
        let found = agent.growing.iter().find(|(s, g)| g.rewrite.is_some() && agent.tables.get(s) == Some(&id));
        let Some(service) = found.map(|(service, _)| *service) else { return };
        let declined = agent.growing.remove(&service);
        agent.unpublished.remove(&id);
        if let Some(standing) = declined.as_ref().and_then(|g| g.replaces) {
            agent.tables.insert(service, standing);
        }
        self.regions.unwant(id);
        if let Some(grow) = declined.and_then(|g| g.then) {
            self.grow(conn, grow);
        }
    }

    pub(crate) fn grow(&mut self, conn: ConnId, grow: Grow) {
        let Some(domain) = self.domain_of(conn) else {
            return;
        };
        let index = grow.service as usize;
        let is_table = domain.agents.get(&conn).is_some_and(|a| a.services.tables().any(|i| i == index));
        let geometry = match TableGeometry::sized_for(grow.keys, grow.bytes) {
            Ok(geometry) if is_table => geometry,
            Ok(_) => {
                return self.refuse(conn, RefusalKind::Services, format!("service {index} is not a table"));
            }
            Err(error) => return self.refuse(conn, RefusalKind::OverLimit, error),
        };
        let Some(agent) = domain.agents.get_mut(&conn) else { return };
        match agent.growing.get_mut(&index) {
            Some(Growing { rewrite: Some(_), then: then @ None, .. }) => {
                *then = Some(grow);
                return;
            }
            Some(_) => {
                let reason = "this table's next generation is not published yet; publish it before asking for another";
                return self.refuse(conn, RefusalKind::OverLimit, reason);
            }
            None => {}
        }
        // What the books reserve is for the generations that are kept; an agent that lets none go gets no more.
        let tables = domain.agents.get(&conn).map_or(0, |agent| agent.services.tables().count());
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
            agent.growing.insert(index, Growing { replaces: None, rewrite: None, then: None });
        }
        let layout = self.next_layout(conn);
        let region = self.new_table(conn, index, geometry, layout);
        self.send_for_writing(conn, vec![region]);
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
        let service = region.owner as usize;
        let growing = self.agent_state(conn).and_then(|a| a.growing.remove(&service));
        let Some(domain) = self.domain_of(conn) else { return };
        if domain.agent == Some(conn) {
            let old = domain.tables.insert(service, id);
            domain.publish_table(service, region.generation);
            step::at(Step::BrokerPublished);
            let conns: Vec<ConnId> = domain.clients.values().filter(|c| !c.stale).filter_map(|c| c.conn).collect();
            if let Some(old) = old {
                self.regions.unwant(old);
            }
            for client in conns {
                self.send_new_tables(client);
            }
        } else if let Some(replaced) = growing.as_ref().and_then(|g| g.replaces) {
            // A successor's tables are published when it takes over; one that it has outgrown before is nobody's.
            self.regions.unwant(replaced);
        }
        if let Some(grow) = growing.and_then(|g| g.then) {
            self.grow(conn, grow);
        }
        self.take_over_if_possible(conn);
        self.serve_waiting(conn);
    }

    /// Sends a client every current table that it has not got, as long as it doesn't pin too many old ones.
    pub(super) fn send_new_tables(&mut self, conn: ConnId) {
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
}

pub(super) fn table_geometry(services: &Services, index: usize) -> TableGeometry {
    let (service, _) = services.at(index).expect("an index of this set");
    TableGeometry::sized_for(service.keys, service.bytes).expect("checked with the offer")
}

pub(crate) fn table_bytes(services: &Services, index: usize) -> u64 {
    table_geometry(services, index).size()
}
