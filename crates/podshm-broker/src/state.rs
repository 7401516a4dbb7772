//! Everything that the broker knows, and what each message means.

use crate::BrokerError;
use crate::agents::{AgentState, Knocking};
use crate::connections::{Connection, Role};
use crate::descriptors;
use crate::ledger::{Entries, Ledger};
use crate::left_state::LeftState;
use crate::regions::{ConnId, RegionBook};
use crate::roster::Roster;
use podshm_domain::{Books, Identity, Limits, Refusal, Spoken};
use podshm_layout::geometry::{NOTICE_AGENT_EPOCH, NOTICE_TABLES};
use podshm_layout::mem::Store;
use podshm_layout::sync::Ordering;
use podshm_layout::{LAYOUT_OLDEST, PAGE, RegionKind};
use podshm_proto::{Hello, PROTOCOL, PROTOCOL_OLDEST, RefusalKind, Region, Services, Up};
use podshm_region::{Memory, Window, WriteMap};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A domain to be served.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// Its name.
    pub name: String,
    /// Its limits.
    pub limits: Limits,
    /// How long a dead client's records wait for an agent before they are discarded, and counted.
    pub drain_grace: Duration,
    /// How long an agent that was asked to close may take before its successor goes on without it.
    pub close_grace: Duration,
    /// How long a participant may take to map what it was given.
    pub map_deadline: Duration,
    /// How long a successor waits for room that clients are about to give, where the budget is full.
    pub room_grace: Duration,
}

impl DomainConfig {
    /// A domain with default limits: 60 s drain grace, 5 s close grace, 5 s to map, 1 s for room.
    pub fn new(name: &str) -> Self {
        DomainConfig {
            name: name.to_owned(),
            limits: Limits::default(),
            drain_grace: Duration::from_secs(60),
            close_grace: Duration::from_secs(5),
            map_deadline: Duration::from_secs(5),
            room_grace: Duration::from_secs(1),
        }
    }
}

/// What a domain holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainStats {
    /// The agent's epoch: how many agents have served so far.
    pub epoch: u64,
    /// Whether an agent serves now.
    pub agent: bool,
    /// Whether another is to serve next, and what it waits for.
    pub successor: Option<SuccessorWaits>,
    /// For how long it has been waiting.
    pub successor_for: Option<Duration>,
    /// Joins that wait for an agent.
    pub waiting: usize,
    /// Clients, dead ones that are not drained included.
    pub clients: Vec<ClientStats>,
    /// The memory layout that the next region is written at: the newest that all participants speak.
    pub layout: u32,
    /// Bytes reserved of the budget, successors included.
    pub reserved: u64,
    /// Bytes of this domain's regions that are alive in the broker.
    pub domain_bytes: u64,
    /// Bytes of regions alive in the broker, all domains.
    pub region_bytes: u64,
    /// Most bytes of regions that were ever alive in the broker, all domains.
    pub region_bytes_peak: u64,
    /// Regions alive in the broker, all domains.
    pub regions: usize,
    /// Joins refused.
    pub refused: u64,
    /// Those of them that this broker has refused itself, by kind: not what it was told by brokers before it.
    pub refused_by: BTreeMap<RefusalKind, u64>,
    /// Clients whose records were discarded after the drain grace.
    pub discarded: u64,
    /// Participants whose process died while somebody kept their socket open: noticed late, treated as gone.
    pub held_open: u64,
    /// Bytes of this domain's regions that brokers before this one have made: they are charged to where those ran.
    pub inherited_bytes: u64,
    /// Regions that nobody presented in time after a restart of the broker: out of the books, wherever they may be held.
    pub unclaimed: u64,
    /// Participants that are expected back after a restart of the broker.
    pub expected: usize,
}

/// What an agent that is to serve next waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuccessorWaits {
    /// It has yet to map its regions and fill its tables.
    Ready,
    /// Participants that are expected back after a restart of the broker.
    Returns,
    /// Its tables are being written at another layout.
    Tables,
    /// Clients are going over to regions that it reads.
    Moves,
    /// It has yet to map regions for the clients.
    Answers,
    /// The one that serves was asked to close.
    Close,
    /// Clients have yet to let go of older regions: what it begins with would not fit into the budget.
    Room,
}

/// One client of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStats {
    /// Its number.
    pub client: u64,
    /// namespace/pod.
    pub member: String,
    /// Its process is connected.
    pub connected: bool,
    /// It keeps as many old generations as it may and gets no newer one until it lets go.
    pub stale: bool,
    /// For how long it has been dead, with records that no agent has drained.
    pub left_for: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) config: DomainConfig,
    pub(crate) books: Books,
    pub(crate) services: Option<Services>,
    pub(crate) epoch: u64,
    pub(crate) agent: Option<ConnId>,
    pub(crate) successor: Option<ConnId>,
    /// One that is to be the successor once there is room for what it begins with.
    pub(crate) knocking: Option<Knocking>,
    pub(crate) agents: BTreeMap<ConnId, AgentState>,
    /// Service index to region: the tables that joins get.
    pub(crate) tables: BTreeMap<usize, u64>,
    pub(crate) table_generation: u64,
    pub(crate) clients: Roster,
    pub(crate) waiting: VecDeque<ConnId>,
    pub(crate) last_client: u64,
    pub(crate) last_place: u64,
    pub(crate) refused: u64,
    pub(crate) refused_by: BTreeMap<RefusalKind, u64>,
    pub(crate) discarded: u64,
    pub(crate) held_open: u64,
    /// What the last agent that closed in order left to its successor.
    pub(crate) left_state: LeftState,
    /// The agent that served when the broker was started anew, until it is back or has been given up.
    pub(crate) absent_agent: Option<(Identity, Spoken)>,
    /// An agent was given up without anybody having heard its end: it may be at work on one batch even now.
    pub(crate) passed_over: bool,
    pub(crate) notice_generation: u64,
    pub(crate) unclaimed: u64,
    notice: Memory,
    notice_page: Window,
}

impl Domain {
    pub(crate) fn new(config: DomainConfig) -> Result<Self, BrokerError> {
        Self::with_notice(config, 0)
    }

    pub(crate) fn with_notice(config: DomainConfig, notice_generation: u64) -> Result<Self, BrokerError> {
        let notice = Memory::create("podshm-notice", PAGE as u64)?;
        let mut map = WriteMap::map(&notice)?;
        map.touch()?;
        let notice_page = map.window(0, PAGE);
        // It is there before anybody else, so it is written for everybody.
        let (kind, layout) = (RegionKind::Notice as u32, LAYOUT_OLDEST);
        let region = Region { kind, generation: notice_generation, bytes: PAGE as u64, layout, ..Region::default() };
        if let Some(header) = region.header() {
            header.write(&notice_page);
        }
        // The broker is this page's one writer; nobody else ever has it writable.
        notice.seal()?;
        Ok(Domain {
            books: Books::new(config.limits),
            config,
            services: None,
            epoch: 0,
            agent: None,
            successor: None,
            knocking: None,
            agents: BTreeMap::new(),
            tables: BTreeMap::new(),
            table_generation: 0,
            clients: Roster::default(),
            waiting: VecDeque::new(),
            last_client: 0,
            last_place: 0,
            refused: 0,
            refused_by: BTreeMap::new(),
            discarded: 0,
            held_open: 0,
            left_state: LeftState::default(),
            absent_agent: None,
            passed_over: false,
            notice_generation,
            unclaimed: 0,
            notice,
            notice_page,
        })
    }

    /// Whether an agent that has not closed may still be at work on one batch.
    pub(crate) fn is_passed_over(&self) -> bool {
        self.passed_over || self.agents.values().any(|agent| agent.forced)
    }

    pub(crate) fn notice(&self) -> Result<OwnedFd, podshm_region::RegionError> {
        Ok(self.notice.try_clone()?.into_fd())
    }

    /// Whether the broker can open so many more descriptors.
    pub(crate) fn has_descriptors(&self, asked: usize) -> Result<(), Refusal> {
        descriptors::room(&self.notice, asked)
    }

    /// Release: whoever sees the new epoch also sees what the broker did before.
    pub(crate) fn publish_epoch(&self) {
        self.notice_page.store(NOTICE_AGENT_EPOCH, self.epoch, Ordering::Release);
    }

    pub(crate) fn publish_table(&self, service: usize, generation: u64) {
        self.notice_page.store(NOTICE_TABLES + service * 8, generation, Ordering::Release);
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) domains: BTreeMap<String, Domain>,
    pub(crate) connections: BTreeMap<ConnId, Connection>,
    pub(crate) regions: RegionBook,
    /// None where the broker leaves nothing to a successor.
    pub(crate) ledger: Option<Ledger>,
    /// Since when it can't be written.
    pub(crate) unwritten: Option<Instant>,
    /// What the ledger says of domains that were not added again yet.
    pub(crate) restored: Entries,
    /// Regions that the broker before this one has passed on.
    pub(crate) passed: BTreeMap<u64, Memory>,
    /// Until when participants of the broker before this one may come back, and until when at the latest.
    pub(crate) expecting_until: Option<(Instant, Instant)>,
}

impl State {
    /// One message of one connection.
    pub(crate) fn message(&mut self, conn: ConnId, message: Up) {
        let Some(connection) = self.connections.get(&conn) else {
            return;
        };
        match (&connection.role, message) {
            (Role::New, Up::Hello(hello)) => self.hello(conn, hello),
            (Role::New, _) => self.reject(conn, RefusalKind::Protocol, "the first message must be a hello"),
            (_, Up::Hello(_)) => self.reject(conn, RefusalKind::Protocol, "a second hello; open another connection"),
            (_, Up::Bye(_)) => self.end(conn),
            (_, Up::Release(released)) => {
                for id in &released.ids {
                    self.rewrite_declined(conn, *id);
                    self.regions.drop_holder(*id, conn);
                }
                self.agent_released(conn, &released.ids);
                self.catch_up(conn);
                if let Some(name) = self.connections.get(&conn).map(|c| c.domain.clone()) {
                    self.previous_released(&name, &released.ids);
                    self.answer_knock(&name);
                }
            }
            (Role::Returning(_), Up::Present(present)) => self.present(conn, &present),
            (Role::Returning(_), Up::Presented(_)) => self.presented(conn),
            (Role::Agent, Up::HungUp(id)) => self.hung_up(conn, id.client),
            (Role::Client(client), Up::Mapped(ids)) => self.client_mapped(conn, *client, &ids.ids),
            (Role::Client(client), Up::Moved(ids)) => self.client_moved(conn, *client, &ids.ids),
            (Role::Agent, Up::Taken(ids)) => self.taken(conn, &ids.ids),
            (Role::Agent, Up::Mapped(ids)) => self.agent_mapped(conn, &ids.ids),
            (Role::Agent, Up::Ready(_)) => self.agent_ready(conn),
            (Role::Agent, Up::Grow(grow)) => self.grow(conn, grow),
            (Role::Agent, Up::Publish(publish)) => self.publish(conn, publish.region),
            (Role::Agent, Up::Closed(closed)) => self.agent_closed(conn, closed.state),
            (Role::Agent, Up::Drained(id)) => self.drained(conn, id.client),
            (_, message) => {
                let reason = format!("message {message:?} is not one that this participant may send now");
                self.reject(conn, RefusalKind::Protocol, reason);
            }
        }
    }

    fn hello(&mut self, conn: ConnId, hello: Hello) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if hello.protocol_oldest > PROTOCOL || hello.protocol_newest < PROTOCOL_OLDEST {
            let reason = format!(
                "{} speaks protocol {} to {}, this broker {PROTOCOL_OLDEST} to {PROTOCOL}; upgrade the older of the two",
                hello.software, hello.protocol_oldest, hello.protocol_newest
            );
            return self.reject(conn, RefusalKind::Version, reason);
        }
        // It is shown to others: no more of it than a name needs.
        connection.software = hello.software.chars().filter(|c| !c.is_control()).take(64).collect();
        connection.protocol = hello.protocol_newest.min(PROTOCOL);
        connection.layouts = Spoken { oldest: hello.layout_oldest, newest: hello.layout_newest };
        let (rights, name, domain) = (connection.rights, connection.who.name(), connection.domain.clone());
        if hello.agent && !rights.serve {
            let reason = format!("{name} may not serve domain {domain}; add it to the domain's agents");
            return self.reject(conn, RefusalKind::NotAllowed, reason);
        }
        if !hello.agent && !rights.join {
            let reason = format!("{name} may not join domain {domain}; add it to the domain's members");
            return self.reject(conn, RefusalKind::NotAllowed, reason);
        }
        if let Err((kind, reason)) = self.check_layouts(conn) {
            return self.reject(conn, kind, reason);
        }
        if self.connections.get(&conn).is_some_and(|c| c.is_one_too_many) {
            return self.reject(conn, RefusalKind::OverLimit, Refusal::Descriptors { asked: 1, left: 0 });
        }
        if let Some(rejoin) = hello.rejoin {
            self.rejoin_hello(conn, hello.agent, rejoin, hello.services);
        } else if hello.agent {
            self.agent_hello(conn, hello.services);
        } else {
            self.client_hello(conn);
        }
    }

    /// Says no and ends the connection once that is sent.
    pub(crate) fn reject(&mut self, conn: ConnId, kind: RefusalKind, reason: impl ToString) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.refuse(kind, reason);
        connection.ending = true;
        if let Some(domain) = self.domains.get_mut(&connection.domain) {
            domain.refused += 1;
            *domain.refused_by.entry(kind).or_default() += 1;
        }
    }

    /// The participant is gone, in order or not: everything that it held is released.
    pub(crate) fn end(&mut self, conn: ConnId) {
        // Its last words.
        self.commit();
        let Some(connection) = self.connections.remove(&conn) else {
            return;
        };
        self.regions.drop_everything_of(conn);
        match connection.role {
            Role::New | Role::Returning(_) => {}
            Role::Knocking => {
                if let Some(domain) = self.domains.get_mut(&connection.domain) {
                    domain.knocking.take_if(|knocking| knocking.conn == conn);
                }
            }
            Role::Waiting => {
                if let Some(domain) = self.domains.get_mut(&connection.domain) {
                    domain.waiting.retain(|c| *c != conn);
                }
            }
            Role::Client(client) => self.client_gone(&connection.domain, client),
            Role::Agent => self.agent_gone(&connection.domain, conn),
        }
        self.answer_knock(&connection.domain);
        self.commit();
    }

    /// A domain ends that nobody has.
    pub(crate) fn end_domain(&mut self, name: &str) -> Result<(), BrokerError> {
        let domain = self.domains.get(name).ok_or_else(|| BrokerError::NoDomain { found: name.to_owned() })?;
        let connected = self.connections.values().filter(|connection| connection.domain == name).count();
        let tables: Vec<u64> = domain.tables.values().copied().collect();
        let of_tables = tables.iter().filter_map(|id| self.regions.at(*id)).map(|held| held.region.bytes).sum::<u64>();
        let held = self.regions.domain_bytes(name).saturating_sub(of_tables);
        let by = match (connected, domain.absent_agent.is_some(), domain.clients.len(), held) {
            (0, false, 0, 0) => None,
            (0, false, 0, held) => Some(format!("{held} bytes of regions are held")),
            (0, false, clients, _) => Some(format!("{clients} clients are not drained, or expected back")),
            (0, true, ..) => Some("its agent is expected back".to_owned()),
            (connected, ..) => Some(format!("{connected} participants are connected")),
        };
        if let Some(by) = by {
            return Err(BrokerError::InUse { found: name.to_owned(), by });
        }
        tables.into_iter().for_each(|id| self.regions.unwant(id));
        self.domains.remove(name);
        Ok(())
    }

    /// The domain that a participant belongs to.
    pub(crate) fn home(&self, conn: ConnId) -> Option<&Domain> {
        self.domains.get(&self.connections.get(&conn)?.domain)
    }

    /// [`State::home`], to change it.
    pub(crate) fn domain_of(&mut self, conn: ConnId) -> Option<&mut Domain> {
        let connection = self.connections.get(&conn)?;
        self.domains.get_mut(&connection.domain)
    }

    pub(crate) fn stats(&self, name: &str) -> Option<DomainStats> {
        let domain = self.domains.get(name)?;
        let clients = domain.clients.iter().map(|(id, client)| ClientStats {
            client: *id,
            member: client.member.name(),
            connected: client.conn.is_some(),
            stale: client.stale,
            left_for: client.left.map(|left| left.elapsed()),
        });
        let (successor, knocking) =
            (domain.successor.and_then(|conn| domain.agents.get(&conn)), domain.knocking.as_ref());
        Some(DomainStats {
            epoch: domain.epoch,
            agent: domain.agent.is_some(),
            successor: successor.map(|agent| agent.waits).or(knocking.map(|_| SuccessorWaits::Room)),
            successor_for: successor
                .map(|agent| agent.since)
                .or(knocking.map(|k| k.since))
                .map(|since| since.elapsed()),
            waiting: domain.waiting.len(),
            clients: clients.collect(),
            layout: self.meeting(domain, None).layout().number(),
            reserved: domain.books.reserved(),
            domain_bytes: self.regions.domain_bytes(name),
            region_bytes: self.regions.bytes(),
            region_bytes_peak: self.regions.peak(),
            regions: self.regions.count(),
            refused: domain.refused,
            refused_by: domain.refused_by.clone(),
            discarded: domain.discarded,
            held_open: domain.held_open,
            inherited_bytes: self.regions.inherited_bytes(name),
            unclaimed: domain.unclaimed,
            expected: domain.clients.values().filter(|c| c.absent).count() + usize::from(domain.absent_agent.is_some()),
        })
    }
}
