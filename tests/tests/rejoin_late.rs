//! A broker that is away for a minute.

use podshm_tests::restarting::Stage;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");

#[test]
fn a_minute_without_a_broker_is_not_noticed_by_open_channels_and_joins_wait() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    let before = stage.books();
    stage.daemon.kill();
    let directory = stage.daemon.pod("late");
    let join = std::thread::spawn(move || podshm::Client::join(directory, Duration::from_secs(120)).map(drop));
    let gone = Instant::now();
    while gone.elapsed() < Duration::from_secs(60) {
        stage.await_progress("without a broker");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(!join.is_finished(), "nobody is there to let it in");
    stage.daemon.restart();
    join.join().unwrap().expect("it joins once the broker is back");
    stage.daemon.settle("who joined meanwhile has left", |s| s.clients() == 2 && s.connected() == 2);
    let after = stage.books();
    assert_eq!(after.number("reserved"), before.number("reserved"));
    assert_eq!(after.number("discarded") + after.number("unclaimed"), 0, "{after:?}");
    stage.goes_on_in_order();
}
