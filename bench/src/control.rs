//! The line between the two processes beside what is measured: JSON values and descriptors over
//! the Unix socket that the peer process inherits as its standard input.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One end of the control line.
#[derive(Debug)]
pub struct Control {
    socket: UnixStream,
}

impl Control {
    /// Both ends.
    pub fn pair() -> Result<(Self, Self)> {
        let (a, b) = UnixStream::pair().context("control socket pair")?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// The end that the harness put in place of standard input.
    pub fn inherited() -> Result<Self> {
        let fd = std::io::stdin().as_fd().try_clone_to_owned().context("standard input of the peer process")?;
        Ok(Self { socket: fd.into() })
    }

    /// This end as a descriptor for the process to be started.
    pub fn into_fd(self) -> OwnedFd {
        self.socket.into()
    }

    /// Sends any value; the other side's next `recv` must ask for the same type.
    pub fn send(&mut self, value: &impl Serialize) -> Result<()> {
        let body = serde_json::to_vec(value)?;
        let mut message = (body.len() as u32).to_le_bytes().to_vec();
        message.extend(body);
        self.socket.write_all(&message).context("the peer process is gone")
    }

    /// Receives what the other side sent.
    pub fn recv<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut len = [0; 4];
        self.socket.read_exact(&mut len).context("the peer process is gone")?;
        let mut body = vec![0; u32::from_le_bytes(len) as usize];
        self.socket.read_exact(&mut body).context("the peer process is gone")?;
        serde_json::from_slice(&body).with_context(|| {
            format!(
                "expected a {} on the control line, found {}",
                std::any::type_name::<T>(),
                String::from_utf8_lossy(&body)
            )
        })
    }

    /// Whether something can be received now.
    pub fn has_order(&self) -> Result<bool> {
        self.has_order_within(Duration::ZERO)
    }

    /// Whether something can be received, waiting for it for so long.
    pub fn has_order_within(&self, wait: Duration) -> Result<bool> {
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&timeout))? > 0)
    }

    /// Hands a descriptor over; it stays open here too.
    pub fn send_fd(&mut self, fd: impl AsFd) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: [BorrowedFd<'_>; 1] = [fd.as_fd()];
        ensure!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "one descriptor did not fit its own buffer");
        sendmsg(&self.socket, &[IoSlice::new(b"F")], &mut ancillary, SendFlags::empty())
            .context("sending a descriptor")?;
        Ok(())
    }

    /// Receives a descriptor.
    pub fn recv_fd(&mut self) -> Result<OwnedFd> {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&self.socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .context("receiving a descriptor")?;
        ancillary
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .context("expected a descriptor on the control line, found none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_descriptors_arrive_in_order() -> Result<()> {
        let (mut a, mut b) = Control::pair()?;
        a.send(&(1_u32, "two"))?;
        a.send_fd(std::io::stderr())?;
        a.send(&3_u64)?;
        assert_eq!(b.recv::<(u32, String)>()?, (1, "two".to_owned()));
        b.recv_fd()?;
        assert_eq!(b.recv::<u64>()?, 3);
        drop(a);
        assert!(b.recv::<u64>().is_err());
        Ok(())
    }
}
