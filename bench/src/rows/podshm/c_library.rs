//! The C library, loaded as a C program loads it: what its border costs beside the Rust library.
//!
//! The agent is the Rust one, so that what differs is the client's side alone. The library has an instance of everything of its own.

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Node, PATIENCE, PodshmHandle, PodshmTransport};
use crate::control::Control;
use crate::metric::Metric;
use crate::payload;
use crate::record;
use crate::row::{Bound, Plan, Row, Sample, Target};
use crate::transport::{
    BATCH, Latencies, Order, Session, Transport, check_answer, check_drained, timed_oneway, timed_rtt,
};

pub(super) const OK: i32 = 0;
pub(super) const FULL: i32 = 1;
pub(super) const SPIN_ALWAYS: u64 = u64::MAX;

/// A handle, whichever.
pub(super) type Handle = *mut c_void;
type Make = unsafe extern "C" fn(Handle, *const c_char, *mut Handle) -> i32;
type Fill = unsafe extern "C" fn(*mut c_void, usize, *mut c_void, usize);
type Each = unsafe extern "C" fn(*mut c_void, usize, usize, *const c_void, usize);

/// What of `podshm.h` is measured here.
#[derive(Clone, Copy)]
pub(super) struct Library {
    client_new: unsafe extern "C" fn(*const c_char, u64, *mut Handle) -> i32,
    pub(super) client_free: unsafe extern "C" fn(Handle) -> i32,
    pub(super) table_new: Make,
    pub(super) table_get: unsafe extern "C" fn(Handle, *const c_void, usize, *mut c_void, usize, *mut usize) -> i32,
    key_new: unsafe extern "C" fn(Handle, *const c_void, usize, *mut Handle) -> i32,
    key_get: unsafe extern "C" fn(Handle, *mut c_void, usize, *mut usize) -> i32,
    pub(super) queue_new: Make,
    pub(super) try_push: unsafe extern "C" fn(Handle, *const c_void, usize, *mut u64) -> i32,
    try_push_with: unsafe extern "C" fn(Handle, usize, Fill, *mut c_void, *mut u64) -> i32,
    try_push_all: unsafe extern "C" fn(Handle, *const Bytes, usize, *mut usize) -> i32,
    pub(super) caller_new: Make,
    pub(super) spinning: unsafe extern "C" fn(Handle, u64, *mut Handle) -> i32,
    pub(super) call: unsafe extern "C" fn(Handle, *const c_void, usize, *mut c_void, usize, u64, *mut usize) -> i32,
    call_with: unsafe extern "C" fn(Handle, usize, Fill, *mut c_void, u64, Each, *mut c_void, *mut usize) -> i32,
    message: unsafe extern "C" fn() -> *const c_char,
}

/// `podshm_bytes`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Bytes {
    data: *const c_void,
    len: usize,
}

impl Library {
    /// Loads the library that `PODSHM_C_LIBRARY` names: `make bench` has it built as it is installed. Otherwise what cargo puts beside this
    /// program, which is not optimised as one.
    pub(super) fn load() -> Result<Library> {
        let path = match std::env::var_os("PODSHM_C_LIBRARY") {
            Some(named) => PathBuf::from(named),
            None => {
                let program = std::env::current_exe().context("this program's path")?;
                let beside = program.parent().context("its directory")?;
                let mut paths = ["libpodshm_capi.so", "deps/libpodshm_capi.so"].iter().map(|name| beside.join(name));
                paths.find(|path| path.exists()).context("no libpodshm_capi.so beside this program")?
            }
        };
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: loads a library of ours, whose initialisers do nothing.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        ensure!(!library.is_null(), "{} can't be loaded", path.display());
        let find = |name: &CStr| -> Result<*mut c_void> {
            // SAFETY: a library that is never closed, and a name.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            ensure!(!found.is_null(), "{name:?} is not in {}", path.display());
            Ok(found)
        };
        /// The function of that name, as the type that `podshm.h` gives it.
        macro_rules! function {
            ($name:literal) => {{
                let found = find($name)?;
                // SAFETY: `podshm.h` declares it so.
                unsafe { std::mem::transmute_copy(&found) }
            }};
        }
        Ok(Library {
            client_new: function!(c"podshm_client_new"),
            client_free: function!(c"podshm_client_free"),
            table_new: function!(c"podshm_table_new"),
            table_get: function!(c"podshm_table_get"),
            key_new: function!(c"podshm_key_new"),
            key_get: function!(c"podshm_key_get"),
            queue_new: function!(c"podshm_queue_new"),
            try_push: function!(c"podshm_queue_try_push"),
            try_push_with: function!(c"podshm_queue_try_push_with"),
            try_push_all: function!(c"podshm_queue_try_push_all"),
            caller_new: function!(c"podshm_caller_new"),
            spinning: function!(c"podshm_caller_spinning"),
            call: function!(c"podshm_caller_call"),
            call_with: function!(c"podshm_caller_call_with"),
            message: function!(c"podshm_last_message"),
        })
    }

    pub(super) fn check(&self, result: i32) -> Result<()> {
        if result == OK {
            return Ok(());
        }
        // SAFETY: never null, and valid until this thread's next error.
        let message = unsafe { CStr::from_ptr((self.message)()) };
        bail!("the C library: {result}: {}", message.to_string_lossy())
    }

    pub(super) fn join(&self, directory: &Path) -> Result<Handle> {
        let directory = CString::new(directory.as_os_str().as_bytes())?;
        let mut client = ptr::null_mut();
        // SAFETY: a string and a place for the result.
        self.check(unsafe { (self.client_new)(directory.as_ptr(), PATIENCE.as_nanos() as u64, &raw mut client) })?;
        Ok(client)
    }

    pub(super) fn make(&self, make: Make, client: Handle, name: &CStr) -> Result<Handle> {
        let mut made = ptr::null_mut();
        // SAFETY: a client that is alive, a string and a place for the result.
        self.check(unsafe { make(client, name.as_ptr(), &raw mut made) })?;
        Ok(made)
    }
}

/// A lookup by a resolved key through the C library.
pub struct CHandle;

const READ: Metric = Metric::Read { size: record::SIZE };

impl Row for CHandle {
    fn name(&self) -> &'static str {
        "podshm-c-handle"
    }

    fn title(&self) -> String {
        "podshm table in C, by handle".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![READ]
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target { metric: READ, bound: Bound::Beside("podshm-handle"), fatal: false }]
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let (library, node) = (Library::load()?, Node::start()?);
        peer.send(&node.agent())?;
        let client = library.join(&node.client())?;
        let table = library.make(library.table_new, client, c"records")?;
        let (mut key, name) = (ptr::null_mut(), b"record");
        // SAFETY: a table that is alive, bytes, and a place for the result.
        library.check(unsafe { (library.key_new)(table, name.as_ptr().cast(), name.len(), &raw mut key) })?;
        let value = record::time_reads(plan.budget, |out| {
            let mut len = 0;
            // SAFETY: a key of this thread, room for all of the value, and a place for its length.
            let result = unsafe { (library.key_get)(key, out.as_mut_ptr().cast(), out.len(), &raw mut len) };
            ensure!(result == OK && len == record::SIZE, "the record is missing");
            Ok(())
        })?;
        Ok(vec![Sample { metric: READ, value }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        PodshmHandle.serve(control)
    }
}

/// Calls and records through the C library.
pub struct CTransport;

impl Transport for CTransport {
    fn name(&self) -> &'static str {
        "podshm-c"
    }

    fn title(&self) -> String {
        "podshm in C".to_owned()
    }

    fn sizes(&self) -> Vec<usize> {
        vec![64]
    }

    fn rates(&self) -> Vec<(usize, bool)> {
        vec![(64, false), (64, true)]
    }

    fn targets(&self) -> Vec<Target> {
        let goal = |metric| Target { metric, bound: Bound::Beside("podshm"), fatal: false };
        // A record that is written in place costs a call of the program's function, where Rust has it inlined: shown, not judged. One that comes in
        // a buffer is, by `podshm-c-call`.
        vec![goal(Metric::Rtt { size: 64 }), goal(Metric::Rate { size: 64, batched: true })]
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let (library, node) = (Library::load()?, Node::start()?);
        peer.send(&node.agent())?;
        let client = library.join(&node.client())?;
        let (queue, plain) =
            (library.make(library.queue_new, client, c"records")?, library.make(library.caller_new, client, c"echo")?);
        let mut call = ptr::null_mut();
        // SAFETY: a caller that is alive, and a place for the result.
        library.check(unsafe { (library.spinning)(plain, SPIN_ALWAYS, &raw mut call) })?;
        Ok(Box::new(CSession { library, client, queue, call, _node: node }))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        PodshmTransport::DEFAULT.serve(control)
    }
}

struct CSession {
    library: Library,
    client: Handle,
    queue: Handle,
    call: Handle,
    _node: Node,
}

/// A request's seed, and the sum of what came back.
struct Trip {
    seed: u64,
    sum: u64,
}

/// Writes a part of the request of a [`Trip`], or a record in place.
unsafe extern "C" fn fill(trip: *mut c_void, offset: usize, part: *mut c_void, len: usize) {
    // SAFETY: `rtt` and `oneway` pass a Trip, and the library `len` bytes.
    let (trip, part) = unsafe { (&*trip.cast::<Trip>(), std::slice::from_raw_parts_mut(part.cast::<u8>(), len)) };
    payload::fill_from(part, trip.seed, offset / 8);
}

/// Sums a part of the response of a [`Trip`].
unsafe extern "C" fn each(trip: *mut c_void, _: usize, _: usize, part: *const c_void, len: usize) {
    // SAFETY: `rtt` passes a Trip, and the library `len` bytes.
    let (trip, part) = unsafe { (&mut *trip.cast::<Trip>(), std::slice::from_raw_parts(part.cast::<u8>(), len)) };
    trip.sum = trip.sum.wrapping_add(payload::sum(part));
}

impl Session for CSession {
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies> {
        let (library, patience) = (self.library, PATIENCE.as_nanos() as u64);
        timed_rtt(
            budget,
            |count| peer.send(&Order::Echo { size, count }),
            |seed| {
                let mut trip = Trip { seed, sum: 0 };
                let user = (&raw mut trip).cast();
                // SAFETY: a caller that is alive, and functions that take a Trip, which lives until it returns.
                let result =
                    unsafe { (library.call_with)(self.call, size, fill, user, patience, each, user, ptr::null_mut()) };
                library.check(result)?;
                check_answer(trip.sum, size, seed)
            },
        )
    }

    fn oneway(&mut self, peer: &mut Control, size: usize, batched: bool, budget: Duration) -> Result<f64> {
        let library = self.library;
        let mut bytes = vec![0; size * BATCH as usize];
        let mut records = [Bytes { data: ptr::null(), len: 0 }; BATCH as usize];
        timed_oneway(budget, |count| {
            peer.send(&Order::Drain { size, count, batched })?;
            let mut seed = 0;
            while seed < count {
                let mut accepted = 0_usize;
                let result = if batched {
                    let n = BATCH.min(count - seed) as usize;
                    for (at, record) in bytes.chunks_exact_mut(size).take(n).enumerate() {
                        payload::fill(record, seed + at as u64);
                        records[at] = Bytes { data: record.as_ptr().cast(), len: size };
                    }
                    // SAFETY: a queue that is alive, so many records, and a place for the result.
                    unsafe { (library.try_push_all)(self.queue, records.as_ptr(), n, &raw mut accepted) }
                } else {
                    let mut trip = Trip { seed, sum: 0 };
                    let user = (&raw mut trip).cast();
                    // SAFETY: a queue that is alive, and a function that takes a Trip, which lives until it returns.
                    let result = unsafe { (library.try_push_with)(self.queue, size, fill, user, ptr::null_mut()) };
                    accepted = usize::from(result == OK);
                    result
                };
                if result != FULL {
                    library.check(result)?;
                }
                seed += accepted as u64;
            }
            check_drained(peer.recv()?, size, count)
        })
    }
}

impl Drop for CSession {
    fn drop(&mut self) {
        // SAFETY: alive until here; what was made of it goes with this process, as the peer waits for its hang-up only.
        unsafe { (self.library.client_free)(self.client) };
    }
}
