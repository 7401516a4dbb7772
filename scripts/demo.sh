#!/usr/bin/env bash
# Builds what the demo runs and runs it; arguments go to podshm-demo.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

# The demo starts the broker and the agent as programs of their own, from the same directory.
PACKAGES=(podshm-demo podshm-cli route-agent podshm-testkit)

step "building the demo"
# Routes out of files: what watches an API server takes minutes to build.
cargo build "${CARGO_LOCKED[@]}" --release --no-default-features "${PACKAGES[@]/#/--package=}"
exec "$TARGET/release/podshm-demo" "$@"
