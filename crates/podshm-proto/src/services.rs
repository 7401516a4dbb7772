//! The services of a domain, checked once, and what they mean for regions: both sides compute the same geometry from them.

use crate::{Region, Service};
use podshm_layout::geometry::{GeometryError, MAX_SERVICES, RingGeometry, RingSize};
use podshm_layout::{ChannelGeometry, Layout, RegionHeader, RegionKind, TableGeometry};

/// Longest request or response of a call: no client takes a longer answer. 1 GiB.
pub const MAX_CALL: u32 = 1 << 30;

/// What a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Key to value, one writer.
    Table,
    /// Records to the agent.
    Queue,
    /// Request and response.
    Call,
}

/// A service that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadService {
    /// A name that is none.
    #[error("service name {found:?}: expected 1 to 63 characters of a-z, 0-9, '-' and '.'")]
    Name {
        /// The name.
        found: String,
    },
    /// The same name twice.
    #[error("service {name:?} is offered twice; give each a name of its own")]
    Twice {
        /// The name.
        name: String,
    },
    /// Too many.
    #[error("{found} services: expected 1 to {MAX_SERVICES}; split the domain")]
    Count {
        /// How many.
        found: usize,
    },
    /// Not a table, queue or call.
    #[error("service {name:?} is of kind {found}: expected 1 (table), 2 (queue) or 3 (call)")]
    Kind {
        /// The name.
        name: String,
        /// The number.
        found: u32,
    },
    /// Messages that no client takes.
    #[error(
        "service {name:?}: requests and responses up to {found} bytes: expected at most {MAX_CALL} (1 GiB); send what is longer in several calls"
    )]
    Longest {
        /// The name.
        name: String,
        /// The limit asked for.
        found: u32,
    },
    /// Sizes that can't be.
    #[error("service {name:?}: {source}")]
    Size {
        /// The name.
        name: String,
        /// Why.
        source: GeometryError,
    },
}

/// Services that a domain's clients have joined with can't go or change under them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Contradiction {
    /// One is not offered any more.
    #[error(
        "service {name:?}, which this domain's clients have joined with, is not offered; offer it as it was (and more, if you like), or use another domain"
    )]
    Missing {
        /// The name.
        name: String,
    },
    /// One is offered as something else.
    #[error(
        "service {name:?} is offered as {found}, and this domain's clients have joined with {expected}; offer it as it was under this name, or use another name or domain"
    )]
    Changed {
        /// The name.
        name: String,
        /// What the clients have.
        expected: String,
        /// What is offered.
        found: String,
    },
    /// Together they are too many.
    #[error(transparent)]
    Bad(#[from] BadService),
}

/// The checked services of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    all: Vec<(Service, ServiceKind)>,
}

impl Services {
    /// Checks what an agent offers.
    pub fn check(offered: Vec<Service>) -> Result<Self, BadService> {
        if offered.is_empty() || offered.len() > MAX_SERVICES {
            return Err(BadService::Count { found: offered.len() });
        }
        let mut all: Vec<(Service, ServiceKind)> = Vec::new();
        for service in offered {
            let name = service.name.clone();
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            if name.is_empty() || name.len() > 63 || !name.chars().all(good) {
                return Err(BadService::Name { found: name });
            }
            if all.iter().any(|(s, _)| s.name == name) {
                return Err(BadService::Twice { name });
            }
            let size = |source| BadService::Size { name: name.clone(), source };
            let kind = match service.kind {
                1 => {
                    TableGeometry::sized_for(service.keys, service.bytes).map_err(size)?;
                    ServiceKind::Table
                }
                2 => ServiceKind::Queue,
                3 => ServiceKind::Call,
                found => return Err(BadService::Kind { name, found }),
            };
            let one = Services { all: vec![(service, kind)] };
            one.channel(0, 0, Written::both(Layout::OLDEST)).map_err(size)?;
            all.extend(one.all);
        }
        Ok(Services { all })
    }

    /// What an agent is about to offer. Stricter than [`Services::check`]: a release before let calls be of any length, and the domains and
    /// agents that have such go on.
    pub fn offer(offered: Vec<Service>) -> Result<Self, BadService> {
        let services = Self::check(offered)?;
        for (service, _) in services.iter().filter(|(_, kind)| *kind == ServiceKind::Call) {
            let found = service.longest.max(service.longest_response);
            if found > MAX_CALL {
                return Err(BadService::Longest { name: service.name.clone(), found });
            }
        }
        Ok(services)
    }

    /// The newest layout whose first pages hold the cursor lines of all these services' rings.
    pub fn newest_layout(&self) -> Result<Layout, GeometryError> {
        let fits = |layout: &Layout| self.channel(0, 0, Written::both(*layout)).map(|_| *layout);
        match Layout::ALL.iter().rev().find_map(|layout| fits(layout).ok()) {
            Some(layout) => Ok(layout),
            None => fits(&Layout::OLDEST),
        }
    }

    /// The first so many of them: what a region was made for before the rest was offered.
    pub fn first(&self, count: usize) -> Services {
        Services { all: self.all.iter().take(count).cloned().collect() }
    }

    /// Those of them that a region was made for.
    pub fn of(&self, region: &Region) -> Services {
        self.first(if region.services == 0 { usize::MAX } else { region.services as usize })
    }

    /// These, in their order, and behind them what is `offered` beyond them. All of these must be offered as they are.
    pub fn extended_by(&self, offered: &Services) -> Result<Services, Contradiction> {
        for (known, _) in &self.all {
            let Some((found, _)) = offered.all.iter().find(|(s, _)| s.name == known.name) else {
                return Err(Contradiction::Missing { name: known.name.clone() });
            };
            if found != known {
                let (name, expected, found) = (known.name.clone(), described(known), described(found));
                return Err(Contradiction::Changed { name, expected, found });
            }
        }
        let more = offered.all.iter().filter(|(s, _)| self.find(&s.name).is_none());
        let all: Vec<_> = self.all.iter().chain(more).cloned().collect();
        if all.len() > MAX_SERVICES {
            return Err(BadService::Count { found: all.len() }.into());
        }
        Ok(Services { all })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The services in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Service, ServiceKind)> {
        self.all.iter().map(|(s, k)| (s, *k))
    }

    /// As they go into a message.
    pub fn to_message(&self) -> Vec<Service> {
        self.all.iter().map(|(s, _)| s.clone()).collect()
    }

    /// Indices of the tables.
    pub fn tables(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.all.len()).filter(|&i| self.all[i].1 == ServiceKind::Table)
    }

    /// A service by its index.
    pub fn at(&self, index: usize) -> Option<(&Service, ServiceKind)> {
        self.all.get(index).map(|(s, k)| (s, *k))
    }

    /// Index and kind of a service.
    pub fn find(&self, name: &str) -> Option<(usize, ServiceKind)> {
        self.all.iter().position(|(s, _)| s.name == name).map(|i| (i, self.all[i].1))
    }

    /// Index of a service's ring among those to the agent.
    pub fn ring_to_agent(&self, index: usize) -> usize {
        self.all[..index].iter().filter(|(_, k)| *k != ServiceKind::Table).count()
    }

    /// Index of a call's ring among those to the client.
    pub fn ring_to_client(&self, index: usize) -> usize {
        self.all[..index].iter().filter(|(_, k)| *k == ServiceKind::Call).count()
    }

    /// Both regions of a channel, for a client and a place in the agent's pool, each written at its own layout.
    pub fn channel(&self, client: u64, place: u64, at: Written) -> Result<ChannelGeometry, GeometryError> {
        let ring = |bytes: u32, longest: u32| RingSize {
            bytes,
            // Longer messages go in fragments; a call's header rides in front of each.
            max_record: longest.min(RingGeometry::most_record(bytes.max(4096))),
        };
        let to_agent: Vec<_> = self
            .all
            .iter()
            .filter_map(|(s, k)| match k {
                ServiceKind::Table => None,
                ServiceKind::Queue => Some(RingSize { bytes: s.ring, max_record: s.longest }),
                ServiceKind::Call => Some(ring(s.ring, u32::MAX)),
            })
            .collect();
        let to_client: Vec<_> = self
            .all
            .iter()
            .filter(|(_, k)| *k == ServiceKind::Call)
            .map(|(s, _)| ring(s.response_ring, u32::MAX))
            .collect();
        // A ring's cursor line is in its consumer's region.
        let (client_bytes, to_agent) = ChannelGeometry::lay_out(&to_agent, client, at.agent)?;
        let (agent_bytes, to_client) = ChannelGeometry::lay_out(&to_client, place, at.client)?;
        Ok(ChannelGeometry { client_bytes, to_agent, agent_bytes, to_client })
    }
}

/// A service in words.
fn described(s: &Service) -> String {
    match s.kind {
        1 => format!("a table for {} keys and {} bytes", s.keys, s.bytes),
        2 => format!("a queue with a ring of {} bytes for records up to {}", s.ring, s.longest),
        _ => format!(
            "a{} call with rings of {} and {} bytes for requests up to {} and responses up to {}",
            if s.idempotent { "n idempotent" } else { "" },
            s.ring,
            s.response_ring,
            s.longest,
            s.longest_response
        ),
    }
}

/// The layouts that both regions of a channel are written at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// C's.
    pub client: Layout,
    /// A's.
    pub agent: Layout,
}

impl Written {
    /// Both at the same one.
    pub const fn both(layout: Layout) -> Self {
        Written { client: layout, agent: layout }
    }
}

impl Region {
    /// The header that this region must carry.
    pub fn header(&self) -> Option<RegionHeader> {
        let kind = match self.kind {
            1 => RegionKind::Client,
            2 => RegionKind::Agent,
            3 => RegionKind::Table,
            4 => RegionKind::Notice,
            _ => return None,
        };
        let Region { layout, generation, owner, bytes: size, .. } = *self;
        Some(RegionHeader { layout, kind, generation, size, owner })
    }

    /// The table geometry of a T region, checked against its size.
    pub fn table(&self) -> Result<TableGeometry, GeometryError> {
        let geometry = TableGeometry { buckets: self.buckets, units: self.units };
        geometry.check(self.bytes)?;
        Ok(geometry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, ring: u32) -> Service {
        Service { name: name.into(), kind: 2, ring, longest: 64, ..Service::default() }
    }

    #[test]
    fn more_services_come_behind_those_that_are_known() {
        let known = Services::check(vec![queue("a", 4096), queue("b", 8192)]).unwrap();
        let offered = Services::check(vec![queue("new", 4096), queue("b", 8192), queue("a", 4096)]).unwrap();
        let all = known.extended_by(&offered).unwrap();
        assert_eq!(all.iter().map(|(s, _)| &s.name[..]).collect::<Vec<_>>(), ["a", "b", "new"]);
        assert_eq!(all.first(2), known);
        assert_eq!(known.extended_by(&known), Ok(known.clone()));
        // What is known keeps its place in both regions.
        let at = Written::both(Layout::NEWEST);
        let (before, after) = (known.channel(7, 3, at).unwrap(), all.channel(7, 3, at).unwrap());
        assert_eq!(before.to_agent, after.to_agent[..2]);
        assert!(after.client_bytes > before.client_bytes);
    }

    #[test]
    fn a_call_is_offered_up_to_a_gibibyte_and_known_beyond() {
        let call = |longest, longest_response| {
            vec![Service { longest, response_ring: 4096, longest_response, kind: 3, ..queue("ask", 4096) }]
        };
        assert!(Services::offer(call(MAX_CALL, MAX_CALL)).is_ok());
        for (offered, found) in [(call(MAX_CALL + 1, 1), MAX_CALL + 1), (call(1, u32::MAX), u32::MAX)] {
            assert!(Services::check(offered.clone()).is_ok(), "a release before offers it");
            let error = Services::offer(offered).unwrap_err();
            assert_eq!(error, BadService::Longest { name: "ask".into(), found });
            let said = error.to_string();
            for word in ["\"ask\"", &found.to_string(), "at most 1073741824", "several calls"] {
                assert!(said.contains(word), "{said}");
            }
        }
    }

    #[test]
    fn what_clients_have_joined_with_stays() {
        let known = Services::check(vec![queue("a", 4096), queue("b", 8192)]).unwrap();
        let missing = Services::check(vec![queue("a", 4096)]).unwrap();
        assert_eq!(known.extended_by(&missing), Err(Contradiction::Missing { name: "b".into() }));
        let changed = Services::check(vec![queue("a", 8192), queue("b", 8192)]).unwrap();
        let error = known.extended_by(&changed).unwrap_err().to_string();
        for word in ["\"a\"", "ring of 8192", "joined with a queue with a ring of 4096"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
