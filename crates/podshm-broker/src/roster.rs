//! A domain's clients, and which of them may have changed since they were written down.

use crate::clients::Client;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

/// Clients by their numbers. Whoever gets one for writing leaves a mark, so that no commit looks at those that nothing happened to.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    all: BTreeMap<u64, Client>,
    touched: BTreeSet<u64>,
}

impl Deref for Roster {
    type Target = BTreeMap<u64, Client>;

    fn deref(&self) -> &BTreeMap<u64, Client> {
        &self.all
    }
}

impl Roster {
    pub(crate) fn get_mut(&mut self, id: &u64) -> Option<&mut Client> {
        let client = self.all.get_mut(id)?;
        self.touched.insert(*id);
        Some(client)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&u64, &mut Client)> {
        self.touched.extend(self.all.keys());
        self.all.iter_mut()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Client> {
        self.iter_mut().map(|(_, client)| client)
    }

    pub(crate) fn insert(&mut self, id: u64, client: Client) {
        self.touched.insert(id);
        self.all.insert(id, client);
    }

    pub(crate) fn remove(&mut self, id: &u64) -> Option<Client> {
        self.touched.insert(*id);
        self.all.remove(id)
    }

    /// Something that is written down with the client, and kept elsewhere, has changed.
    pub(crate) fn touch(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.touched.extend(ids);
    }

    /// Those that may have changed, or are gone, since [`Roster::written`].
    pub(crate) fn touched(&self) -> &BTreeSet<u64> {
        &self.touched
    }

    /// All is written down as it is.
    pub(crate) fn written(&mut self) {
        self.touched.clear();
    }
}
