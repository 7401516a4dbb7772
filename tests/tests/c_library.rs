//! The C library as a library: what it exports and needs, and what it does with arguments that are none.

use podshm_broker::Limits;
use podshm_tests::Node;
use podshm_tests::programs::{ABSURD, SANITIZED, cpp_over_the_library, over_the_library};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn library() -> PathBuf {
    let beside = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    beside.join("libpodshm_capi.so")
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names that the header declares functions by.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(manifest().join("../crates/podshm-capi/include/podshm.h")).unwrap();
    let code = header.lines().filter(|line| !line.trim_start().starts_with("//"));
    let function = |line: &str| {
        let (before, _) = line.split_once('(')?;
        let name = before.rsplit([' ', '*']).next()?;
        (line.starts_with(|c: char| c.is_ascii_lowercase()) && name.starts_with("podshm_")).then(|| name.to_owned())
    };
    code.filter_map(function).collect()
}

#[test]
fn it_exports_what_the_header_declares_and_nothing_else() {
    let symbols = output(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let exported: BTreeSet<String> =
        symbols.lines().filter_map(|line| Some(line.split(' ').nth(2)?.to_owned())).collect();
    let declared = declared();
    assert!(declared.len() > 80, "{declared:?}");
    assert_eq!(exported, declared);
}

#[test]
fn it_carries_its_abi_in_its_name_and_needs_no_glibc_above_what_is_said() {
    let dynamic = output(Command::new("readelf").args(["-dW"]).arg(library()));
    assert!(dynamic.contains("Library soname: [libpodshm.so.0]"), "{dynamic}");
    assert!(dynamic.lines().any(|line| line.contains("FLAGS_1") && line.contains("NODELETE")), "{dynamic}");
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let known = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux"];
        assert!(known.iter().any(|name| line.contains(name)), "{line}");
    }
    let versions = output(Command::new("readelf").args(["-VW"]).arg(library()));
    let wanted = |word: &str| {
        let mut parts = word.strip_prefix("GLIBC_")?.split('.').map_while(|part| part.parse::<u32>().ok());
        Some((parts.next()?, parts.next()?))
    };
    let needs = versions.split_whitespace().filter_map(wanted).max().expect("it needs a glibc");
    eprintln!("libpodshm.so needs GLIBC_{}.{}", needs.0, needs.1);
    assert!(
        needs <= (2, 34),
        "GLIBC_{}.{}: say so in docs/c-abi.md, or build it where that is older",
        needs.0,
        needs.1
    );
}

#[test]
fn the_headers_compile_as_c99_and_as_cpp17_without_a_warning() {
    let include = manifest().join("../crates/podshm-capi/include");
    let cpp17 = ["-x", "c++", "-std=c++17"];
    for (compiler, language, header) in [
        ("cc", ["-x", "c", "-std=c99"].as_slice(), "podshm.h"),
        ("c++", &cpp17, "podshm.h"),
        ("c++", &cpp17, "podshm.hpp"),
        // Where exceptions are turned off, as they often are in agents.
        ("c++", &["-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti"], "podshm.hpp"),
    ] {
        let mut command = Command::new(compiler);
        command.args(language).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]);
        output(command.arg("-include").arg(include.join(header)).arg("/dev/null"));
    }
}

/// Starts `absurd` by `how`, and returns what it says.
fn absurd(name: &str, more: &[&str], how: impl FnOnce(&Path) -> Command) -> String {
    let node = Node::new(Limits::default());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let program = over_the_library("absurd", &["absurd.c"], &directory, more);
    let said = output(how(&program).arg(node.pod("agent")).arg(node.pod("client")));
    let calls: u64 = said.trim().strip_prefix("calls ").expect("it counts").parse().unwrap();
    assert!(calls > 8000, "{calls} calls");
    said
}

#[test]
fn what_is_no_argument_is_an_error() {
    let source = std::fs::read_to_string(manifest().join("c/functions.h")).unwrap();
    for name in declared() {
        assert!(
            source.contains(&format!("F({name}, ")) || ABSURD.contains(&name.as_str()),
            "functions.h does not list {name}"
        );
    }
    // Freed handles, too: as a program without a sanitizer finds them.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("absurd-freed");
    std::fs::create_dir_all(&directory).unwrap();
    let program = over_the_library("absurd", &["absurd.c"], &directory, &[]);
    let node = Node::new(Limits::default());
    output(Command::new(program).arg(node.pod("agent")).arg(node.pod("client")).arg("freed"));
}

/// Runs a program of `tests/c` with a pod that serves and one that joins.
fn run(name: &str, more: &[&str]) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let program = over_the_library(name, &[&format!("{name}.c")], &directory, more);
    let node = Node::new(Limits::default());
    assert_eq!(output(Command::new(program).arg(node.pod("agent")).arg(node.pod("client"))), "done\n");
}

#[test]
fn callbacks_lose_no_other_call() {
    run("callbacks", &[]);
}

/// Every function, in children of a process whose other threads are at it.
#[test]
fn a_forked_child_is_told_so_by_every_function() {
    run("forked", &[]);
}

/// A plug-in's host closes what it loaded.
#[test]
fn a_client_outlives_dlclose() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unload");
    std::fs::create_dir_all(&directory).unwrap();
    let program = over_the_library("unload", &["unload.c"], &directory, &["-Wl,--as-needed"]);
    let node = Node::new(Limits::default());
    let mut command = Command::new(program);
    command.arg(directory.join("libpodshm.so.0")).arg(node.pod("agent")).arg(node.pod("client"));
    assert_eq!(output(&mut command), "done\n");
}

/// Bytes in C++ are as many as there are.
#[test]
fn views_show_what_is_there() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("views");
    std::fs::create_dir_all(&directory).unwrap();
    assert_eq!(
        output(&mut Command::new(cpp_over_the_library("views", &["views.cpp"], &directory, SANITIZED))),
        "done\n"
    );
}

/// Under the sanitizers, which also find what is freed twice or never.
#[test]
fn moves_and_functors_in_cpp_leave_nothing_behind() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("handles");
    std::fs::create_dir_all(&directory).unwrap();
    let program = cpp_over_the_library("handles", &["handles.cpp"], &directory, SANITIZED);
    let node = Node::new(Limits::default());
    assert_eq!(output(Command::new(program).arg(node.pod("agent")).arg(node.pod("client"))), "done\n");
}

#[test]
fn sanitizers_find_nothing() {
    absurd("absurd-asan", &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], |program| {
        let mut command = Command::new(program);
        command.env("ASAN_OPTIONS", "detect_leaks=1:halt_on_error=1");
        command
    });
}

/// What seed after seed draws, for FUZZ_SECONDS.
#[test]
#[ignore = "as long as it is given: ONLY=capi make fuzz"]
fn seeds_find_nothing() {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(60, |seconds| seconds.parse().expect("a number of seconds"));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("absurd-fuzz");
    std::fs::create_dir_all(&directory).unwrap();
    let program = over_the_library("absurd", &["absurd.c"], &directory, SANITIZED);
    let first = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let (began, mut seed) = (Instant::now(), first);
    while began.elapsed() < Duration::from_secs(seconds) {
        let node = Node::new(Limits::default());
        let mut command = Command::new(&program);
        let output = command.arg(node.pod("agent")).arg(node.pod("client")).arg(seed.to_string()).output().unwrap();
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
        seed += 1;
    }
    eprintln!("{} seeds from {first} on: nothing found", seed - first);
}

#[test]
fn valgrind_finds_nothing() {
    absurd("absurd-valgrind", &[], |program| {
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"]);
        command.arg(program);
        command
    });
}
