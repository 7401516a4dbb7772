#!/usr/bin/env bash
# Clones HEAD into a temporary directory and runs what CI runs there, so that nothing depends
# on files that were never committed. Uncommitted changes are not in it, and it says so.
#
#   scripts/clean-clone-check.sh            check and test, crates from the shared cargo cache
#   scripts/clean-clone-check.sh --cold     with an empty CARGO_HOME and tools cache as well
#   KEEP=1 scripts/clean-clone-check.sh     leaves the clone for a look
set -euo pipefail
source "$(dirname "$0")/lib.sh"

if [ -n "$(git status --porcelain)" ]; then
    loud "the work tree has changes that HEAD, and so this check, does not have:" "$(git status --short | wc -l) files"
fi
clone=$(mktemp -d "${TMPDIR:-/tmp}/podshm-clone.XXXXXX")
if [ "${KEEP:-}" != 1 ]; then trap 'rm -rf "$clone"' EXIT; fi
git clone --quiet --no-hardlinks "$ROOT" "$clone/podshm"
say "cloned $(git rev-parse --short HEAD) into $clone/podshm"

if [ "${1:-}" = --cold ]; then
    # rustup's proxies keep finding their toolchains through RUSTUP_HOME.
    export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
    export CARGO_HOME=$clone/cargo-home PODSHM_TOOLS=$clone/tools
fi
unset CARGO_TARGET_DIR MAKEFLAGS MAKELEVEL
cd "$clone/podshm"
start=$SECONDS
CI=true .ci/run </dev/null
left=$(git status --porcelain)
[ -z "$left" ] || die "the run left files that .gitignore does not know: $left"
say "clean clone passed in $((SECONDS - start)) s"
