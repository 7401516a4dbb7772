//! A Unix stream socket pair: what people use when they don't share memory.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::Result;

use crate::control::Control;
use crate::payload;
use crate::transport::{Pipe, PipeSession, Session, Transport, serve_pipe};

/// Big messages are written and read in pieces of this size, so that both sides work at once.
const CHUNK: usize = 64 << 10;

pub struct UnixStreamPair;

impl Transport for UnixStreamPair {
    fn name(&self) -> &'static str {
        "unix-stream"
    }

    fn title(&self) -> String {
        "Unix stream socket".to_owned()
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let (ours, theirs) = UnixStream::pair()?;
        peer.send_fd(theirs)?;
        Ok(Box::new(PipeSession(StreamPipe::over(ours)?)))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let socket = UnixStream::from(control.recv_fd()?);
        serve_pipe(StreamPipe::over(socket)?, control)
    }
}

struct StreamPipe {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    buffer: Vec<u8>,
}

impl StreamPipe {
    fn over(socket: UnixStream) -> Result<Self> {
        Ok(Self {
            writer: socket.try_clone()?,
            reader: BufReader::with_capacity(CHUNK, socket),
            buffer: vec![0; CHUNK],
        })
    }
}

impl Pipe for StreamPipe {
    fn send(&mut self, len: usize, seed: u64, _flush: bool) -> Result<()> {
        for at in (0..len).step_by(CHUNK) {
            let chunk = &mut self.buffer[..CHUNK.min(len - at)];
            payload::fill_from(chunk, seed, at / 8);
            self.writer.write_all(chunk)?;
        }
        Ok(())
    }

    fn recv(&mut self, len: usize) -> Result<u64> {
        let mut sum = 0_u64;
        for at in (0..len).step_by(CHUNK) {
            let chunk = &mut self.buffer[..CHUNK.min(len - at)];
            self.reader.read_exact(chunk)?;
            sum = sum.wrapping_add(payload::sum(chunk));
        }
        Ok(sum)
    }
}
