//! The doorbell, attacked: floods, flag changes, shutdowns; other clients' calls go on.

use podshm::Client;
use podshm_tests::raw::RawClient;
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{SendFlags, Shutdown, recv, send, shutdown};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_flooded_doorbell_stops_nobody_else() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..4)
        .map(|n| {
            let (stop, directory) = (Arc::clone(&stop), node.pod(&format!("a{n}")));
            std::thread::spawn(move || {
                let (client, _window) = RawClient::join(directory);
                let flags = fcntl_getfl(&client.doorbell).unwrap();
                let mut sent = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    // Blocking and not blocking in turn: the flags are this end's own.
                    let flip = if sent.is_multiple_of(2) { flags - OFlags::NONBLOCK } else { flags | OFlags::NONBLOCK };
                    fcntl_setfl(&client.doorbell, flip).unwrap();
                    for _ in 0..100 {
                        let _ = send(&client.doorbell, &[1; 4096], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                    }
                    if n == 3 {
                        let _ = recv(&client.doorbell, &mut [0u8; 64][..], rustix::net::RecvFlags::DONTWAIT);
                    }
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    node.settle("all are in", |s| s.clients.len() == 5);
    let decide = honest.call("decide").unwrap();
    let reports = honest.queue("reports").unwrap();
    let mut buffer = [0; 64];
    for n in 0..2000u64 {
        reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
        assert_eq!(decide.call(&n.to_le_bytes(), &mut buffer, PATIENCE).unwrap(), 8);
        assert_eq!(buffer[..8], n.to_be_bytes());
    }
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        assert!(flood.join().unwrap() > 0);
    }
    node.settle("the floods are gone", |s| s.clients.len() == 1);
    let (id, now) = (honest.id(), agent.records().len());
    assert!(now <= 2000);
    drop((decide, reports, honest));
    node.settle("all are drained", |s| s.clients.is_empty());
    assert_eq!(agent.stop().iter().filter(|r| r.0 == id).count(), 2000);
}

#[test]
fn a_doorbell_that_is_shut_or_kept_stops_nobody_else() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let mut kept = Vec::new();
    for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
        let (client, window) = RawClient::join(node.pod("a"));
        shutdown(&client.doorbell, how).unwrap();
        kept.push((client, window));
    }
    // Gone at the broker, the doorbell still open elsewhere.
    let (client, _window) = RawClient::join(node.pod("a"));
    let RawClient { raw, doorbell, .. } = client;
    drop(raw);
    node.settle("the client is drained although its doorbell lives", |s| s.clients.len() == 4);
    let decide = honest.call("decide").unwrap();
    let mut buffer = [0; 64];
    for n in 0..500u64 {
        assert_eq!(decide.call(&n.to_le_bytes(), &mut buffer, PATIENCE).unwrap(), 8);
    }
    drop((kept, doorbell));
    agent.stop();
}
