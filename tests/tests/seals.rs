//! Seals from the other side: everything that a reader could try on a region that is not its own, as root and as nobody.

use podshm_layout::PAGE;
use podshm_proto::Service;
use podshm_region::{Memory, ReadMap};
use podshm_tests::raw::{RawAgent, RawClient};
use podshm_tests::{Node, attacks};
use rustix::fs::{FallocateFlags, SealFlags};
use std::os::fd::{AsFd, BorrowedFd};

/// The same attacks in a child that is user 65534; says how many went through, or that /proc could not be reached.
fn attack_as_nobody(fd: BorrowedFd<'_>, bytes: u64) {
    // SAFETY: the child makes system calls and allocates (which glibc allows after fork), then leaves by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: plain system calls with plain numbers.
        let became = unsafe {
            libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(65534, 65534, 65534) == 0
                && libc::setresuid(65534, 65534, 65534) == 0
                && libc::prctl(libc::PR_SET_DUMPABLE, 1) == 0
        };
        let mut through = Vec::new();
        let code = if became {
            attacks::all(fd, bytes, &mut through);
            through.len() as i32
        } else {
            99
        };
        // SAFETY: ends this child at once.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status));
    assert_eq!(libc::WEXITSTATUS(status), 0, "attacks that went through as nobody");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn withstands(what: &str, fd: BorrowedFd<'_>, bytes: u64) {
    let mut through = Vec::new();
    attacks::all(fd, bytes, &mut through);
    assert!(through.is_empty(), "{what}: {through:?} went through");
    if is_root() {
        attack_as_nobody(fd, bytes);
    }
    let stat = rustix::fs::fstat(fd).unwrap();
    assert_eq!(stat.st_size as u64, bytes, "{what}");
    assert!(stat.st_blocks as u64 >= bytes / 512, "{what} has holes");
    Memory::from_fd(fd.try_clone_to_owned().unwrap()).unwrap().check(bytes).unwrap();
}

#[test]
fn nobody_but_its_writer_can_change_a_region() {
    let node = Node::new(Default::default());
    let services = vec![
        Service { name: "t".into(), kind: 1, keys: 100, bytes: 65536, ..Service::default() },
        Service { name: "q".into(), kind: 2, ring: 8192, longest: 100, ..Service::default() },
        Service {
            name: "c".into(),
            kind: 3,
            ring: 8192,
            longest: 100,
            response_ring: 8192,
            longest_response: 100,
            ..Service::default()
        },
    ];
    let mut agent = RawAgent::start(node.pod("agent"), services);
    let (client, window) = RawClient::join(node.pod("a"));
    assert_eq!(client.regions.len(), 3, "C, A, T");
    for (region, fd) in &client.regions[1..] {
        withstands(["", "", "A", "T"][region.kind as usize], fd.as_fd(), region.bytes);
    }
    withstands("notice page", client.notice.as_fd(), PAGE as u64);
    let (serve, fds) = agent.next_client();
    assert_eq!(serve.client, client.welcome.client);
    withstands("C", fds[0].as_fd(), serve.regions[0].bytes);
    // Its writer still can, through the mapping that it made before, and its reader sees it.
    podshm_tests::raw::poke(&window, 8192, 77);
    let view = ReadMap::map(&Memory::from_fd(fds[0].try_clone().unwrap()).unwrap(), serve.regions[0].bytes).unwrap();
    assert_eq!(podshm_layout::Load::load(&view, 8192, podshm_layout::sync::Ordering::Acquire), 77);
    // Not even its writer gets a second way in.
    withstands("C, by its writer", client.regions[0].1.as_fd(), serve.regions[0].bytes);
}

/// The attacks do go through where a region is not sealed: this test can fail.
#[test]
fn the_attacks_work_on_what_is_not_sealed() {
    let memory = Memory::create("open", 4 * PAGE as u64).unwrap();
    let mut through = Vec::new();
    attacks::all(memory.as_fd(), memory.bytes(), &mut through);
    for name in ["mmap writable", "mprotect", "madvise remove", "write", "punch", "another seal", "re-open and punch"] {
        assert!(through.contains(&name), "{name} is not in {through:?}");
    }
}

#[test]
fn a_reader_refuses_what_is_not_sealed_exactly_or_not_whole() {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let good = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    let make = |seals: SealFlags, allocated: bool| {
        let fd = rustix::fs::memfd_create("by-hand", flags).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        if allocated {
            rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, 8192).unwrap();
        }
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        ReadMap::map(&Memory::from_fd(fd).unwrap(), 8192)
    };
    make(good, true).unwrap();
    assert!(make(good, false).unwrap_err().to_string().contains("blocks"));
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::FUTURE_WRITE, SealFlags::SEAL] {
        assert!(make(good - missing, true).unwrap_err().to_string().contains("seals"), "{missing:?}");
    }
    assert!(make(good | SealFlags::WRITE, true).unwrap_err().to_string().contains("seals"));
    assert!(make(SealFlags::empty(), true).is_err());
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(ReadMap::map(&Memory::from_fd(file.into()).unwrap(), 8192).is_err(), "no memfd at all");
}
