//! The process at the other end of a Unix socket: who it was when it connected, and, by a pidfd, whether it still lives. A child that
//! kept the socket makes the two differ.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// How a process was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// `SO_PEERPIDFD` (Linux 6.5): the very process that connected.
    PeerPidfd,
    /// The process that has the connecting process's number now: it may be another one if that died and its number was given away
    /// between connecting and asking.
    PeerCredentials,
}

/// What is known of the process that connected.
#[derive(Debug)]
pub enum Peer {
    /// A descriptor that becomes readable when it dies.
    Alive(OwnedFd, Means),
    /// It is dead already.
    Dead,
}

/// Who connected a socket, as the kernel counts in the namespaces of whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its pid; 0 where its pid namespace is not visible from here.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// Who connected `socket`. (Not by rustix: its `Pid` can't be the 0 that a hidden process has.)
pub fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    option(socket.as_fd(), libc::SO_PEERCRED, &mut who)?;
    Ok(Credentials { pid: who.pid, uid: who.uid, gid: who.gid })
}

/// The process that connected `socket` (not one that got the descriptor from it). An error where the kernel or a pid namespace
/// hides it; then a socket that is kept hides a death.
pub fn process_of(socket: impl AsFd) -> io::Result<Peer> {
    match by_pidfd(socket.as_fd()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EINVAL)) => by_credentials(socket.as_fd()),
        other => other,
    }
}

fn by_pidfd(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut fd: libc::c_int = -1;
    match option(socket, libc::SO_PEERPIDFD, &mut fd) {
        // SAFETY: the kernel has just made this descriptor (close-on-exec) for this call's caller.
        Ok(()) if fd >= 0 => Ok(Peer::Alive(unsafe { OwnedFd::from_raw_fd(fd) }, Means::PeerPidfd)),
        Ok(()) => Err(io::Error::other("the kernel gave no pidfd")),
        // Reaped before it was asked for.
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(Peer::Dead),
        Err(e) => Err(e),
    }
}

fn by_credentials(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let Some(pid) = Pid::from_raw(credentials(socket)?.pid) else {
        return Err(io::Error::other("the peer's process is in no pid namespace that is visible from here"));
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Peer::Alive(fd, Means::PeerCredentials)),
        Err(rustix::io::Errno::SRCH) => Ok(Peer::Dead),
        Err(e) => Err(e.into()),
    }
}

/// Reads a socket option of fixed size into plain old data.
fn option<T: Copy>(socket: BorrowedFd<'_>, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut size = size_of::<T>() as libc::socklen_t;
    let value: *mut T = value;
    // SAFETY: the kernel writes at most `size` bytes to `value`, which is that large and made of integers alone (c_int, ucred).
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value.cast(), &raw mut size) };
    match done {
        0 if size as usize == size_of::<T>() => Ok(()),
        0 => Err(io::Error::other(format!("socket option {option} has {size} bytes, expected {}", size_of::<T>()))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn readable(fd: &OwnedFd, seconds: i64) -> bool {
        let mut polled = [PollFd::new(fd, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() == 1
    }

    /// A child that connects, then waits to be killed, having left its end of the socket to this process as well.
    #[test]
    fn a_death_shows_while_the_socket_is_open() {
        let path = std::env::temp_dir().join(format!("podshm-peer-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (theirs, kept) = UnixStream::pair().unwrap();
        // SAFETY: the child makes system calls and leaves by _exit; it is reaped below.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let socket = UnixStream::connect(&path);
            let fds: Vec<BorrowedFd<'_>> = socket.iter().map(AsFd::as_fd).collect();
            let sent = crate::descriptors::send(&theirs, b"x", &fds);
            // SAFETY: waits for its end.
            unsafe {
                if sent.is_ok() {
                    libc::alarm(60);
                    libc::pause();
                }
                libc::_exit(1);
            }
        }
        let (socket, _) = listener.accept().unwrap();
        let (_, kept) = crate::descriptors::receive(&kept, &mut [0; 8]).unwrap();
        assert_eq!(kept.len(), 1);
        let mut alive = Vec::new();
        for found in [process_of(&socket), by_credentials(socket.as_fd())] {
            match found.unwrap() {
                Peer::Alive(fd, means) => alive.push((fd, means)),
                Peer::Dead => panic!("it lives"),
            }
        }
        assert_eq!(alive[1].1, Means::PeerCredentials);
        assert!(alive.iter().all(|(fd, _)| !readable(fd, 0)));
        // SAFETY: the child made above, not reaped yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        assert!(alive.iter().all(|(fd, _)| readable(fd, 20)), "its death does not show");
        // SAFETY: reaps the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
        assert!(matches!(by_credentials(socket.as_fd()).unwrap(), Peer::Dead));
        let mut byte = [0; 1];
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        assert_eq!(rustix::io::read(&socket, &mut byte[..]), Err(rustix::io::Errno::AGAIN), "the socket is open");
        drop(kept);
        assert_eq!(rustix::io::read(&socket, &mut byte[..]), Ok(0));
        let _ = std::fs::remove_file(&path);
    }
}
