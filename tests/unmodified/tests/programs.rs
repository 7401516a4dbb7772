//! Real programs, unmodified, across members: PostgreSQL, Python, stress-ng. Installed by `scripts/setup.sh unmodified`.
#![forbid(unsafe_code)]

use podshm_unmodified_tests::cli::{Machine, podshm, said};
use podshm_unmodified_tests::programs::run;
use std::path::Path;
use std::process::Command;

fn postgres(mode: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("postgres.sh");
    let seconds = std::env::var("PODSHM_PGBENCH_SECONDS").unwrap_or_else(|_| "20".into());
    let mut command = Command::new(script);
    let report = run(command.args([mode, &seconds]).env("PODSHM", podshm()));
    eprint!("{mode}:\n{report}");
    assert_eq!(report.lines().filter(|line| line.starts_with("ok: ")).count(), 9, "{report}");
}

#[test]
fn postgresql_over_the_preload() {
    postgres("preload");
}

#[test]
fn postgresql_in_native_mode() {
    postgres("native");
}

const WRITER: &str = "
from multiprocessing import shared_memory, resource_tracker
block = shared_memory.SharedMemory(name='podshm-py', create=True, size=100000)
block.buf[99999] = 42
resource_tracker.unregister(block._name, 'shared_memory')
print('written')";

const READER: &str = "
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(name='podshm-py')
print(block.buf[99999], block.size >= 100000)
block.close(); block.unlink()";

#[test]
fn python_multiprocessing_shared_memory() {
    let mut machine = Machine::new("python");
    machine.serve("d", &[]);
    for options in [&["--domain", "d"][..], &["--domain", "n", "--mode", "native"]] {
        let python = |code: &str| {
            let mut command = machine.command("run");
            said(command.args(options).args(["--", "/usr/bin/python3", "-c", code]))
        };
        assert_eq!(python(WRITER), "written\n");
        assert_eq!(python(READER), "42 True\n");
        assert!(python(READER).contains("FileNotFoundError"), "unlinked for everybody");
    }
}

const SYSV_IPC: &str = "
import sys, sysv_ipc
def semaphore():
    try:
        sysv_ipc.Semaphore(77, sysv_ipc.IPC_CREAT)
        return 'semaphore'
    except OSError as error:
        return 'errno %d' % error.errno
if sys.argv[1] == 'write':
    memory = sysv_ipc.SharedMemory(0x5eed, sysv_ipc.IPC_CREX, mode=0o666, size=8192)
    memory.write(b'python', 4096)
    print(memory.number_attached, memory.size, semaphore())
else:
    memory = sysv_ipc.SharedMemory(0x5eed)
    print(memory.read(6, 4096).decode(), memory.number_attached, memory.last_pid)
    memory.detach(); memory.remove()
    try:
        sysv_ipc.SharedMemory(0x5eed)
    except sysv_ipc.ExistentialError:
        print('gone')";

#[test]
fn python_sysv_ipc() {
    let home = std::env::var("HOME").expect("HOME");
    let tools = std::env::var("PODSHM_TOOLS").unwrap_or_else(|_| format!("{home}/.cache/podshm/tools"));
    let mut machine = Machine::new("sysvipc");
    machine.serve("d", &[]);
    let modes = [(&["--domain", "d"][..], "errno 38"), (&["--domain", "n", "--mode", "native"], "semaphore")];
    for (options, semaphore) in modes {
        let python = |what: &str| {
            let mut command = machine.command("run");
            command.args(options).env("PYTHONPATH", format!("{tools}/python"));
            said(command.args(["--", "/usr/bin/python3", "-c", SYSV_IPC, what]))
        };
        assert_eq!(python("write"), format!("1 8192 {semaphore}\n"));
        let read = python("read");
        assert!(read.starts_with("python 1 ") && read.ends_with("gone\n"), "{read}");
    }
}

#[test]
fn stress_ng_shm_and_shm_sysv() {
    let mut machine = Machine::new("stress");
    machine.serve("d", &["--shmall-mib", "512", "--shm-mib", "512"]);
    let arguments =
        ["--shm", "2", "--shm-sysv", "2", "--timeout", "5", "--verify", "--metrics-brief", "--temp-path", "/tmp"];
    for options in [&["--domain", "d"][..], &["--domain", "n", "--mode", "native", "--shmall-mib", "512"]] {
        let mut command = machine.command("run");
        command.args(options).args(["--", "/usr/bin/stress-ng"]).args(arguments);
        let output = command.output().expect("stress-ng");
        let report = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{options:?}: {report}");
        for stressor in ["shm", "shm-sysv"] {
            let line =
                report.lines().find(|line| line.split_whitespace().any(|word| word == stressor) && line.contains('.'));
            assert!(line.is_some(), "{options:?}: no figures for {stressor}: {report}");
        }
    }
    let left = machine.ls("d").lines().filter(|line| line.contains(" key ")).count();
    assert_eq!(left, 0, "{}", machine.ls("d"));
}
