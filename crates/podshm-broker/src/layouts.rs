//! Which layout the next region is written at, and what becomes of those that somebody can't read.
//!
//! Nothing is kept here: the participants are asked anew whenever something is to be written. A region that is there keeps its
//! layout for as long as it lives. C and A are a client's own, so a newcomer simply gets his at the layout that all speak; tables
//! are everybody's, so the agent is asked to write those that he can't read once more.

use crate::agents::AgentState;
use crate::regions::ConnId;
use crate::state::{Domain, State};
use podshm_domain::{Meeting, NoMeeting, Spoken};
use podshm_layout::Layout;
use podshm_proto::{RefusalKind, Services};

/// Who has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Broker,
    /// The services: their rings' cursor lines must fit the first page.
    Services,
    Participant(ConnId),
    /// One that is expected back.
    Absent,
}

impl State {
    /// The layout of what `writer` writes next.
    pub(crate) fn next_layout(&self, writer: ConnId) -> Layout {
        self.home(writer).map_or(Layout::OLDEST, |domain| self.meeting(domain, Some(writer)).layout())
    }

    /// Where everybody meets for what `writer` (or the serving agent, or a client) writes next. A successor's regions are never read
    /// by the agent that it replaces, so that one has no say in them.
    pub(crate) fn meeting(&self, domain: &Domain, writer: Option<ConnId>) -> Meeting<Who> {
        let successor_writes = writer.is_some() && writer == domain.successor;
        let agents = [domain.agent.filter(|_| !successor_writes), domain.successor];
        let clients = domain.clients.values().map(|c| c.conn);
        let mut meeting = Meeting::of_broker(Who::Broker);
        let successor = domain.successor.and_then(|conn| domain.agents.get(&conn));
        if let Some(services) = successor.map(AgentState::services).or(domain.services.as_ref()) {
            meeting = meeting.with(Who::Services, reach(services)).unwrap_or(meeting);
        }
        // Each was let in because it meets those before; of those who wait some may not.
        let everybody = agents.into_iter().chain(clients).flatten().chain(domain.waiting.iter().copied());
        let meeting = everybody.fold(meeting, |meeting, conn| self.with(meeting, conn).unwrap_or(meeting));
        // Those who are expected back have their say, too.
        let absent = domain.clients.values().filter(|c| c.absent).map(|c| c.speaks);
        let absent = absent.chain(domain.absent_agent.as_ref().map(|(_, speaks)| *speaks));
        absent.fold(meeting, |meeting, speaks| meeting.with(Who::Absent, speaks).unwrap_or(meeting))
    }

    /// With one more participant.
    fn with(&self, meeting: Meeting<Who>, conn: ConnId) -> Result<Meeting<Who>, NoMeeting<Who>> {
        match self.connections.get(&conn) {
            Some(connection) => meeting.with(Who::Participant(conn), connection.layouts),
            None => Ok(meeting),
        }
    }

    /// Whether a participant who says hello can meet the broker at all.
    pub(crate) fn check_layouts(&self, conn: ConnId) -> Result<(), (RefusalKind, String)> {
        if let Some(c) = self.connections.get(&conn).filter(|c| c.layouts.oldest > c.layouts.newest) {
            let (oldest, newest) = (c.layouts.oldest, c.layouts.newest);
            let reason = format!("memory layout {oldest} to {newest} is no range: expected the oldest first");
            return Err((RefusalKind::Protocol, reason));
        }
        self.with(Meeting::of_broker(Who::Broker), conn).map(drop).map_err(|no| self.refusal(&no))
    }

    /// Whether a client can meet the domain's members; those who only wait don't count.
    pub(crate) fn check_client(&self, domain: &Domain, conn: ConnId) -> Result<(), (RefusalKind, String)> {
        self.members(domain).and_then(|meeting| self.with(meeting, conn)).map(drop).map_err(|no| self.refusal(&no))
    }

    /// Whether an agent can meet the domain's members and offer these services at a layout that it speaks. What it does not read of theirs
    /// is written anew before it takes over.
    pub(crate) fn check_agent(
        &self,
        domain: &Domain,
        conn: ConnId,
        services: &Services,
    ) -> Result<(), (RefusalKind, String)> {
        let meeting = self.members(domain).and_then(|meeting| self.with(meeting, conn));
        let meeting = meeting.and_then(|meeting| meeting.with(Who::Services, reach(services)));
        meeting.map(drop).map_err(|no| self.refusal(&no))
    }

    fn members(&self, domain: &Domain) -> Result<Meeting<Who>, NoMeeting<Who>> {
        let conns = [domain.agent, domain.successor].into_iter().chain(domain.clients.values().map(|c| c.conn));
        conns.flatten().try_fold(Meeting::of_broker(Who::Broker), |meeting, conn| self.with(meeting, conn))
    }

    /// Says no by name.
    fn refusal(&self, no: &NoMeeting<Who>) -> (RefusalKind, String) {
        let newer = self.name_of(no.newer.1);
        let reason = match no.older.1 {
            Who::Services => format!(
                "{newer} speaks no memory layout older than {} and these services have more rings than that one holds; offer fewer, or split the domain",
                no.newer.0
            ),
            older => format!(
                "{newer} speaks memory layout {}, {} {}; upgrade the older of the two",
                self.range_of(no.newer.1),
                self.name_of(older),
                self.range_of(older)
            ),
        };
        (RefusalKind::Version, reason)
    }

    pub(crate) fn name_of(&self, who: Who) -> String {
        match who {
            Who::Broker => "this broker".into(),
            Who::Services => "the domain".into(),
            Who::Absent => "a participant that is expected back".into(),
            Who::Participant(conn) => match self.connections.get(&conn) {
                Some(c) => format!("{} of {}", c.software, c.who.name()),
                None => "a participant that has left".into(),
            },
        }
    }

    fn range_of(&self, who: Who) -> String {
        let speaks = match who {
            Who::Broker | Who::Services | Who::Absent => Some(Spoken::OURS),
            Who::Participant(conn) => self.connections.get(&conn).map(|c| c.layouts),
        };
        speaks.map_or_else(String::new, |s| format!("{} to {}", s.oldest, s.newest))
    }
}

/// The layouts that hold so many rings.
fn reach(services: &Services) -> Spoken {
    let newest = services.newest_layout().map_or(Spoken::OURS.oldest, |layout| layout.number());
    Spoken { oldest: Spoken::OURS.oldest, newest }
}
