//! Frames between a runtime and a plugin. One Unix socket carries two connections, each of them ttrpc's: the runtime serves one, the plugin
//! the other. By hand: no crate knows the outer frames, and the inner ones are ten bytes and a message.
//!
//! ```text
//!  outer   connection u32 │ length u32 │ …                                     both big-endian; a piece of that connection's bytes
//!  inner   length u32 │ stream u32 │ type u8 │ flags u8 │ message              ttrpc: PROTOCOL.md of github.com/containerd/ttrpc
//! ```

use prost::Message;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// The plugin's services.
pub const PLUGIN: u32 = 1;
/// The runtime's services.
pub const RUNTIME: u32 = 2;
/// ttrpc's types.
pub const REQUEST: u8 = 1;
/// An answer, which ends its stream.
pub const RESPONSE: u8 = 2;

const HEADER: usize = 10;
/// ttrpc's longest message.
const LONGEST: usize = 4 << 20;
/// A Go reader takes an outer frame whole, and its buffer has so many bytes.
const PIECE: usize = 4096;

/// A message of ttrpc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The connection that it came on, or goes to.
    pub connection: u32,
    /// The call that it belongs to.
    pub stream: u32,
    /// [`REQUEST`] or [`RESPONSE`].
    pub kind: u8,
    /// A message.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Of a message.
    pub fn of(connection: u32, stream: u32, kind: u8, message: &impl Message) -> Self {
        Frame { connection, stream, kind, bytes: message.encode_to_vec() }
    }

    /// Sends it.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut inner = Vec::with_capacity(HEADER + self.bytes.len());
        inner.extend((self.bytes.len() as u32).to_be_bytes());
        inner.extend(self.stream.to_be_bytes());
        inner.extend([self.kind, 0]);
        inner.extend(&self.bytes);
        let mut outer = Vec::with_capacity(inner.len() + 8);
        for piece in inner.chunks(PIECE) {
            outer.extend(self.connection.to_be_bytes());
            outer.extend((piece.len() as u32).to_be_bytes());
            outer.extend(piece);
        }
        to.write_all(&outer)
    }
}

/// Takes frames out of a socket.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    parts: BTreeMap<u32, Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Of a socket.
    pub fn new(from: R) -> Self {
        Reader { from, parts: BTreeMap::new() }
    }

    /// The next one; None where the other end has closed.
    pub fn read(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(frame));
            }
            let mut header = [0; 8];
            match self.from.read_exact(&mut header) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                other => other?,
            }
            let (connection, length) = (word(&header), word(&header[4..]) as usize);
            if ![PLUGIN, RUNTIME].contains(&connection) || length > LONGEST + HEADER {
                let why = format!(
                    "an outer frame of connection {connection} and {length} bytes; expected 1 or 2, and no more than 4 MiB"
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            let part = self.parts.entry(connection).or_default();
            let before = part.len();
            part.resize(before + length, 0);
            self.from.read_exact(&mut part[before..])?;
        }
    }

    fn whole(&mut self) -> io::Result<Option<Frame>> {
        for (connection, part) in &mut self.parts {
            let Some(header) = part.get(..HEADER) else { continue };
            let (length, stream, kind) = (word(header) as usize, word(&header[4..]), header[8]);
            if length > LONGEST {
                let why = format!("a message of {length} bytes; expected no more than 4 MiB");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if let Some(bytes) = part.get(HEADER..HEADER + length) {
                let frame = Frame { connection: *connection, stream, kind, bytes: bytes.to_vec() };
                part.drain(..HEADER + length);
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let frames = [
            Frame { connection: PLUGIN, stream: 1, kind: REQUEST, bytes: vec![7; 10_000] },
            Frame { connection: RUNTIME, stream: 3, kind: RESPONSE, bytes: Vec::new() },
            Frame { connection: PLUGIN, stream: 5, kind: REQUEST, bytes: b"x".to_vec() },
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).unwrap());
        let mut reader = Reader::new(&bytes[..]);
        for frame in frames {
            assert_eq!(reader.read().unwrap(), Some(frame));
        }
        assert_eq!(reader.read().unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for bytes in [&[0, 0, 0, 9, 0, 0, 0, 1, 0][..], &[0, 0, 0, 1, 255, 255, 255, 255]] {
            assert!(Reader::new(bytes).read().is_err(), "{bytes:?}");
        }
        let huge = [&[0, 0, 0, 1, 0, 0, 0, 10][..], &[255; 10]].concat();
        assert!(Reader::new(&huge[..]).read().is_err());
    }
}
