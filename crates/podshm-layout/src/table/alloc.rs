//! Which units of a table are free: the writer's private knowledge, never in shared memory.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Sizes are rounded up to classes (at most a seventh more), each with a first-in first-out list, so that a unit rests as long
/// as possible before it is reused under a slow reader.
#[derive(Debug)]
pub(super) struct Units {
    classes: Vec<VecDeque<u32>>,
    next: u32,
    end: u32,
    free: u64,
}

fn class_of(units: u32) -> (usize, u32) {
    if units <= 8 {
        return (units as usize, units);
    }
    // Eight classes to each power of two.
    let shift = 31 - units.leading_zeros() - 3;
    let rounded = units.next_multiple_of(1 << shift);
    let shift = 31 - rounded.leading_zeros() - 3;
    ((shift as usize) * 8 + (rounded >> shift) as usize, rounded)
}

impl Units {
    /// Units 1 to `end`, all free; unit 0 is never used, so that 0 can mean "none".
    pub(super) fn new(end: u32) -> Self {
        Units { classes: Vec::new(), next: 1, end, free: u64::from(end.saturating_sub(1)) }
    }

    pub(super) fn take(&mut self, units: u32) -> Option<u32> {
        let (class, size) = class_of(units);
        if let Some(unit) = self.classes.get_mut(class).and_then(VecDeque::pop_front) {
            self.free -= u64::from(size);
            return Some(unit);
        }
        if u64::from(self.next) + u64::from(size) <= u64::from(self.end) {
            let unit = self.next;
            self.next += size;
            self.free -= u64::from(size);
            return Some(unit);
        }
        self.split_larger(class, size)
    }

    /// Cuts a free piece of a larger class; what remains goes to its own class.
    fn split_larger(&mut self, class: usize, size: u32) -> Option<u32> {
        let from = (class + 1..self.classes.len()).find(|&c| !self.classes[c].is_empty())?;
        let unit = self.classes[from].pop_front()?;
        let whole = size_of_class(from);
        let (mut at, mut left) = (unit + size, whole - size);
        while left > 0 {
            let part = largest_class_within(left);
            self.list(class_of(part).0).push_back(at);
            at += part;
            left -= part;
        }
        self.free -= u64::from(size);
        Some(unit)
    }

    pub(super) fn give(&mut self, unit: u32, units: u32) {
        let (class, size) = class_of(units);
        self.list(class).push_back(unit);
        self.free += u64::from(size);
    }

    pub(super) fn free(&self) -> u64 {
        self.free
    }

    fn list(&mut self, class: usize) -> &mut VecDeque<u32> {
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, VecDeque::new);
        }
        &mut self.classes[class]
    }
}

fn size_of_class(class: usize) -> u32 {
    if class <= 8 {
        return class as u32;
    }
    let (shift, mantissa) = if class.is_multiple_of(8) { (class / 8 - 2, 16) } else { (class / 8 - 1, class % 8 + 8) };
    (mantissa as u32) << shift
}

fn largest_class_within(units: u32) -> u32 {
    if units <= 8 {
        return units;
    }
    let shift = 31 - units.leading_zeros() - 3;
    units >> shift << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_knows_its_size() {
        for units in 1..5000 {
            let (class, size) = class_of(units);
            assert_eq!(size_of_class(class), size, "class {class} of {units} units");
            assert!(size >= units && size <= units + units / 7 + 1);
            assert_eq!(class_of(size), (class, size));
            let within = largest_class_within(units);
            assert!(within <= units && class_of(within).1 == within);
        }
    }

    #[test]
    fn nothing_is_handed_out_twice_and_all_comes_back() {
        let mut units = Units::new(10_000);
        let mut owner = alloc::vec![0u32; 10_000];
        let mut held: Vec<(u32, u32)> = Vec::new();
        let mut x = 1u64;
        for step in 1..20_000u32 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let want = 1 + ((x >> 33) % 40) as u32;
            match units.take(want) {
                Some(unit) => {
                    for u in unit..unit + want {
                        assert_eq!(owner[u as usize], 0, "unit {u} handed out twice");
                        owner[u as usize] = step;
                    }
                    held.push((unit, want));
                }
                None => assert!(!held.is_empty()),
            }
            if held.len() > 150 {
                let (unit, want) = held.swap_remove((x >> 40) as usize % held.len());
                owner[unit as usize..(unit + want) as usize].fill(0);
                units.give(unit, want);
            }
        }
        for (unit, want) in held {
            units.give(unit, want);
        }
        assert_eq!(units.free(), 9_999);
    }
}
