//! What an agent that closed in order leaves to the next.

/// Kept until the agent that it was given to is known to have it: a broker that dies before that one hears of it gives it again.
#[derive(Debug, Default)]
pub(crate) struct LeftState {
    pub(crate) bytes: Vec<u8>,
    /// The epoch of the agent that it was given to; 0: nobody yet.
    pub(crate) given_to: u64,
}

impl LeftState {
    pub(crate) fn new(bytes: Vec<u8>) -> LeftState {
        LeftState { bytes, given_to: 0 }
    }

    /// For the agent that serves from this epoch on. After one that had it and did not close, there is none.
    pub(crate) fn give(&mut self, epoch: u64) -> Vec<u8> {
        if self.given_to != 0 {
            self.bytes.clear();
        }
        self.given_to = epoch;
        self.bytes.clone()
    }

    /// For the same agent, which has not heard that it serves.
    pub(crate) fn give_again(&self, epoch: u64) -> Vec<u8> {
        if self.given_to == epoch { self.bytes.clone() } else { Vec::new() }
    }

    /// The agent that it was given to has said something that it can't have said before.
    pub(crate) fn is_heard(&mut self) {
        if self.given_to != 0 {
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LeftState;

    #[test]
    fn goes_to_one_agent_however_often_it_asks() {
        let mut left = LeftState::new(b"state".to_vec());
        left.is_heard();
        assert_eq!(left.give_again(4), b"", "nobody has taken over");
        assert_eq!(left.give(5), b"state");
        assert_eq!(left.give_again(5), b"state");
        assert_eq!(left.give_again(4), b"", "another's");
        assert_eq!(left.give(6), b"", "the one that had it died");
        assert_eq!(left.give_again(6), b"");
        let mut left = LeftState::new(b"state".to_vec());
        left.give(7);
        left.is_heard();
        assert_eq!(left.give_again(7), b"");
    }
}
