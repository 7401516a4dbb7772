//! The connection to the broker, as both kinds of participant use it.

use crate::error::Error;
use podshm_layout::Layouts;
use podshm_proto::{
    Down, Hello, MAX_MESSAGE, PROTOCOL, PROTOCOL_OLDEST, RefusalKind, Refused, Service, Up, decode_down, encode_up,
};
use podshm_region::fork::ProcessFd;
use podshm_region::{Memory, descriptors};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct BrokerSocket {
    socket: ProcessFd,
    buffer: Box<[u8]>,
    /// What had no room yet, with the regions that ride with it. Nothing overtakes it.
    outbox: RefCell<VecDeque<Waiting>>,
}

/// A message that waits for room, and the regions that ride with it.
type Waiting = (Vec<u8>, Vec<Arc<Memory>>);

/// A message and the descriptors that came with it, in order.
pub(crate) struct Received {
    pub(crate) message: Down,
    pub(crate) fds: VecDeque<OwnedFd>,
}

impl Received {
    pub(crate) fn fd(&mut self, what: &str) -> Result<OwnedFd, Error> {
        self.fds.pop_front().ok_or_else(|| Error::Protocol(format!("the descriptor of {what} is missing")))
    }
}

impl BrokerSocket {
    /// Connects to `directory/broker.sock`, again and again until `deadline` while nobody listens there.
    pub(crate) fn connect(directory: &Path, deadline: Instant) -> Result<Self, Error> {
        let path = directory.join("broker.sock");
        let start = Instant::now();
        loop {
            match Self::connect_once(&path) {
                Ok(socket) => {
                    return Ok(Self::new(socket));
                }
                Err(e) if Instant::now() >= deadline => {
                    let what = format!("connecting to the broker at {} for {:?}", path.display(), start.elapsed());
                    return Err(Error::System { what, source: e });
                }
                Err(_) => {
                    crate::stop::check()?;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// Connects if somebody listens there now.
    pub(crate) fn connect_now(directory: &Path) -> io::Result<Self> {
        Self::connect_once(&directory.join("broker.sock")).map(Self::new)
    }

    fn new(socket: OwnedFd) -> Self {
        let (socket, buffer) = (ProcessFd::new(socket), vec![0; MAX_MESSAGE].into());
        BrokerSocket { socket, buffer, outbox: RefCell::default() }
    }

    fn connect_once(path: &Path) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    }

    pub(crate) fn hello(&self, agent: bool, services: Vec<Service>, speaks: Layouts) -> Result<(), Error> {
        self.send(Up::Hello(Hello {
            protocol_oldest: PROTOCOL_OLDEST,
            protocol_newest: PROTOCOL,
            layout_oldest: speaks.oldest().number(),
            layout_newest: speaks.newest().number(),
            agent,
            software: concat!("podshm ", env!("CARGO_PKG_VERSION")).to_owned(),
            services,
            rejoin: None,
        }))
    }

    pub(crate) fn send(&self, message: Up) -> Result<(), Error> {
        if self.is_clogged() {
            self.queue(message, Vec::new());
            return self.flush().map(drop);
        }
        let bytes = encode_up(message);
        loop {
            match descriptors::send(&self.socket, &bytes, &[]) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    wait(&[(self.as_fd(), PollFlags::OUT)], Some(Duration::from_millis(100)));
                }
                Err(e) => return Err(self.last_word().unwrap_or_else(|| Error::system("sending to the broker")(e))),
            }
        }
    }

    /// Puts a message behind those that wait for room.
    pub(crate) fn queue(&self, message: Up, memories: Vec<Arc<Memory>>) {
        self.outbox.borrow_mut().push_back((encode_up(message), memories));
    }

    /// Whether messages wait for room: to be flushed when the socket is writable.
    pub(crate) fn is_clogged(&self) -> bool {
        !self.outbox.borrow().is_empty()
    }

    /// Sends what there is room for; says whether that was all.
    pub(crate) fn flush(&self) -> Result<bool, Error> {
        let mut outbox = self.outbox.borrow_mut();
        while let Some((bytes, memories)) = outbox.front() {
            let fds: Vec<_> = memories.iter().map(AsFd::as_fd).collect();
            match descriptors::send(&self.socket, bytes, &fds) {
                Ok(()) => drop(outbox.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // More descriptors are on their way than this user may have open; the broker takes them out.
                Err(e) if e.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => return Ok(false),
                Err(e) => return Err(self.last_word().unwrap_or_else(|| Error::system("sending to the broker")(e))),
            }
        }
        Ok(true)
    }

    /// Why the broker has hung up, if it said so.
    fn last_word(&self) -> Option<Error> {
        let mut buffer = vec![0; MAX_MESSAGE];
        while let Ok((bytes @ 1.., _)) = descriptors::receive(&self.socket, &mut buffer) {
            if let Ok(Down::Refused(refused)) = decode_down(&buffer[..bytes]) {
                return Some(refusal(refused));
            }
        }
        None
    }

    /// The next message if there is one. An end of the connection is an error.
    pub(crate) fn receive(&mut self) -> Result<Option<Received>, Error> {
        let received = match descriptors::receive(&self.socket, &mut self.buffer) {
            // It died with something of ours unread. What it had said before is there to be read.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                descriptors::receive(&self.socket, &mut self.buffer)
            }
            other => other,
        };
        match received {
            Ok((0, _)) => Err(Error::BrokerAway { what: "this" }),
            Ok((bytes, fds)) => match decode_down(&self.buffer[..bytes]) {
                Ok(Down::Refused(refused)) => Err(refusal(refused)),
                Ok(message) => Ok(Some(Received { message, fds: fds.into() })),
                Err(error) => Err(Error::Protocol(error.to_string())),
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(Error::system("receiving from the broker")(e)),
        }
    }

    /// Waits for the next message until `deadline`, or until it is stopped.
    pub(crate) fn await_message(&mut self, what: &'static str, deadline: Instant) -> Result<Received, Error> {
        let start = Instant::now();
        loop {
            if let Some(received) = self.receive()? {
                return Ok(received);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Deadline { what, waited: start.elapsed() });
            }
            crate::stop::check()?;
            wait(&[(self.as_fd(), PollFlags::IN)], Some(crate::stop::slice(left)));
        }
    }
}

fn refusal(refused: Refused) -> Error {
    let kind = RefusalKind::try_from(refused.kind).unwrap_or(RefusalKind::Other);
    Error::Refused { kind, message: refused.message }
}

impl AsFd for BrokerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// poll(2); says for each descriptor what happened.
pub(crate) fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], timeout: Option<Duration>) -> Vec<PollFlags> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let timeout =
        timeout.map(|t| Timespec { tv_sec: t.as_secs().min(1 << 30) as i64, tv_nsec: i64::from(t.subsec_nanos()) });
    let _ = poll(&mut polled, timeout.as_ref());
    polled.iter().map(PollFd::revents).collect()
}
