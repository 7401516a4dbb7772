//! Helper of `podshm-testkit`: builds one pod in fresh processes and watches it. Not meant to be run by hand.

fn main() -> std::process::ExitCode {
    podshm_testkit::sandbox::main()
}
