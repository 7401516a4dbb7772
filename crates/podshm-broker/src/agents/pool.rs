//! The pool of answer regions that an agent has mapped and that are sealed: what joins and take-overs draw from.

use super::SPARE;
use crate::regions::ConnId;
use crate::state::State;
use podshm_domain::Refusal;
use podshm_layout::RegionKind;
use podshm_proto::{Down, Region, RegionIds, Written};
use std::collections::VecDeque;

/// Regions in one message: what an agent maps before it looks at what else there is to do.
pub(super) const AT_ONCE: usize = 64;

impl State {
    /// So many answer regions for this agent to map, of the layout that everybody reads now.
    pub(super) fn new_answers(&mut self, conn: ConnId, count: usize) -> Vec<Region> {
        let layout = self.next_layout(conn);
        let Some(domain) = self.domain_of(conn) else { return Vec::new() };
        let Some(offered) = domain.agents.get(&conn).map(|agent| &agent.services) else { return Vec::new() };
        let first = domain.last_place + 1;
        domain.last_place += count as u64;
        let (kind, services) = (RegionKind::Agent as u32, offered.count() as u32);
        let region = |place| {
            let bytes = offered.channel(0, place, Written::both(layout)).map_or(0, |g| g.agent_bytes);
            Region { kind, generation: 1, bytes, owner: place, layout: layout.number(), services, ..Region::default() }
        };
        (first..=domain.last_place).map(region).collect()
    }

    /// Takes an answer region that everybody reads from the serving agent's pool. Call [`State::top_up`] when the client that
    /// gets it waits for nothing more.
    pub(crate) fn take_answer(&mut self, agent: ConnId) -> Option<u64> {
        self.sort_out(agent);
        self.agent_state(agent)?.pool.pop_front()
    }

    /// Discards what lies in the pool at a layout that somebody does not speak.
    pub(crate) fn sort_out(&mut self, agent: ConnId) {
        let Some(domain) = self.home(agent) else { return };
        let Some(state) = domain.agents.get(&agent) else { return };
        let meeting = self.meeting(domain, Some(agent));
        let suits = |id: &u64| self.regions.at(*id).is_some_and(|held| meeting.suits(held.region.layout));
        let (good, bad): (VecDeque<u64>, VecDeque<u64>) = state.pool.iter().copied().partition(suits);
        if bad.is_empty() {
            return;
        }
        if let Some(state) = self.agent_state(agent) {
            state.pool = good;
        }
        for id in bad {
            self.discard_answer(agent, id);
        }
    }

    /// An answer region that no client has seen goes back to the pool.
    pub(crate) fn give_answer_back(&mut self, agent: ConnId, id: u64) {
        if let Some(agent) = self.agent_state(agent) {
            agent.pool.push_front(id);
        }
    }

    /// An answer region that a client may have mapped can't be given to another one.
    pub(crate) fn discard_answer(&mut self, agent: ConnId, id: u64) {
        self.regions.unwant(id);
        if self.regions.is_held_by(id, agent)
            && let Some(connection) = self.connections.get_mut(&agent)
        {
            connection.send(Down::Drop(RegionIds { ids: vec![id] }), Vec::new());
        }
    }

    /// Clients that left while this agent waited for its turn have their answer regions in its pool.
    pub(super) fn trim(&mut self, conn: ConnId) {
        let Some(agent) = self.agent_state(conn) else {
            return;
        };
        let surplus = agent.pool.split_off(agent.pool.len().min(SPARE));
        for id in surplus {
            self.discard_answer(conn, id);
        }
    }

    /// Asks the agent for answer regions for the clients that it has yet to be given, some at a time: it serves in between.
    pub(super) fn ask_for_answers(&mut self, conn: ConnId) {
        let Some(domain) = self.home(conn) else { return };
        let unserved = self.unserved(domain, conn).len();
        let Some(agent) = domain.agents.get(&conn) else { return };
        let out = agent.unmapped.len();
        let due = (unserved + SPARE).saturating_sub(agent.pool.len() + out).min((2 * AT_ONCE).saturating_sub(out));
        if unserved > 0 && due > 0 && domain.has_descriptors(2 * due).is_ok() {
            let wanted = self.new_answers(conn, due);
            self.send_for_writing(conn, wanted);
        }
        let _ = self.top_up(conn); // tried again when the next one is wanted
    }

    /// Asks the agent for more answer regions when few are left; refuses where the broker has no descriptors for them.
    pub(crate) fn top_up(&mut self, conn: ConnId) -> Result<(), Refusal> {
        let Some(agent) = self.agent_state(conn) else {
            return Ok(());
        };
        let ready = agent.pool.len() + agent.unmapped.len();
        if ready < SPARE.div_ceil(2) {
            // Each twice: to keep and to send.
            self.home(conn).map_or(Ok(()), |domain| domain.has_descriptors(2 * (SPARE - ready)))?;
            let wanted = self.new_answers(conn, SPARE - ready);
            self.send_for_writing(conn, wanted);
        }
        Ok(())
    }
}
