//! A participant of the conformance suite: see `podshm_tests::conform`.

fn main() {
    let role = std::env::args().nth(1).expect("usage: podshm-test-conform ROLE");
    podshm_tests::conform::run(&role);
}
