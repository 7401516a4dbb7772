#!/usr/bin/env bash
# Builds the Python wheel.
#
#   scripts/wheel.sh                into target/wheels, optimised, for the oldest glibc that the toolchain allows (with zig: 2.17)
#   scripts/wheel.sh check WHEEL    whether a wheel keeps what its name says; the line above does it with what it has built
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

# The tag says with which glibc the wheel runs: what the module in it asks for, by our own look and by auditwheel's, is no newer. And a
# Python that has nothing else imports it.
check() {
    local wheel=$1 allowed needed apart said
    [[ $wheel =~ manylinux_([0-9]+)_([0-9]+)_ ]] || die "$(basename "$wheel"): expected a tag manylinux_2_NN, found none"
    allowed=${BASH_REMATCH[1]}.${BASH_REMATCH[2]}
    apart=$(mktemp -d "${TMPDIR:-/tmp}/podshm-wheel.XXXXXX")
    # shellcheck disable=SC2064 # now
    trap "rm -rf '$apart'" EXIT
    "$TOOLS_PYTHON/bin/python" -m zipfile -e "$wheel" "$apart/site"
    needed=$(readelf -VW "$apart"/site/podshm/*.so | grep -o 'GLIBC_2[.0-9]*' | sort -Vu | tail -n1 | cut -d_ -f2)
    [ -n "$needed" ] || die "$(basename "$wheel"): no module in it that asks for a glibc"
    [ "$(printf '%s\n' "$needed" "$allowed" | sort -V | tail -n1)" = "$allowed" ] ||
        die "$(basename "$wheel"): its tag allows glibc $allowed, its module needs $needed"
    said=$("$TOOLS_PYTHON/bin/auditwheel" show "$wheel") || die "auditwheel: $said"
    # Older ones are consistent with younger tags, never the other way round.
    [[ $(tr -s ' \n' ' ' <<<"$said") =~ "following platform tag: "\"manylinux_([0-9]+)_([0-9]+)_ ]] || die "auditwheel: $said"
    [ "$(printf '%s\n' "${BASH_REMATCH[1]}.${BASH_REMATCH[2]}" "$allowed" | sort -V | tail -n1)" = "$allowed" ] || die "auditwheel: $said"
    python3 -m venv "$apart/venv"
    "$apart/venv/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$wheel"
    said=$("$apart/venv/bin/python" -c 'import podshm; podshm.Services().table("t", keys=1, bytes=1); print(podshm.__version__)')
    say "wheel: $(basename "$wheel") needs glibc $needed, and is imported, as $said"
}

case ${1:-} in
    check) check "${2:?which wheel}" ;;
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
            zig=(--zig --compatibility "manylinux_${OLDEST_GLIBC/./_}")
        else
            loud "wheel: no zig: the wheel needs the glibc that this machine links against"
        fi
        rm -f "$TARGET"/wheels/podshm-*.whl
        PATH="$TOOLS_PYTHON/bin:$PATH" "$TOOLS_PYTHON/bin/maturin" build --release "${zig[@]}" --interpreter python3 \
            --manifest-path crates/podshm-python/Cargo.toml --out "$TARGET/wheels"
        check "$(ls "$TARGET"/wheels/podshm-*.whl)"
        ;;
    *) die "expected nothing, check, test or tools; found $1" ;;
esac
