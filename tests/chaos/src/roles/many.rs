//! Many clients in one process, each with a join of its own: a few threads take turns with them.

use super::{Flag, PATIENCE, key, socket_dir};
use crate::entry::{Entry, Log, What, now};
use podshm::{Caller, Client, ErrorKind, Key, QueueSender};
use podshm_testkit::numbered;
use std::path::PathBuf;
use std::time::Duration;

/// Shorter waits are not written down.
const SHORTEST_WAIT: u64 = 100_000;
/// Between two rounds over all clients of a thread.
const PACE: Duration = Duration::from_millis(2);

struct One {
    sender: u32,
    value: Key,
    queue: QueueSender,
    caller: Caller,
    accepted: u64,
    calls: u64,
    /// Since when a report, or a call, is tried in vain.
    since: [Option<u64>; 2],
}

/// Joins `count` clients to domain `work`, with numbers from `first` on, says `joined`, and works with all of them in turn until SIGTERM,
/// from so many threads.
pub fn run(log: PathBuf, first: u32, count: u32, drivers: usize) -> anyhow::Result<()> {
    let stop = Flag::on(15)?;
    let log = Log::open(&log)?;
    let directory = socket_dir("work")?;
    let mut all: Vec<Vec<One>> = (0..drivers).map(|_| Vec::new()).collect();
    for sender in first..first + count {
        let client = Client::join(&directory, PATIENCE)?;
        all[sender as usize % drivers].push(One {
            sender,
            value: client.table("values")?.key(&key(sender % super::KEYS)),
            queue: client.queue("records")?,
            caller: client.call("again")?,
            accepted: 0,
            calls: 0,
            since: [None; 2],
        });
    }
    println!("joined");
    let threads: Vec<_> = all
        .into_iter()
        .map(|mut clients| {
            let (stop, mut log) = (stop.clone(), log.another()?);
            anyhow::Ok(std::thread::spawn(move || -> anyhow::Result<()> {
                while !stop.is_set() {
                    for client in &mut clients {
                        client.round(&mut log)?;
                    }
                    std::thread::sleep(PACE);
                }
                Ok(())
            }))
        })
        .collect::<Result<_, _>>()?;
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of many clients panicked"))??;
    }
    Ok(())
}

impl One {
    /// One lookup, one report, one call.
    fn round(&mut self, log: &mut Log) -> anyhow::Result<()> {
        let mut buffer = [0; super::publisher::VALUE];
        let began = now();
        anyhow::ensure!(self.value.get(&mut buffer)?.is_some(), "a key is missing");
        self.waited(log, 0, began)?;

        let began = *self.since[0].get_or_insert_with(now);
        match self.queue.try_push(&numbered::encode(self.sender, self.accepted, 64)) {
            Ok(_) => {
                (self.accepted, self.since[0]) = (self.accepted + 1, None);
                self.waited(log, 2, began)?;
            }
            Err(error) if error.kind() == ErrorKind::Full => {}
            Err(error) => return Err(error.into()),
        }

        let began = *self.since[1].get_or_insert_with(now);
        let request = numbered::encode(self.sender, self.calls, 64);
        self.calls += 1;
        match self.caller.call(&request, &mut [0; 64], Duration::from_secs(10)) {
            Ok(_) => {
                self.since[1] = None;
                self.waited(log, 4, began)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::AgentAway | ErrorKind::OutcomeUnknown) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn waited(&self, log: &mut Log, kind: u16, began: u64) -> anyhow::Result<()> {
        let length = now() - began;
        if length >= SHORTEST_WAIT {
            log.write(Entry { aux: kind, ..Entry::new(What::Waited, self.sender, length) })?;
        }
        Ok(())
    }
}
