//! Many threads on one call service whose answers come in parts: whoever finds a part, every caller gets its own answer, whole.

use podshm::{Client, Spin};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use std::sync::atomic::{AtomicBool, Ordering};

const THREADS: usize = 6;
const ROUNDS: usize = 150;

/// What `thread` asks in `round`; the agent answers with its reverse.
fn request(thread: usize, round: usize) -> Vec<u8> {
    let len = 9_000 + (thread * 7_919 + round * 104_729) % 50_000;
    (0..len).map(|n| (n / 8 + thread * 31 + round) as u8).collect()
}

/// Panics where `parts` don't make `expected` as (offset, total, bytes) that follow one another.
fn check(expected: &[u8], parts: &[(usize, usize, Vec<u8>)]) {
    let mut at = 0;
    for (offset, total, bytes) in parts {
        assert_eq!((*offset, *total), (at, expected.len()), "parts follow one another");
        assert_eq!(bytes[..], expected[at..at + bytes.len()], "at {at}");
        at += bytes.len();
    }
    assert_eq!(at, expected.len(), "all of it");
}

#[test]
fn every_thread_gets_its_own_answer_whole() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let decide = client.call("decide").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // One looks for its own answer all the time, and finds parts of the others'.
        let poller = scope.spawn(|| {
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                let request = request(THREADS, round);
                let mut pending = decide.start(&request, PATIENCE).unwrap();
                let answer = loop {
                    if let Some(answer) = pending.try_take().unwrap() {
                        break answer;
                    }
                };
                assert!(answer.iter().eq(request.iter().rev()), "the poller's answer");
                round += 1;
            }
        });
        let callers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let decide = decide.clone().spin(if thread % 2 == 0 { Spin::default() } else { Spin::Never });
                scope.spawn(move || {
                    let mut answer = vec![0; 64 * 1024];
                    for round in 0..ROUNDS {
                        let request = request(thread, round);
                        let expected: Vec<u8> = request.iter().rev().copied().collect();
                        if round % 2 == 0 {
                            let len = decide.call(&request, &mut answer, PATIENCE).unwrap();
                            assert_eq!(len, expected.len(), "length of the answer of thread {thread} in round {round}");
                            assert!(answer[..len] == expected, "the answer of thread {thread} in round {round}");
                        } else {
                            let mut parts = Vec::new();
                            let fill = |offset: usize, dst: &mut [u8]| {
                                dst.copy_from_slice(&request[offset..offset + dst.len()])
                            };
                            let each =
                                |offset: usize, total: usize, part: &[u8]| parts.push((offset, total, part.to_vec()));
                            decide.call_with(request.len(), fill, PATIENCE, each).unwrap();
                            check(&expected, &parts);
                        }
                    }
                })
            })
            .collect();
        let ends: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        done.store(true, Ordering::Relaxed);
        poller.join().unwrap();
        for end in ends {
            end.unwrap();
        }
    });
    drop((decide, client));
    agent.stop();
}
