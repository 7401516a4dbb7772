#!/usr/bin/env bash
# Everything that is checked without running the code. All checks run; any failure fails.
#
#   ONLY=clippy scripts/check.sh     one of: fmt structure header clippy docs deny advisories
set -euo pipefail
source "$(dirname "$0")/lib.sh"

failures=() unrun=()

# check NAME COMMAND...; status 77 of the command means that it could not run here.
check() {
    local name=$1 start=$SECONDS status=0
    shift
    if [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $name "* ]]; then return; fi
    step "check $name: $*"
    "$@" </dev/null || status=$?
    case $status in
        0) say "-- $name ok in $((SECONDS - start)) s" ;;
        77) say "-- $name NOT RUN"; unrun+=("$name") ;;
        *) say "-- $name FAILED in $((SECONDS - start)) s"; failures+=("$name") ;;
    esac
}

docs() {
    RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -D warnings" cargo doc "${CARGO_LOCKED[@]}" --workspace --no-deps
}

# Offline, so that the verdict depends on the checkout alone; fetching what Cargo.lock names
# comes first, because cargo metadata wants the manifests of every platform's dependencies.
deny() {
    cargo fetch "${CARGO_LOCKED[@]}" --quiet &&
        cargo deny --offline --workspace check licenses bans sources
}

# The advisory database is a Git repository on GitHub, which no crate registry carries. With a
# copy of it (~/.cargo/advisory-dbs, or FETCH_ADVISORIES=1 to fetch one) the check runs.
advisories() {
    if [ "${FETCH_ADVISORIES:-}" = 1 ]; then
        cargo deny --workspace check advisories
    elif compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/*/.git" >/dev/null; then
        cargo deny --offline --workspace check advisories
    else
        loud "ADVISORIES NOT CHECKED: there is no copy of the RustSec database here, and it is" \
            "not on the crate registry. Where GitHub can be reached: FETCH_ADVISORIES=1 make check"
        return 77
    fi
}

structure() {
    local ok=0
    scripts/crate-direction || ok=1
    scripts/source-rules || ok=1
    return "$ok"
}

check fmt cargo fmt --all -- --check
check structure structure
check header scripts/c-header --check
check abi scripts/c-abi --check
check clippy cargo clippy "${CARGO_LOCKED[@]}" --workspace --all-targets -- -D warnings
check docs docs
check deny deny
check advisories advisories

[ "${#failures[@]}" = 0 ] || die "failed: ${failures[*]}"
say ""
say "all checks passed${unrun[*]:+, not run: ${unrun[*]}}"
