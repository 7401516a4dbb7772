#!/usr/bin/env bash
# The loom models of ring, table and wake-up: every interleaving up to a bound on preemptions.
# LOOM_MAX_PREEMPTIONS widens or narrows it; arguments go to the test programs (a name, say).
set -euo pipefail
source "$(dirname "$0")/lib.sh"

export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-3}
export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
export CARGO_TARGET_DIR=$TARGET/loom # other flags, so a directory that does not rebuild the rest
exec cargo test "${CARGO_LOCKED[@]}" --release -p podshm-layout --test 'loom*' --no-fail-fast -- "$@"
