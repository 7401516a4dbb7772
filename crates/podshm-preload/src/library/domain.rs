//! Whether this process is in a domain: read from its environment once, before the program can change it.
//!
//! ```text
//!  PODSHM_SHM_SOCKET=DIR/shm.sock            as `podshm run` says it, with PODSHM_SHM_POSIX
//!  LD_PRELOAD=DIR/lib/libpodshm-preload.so   enough where the daemon's socket is in the same DIR, as in a volume of podshm.dev
//! ```

use super::lock::Lock;
use super::sys;
use core::sync::atomic::{AtomicU32, Ordering};

/// Longest path of a socket, with its NUL: what `sockaddr_un` has.
pub const PATH: usize = 108;

/// What the environment says.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// Path of the socket, ends in NUL.
    pub socket: [u8; PATH],
    /// /dev/shm is the domain's.
    pub posix_mounted: bool,
    present: bool,
    log: bool,
}

static DOMAIN: Lock<Domain> = Lock::new(Domain { socket: [0; PATH], posix_mounted: false, present: false, log: false });
/// 0 not read yet, else [`READ`] and what decides each call without the lock.
static STATE: AtomicU32 = AtomicU32::new(0);
const READ: u32 = 1;
const PRESENT: u32 = 2;
const LOG: u32 = 4;
const MOUNTED: u32 = 8;

fn state() -> u32 {
    // Acquire pairs with the Release below; the struct itself is read under its lock.
    match STATE.load(Ordering::Acquire) {
        0 => read_environment(),
        state => state,
    }
}

/// Is there a domain?
pub fn present() -> bool {
    state() & PRESENT != 0
}

/// Is /dev/shm the domain's? (Only asked where there is one.)
pub fn posix_mounted() -> bool {
    state() & MOUNTED != 0
}

/// Does `PODSHM_LOG` ask for explanations?
pub fn asks_for_log() -> bool {
    state() & LOG != 0
}

/// The domain, where there is one.
pub fn domain() -> Domain {
    state();
    *DOMAIN.lock()
}

fn read_environment() -> u32 {
    let mut domain = DOMAIN.lock();
    let mut search = Search::new();
    // Not libc's `environ`: a preloaded library may start before it is set, and programs move it.
    if let Ok(file) = sys::open(b"/proc/self/environ\0", sys::O_RDONLY | sys::O_CLOEXEC, 0) {
        let mut buffer = [0u8; 2048];
        while let Ok(read @ 1..) = sys::read(&file, &mut buffer) {
            buffer[..read].iter().for_each(|byte| search.take(*byte, &mut domain));
        }
        search.take(0, &mut domain);
    }
    if domain.socket[0] != b'/' {
        beside_library(&search.beside, &mut domain);
    }
    domain.present = domain.socket[0] == b'/';
    let state = READ
        | if domain.present { PRESENT } else { 0 }
        | if domain.log { LOG } else { 0 }
        | if domain.posix_mounted { MOUNTED } else { 0 };
    STATE.store(state, Ordering::Release);
    state
}

/// The volume's directory has what the environment does not say: the daemon's socket, and what of /dev/shm is the domain's.
fn beside_library(directory: &Beside, domain: &mut Domain) {
    let mut path = [0; PATH];
    if !directory.join(b"/shm.sock", &mut path) || sys::open(&path, sys::O_PATH | sys::O_CLOEXEC, 0).is_err() {
        return;
    }
    domain.socket = path;
    let mut shm = [0; PATH];
    let device = |path: &[u8]| {
        let directory = sys::open(path, sys::O_PATH | sys::O_CLOEXEC, 0)?;
        sys::stat(directory.0).map(|(file, ..)| file.device)
    };
    // Where the domain has no /dev/shm there is nothing to ask for either: the program has its own.
    domain.posix_mounted = match directory.join(b"/shm", &mut shm).then(|| device(&shm)) {
        Some(Ok(domains)) => device(b"/dev/shm\0") == Ok(domains),
        _ => true,
    };
}

/// A directory that has `lib/libpodshm-preload.so` in it; none where the length is 0.
struct Beside {
    path: [u8; PATH],
    length: usize,
}

impl Beside {
    /// A path in it, with its NUL.
    fn join(&self, name: &[u8], into: &mut [u8; PATH]) -> bool {
        let fits = self.length != 0 && self.length + name.len() < PATH;
        if fits {
            into[..self.length].copy_from_slice(&self.path[..self.length]);
            into[self.length..self.length + name.len()].copy_from_slice(name);
        }
        fits
    }
}

const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// Picks four variables out of NUL-separated `NAME=value`s, a byte at a time.
struct Search {
    variable: [u8; 18 + PATH],
    length: usize,
    beside: Beside,
}

impl Search {
    fn new() -> Self {
        Search { variable: [0; 18 + PATH], length: 0, beside: Beside { path: [0; PATH], length: 0 } }
    }

    /// One of the libraries that the loader was asked for.
    fn preloaded(&mut self) {
        let all = &self.variable[..self.length.min(self.variable.len())];
        let ours = all.strip_prefix(PRELOAD).and_then(|path| path.strip_suffix(b"/lib/libpodshm-preload.so"));
        if let Some(path) = ours.filter(|path| path.first() == Some(&b'/') && path.len() < PATH) {
            self.beside.path[..path.len()].copy_from_slice(path);
            self.beside.length = path.len();
        }
    }

    fn take(&mut self, byte: u8, domain: &mut Domain) {
        let in_preload = self.length >= PRELOAD.len() && self.variable.starts_with(PRELOAD);
        if in_preload && matches!(byte, 0 | b':' | b' ') {
            self.preloaded();
            // The next of the list is looked at as if it were alone.
            self.length = if byte == 0 { 0 } else { PRELOAD.len() };
            return;
        }
        if byte != 0 {
            if self.length < self.variable.len() {
                self.variable[self.length] = byte;
            }
            self.length += 1;
            return;
        }
        let all = &self.variable[..self.length.min(self.variable.len())];
        if let Some(path) = all.strip_prefix(b"PODSHM_SHM_SOCKET=") {
            // One that doesn't fit is none: `podshm run` refuses to make such.
            if self.length < 18 + PATH {
                domain.socket = [0; PATH];
                domain.socket[..path.len()].copy_from_slice(path);
            }
        } else if let Some(value) = all.strip_prefix(b"PODSHM_SHM_POSIX=") {
            domain.posix_mounted = value == b"mounted";
        } else if let Some(value) = all.strip_prefix(b"PODSHM_LOG=") {
            domain.log = !value.is_empty() && value != b"off" && value != b"error";
        }
        self.length = 0;
    }
}

#[cfg(podshm_cdylib)]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

/// At load: a program may change its environment, or what /proc shows of it, before its first call.
#[cfg(podshm_cdylib)]
extern "C" fn at_start() {
    state();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(environment: &[u8]) -> Domain {
        let mut domain = Domain { socket: [0; PATH], posix_mounted: false, present: false, log: false };
        let mut search = Search::new();
        environment.iter().for_each(|byte| search.take(*byte, &mut domain));
        domain
    }

    #[test]
    fn the_variables_are_found_among_others() {
        let found = parse(b"A=1\0PODSHM_SHM_SOCKET=/run/podshm/shm.sock\0XPODSHM_LOG=1\0PODSHM_SHM_POSIX=mounted\0");
        assert_eq!(&found.socket[..21], b"/run/podshm/shm.sock\0");
        assert!(found.posix_mounted && !found.log);
        assert!(parse(b"PODSHM_LOG=debug\0").log);
    }

    #[test]
    fn the_library_is_found_in_the_loaders_list() {
        let beside = |value: &[u8]| {
            let mut domain = Domain { socket: [0; PATH], posix_mounted: false, present: false, log: false };
            let mut search = Search::new();
            [PRELOAD, value, b"\0A=1\0"].concat().iter().for_each(|byte| search.take(*byte, &mut domain));
            let mut path = [0; PATH];
            let found = search.beside.join(b"/shm.sock", &mut path);
            assert_eq!(domain.socket[0], 0, "that is for whoever looks whether it is there");
            found.then(|| path[..path.iter().position(|byte| *byte == 0).unwrap()].to_vec())
        };
        let ours = b"/run/podshm/lib/libpodshm-preload.so";
        let expected = Some(b"/run/podshm/shm.sock".to_vec());
        assert_eq!(beside(ours), expected);
        assert_eq!(beside(&[&b"/usr/lib/a.so:"[..], ours, b" /b.so"].concat()), expected);
        assert_eq!(beside(&[&[b'/'; 300][..], b":", ours].concat()), expected, "after one that is too long");
        for none in
            [&b"libpodshm-preload.so"[..], b"/run/podshm/libpodshm-preload.so", b"lib/libpodshm-preload.so", b""]
        {
            assert_eq!(beside(none), None, "{none:?}");
        }
        let long = [&[b'/'][..], &[b'x'; 98], b"/lib/libpodshm-preload.so"].concat();
        assert_eq!(beside(&long), None, "99 bytes, \"/shm.sock\" and a NUL are one too many");
    }

    #[test]
    fn a_path_that_does_not_fit_is_none() {
        let mut long = b"PODSHM_SHM_SOCKET=/".to_vec();
        long.extend([b'x'; 107]);
        long.push(0);
        assert_eq!(parse(&long).socket[0], 0, "108 bytes and a NUL are one too many");
        long.remove(30);
        assert_eq!(parse(&long).socket[0], b'/');
        assert_eq!(parse(&long).socket[PATH - 1], 0);
    }
}
