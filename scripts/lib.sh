# What every script here needs: where things are, and one voice. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

# Tools that no distribution carries are built once, outside the checkout.
TOOLS=${PODSHM_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/podshm/tools}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
export PATH="$TOOLS/bin:$PATH:$HOME/.cargo/bin"

# On CI the committed Cargo.lock is what is tested; at a desk cargo may update it.
CARGO_LOCKED=()
if [ "${CI:-}" = true ]; then CARGO_LOCKED=(--locked); fi
# Nor does CI build anything twice: what would make that quick is half of what a build leaves on the disk.
if [ "${CI:-}" = true ]; then export CARGO_INCREMENTAL=0; fi

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Something that should not be missed in a long log.
loud() {
    printf '\n!! ------------------------------------------------------------------\n'
    printf '!! %s\n' "$@"
    printf '!! ------------------------------------------------------------------\n\n'
}

have() { command -v "$1" >/dev/null 2>&1; }

# A venv outside the checkout, for what is built by Python or comes from PyPI.
TOOLS_PYTHON=${PODSHM_PYTHON:-${XDG_CACHE_HOME:-$HOME/.cache}/podshm/python}

# in_venv WHAT PACKAGE...: installs the packages once; other versions of them are another time.
in_venv() {
    local what=$1 mark
    shift
    mark=$TOOLS_PYTHON/podshm-$what-$(cksum <<<"$*" | cut -d' ' -f1)
    [ ! -e "$mark" ] || return 0
    say "$what: into the venv $TOOLS_PYTHON (once)" >&2
    { [ -x "$TOOLS_PYTHON/bin/pip" ] || python3 -m venv "$TOOLS_PYTHON"; } >&2 &&
        "$TOOLS_PYTHON/bin/pip" install --quiet --disable-pip-version-check "$@" </dev/null >&2 &&
        touch "$mark"
}

# zig links against the glibc of 2012, whatever this machine has: what is linked by it runs with every later one. Rust goes no further back.
OLDEST_GLIBC=2.17
ZIG="ziglang==0.17.1 cargo-zigbuild==0.24.1"

# have_zig: whether it is there, once it has been asked for.
have_zig() {
    # shellcheck disable=SC2086 # a list of words
    in_venv zig $ZIG
}

# What cargo calls this machine, and where it puts what is built for a machine by name.
machine() { rustc -vV | sed -n 's/^host: //p'; }
built_for() { case $2 in dev) say "$TARGET/$1/debug" ;; *) say "$TARGET/$1/$2" ;; esac; }

# by_zig build|rustc ARGUMENTS...: cargo, for the oldest glibc.
by_zig() {
    local command=$1
    shift
    [ "$command" != build ] || command=zigbuild
    PATH="$TOOLS_PYTHON/bin:$PATH" cargo-zigbuild "$command" --target "$(machine).$OLDEST_GLIBC" "$@"
}
