#!/usr/bin/env bash
# Cross-builds what goes into images for arm64, and runs there what needs no kernel of that architecture: the programs' own `--version`, and
# the unit tests of what lies in shared memory, under QEMU's user mode. That mode keeps x86's strong memory order, so it says nothing of
# orderings: those are the loom models'.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

triple=aarch64-unknown-linux-gnu
export PROFILE=${PROFILE:-dev}
out=$TARGET/arm64-programs

step "static programs for arm64"
scripts/static-programs "$out" arm64
for program in "$out"/*; do
    file=$(readelf -h "$program" | sed -n 's/^ *Machine: *//p')
    [ "$file" = AArch64 ] || die "$program is for '$file', expected AArch64"
    say "$(basename "$program") $(stat -c %s "$program") bytes: $(qemu-aarch64-static "$program" --version)"
done

step "unit tests of the memory, under emulation"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
cargo test "${CARGO_LOCKED[@]}" --target "$triple" -p podshm-layout -p podshm-proto --lib
