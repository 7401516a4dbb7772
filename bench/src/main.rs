//! `podshm-bench`: podshm beside its peers, in one run.

use std::process::ExitCode;

fn main() -> ExitCode {
    podshm_bench::cli::run()
}
