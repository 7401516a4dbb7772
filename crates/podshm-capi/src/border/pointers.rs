//! Bytes, strings and places for results.

use super::handle::{self, Kind};
use crate::last::Fault;
use std::ffi::{CStr, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Addresses below this are no memory: the kernel keeps the first page free.
const LOWEST: usize = 4096;

/// Nor is there any from here on: what a program gets without asking for more lies below, on x86-64 as on aarch64.
const HIGHEST: usize = 1 << 48;

/// Longest string that is taken: the kernel's PATH_MAX.
const LONGEST_TEXT: usize = 4096;

/// Whether there is nothing that can be said against a pointer without following it.
#[inline(always)]
pub(super) fn may_be<T>(pointer: *const T, bytes: usize) -> bool {
    let address = pointer.addr();
    // From LOWEST to HIGHEST by one comparison: what lies below is huge once LOWEST is taken off.
    let fits = bytes <= HIGHEST - LOWEST && address.wrapping_sub(LOWEST) <= HIGHEST - LOWEST - bytes;
    fits && address.is_multiple_of(align_of::<T>())
}

/// [`may_be`] of three pointers at once, by one comparison; up to `bytes` bytes follow each of them, or a handle's few. It may say no where nothing is wrong: whoever asks has
/// another way then, which says what it is.
#[inline(always)]
pub(super) fn may_all_be(addresses: [usize; 3], bytes: usize) -> bool {
    // What lies below LOWEST is huge once that is taken off, and no two numbers below the half add up to more than HIGHEST and LOWEST.
    const HALF: usize = HIGHEST / 2;
    addresses.iter().fold(bytes, |all, address| all | address.wrapping_sub(LOWEST)) < HALF
}

/// [`may_be`], or what is against it.
#[inline(always)]
pub(super) fn check<T>(pointer: *const T, bytes: usize, what: &'static str) -> Result<(), Fault> {
    if may_be(pointer, bytes) {
        return Ok(());
    }
    Err(refused(pointer.addr(), align_of::<T>(), bytes, what))
}

#[cold]
fn refused(address: usize, align: usize, bytes: usize, what: &'static str) -> Fault {
    let why = if address == 0 {
        "it is null"
    } else if !address.is_multiple_of(align) {
        "it is not aligned"
    } else if address < LOWEST {
        "there is no memory"
    } else {
        "no memory is that large or lies there"
    };
    Fault::Argument { what, address, bytes, why }
}

/// A length that C gave.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Len(usize);

impl Len {
    #[inline(always)]
    pub(super) fn get(self) -> usize {
        self.0
    }
}

/// Bytes to read; their length is the argument that follows.
#[repr(transparent)]
pub struct Data(*const c_void);

impl Data {
    /// The bytes. Null is none, where `len` is 0.
    #[inline(always)]
    pub(crate) fn slice(&self, len: Len) -> Result<&[u8], Fault> {
        if len.0 == 0 {
            return Ok(&[]);
        }
        check(self.0.cast::<u8>(), len.0, "bytes to read")?;
        // SAFETY: **bytes**, and just checked: not null, not longer than memory.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast(), len.0) })
    }
}

/// Some bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct podshm_bytes {
    /// The first one.
    pub data: *const c_void,
    /// How many.
    pub len: usize,
}

/// Several runs of bytes; their number is the argument that follows.
#[repr(transparent)]
pub struct Runs(*const podshm_bytes);

impl Runs {
    /// They. Null is none, where `count` is 0.
    #[inline(always)]
    pub(crate) fn each(&self, count: Len) -> Result<impl Iterator<Item = Result<&[u8], Fault>>, Fault> {
        let runs: &[podshm_bytes] = if count.0 == 0 {
            &[]
        } else {
            let bytes = count.0.saturating_mul(size_of::<podshm_bytes>());
            check(self.0, bytes, "the records")?;
            // SAFETY: **bytes**: `count` of them can be read; just checked: not null, aligned, not longer than memory.
            unsafe { std::slice::from_raw_parts(self.0, count.0) }
        };
        Ok(runs.iter().map(|run| {
            if run.len == 0 {
                return Ok(&[][..]);
            }
            check(run.data.cast::<u8>(), run.len, "bytes to read")?;
            // SAFETY: **bytes**, for each run as for [`Data`].
            Ok(unsafe { std::slice::from_raw_parts(run.data.cast(), run.len) })
        }))
    }
}

/// Room for bytes; its size is the argument that follows.
#[repr(transparent)]
pub struct Room(*mut c_void);

impl Room {
    /// The room. Null is none, where `len` is 0.
    #[inline(always)]
    pub(crate) fn slice(&mut self, len: Len) -> Result<&mut [u8], Fault> {
        if len.0 == 0 {
            return Ok(&mut []);
        }
        check(self.0.cast_const().cast::<u8>(), len.0, "room for bytes")?;
        // SAFETY: **bytes**, and just checked: not null, not longer than memory. What C has not initialised are bytes all the
        // same to whoever is called from outside, and they are only written here.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), len.0) })
    }

    /// Where it begins, to be looked at with others.
    #[inline(always)]
    pub(super) fn address(&self) -> usize {
        self.0.addr()
    }

    /// [`Room::slice`], where that has been looked at.
    ///
    /// # Safety
    /// Nothing is against a place of `len` bytes there.
    #[inline(always)]
    pub(super) unsafe fn seen(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: as in `slice`: **bytes**, and checked by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast(), len) }
    }
}

/// A string that ends with a zero byte.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    fn bytes(&self, what: &'static str) -> Result<&[u8], Fault> {
        check(self.0, 1, what)?;
        // SAFETY: **bytes**: it ends with a zero byte, and none after it is looked at.
        let bytes = unsafe { CStr::from_ptr(self.0) }.to_bytes();
        if bytes.len() >= LONGEST_TEXT {
            let why = "it is longer than any path";
            return Err(Fault::Argument { what, address: self.0.addr(), bytes: bytes.len(), why });
        }
        Ok(bytes)
    }

    /// The name of a service.
    pub(crate) fn name(&self) -> Result<&str, Fault> {
        let bytes = self.bytes("the name")?;
        let not_utf_8 = |_| Fault::Argument {
            what: "the name",
            address: self.0.addr(),
            bytes: bytes.len(),
            why: "it is not UTF-8",
        };
        std::str::from_utf8(bytes).map_err(not_utf_8)
    }

    /// A path.
    pub(crate) fn path(&self) -> Result<&Path, Fault> {
        Ok(Path::new(OsStr::from_bytes(self.bytes("the path")?)))
    }
}

/// A place for a result.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes it.
    #[inline(always)]
    pub(crate) fn set(&self, value: T) -> Result<(), Fault> {
        check(self.0.cast_const(), size_of::<T>(), "the place for the result")?;
        // SAFETY: **place**, and just checked: not null, aligned.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Where it is, to be looked at with others.
    #[inline(always)]
    pub(super) fn address(&self) -> usize {
        self.0.addr()
    }

    /// [`Out::set`], where that has been looked at.
    ///
    /// # Safety
    /// It is aligned, and nothing is against a place there.
    #[inline(always)]
    pub(super) unsafe fn set_seen(&self, value: T) {
        // SAFETY: **place**, and checked by the caller.
        unsafe { self.0.write(value) };
    }

    /// Writes it where there is a place; null says that it is not wanted.
    #[inline(always)]
    pub(crate) fn set_if_wanted(&self, value: T) -> Result<(), Fault> {
        if self.0.is_null() { Ok(()) } else { self.set(value) }
    }

    /// Says beforehand whether [`Out::set_if_wanted`] will work, for functions that do something which can't be undone.
    #[inline(always)]
    pub(crate) fn check_if_wanted(&self) -> Result<(), Fault> {
        if self.0.is_null() { Ok(()) } else { check(self.0.cast_const(), size_of::<T>(), "the place for the result") }
    }
}

impl<T: Kind> Out<*mut T> {
    /// Gives C a new handle, or null where `make` fails.
    pub(crate) fn give(&self, make: impl FnOnce() -> Result<T, Fault>) -> Result<(), Fault> {
        self.set(std::ptr::null_mut())?;
        let new = make()?;
        self.set(handle::give(new))
    }
}
