//! Which library this is.

use crate::border::Out;
use crate::last::entry;
use crate::result::podshm_result;
use std::ffi::{CStr, c_char};

/// The release that this header belongs to.
pub const PODSHM_VERSION_MAJOR: u32 = 0;
/// The release that this header belongs to.
pub const PODSHM_VERSION_MINOR: u32 = 1;
/// The release that this header belongs to.
pub const PODSHM_VERSION_PATCH: u32 = 0;
/// The ABI that this header belongs to: the number in the library's soname. See docs/c-abi.md.
pub const PODSHM_ABI: u32 = 0;

/// For a timeout: no end.
pub const PODSHM_FOREVER: u64 = 0xffff_ffff_ffff_ffff;
/// For podshm_caller_spinning(): sleep at once.
pub const PODSHM_SPIN_NEVER: u64 = 0;
/// For podshm_caller_spinning(): never sleep.
pub const PODSHM_SPIN_ALWAYS: u64 = 0xffff_ffff_ffff_ffff;
/// The ring to start with for a queue.
pub const PODSHM_DEFAULT_RING: u32 = 32768;
/// The ring to start with for a call.
pub const PODSHM_DEFAULT_CALL_RING: u32 = 16384;
/// The first status that agents may give a meaning to: see podshm_answer_fail().
pub const PODSHM_FIRST_STATUS: u32 = 16;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// The release of the library that is loaded, which need not be the header's: "0.1.0". Never null, never to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The ABI of the library that is loaded: PODSHM_ABI of its header.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_abi(abi: Out<u32>) -> podshm_result {
    entry(|| abi.set(PODSHM_ABI))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_release_and_of_the_library() {
        let version = format!("{PODSHM_VERSION_MAJOR}.{PODSHM_VERSION_MINOR}.{PODSHM_VERSION_PATCH}");
        assert_eq!(VERSION.to_str().unwrap(), version);
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        assert_eq!((PODSHM_DEFAULT_RING, PODSHM_DEFAULT_CALL_RING), (podshm::DEFAULT_RING, podshm::DEFAULT_CALL_RING));
        assert_eq!(PODSHM_FIRST_STATUS, podshm::Answer::FIRST_STATUS);
        let build = include_str!("../build.rs");
        assert!(
            build.contains(&format!("-soname,libpodshm.so.{PODSHM_ABI}\"")),
            "the soname carries another ABI number"
        );
    }
}
