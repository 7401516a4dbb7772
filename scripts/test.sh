#!/usr/bin/env bash
# Runs the tiers of scripts/tiers, each within its time budget, and closes with one line:
#
#   N passed, N failed[, N skipped]
#
#   ONLY=unit scripts/test.sh        one tier; ONLY="unit doc" several
#
# Counted are test cases, as cargo reports them. A tier that cannot run here says why and
# counts as one skipped; on CI (CI=true) it also fails the run. A tier over its budget is
# killed and counts as one failed.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

[ -n "${TIERS:-}${ONLY:-}" ] || scripts/disk-room
TIERS=${TIERS:-scripts/tiers}
LOGS=$TARGET/test-logs
export LOCKED="${CARGO_LOCKED[*]:-}"
export BINS="cargo build $LOCKED --workspace --exclude podshm-tests --exclude podshm-chaos --exclude podshm-cluster --exclude podshm-cluster-pod --exclude podshm-scale --bins" # without the features that it turns on

passed=0 failed=0 skipped=0 unrun=() report=()

trim() { local s=$1; s=${s#"${s%%[![:space:]]*}"}; printf '%s' "${s%"${s##*[![:space:]]}"}"; }

# Prints why a need is not met here, or nothing.
unmet() {
    case $1 in
        -) ;;
        root) [ "$(id -u)" = 0 ] || say "needs root (pods are namespaces with other UIDs): sudo -E env PATH=\"\$PATH\" make test ONLY=$2" ;;
        userns) unshare --user --map-root-user true 2>/dev/null || say "needs user namespaces: sysctl -w user.max_user_namespaces=10000" ;;
        path:*) compgen -G "${1#path:}" >/dev/null || say "nothing matches ${1#path:} in this checkout" ;;
        *) die "$TIERS: tier $2 has the unknown need '$1': expected root, userns or path:GLOB" ;;
    esac
}

# Sums passed, failed and ignored over the "test result:" lines of a log.
cargo_counts() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") p += $(i - 1)
                if ($i == "failed;") f += $(i - 1)
                if ($i == "ignored;") s += $(i - 1)
            }
        }
        END { print p + 0, f + 0, s + 0 }'
}

note() { report+=("$(printf '%-8s %-8s %5s s of %4s s  %s' "$1" "$2" "$3" "$4" "$5")"); }

run_tier() {
    local name=$1 budget=$2 needs=$3 counted=$4 command=$5
    local need why status start took p f s word
    for need in $needs; do
        why=$(unmet "$need" "$name")
        [ -z "$why" ] && continue
        loud "tier $name SKIPPED: $why"
        skipped=$((skipped + 1)); unrun+=("$name")
        note "$name" skipped 0 "$budget" "$why"
        return
    done

    step "tier $name: $command (budget $budget s)"
    start=$SECONDS status=0
    # Into a file that is followed, not through a pipe: a process that outlives the tier (a pod
    # in a session of its own) would hold a pipe open, and this would wait for it past the budget.
    : >"$LOGS/$name.log" # there before tail looks for it
    timeout --kill-after=15 "$budget" bash -euo pipefail -c "$command" </dev/null >"$LOGS/$name.log" 2>&1 &
    running=$!
    tail --pid="$running" --sleep-interval=0.2 --lines=+1 --follow "$LOGS/$name.log" || true
    wait "$running" || status=$?
    running=
    took=$((SECONDS - start))

    if [ "$counted" = cargo ]; then
        read -r p f s < <(cargo_counts "$LOGS/$name.log")
    else
        p=0 f=0 s=0
        [ "$status" != 0 ] || p=1
    fi
    why=
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        why="over its budget of $budget s, killed"; f=$((f + 1))
    elif [ "$status" != 0 ] && [ "$f" = 0 ]; then
        why="exit status $status"; f=1 # did not compile, or a test program died
    elif [ "$status" = 0 ] && [ "$f" != 0 ]; then
        why="reports failures but exits 0"
    elif [ "$((p + f))" = 0 ]; then
        why="ran no test"; f=1
    fi
    word=passed; [ "$f" = 0 ] || word=FAILED
    passed=$((passed + p)); failed=$((failed + f)); skipped=$((skipped + s))
    note "$name" "$word" "$took" "$budget" "$p passed, $f failed, $s ignored${why:+ ($why)}"
    say "-- tier $name $word in $took s: $p passed, $f failed, $s ignored${why:+ ($why)}"
}

# An interrupted run takes its tier along; timeout passes the signal on to the tier's group.
running=
trap '[ -z "$running" ] || kill "$running" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM HUP

mkdir -p "$LOGS"
began=$SECONDS seen=' '
while IFS='|' read -r name budget needs counted command <&3; do
    name=$(trim "$name")
    case $name in '' | '#'*) continue ;; esac
    seen="$seen$name "
    if [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $name "* ]]; then continue; fi
    run_tier "$name" "$(trim "$budget")" "$(trim "$needs")" "$(trim "$counted")" "$(trim "$command")"
done 3<"$TIERS"

for name in ${ONLY:-}; do
    [[ $seen == *" $name "* ]] || die "ONLY=$name is no tier: expected one of$seen"
done

step "tiers in $((SECONDS - began)) s"
printf '%s\n' "${report[@]}"
verdict=0
[ "$failed" = 0 ] || verdict=1
if [ "${#unrun[@]}" != 0 ] && [ "${CI:-}" = true ]; then
    say "on CI a skipped tier fails the run: ${unrun[*]}"
    verdict=1
fi
line="$passed passed, $failed failed"
[ "$skipped" = 0 ] || line="$line, $skipped skipped"
say ""
say "$line"
exit "$verdict"
