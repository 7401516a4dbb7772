//! Programs that tests start and talk to line by line; those in C are compiled with the system's `cc` against the fork shim.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Compiles `tests/c/NAME.c` into `directory`.
pub fn compile(name: &str, directory: &Path) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
    // Cargo puts the shim beside the tests that depend on it.
    let beside = std::env::current_exe().expect("this test's path").parent().expect("its directory").to_owned();
    assert!(beside.join("libpodshm_fork_shim.so").exists(), "no libpodshm_fork_shim.so in {}", beside.display());
    let program = directory.join(name);
    let status = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"])
        .arg(&program)
        .arg(sources.join(format!("{name}.c")))
        .arg("-L")
        .arg(&beside)
        .arg("-lpodshm_fork_shim")
        .arg(format!("-Wl,-rpath,{}", beside.display()))
        .status()
        .expect("cc; `make setup` installs it");
    assert!(status.success(), "cc: {status}");
    program
}

/// Puts the C library into `directory`, under the names that a linker and a program ask for.
fn library(directory: &Path) {
    let beside = std::env::current_exe().expect("this test's path").parent().expect("its directory").to_owned();
    let built = beside.join("libpodshm_capi.so");
    assert!(built.exists(), "no {}", built.display());
    for name in ["libpodshm.so", "libpodshm.so.0"] {
        let link = directory.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&built, &link).expect("a link");
    }
}

/// Compiles C sources of `tests/c` into `directory/NAME`, as strictly as the header promises to be, over the C library; with more
/// arguments for the compiler.
pub fn over_the_library(name: &str, sources: &[&str], directory: &Path, more: &[&str]) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    library(directory);
    let program = directory.join(name);
    let mut command = Command::new("cc");
    command.arg("-std=c99").args(STRICT).args(more);
    command.arg("-I").arg(tests.join("../crates/podshm-capi/include")).arg("-o").arg(&program);
    command.args(sources.iter().map(|source| tests.join("c").join(source)));
    command.arg("-L").arg(directory).args(["-lpodshm", "-Wl,-rpath,$ORIGIN"]);
    let status = command.status().expect("cc; `make setup` installs it");
    assert!(status.success(), "cc: {status}");
    program
}

/// Functions of the C library that `absurd.c` does not call with bad arguments: they have none, or any number is good.
pub const ABSURD: &[&str] =
    &["podshm_version", "podshm_result_name", "podshm_last_message", "podshm_last_errno", "podshm_last_status"];

/// The conformance suite's participant in C.
pub fn conform_in_c(directory: &Path, more: &[&str]) -> PathBuf {
    over_the_library("conform", &["conform.c", "conform_client.c", "conform_agent.c"], directory, more)
}

/// For a compiler: address and undefined behaviour sanitizers; what they find ends the program.
pub const SANITIZED: &[&str] = &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// `program` under valgrind: leaks and whatever else it finds are a bad end. Children that it forks are looked at, too.
pub fn under_valgrind(program: &Path) -> PathBuf {
    let script = program.with_extension("valgrind");
    let options = "--quiet --vgdb=no --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite";
    let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/valgrind.supp");
    let (known, program) = (known.display(), program.display());
    executable(&script, &format!("#!/bin/sh\nexec valgrind {options} --suppressions={known} {program} \"$@\"\n"));
    script
}

fn executable(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("a program");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a mode");
}

/// The same in C++, by `podshm.hpp`: its two halves with the rest of the one in C.
pub fn conform_in_cpp(directory: &Path, more: &[&str]) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rest = directory.join("conform.o");
    let mut command = Command::new("cc");
    command.arg("-std=c99").args(more).args(STRICT).arg("-I").arg(tests.join("../crates/podshm-capi/include"));
    let status = command.arg("-c").arg(tests.join("c/conform.c")).arg("-o").arg(&rest).status();
    assert!(status.expect("cc; `make setup` installs it").success(), "{command:?}");
    let more: Vec<&str> = more.iter().copied().chain([rest.to_str().expect("a path")]).collect();
    cpp_over_the_library("conform", &["conform_client.cpp", "conform_agent.cpp"], directory, &more)
}

/// [`over_the_library`] for C++ sources of `tests/cpp`.
pub fn cpp_over_the_library(name: &str, sources: &[&str], directory: &Path, more: &[&str]) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    library(directory);
    let program = directory.join(name);
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-fno-exceptions"]).args(STRICT);
    command.arg("-I").arg(tests.join("../crates/podshm-capi/include")).arg("-I").arg(tests.join("c"));
    command.args(sources.iter().map(|source| tests.join("cpp").join(source))).args(more).arg("-o").arg(&program);
    command.arg("-L").arg(directory).args(["-lpodshm", "-Wl,-rpath,$ORIGIN"]);
    let status = command.status().expect("a C++ compiler; `make setup` installs it");
    assert!(status.success(), "{command:?}: {status}");
    program
}

/// How all of them are compiled.
const STRICT: &[&str] = &["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-g", "-pthread"];

/// The Python that has what tests need beside the module: numpy, mypy. `scripts/wheel.sh tools` makes it.
pub fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).expect("a home");
    let venv = std::env::var_os("PODSHM_PYTHON").map_or_else(|| cache.join("podshm/python"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(python.exists(), "no {}; run: scripts/wheel.sh tools", python.display());
    python
}

/// Where the Python module of these sources is, built once for all tests of a program.
pub fn module() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let output = Command::new(root.join("scripts/wheel.sh")).arg("test").current_dir(root).output();
        let output = output.expect("scripts/wheel.sh");
        assert!(output.status.success(), "scripts/wheel.sh: {}", String::from_utf8_lossy(&output.stderr));
        root.join(target).join("python")
    });
    built.clone()
}

/// The conformance suite's participant in Python, as a program. In a pod the Python is the system's own: others may lie where only their
/// owner comes.
pub fn conform_in_python(directory: &Path) -> PathBuf {
    let (module, tests) = (module(), Path::new(env!("CARGO_MANIFEST_DIR")).join("python"));
    let program = directory.join("conform");
    let text = format!(
        "#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 PYTHONPATH={}:{} exec /usr/bin/python3 {}/conform.py \"$@\"\n",
        module.display(),
        tests.display(),
        tests.display()
    );
    executable(&program, &text);
    program
}

/// A program whose lines are read as they come. Killed when dropped.
#[derive(Debug)]
pub struct Talk {
    child: Child,
    /// Kept apart: waiting for a child closes its input, and its children read that too.
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Talk {
    /// Starts it.
    pub fn start(mut command: Command) -> Talk {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
        let out = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).all(|l| sender.send(l).is_ok()));
        let stdin = child.stdin.take().expect("piped");
        Talk { child, stdin, lines }
    }

    /// Its next line.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(crate::PATIENCE * 3) {
            Ok(line) => line,
            Err(error) => {
                std::thread::sleep(std::time::Duration::from_millis(300)); // for it to be reaped
                panic!("the program says nothing: {error}; it is {:?}", self.child.try_wait())
            }
        }
    }

    /// The rest of its next line that starts with `word`; others are passed over.
    pub fn find(&mut self, word: &str) -> String {
        loop {
            if let Some(rest) = self.line().strip_prefix(word) {
                return rest.to_owned();
            }
        }
    }

    /// Its next line, without `word` and a blank at its start.
    pub fn word(&mut self, word: &str) -> String {
        let line = self.line();
        let rest = line.strip_prefix(word).unwrap_or_else(|| panic!("expected {word:?}, got {line:?}"));
        rest.trim_start().to_owned()
    }

    /// The number after `word` in its next line.
    pub fn number(&mut self, word: &str) -> u64 {
        self.word(word).parse().expect("a number")
    }

    /// Gives it a line, or all processes that share its input.
    pub fn tell(&mut self) {
        self.stdin.write_all(b"go\n").expect("the program listens");
    }

    /// Kills it; children of its that share its input and output live on.
    pub fn kill(&mut self) {
        self.child.kill().expect("the program runs");
        self.child.wait().expect("its end");
    }

    /// Waits for its end, which must be a good one.
    pub fn end(&mut self) {
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "the program ends with {status}");
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
