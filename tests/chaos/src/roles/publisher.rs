//! What the agent of domain `work` publishes: values that carry their key, their version and a checksum.

use super::{KEYS, key};
use podshm::{Agent, Error};
use podshm_testkit::numbered;

/// The longest value.
pub const VALUE: usize = 300;

/// Publishes versions above those of every agent with a lower number.
#[derive(Debug)]
pub struct Publisher {
    version: u64,
    turn: u32,
}

impl Publisher {
    /// For agent number `generation`.
    pub fn new(generation: u32) -> Publisher {
        Publisher { version: u64::from(generation) << 32, turn: 0 }
    }

    /// Every key once.
    pub fn everything(&mut self, agent: &mut Agent) -> Result<(), Error> {
        (0..KEYS).try_for_each(|_| self.something(agent))
    }

    /// The next key.
    pub fn something(&mut self, agent: &mut Agent) -> Result<(), Error> {
        self.turn = (self.turn + 1) % KEYS;
        self.version += 1;
        let len = 24 + (self.version as usize * 7) % (VALUE - 24);
        agent.table("values")?.put(&key(self.turn), &numbered::encode(self.turn, self.version, len))
    }
}
