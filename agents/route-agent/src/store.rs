//! Slices to routes: what the cluster says, and what of it changed.
//!
//! ```text
//! slices of a service          routes of the service
//!  cart-a  http, grpc ──┐        shop/cart:http  ← endpoints of a and b, each once
//!  cart-b  http ────────┴─▶      shop/cart:grpc  ← endpoints of a
//! ```
//! - Several slices are merged, IPv4 and IPv6 alike. An endpoint that two slices hold (the controller may move it, the
//!   API asks consumers to bear it) counts once: what the newer slice says, at the same version the more ready.
//! - A route exists while a slice of its service lists its port, even with no endpoint. A service whose last endpoint
//!   goes gets a slice without ports from the controller; its routes are then removed.
//! - An event that is not newer than what is held (or than the slice's deletion) changes nothing. A list replaces
//!   everything, older or not: the API server's state is the truth after a watch was lost. Only a slice that couldn't be
//!   parsed keeps its last good version, and a list that broke off removes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use route_client::{
    FULL_WEIGHT, KeyError, RouteKey,
    wire::{Address, Endpoint, encode},
};

use crate::slices::{List, Slice, SliceName, WatchEvent};

/// How many deletions are remembered against stale events.
const MAX_TOMBSTONES: usize = 4096;

/// Who says how much of the work an endpoint gets.
pub trait Weights {
    /// The weight of an endpoint in a route; 0 is ejected, [`FULL_WEIGHT`] is all.
    fn weight(&self, route: u64, endpoint: u64) -> u16;
}

/// Full weight for everybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct FullWeights;

impl Weights for FullWeights {
    fn weight(&self, _: u64, _: u64) -> u16 {
        FULL_WEIGHT
    }
}

/// A route whose value changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which route.
    pub key: RouteKey,
    /// Its new value, or `None` where it is gone.
    pub value: Option<Arc<[u8]>>,
}

/// What an input did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The routes that changed, in the order of their keys.
    pub routes: Vec<Change>,
    /// How many slices were passed over because they weren't newer than what is held.
    pub stale: usize,
    /// Names that make no route key; the rest of their slices is in use.
    pub bad: Vec<KeyError>,
}

/// An endpoint of a route, as [`Health`](crate::Health) wants to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Its id.
    pub endpoint: u64,
    /// Whether it takes new work, but for an ejection.
    pub ready: bool,
}

/// Everything the agent knows of the cluster.
#[derive(Debug, Default)]
pub struct Store {
    slices: BTreeMap<SliceName, Slice>,
    services: BTreeMap<ServiceName, Service>,
    routes: BTreeMap<RouteKey, RouteState>,
    ids: HashMap<u64, RouteKey>,
    tombstones: HashMap<SliceName, u64>,
    tombstone_order: VecDeque<SliceName>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ServiceName {
    namespace: Arc<str>,
    service: Arc<str>,
}

#[derive(Debug, Default)]
struct Service {
    slices: BTreeSet<SliceName>,
    routes: BTreeSet<RouteKey>,
}

#[derive(Debug)]
struct RouteState {
    endpoints: Vec<Endpoint>,
    value: Arc<[u8]>,
}

impl Store {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a watch event. Bookmarks and errors change nothing here.
    pub fn apply(&mut self, event: WatchEvent, weights: &impl Weights) -> Changes {
        let mut changes = Changes::default();
        let mut touched = BTreeSet::new();
        match event {
            WatchEvent::Applied(slice) => {
                let held = self.slices.get(&slice.name).map(|held| held.resource_version);
                let held = held.or_else(|| self.tombstones.get(&slice.name).copied()).unwrap_or(0);
                if slice.resource_version != 0 && slice.resource_version <= held {
                    changes.stale = 1;
                } else {
                    self.forget_tombstone(&slice.name);
                    self.put(slice, &mut touched);
                }
            }
            WatchEvent::Deleted { name, resource_version } => {
                let held = self.slices.get(&name).map_or(0, |held| held.resource_version);
                if resource_version != 0 && resource_version < held {
                    changes.stale = 1;
                } else {
                    self.remove(&name, &mut touched);
                    self.bury(name, resource_version.max(held));
                }
            }
            WatchEvent::Bookmark { .. } | WatchEvent::Error { .. } => {}
        }
        self.settle(touched, weights, &mut changes);
        changes
    }

    /// Takes a list in place of everything, and says what differs.
    pub fn replace(&mut self, list: List, weights: &impl Weights) -> Changes {
        let mut changes = Changes::default();
        let mut touched = BTreeSet::new();
        if list.complete {
            let named = list.slices.iter().map(|slice| &slice.name);
            let seen: BTreeSet<&SliceName> = named.chain(list.bad.iter().filter_map(|bad| bad.name())).collect();
            let gone: Vec<SliceName> = self.slices.keys().filter(|name| !seen.contains(name)).cloned().collect();
            gone.iter().for_each(|name| self.remove(name, &mut touched));
            self.tombstones.clear();
            self.tombstone_order.clear();
        }
        let mut newest: BTreeMap<SliceName, Slice> = BTreeMap::new();
        for slice in list.slices {
            if newest.get(&slice.name).is_some_and(|held| held.resource_version > slice.resource_version) {
                changes.stale += 1;
            } else {
                newest.insert(slice.name.clone(), slice);
            }
        }
        for (name, slice) in newest {
            if self.slices.get(&name) != Some(&slice) {
                self.put(slice, &mut touched);
            }
        }
        self.settle(touched, weights, &mut changes);
        changes
    }

    /// Gives a route's endpoints their weights anew, after [`Health`](crate::Health) said that they changed. `None` if
    /// the route is unknown or its value stays the same.
    pub fn reweigh(&mut self, route: u64, weights: &impl Weights) -> Option<Change> {
        let key = self.ids.get(&route)?;
        let state = self.routes.get_mut(key)?;
        weigh(&mut state.endpoints, route, weights);
        let value: Arc<[u8]> = encode(route, &state.endpoints).into();
        if value == state.value {
            return None;
        }
        state.value = value.clone();
        Some(Change { key: key.clone(), value: Some(value) })
    }

    /// A route's value.
    pub fn value(&self, key: &RouteKey) -> Option<&Arc<[u8]>> {
        self.routes.get(key).map(|state| &state.value)
    }

    /// All routes and their values, by key: what a new table is filled with.
    pub fn values(&self) -> impl Iterator<Item = (&RouteKey, &Arc<[u8]>)> {
        self.routes.iter().map(|(key, state)| (key, &state.value))
    }

    /// A route's endpoints for [`Health::set_members`](crate::Health::set_members); empty if it is unknown.
    pub fn members(&self, key: &RouteKey) -> Vec<Member> {
        let endpoints = self.routes.get(key).map_or(&[][..], |state| &state.endpoints);
        endpoints.iter().map(|e| Member { endpoint: e.id(), ready: e.ready }).collect()
    }

    /// The key of a route by its id.
    pub fn key(&self, route: u64) -> Option<&RouteKey> {
        self.ids.get(&route)
    }

    /// How many slices, services and routes there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.slices.len(), self.services.len(), self.routes.len())
    }

    fn put(&mut self, slice: Slice, touched: &mut BTreeSet<ServiceName>) {
        // It may have gone over from another service.
        self.remove(&slice.name, touched);
        if let Some(service) = service_of(&slice) {
            self.services.entry(service.clone()).or_default().slices.insert(slice.name.clone());
            touched.insert(service);
        }
        self.slices.insert(slice.name.clone(), slice);
    }

    fn remove(&mut self, name: &SliceName, touched: &mut BTreeSet<ServiceName>) {
        let Some(service) = self.slices.remove(name).as_ref().and_then(service_of) else {
            return;
        };
        if let Some(state) = self.services.get_mut(&service) {
            state.slices.remove(name);
        }
        touched.insert(service);
    }

    /// Works out the routes of the touched services, and what of them changed.
    fn settle(&mut self, touched: BTreeSet<ServiceName>, weights: &impl Weights, changes: &mut Changes) {
        for name in touched {
            let Some(service) = self.services.get_mut(&name) else {
                continue;
            };
            let slices = service.slices.iter().filter_map(|slice| self.slices.get(slice));
            let routes = merge(&name, slices, &mut changes.bad);
            let gone: Vec<RouteKey> = service.routes.iter().filter(|key| !routes.contains_key(key)).cloned().collect();
            service.routes = routes.keys().cloned().collect();
            if service.slices.is_empty() {
                self.services.remove(&name);
            }
            for key in gone {
                self.routes.remove(&key);
                self.ids.remove(&key.id());
                changes.routes.push(Change { key, value: None });
            }
            for (key, mut endpoints) in routes {
                let route = key.id();
                weigh(&mut endpoints, route, weights);
                let value: Arc<[u8]> = encode(route, &endpoints).into();
                let same = self.routes.get(&key).is_some_and(|held| held.value == value);
                let kept = if same { self.routes.get(&key).map(|held| held.value.clone()) } else { None };
                self.ids.insert(route, key.clone());
                self.routes.insert(key.clone(), RouteState { endpoints, value: kept.unwrap_or_else(|| value.clone()) });
                if !same {
                    changes.routes.push(Change { key, value: Some(value) });
                }
            }
        }
        changes.routes.sort_by(|a, b| a.key.cmp(&b.key));
    }

    fn bury(&mut self, name: SliceName, version: u64) {
        if self.tombstones.insert(name.clone(), version).is_none() {
            self.tombstone_order.push_back(name);
        }
        if self.tombstone_order.len() > MAX_TOMBSTONES
            && let Some(oldest) = self.tombstone_order.pop_front()
        {
            self.tombstones.remove(&oldest);
        }
    }

    fn forget_tombstone(&mut self, name: &SliceName) {
        if self.tombstones.remove(name).is_some() {
            self.tombstone_order.retain(|held| held != name);
        }
    }
}

fn service_of(slice: &Slice) -> Option<ServiceName> {
    let service = slice.service.clone()?;
    Some(ServiceName { namespace: slice.name.namespace.clone(), service })
}

fn weigh(endpoints: &mut [Endpoint], route: u64, weights: &impl Weights) {
    for endpoint in endpoints {
        endpoint.weight = weights.weight(route, endpoint.id());
    }
}

/// The routes of a service, each endpoint once, in a settled order.
fn merge<'a>(
    service: &ServiceName,
    slices: impl Iterator<Item = &'a Slice>,
    bad: &mut Vec<KeyError>,
) -> BTreeMap<RouteKey, Vec<Endpoint>> {
    // What wins: the newer, then the more ready, then by content, so that the order of slices can't matter.
    type Best<'a> = BTreeMap<(&'a Address, u16), ((u64, bool, bool, bool), Endpoint)>;
    let mut routes: BTreeMap<RouteKey, Best<'a>> = BTreeMap::new();
    for slice in slices {
        for port in &slice.ports {
            let number = port.number.to_string();
            let key = match RouteKey::new(&service.namespace, &service.service, port.name.as_deref().unwrap_or(&number))
            {
                Ok(key) => key,
                Err(error) => {
                    bad.push(error);
                    continue;
                }
            };
            let best = routes.entry(key).or_default();
            for e in &slice.endpoints {
                let candidate = Endpoint {
                    address: e.address.clone(),
                    port: port.number,
                    protocol: port.protocol,
                    ready: e.ready,
                    serving: e.serving,
                    terminating: e.terminating,
                    weight: 0,
                    zone: e.zone.clone(),
                    hints: e.hints.clone(),
                };
                let rank = (slice.resource_version, e.ready, e.serving, !e.terminating);
                match best.entry((&e.address, port.number)) {
                    std::collections::btree_map::Entry::Vacant(free) => {
                        free.insert((rank, candidate));
                    }
                    std::collections::btree_map::Entry::Occupied(mut held) => {
                        if (rank, &candidate) > (held.get().0, &held.get().1) {
                            held.insert((rank, candidate));
                        }
                    }
                }
            }
        }
    }
    routes.into_iter().map(|(key, best)| (key, best.into_values().map(|(_, e)| e).collect())).collect()
}
