//! All clients of an agent: the hot ones, which are polled, and the cold ones, which sleep on their doorbells.

use super::client::AgentClient;
use podshm_layout::step::{self, Step};
use podshm_layout::sync::{Ordering, fence};
use podshm_region::barrier;
use std::collections::HashMap;

/// Clients in slots that stay put, so that a round over the hot ones looks nothing up.
#[derive(Debug, Default)]
pub(super) struct Clients {
    slots: Vec<Option<AgentClient>>,
    free: Vec<usize>,
    by_id: HashMap<u64, usize>,
    hot: Vec<usize>,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn hot(&self) -> &[usize] {
        &self.hot
    }

    #[inline(always)]
    pub(super) fn hot_at(&mut self, at: usize) -> Option<&mut AgentClient> {
        let slot = *self.hot.get(at)?;
        self.slots[slot].as_mut()
    }

    /// A new client is hot.
    pub(super) fn insert(&mut self, client: AgentClient) {
        self.remove(client.id);
        let slot = self.free.pop().unwrap_or(self.slots.len());
        self.by_id.insert(client.id, slot);
        self.hot.push(slot);
        if slot == self.slots.len() {
            self.slots.push(Some(client));
        } else {
            self.slots[slot] = Some(client);
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<AgentClient> {
        let slot = self.by_id.remove(&id)?;
        self.hot.retain(|hot| *hot != slot);
        self.free.push(slot);
        self.slots[slot].take()
    }

    pub(super) fn get(&self, id: u64) -> Option<&AgentClient> {
        self.slots[*self.by_id.get(&id)?].as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut AgentClient> {
        let slot = *self.by_id.get(&id)?;
        self.slots[slot].as_mut()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut AgentClient> {
        self.slots.iter_mut().flatten()
    }

    pub(super) fn clear(&mut self) {
        *self = Clients::default();
    }

    pub(super) fn heat_up(&mut self, id: u64) {
        let Some(&slot) = self.by_id.get(&id) else { return };
        if let Some(client) = &mut self.slots[slot]
            && !client.hot
        {
            client.heat_up();
            self.hot.push(slot);
        }
    }

    /// Arms every hot client, makes all their processes go through one fence, and looks once more: whoever has something stays
    /// hot. Says whether nobody has.
    pub(super) fn cool_down(&mut self) -> bool {
        if self.hot.is_empty() {
            return true;
        }
        for &slot in &self.hot {
            if let Some(client) = &mut self.slots[slot] {
                client.cool_down();
            }
        }
        // Pairs with the wakers: the full fence with those that fence themselves, the barrier with those that don't.
        fence(Ordering::SeqCst);
        barrier::global();
        step::at(Step::SleepArmed);
        let Clients { slots, hot, .. } = self;
        hot.retain(|slot| slots[*slot].as_mut().is_some_and(|client| !client.stays_cold()));
        hot.is_empty()
    }
}
