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
