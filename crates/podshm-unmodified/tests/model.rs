//! The rules of segments against the plainest model of them: a list.
#![forbid(unsafe_code)]

use podshm_unmodified::Limits;
use podshm_unmodified::permissions::Caller;
use podshm_unmodified::segments::{DEST, Get, IPC_PRIVATE, Process, Removal, Segments};
use proptest::prelude::*;
use rustix::io::Errno;

const LIMITS: Limits = Limits { shmmax: 8 * 4096, shmall: 20, shmmni: 6 };
const CREATE: u32 = 0o1000;
const EXCLUSIVE: u32 = 0o2000;

#[derive(Clone, Debug)]
enum Call {
    Get { key: i32, size: u64, flags: u32, uid: u32 },
    Remove { which: usize, uid: u32, attached: u64 },
    Set { which: usize, uid: u32, to: u32, mode: u16 },
    LastDetach { which: usize },
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let size = prop_oneof![0..3u64, 4095..4098u64, Just(8 * 4096), Just(8 * 4096 + 1), Just(u64::MAX)];
    let flags = prop_oneof![Just(0), Just(CREATE), Just(CREATE | EXCLUSIVE)];
    let mode = prop_oneof![Just(0o600u32), Just(0o644), Just(0o666), Just(0)];
    let call = prop_oneof![
        4 => (0..4i32, size, flags, mode, 1..4u32)
            .prop_map(|(key, size, flags, mode, uid)| Call::Get { key, size, flags: flags | mode, uid }),
        2 => (0..12usize, 1..4u32, 0..2u64).prop_map(|(which, uid, attached)| Call::Remove { which, uid, attached }),
        1 => (0..12usize, 1..4u32, 1..4u32, 0..0o1000u16)
            .prop_map(|(which, uid, to, mode)| Call::Set { which, uid, to, mode }),
        1 => (0..12usize).prop_map(|which| Call::LastDetach { which }),
    ];
    proptest::collection::vec(call, 1..80)
}

/// As the model has it: nothing but what a call can see.
#[derive(Clone, Debug)]
struct Plain {
    id: i32,
    key: i32,
    size: u64,
    owner: u32,
    creator: u32,
    mode: u16,
}

fn caller(uid: u32) -> Caller {
    Caller { uid, gid: uid, ..Caller::default() }
}

fn pages(all: &[Plain]) -> u64 {
    all.iter().map(|one| one.size.div_ceil(4096)).sum()
}

fn expected(all: &[Plain], key: i32, size: u64, flags: u32, uid: u32) -> Result<Get, Errno> {
    if let Some(found) = all.iter().find(|one| key != IPC_PRIVATE && one.key == key) {
        let own = found.owner == uid || found.creator == uid;
        let granted = if own { u32::from(found.mode) >> 6 } else { u32::from(found.mode) };
        let wanted = (flags | flags >> 3 | flags >> 6) & 7;
        return match () {
            () if flags & (CREATE | EXCLUSIVE) == CREATE | EXCLUSIVE => Err(Errno::EXIST),
            () if size > found.size => Err(Errno::INVAL),
            () if wanted & !granted != 0 => Err(Errno::ACCESS),
            () => Ok(Get::There(found.id)),
        };
    }
    match () {
        () if key != IPC_PRIVATE && flags & CREATE == 0 => Err(Errno::NOENT),
        () if size == 0 || size > LIMITS.shmmax => Err(Errno::INVAL),
        () if pages(all) + size.div_ceil(4096) > LIMITS.shmall => Err(Errno::NOSPC),
        () if all.len() >= LIMITS.shmmni as usize => Err(Errno::NOSPC),
        () => Ok(Get::Make),
    }
}

proptest! {
    #[test]
    fn behaves_as_a_list(calls in calls()) {
        let (mut segments, mut all) = (Segments::new(LIMITS), Vec::<Plain>::new());
        let mut ever = Vec::new();
        for call in calls {
            match call {
                Call::Get { key, size, flags, uid } => {
                    let got = segments.get(&caller(uid), key, size, flags);
                    prop_assert_eq!(got, expected(&all, key, size, flags, uid));
                    if got == Ok(Get::Make) {
                        let id = segments.make(&caller(uid), key, size, flags, Process::default(), 1).id;
                        prop_assert!(!ever.contains(&id), "an id came back at once");
                        ever.push(id);
                        let mode = flags as u16 & 0o777;
                        all.push(Plain { id, key, size, owner: uid, creator: uid, mode });
                    }
                }
                Call::Remove { which, uid, attached } => {
                    let Some(id) = ever.get(which).copied() else { continue };
                    let removed = segments.remove(&caller(uid), id, attached);
                    let Some(index) = all.iter().position(|one| one.id == id) else {
                        prop_assert!(matches!(removed, Err(Errno::INVAL | Errno::IDRM)));
                        continue;
                    };
                    let own = all[index].owner == uid || all[index].creator == uid;
                    match (own, attached) {
                        (false, _) => prop_assert_eq!(removed, Err(Errno::PERM)),
                        (true, 0) => {
                            prop_assert_eq!(removed, Ok(Removal::Now));
                            all.remove(index);
                        }
                        (true, _) => {
                            prop_assert_eq!(removed, Ok(Removal::Later));
                            (all[index].key, all[index].mode) = (IPC_PRIVATE, all[index].mode | DEST);
                        }
                    }
                }
                Call::Set { which, uid, to, mode } => {
                    let Some(id) = ever.get(which).copied() else { continue };
                    let set = segments.set(&caller(uid), id, (to, to), mode, 2);
                    let Some(one) = all.iter_mut().find(|one| one.id == id) else {
                        prop_assert!(set.is_err());
                        continue;
                    };
                    if one.owner == uid || one.creator == uid {
                        prop_assert_eq!(set, Ok(()));
                        (one.owner, one.mode) = (to, one.mode & DEST | mode);
                    } else {
                        prop_assert_eq!(set, Err(Errno::PERM));
                    }
                }
                Call::LastDetach { which } => {
                    let Some(id) = ever.get(which).copied() else { continue };
                    if segments.find(id).is_ok_and(podshm_unmodified::segments::Segment::is_doomed) {
                        segments.forget(id);
                        all.retain(|one| one.id != id);
                    }
                }
            }
            prop_assert_eq!(segments.pages(), pages(&all));
            prop_assert_eq!(segments.count(), all.len());
            for one in &all {
                let found = segments.find(one.id).expect("it is there");
                prop_assert_eq!((found.key, found.size, found.owned.uid, found.owned.mode),
                    (one.key, one.size, one.owner, one.mode));
            }
            // A successor of the daemon starts from the same.
            let again = Segments::restore(LIMITS, segments.cursor(), segments.all().cloned());
            prop_assert_eq!((again.pages(), again.count()), (segments.pages(), segments.count()));
        }
    }
}
