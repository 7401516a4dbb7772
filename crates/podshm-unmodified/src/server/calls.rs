//! Members' sockets: a connection for each call. What is asked is answered at once; who has not asked yet may wait a while.

use super::{Loop, bind_and_rename};
use crate::answer::Answer;
use crate::peer::Peer;
use crate::place::{Doing, PlaceError, make_directory};
use podshm_preload::wire::{self, HEAD, TAIL, WORDS, Words};
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recvmsg, sendmsg, shutdown, socket_with,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where a member's socket is, in its directory.
pub const SOCKET: &str = "shm.sock";

/// Connections that have not asked yet.
const WAITING: usize = 1024;
/// How long, at the end, those are waited for that are connected and have not asked. The next daemon is not there before that,
/// and calls that find none wait for it (see the library's `PATIENT`).
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) member: String,
    socket: OwnedFd,
}

#[derive(Debug)]
pub(super) struct Waiting {
    member: String,
    socket: OwnedFd,
    pub(super) since: Instant,
}

impl Loop {
    pub(super) fn add_member(&mut self, member: &str) -> Result<(), PlaceError> {
        if self.listeners.values().any(|listener| listener.member == member) {
            return Ok(());
        }
        let directory = self.place.member(member);
        make_directory(&directory, 0o755)?;
        // By descriptor: a socket's path has 107 bytes, and those of domain and member may be longer.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let short =
            rustix::fs::open(&directory, flags, Mode::empty()).doing(|| format!("opening {}", directory.display()))?;
        let path = Path::new("/proc/self/fd").join(short.as_raw_fd().to_string()).join(SOCKET);
        let listening = |path: &Path| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            listen(&socket, 1024)?;
            Ok(socket)
        };
        let socket = bind_and_rename(&path, listening, 0o666)
            .doing(|| format!("listening at {}", directory.join(SOCKET).display()))?;
        let id = self.next;
        self.next += 1;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN)
            .doing(|| "watching a member's socket".into())?;
        self.listeners.insert(id, Listener { member: member.to_owned(), socket });
        Ok(())
    }

    pub(super) fn remove_member(&mut self, member: &str) {
        self.listeners.retain(|_, listener| listener.member != member);
        let _ = std::fs::remove_dir_all(self.place.member(member));
    }

    pub(super) fn accept(&mut self, id: u64) {
        while let Some(listener) = self.listeners.get(&id) {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&listener.socket, flags) {
                Ok(socket) => socket,
                // INVAL: shut down, and nobody is left.
                Err(Errno::AGAIN | Errno::INVAL) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => {
                    tracing::error!(member = listener.member, %error, "a call could not be taken");
                    return;
                }
            };
            let member = listener.member.clone();
            if self.serve(&member, &socket) {
                continue;
            }
            if self.waiting.len() >= WAITING {
                self.waiting.pop_first();
            }
            let id = self.next;
            self.next += 1;
            if epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN).is_ok() {
                self.waiting.insert(id, Waiting { member, socket, since: Instant::now() });
            }
        }
    }

    pub(super) fn hear(&mut self, id: u64) {
        if let Some(waiting) = self.waiting.remove(&id) {
            self.serve(&waiting.member, &waiting.socket);
        }
    }

    /// Answers what was asked; false if nothing has been asked yet.
    fn serve(&mut self, member: &str, socket: &OwnedFd) -> bool {
        let mut bytes = [0u8; HEAD + TAIL];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        };
        let mut fd = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fds.into_iter().next().or(fd);
            }
        }
        if received.bytes < HEAD || received.flags.contains(ReturnFlags::TRUNC) {
            return true; // no such message; whoever sent it gets no answer
        }
        let mut words: Words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        }
        let Some(operation) = wire::operation(&words) else { return true };
        let answer = Peer::of(socket, member, words[4] as i32)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .and_then(|peer| self.memory.answer(&peer, &words, &bytes[HEAD..received.bytes], fd));
        let (answer, result) = match answer {
            Ok(answer) => (answer, None),
            Err(error) => (Answer::default(), Some(-i64::from(error.raw_os_error()))),
        };
        let reply = wire::reply(operation, result.unwrap_or(answer.result), answer.values);
        let head: Vec<u8> = reply.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let fds: Vec<_> = answer.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::FORK_BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            tracing::error!("a reply with {} descriptors did not fit", fds.len());
            return true;
        }
        let parts = [IoSlice::new(&head), IoSlice::new(&answer.tail)];
        // A caller that has gone away needs no answer; the locks of its descriptors go with the message.
        let _ = sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        true
    }

    /// Ends in order: nobody else is let in, and whoever is in gets an answer. Calls that come later find nobody and wait for the
    /// next daemon.
    pub(super) fn finish(&mut self) {
        let ids: Vec<u64> = self.listeners.keys().copied().collect();
        for listener in self.listeners.values() {
            let _ = shutdown(&listener.socket, Shutdown::Read);
        }
        let _ = shutdown(&self.control, Shutdown::Read);
        self.accept_control();
        for id in ids {
            self.accept(id);
        }
        // What is shut down is readable for ever.
        for listener in self.listeners.values() {
            let _ = epoll::delete(&self.epoll, &listener.socket);
        }
        let _ = epoll::delete(&self.epoll, &self.control);
        let _ = epoll::delete(&self.epoll, &self.stop);
        let start = Instant::now();
        while !self.waiting.is_empty() && start.elapsed() < LAST_WORDS {
            self.wait(LAST_WORDS.saturating_sub(start.elapsed()))
                .unwrap_or_default()
                .into_iter()
                .for_each(|id| self.hear(id));
        }
        self.memory.events.write(&self.place);
    }
}
