//! Whether there are descriptors for what is asked: found out before anything is made, so that running out of them is a refusal by
//! name and not a failure halfway.

use podshm_domain::Refusal;
use podshm_region::Memory;
use std::os::fd::OwnedFd;

/// Opens `asked` descriptors, all or none, and closes them again.
pub(crate) fn room(like: &Memory, asked: usize) -> Result<(), Refusal> {
    let mut opened = Vec::with_capacity(asked);
    while opened.len() < asked {
        match like.try_clone() {
            Ok(one) => opened.push(one),
            Err(_) => return Err(Refusal::Descriptors { asked: asked as u64, left: opened.len() as u64 }),
        }
    }
    Ok(())
}

/// One descriptor that is kept so that somebody who connects when there are no others can be told so.
#[derive(Debug)]
pub(crate) struct Reserve(Option<OwnedFd>);

impl Reserve {
    pub(crate) fn of(fd: &OwnedFd) -> Self {
        Reserve(fd.try_clone().ok())
    }

    /// Gives it up; `false` where it is gone already.
    pub(crate) fn spend(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// Takes another one if there is one; says whether there is a reserve.
    pub(crate) fn refill(&mut self, fd: &OwnedFd) -> bool {
        if self.0.is_none() {
            self.0 = fd.try_clone().ok();
        }
        self.0.is_some()
    }
}
