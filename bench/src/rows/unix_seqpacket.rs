//! A Unix socket pair that keeps message boundaries.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::control::Control;
use crate::payload;
use crate::transport::{Pipe, PipeSession, Session, Transport, serve_pipe};

/// A packet may not exceed the socket's buffer (208 KiB by default), so bigger messages go as
/// several.
const PACKET: usize = 64 << 10;

pub struct UnixSeqpacket;

impl Transport for UnixSeqpacket {
    fn name(&self) -> &'static str {
        "unix-seqpacket"
    }

    fn title(&self) -> String {
        "Unix seqpacket socket".to_owned()
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context("seqpacket socket pair")?;
        peer.send_fd(theirs)?;
        Ok(Box::new(PipeSession(PacketPipe::over(ours))))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let socket = control.recv_fd()?;
        serve_pipe(PacketPipe::over(socket), control)
    }
}

struct PacketPipe {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl PacketPipe {
    fn over(socket: OwnedFd) -> Self {
        Self { socket, buffer: vec![0; PACKET] }
    }
}

impl Pipe for PacketPipe {
    fn send(&mut self, len: usize, seed: u64, _flush: bool) -> Result<()> {
        for at in (0..len).step_by(PACKET) {
            let packet = &mut self.buffer[..PACKET.min(len - at)];
            payload::fill_from(packet, seed, at / 8);
            send(&self.socket, packet, SendFlags::empty())?;
        }
        Ok(())
    }

    fn recv(&mut self, len: usize) -> Result<u64> {
        let (mut got, mut sum) = (0, 0_u64);
        while got < len {
            let (part, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
            ensure!(part > 0, "the peer closed the socket");
            sum = sum.wrapping_add(payload::sum(&self.buffer[..part]));
            got += part;
        }
        Ok(sum)
    }
}
