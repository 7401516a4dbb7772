//! What the next broker must know if this one dies: every region, client and domain, in a file on the node's /run.
//!
//! ```text
//!  podshm ledger 1\n [ length u32 ][ its xxh3 u32 ][ xxh3 of what follows u64 ][ Changes ] …
//!                    └─ all that has changed since the last one: a frame counts whole or not at all
//! ```
//! A frame is written before anything that the change lets out: no descriptor, no word that is not in the file. So whatever a
//! participant has seen, the file says, wherever the broker was killed; the rest never happened. A kill in the midst of a write leaves
//! a frame that is cut short at the end of the file; nobody was told of what it says. Anything else that can't be read is an error:
//! other bytes than these mean that somebody else wrote here.
//!
//! The file is on a tmpfs, and meant to go with the machine: so do the regions. Nothing is synced.

pub(crate) mod records;

use crate::BrokerError;
use podshm_layout::step::{self, Step};
use prost::Message;
use records::{Changes, ClientKey, ClientRecord, DomainRecord, RegionRecord};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8] = b"podshm ledger 1\n";
const HEAD: usize = 16;
/// Longest frame: more than all clients of a node in one.
const LONGEST: usize = 256 << 20;
/// Up to this size it is not worth writing the file anew.
const SMALL: u64 = 256 << 10;

/// Everything that a ledger says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Entries {
    pub(crate) last_region: u64,
    pub(crate) domains: BTreeMap<String, DomainRecord>,
    pub(crate) clients: BTreeMap<ClientKey, ClientRecord>,
    pub(crate) regions: BTreeMap<u64, RegionRecord>,
    /// The highest epoch that a notice page of the domain may have said.
    pub(crate) epochs: BTreeMap<String, u64>,
}

impl Entries {
    fn apply(&mut self, changes: Changes) {
        self.last_region = self.last_region.max(changes.last_region);
        for epoch in changes.epochs {
            let highest = self.epochs.entry(epoch.domain).or_default();
            *highest = epoch.epoch.max(*highest);
        }
        self.domains.extend(changes.domains.into_iter().map(|d| (d.name.clone(), d)));
        let key = |c: &ClientRecord| ClientKey { domain: c.domain.clone(), client: c.client };
        self.clients.extend(changes.clients.into_iter().map(|c| (key(&c), c)));
        self.regions.extend(changes.regions.into_iter().map(|r| (r.region.id, r)));
        for name in &changes.gone_domains {
            self.domains.remove(name);
            self.epochs.remove(name);
        }
        for key in &changes.gone_clients {
            self.clients.remove(key);
        }
        for id in &changes.gone_regions {
            self.regions.remove(id);
        }
    }

    fn whole(&self) -> Changes {
        Changes {
            last_region: self.last_region,
            domains: self.domains.values().cloned().collect(),
            clients: self.clients.values().cloned().collect(),
            regions: self.regions.values().cloned().collect(),
            epochs: self
                .epochs
                .iter()
                .map(|(domain, epoch)| records::EpochRecord { domain: domain.clone(), epoch: *epoch })
                .collect(),
            ..Changes::default()
        }
    }
}

/// The file, and what it says.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    /// Bytes of the file that count.
    length: u64,
    /// What they were when it was written anew.
    compact: u64,
    entries: Entries,
}

impl Ledger {
    /// Reads the ledger at `path`, or begins one.
    pub(crate) fn open(path: &Path) -> Result<Self, BrokerError> {
        let fail = |source: io::Error| failed("opening", path, source);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(fail)?;
        let bytes = std::fs::read(path).map_err(fail)?;
        let (entries, length) = read(&bytes, path)?;
        let mut ledger = Ledger { path: path.to_owned(), file, length, compact: 0, entries };
        ledger.rewrite()?;
        Ok(ledger)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Writes down what has changed. Nothing that depends on it may be let out before this returns well.
    pub(crate) fn append(&mut self, changes: Changes) -> Result<(), BrokerError> {
        let frame = framed(&changes);
        step::at(Step::LedgerWriting);
        let written = self.file.write_all_at(&frame, self.length);
        // Cut off again what may be there of it: the next frame must not follow a half one.
        written
            .or_else(|e| self.file.set_len(self.length).and(Err(e)))
            .map_err(|e| failed("writing", &self.path, e))?;
        self.length += frame.len() as u64;
        self.entries.apply(changes);
        step::at(Step::LedgerWritten);
        if self.length > SMALL.max(self.compact * 4) {
            self.rewrite()?;
        }
        Ok(())
    }

    /// Writes everything into a new file, which then takes the place of this one.
    fn rewrite(&mut self) -> Result<(), BrokerError> {
        let fail = |source: io::Error| failed("writing anew", &self.path, source);
        let temporary = self.path.with_extension("new");
        let bytes = [MAGIC, &framed(&self.entries.whole())].concat();
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).clone();
        let file = options.open(&temporary).map_err(fail)?;
        file.write_all_at(&bytes, 0).map_err(fail)?;
        step::at(Step::LedgerRewritten);
        std::fs::rename(&temporary, &self.path).map_err(fail)?;
        (self.file, self.length, self.compact) = (file, bytes.len() as u64, bytes.len() as u64);
        Ok(())
    }
}

fn failed(doing: &str, path: &Path, source: io::Error) -> BrokerError {
    BrokerError::System { what: format!("{doing} the ledger {}", path.display()), source }
}

fn framed(changes: &Changes) -> Vec<u8> {
    let body = changes.encode_to_vec();
    let mut frame = Vec::with_capacity(HEAD + body.len());
    let length = (body.len() as u32).to_le_bytes();
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&(xxh3_64(&length) as u32).to_le_bytes());
    frame.extend_from_slice(&xxh3_64(&body).to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// What the bytes of a ledger say, and how many of them count.
fn read(bytes: &[u8], path: &Path) -> Result<(Entries, u64), BrokerError> {
    let bad = |at: usize, what: String| BrokerError::Ledger { path: path.to_owned(), at: at as u64, what };
    let mut entries = Entries::default();
    // One that was killed while it began.
    if MAGIC.starts_with(bytes) {
        return Ok((entries, 0));
    }
    if !bytes.starts_with(MAGIC) {
        let found = String::from_utf8_lossy(&bytes[..bytes.len().min(MAGIC.len())]).into_owned();
        return Err(bad(0, format!("it begins with {found:?}, expected {:?}", String::from_utf8_lossy(MAGIC))));
    }
    let mut at = MAGIC.len();
    while let Some(head) = bytes.get(at..at + HEAD) {
        let word = |from: usize| u32::from_le_bytes(head[from..from + 4].try_into().expect("four bytes"));
        let (length, expected, found) = (word(0) as usize, xxh3_64(&head[..4]) as u32, word(4));
        if found != expected || length > LONGEST {
            let what = format!(
                "a record of {length} bytes (checksum {found:#x}, expected {expected:#x}), expected at most {LONGEST}"
            );
            return Err(bad(at, what));
        }
        let sum = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        let Some(body) = bytes.get(at + HEAD..at + HEAD + length) else { break };
        let found = xxh3_64(body);
        if found != sum {
            return Err(bad(at, format!("a record of {length} bytes with checksum {found:#x}, expected {sum:#x}")));
        }
        let changes = Changes::decode(body).map_err(|e| bad(at, format!("a record that can't be read: {e}")))?;
        entries.apply(changes);
        at += HEAD + length;
    }
    if at < bytes.len() {
        tracing::info!(path = %path.display(), cut = bytes.len() - at, "the ledger's last record was not finished; nobody was told of it");
    }
    Ok((entries, at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podshm_proto::Region;

    fn region(id: u64, inode: u64) -> Changes {
        let region = Region { id, kind: 1, bytes: 4096, ..Region::default() };
        let record = RegionRecord { region, inode, domain: "d".into(), ..RegionRecord::default() };
        Changes { last_region: id, regions: vec![record], ..Changes::default() }
    }

    fn file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("podshm-ledger-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn says_what_was_written_wherever_it_is_cut() {
        let path = file("cut");
        let mut ledger = Ledger::open(&path).unwrap();
        let mut states = vec![(ledger.length, ledger.entries.clone())];
        for id in 1..20 {
            ledger.append(region(id, id * 7)).unwrap();
            if id % 3 == 0 {
                ledger.append(Changes { gone_regions: vec![id - 1], ..Changes::default() }).unwrap();
            }
            states.push((ledger.length, ledger.entries.clone()));
        }
        assert_eq!(Ledger::open(&path).unwrap().entries, ledger.entries);
        let mut whole = MAGIC.to_vec();
        let mut ends = vec![(whole.len(), Entries::default())];
        let mut entries = Entries::default();
        for id in 1..20 {
            whole.extend(framed(&region(id, id)));
            entries.apply(region(id, id));
            ends.push((whole.len(), entries.clone()));
        }
        for cut in 0..=whole.len() {
            let (found, length) = read(&whole[..cut], &path).unwrap();
            let expected = ends.iter().rev().find(|(end, _)| *end <= cut);
            assert_eq!(found, expected.map_or_else(Entries::default, |(_, e)| e.clone()), "cut at {cut}");
            assert!(length <= cut as u64);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn other_bytes_are_an_error_that_says_where() {
        let whole = [MAGIC, &framed(&region(1, 1)), &framed(&region(2, 2))].concat();
        let path = Path::new("/run/podshm/ledger");
        for at in 0..whole.len() {
            for flip in [1, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                match read(&bytes, path) {
                    Err(BrokerError::Ledger { at: found, what, .. }) => {
                        assert!(found as usize <= at && what.contains("expected"), "{what}");
                    }
                    other => panic!("flip at {at}: {other:?}"),
                }
            }
        }
        let error = read(b"something else entirely", path).unwrap_err().to_string();
        assert!(error.contains("/run/podshm/ledger") && error.contains("something else"), "{error}");
    }

    #[test]
    fn stays_small() {
        let path = file("small");
        let mut ledger = Ledger::open(&path).unwrap();
        for turn in 0..50_000 {
            ledger.append(region(1 + turn % 10, turn)).unwrap();
            assert!(ledger.length <= SMALL + 1024);
        }
        assert_eq!(Ledger::open(&path).unwrap().entries, ledger.entries);
        std::fs::remove_file(&path).unwrap();
    }
}
