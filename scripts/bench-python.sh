#!/usr/bin/env bash
# A small call in Python beside multiprocessing.connection, in one run: see bench/python/calls.py.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

python=$TOOLS_PYTHON/bin/python
scripts/wheel.sh
# The broker is not on the way of a call: how it was built makes no difference.
cargo build "${CARGO_LOCKED[@]}" --quiet -p podshm-cli
site=$(mktemp -d "${TMPDIR:-/tmp}/podshm-bench-python.XXXXXX")
trap 'rm -rf "$site"' EXIT
"$python" -m zipfile -e "$(ls -t "$TARGET"/wheels/podshm-*.whl | head -n1)" "$site"
PYTHONPATH=$site "$python" bench/python/calls.py "$TARGET/debug/podshm" "$@"
