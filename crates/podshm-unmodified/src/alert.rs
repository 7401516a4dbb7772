//! When a domain's /dev/shm is worth a warning: once each time that it fills past its level.

use crate::posix::Fill;

/// So far below the level, in percent, it has to fall before the next time counts.
const FALL: u8 = 5;

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// It has filled past the level.
    Rose,
    /// It is well below again.
    Fell,
}

/// Watches one file system.
#[derive(Clone, Debug)]
pub struct Alert {
    level: u8,
    high: bool,
}

impl Fill {
    /// How full it is in percent: by bytes or by files, whichever is more.
    pub fn percent(&self) -> u8 {
        let of = |used: u64, all: u64| (u128::from(used) * 100 / u128::from(all.max(1))).min(100) as u8;
        of(self.used, self.size).max(of(self.inodes_used, self.inodes))
    }
}

impl Alert {
    /// At this many percent.
    pub fn at(level: u8) -> Self {
        Alert { level, high: false }
    }

    /// Looks; only a crossing is worth a word.
    pub fn look(&mut self, fill: &Fill) -> Option<Crossing> {
        let percent = fill.percent();
        if !self.high && percent >= self.level {
            self.high = true;
            return Some(Crossing::Rose);
        }
        if self.high && percent < self.level.saturating_sub(FALL).max(1) {
            self.high = false;
            return Some(Crossing::Fell);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(used: u64, inodes_used: u64) -> Fill {
        Fill { used, size: 1000, inodes_used, inodes: 100 }
    }

    #[test]
    fn each_crossing_is_said_once() {
        let mut alert = Alert::at(90);
        let seen: Vec<_> = [0, 899, 900, 950, 900, 890, 851, 900, 849, 849, 899, 1000]
            .into_iter()
            .map(|used| alert.look(&filled(used, 0)))
            .collect();
        let (rose, fell) = (Some(Crossing::Rose), Some(Crossing::Fell));
        assert_eq!(seen, [None, None, rose, None, None, None, None, None, fell, None, None, rose]);
    }

    #[test]
    fn files_fill_it_too() {
        assert_eq!(Alert::at(90).look(&filled(0, 90)), Some(Crossing::Rose));
        assert_eq!(filled(u64::MAX, 0).percent(), 100);
        assert_eq!(Fill { used: 0, size: 0, inodes_used: 0, inodes: 0 }.percent(), 0, "without a limit");
    }

    #[test]
    fn a_level_below_the_margin_can_be_left_again() {
        let mut alert = Alert::at(1);
        assert_eq!(alert.look(&filled(10, 0)), Some(Crossing::Rose));
        assert_eq!(alert.look(&filled(0, 0)), Some(Crossing::Fell));
    }
}
