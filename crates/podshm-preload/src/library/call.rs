//! One call to the daemon: connect, ask, hear, close.

use super::domain::{self, PATH};
use super::log::{Cause, explain};
use super::sys::{self, Fd, errno, nr, raw};
use crate::wire::{FORK_BATCH, HEAD, WORDS, Words, operation};
use core::ffi::c_int;

/// How long a call waits for a daemon that is being restarted, and then for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To connect, in milliseconds.
    pub connect: i64,
    /// For the answer, in milliseconds: allocating gigabytes takes a while.
    pub answer: i64,
}

/// Of calls whose failure the program sees.
pub const PATIENT: Patience = Patience { connect: 2_000, answer: 60_000 };
/// Of a fork: shorter, since the program's lock is held.
pub const FORKING: Patience = Patience { connect: 100, answer: 1_000 };
/// Of calls that only keep the books.
pub const BRIEF: Patience = Patience { connect: 0, answer: 1_000 };

/// A part of a message: address and length, as `struct iovec`.
pub type Part = [usize; 2];

/// A request.
#[derive(Debug)]
pub struct Request<'a> {
    /// See [`crate::wire`].
    pub words: Words,
    /// The tail. May be memory of the program's, valid or not.
    pub tail: Part,
    /// A descriptor to send along.
    pub fd: Option<c_int>,
    /// Where the reply's tail goes. May be memory of the program's, valid or not.
    pub into: Part,
    /// Descriptors that came.
    pub fds: &'a mut [c_int],
}

/// A reply that is no error.
#[derive(Debug)]
pub struct Reply {
    /// The result.
    pub result: usize,
    /// Values.
    pub values: [u64; 2],
    /// Descriptors that came.
    pub fds: usize,
}

#[repr(C)]
struct Header {
    name: usize,
    name_length: u32,
    parts: *const Part,
    part_count: usize,
    control: *mut u64,
    control_length: usize,
    flags: i32,
}

const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const MSG_NOSIGNAL: usize = 0x4000;
/// SOL_SOCKET and SCM_RIGHTS as the control header's second word.
const RIGHTS: u64 = 1 << 32 | 1;

/// Asks; an errno is the daemon's answer, or ENOMEM where there is none.
pub fn call(request: Request<'_>, patience: Patience) -> Result<Reply, c_int> {
    let what = operation(&request.words).unwrap_or(0);
    match exchange(request, patience) {
        Ok((reply, _)) if operation(&reply) != Some(what) => {
            explain(Cause::Silent, &[b"what answers at the domain's socket is not this library's daemon"]);
            Err(errno::ENOMEM)
        }
        Ok((reply, fds)) => match reply[1] as i64 {
            error @ -4095..0 => Err(-error as c_int),
            result => Ok(Reply { result: result as usize, values: [reply[2], reply[3]], fds }),
        },
        Err(errno::EFAULT) => Err(errno::EFAULT),
        Err(errno::ECONNREFUSED | errno::ENOENT) => {
            let path = domain::domain().socket;
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(0);
            explain(
                Cause::NoDaemon,
                &[
                    b"nobody answers at ",
                    &path[..end],
                    b", so this call ends in an error; is the node daemon running? Nothing runs private instead",
                ],
            );
            Err(errno::ENOMEM)
        }
        Err(_) => {
            explain(Cause::Silent, &[b"the domain's daemon took the call and did not answer it; it ends in an error"]);
            Err(errno::ENOMEM)
        }
    }
}

/// Says something that needs no answer. Connections are served in order, so later calls find it said.
pub fn tell(words: Words, tail: Part) {
    if let Ok(socket) = connect(&domain::domain().socket, &mut { BRIEF.connect }) {
        let _ = send(&socket, &Request { words, tail, fd: None, into: [0, 0], fds: &mut [] });
    }
}

fn exchange(mut request: Request<'_>, patience: Patience) -> Result<(Words, usize), c_int> {
    let mut left = patience.connect;
    loop {
        match exchange_once(&mut request, &mut left, patience.answer) {
            // The daemon went away without having read the request: the kernel says so where it throws something unread away.
            // Nobody has done anything for it, so the next daemon may be asked.
            Err(errno::ECONNRESET | errno::EPIPE) if left > 0 => pause(&mut left),
            other => return other,
        }
    }
}

/// A moment of what is left.
fn pause(left: &mut i64) {
    sys::sleep_ms(10);
    *left -= 10;
}

fn exchange_once(request: &mut Request<'_>, left: &mut i64, answer: i64) -> Result<(Words, usize), c_int> {
    let socket = connect(&domain::domain().socket, left)?;
    send(&socket, request)?;
    await_answer(&socket, answer)?;
    let mut reply = [0u64; WORDS];
    let parts = [[reply.as_mut_ptr() as usize, HEAD], request.into];
    let mut control = [0u64; 2 + FORK_BATCH / 2];
    let mut header = Header {
        name: 0,
        name_length: 0,
        parts: parts.as_ptr(),
        part_count: if request.into[1] == 0 { 1 } else { 2 },
        control: control.as_mut_ptr(),
        control_length: size_of_val(&control),
        flags: 0,
    };
    let at = &raw mut header as usize;
    // SAFETY: the header's first part and its control buffer are ours; the second part is where the program wants its
    // answer, and the kernel checks that.
    let read = unsafe { raw(nr::RECVMSG, [socket.0 as usize, at, MSG_CMSG_CLOEXEC, 0, 0, 0]) }?;
    let mut fds = 0;
    // A control header is its length and RIGHTS; the descriptors follow, four bytes each.
    if header.control_length >= 16 && control[1] == RIGHTS {
        let count = (control[0] as usize).saturating_sub(16) / 4;
        for index in 0..count.min(FORK_BATCH) {
            let fd = (control[2 + index / 2] >> (32 * (index % 2))) as u32 as c_int;
            match request.fds.get_mut(index) {
                Some(slot) => {
                    *slot = fd;
                    fds += 1;
                }
                None => sys::close(fd),
            }
        }
    }
    if read < HEAD {
        request.fds.iter().take(fds).for_each(|fd| sys::close(*fd));
        return Err(errno::ETIMEDOUT);
    }
    Ok((reply, fds))
}

fn connect(path: &[u8; PATH], left: &mut i64) -> Result<Fd, c_int> {
    const UNIX: usize = 1;
    const SEQPACKET_CLOEXEC: usize = 5 | 0o2000000;
    let mut address = [0u8; 2 + PATH];
    address[..2].copy_from_slice(&1u16.to_ne_bytes());
    address[2..].copy_from_slice(path);
    loop {
        // SAFETY: touches no memory.
        let socket = unsafe { raw(nr::SOCKET, [UNIX, SEQPACKET_CLOEXEC, 0, 0, 0, 0]) }?;
        let socket = Fd(socket as c_int);
        let to = [socket.0 as usize, address.as_ptr() as usize, address.len(), 0, 0, 0];
        // SAFETY: the kernel reads the address.
        match unsafe { raw(nr::CONNECT, to) } {
            Ok(_) => return Ok(socket),
            // A daemon that is being replaced is back at once.
            Err(errno::ECONNREFUSED | errno::ENOENT) if *left > 0 => pause(left),
            Err(errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(socket: &Fd, request: &Request<'_>) -> Result<(), c_int> {
    let parts = [[request.words.as_ptr() as usize, HEAD], request.tail];
    let mut control = [20, RIGHTS, u64::from(request.fd.unwrap_or(0) as u32)];
    let header = Header {
        name: 0,
        name_length: 0,
        parts: parts.as_ptr(),
        part_count: if request.tail[1] == 0 { 1 } else { 2 },
        control: control.as_mut_ptr(),
        control_length: if request.fd.is_some() { 24 } else { 0 },
        flags: 0,
    };
    // SAFETY: the header's first part and its control buffer are ours; the second part may be the program's, and the kernel
    // checks it.
    unsafe { raw(nr::SENDMSG, [socket.0 as usize, &raw const header as usize, MSG_NOSIGNAL, 0, 0, 0]) }.map(drop)
}

fn await_answer(socket: &Fd, milliseconds: i64) -> Result<(), c_int> {
    const READABLE: u64 = 1 << 32;
    let mut poll = u64::from(socket.0 as u32) | READABLE;
    let time = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    loop {
        let arguments = [&raw mut poll as usize, 1, time.as_ptr() as usize, 0, 0, 0];
        // SAFETY: one pollfd (a descriptor, what is awaited, what came) and one timespec, both ours.
        match unsafe { raw(nr::PPOLL, arguments) } {
            Ok(0) => return Err(errno::ETIMEDOUT),
            Err(errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}
