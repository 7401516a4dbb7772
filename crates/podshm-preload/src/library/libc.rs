//! What the library takes of the program's own libc, whichever that is: weak and unversioned, so that it loads without.

use super::sys::Sys;
use core::arch::global_asm;
use core::ffi::{c_char, c_int, c_void};

global_asm!(".weak __errno_location", ".weak __register_atfork", ".weak pthread_atfork", ".weak dlsym");

/// Address of a weak symbol, 0 where nobody defines it.
macro_rules! weak {
    ($name:literal) => {{
        let address: usize;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: loads the symbol's slot of the global offset table, which the loader has filled.
        unsafe {
            core::arch::asm!(concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"), out(reg) address,
                options(pure, readonly, nostack, preserves_flags));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: loads the symbol's slot of the global offset table, which the loader has filled.
        unsafe {
            core::arch::asm!(concat!("adrp {0}, :got:", $name), concat!("ldr {0}, [{0}, :got_lo12:", $name, "]"),
                out(reg) address, options(pure, readonly, nostack, preserves_flags));
        }
        address
    }};
}

/// Sets errno, where there is one.
pub fn set_errno(value: c_int) {
    let address = weak!("__errno_location");
    if address != 0 {
        // SAFETY: glibc and musl define it as this function, which returns the calling thread's own errno.
        unsafe { *core::mem::transmute::<usize, extern "C" fn() -> *mut c_int>(address)() = value };
    }
}

/// A result as C has it: -1 and errno.
pub fn to_c(result: Sys) -> isize {
    match result {
        Ok(value) => value as isize,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

type Handler = extern "C" fn();

/// Has the three called around every fork that libc makes. False where it can't.
pub fn at_fork(prepare: Handler, parent: Handler, child: Handler) -> bool {
    let (glibc, musl) = (weak!("__register_atfork"), weak!("pthread_atfork"));
    if glibc != 0 {
        type Register = extern "C" fn(Handler, Handler, Handler, *mut c_void) -> c_int;
        // SAFETY: glibc's function of this type; without a handle the handlers stay as long as the program.
        let register: Register = unsafe { core::mem::transmute(glibc) };
        register(prepare, parent, child, core::ptr::null_mut()) == 0
    } else if musl != 0 {
        // SAFETY: POSIX's function of this type.
        let register: extern "C" fn(Handler, Handler, Handler) -> c_int = unsafe { core::mem::transmute(musl) };
        register(prepare, parent, child) == 0
    } else {
        false
    }
}

/// The definition that would be found if this library were not there, 0 where there is none.
pub fn next(name: &core::ffi::CStr) -> usize {
    let dlsym = weak!("dlsym");
    if dlsym == 0 {
        return 0;
    }
    const RTLD_NEXT: usize = usize::MAX;
    // SAFETY: dlsym of this type in every libc; the name is a C string.
    let dlsym: extern "C" fn(usize, *const c_char) -> usize = unsafe { core::mem::transmute(dlsym) };
    dlsym(RTLD_NEXT, name.as_ptr())
}
