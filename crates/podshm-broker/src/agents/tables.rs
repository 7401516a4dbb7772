//! Tables: their next generation, asked for, filled by the agent, published to the clients.

use crate::regions::ConnId;
use crate::state::State;
use podshm_layout::{RegionKind, TableGeometry};
use podshm_proto::{Down, Grow, RefusalKind, Region, Services};

impl State {
    pub(super) fn new_table(&mut self, conn: ConnId, service: usize, geometry: TableGeometry) -> Region {
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
        if let Err(refusal) = domain.books.admit_tables(&[(grow.service, geometry.size())]) {
            return self.refuse(conn, RefusalKind::OverLimit, refusal);
        }
        if let Some(agent) = domain.agents.get_mut(&conn) {
            agent.growing.insert(index, None);
        }
        let region = self.new_table(conn, index, geometry);
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

pub(super) fn table_bytes(services: &Services, index: usize) -> u64 {
    table_geometry(services, index).size()
}
