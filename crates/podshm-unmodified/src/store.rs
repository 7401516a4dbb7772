//! A domain's segments on its file system: the memory itself, the records, and who has what attached.
//!
//! ```text
//!  DIR/segments   records (see record.rs)
//!  DIR/seg-ID     a segment's memory, all of it allocated
//! ```
//! Who is attached stands nowhere: each attachment is an open file description with a lock on a byte of its own (the token), and
//! the mapping keeps it. So it is right after a fork, an exec, a kill -9 and a restart of the daemon, whoever saw it or not.

use crate::ids::Cursor;
use crate::record;
use crate::segments::{Limits, Process, Segment, Segments};
use podshm_preload::wire::READ_ONLY;
use podshm_region::locks;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// See [`Store::notice`].
const WORTH_A_LOOK: usize = 16;

/// An attachment that this daemon has seen being made.
#[derive(Clone, Debug)]
struct Known {
    by: Process,
    /// What an attachment that came to nothing is set back to.
    before: (i64, Process),
    /// Made for a forked child that has not taken it over yet: until it has, its copies of its parent's mappings keep those
    /// locks too.
    pending: bool,
    /// Let go of by its owner.
    released: bool,
}

impl Known {
    fn new(by: Process, before: (i64, Process), pending: bool) -> Self {
        Known { by, before, pending, released: false }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    records: File,
    segments: Segments,
    known: BTreeMap<i32, BTreeMap<u64, Known>>,
}

fn token_to_byte(token: u64) -> u64 {
    token & (locks::END - 1)
}

/// A segment in a store's directory that somebody has attached, and how often; whether a daemon is there or not.
pub fn attached(directory: &Path) -> std::io::Result<Option<(i32, usize)>> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_prefix("seg-")?.parse().ok()) else { continue };
        match locks::held(&File::open(entry.path())?)?.len() {
            0 => {}
            attached => return Ok(Some((id, attached))),
        }
    }
    Ok(None)
}

fn is_held(file: &File, token: u64) -> bool {
    let byte = token_to_byte(token);
    matches!(locks::held_between(file, byte, byte + 1), Ok(Some(_)))
}

impl Store {
    /// Opens a directory on a tmpfs, with what a predecessor left in it. One at a time: see [`crate::turn`].
    pub fn open(directory: &Path, limits: Limits) -> std::io::Result<Self> {
        let path = directory.join("segments");
        let records = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut block = [0; record::SIZE];
        let cursor = match records.read_exact_at(&mut block, 0) {
            Ok(()) => record::to_cursor(&block).unwrap_or_default(),
            Err(_) => Cursor::default(),
        };
        let mut left = Vec::new();
        let mut at = record::SIZE as u64;
        while records.read_exact_at(&mut block, at).is_ok() {
            left.extend(record::to_segment(&block));
            at += record::SIZE as u64;
        }
        let file_of = |segment: &Segment| directory.join(format!("seg-{}", segment.id));
        left.retain(|segment| file_of(segment).metadata().is_ok_and(|file| file.len() >= segment.size));
        // A file without a record is one whose making or removal was cut short.
        let kept: BTreeSet<PathBuf> = left.iter().map(file_of).collect();
        for entry in std::fs::read_dir(directory)?.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("seg-") && !kept.contains(&entry.path()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let segments = Segments::restore(limits, cursor, left);
        let mut store = Store { directory: directory.to_owned(), records, segments, known: BTreeMap::new() };
        store.find_attachments();
        Ok(store)
    }

    /// Those that were made before this daemon: the kernel has them all.
    fn find_attachments(&mut self) {
        let ids: Vec<i32> = self.segments.all().map(|segment| segment.id).collect();
        for id in ids {
            let held = File::open(self.path(id)).and_then(|file| locks::held(&file)).unwrap_or_default();
            let nobody = Known::new(Process::default(), (0, Process::default()), false);
            self.known.insert(id, held.into_iter().map(|byte| (byte, nobody.clone())).collect());
            self.count(id, 0);
        }
    }

    /// The segments.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    fn path(&self, id: i32) -> PathBuf {
        self.directory.join(format!("seg-{id}"))
    }

    fn write(&self, id: i32) {
        let Ok(segment) = self.segments.find(id) else { return };
        let at = record::offset(crate::ids::index_of(id));
        if let Err(error) = self.records.write_all_at(&record::of_segment(segment), at) {
            tracing::error!(id, %error, "a segment's record could not be written; a restarted daemon will know it as it was");
        }
    }

    /// Changes a segment and writes it down.
    pub fn change<R>(&mut self, id: i32, change: impl FnOnce(&mut Segments) -> R) -> R {
        let result = change(&mut self.segments);
        self.write(id);
        result
    }

    /// Makes a segment that [`Segments::get`] allows: all its memory first, so that nobody runs out of it at a touch.
    pub fn make(&mut self, size: u64, make: impl FnOnce(&mut Segments) -> i32) -> Result<i32, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.directory, flags, Mode::RUSR | Mode::WUSR).map_err(|_| Errno::NOMEM)?;
        let length = size.next_multiple_of(crate::segments::PAGE);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length).map_err(|_| Errno::NOMEM)?;
        let id = make(&mut self.segments);
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        if rustix::fs::linkat(CWD, &from, CWD, self.path(id), AtFlags::SYMLINK_FOLLOW).is_err() {
            self.segments.forget(id);
            return Err(Errno::NOMEM);
        }
        let _ = self.records.write_all_at(&record::of_cursor(self.segments.cursor()), 0);
        self.write(id);
        Ok(id)
    }

    /// A new description of a segment for an attachment, and its token.
    pub fn open_for(&mut self, id: i32, access: (bool, bool), by: Process, now: i64) -> Result<(OwnedFd, u64), Errno> {
        let (read_only, for_child) = access;
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let file =
            rustix::fs::open(self.path(id), access | OFlags::CLOEXEC, Mode::empty()).map_err(|_| Errno::NOMEM)?;
        let token = (random()? & (locks::END - 1) & !READ_ONLY) | if read_only { READ_ONLY } else { 0 };
        locks::hold(&file, token_to_byte(token)).map_err(|_| Errno::NOMEM)?;
        self.notice(id, &by, now);
        let segment = self.segments.find_mut(id).ok_or(Errno::IDRM)?;
        let before = (segment.atime, segment.last.clone());
        segment.attached(by.clone(), now);
        self.known.entry(id).or_default().insert(token, Known::new(by, before, for_child));
        self.write(id);
        Ok((file, token))
    }

    /// Whether somebody has it attached under this token.
    pub fn holds(&self, id: i32, token: u64) -> bool {
        let Ok(file) = File::open(self.path(id)) else { return false };
        self.segments.find(id).is_ok() && is_held(&file, token)
    }

    /// A forked child has this attachment, which was made for it before it was there.
    pub fn adopt(&mut self, id: i32, token: u64, by: Process) {
        if let Some(known) = self.known.get_mut(&id).and_then(|tokens| tokens.get_mut(&token)) {
            (known.by, known.pending) = (by, false);
        }
    }

    /// An attachment came to nothing.
    pub fn undo(&mut self, id: i32, token: u64, now: i64) {
        let known = self.known.get_mut(&id).and_then(|tokens| tokens.remove(&token));
        if let (Some(known), Some(segment)) = (known, self.segments.find_mut(id)) {
            if segment.last == known.by && known.by.node_pid != 0 {
                (segment.atime, segment.last) = known.before;
            }
            self.write(id);
        }
        self.count(id, now);
    }

    /// An attachment was let go of; one that nobody knows of was not.
    pub fn detach(&mut self, id: i32, token: u64, by: Process, now: i64) {
        let Some(known) = self.known.get_mut(&id).and_then(|tokens| tokens.get_mut(&token)) else { return };
        known.released = true;
        self.notice(id, &by, now);
        let Some(segment) = self.segments.find_mut(id) else { return };
        segment.detached(by, now);
        let doomed = segment.is_doomed();
        self.write(id);
        if doomed {
            self.count(id, now);
        } else if !self.holds(id, token) {
            // Otherwise still in the books: a child that has just been forked may keep the lock for a moment.
            self.known.get_mut(&id).and_then(|tokens| tokens.remove(&token));
        }
    }

    /// Notes who went without a word before what is noted next, so that `shm_lpid` is who came last. The caller's own make no
    /// difference to that, and where many others are attached it is not worth the look: each is a question to the kernel.
    fn notice(&mut self, id: i32, by: &Process, now: i64) {
        let Some(known) = self.known.get(&id) else { return };
        let others = known.iter().filter(|(_, known)| known.by.node_pid != by.node_pid || by.node_pid == 0);
        let others: Vec<u64> = others.map(|(token, _)| *token).take(WORTH_A_LOOK + 1).collect();
        if others.is_empty() || others.len() > WORTH_A_LOOK {
            return;
        }
        let Ok(file) = File::open(self.path(id)) else { return };
        if others.into_iter().any(|token| !is_held(&file, token)) {
            self.count(id, now);
        }
    }

    /// How many attachments there are now. Those that went without a word (exit, exec, kill -9) are noted, and a segment that
    /// waited for its last one goes.
    pub fn count(&mut self, id: i32, now: i64) -> u64 {
        if self.segments.find(id).is_err() {
            return 0;
        }
        let held = match File::open(self.path(id)).and_then(|file| locks::held(&file)) {
            Ok(held) => held.into_iter().collect::<BTreeSet<u64>>(),
            Err(error) => {
                // Nothing is removed on a guess.
                tracing::error!(id, %error, "attachments could not be counted");
                return u64::MAX;
            }
        };
        let known = self.known.entry(id).or_default();
        let gone: Vec<u64> = known.keys().filter(|token| !held.contains(&token_to_byte(**token))).copied().collect();
        let mut last = None;
        for token in gone {
            last = known.remove(&token).filter(|known| !known.released).or(last);
        }
        let passing = match known.values().any(|known| known.pending) {
            true => known.values().filter(|known| known.released).count() as u64,
            false => 0,
        };
        if let (Some(last), Some(segment)) = (last, self.segments.find_mut(id)) {
            // Who it was is not known of those from before this daemon.
            let by = if last.by.node_pid == 0 { segment.last.clone() } else { last.by };
            segment.detached(by, now);
            self.write(id);
        }
        if held.is_empty() && self.segments.find(id).is_ok_and(Segment::is_doomed) {
            self.segments.forget(id);
            self.erase(id);
        }
        (held.len() as u64).saturating_sub(passing)
    }

    /// Looks at every segment that somebody had attached or that is to go.
    pub fn sweep(&mut self, now: i64) {
        let watched = |segment: &&Segment| {
            segment.is_doomed() || self.known.get(&segment.id).is_some_and(|tokens| !tokens.is_empty())
        };
        let ids: Vec<i32> = self.segments.all().filter(watched).map(|segment| segment.id).collect();
        for id in ids {
            self.count(id, now);
        }
    }

    /// After [`Segments::forget`] or a removal: the memory goes, once nobody has it mapped.
    pub fn erase(&mut self, id: i32) {
        self.known.remove(&id);
        // The record first: a file without one is swept up by the next daemon, a record without its file says nothing either.
        let _ = self.records.write_all_at(&[0; record::SIZE], record::offset(crate::ids::index_of(id)));
        if let Err(error) = std::fs::remove_file(self.path(id)) {
            tracing::error!(id, %error, "a segment's memory could not be removed");
        }
    }

    /// Forgets a segment whoever has it attached; their mappings stay theirs until they let go.
    pub fn remove_by_force(&mut self, id: i32) -> bool {
        let gone = self.segments.forget(id).is_some();
        if gone {
            self.erase(id);
        }
        gone
    }
}

fn random() -> Result<u64, Errno> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}
