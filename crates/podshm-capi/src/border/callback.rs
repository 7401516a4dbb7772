//! Functions of C's that are called back.

use crate::last::Fault;
use std::ffi::c_void;

/// Writes the bytes from `offset` on into `part`, which has room for `len`.
pub type podshm_fill = Option<unsafe extern "C" fn(user: *mut c_void, offset: usize, part: *mut c_void, len: usize)>;

/// Gets the bytes from `offset` on of `total`.
pub type podshm_each =
    Option<unsafe extern "C" fn(user: *mut c_void, offset: usize, total: usize, part: *const c_void, len: usize)>;

/// Says whether to stop.
pub type podshm_stop = Option<unsafe extern "C" fn(user: *mut c_void) -> bool>;

/// Called once when a user pointer is not needed any more.
pub type podshm_release = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// What a callback gets back.
#[repr(transparent)]
pub struct User(*mut c_void);

fn missing(what: &'static str) -> Fault {
    Fault::Argument { what, address: 0, bytes: 0, why: "it is null" }
}

/// A [`podshm_fill`] with its user pointer.
pub struct Fill {
    fill: unsafe extern "C" fn(*mut c_void, usize, *mut c_void, usize),
    user: *mut c_void,
    release: podshm_release,
}

// SAFETY: **callback**: the header says that it may be called from any thread, one at a time.
unsafe impl Send for Fill {}

impl Fill {
    /// One that is released when it is dropped; at once, where `fill` is null.
    pub(crate) fn new(fill: podshm_fill, user: User, release: podshm_release) -> Result<Self, Fault> {
        match fill {
            Some(fill) => Ok(Fill { fill, user: user.0, release }),
            None => Err(missing("the function that fills")),
        }
    }

    #[inline(always)]
    pub(crate) fn part(&mut self, offset: usize, part: &mut [u8]) {
        // SAFETY: **callback**; the bytes are lent for as long as it runs.
        unsafe { (self.fill)(self.user, offset, part.as_mut_ptr().cast(), part.len()) };
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: **callback**; this is the one call of it.
            unsafe { release(self.user) };
        }
    }
}

/// A [`podshm_each`] with its user pointer.
pub struct Each {
    each: unsafe extern "C" fn(*mut c_void, usize, usize, *const c_void, usize),
    user: *mut c_void,
}

impl Each {
    pub(crate) fn new(each: podshm_each, user: User) -> Result<Self, Fault> {
        each.map(|each| Each { each, user: user.0 }).ok_or_else(|| missing("the function that gets the parts"))
    }

    #[inline(always)]
    pub(crate) fn part(&mut self, offset: usize, total: usize, part: &[u8]) {
        // SAFETY: **callback**; the bytes are lent for as long as it runs.
        unsafe { (self.each)(self.user, offset, total, part.as_ptr().cast(), part.len()) };
    }
}

/// A [`podshm_stop`] with its user pointer; null never stops.
pub struct Stop {
    stop: podshm_stop,
    user: *mut c_void,
}

impl Stop {
    pub(crate) fn new(stop: podshm_stop, user: User) -> Self {
        Stop { stop, user: user.0 }
    }

    pub(crate) fn is_due(&mut self) -> bool {
        // SAFETY: **callback**.
        self.stop.is_some_and(|stop| unsafe { stop(self.user) })
    }
}
