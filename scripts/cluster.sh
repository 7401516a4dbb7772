#!/usr/bin/env bash
# A real Kubernetes cluster on this machine (tests/cluster), and the tests that need one.
#
#   scripts/cluster.sh up       brings it up; says how to use it
#   scripts/cluster.sh down     takes it down
#   scripts/cluster.sh test     up, the tests, down: most of them on two clusters at a time, then rollouts and loads on one of three nodes
#   scripts/cluster.sh brief    what `make test` runs of them, on two clusters at a time
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

build() { cargo build "${CARGO_LOCKED[@]}" -p podshm-cluster --bins; }

# What goes into images, as scripts/static-programs makes it for those of releases, quick to build; figures are of programs as they are released.
build_programs() {
    local profile=quick
    if [[ " ${ONLY:-} " == *" measure "* ]]; then profile=release; fi
    PROFILE=${PROFILE:-$profile} scripts/static-programs "$TARGET/cluster-programs" "$(uname -m)" tests
}

place() { say "${PODSHM_CLUSTER_DIR:-/var/tmp/podshm-cluster${1#0}}"; }

# Takes the cluster of an instance down, whose logs stay.
taken_down() {
    local from
    from=$(place "$1")/logs
    rm -rf "${logs:?}/$1"
    if [ -d "$from" ]; then mkdir -p "$logs" && cp -r "$from" "$logs/$1"; fi
    if [ "${KEEP:-}" = 1 ]; then return; fi
    PODSHM_CLUSTER_INSTANCE=$1 "$cluster" down
}

instances=("${PODSHM_CLUSTER_INSTANCE:-0}")
finish() {
    local status=$? instance
    trap - EXIT INT TERM HUP
    [ -z "${lane:-}" ] || kill "$lane" 2>/dev/null || true
    [ -z "${second:-}" ] || rm -f "$second"
    # At once: whoever has run out of time waits 15 s for it.
    for instance in "${instances[@]}"; do taken_down "$instance" & done
    for instance in "${instances[@]}"; do wait -n || status=1; done
    [ "$status" = 0 ] || say "cluster: the programs' logs are in $logs"
    exit "$status"
}

# What can be tested from outside of nodes.
FROM_OUTSIDE="admission chart doctor domains guard routes"
# Rollouts: of two nodes there is no middle.
OF_THREE_NODES="rollout rollout_faults migration"
# Two lanes, of about as long each, which `make test` has; and what it leaves to `make cluster-test`, which has those after the lanes.
LANES=("podshmd routes csi domains mount_helper volumes sysv_volumes" "chart doctor admission schemes sysv sysv_native faults")
NOT_BRIEF="guard measure $OF_THREE_NODES"

skipped=()
on_a_cluster_that_is_there() { [ -n "${KUBECONFIG:-}" ] && [ -n "${IMAGE_REGISTRY:-}" ]; }

# What needs no cluster: the tests of what clusters are made with.
of_its_own() { cargo test "${CARGO_LOCKED[@]}" -p podshm-cluster --lib; }

# tested INSTANCE GROUP...: these groups, on the cluster of an instance.
tested() {
    local instance=$1 groups=() group
    shift
    for group in "$@"; do groups+=(--test "$group"); done
    PODSHM_CLUSTER_INSTANCE=$instance cargo test "${CARGO_LOCKED[@]}" -p podshm-cluster "${groups[@]}" --no-fail-fast -- --show-output
}

# Every group has its place in a run of all of them.
all_have_a_place() {
    local group
    for group in $(basename -s .rs tests/cluster/tests/*.rs); do
        [[ " ${LANES[*]} $NOT_BRIEF " == *" $group "* ]] || die "tests/cluster/tests/$group.rs is in no lane; add it to LANES, or to NOT_BRIEF"
    done
}

# in_lanes: what LANES has, on a cluster each, of two nodes.
status=0
in_lanes() {
    local instance
    instances+=("$((${instances[0]} + 1))")
    step "two clusters, one after the other"
    for instance in "${instances[@]}"; do PODSHM_CLUSTER_NODES=2 PODSHM_CLUSTER_INSTANCE=$instance "$cluster" up; done
    step "the tests, in both at once; those of the second are printed at the end"
    second=$(mktemp "${TMPDIR:-/tmp}/podshm-lane.XXXXXX")
    # shellcheck disable=SC2086 # lists of words
    PODSHM_CLUSTER_NODES=2 tested "${instances[1]}" ${LANES[1]} >"$second" 2>&1 &
    lane=$!
    # shellcheck disable=SC2086
    PODSHM_CLUSTER_NODES=2 tested "${instances[0]}" ${LANES[0]} || status=$?
    wait "$lane" || status=$?
    lane=
    cat "$second"
}

case $verb in
    up) build && "$cluster" up ;;
    down) build && "$cluster" down ;;
    test)
        all_have_a_place
        groups=()
        for file in tests/cluster/tests/*.rs; do
            group=$(basename "$file" .rs)
            # Figures, which take long and judge nothing: on demand.
            if [ -z "${ONLY:-}" ] && [ "$group" = measure ]; then continue; fi
            if [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $group "* ]]; then continue; fi
            if on_a_cluster_that_is_there && [[ " $FROM_OUTSIDE " != *" $group "* ]]; then skipped+=("$group"); continue; fi
            if [[ " $OF_THREE_NODES " == *" $group "* ]]; then export PODSHM_CLUSTER_NODES=${PODSHM_CLUSTER_NODES:-3}; fi
            groups+=("$group")
        done
        [ "${#skipped[@]}" = 0 ] || loud "skipped: ${skipped[*]}" "They need the nodes' insides; this cluster is not ours."
        [ "${#groups[@]}" != 0 ] || die "ONLY=$ONLY: no such group; there are $(basename -s .rs tests/cluster/tests/*.rs | tr '\n' ' ')"
        build
        build_programs
        "$cluster" build
        cargo test "${CARGO_LOCKED[@]}" -p podshm-cluster --tests --no-run
        of_its_own
        if on_a_cluster_that_is_there; then
            export PODSHM_FOREIGN_KUBECONFIG=$KUBECONFIG PODSHM_CLUSTER_DIR
            PODSHM_CLUSTER_DIR=$(mktemp -d "${TMPDIR:-/tmp}/podshm-foreign.XXXXXX")
            trap 'rm -rf "$PODSHM_CLUSTER_DIR"' EXIT
            step "the tests, on the cluster of $KUBECONFIG, with images in $IMAGE_REGISTRY"
            tested 0 "${groups[@]}"
            [ "${#skipped[@]}" = 0 ] || loud "skipped: ${skipped[*]}" "They need the nodes' insides; this cluster is not ours."
            exit 0
        fi
        trap finish EXIT
        trap 'exit 130' INT TERM HUP
        if [ -z "${ONLY:-}" ]; then
            in_lanes
            for instance in "${instances[@]}"; do taken_down "$instance"; done
            # Nothing beside them: they count what business is answered.
            instances=("$((${instances[0]} + 2))")
            groups=()
            for group in $NOT_BRIEF; do [ "$group" = measure ] || groups+=("$group"); done
        fi
        step "a cluster"
        PODSHM_CLUSTER_INSTANCE=${instances[0]} "$cluster" up
        step "the tests"
        tested "${instances[0]}" "${groups[@]}" || status=$?
        exit "$status"
        ;;
    brief)
        all_have_a_place
        build
        build_programs
        "$cluster" build
        cargo test "${CARGO_LOCKED[@]}" -p podshm-cluster --tests --no-run
        of_its_own
        # Pods that come and go for minutes are for `make cluster-test`.
        export PODSHM_CHURN=brief
        trap finish EXIT
        trap 'exit 130' INT TERM HUP
        in_lanes
        exit "$status"
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
    *) die "expected up, down, test, brief or scale, found '$verb'" ;;
esac
