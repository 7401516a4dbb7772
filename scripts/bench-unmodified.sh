#!/usr/bin/env bash
# What unmodified programs pay for the preload library, beside native System V, interleaved in one run:
#
#   shmget + shmat    by tests/unmodified/c/sysv.c, best of 20 batches of 50, several times
#   pgbench           three PostgreSQL servers on copies of one database: one over the preload, two native. Each round runs
#                     pgbench against each, in changing order; the second native one says what noise is.
#
#   ROUNDS=8 SECONDS_EACH=6 scripts/bench-unmodified.sh     takes about ROUNDS * SECONDS_EACH * 3 + 60 s after the build
#
# Needs root, and a machine that does nothing else.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

rounds=${ROUNDS:-8} each=${SECONDS_EACH:-6}
[ "$(id -u)" = 0 ] || die "needs root, for namespaces and mounts"
cargo build --release --quiet -p podshm-cli
podshm=$TARGET/release/podshm
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n1)
work=$(mktemp -d /tmp/podshm-bench-u.XXXXXX)
servers=() daemon=

cleanup() {
    local pid mode
    for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null || true; }
    for mode in preload native again; do "$podshm" rm --root "$work/root" --domain "$mode" --force 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
chown postgres "$work"
chmod 755 "$work"

# member DOMAIN COMMAND...: domain `again` is a second native one. In the background with in_place=exec, so that $! is `podshm run`
# and not a shell around it.
member() {
    local domain=$1 mode=$1
    shift
    [ "$mode" != again ] || mode=native
    ${in_place:-} "$podshm" run --root "$work/root" --domain "$domain" --mode "$mode" --shmall-mib 512 --user postgres -- "$@"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }

say "machine: $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n1), Linux $(uname -r), load $(cut -d' ' -f1 /proc/loadavg)"
"$podshm" domain --root "$work/root" --domain preload --mode preload --shmall-mib 512 >"$work/daemon.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do if grep -q ready "$work/daemon.log"; then break; fi; sleep 0.1; done
grep -q ready "$work/daemon.log" || die "no daemon: $(cat "$work/daemon.log")"

step "shmget + shmat, in microseconds"
cc -std=gnu11 -O1 -pthread -o "$work/sysv" tests/unmodified/c/sysv.c
for mode in preload native; do member "$mode" "$work/sysv" write 5 x >/dev/null; done
for _ in 1 2 3 4 5; do
    for mode in preload native; do member "$mode" "$work/sysv" speed 5 | sed 's/.*: \(.*\) us/\1/' >>"$work/attach-$mode"; done
done
for mode in preload native; do say "$mode: median $(median <"$work/attach-$mode") of $(tr '\n' ' ' <"$work/attach-$mode")"; done

step "pgbench -S, transactions per second, $rounds rounds of $each s for each of three servers"
member native "$bin/initdb" -D "$work/native.data" --no-sync -A trust >/dev/null 2>&1 || die "initdb"
# serve DOMAIN PORT
serve() {
    in_place=exec member "$1" "$bin/postgres" -D "$work/$1.data" -k "$work" -p "$2" -c listen_addresses= -c shared_memory_type=sysv \
        -c dynamic_shared_memory_type=sysv -c shared_buffers=128MB -c fsync=off -c autovacuum=off >>"$work/server.log" 2>&1 &
    servers+=($!)
    for _ in $(seq 150); do
        if "$bin/pg_isready" -q -U postgres -d postgres -h "$work" -p "$2"; then return; fi
        sleep 0.2
    done
    die "no server in $1: $(tail -n 5 "$work/server.log")"
}
port() { case $1 in native) echo 21001 ;; preload) echo 21002 ;; again) echo 21003 ;; esac; }
bench() { member "$1" "$bin/pgbench" -h "$work" -p "$(port "$1")" "${@:2}" postgres 2>&1; }
serve native 21001
bench native -i -s 4 -q >/dev/null || die "pgbench -i"
kill "${servers[0]}" && wait "${servers[0]}" || true
servers=()
[ ! -e "$work/native.data/postmaster.pid" ] || die "the first server did not end"
for domain in preload again; do cp -a "$work/native.data" "$work/$domain.data"; done
for domain in native preload again; do serve "$domain" "$(port "$domain")"; done
for domain in native preload again; do bench "$domain" -S -c 2 -j 2 -T 2 >/dev/null; done # what is read first is read

for round in $(seq "$rounds"); do
    case $((round % 3)) in
        0) order="native preload again" ;;
        1) order="preload again native" ;;
        2) order="again native preload" ;;
    esac
    for domain in $order; do
        bench "$domain" -S -n -c 2 -j 2 -T "$each" | sed -n 's/^tps = \([0-9.]*\).*/\1/p' | head -n1 >"$work/tps-$domain"
        [ -s "$work/tps-$domain" ] || die "pgbench in $domain"
    done
    n=$(cat "$work/tps-native") p=$(cat "$work/tps-preload") a=$(cat "$work/tps-again")
    awk -v n="$n" -v p="$p" 'BEGIN { printf "%.3f\n", p / n }' | tee -a "$work/ratios" >"$work/ratio"
    awk -v n="$n" -v a="$a" 'BEGIN { printf "%.3f\n", a / n }' | tee -a "$work/noises" >"$work/noise"
    say "round $round: native $n, preload $p, native again $a; preload / native $(cat "$work/ratio"), again / native $(cat "$work/noise")"
done
step "pgbench: preload / native, median of $rounds rounds: $(median <"$work/ratios") ($(sort -n "$work/ratios" | sed -n '1p;$p' | paste -sd-))"
say "noise: native / native, median $(median <"$work/noises") ($(sort -n "$work/noises" | sed -n '1p;$p' | paste -sd-))"
say "shmget + shmat through the preload: $(median <"$work/attach-preload") us (goal: under 100)"
