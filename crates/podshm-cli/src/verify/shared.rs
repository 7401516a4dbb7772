//! Memory of unmodified programs, as they see it: objects in /dev/shm, System V segments.

use anyhow::{Context, bail, ensure};
use podshm_region::sysv::{self, Attached};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where POSIX shared memory is.
const SHM: &str = "/dev/shm";
/// What an object is written with, to be read again.
const WRITTEN: &[u8] = b"podshm verify";

/// An object, or a segment, that should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name, or its key.
    pub name: String,
    /// At least so many bytes; 1 where nothing is said.
    bytes: u64,
    /// What it begins with.
    expected: Option<String>,
}

/// `NAME[,BYTES][=TEXT]`
pub fn object(text: &str) -> Result<Object, String> {
    let (rest, expected) = text.split_once('=').map_or((text, None), |(rest, text)| (rest, Some(text.to_owned())));
    let (name, bytes) = match rest.rsplit_once(',') {
        Some((name, bytes)) => (name, bytes.parse().map_err(|_| format!("{bytes:?}: expected a number of bytes"))?),
        None => (rest, 1),
    };
    let name = name.trim_start_matches('/').to_owned();
    if name.is_empty() || name.contains('/') {
        return Err(format!("{text:?}: expected a name, as shm_open has it, or a key"));
    }
    Ok(Object { name, bytes, expected })
}

/// A System V key, decimal or hexadecimal.
pub fn key(text: &str) -> Result<i32, String> {
    let found = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok().map(u32::cast_signed),
        None => text.parse().ok(),
    };
    found
        .filter(|key| *key != 0)
        .ok_or_else(|| format!("{text:?}: expected a key, in decimal or as 0x…; 0 is IPC_PRIVATE"))
}

/// An object is there, large enough, and begins as it should.
pub fn posix(one: &Object) -> anyhow::Result<()> {
    posix_in(Path::new(SHM), one)
}

fn posix_in(directory: &Path, one: &Object) -> anyhow::Result<()> {
    let mut file = File::open(directory.join(&one.name))?;
    let found = file.metadata()?;
    ensure!(found.is_file(), "it is no shared memory object, but {:?}", found.file_type());
    is_large_enough(one, found.len())?;
    let mut beginning = vec![0; one.expected.as_ref().map_or(1, String::len)];
    file.read_exact(&mut beginning)?;
    super::is_expected(&beginning, one.expected.as_deref())
}

/// An object can be made, and what is written is there for whoever opens it by its name.
pub fn posix_write(name: &str) -> anyhow::Result<()> {
    posix_write_in(Path::new(SHM), name)
}

fn posix_write_in(directory: &Path, name: &str) -> anyhow::Result<()> {
    ensure!(!name.is_empty() && !name.contains('/'), "expected a name, found {name:?}");
    let path = directory.join(name);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let mut made = made.context("expected that nobody has it, and that there is room")?;
    // Gone again, whatever comes of it.
    let _gone = Gone(path.clone());
    made.write_all(WRITTEN)?;
    let found = std::fs::read(&path)?;
    ensure!(found == WRITTEN, "what was written is not what is read");
    Ok(())
}

struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A segment is there, can be attached, is large enough, and begins as it should.
pub fn sysv(one: &Object) -> anyhow::Result<()> {
    let key = key(&one.name).map_err(anyhow::Error::msg)?;
    let id = sysv::find(key).with_context(|| {
        let hint = "in a domain of preload this has to be a program that takes LD_PRELOAD";
        format!("no segment has this key here ({hint})")
    })?;
    let segment = Attached::to(id, false).context("attaching it")?;
    is_large_enough(one, segment.bytes() as u64)?;
    let mut beginning = vec![0; one.expected.as_ref().map_or(1, String::len)];
    let length = segment.read(&mut beginning);
    super::is_expected(&beginning[..length], one.expected.as_deref())
}

/// A segment can be made, and what is written is there for whoever attaches it by its key.
pub fn sysv_write(key: i32) -> anyhow::Result<()> {
    let id = sysv::create(key, WRITTEN.len()).context("expected that nobody has it, and that there is room")?;
    let tried = (|| {
        let (writes, reads) = (Attached::to(id, true)?, Attached::to(sysv::find(key)?, false)?);
        let mut found = vec![0; WRITTEN.len()];
        if !writes.write(WRITTEN) || reads.read(&mut found) != found.len() || found != WRITTEN {
            bail!("what was written is not what is read");
        }
        Ok(())
    })();
    // Gone again, whatever came of it.
    sysv::remove(id).context("removing it")?;
    tried
}

fn is_large_enough(one: &Object, found: u64) -> anyhow::Result<()> {
    ensure!(found >= one.bytes, "it has {found} bytes, {} expected at least", one.bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_a_name_with_a_size_and_a_text() {
        let of = |name: &str, bytes, expected: Option<&str>| Object {
            name: name.into(),
            bytes,
            expected: expected.map(str::to_owned),
        };
        assert_eq!(object("/routes"), Ok(of("routes", 1, None)));
        assert_eq!(object("routes,4096=a,b=c"), Ok(of("routes", 4096, Some("a,b=c"))));
        assert_eq!(object("0x706f6421=10.0.0.1:80"), Ok(of("0x706f6421", 1, Some("10.0.0.1:80"))));
        for wrong in ["", "/", "../passwd", "routes,many", ",5"] {
            assert!(object(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!((key("0x706f6421"), key("-1"), key("0xffffffff")), (Ok(0x706f_6421), Ok(-1), Ok(-1)));
        assert!(key("0").unwrap_err().contains("IPC_PRIVATE") && key("routes").is_err());
    }

    #[test]
    fn an_object_is_looked_at_for_its_size_and_text_and_one_of_our_own_goes_again() {
        let directory = std::env::temp_dir().join(format!("podshm-verify-shm-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("folder")).unwrap();
        std::fs::write(directory.join("routes"), "10.0.0.1:80 and more").unwrap();
        std::fs::write(directory.join("empty"), "").unwrap();
        for (what, expected) in [
            ("routes", ""),
            ("routes=10.0.0.1:80", ""),
            ("routes,20", ""),
            ("routes,21", "it has 20 bytes, 21 expected at least"),
            ("routes=10.0.0.2:80", "expected \"10.0.0.2:80\", found \"10.0.0.1:80\""),
            ("empty", "it has 0 bytes, 1 expected at least"),
            ("folder", "it is no shared memory object"),
            ("nothing", "No such file"),
        ] {
            let said = posix_in(&directory, &object(what).unwrap()).err().map(|error| format!("{error:#}"));
            let said = said.unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{what}: {said}");
        }
        posix_write_in(&directory, "ours").unwrap();
        assert!(!directory.join("ours").exists());
        assert!(posix_write_in(&directory, "routes").unwrap_err().to_string().contains("nobody has it"));
        assert!(directory.join("routes").exists(), "somebody else's stays");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_segment_is_attached_and_one_of_our_own_goes_again() {
        let number = 0x7076_0000 | (std::process::id() as i32 & 0xffff);
        let text = format!("{number:#x}");
        sysv_write(number).unwrap();
        let gone = sysv(&object(&text).unwrap()).unwrap_err();
        assert!(format!("{gone:#}").contains("no segment has this key here"), "{gone:#}");
        let id = sysv::create(number, 4096).unwrap();
        assert!(Attached::to(id, true).unwrap().write(b"10.0.0.1:80"));
        let said: Vec<String> = ["", ",4096=10.0.0.1:80", ",4097", "=10.0.0.2"]
            .iter()
            .map(|rest| {
                sysv(&object(&format!("{text}{rest}")).unwrap()).err().map_or(String::new(), |e| format!("{e:#}"))
            })
            .collect();
        let made = sysv_write(number);
        sysv::remove(id).unwrap();
        assert_eq!((&said[0], &said[1]), (&String::new(), &String::new()));
        assert!(said[2].contains("4096 bytes, 4097 expected") && said[3].contains("found \"10.0.0.1\""), "{said:?}");
        assert!(made.unwrap_err().to_string().contains("nobody has it"));
    }
}
