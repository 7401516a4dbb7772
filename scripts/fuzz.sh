#!/usr/bin/env bash
# Runs every fuzz target for a bounded time, from the committed seeds and what earlier runs found.
#
#   FUZZ_SECONDS=60       per target
#   ONLY="ring table"     some of them
#
# A find is left in fuzz/artifacts. Make it a test where the fix is, and a seed:
# cp fuzz/artifacts/ring/crash-… fuzz/seeds/ring/what-it-shows
set -euo pipefail
source "$(dirname "$0")/lib.sh"

scripts/setup.sh fuzz

seconds=${FUZZ_SECONDS:-60}
targets=$(cargo +nightly fuzz list)
[ -n "$targets" ] || die "fuzz/Cargo.toml names no target"
for target in ${ONLY:-}; do
    grep -qx "$target" <<<"$targets" || die "ONLY=$target is no target: expected some of" $targets
done

export CARGO_TARGET_DIR=$TARGET/fuzz
step "fuzz targets, built with AddressSanitizer"
cargo +nightly fuzz build </dev/null

failures=()
for target in ${ONLY:-$targets}; do
    step "fuzz $target for $seconds s"
    mkdir -p "fuzz/corpus/$target"
    # The first directory is the one that new inputs go to.
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=2048 -timeout=30 -rss_limit_mb=4096 -print_final_stats=1 </dev/null ||
        failures+=("$target")
done
[ "${#failures[@]}" = 0 ] || die "found something in: ${failures[*]} (see fuzz/artifacts)"
say ""
say "$(wc -w <<<"${ONLY:-$targets}") targets, $seconds s each: nothing found"
