#!/usr/bin/env bash
# PostgreSQL from Debian across members of one domain, unmodified.
#
#   tests/unmodified/postgres.sh MODE [SECONDS]     MODE: preload or native
#
# Prints a line for each thing that it has seen; the first that is not so ends it with an error.
set -euo pipefail

mode=$1 seconds=${2:-20}
podshm=${PODSHM:-$(dirname "$0")/../../target/debug/podshm}
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n1)
work=$(mktemp -d /tmp/podshm-pg.XXXXXX)
data=$work/data root=$work/root port=$((20000 + $$ % 10000))
# In the titles of the server's processes: several tests, each with a server of its own, run at a time.
name=pg$port
started=()

cleanup() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    "$podshm" rm --root "$root" --domain pg --force 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
die() { echo "FAILED: $*" >&2; tail -n 30 "$work"/*.log >&2 || true; exit 1; }
ok() { echo "ok: $*"; }
run=("$podshm" run --root "$root" --domain pg --mode "$mode" --shmall-mib 512 --user postgres)
member() { local name=$1; shift; "${run[@]}" --member "$name" -- "$@"; }
sql() { member "client-$RANDOM" "$bin/psql" -h "$work" -p "$port" -d postgres -Atqc "$1"; }
until_true() { for _ in $(seq 300); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.2; done; return 1; }
ready() { "$bin/pg_isready" -q -U postgres -d postgres -h "$work" -p "$port"; }

chown postgres "$work"
chmod 755 "$work"
if [ "$mode" = preload ]; then
    PODSHM_LOG=info "$podshm" domain --root "$root" --domain pg --mode preload --shmall-mib 512 --shm-mib 256 >"$work/daemon.log" 2>&1 &
    started+=($!)
    until_true grep -q ready "$work/daemon.log" || die "no daemon"
fi

member init "$bin/initdb" -D "$data" --no-sync -A trust -c shared_memory_type=sysv >"$work/initdb.log" 2>&1 ||
    member init "$bin/initdb" -D "$data" --no-sync -A trust >"$work/initdb.log" 2>&1 || die "initdb"
ok "initdb"

# serve DYNAMIC: a server as a member of its own.
serve() {
    "${run[@]}" --member server -- "$bin/postgres" -D "$data" -k "$work" -p "$port" -c listen_addresses= \
        -c cluster_name="$name" -c shared_memory_type=sysv -c dynamic_shared_memory_type="$1" -c shared_buffers=64MB \
        -c max_parallel_workers_per_gather=2 -c fsync=off >>"$work/server.log" 2>&1 &
    server=$!
    started+=("$server")
    until_true ready || die "the server does not start with dynamic_shared_memory_type=$1"
}
stop() { kill -TERM "$server"; wait "$server" || true; }
# Pids on this machine of the postmaster and of a backend.
postmaster() { pgrep -f "$bin/postgres -D $data" | head -n1; }

for dynamic in sysv posix; do
    serve "$dynamic"
    [ "$(sql 'show shared_memory_type')" = sysv ] || die "shared_memory_type"
    sql "set client_min_messages = warning; drop table if exists t; create table t as select g, g % 97 as h from generate_series(1, 400000) g; analyze t" >/dev/null
    plan=$(sql "set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0; explain (analyze, costs off, timing off) select h, count(*) from t group by h")
    [[ $plan == *"Workers Launched: 2"* || $plan == *"Workers Launched: 1"* ]] || die "no parallel workers with $dynamic: $plan"
    ok "dynamic_shared_memory_type=$dynamic: parallel query"
    stop
done

serve posix
member bench "$bin/pgbench" -h "$work" -p "$port" -i -s 5 -q postgres >"$work/pgbench.log" 2>&1 || die "pgbench -i"
member bench "$bin/pgbench" -h "$work" -p "$port" -c 4 -j 2 -T "$seconds" postgres >"$work/pgbench.log" 2>&1 || die "pgbench"
grep -q "number of failed transactions: 0" "$work/pgbench.log" || die "pgbench had failures"
ok "pgbench $seconds s: $(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$work/pgbench.log" | head -n1) tps"

listed=$("$podshm" ls --root "$root" --domain pg)
[[ $listed == *"sysv "*" attached "[1-9]* ]] || die "podshm ls does not show the server's segment: $listed"
id=$(sed -n '7s/.* //p' "$data/postmaster.pid")
stat=$(member onlooker perl -e 'my $b = ""; shmctl($ARGV[0], 2, $b) or die "shmctl: $!"; print unpack("Q", substr($b, 88, 8))' "$id") || die "a second member can't stat the segment"
[ "$stat" -gt 1 ] || die "a second member counts $stat attachments"
ok "a second member sees and stats the server's segment: $stat attachments"

# A backend's death: the server recovers by itself.
backend=$(sql "select pg_backend_pid()") # as the member counts; on this machine the child of the postmaster that is idle
"${run[@]}" --member sleeper -- "$bin/psql" -h "$work" -p "$port" -d postgres -c 'select pg_sleep(60)' >/dev/null 2>&1 &
started+=($!)
asleep="postgres: $name: postgres postgres .*SELECT"
until_true pgrep -f "$asleep" || die "no backend to kill (last was $backend)"
kill -9 "$(pgrep -f "$asleep" | head -n1)" || die "the backend is gone by itself"
until_true grep -q "all server processes terminated; reinitializing" "$work/server.log" || die "no recovery after kill -9 of a backend"
until_true ready || die "not ready after the recovery"
[ "$(sql 'select count(*) from t')" = 400000 ] || die "rows were lost"
ok "kill -9 of a backend: recovered, nothing lost"

# A second server on the same data, in another pid namespace: the segment in use is what stops it.
rm -f "$work/second.log"
cp "$data/postmaster.pid" "$work/lockfile"
if member second "$bin/postgres" -D "$data" -k "$work" -p $((port + 1)) -c listen_addresses= -c shared_memory_type=sysv >"$work/second.log" 2>&1; then
    die "a second server started on the same data"
fi
grep -q "pre-existing shared memory block .* is still in use" "$work/second.log" || die "the second server failed otherwise"
ok "a second server collides: $(grep -o 'pre-existing shared memory block.*' "$work/second.log" | head -n1)"

# The postmaster's death: its backends go, a new server takes over cleanly.
kill -9 "$(postmaster)"
wait "$server" 2>/dev/null || true
serve posix
[ "$(sql 'select count(*) from t')" = 400000 ] || die "rows were lost"
ok "kill -9 of the postmaster: a clean restart, nothing lost"
stop
left=$("$podshm" ls --root "$root" --domain pg | grep -c '^  sysv [0-9]* key' || true)
[ "$left" = 0 ] || die "$left segments are left: $("$podshm" ls --root "$root" --domain pg)"
ok "nothing is left in the domain"
