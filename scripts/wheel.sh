#!/usr/bin/env bash
# Builds the Python wheel.
#
#   scripts/wheel.sh                into target/wheels, optimised, for the oldest glibc that the toolchain allows (with zig: 2.17)
#   scripts/wheel.sh test           quickly, and unpacks it into target/python, where tests run it; the wheel lies there, too
#   scripts/wheel.sh tools          only what is needed for it, into ~/.cache/podshm/python: maturin, numpy, mypy, zig
set -euo pipefail
source "$(dirname "$0")/lib.sh"

MATURIN=1.16.0
NEEDED="maturin==$MATURIN numpy mypy typing_extensions auditwheel setuptools>=77 wheel"

tools() {
    # shellcheck disable=SC2086 # a list of words
    in_venv wheel $NEEDED
}

case ${1:-} in
    tools)
        tools
        have_zig || loud "no zig: what is built here needs the glibc of this machine"
        ;;
    test)
        tools
        rm -rf "$TARGET/python.new"
        "$TOOLS_PYTHON/bin/maturin" build --quiet --profile dev --compatibility linux --interpreter python3 \
            --manifest-path crates/podshm-python/Cargo.toml --out "$TARGET/python.new"
        "$TOOLS_PYTHON/bin/python" -m zipfile -e "$TARGET"/python.new/podshm-*.whl "$TARGET/python.new/site"
        # The wheel lies beside what is unpacked of it.
        mv "$TARGET"/python.new/podshm-*.whl "$TARGET/python.new/site"
        rm -rf "$TARGET/python"
        mv "$TARGET/python.new/site" "$TARGET/python"
        rmdir "$TARGET/python.new"
        say "wheel: unpacked in $TARGET/python"
        ;;
    "")
        tools
        zig=()
        if have_zig; then
            zig=(--zig --compatibility manylinux2014)
        else
            loud "wheel: no zig: the wheel needs the glibc that this machine links against"
        fi
        PATH="$TOOLS_PYTHON/bin:$PATH" "$TOOLS_PYTHON/bin/maturin" build --release "${zig[@]}" --interpreter python3 \
            --manifest-path crates/podshm-python/Cargo.toml --out "$TARGET/wheels"
        ;;
    *) die "expected nothing, test or tools; found $1" ;;
esac
