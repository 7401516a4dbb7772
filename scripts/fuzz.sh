#!/usr/bin/env bash
# Runs every fuzz target for a bounded time, from the committed seeds and what earlier runs found.
#
#   FUZZ_SECONDS=60       per target
#   ONLY="ring table"     some of them
#
# Beside the targets in fuzz/, which are Rust: capi, the C library's functions with arguments that are none (tests/c/absurd.c), drawn by seed after
# seed, under AddressSanitizer. What it finds names its seed, for `absurd AGENT CLIENT SEED`.
#
# A find is left in fuzz/artifacts. Make it a test where the fix is, and a seed:
# cp fuzz/artifacts/ring/crash-… fuzz/seeds/ring/what-it-shows
set -euo pipefail
source "$(dirname "$0")/lib.sh"

failures=()
seconds=${FUZZ_SECONDS:-60}
capi() {
    step "fuzz capi for $seconds s"
    FUZZ_SECONDS=$seconds cargo test "${CARGO_LOCKED[@]}" -p podshm-tests --test c_library -- --ignored --exact --nocapture seeds_find_nothing \
        </dev/null || failures+=(capi)
}
ends() {
    [ "${#failures[@]}" = 0 ] || die "found something in: ${failures[*]} (see fuzz/artifacts)"
    say ""
    say "$1 targets, $seconds s each: nothing found"
}
if [ "${ONLY:-}" = capi ]; then
    capi
    ends 1
    exit
fi

scripts/setup.sh fuzz
targets=$(cargo +nightly fuzz list)
[ -n "$targets" ] || die "fuzz/Cargo.toml names no target"
targets="$targets
capi"
for target in ${ONLY:-}; do
    grep -qx "$target" <<<"$targets" || die "ONLY=$target is no target: expected some of" $targets
done

export CARGO_TARGET_DIR=$TARGET/fuzz
step "fuzz targets, built with AddressSanitizer"
cargo +nightly fuzz build </dev/null

for target in ${ONLY:-$targets}; do
    if [ "$target" = capi ]; then continue; fi
    step "fuzz $target for $seconds s"
    mkdir -p "fuzz/corpus/$target"
    # The first directory is the one that new inputs go to.
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=2048 -timeout=30 -rss_limit_mb=4096 -print_final_stats=1 </dev/null ||
        failures+=("$target")
done
if grep -qw capi <<<"${ONLY:-$targets}"; then
    export CARGO_TARGET_DIR=$TARGET
    capi
fi
ends "$(wc -w <<<"${ONLY:-$targets}")"
