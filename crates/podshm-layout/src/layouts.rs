//! Which layouts there are, and in what they differ.
//!
//! ```text
//!  layout 1   cursor lines 64 bytes apart    │ acked … │ acked … │ acked … │
//!  layout 2   cursor lines 128 bytes apart   │ acked … ·         │ acked … ·         │
//! ```
//! A core that reads one line fetches its neighbour with it (adjacent-line prefetch), so the cursor lines of two rings side by side
//! are pulled back and forth between two readers as one line would be. Layout 2 keeps them a pair of lines apart.
//!
//! Each region says in its header which layout it is written at, the broker says so too, and readers go by that. What a region is
//! written at is decided once, when it is made: the lowest that everybody in its domain speaks.

use crate::{CACHE_LINE, PAGE, geometry::CURSORS};
use core::fmt;

/// A layout that this release reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Layout {
    /// Cursor lines 64 bytes apart.
    V1 = 1,
    /// Cursor lines 128 bytes apart.
    V2 = 2,
}

impl Layout {
    /// The oldest one.
    pub const OLDEST: Layout = Layout::V1;
    /// The newest one: written where every participant of a domain speaks it.
    pub const NEWEST: Layout = Layout::V2;
    /// All of them, oldest first.
    pub const ALL: [Layout; 2] = [Layout::V1, Layout::V2];

    /// Its number, as headers and messages carry it.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Bytes from one cursor line to the next.
    pub const fn cursor_pitch(self) -> usize {
        match self {
            Layout::V1 => CACHE_LINE,
            Layout::V2 => 2 * CACHE_LINE,
        }
    }

    /// Most rings in one direction of a channel: their cursor lines fit the first page.
    pub const fn max_rings(self) -> usize {
        (PAGE - CURSORS) / self.cursor_pitch()
    }

    /// Offset of cursor line number `ring` in C and in A.
    pub const fn cursor(self, ring: usize) -> usize {
        CURSORS + ring * self.cursor_pitch()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// A layout that is not spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory layout {found}: expected {oldest} to {newest}; upgrade the older of the two participants")]
pub struct UnknownLayout {
    /// What was found.
    pub found: u32,
    /// The oldest that is spoken.
    pub oldest: u32,
    /// The newest that is spoken.
    pub newest: u32,
}

/// The layouts that one participant speaks, of those that this release knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layouts {
    oldest: Layout,
    newest: Layout,
}

impl Layouts {
    /// All that this release knows.
    pub const ALL: Layouts = Layouts { oldest: Layout::OLDEST, newest: Layout::NEWEST };

    /// One alone.
    pub const fn only(layout: Layout) -> Self {
        Layouts { oldest: layout, newest: layout }
    }

    /// From `oldest` to `newest`; in either order.
    pub fn new(oldest: Layout, newest: Layout) -> Self {
        Layouts { oldest: oldest.min(newest), newest: newest.max(oldest) }
    }

    /// The oldest that it speaks.
    pub const fn oldest(self) -> Layout {
        self.oldest
    }

    /// The newest that it speaks.
    pub const fn newest(self) -> Layout {
        self.newest
    }

    /// Reads a number out of a message: the one place where numbers become layouts.
    pub fn parse(self, number: u32) -> Result<Layout, UnknownLayout> {
        let known = Layout::ALL.into_iter().find(|layout| layout.number() == number);
        known.filter(|layout| (self.oldest..=self.newest).contains(layout)).ok_or(UnknownLayout {
            found: number,
            oldest: self.oldest.number(),
            newest: self.newest.number(),
        })
    }
}

impl Default for Layouts {
    /// All that this release knows.
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn only_what_is_spoken_is_parsed() {
        assert_eq!(Layouts::ALL.parse(1), Ok(Layout::V1));
        assert_eq!(Layouts::ALL.parse(2), Ok(Layout::V2));
        for wrong in [0, 3, u32::MAX] {
            let error = Layouts::ALL.parse(wrong).unwrap_err().to_string();
            assert!(error.contains(&wrong.to_string()) && error.contains("1 to 2"), "{error}");
        }
        let old = Layouts::only(Layout::V1);
        assert!(old.parse(2).unwrap_err().to_string().contains("expected 1 to 1"));
    }

    #[test]
    fn cursor_lines_are_apart_and_within_the_page() {
        for layout in Layout::ALL {
            let last = layout.cursor(layout.max_rings() - 1);
            assert!(last + CACHE_LINE <= PAGE, "{layout}");
            assert!(layout.cursor(layout.max_rings()) + layout.cursor_pitch() > PAGE, "{layout}");
        }
        assert_eq!((Layout::V1.max_rings(), Layout::V2.max_rings()), (60, 30));
        assert_eq!(Layout::V2.cursor(1) - Layout::V2.cursor(0), 128);
    }
}
