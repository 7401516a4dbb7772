//! Before a member starts: does the daemon answer where the member will ask, and will the program load the library at all?
//!
//! A loader that can't load a preloaded library goes on without it, and the program would run private.

use podshm_preload::wire::{self, HEAD, WORDS};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Why a program can't be a member.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Nobody answers.
    #[error("the domain's daemon does not answer at {path}: {source}; start it (`podshm broker --unmodified`), or see its log", path = path.display())]
    NoDaemon {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such program.
    #[error("{program}: {source}", program = program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No loader, so nothing is preloaded.
    #[error("{program} is statically linked, and a preload library can't reach it: its shared memory would be private; use --mode native", program = program.display())]
    Static {
        /// The program.
        program: PathBuf,
    },
    /// Its loader says no.
    #[error("{program} does not load {library}: {found}; expected the loader {loader} to list it (is the program 64-bit, and the library on a file system without noexec?)", program = program.display(), library = library.display(), loader = loader.display())]
    NotLoaded {
        /// The program.
        program: PathBuf,
        /// The library.
        library: PathBuf,
        /// The program's loader.
        loader: PathBuf,
        /// What the loader said.
        found: String,
    },
}

/// Asks the daemon whether it is there.
pub fn hello(path: &Path) -> Result<(), ProbeError> {
    let ask = || -> io::Result<()> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(10)),
        )?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let words = wire::request(wire::HELLO, [0; 3], 0);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        send(&socket, &bytes, SendFlags::NOSIGNAL)?;
        let mut answer = [0u8; HEAD];
        let (read, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        let expected = wire::reply(wire::HELLO, 0, [0; 2]);
        let right = read == WORDS * 8 && answer[..8] == expected[0].to_ne_bytes();
        if right { Ok(()) } else { Err(io::Error::other("what answers is of another release")) }
    };
    ask().map_err(|source| ProbeError::NoDaemon { path: path.to_owned(), source })
}

/// Finds a program as a shell does.
pub fn find(program: &Path, search: &str) -> Result<PathBuf, ProbeError> {
    let runs =
        |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if program.components().count() > 1 {
        return match fs::metadata(program) {
            Ok(_) => Ok(program.to_owned()),
            Err(source) => Err(ProbeError::Program { program: program.to_owned(), source }),
        };
    }
    let found = search.split(':').map(|directory| Path::new(directory).join(program)).find(|path| runs(path));
    found.ok_or_else(|| ProbeError::Program {
        program: program.to_owned(),
        source: io::Error::new(io::ErrorKind::NotFound, "not found in PATH"),
    })
}

/// Whether the library will be loaded into `program`; asks the program's own loader, which runs nothing of it.
pub fn loads(program: &Path, library: &Path) -> Result<(), ProbeError> {
    let failed = |source| ProbeError::Program { program: program.to_owned(), source };
    let mut start = Vec::new();
    fs::File::open(program).and_then(|file| file.take(64 << 10).read_to_end(&mut start)).map_err(failed)?;
    if let Some(script) = start.strip_prefix(b"#!") {
        let line = script.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let interpreter = line.split_whitespace().next().unwrap_or("/bin/sh");
        return loads(Path::new(interpreter), library);
    }
    let Some(loader) = interpreter(&start) else { return Err(ProbeError::Static { program: program.to_owned() }) };
    let output =
        Command::new(&loader).arg("--list").arg(program).env("LD_PRELOAD", library).output().map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if text(&output.stdout).lines().any(|line| line.contains(&*library.to_string_lossy())) {
        return Ok(());
    }
    let found = match text(&output.stderr) {
        none if none.is_empty() => "it is not among what is loaded".to_owned(),
        said => said,
    };
    Err(ProbeError::NotLoaded { program: program.to_owned(), library: library.to_owned(), loader, found })
}

/// The loader that a 64-bit ELF program asks for, if it is dynamic.
fn interpreter(elf: &[u8]) -> Option<PathBuf> {
    const INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?) as usize);
    if elf.get(..5)? == b"\x7fELF\x01" {
        return interpreter_32(elf);
    }
    let (table, size, count) = (long(32)?, usize::from(half(54)?), usize::from(half(56)?));
    let header = (0..count).map(|index| table + index * size).find(|at| word(*at) == Some(INTERP))?;
    let (start, length) = (long(header + 8)?, long(header + 32)?);
    path(elf.get(start..start.checked_add(length)?)?)
}

fn interpreter_32(elf: &[u8]) -> Option<PathBuf> {
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?) as usize);
    let (table, size, count) = (word(28)?, usize::from(half(42)?), usize::from(half(44)?));
    let header = (0..count).map(|index| table + index * size).find(|at| word(*at) == Some(3))?;
    let (start, length) = (word(header + 4)?, word(header + 16)?);
    path(elf.get(start..start.checked_add(length)?)?)
}

fn path(bytes: &[u8]) -> Option<PathBuf> {
    Some(PathBuf::from(std::str::from_utf8(bytes).ok()?.trim_end_matches('\0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_has_a_loader() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(interpreter(&own).is_some_and(|loader| loader.exists()));
        assert_eq!(interpreter(b"\x7fELF\x02 cut short"), None);
    }

    #[test]
    fn a_library_that_is_not_there_is_not_loaded() {
        let own = std::env::current_exe().unwrap();
        let error = loads(&own, Path::new("/nonexistent/libpodshm-preload.so")).unwrap_err();
        assert!(matches!(error, ProbeError::NotLoaded { .. }), "{error}");
    }
}
