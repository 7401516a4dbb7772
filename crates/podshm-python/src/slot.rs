//! Where a class keeps what it stands for, so that it can be let go before Python collects the object: a client leaves when nothing is
//! left of it, tables and queues included.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use pyo3::prelude::*;

use crate::fault::closed;

/// Something, until it is closed. Whoever uses it at that moment has it until he is done.
pub struct Slot<T> {
    what: &'static str,
    held: Mutex<Option<Arc<T>>>,
}

impl<T> Slot<T> {
    /// Not closed.
    pub fn new(what: &'static str, held: T) -> Arc<Self> {
        Arc::new(Slot { what, held: Mutex::new(Some(Arc::new(held))) })
    }

    /// To be used now.
    pub fn get(&self) -> PyResult<Arc<T>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone().ok_or_else(|| closed(self.what))
    }

    /// What it holds; it is closed then.
    pub fn take(&self) -> Option<Arc<T>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Something that can be closed.
pub trait Close: Send + Sync {
    /// Lets go.
    fn close(&self);
}

impl<T: Send + Sync> Close for Slot<T> {
    fn close(&self) {
        // Dropped without the slot's lock.
        let held = self.take();
        drop(held);
    }
}

/// What was made of one client, to be closed with it.
#[derive(Default)]
pub struct Made(Mutex<Vec<Weak<dyn Close>>>);

impl Made {
    /// One more.
    pub fn keep<T: Send + Sync + 'static>(&self, slot: &Arc<Slot<T>>) {
        let slot: Arc<dyn Close> = Arc::clone(slot) as _;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|made| made.strong_count() > 0);
        }
        all.push(Arc::downgrade(&slot));
    }

    /// Closes all.
    pub fn close(&self) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        all.iter().filter_map(Weak::upgrade).for_each(|made| made.close());
    }
}
