#!/usr/bin/env bash
# Builds what the chaos harness runs and runs it; arguments go to podshm-chaos.
#
#   DURATION=600 SEED=7 CLIENTS=8 scripts/chaos.sh
set -euo pipefail
source "$(dirname "$0")/lib.sh"

PROFILE=${PROFILE:-release} # dev: what `make test` runs
DIRECTORY=$PROFILE
[ "$PROFILE" != dev ] || DIRECTORY=debug

step "building the harness"
# Apart: the harness turns named steps on, which the route agent is to be without, as it is released.
cargo build "${CARGO_LOCKED[@]}" --profile "$PROFILE" --package=route-agent --package=podshm-testkit --bins
cargo build "${CARGO_LOCKED[@]}" --profile "$PROFILE" --package=podshm-chaos
# The broker, too, is killed and away at times.
[ "${1:-}" = scale ] || set -- --broker-restarts "$@"
exec "$TARGET/$DIRECTORY/podshm-chaos" "$@"
