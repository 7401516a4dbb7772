//! Programs in C, compiled once for each test process.

use std::fs::Permissions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// By gcc against glibc.
    Dynamic,
    /// By gcc against glibc, static.
    Static,
    /// By musl-gcc.
    Musl,
}

/// Compiles `c/NAME.c`; the path of the program.
pub fn compile(name: &str, build: Build) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(format!("{name}.c"));
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Where members of other uids can run it, which they can't below a home directory that is its owner's alone.
    let mut hash = DefaultHasher::new();
    std::fs::read(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display())).hash(&mut hash);
    let program = std::env::temp_dir().join(format!("podshm-c-{name}-{build:?}-{:x}", hash.finish()).to_lowercase());
    if program.exists() {
        return program;
    }
    let (compiler, extra): (&str, &[&str]) = match build {
        Build::Dynamic => ("cc", &[]),
        Build::Static => ("cc", &["-static"]),
        Build::Musl => ("musl-gcc", &[]),
    };
    let unfinished = program.with_extension(std::process::id().to_string());
    let output = Command::new(compiler)
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"])
        .arg(&unfinished)
        .arg(source)
        .args(extra)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; `make setup` installs it"));
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::set_permissions(&unfinished, Permissions::from_mode(0o755)).expect("the compiled program");
    std::fs::rename(&unfinished, &program).expect("the compiled program");
    program
}

/// Runs to the end; stdout, if it succeeded.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    text(command, output)
}

/// stdout of a program that succeeded.
pub fn text(command: &Command, output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}
