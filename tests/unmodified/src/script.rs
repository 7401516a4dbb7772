//! Random scripts for `caller.c`, by a seed: calls that are likely to meet each other, right ones and wrong ones.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// By a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// One of several.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

const IPC_CREAT: u32 = 0o1000;
const IPC_EXCL: u32 = 0o2000;
const SHM_RDONLY: u32 = 0o10000;
const SHM_RND: u32 = 0o20000;
const SHM_REMAP: u32 = 0o40000;
const SHM_EXEC: u32 = 0o100000;

/// The workers that [`calls`] is for: root, two users, the second with the first one's group beside its own.
pub const WORKERS: [&str; 3] = ["0:0", "1001:1001", "1002:1002:1001"];

/// `count` lines.
pub fn calls(seed: u64, count: usize) -> Vec<String> {
    let mut random = Random::new(seed);
    (0..count).map(|_| call(&mut random)).collect()
}

fn call(r: &mut Random) -> String {
    let worker = r.of(&[0, 0, 1, 2]);
    // Mostly one of the latest.
    let id = match r.below(8) {
        0 => r.below(1000) as i64,
        1 => r.below(4) as i64,
        _ => 10_000 + r.below(6) as i64,
    };
    let map = r.below(64);
    let what = match r.below(100) {
        0..18 => {
            let key = r.of(&[0, 0, 0, 0x11, 0x11, 0x12, 0x13, -5, i64::from(i32::MAX)]);
            // What is larger than a slot for addresses is whole pages: of one that is not, the kernel's shmdt forgets the end
            // where its middle was replaced.
            let size = r.of(&[1u64, 4096, 4096, 4097, 8192, 8192, 20_480, 0, 131_072, 131_073, u64::MAX, 1 << 40]);
            let mode = r.of(&[0o600, 0o644, 0o660, 0o666, 0o600, 0o666, 0o640, 0o606, 0o400, 0, 0o777]);
            let flags = r.of(&[IPC_CREAT, IPC_CREAT, IPC_CREAT, IPC_CREAT | IPC_EXCL, 0, IPC_EXCL]);
            format!("get {key} {size} 0{:o}", mode | flags)
        }
        18..36 => {
            let slot = 0x2000_0000_0000 + r.below(6) * 0x2000;
            let address = r.of(&[0, 0, 0, slot, slot + 12, 12]);
            let flags = r.of(&[
                0,
                0,
                0,
                0,
                SHM_RDONLY,
                SHM_RND,
                SHM_RND,
                SHM_REMAP,
                SHM_RND | SHM_REMAP,
                SHM_EXEC,
                SHM_EXEC | SHM_RDONLY,
            ]);
            format!("at {id} {address:#x} 0{flags:o}")
        }
        36..48 => format!("dt {map} 0"),
        48..50 => format!("dt {map} {}", r.of(&[1, 4096])),
        50..51 => "dt -1 0".into(),
        51..54 => format!("unmap {map}"),
        54..66 => format!("stat {id} 2"),
        66..68 => format!("stat {} {} {}", r.of(&[id, -1, -77]), r.of(&[2, 13, 15]), r.below(2)),
        68..71 => format!("index {} {}", r.of(&[0, 1, 2, 5, 40, -1]), r.of(&[13, 15])),
        71..76 => {
            let (uid, gid) = (r.of(&[0, 1001, 1002, -1]), r.of(&[0, 1001, 1002, 77]));
            format!(
                "set {id} {uid} {gid} 0{:o} {}",
                r.of(&[0o600, 0o644, 0o666, 0o7777, 0]),
                u32::from(r.below(20) == 0)
            )
        }
        76..82 => format!("ctl {id} 0"),
        82..86 => format!("ctl {} {}", r.of(&[id, -3]), r.of(&[11, 12, 77, 1000])),
        86..88 => "info".into(),
        88..90 => "usage".into(),
        90..93 => format!("{} {map} {} {}", r.of(&["poke", "peek"]), r.of(&[0, 5, 4096]), r.below(100)),
        _ => format!("child {}", r.of(&["fork", "fork", "fork", "detach", "exec", "kill", "end", "quit"])),
    };
    format!("{worker} {what}")
}
