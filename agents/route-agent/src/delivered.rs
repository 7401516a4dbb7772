//! A log of what was delivered, so that a demo can prove by numbers that nothing was lost.
//!
//! ```text
//! 0        8          16    24       28      29      32
//! │ client │ position │ seq │ sender │ flags │ zeros │     one entry per record, little-endian
//! ```
//! Flags: 1, a predecessor that died may have handled it already; 2, `seq` and `sender` are of a
//! [`Trailer`]. Each entry is one `write(2)` with `O_APPEND`, before the record is acknowledged: it survives `kill -9` of
//! the agent, not of the node. Put the file on tmpfs. Successive agents append to the same file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use route_client::Trailer;

/// Bytes of an entry.
pub const ENTRY_LEN: usize = 32;
const MAYBE_SEEN: u8 = 1;
const NUMBERED: u8 = 2;

/// One record that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Number of the client in the domain.
    pub client: u64,
    /// The record's position in the client's ring.
    pub position: u64,
    /// A predecessor that died may have handled it already.
    pub maybe_seen: bool,
    /// The record's number, if it has one.
    pub trailer: Option<Trailer>,
}

impl Delivered {
    fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..8].copy_from_slice(&self.client.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        if let Some(trailer) = self.trailer {
            bytes[16..24].copy_from_slice(&trailer.seq.to_le_bytes());
            bytes[24..28].copy_from_slice(&trailer.sender.to_le_bytes());
            bytes[28] |= NUMBERED;
        }
        if self.maybe_seen {
            bytes[28] |= MAYBE_SEEN;
        }
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_LEN]) -> Self {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |all, &b| all << 8 | u64::from(b));
        let trailer = Trailer { sender: (word(24) & 0xffff_ffff) as u32, seq: word(16) };
        Self {
            client: word(0),
            position: word(8),
            maybe_seen: bytes[28] & MAYBE_SEEN != 0,
            trailer: (bytes[28] & NUMBERED != 0).then_some(trailer),
        }
    }
}

/// The log, open for appending.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens or makes it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().create(true).append(true).open(path)?))
    }

    /// Appends an entry, by one `write(2)`.
    pub fn append(&mut self, delivered: &Delivered) -> io::Result<()> {
        self.0.write_all(&delivered.encode())
    }
}

/// Reads a log, in the order of the deliveries. A cut entry at the end counts as none.
pub fn read(input: impl Read) -> impl Iterator<Item = io::Result<Delivered>> {
    let mut input = io::BufReader::with_capacity(1 << 16, input);
    std::iter::from_fn(move || {
        let mut bytes = [0; ENTRY_LEN];
        match input.read_exact(&mut bytes) {
            Ok(()) => Some(Ok(Delivered::decode(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => Some(Err(error)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back() {
        let numbered = Some(Trailer { sender: 7, seq: u64::MAX - 1 });
        let all = [
            Delivered { client: 1, position: 2, maybe_seen: true, trailer: numbered },
            Delivered { client: u64::MAX, position: 0, maybe_seen: false, trailer: None },
        ];
        let mut bytes: Vec<u8> = all.iter().flat_map(Delivered::encode).collect();
        bytes.extend([1; 31]);
        assert_eq!(read(&bytes[..]).collect::<io::Result<Vec<_>>>().unwrap(), all);
    }
}
