//! The end of waiting: everybody is back, or had the time to be.

use crate::agents::pool_bytes;
use crate::regions::ConnId;
use crate::state::State;
use podshm_layout::step::{self, Step};
use podshm_proto::Services;
use std::time::{Duration, Instant};

impl State {
    /// Whether nobody may take over yet: somebody who is expected back has a part in it.
    pub(crate) fn waits_for_returns(&self, successor: ConnId) -> bool {
        let Some(domain) = self.home(successor).filter(|_| self.expecting_until.is_some()) else { return false };
        domain.absent_agent.is_some() || domain.clients.values().any(|c| c.absent)
    }

    /// Nobody could come, and no domain could be added, while this process did not run: that time does not count.
    pub(crate) fn expect_longer(&mut self, unseen: Duration) {
        self.expecting_until = self.expecting_until.map(|(until, at_last)| (until + unseen, at_last + unseen));
    }

    /// Ends the waiting where there is nothing more to wait for, or the time is over. While participants have messages here that are not
    /// read, as where this process was stopped, it goes on for as long again.
    pub(crate) fn check_returns(&mut self, now: Instant, is_quiet: bool) {
        let Some((until, at_last)) = self.expecting_until else { return };
        let until = if is_quiet { until } else { at_last };
        let awaits_one =
            self.domains.values().any(|d| d.absent_agent.is_some() || d.clients.values().any(|c| c.absent));
        let awaits = awaits_one || !self.restored.domains.is_empty() || self.regions.absent().next().is_some();
        if awaits && now < until {
            return;
        }
        self.expecting_until = None;
        for name in self.domains.keys().cloned().collect::<Vec<_>>() {
            self.give_up_absent(&name);
        }
        if let Some((name, _)) = self.restored.domains.first_key_value() {
            tracing::warn!(
                domain = name,
                domains = self.restored.domains.len(),
                "domains of the broker before this one were not added again"
            );
        }
        self.free_unclaimed();
        for id in std::mem::take(&mut self.restored).regions.into_keys() {
            self.regions.forget_half_joined(id);
        }
        step::at(Step::RejoinSettled);
        for name in self.domains.keys().cloned().collect::<Vec<_>>() {
            self.go_on_after_returns(&name);
        }
    }

    fn give_up_absent(&mut self, name: &str) {
        let Some(domain) = self.domains.get_mut(name) else { return };
        if domain.absent_agent.take().is_some() {
            tracing::warn!(domain = name, "the agent has not come back; a successor goes on without it");
            domain.passed_over = true;
        }
        if domain.agent.is_none() {
            domain.clients.values_mut().for_each(|c| c.vouched = false);
        }
        let here = |id: u64| self.regions.at(id).is_some_and(|held| held.is_here());
        let away: Vec<(u64, String, bool, bool)> = domain
            .clients
            .iter()
            .filter(|(_, c)| c.conn.is_none() && !(c.vouched && here(c.region)))
            .map(|(id, c)| (*id, c.member.name(), c.absent, here(c.region)))
            .collect();
        for (id, member, absent, here) in away {
            if !here {
                tracing::warn!(
                    domain = name,
                    member,
                    client = id,
                    "nobody has presented this client's region; it is out of the books"
                );
                self.forget_client(name, id);
            } else if absent {
                tracing::warn!(
                    domain = name,
                    member,
                    client = id,
                    "client has not come back; it is taken for gone and drained"
                );
                self.client_gone(name, id);
            }
        }
    }

    /// Frees what nobody has presented, and names it.
    fn free_unclaimed(&mut self) {
        let absent: Vec<(u64, String, u64)> =
            self.regions.absent().map(|held| (held.region.id, held.owner.domain.clone(), held.region.bytes)).collect();
        for (id, name, bytes) in absent {
            tracing::warn!(
                domain = name,
                region = id,
                bytes,
                "nobody has presented this region; it is out of the books"
            );
            if let Some(domain) = self.domains.get_mut(&name) {
                domain.unclaimed += 1;
                domain.tables.retain(|_, table| *table != id);
                for client in domain.clients.values_mut() {
                    client.lost |= [client.answer, client.before].contains(&Some(id));
                    for part in [&mut client.answer, &mut client.before, &mut client.shown] {
                        part.take_if(|part| *part == id);
                    }
                    client.next.take_if(|next| next.region == id);
                }
            }
            self.regions.unwant(id);
        }
        self.regions.stop_expecting();
    }

    fn go_on_after_returns(&mut self, name: &str) {
        let Some(domain) = self.domains.get_mut(name) else { return };
        let (agent, successor) = (domain.agent, domain.successor);
        if successor.is_none() {
            // What was booked for one that has not come back.
            let known = domain.services.as_ref().map_or(0, Services::count);
            let more: Vec<u32> = domain.books.tables().map(|(s, _)| s).filter(|s| *s as usize >= known).collect();
            domain.books.release_tables(more);
            let pool = domain.services.as_ref().map_or(0, pool_bytes);
            let _ = domain.books.admit_pool(pool.min(domain.books.pool())); // no more than it was
        }
        self.settle_books_of(name);
        if let Some(agent) = agent {
            // Those who were not back in time to be given to it are drained by it all the same.
            self.adopt_unserved(agent);
            self.serve_waiting(agent);
        }
        self.go_on_moving(name);
    }

    /// Nobody has heard of the agent. Where every client is back and says that its doorbell has hung up, it is dead.
    pub(super) fn agent_may_be_dead(&mut self, name: &str) {
        let Some(domain) = self.domains.get_mut(name) else { return };
        let mut clients = domain.clients.values().filter(|c| c.left.is_none()).peekable();
        let is_dead = clients.peek().is_some() && clients.all(|c| !c.absent && c.says_hung_up);
        if is_dead && domain.absent_agent.take().is_some() {
            tracing::info!(domain = name, "the agent died while the broker was away");
            if let Some(successor) = domain.successor {
                self.take_over_if_possible(successor);
            }
        }
    }

    /// The agent that vouched for clients which have not come back serves no more: what they left is drained by the next.
    pub(crate) fn give_up_vouched(&mut self, name: &str) {
        let is_early = self.expecting_until.is_some();
        let Some(domain) = self.domains.get_mut(name) else { return };
        if is_early {
            // They may be on their way back.
            return domain.clients.values_mut().for_each(|c| c.vouched = false);
        }
        let vouched: Vec<u64> = domain.clients.iter().filter(|(_, c)| c.vouched).map(|(id, _)| *id).collect();
        for id in vouched {
            self.client_gone(name, id);
        }
    }
}
