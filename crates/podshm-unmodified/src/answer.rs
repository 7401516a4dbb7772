//! One request, one answer: decides by [`Segments`](crate::segments), does by [`Store`] and [`Posix`].

use crate::events::{Pending, Reason};
use crate::peer::Peer;
use crate::permissions::Caller;
use crate::posix::Posix;
use crate::segments::{Get, IPC_PRIVATE, Removal, Segment, Segments};
use crate::shmid_ds;
use crate::store::Store;
use podshm_preload::wire::command::*;
use podshm_preload::wire::{self, FORK_BATCH, READ_ONLY, Words};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

const SHM_RDONLY: u32 = 0o10000;

/// What goes back.
#[derive(Debug, Default)]
pub struct Answer {
    /// The words after the result.
    pub values: [u64; 2],
    /// What a call returns where it succeeds.
    pub result: i64,
    /// The structure that it fills.
    pub tail: Vec<u8>,
    /// Descriptors for the caller.
    pub fds: Vec<OwnedFd>,
}

/// A domain's memory.
#[derive(Debug)]
pub struct Memory {
    /// System V.
    pub store: Store,
    /// POSIX.
    pub posix: Posix,
    /// What somebody should hear of.
    pub events: Pending,
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}

impl Memory {
    /// Answers.
    pub fn answer(&mut self, peer: &Peer, words: &Words, tail: &[u8], fd: Option<OwnedFd>) -> Result<Answer, Errno> {
        let [_, first, second, third, ..] = *words;
        let id = first as i32;
        let operation = wire::operation(words).ok_or(Errno::PROTO)?;
        if operation != wire::UNDO && self.store.segments().find(id).is_ok_and(Segment::is_doomed) {
            self.store.count(id, now()); // its last attachment may have gone without a word
        }
        match operation {
            wire::HELLO => Ok(Answer::default()),
            wire::GET => self.get(peer, id, second, third as u32).map(|id| result(i64::from(id))),
            wire::ATTACH => self.attach(peer, id, second as u32),
            wire::UNDO => {
                self.store.undo(id, second, now());
                Ok(Answer::default())
            }
            wire::DETACH => {
                self.store.detach(id, second, peer.process(), now());
                Ok(Answer::default())
            }
            wire::FORK => self.fork(peer, first, tail),
            wire::ADOPT => {
                for (id, token) in pairs(first, tail)? {
                    self.store.adopt(id, token, peer.process());
                }
                Ok(Answer::default())
            }
            wire::CONTROL => self.control(peer, id, second as i32, tail),
            wire::OPEN => {
                let name = std::str::from_utf8(tail).map_err(|_| Errno::INVAL)?;
                let file = self.posix.open_object(peer, name, first as u32, second as u32)?;
                Ok(Answer { fds: vec![file], ..Answer::default() })
            }
            wire::UNLINK => {
                let name = std::str::from_utf8(tail).map_err(|_| Errno::NOENT)?;
                self.posix.unlink(peer, name).map(|()| Answer::default())
            }
            wire::GROW => self.posix.grow(fd.as_ref().ok_or(Errno::BADF)?, first).map(|()| Answer::default()),
            _ => Err(Errno::NOSYS),
        }
    }

    /// Decides with what the socket tells of the caller, and with all of its credentials where those may make a difference.
    fn decide<R>(
        &mut self,
        peer: &Peer,
        owner: bool,
        mut decide: impl FnMut(&mut Store, &Caller) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        if owner {
            match decide(&mut self.store, &peer.caller) {
                Err(Errno::ACCESS | Errno::PERM) => {}
                other => return other,
            }
        }
        decide(&mut self.store, &peer.in_full())
    }

    fn owns(&self, peer: &Peer, id: i32) -> bool {
        self.store.segments().find(id).map_or(true, |segment| segment.owned.is_owner(&peer.caller))
    }

    fn get(&mut self, peer: &Peer, key: i32, size: u64, flags: u32) -> Result<i32, Errno> {
        let found = self.store.segments().all().find(|segment| segment.key == key && key != IPC_PRIVATE);
        let owner = found.is_none_or(|segment| segment.owned.is_owner(&peer.caller));
        let get = |store: &mut Store, caller: &Caller| store.segments().get(caller, key, size, flags);
        let mut got = self.decide(peer, owner, get);
        if got == Err(Errno::NOSPC) {
            self.store.sweep(now());
            got = self.decide(peer, owner, get);
        }
        match got {
            Ok(Get::There(id)) => Ok(id),
            Ok(Get::Make) => {
                let creator = peer.process_in_full();
                let make = |all: &mut Segments| all.make(&peer.caller, key, size, flags, creator, now()).id;
                self.store.make(size, make)
            }
            Err(error @ Errno::NOSPC) => {
                let limits = self.store.segments().limits();
                let pages = self.store.segments().pages();
                let why = "shmget of a new segment: ENOSPC, the domain's shmall or shmmni is reached; see `podshm ls`";
                if self.events.note(Reason::SegmentRefused, &peer.member, why.to_owned()) {
                    tracing::warn!(member = peer.member, size, pages, ?limits, %error, "a segment was refused");
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn attach(&mut self, peer: &Peer, id: i32, flags: u32) -> Result<Answer, Errno> {
        let owner = self.owns(peer, id);
        let size = self.decide(peer, owner, |store, caller| {
            store.segments().attach(caller, id, flags).map(|segment| segment.size)
        })?;
        let (file, token) = self.store.open_for(id, (flags & SHM_RDONLY != 0, false), peer.process(), now())?;
        Ok(Answer { values: [size, token], fds: vec![file], ..Answer::default() })
    }

    /// Whoever knows the token of an attachment has it, so a child of it gets the same without another look at permissions.
    fn fork(&mut self, peer: &Peer, count: u64, tail: &[u8]) -> Result<Answer, Errno> {
        let mut answer = Answer::default();
        for (id, token) in pairs(count, tail)? {
            // Unmapped by other means than `shmdt`: the parent's list still has it, and there is nothing for the child.
            if !self.store.holds(id, token) {
                answer.tail.extend(0u64.to_ne_bytes());
                continue;
            }
            let (file, token) = self.store.open_for(id, (token & READ_ONLY != 0, true), peer.process(), now())?;
            answer.tail.extend(token.to_ne_bytes());
            answer.fds.push(file);
        }
        Ok(answer)
    }

    fn control(&mut self, peer: &Peer, id: i32, command: i32, tail: &[u8]) -> Result<Answer, Errno> {
        if id < 0 {
            return Err(Errno::INVAL);
        }
        let owner = self.owns(peer, id);
        match command {
            IPC_RMID => {
                let attached = self.store.count(id, now());
                let removal = self.decide(peer, owner, |store, caller| {
                    store.change(id, |segments| segments.remove(caller, id, attached))
                })?;
                if removal == Removal::Now {
                    self.store.erase(id);
                }
                Ok(Answer::default())
            }
            IPC_SET => {
                let (uid, gid, mode) = shmid_ds::to_change(tail).ok_or(Errno::FAULT)?;
                let to = peer.ids().outside(uid, gid);
                self.decide(peer, owner, |store, caller| {
                    store.change(id, |segments| segments.set(caller, id, to, mode, now()))
                })?;
                Ok(Answer::default())
            }
            SHM_LOCK | SHM_UNLOCK => {
                let lock = command == SHM_LOCK;
                self.decide(peer, owner, |store, caller| store.change(id, |segments| segments.lock(caller, id, lock)))?;
                Ok(Answer::default())
            }
            IPC_STAT | SHM_STAT | SHM_STAT_ANY => self.stat(peer, id, command),
            IPC_INFO | SHM_INFO => {
                self.store.sweep(now());
                let segments = self.store.segments();
                let tail = if command == IPC_INFO { shmid_ds::limits(segments) } else { shmid_ds::usage(segments) };
                Ok(Answer { tail, ..result(i64::from(segments.highest_index())) })
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn stat(&mut self, peer: &Peer, id: i32, command: i32) -> Result<Answer, Errno> {
        let by_index = command != IPC_STAT;
        if by_index {
            self.store.sweep(now());
        }
        let find = |segments: &Segments| if by_index { segments.find_index(id) } else { segments.find(id) }.cloned();
        let found = find(self.store.segments())?;
        let owner = found.owned.is_owner(&peer.caller);
        if command != SHM_STAT_ANY {
            self.decide(peer, owner, |store, caller| store.segments().readable(caller, &found).map(drop))?;
        }
        let attached = self.store.count(found.id, now());
        let found = find(self.store.segments())?; // as counting has left it
        let tail = shmid_ds::of_segment(&found, attached, &peer.ids(), &peer.member);
        Ok(Answer { tail, ..result(if by_index { i64::from(found.id) } else { 0 }) })
    }
}

/// Ids and tokens of a request that has them as its tail.
fn pairs(count: u64, tail: &[u8]) -> Result<impl Iterator<Item = (i32, u64)>, Errno> {
    if count > FORK_BATCH as u64 || tail.len() as u64 != count * 16 {
        return Err(Errno::INVAL);
    }
    let word = |pair: &[u8], at: usize| u64::from_ne_bytes(pair[at..at + 8].try_into().expect("eight bytes"));
    Ok(tail.chunks_exact(16).map(move |pair| (word(pair, 0) as i32, word(pair, 8))))
}

fn result(result: i64) -> Answer {
    Answer { result, ..Answer::default() }
}
