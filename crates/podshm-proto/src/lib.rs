//! Messages between the broker and its participants.
