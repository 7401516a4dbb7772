//! The client's half.

use super::{
    ENDED, PATIENCE, Participant, answer, byte, bytes, check, comes, in_child, in_children, key, millis, number, say,
};
use podshm::client::Pending;
use podshm::{Caller, Client, Error, ErrorKind, Key, Spin};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const ROOM: usize = 1 << 17;

/// A client, once it has joined.
pub(super) struct Joined {
    directory: PathBuf,
    client: Option<Client>,
    key: Option<(String, Key)>,
    /// A call that is out, and what its answer must be.
    pending: Option<(Option<Pending>, Vec<u8>)>,
    spin: Spin,
    waits: bool,
}

impl Joined {
    pub(super) fn new(directory: PathBuf) -> Self {
        Joined { directory, client: None, key: None, pending: None, spin: Spin::default(), waits: false }
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("it has joined")
    }

    fn leave(&mut self) {
        (self.key, self.pending, self.client) = (None, None, None);
    }

    fn join(&mut self, timeout: Duration) -> String {
        self.leave();
        say(Client::join(&self.directory, timeout).map(|client| self.client = Some(client)))
    }

    // --- tables

    fn get(&mut self, by_key: bool, words: &[&str]) -> Result<String, Error> {
        let [table, name, len, seed] = words else { panic!("{words:?}") };
        let mut room = vec![0; ROOM];
        let found = if by_key {
            let called = format!("{table} {name}");
            if self.key.as_ref().is_none_or(|(known, _)| *known != called) {
                self.key = Some((called, self.client().table(table)?.key(&key(name))));
            }
            let (_, handle) = self.key.as_mut().expect("just made");
            handle.get(&mut room)?
        } else {
            self.client().table(table)?.get(&key(name), &mut room)?
        };
        Ok(found.map_or("not found".into(), |found| check(&room[..found], &bytes(number(len), number(seed)))))
    }

    fn get_into(&self, words: &[&str]) -> Result<String, Error> {
        let [table, name, size] = words else { panic!("{words:?}") };
        let mut room = vec![0; number(size) as usize];
        let found = self.client().table(table)?.get(&key(name), &mut room)?;
        Ok(found.map_or("not found".into(), |_| "ok".into()))
    }

    fn part(&self, words: &[&str]) -> Result<String, Error> {
        let [table, name, whole, seed, offset, len] = words else { panic!("{words:?}") };
        let Some(value) = self.client().table(table)?.guard(&key(name))? else { return Ok("not found".into()) };
        let (offset, mut room) = (number(offset) as usize, vec![0; number(len) as usize]);
        value.read(offset, &mut room)?;
        let expected: Vec<u8> = (offset..offset + room.len()).map(|at| byte(at, number(seed))).collect();
        if value.value_len() as u64 != number(whole) {
            return Ok(format!("wrong length: {}", value.value_len()));
        }
        Ok(check(&room, &expected))
    }

    fn snapshot(&self, words: &[&str]) -> Result<String, Error> {
        let snapshot = self.client().table(words[0])?.snapshot()?;
        let mut room = vec![0; ROOM];
        for wanted in words[1..].chunks(3) {
            let Some(found) = snapshot.get(&key(wanted[0]), &mut room)? else { return Ok("not found".into()) };
            let checked = check(&room[..found], &bytes(number(wanted[1]), number(wanted[2])));
            if checked != "ok" {
                return Ok(checked);
            }
        }
        snapshot.check().map(|_| "ok".into())
    }

    fn get_many(&self, words: &[&str]) -> Result<String, Error> {
        let [table, count, len] = words else { panic!("{words:?}") };
        let (table, mut room) = (self.client().table(table)?, vec![0; ROOM]);
        for n in 0..number(count) {
            let Some(found) = table.get(format!("key-{n}").as_bytes(), &mut room)? else {
                return Ok("not found".into());
            };
            let checked = check(&room[..found], &bytes(number(len), n));
            if checked != "ok" {
                return Ok(checked);
            }
        }
        Ok("ok".into())
    }

    // --- queues

    fn push(&self, how: &str, words: &[&str]) -> Result<String, Error> {
        let queue = self.client().queue(words[0])?;
        match (how, &words[1..]) {
            ("push", [len, seed, timeout]) => drop(queue.push(&bytes(number(len), number(seed)), millis(timeout))?),
            ("try-push", [len, seed]) => drop(queue.try_push(&bytes(number(len), number(seed)))?),
            ("push-or-drop", [len, seed]) => {
                if !queue.push_or_drop(&bytes(number(len), number(seed)))? {
                    return Ok("dropped".into());
                }
            }
            ("push-in-place", [len, seed]) => {
                let record = bytes(number(len), number(seed));
                queue.try_push_with(record.len(), |place| place.copy_from_slice(&record))?;
            }
            ("push-many", [count, len, seed]) => {
                for n in 0..number(count) {
                    queue.push(&bytes(number(len), number(seed) + n), PATIENCE)?;
                }
            }
            ("fill", [len, seed]) => {
                let mut n = 0;
                while queue.push_or_drop(&bytes(number(len), number(seed) + n))? {
                    n += 1;
                }
                return Ok(n.to_string());
            }
            ("batch" | "push-all", [count, len, seed]) => {
                let mut batch = queue.batch()?;
                for n in 0..number(count) {
                    batch.try_push(&bytes(number(len), number(seed) + n))?;
                }
            }
            other => panic!("{other:?}"),
        }
        Ok("ok".into())
    }

    // --- calls

    fn caller(&self, name: &str) -> Result<Caller, Error> {
        Ok(self.client().call(name)?.spin(self.spin).wait_for_agent(self.waits))
    }

    fn call(&self, how: &str, words: &[&str]) -> Result<String, Error> {
        let caller = self.caller(words[0])?;
        let (request, timeout) = (bytes(number(words[1]), number(words[2])), millis(words[3]));
        let mut room = vec![0; words.get(4).map_or(ROOM, |size| number(size) as usize)];
        let len = if how == "call-in-place" {
            let fill = |offset: usize, part: &mut [u8]| part.copy_from_slice(&request[offset..offset + part.len()]);
            let each = |offset: usize, _: usize, part: &[u8]| room[offset..offset + part.len()].copy_from_slice(part);
            caller.call_with(request.len(), fill, timeout, each)?
        } else {
            caller.call(&request, &mut room, timeout)?
        };
        Ok(check(&room[..len], &request.into_iter().rev().collect::<Vec<u8>>()))
    }

    fn start(&mut self, words: &[&str]) -> Result<String, Error> {
        let mut request = bytes(number(words[1]), number(words[2]));
        let out = self.caller(words[0])?.start(&request, millis(words[3]))?;
        request.reverse();
        self.pending = Some((Some(out), request));
        Ok("ok".into())
    }

    fn take(&mut self) -> Result<String, Error> {
        let (pending, expected) = self.pending.as_mut().expect("a call is out");
        let Some(mut out) = pending.take() else { return Ok(ENDED.into()) };
        Ok(check(&out.wait()?, expected))
    }

    fn look(&mut self) -> Result<Option<String>, Error> {
        let (pending, expected) = self.pending.as_mut().expect("a call is out");
        let Some(out) = pending.as_mut() else { return Ok(Some(ENDED.into())) };
        Ok(out.try_take()?.map(|found| check(&found, expected)))
    }

    fn event(&mut self) -> Result<String, Error> {
        let caller = self.client().call("decide")?;
        loop {
            if let Some((Some(out), _)) = &self.pending {
                out.arm();
            }
            if let Some(found) = self.look()? {
                return Ok(found);
            }
            if !comes(&caller.event_fd()?, PATIENCE) {
                return Ok("no event".into());
            }
            let _ = rustix::io::read(caller.event_fd()?, &mut [0u8; 8]);
        }
    }

    // --- the rest

    fn until(&self, good: impl Fn(&Client) -> Result<bool, Error>) -> Result<String, Error> {
        let until = Instant::now() + PATIENCE;
        while !good(self.client())? {
            if Instant::now() > until {
                return Ok("it did not happen".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok("ok".into())
    }

    /// In a child: with its parent's handles, or, with "again", as a client of its own.
    fn as_child(&mut self, words: &[&str]) -> String {
        match words {
            ["again", words @ ..] => match self.join(PATIENCE).as_str() {
                "ok" => {
                    let answer = self.follow(words);
                    self.leave();
                    answer
                }
                other => other.into(),
            },
            words => self.follow(words),
        }
    }
}

impl Participant for Joined {
    fn follow(&mut self, words: &[&str]) -> String {
        let (what, rest) = words.split_first().expect("a command");
        let result = match *what {
            "join" => return self.join(millis(rest[0])),
            "leave" => {
                self.leave();
                return "ok".into();
            }
            "domain" => Ok(self.client().domain().to_owned()),
            "member" => Ok(self.client().member().to_owned()),
            "present" => Ok(self.client().agent_present().to_string()),
            "get" => self.get(false, rest),
            "key" => self.get(true, rest),
            "get-into" => self.get_into(rest),
            "part" => self.part(rest),
            "snapshot" => self.snapshot(rest),
            "get-many" => self.get_many(rest),
            "keys" => self.client().table(rest[0]).and_then(|table| Ok(table.len()?.to_string())),
            "push" | "try-push" | "push-or-drop" | "push-in-place" | "push-many" | "push-all" | "fill" | "batch" => {
                self.push(what, rest)
            }
            "call" | "call-into" | "call-in-place" => self.call(what, rest),
            "start" => self.start(rest),
            "take" => self.take(),
            "look" => self.look().map(|found| found.unwrap_or_else(|| "not yet".into())),
            "event" => self.event(),
            "cancel" => {
                self.pending = None;
                Ok("ok".into())
            }
            "spin" => {
                self.spin = if rest[0] == "never" { Spin::Never } else { Spin::Always };
                Ok("ok".into())
            }
            "wait-for-agent" => {
                self.waits = true;
                Ok("ok".into())
            }
            "await-away" => self.until(|client| Ok(!client.agent_present())),
            "await-present" => self.until(|client| Ok(client.agent_present())),
            "await-epoch" => self.until(|client| Ok(client.agent_epoch()? >= number(rest[0]))),
            "fork" => return in_child(|| self.as_child(rest)),
            "prefork" => return in_children(number(rest[0]), || self.as_child(&rest[1..])),
            _ => return "no such command".into(),
        };
        if let Err(error) = &result
            && error.kind() != ErrorKind::Full
        {
            eprintln!("conform: {words:?}: {error}");
        }
        answer(result)
    }

    fn round(&mut self) -> bool {
        false
    }
}
