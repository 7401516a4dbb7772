//! Many objects that are held elsewhere too: a controller's stores have a whole cluster's pods, and a world of theirs has no second copy.
//! Read as if they were here; what is changed here is changed nowhere else.

use std::collections::BTreeMap;
use std::ops::Index;
use std::sync::Arc;

/// Objects of a kind, in no order.
#[derive(Clone, Debug, PartialEq)]
pub struct All<K>(Vec<Arc<K>>);

/// Objects of a kind, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct ByName<K>(BTreeMap<String, Arc<K>>);

impl<K> Default for All<K> {
    fn default() -> Self {
        All(Vec::new())
    }
}

impl<K> Default for ByName<K> {
    fn default() -> Self {
        ByName(BTreeMap::new())
    }
}

impl<K> All<K> {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(Arc::as_ref)
    }

    /// One more.
    pub fn push(&mut self, one: K) {
        self.0.push(Arc::new(one));
    }

    /// Without the last one.
    pub fn pop(&mut self) -> Option<Arc<K>> {
        self.0.pop()
    }

    /// Without those that `stays` is false of.
    pub fn retain(&mut self, mut stays: impl FnMut(&K) -> bool) {
        self.0.retain(|one| stays(one));
    }
}

impl<K: Clone> All<K> {
    /// Each of them, to be changed; one that is held elsewhere is copied.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut K> {
        self.0.iter_mut().map(Arc::make_mut)
    }
}

impl<K> ByName<K> {
    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&K> {
        self.0.get(name).map(Arc::as_ref)
    }

    /// All names, sorted.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &String> {
        self.0.keys()
    }

    /// Each of them, sorted by name.
    pub fn values(&self) -> impl Iterator<Item = &K> {
        self.0.values().map(Arc::as_ref)
    }

    /// Each of them with its name, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &K)> {
        self.0.iter().map(|(name, one)| (name, one.as_ref()))
    }

    /// Whether there is one of this name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more, in place of the one that had its name.
    pub fn insert(&mut self, name: String, one: K) {
        self.0.insert(name, Arc::new(one));
    }

    /// Without the one of this name.
    pub fn remove(&mut self, name: &str) -> Option<Arc<K>> {
        self.0.remove(name)
    }
}

impl<K: Clone> ByName<K> {
    /// The one of this name, to be changed; if it is held elsewhere it is copied.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut K> {
        self.0.get_mut(name).map(Arc::make_mut)
    }

    /// Each of them, to be changed; one that is held elsewhere is copied.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut K> {
        self.0.values_mut().map(Arc::make_mut)
    }
}

impl<K> Index<&str> for ByName<K> {
    type Output = K;

    fn index(&self, name: &str) -> &K {
        &self.0[name]
    }
}

impl<K> FromIterator<Arc<K>> for All<K> {
    fn from_iter<I: IntoIterator<Item = Arc<K>>>(all: I) -> Self {
        All(all.into_iter().collect())
    }
}

impl<K> FromIterator<(String, Arc<K>)> for ByName<K> {
    fn from_iter<I: IntoIterator<Item = (String, Arc<K>)>>(all: I) -> Self {
        ByName(all.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_elsewhere_is_shared_until_it_is_changed_and_is_as_it_was_there() {
        let held: Vec<Arc<String>> = ["a", "b"].map(|name| Arc::new(name.to_owned())).into();
        let mut all: All<String> = held.iter().cloned().collect();
        let mut named: ByName<String> = held.iter().map(|one| (one.to_string(), one.clone())).collect();
        assert!(held.iter().zip(all.iter()).all(|(there, here)| std::ptr::eq(there.as_ref(), here)), "no copy is made");
        assert!(std::ptr::eq(held[1].as_ref(), &named["b"]), "no copy is made");
        all.iter_mut().for_each(|one| one.push('!'));
        named.get_mut("a").unwrap().push('?');
        assert_eq!(all.iter().collect::<Vec<_>>(), ["a!", "b!"]);
        assert_eq!(named.values().collect::<Vec<_>>(), ["a?", "b"]);
        assert_eq!(held.iter().map(|one| one.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }
}
