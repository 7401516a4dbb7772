//! Identity, limits and budgets of a domain: pure decisions, no I/O, no clock.
//!
//! Admission reserves the worst case at once, so that nothing which was admitted can be refused later: with K generations kept
//! per client, a client takes C once and A for the K that it may pin, the one that serves and its successor; a table likewise.
#![forbid(unsafe_code)]

mod layouts;
mod policy;

pub use layouts::{Meeting, NoMeeting, Spoken};
pub use policy::{NotAllowed, Party, Policy, Role};

use std::collections::BTreeMap;

/// Who a pod is, as the kubelet (or the operator of a plain machine) told the node daemon. Never what the pod says of itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID: the same name with another UID is another pod.
    pub uid: String,
    /// Service account.
    pub service_account: String,
}

impl Identity {
    /// `namespace/pod`, for people.
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// What a socket's owner may do in the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// May join as a client.
    pub join: bool,
    /// May serve as the agent.
    pub serve: bool,
}

/// Limits of a domain on this node. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All of the domain's regions, the agent's successor reserved.
    pub budget: u64,
    /// One member's part of it.
    pub member_share: u64,
    /// Clients in the domain.
    pub clients: u32,
    /// Clients (processes) of one member.
    pub member_clients: u32,
    /// Generations that one client may keep alive (K).
    pub kept_generations: u32,
}

impl Default for Limits {
    /// 256 MiB, a quarter of it for each member, 4,096 clients, 64 for each member, two generations.
    fn default() -> Self {
        Limits { budget: 256 << 20, member_share: 64 << 20, clients: 4096, member_clients: 64, kept_generations: 2 }
    }
}

/// Admission was refused; nothing was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The domain's budget.
    #[error(
        "{what} needs {asked} bytes (the agent's successor included) and the domain has {left} of {budget} left; raise the domain's budget, use smaller rings or tables, or let other members leave"
    )]
    Budget {
        /// For what.
        what: &'static str,
        /// Bytes asked for.
        asked: u64,
        /// Bytes left.
        left: u64,
        /// The budget.
        budget: u64,
    },
    /// The member's share.
    #[error(
        "another client of {member} needs {asked} bytes and its share has {left} of {share} left; raise the per-member share or join from fewer processes"
    )]
    Share {
        /// The member.
        member: String,
        /// Bytes asked for.
        asked: u64,
        /// Bytes left.
        left: u64,
        /// The share.
        share: u64,
    },
    /// Clients of the domain.
    #[error("the domain has its {limit} clients; raise its client limit or let others leave")]
    Clients {
        /// The limit.
        limit: u32,
    },
    /// Clients of the member.
    #[error("{member} has its {limit} processes joined; raise the per-member limit or share a client between threads")]
    Processes {
        /// The member.
        member: String,
        /// The limit.
        limit: u32,
    },
    /// Descriptors of the daemon.
    #[error("{asked} more descriptors are needed and the node daemon has {left} left; raise its RLIMIT_NOFILE")]
    Descriptors {
        /// Needed.
        asked: u64,
        /// Left.
        left: u64,
    },
}

/// Who holds what of a domain's budget.
#[derive(Clone, Debug)]
pub struct Books {
    limits: Limits,
    tables: BTreeMap<u32, u64>,
    pool: u64,
    clients: BTreeMap<u64, (Identity, u64)>,
    reserved: u64,
}

impl Books {
    /// Empty books.
    pub fn new(limits: Limits) -> Self {
        Books { limits, tables: BTreeMap::new(), pool: 0, clients: BTreeMap::new(), reserved: 0 }
    }

    /// Books as they were: tables (service index, bytes of one), bytes of the pool, clients with their members and what they hold in
    /// all. Whether that is within the limits was asked when it was admitted.
    pub fn restored(
        limits: Limits,
        tables: impl IntoIterator<Item = (u32, u64)>,
        pool: u64,
        clients: impl IntoIterator<Item = (u64, (Identity, u64))>,
    ) -> Self {
        let mut books = Books { pool, ..Books::new(limits) };
        books.tables.extend(tables);
        books.clients.extend(clients);
        let tables = books
            .tables
            .values()
            .fold(0u64, |sum, bytes| sum.saturating_add(bytes.saturating_mul(books.generations())));
        let clients = books.clients.values().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        books.reserved = tables.saturating_add(pool).saturating_add(clients);
        books
    }

    /// What one table of each service takes.
    pub fn tables(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.tables.iter().map(|(service, bytes)| (*service, *bytes))
    }

    /// What the agents' answer regions for the next joins take.
    pub fn pool(&self) -> u64 {
        self.pool
    }

    /// What a client holds.
    pub fn held_by(&self, client: u64) -> u64 {
        self.clients.get(&client).map_or(0, |(_, bytes)| *bytes)
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes reserved in all.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Clients admitted.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Generations of a region that may live at once.
    fn generations(&self) -> u64 {
        u64::from(self.limits.kept_generations) + 2
    }

    /// Admits tables of these sizes (service index, bytes), all or none; a table that grew replaces its entry.
    pub fn admit_tables(&mut self, tables: &[(u32, u64)]) -> Result<(), Refusal> {
        let each = |bytes: u64| bytes.saturating_mul(self.generations());
        let asked: u64 = tables.iter().map(|t| each(t.1)).sum();
        let before: u64 = tables.iter().filter_map(|t| self.tables.get(&t.0)).map(|b| each(*b)).sum();
        self.within_budget("the domain's tables", asked.saturating_sub(before))?;
        self.reserved = self.reserved + asked - before;
        self.tables.extend(tables.iter().copied());
        Ok(())
    }

    /// Admits the regions that agents, the successor included, keep ready for the next joins: `bytes` in all.
    pub fn admit_pool(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.within_budget("the agents' answer regions for the next joins", bytes.saturating_sub(self.pool))?;
        self.reserved = self.reserved + bytes - self.pool;
        self.pool = bytes;
        Ok(())
    }

    /// Admits a client with regions of these sizes.
    pub fn admit_client(&mut self, client: u64, member: &Identity, c: u64, a: u64) -> Result<(), Refusal> {
        let asked = c.saturating_add(a.saturating_mul(self.generations()));
        if self.clients.len() as u64 >= u64::from(self.limits.clients) {
            return Err(Refusal::Clients { limit: self.limits.clients });
        }
        let (mut processes, mut held) = (0, 0);
        for (_, bytes) in self.clients.values().filter(|(who, _)| who == member) {
            processes += 1;
            held += bytes;
        }
        if processes >= self.limits.member_clients {
            return Err(Refusal::Processes { member: member.name(), limit: self.limits.member_clients });
        }
        let left = self.limits.member_share.saturating_sub(held);
        if asked > left {
            return Err(Refusal::Share { member: member.name(), asked, left, share: self.limits.member_share });
        }
        self.within_budget("another client", asked)?;
        self.reserved += asked;
        self.clients.insert(client, (member.clone(), asked));
        Ok(())
    }

    /// Changes what clients hold, all or none: the client, its C (two of them while it goes over from one to the next) and one of its
    /// A's. Unknown clients are ignored.
    pub fn resize_clients(&mut self, sizes: &[(u64, u64, u64)]) -> Result<(), Refusal> {
        let mut changed = self.clone();
        let mut members = BTreeMap::new();
        for &(client, c, a) in sizes {
            let asked = c.saturating_add(a.saturating_mul(self.generations()));
            let Some((member, held)) = changed.clients.get_mut(&client) else { continue };
            changed.reserved = changed.reserved - *held + asked;
            let more = members.entry(member.clone()).or_insert(0i128);
            *more += i128::from(asked) - i128::from(*held);
            *held = asked;
        }
        for (member, more) in members.into_iter().filter(|(_, more)| *more > 0) {
            let held: u64 = self.clients.values().filter(|(who, _)| *who == member).map(|(_, bytes)| bytes).sum();
            let (asked, share) = (more as u64, self.limits.member_share);
            let left = share.saturating_sub(held);
            if asked > left {
                return Err(Refusal::Share { member: member.name(), asked, left, share });
            }
        }
        if changed.reserved > self.reserved {
            self.within_budget("larger regions for the clients that are there", changed.reserved - self.reserved)?;
        }
        *self = changed;
        Ok(())
    }

    /// Frees what tables of these services held.
    pub fn release_tables(&mut self, services: impl IntoIterator<Item = u32>) {
        for service in services {
            if let Some(bytes) = self.tables.remove(&service) {
                self.reserved -= bytes * self.generations();
            }
        }
    }

    /// Frees what a client held. Unknown clients are ignored.
    pub fn release_client(&mut self, client: u64) {
        if let Some((_, bytes)) = self.clients.remove(&client) {
            self.reserved -= bytes;
        }
    }

    fn within_budget(&self, what: &'static str, asked: u64) -> Result<(), Refusal> {
        let left = self.limits.budget.saturating_sub(self.reserved);
        if asked > left {
            return Err(Refusal::Budget { what, asked, left, budget: self.limits.budget });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Identity {
        Identity { namespace: "shop".into(), pod: name.into(), uid: name.into(), service_account: "default".into() }
    }

    #[test]
    fn refusals_say_what_was_asked_and_what_is_left() {
        let limits = Limits { budget: 1000, member_share: 500, clients: 3, member_clients: 2, kept_generations: 2 };
        let mut books = Books::new(limits);
        books.admit_tables(&[(0, 100)]).unwrap();
        assert_eq!(books.reserved(), 400);
        let refusal = books.admit_client(1, &pod("a"), 200, 100).unwrap_err();
        assert_eq!(refusal, Refusal::Share { member: "shop/a".into(), asked: 600, left: 500, share: 500 });
        books.admit_client(1, &pod("a"), 40, 10).unwrap();
        books.admit_client(2, &pod("a"), 40, 10).unwrap();
        assert!(matches!(books.admit_client(3, &pod("a"), 4, 1), Err(Refusal::Processes { limit: 2, .. })));
        books.admit_client(3, &pod("b"), 40, 10).unwrap();
        assert_eq!(books.admit_client(4, &pod("c"), 4, 1), Err(Refusal::Clients { limit: 3 }));
        books.release_client(2);
        books.release_client(2);
        let refusal = books.admit_client(4, &pod("c"), 100, 100).unwrap_err();
        assert_eq!(refusal, Refusal::Budget { what: "another client", asked: 500, left: 440, budget: 1000 });
        assert!(refusal.to_string().contains("440 of 1000 left"), "{refusal}");
    }

    #[test]
    fn clients_grow_all_or_none() {
        let limits = Limits { budget: 900, member_share: 500, kept_generations: 2, ..Limits::default() };
        let mut books = Books::new(limits);
        for (client, member) in [(1, "a"), (2, "a"), (3, "b")] {
            books.admit_client(client, &pod(member), 100, 10).unwrap();
        }
        assert_eq!(books.reserved(), 420);
        let refusal = books.resize_clients(&[(3, 150, 10), (1, 300, 10), (2, 200, 10)]).unwrap_err();
        assert_eq!(refusal, Refusal::Share { member: "shop/a".into(), asked: 300, left: 220, share: 500 });
        assert!(refusal.to_string().contains("a"), "{refusal}");
        let refusal = books.resize_clients(&[(3, 400, 10), (1, 300, 10), (9, 1 << 40, 0)]).unwrap_err();
        assert!(matches!(refusal, Refusal::Budget { asked: 500, left: 480, .. }), "{refusal}");
        assert_eq!(books.reserved(), 420, "a refused change changes nothing");
        books.resize_clients(&[(1, 200, 20), (2, 150, 10)]).unwrap();
        assert_eq!(books.reserved(), 280 + 190 + 140);
        books.resize_clients(&[(1, 100, 20)]).unwrap();
        books.release_client(1);
        books.release_client(2);
        books.release_client(3);
        assert_eq!(books.reserved(), 0);
        books.admit_tables(&[(0, 100), (1, 50)]).unwrap();
        books.release_tables([1, 7]);
        assert_eq!(books.reserved(), 400);
    }

    #[test]
    fn growth_replaces_and_a_refused_growth_changes_nothing() {
        let mut books = Books::new(Limits { budget: 1000, ..Limits::default() });
        books.admit_tables(&[(0, 100), (1, 50)]).unwrap();
        assert!(books.admit_tables(&[(0, 300)]).is_err());
        assert_eq!(books.reserved(), 600);
        books.admit_tables(&[(0, 200)]).unwrap();
        assert_eq!(books.reserved(), 1000);
        assert!(books.admit_pool(1).is_err());
        books.admit_tables(&[(0, 120)]).unwrap();
        books.admit_client(7, &pod("a"), 10, 1).unwrap();
        books.admit_pool(30).unwrap();
        let clients = [(7, (pod("a"), books.held_by(7)))];
        let again = Books::restored(books.limits(), books.tables(), books.pool(), clients);
        assert_eq!(format!("{again:?}"), format!("{books:?}"), "as they were");
        books.release_client(7);
        books.admit_tables(&[(0, 150)]).unwrap();
        books.admit_pool(200).unwrap();
        books.admit_pool(150).unwrap();
        assert_eq!(books.reserved(), 950);
    }
}
