#!/usr/bin/env bash
# Runs every fuzz target for a bounded time.
#
#   FUZZ_SECONDS=60    per target
#   ONLY="header ring" some of them
set -euo pipefail
source "$(dirname "$0")/lib.sh"

if [ ! -e fuzz/Cargo.toml ]; then
    loud "NOTHING FUZZED: there is no fuzz/Cargo.toml in this checkout yet"
    exit 0
fi
scripts/setup.sh fuzz

seconds=${FUZZ_SECONDS:-60}
targets=$(cargo +nightly fuzz list)
[ -n "$targets" ] || die "fuzz/Cargo.toml names no target"
step "fuzz targets, $seconds s each"
say "$targets"

failures=()
for target in ${ONLY:-$targets}; do
    step "fuzz $target"
    CARGO_TARGET_DIR=$TARGET/fuzz cargo +nightly fuzz run "$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=4096 -print_final_stats=1 </dev/null ||
        failures+=("$target")
done
[ "${#failures[@]}" = 0 ] || die "found something in: ${failures[*]} (see fuzz/artifacts)"
