//! An input as a sequence of choices. Behind its end every choice is 0, so that any bytes are a whole run.

/// What is left of an input.
pub(crate) struct Input<'a> {
    left: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Input { left: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Up to `most` bytes.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, left) = self.left.split_at(most.min(self.left.len()));
        self.left = left;
        taken
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.bytes(N);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.number::<1>() as u8
    }

    pub(crate) fn u16(&mut self) -> u16 {
        self.number::<2>() as u16
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.number::<4>() as u32
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.number::<8>()
    }

    /// One of the first `choices` numbers, by one byte.
    pub(crate) fn choice(&mut self, choices: u8) -> u8 {
        self.u8() % choices
    }

    /// A number below `end` (at least 1), by two bytes.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.u16()) % end
    }

    /// A word as it lies in shared memory: often small, often near the ends, sometimes anything.
    pub(crate) fn word(&mut self) -> u64 {
        match self.choice(6) {
            0 => u64::from(self.u8()),
            1 => u64::from(self.u16()),
            2 => u64::MAX - u64::from(self.u8()),
            3 => 1 << (self.u8() % 64),
            4 => u64::from(self.u32()) << 32 | u64::from(self.u16()),
            _ => self.u64(),
        }
    }
}
