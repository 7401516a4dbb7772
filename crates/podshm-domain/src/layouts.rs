//! Which memory layout a domain is written at: the newest one that all of its participants speak.
//!
//! ```text
//!   broker   1 ├────────┤ 2
//!   agent    1 ├────────┤ 2         written at 1: the newest that the client on the last line speaks
//!   client   1 ├────────┤ 2
//!   client   1 ┤                    goes: what is made from then on is written at 2 again
//! ```

use podshm_layout::{LAYOUT_OLDEST, LAYOUT_VERSION, Layout, Layouts};

/// The layouts that a participant speaks, as it said: numbers, because they may be newer than this release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Spoken {
    /// What this release speaks.
    pub const OURS: Spoken = Spoken { oldest: LAYOUT_OLDEST, newest: LAYOUT_VERSION };

    /// Whether it reads what is written at this layout.
    pub fn reads(self, layout: u32) -> bool {
        (self.oldest..=self.newest).contains(&layout)
    }
}

/// Where everybody who was asked so far can meet. `W` says who somebody is.
#[derive(Clone, Copy, Debug)]
pub struct Meeting<W> {
    oldest: (u32, W),
    newest: (u32, W),
}

/// Two that have no layout in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMeeting<W> {
    /// Who speaks nothing as old as needed, and the oldest that it speaks.
    pub newer: (u32, W),
    /// Who speaks nothing newer, and the newest that it speaks.
    pub older: (u32, W),
}

impl<W: Copy> Meeting<W> {
    /// The broker's own range.
    pub fn of_broker(broker: W) -> Self {
        Meeting { oldest: (Spoken::OURS.oldest, broker), newest: (Spoken::OURS.newest, broker) }
    }

    /// With one more.
    pub fn with(self, who: W, speaks: Spoken) -> Result<Self, NoMeeting<W>> {
        let oldest = if speaks.oldest > self.oldest.0 { (speaks.oldest, who) } else { self.oldest };
        let newest = if speaks.newest < self.newest.0 { (speaks.newest, who) } else { self.newest };
        if oldest.0 > newest.0 {
            return Err(NoMeeting { newer: oldest, older: newest });
        }
        Ok(Meeting { oldest, newest })
    }

    /// What is written from now on.
    pub fn layout(&self) -> Layout {
        Layouts::ALL.parse(self.newest.0).expect("within the broker's own range, which is all that this release knows")
    }

    /// Whether everybody reads what is written at this layout, and nobody has to write newer than he can.
    pub fn suits(&self, layout: u32) -> bool {
        (self.oldest.0..=self.newest.0).contains(&layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(oldest: u32, newest: u32) -> Spoken {
        Spoken { oldest, newest }
    }

    #[test]
    fn the_oldest_participant_decides() {
        let alone = Meeting::of_broker("broker");
        assert_eq!(alone.layout(), Layout::NEWEST);
        let new = alone.with("agent", speaks(1, 2)).unwrap().with("newer", speaks(1, 9)).unwrap();
        assert_eq!(new.layout(), Layout::V2);
        assert!(new.suits(1) && new.suits(2) && !new.suits(3));
        let old = new.with("old", speaks(1, 1)).unwrap();
        assert_eq!(old.layout(), Layout::V1);
        assert!(!old.suits(2));
    }

    #[test]
    fn those_who_cannot_meet_are_named() {
        let old = Meeting::of_broker("broker").with("old", speaks(1, 1)).unwrap();
        let error = old.with("new", speaks(2, 3)).unwrap_err();
        assert_eq!(error, NoMeeting { newer: (2, "new"), older: (1, "old") });
        let error = Meeting::of_broker("broker").with("new", speaks(2, 3)).unwrap().with("old", speaks(1, 1));
        assert_eq!(error.unwrap_err(), NoMeeting { newer: (2, "new"), older: (1, "old") });
        assert_eq!(Meeting::of_broker("broker").with("far", speaks(3, 4)).unwrap_err().older, (2, "broker"));
    }
}
