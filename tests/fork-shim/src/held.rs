//! One of every kind of handle.

use crate::PATIENCE;
use podshm::client::{CallFuture, Guard, Pending, QueueBatch, Reader, TableSnapshot};
use podshm::{Caller, Client, Error, Key, QueueSender, Table};
use std::ffi::CStr;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// For calls that are out while their process forks for a while.
const LONG: Duration = Duration::from_secs(300);

/// Handles in use. What is used up by its use can be used once.
#[derive(Debug)]
pub struct Held {
    client: Client,
    table: Table,
    key: Key,
    reader: Reader,
    guard: Guard,
    snapshot: Option<TableSnapshot>,
    finished: Option<TableSnapshot>,
    queue: QueueSender,
    /// Borrows from `audit`; dropped first.
    batch: Option<QueueBatch<'static>>,
    audit: *mut QueueSender,
    caller: Caller,
    pending: Option<Pending>,
    waited: Option<Pending>,
    future: Option<CallFuture>,
    unsent: Option<CallFuture>,
}

impl Held {
    pub(crate) fn new(client: &Client) -> Result<Self, Error> {
        let table = client.table("routes")?;
        let mut key = table.key(b"key");
        let mut reader = table.reader()?;
        let mut value = [0; 256];
        // Resolved and cached, as in use.
        key.get(&mut value)?;
        reader.get(b"key", &mut value)?;
        let guard = table.guard(b"key")?.ok_or(Error::AgentAway)?;
        let caller = client.call("decide")?;
        let (pending, waited) = (Some(caller.start(b"1", LONG)?), Some(caller.start(b"2", LONG)?));
        // One that was sent and whose answer is not here yet.
        let future = loop {
            let mut future = caller.call_async(*b"3", LONG);
            match Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => break future,
                Poll::Ready(answer) => drop(answer?),
            }
        };
        let unsent = Some(caller.call_async(*b"4", LONG));
        let (snapshot, finished) = (Some(table.snapshot()?), Some(table.snapshot()?));
        let (queue, audit) = (client.queue("reports")?, Box::into_raw(Box::new(client.queue("audit")?)));
        let mut held = Held {
            client: client.clone(),
            table,
            key,
            reader,
            guard,
            snapshot,
            finished,
            queue,
            batch: None,
            audit,
            caller,
            pending,
            waited,
            future: Some(future),
            unsent,
        };
        // SAFETY: allocated above, freed by `drop` after the batch that borrows it; nobody takes it mutably.
        let mut batch = unsafe { &*audit }.batch()?;
        batch.try_push(b"not published")?;
        held.batch = Some(batch);
        Ok(held)
    }

    /// Uses handle number `n`; its name and how that went.
    pub(crate) fn use_one(&mut self, n: u32) -> Option<(&'static CStr, Result<(), Error>)> {
        let mut value = [0; 256];
        Some(match n {
            0 => (c"Client::table", self.client.table("routes").map(drop)),
            1 => (c"Client::queue", self.client.queue("reports").map(drop)),
            2 => (c"Client::call", self.client.call("decide").map(drop)),
            3 => (c"Client::agent_epoch", self.client.agent_epoch().map(drop)),
            4 => (c"Client::agent_present", self.client.agent_present().then_some(()).ok_or(Error::Forked)),
            5 => (c"Table::get", self.table.get(b"key", &mut value).map(drop)),
            6 => (c"Table::guard", self.table.guard(b"key").map(drop)),
            7 => (c"Table::reader", self.table.reader().map(drop)),
            8 => (c"Table::snapshot", self.table.snapshot().map(drop)),
            9 => (c"Table::len", self.table.len().map(drop)),
            10 => (c"Table::is_empty", self.table.is_empty().map(drop)),
            11 => (c"Table::generation_number", self.table.generation_number().map(drop)),
            12 => (c"Table::version", self.table.version().map(drop)),
            13 => (c"Table::age", self.table.age().map(drop)),
            14 => (c"Key::get", self.key.get(&mut value).map(drop)),
            15 => (c"Key::read", self.key.read(|read, len| read(0, &mut value[..len])).map(drop)),
            16 => (c"Reader::get", self.reader.get(b"key", &mut value).map(drop)),
            17 => (c"Guard::read", self.guard.read(0, &mut value[..8])),
            18 => (c"TableSnapshot::get", self.snapshot.as_ref()?.get(b"key", &mut value).map(drop)),
            19 => (c"TableSnapshot::finish", self.finished.take()?.finish().map(drop).ok_or(Error::Forked)),
            20 => (c"QueueSender::try_push", self.queue.try_push(b"held").map(drop)),
            21 => (c"QueueSender::push", self.queue.push(b"held", PATIENCE).map(drop)),
            22 => (c"QueueSender::push_or_drop", self.queue.push_or_drop(b"held").map(drop)),
            23 => {
                (c"QueueSender::try_push_with", self.queue.try_push_with(4, |b| b.copy_from_slice(b"held")).map(drop))
            }
            24 => (c"QueueSender::batch", self.queue.batch().map(drop)),
            25 => (c"QueueBatch::try_push", self.batch.as_mut()?.try_push(b"held").map(drop)),
            26 => {
                let batch = self.batch.as_mut()?;
                batch.publish();
                (c"QueueBatch::try_push_with", batch.try_push_with(4, |b| b.copy_from_slice(b"held")).map(drop))
            }
            27 => (c"Caller::call", self.caller.call(b"5", &mut value, PATIENCE).map(drop)),
            28 => (c"Caller::start", self.caller.start(b"6", PATIENCE).map(drop)),
            29 => (c"Pending::try_take", self.pending.as_mut()?.try_take().map(drop)),
            30 => {
                let mut waited = self.waited.take()?;
                waited.arm();
                (c"Pending::wait", waited.wait().map(drop))
            }
            31 => (c"CallFuture, sent", poll(self.future.as_mut()?)),
            32 => (c"CallFuture, not sent", poll(self.unsent.as_mut()?)),
            33 => (c"clones", self.clones()),
            34 => {
                let push = |fork: &mut dyn FnMut()| self.queue.try_push_with(4, |b| held_and(b, fork)).map(drop);
                (c"QueueSender::try_push_with, forked within", self.fork_within(push))
            }
            35 => {
                let push =
                    |fork: &mut dyn FnMut()| self.queue.batch()?.try_push_with(4, |b| held_and(b, fork)).map(drop);
                (c"QueueBatch::try_push_with, forked within", self.fork_within(push))
            }
            36 => {
                let call = |fork: &mut dyn FnMut()| {
                    self.caller.call_with(4, |_, part| held_and(part, fork), PATIENCE, |_, _, _| {}).map(drop)
                };
                (c"Caller::call_with, forked within", self.fork_within(call))
            }
            _ => return None,
        })
    }

    /// A record, a batch's record or a call that is begun here and finished in a parent and in its child: it is the parent's.
    fn fork_within(&self, push: impl FnOnce(&mut dyn FnMut()) -> Result<(), Error>) -> Result<(), Error> {
        let mut child = -1;
        // SAFETY: the child does nothing more but to come back from here and to end.
        let pushed = push(&mut || child = unsafe { libc::fork() });
        if child == 0 {
            let is_refused = pushed.is_err_and(|error| error.kind() == podshm::ErrorKind::Forked);
            // SAFETY: ends this process and nothing else.
            unsafe { libc::_exit(i32::from(!is_refused)) };
        }
        pushed?;
        let mut status = -1;
        // SAFETY: a child of this process, and a place for how it ended.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!((waited, status), (child, 0), "the child was not refused");
        Ok(())
    }

    /// Copies of handles are made and dropped as freely.
    fn clones(&self) -> Result<(), Error> {
        let table = self.table.clone();
        drop((self.client.clone(), self.key.clone(), self.reader.clone(), self.guard.clone(), self.caller.clone()));
        table.len().map(drop)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.batch = None;
        // SAFETY: made by Box::into_raw in `new`; the batch, its only borrower, is gone.
        drop(unsafe { Box::from_raw(self.audit) });
    }
}

fn held_and(bytes: &mut [u8], then: &mut dyn FnMut()) {
    bytes.copy_from_slice(b"held");
    then();
}

/// One poll; pending is fine.
fn poll(future: &mut CallFuture) -> Result<(), Error> {
    match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result.map(drop),
        Poll::Pending => Ok(()),
    }
}
