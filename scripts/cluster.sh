#!/usr/bin/env bash
# A real Kubernetes cluster on this machine (tests/cluster), and the tests that need one.
#
#   scripts/cluster.sh up       brings it up; says how to use it
#   scripts/cluster.sh down     takes it down
#   scripts/cluster.sh test     up, the tests, down
#   scripts/cluster.sh scale    a rollout over 1,000 simulated nodes and 10,000 pods, on a control plane alone (tests/scale)
#
#   ONLY="schemes" scripts/cluster.sh test    one group; groups are the files in tests/cluster/tests
#   ONLY=measure scripts/cluster.sh test      what podshm costs, printed; not among the others
#   PODSHM_CLUSTER_INSTANCE=1         another one beside it, up to 9
#   KEEP=1 scripts/cluster.sh test            leaves it up
#   KUBECONFIG=… IMAGE_REGISTRY=… scripts/cluster.sh test    on a cluster that is there, without podshm: images are pushed to the registry,
#                                             which its nodes pull from; groups that need the nodes' insides are skipped
#   PODSHM_CLUSTER_REGISTRY=1 scripts/cluster.sh up          a cluster with a registry, to try that on
set -euo pipefail
source "$(dirname "$0")/lib.sh"

verb=${1:-}
cluster=$TARGET/debug/podshm-cluster
logs=$TARGET/cluster-logs
instance=${PODSHM_CLUSTER_INSTANCE:-0}
place=${PODSHM_CLUSTER_DIR:-/var/tmp/podshm-cluster${instance#0}}

build() { cargo build "${CARGO_LOCKED[@]}" -p podshm-cluster --bins; }

# What goes into images: static programs, so that an image has nothing else in it.
build_static() {
    RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build "${CARGO_LOCKED[@]}" \
        --target "$(rustc -vV | sed -n 's/^host: //p')" -p podshm-node -p podshm-controller -p podshm-cli -p route-agent -p guard-agent -p podshm-cluster-pod --bins
}

finish() {
    local status=$?
    rm -rf "$logs"
    if [ -d "$place/logs" ]; then cp -r "$place/logs" "$logs"; fi
    [ "$status" = 0 ] || say "cluster: the programs' logs are in $logs"
    if [ "${KEEP:-}" = 1 ]; then return; fi
    "$cluster" down || status=1
    exit "$status"
}

# What can be tested from outside of nodes.
FROM_OUTSIDE="chart doctor guard routes"
skipped=()
on_a_cluster_that_is_there() { [ -n "${KUBECONFIG:-}" ] && [ -n "${IMAGE_REGISTRY:-}" ]; }

case $verb in
    up) build && "$cluster" up ;;
    down) build && "$cluster" down ;;
    test)
        groups=()
        for file in tests/cluster/tests/*.rs; do
            group=$(basename "$file" .rs)
            # Figures, which take long and judge nothing: on demand.
            if [ -z "${ONLY:-}" ] && [ "$group" = measure ]; then continue; fi
            if [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $group "* ]]; then continue; fi
            if on_a_cluster_that_is_there && [[ " $FROM_OUTSIDE " != *" $group "* ]]; then skipped+=("$group"); continue; fi
            groups+=(--test "$group")
        done
        # A rollout of two nodes has no middle.
        if [[ " ${groups[*]} " =~ " "(rollout|rollout_faults|migration)" " ]]; then export PODSHM_CLUSTER_NODES=${PODSHM_CLUSTER_NODES:-3}; fi
        [ "${#skipped[@]}" = 0 ] || loud "skipped: ${skipped[*]}" "They need the nodes' insides; this cluster is not ours."
        [ "${#groups[@]}" != 0 ] || die "ONLY=$ONLY: no such group; there are $(basename -s .rs tests/cluster/tests/*.rs | tr '\n' ' ')"
        build
        build_static
        "$cluster" build
        cargo test "${CARGO_LOCKED[@]}" -p podshm-cluster "${groups[@]}" --no-run
        if on_a_cluster_that_is_there; then
            export PODSHM_FOREIGN_KUBECONFIG=$KUBECONFIG PODSHM_CLUSTER_DIR
            PODSHM_CLUSTER_DIR=$(mktemp -d "${TMPDIR:-/tmp}/podshm-foreign.XXXXXX")
            trap 'rm -rf "$PODSHM_CLUSTER_DIR"' EXIT
            step "the tests, on the cluster of $KUBECONFIG, with images in $IMAGE_REGISTRY"
            cargo test "${CARGO_LOCKED[@]}" -p podshm-cluster "${groups[@]}" --no-fail-fast -- --show-output
            [ "${#skipped[@]}" = 0 ] || loud "skipped: ${skipped[*]}" "They need the nodes' insides; this cluster is not ours."
            exit 0
        fi
        trap finish EXIT
        trap 'exit 130' INT TERM HUP
        step "a cluster"
        "$cluster" up
        step "the tests"
        cargo test "${CARGO_LOCKED[@]}" -p podshm-cluster "${groups[@]}" --no-fail-fast -- --show-output
        ;;
    scale)
        export PODSHM_CLUSTER_NODES=0
        build
        "$cluster" build
        cargo build "${CARGO_LOCKED[@]}" -p podshm-controller -p podshm-cli --bins
        cargo test "${CARGO_LOCKED[@]}" -p podshm-scale --no-run
        trap finish EXIT
        trap 'exit 130' INT TERM HUP
        step "a control plane"
        "$cluster" up
        step "the rollout"
        cargo test "${CARGO_LOCKED[@]}" -p podshm-scale -- --nocapture
        ;;
    *) die "expected up, down, test or scale, found '$verb'" ;;
esac
