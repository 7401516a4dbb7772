//! A C face of `podshm::Client` for the tests' C programs; `tests/c/shim.h` has its declarations. Not the project's C ABI.
//!
//! Numbers that functions return: 0 or more is success, a negative one is a [`podshm::ErrorKind`] with its sign changed.

mod held;

use held::Held;
use podshm::{Client, Error};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

/// Nothing in the tests takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps the message and returns the kind, negative.
fn failed(error: &Error) -> i64 {
    LAST.with_borrow_mut(|last| *last = CString::new(error.to_string()).unwrap_or_default());
    -i64::from(error.kind() as i32)
}

fn number<T>(result: Result<T, Error>, value: impl FnOnce(T) -> u64) -> i64 {
    match result {
        Ok(ok) => value(ok) as i64,
        Err(error) => failed(&error),
    }
}

/// Message of this thread's last error; valid until its next one.
#[unsafe(no_mangle)]
pub extern "C" fn shim_last_message() -> *const c_char {
    LAST.with_borrow(|last| last.as_ptr())
}

/// Joins the domain behind `directory`. On failure `*client` is null.
///
/// # Safety
/// `directory` is a C string, `client` points to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_join(directory: *const c_char, client: *mut *mut Client) -> i64 {
    // SAFETY: a C string by this function's contract.
    let directory = unsafe { CStr::from_ptr(directory) }.to_string_lossy().into_owned();
    let joined = Client::join(directory, PATIENCE);
    let (result, pointer) = match joined {
        Ok(joined) => (0, Box::into_raw(Box::new(joined))),
        Err(error) => (failed(&error), std::ptr::null_mut()),
    };
    // SAFETY: a place for the result by this function's contract.
    unsafe { client.write(pointer) };
    result
}

/// Drops the client; what was made of it lives on.
///
/// # Safety
/// `client` came from [`shim_join`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_leave(client: *mut Client) {
    // SAFETY: made by Box::into_raw in shim_join, and given back once.
    drop(unsafe { Box::from_raw(client) });
}

/// The client's number in its domain.
///
/// # Safety
/// `client` came from [`shim_join`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_id(client: *const Client) -> u64 {
    // SAFETY: alive by this function's contract.
    unsafe { &*client }.id()
}

/// Pushes a record into queue `queue` and returns its position.
///
/// # Safety
/// `client` came from [`shim_join`], `queue` is a C string, `record` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_push(client: *const Client, queue: *const c_char, record: *const u8, len: usize) -> i64 {
    // SAFETY: all three by this function's contract.
    let (client, queue, record) =
        unsafe { (&*client, CStr::from_ptr(queue).to_string_lossy(), std::slice::from_raw_parts(record, len)) };
    number(client.queue(&queue).and_then(|q| q.push(record, PATIENCE)), |position| position)
}

/// Looks `key` up in table `routes` and returns the first byte of its value, 0 where there is no such key.
///
/// # Safety
/// `client` came from [`shim_join`], `key` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_lookup(client: *const Client, key: *const c_char) -> i64 {
    // SAFETY: both by this function's contract.
    let (client, key) = unsafe { (&*client, CStr::from_ptr(key)) };
    let mut value = [0; 256];
    let found = client.table("routes").and_then(|t| t.get(key.to_bytes(), &mut value));
    number(found, |found| found.map_or(0, |_| u64::from(value[0])))
}

/// Sends `n` to call `decide`, which answers with its bytes reversed; returns what was answered, reversed again.
///
/// # Safety
/// `client` came from [`shim_join`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_call(client: *const Client, n: u32) -> i64 {
    // SAFETY: alive by this function's contract.
    let client = unsafe { &*client };
    let mut answer = [0; 4];
    let called = client.call("decide").and_then(|c| c.call(&n.to_le_bytes(), &mut answer, PATIENCE));
    number(called, |_| u64::from(u32::from_be_bytes(answer)))
}

/// Takes one of every kind of handle there is, in use: a batch with a record in it (queue `audit`), calls that are out. On failure
/// `*held` is null.
///
/// # Safety
/// `client` came from [`shim_join`], `held` points to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_hold(client: *const Client, held: *mut *mut Held) -> i64 {
    // SAFETY: alive by this function's contract.
    let (result, pointer) = match Held::new(unsafe { &*client }) {
        Ok(new) => (0, Box::into_raw(Box::new(new))),
        Err(error) => (failed(&error), std::ptr::null_mut()),
    };
    // SAFETY: a place for the result by this function's contract.
    unsafe { held.write(pointer) };
    result
}

/// Uses handle number `n`. Writes its name to `*name`, null where there are no more handles.
///
/// # Safety
/// `held` came from [`shim_hold`]; no other thread uses it now; `name` points to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_use(held: *mut Held, n: u32, name: *mut *const c_char) -> i64 {
    // SAFETY: alive and not shared by this function's contract.
    let used = unsafe { &mut *held }.use_one(n);
    let (result, called) = match used {
        Some((called, result)) => (number(result, |()| 0), called.as_ptr()),
        None => (0, std::ptr::null()),
    };
    // SAFETY: a place for the result by this function's contract.
    unsafe { name.write(called) };
    result
}

/// Drops every handle.
///
/// # Safety
/// `held` came from [`shim_hold`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_drop(held: *mut Held) {
    // SAFETY: made by Box::into_raw in shim_hold, and given back once.
    drop(unsafe { Box::from_raw(held) });
}
