#!/usr/bin/env bash
# Installs what building and testing need, and nothing that is already there.
#
#   scripts/setup.sh            what `make demo` and `make test` need
#   scripts/setup.sh deny       also cargo-deny, for `make check`
#   scripts/setup.sh capi       also cbindgen, for `make check` and `make c-header`
#   scripts/setup.sh python     also what the Python module is built and tested with, in a venv
#   scripts/setup.sh unmodified also the programs that the tier `foreign` runs
#   scripts/setup.sh vm         also QEMU and what a virtual machine is put together with, for `make vm-test`
#   scripts/setup.sh cluster    also what nodes of a Kubernetes cluster run, for `make cluster-test`
#   scripts/setup.sh arm64      also what programs for arm64 are built with, and run with on this machine, for `make arm64`
#   scripts/setup.sh fuzz       also cargo-fuzz (and checks for a nightly), for `make fuzz`
#
# Run it as often as you like. It changes the machine only through apt-get (as root or
# through sudo) and by building cargo tools into ~/.cache/podshm/tools.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

# <Debian package> <command, python3:MODULE or object file that proves it is there on any distribution>
PACKAGES='
build-essential cc
pkg-config      pkg-config
git             git
iproute2        ip
util-linux      unshare
procps          ps
python3         python3
valgrind        valgrind
ca-certificates update-ca-certificates
'
# What tests run unmodified in a domain.
UNMODIFIED='
musl-tools musl-gcc
postgresql pg_lsclusters
stress-ng stress-ng
perl perl
python3-dev /usr/bin/python3-config
python3-pip /usr/bin/pip3
'
# What a venv is made with.
PYTHON='
python3-venv    python3:ensurepip
'
# What boots another kernel.
VM='
qemu-system-x86 qemu-system-x86_64
busybox-static  /bin/busybox
cpio            cpio
'
# What builds for another architecture, and runs what was built without a kernel of that architecture.
ARM64='
gcc-aarch64-linux-gnu aarch64-linux-gnu-gcc
libc6-dev-arm64-cross /usr/aarch64-linux-gnu/lib/crt1.o
qemu-user-static qemu-aarch64-static
'
# What nodes of a test cluster run beside what is built from Go modules.
CLUSTER='
runc            runc
containernetworking-plugins /usr/lib/cni/bridge
'
SYSV_IPC_VERSION=1.2.0
CARGO_DENY_VERSION=0.20.2
CARGO_FUZZ_VERSION=0.13.1
CBINDGEN_VERSION=0.29.4

is_there() {
    case $1 in
        python3:*) have python3 && python3 -c "import ${1#python3:}" 2>/dev/null ;;
        *.o) [ -e "$1" ] ;;
        *) PATH="$PATH:/usr/sbin:/sbin" have "$1" ;;
    esac
}

missing_packages() {
    local package proof
    while read -r package proof; do
        [ -n "$package" ] || continue
        is_there "$proof" || printf '%s ' "$package"
    done <<<"$PACKAGES"
}

install_packages() {
    local missing as_root=()
    missing=$(missing_packages)
    if [ -z "$missing" ]; then
        say "setup: system packages: all there"
        return
    fi
    say "setup: system packages missing: $missing"
    have apt-get || die "this is no Debian: install the equivalents of: $missing"
    if [ "$(id -u)" != 0 ]; then
        have sudo || die "not root and no sudo; run as root: apt-get install -y $missing"
        as_root=(sudo)
    fi
    # shellcheck disable=SC2086 # a list of words
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends $missing </dev/null
    missing=$(missing_packages)
    [ -z "$missing" ] || die "still missing after apt-get: $missing"
}

check_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    [ -n "$wanted" ] || die "Cargo.toml states no rust-version"
    if ! have cargo || ! have rustc; then
        die "no Rust toolchain: expected $wanted or newer; get one from https://rustup.rs: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    fi
    found=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -n1)" != "$wanted" ]; then
        die "rustc is $found, expected $wanted or newer; run: rustup update stable (or get rustup from https://rustup.rs)"
    fi
    say "setup: rustc $found (at least $wanted is needed)"
}

# cargo_tool NAME VERSION: builds it once; another version in the cache is replaced.
cargo_tool() {
    local name=$1 version=$2 start=$SECONDS
    if [ -x "$TOOLS/bin/$name" ] && grep -qs "\"$name $version " "$TOOLS/.crates.toml"; then
        say "setup: $name $version is in $TOOLS/bin"
        return
    fi
    say "setup: building $name $version into $TOOLS (once; about two minutes on two cores)"
    CARGO_TARGET_DIR="$TOOLS/build" cargo install "$name" --version "=$version" --locked --force --root "$TOOLS" --quiet </dev/null
    rm -rf "$TOOLS/build"
    say "setup: $name $version built in $((SECONDS - start)) s"
}

install_deny() {
    cargo fmt --version >/dev/null 2>&1 || die "no rustfmt; run: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || die "no clippy; run: rustup component add clippy"
    cargo_tool cargo-deny "$CARGO_DENY_VERSION"
}

install_sysv_ipc() {
    if PYTHONPATH="$TOOLS/python" /usr/bin/python3 -c 'import sysv_ipc' 2>/dev/null; then
        say "setup: sysv_ipc is in $TOOLS/python"
        return
    fi
    /usr/bin/python3 -m pip install --quiet --target "$TOOLS/python" "sysv_ipc==$SYSV_IPC_VERSION" </dev/null
}

install_fuzz() {
    cargo +nightly --version >/dev/null 2>&1 ||
        die "cargo-fuzz needs a nightly compiler; run: rustup toolchain install nightly --profile minimal"
    cargo_tool cargo-fuzz "$CARGO_FUZZ_VERSION"
}

install_arm64() {
    if rustc --print target-libdir --target aarch64-unknown-linux-gnu 2>/dev/null | xargs test -d; then
        say "setup: the standard library for arm64 is there"
        return
    fi
    have rustup || die "no standard library for aarch64-unknown-linux-gnu, and no rustup to fetch it with; see https://rustup.rs"
    rustup target add aarch64-unknown-linux-gnu
}

check_go() {
    local wanted found
    wanted=$(sed -n 's|^go \([0-9.]*\)$|\1|p' tests/cluster/programs/kubernetes/go.mod)
    have go || die "no Go toolchain: expected $wanted or newer (see https://go.dev/dl); Kubernetes is built with it, once"
    # There, an older one fetches what go.mod asks for, unless GOTOOLCHAIN says otherwise.
    found=$(cd tests/cluster/programs/kubernetes && go env GOVERSION) || die "no Go $wanted: see what go says above, and https://go.dev/dl"
    found=${found#go}
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n1)" != "$wanted" ]; then
        die "go is $found, expected $wanted or newer; see https://go.dev/dl"
    fi
    say "setup: go $found (at least $wanted is needed)"
}

for extra in "$@"; do
    if [ "$extra" = cluster ]; then PACKAGES+=$CLUSTER; fi
    if [ "$extra" = python ]; then PACKAGES+=$PYTHON; fi
    if [ "$extra" = unmodified ]; then PACKAGES+=$UNMODIFIED; fi
    if [ "$extra" = arm64 ]; then PACKAGES+=$ARM64; fi
    if [ "$extra" = vm ]; then PACKAGES+=$VM; fi
done
scripts/disk-room 4 # what `make demo` builds
install_packages
check_rust
for extra in "$@"; do
    case $extra in
        deny) install_deny ;;
        fuzz) install_fuzz ;;
        unmodified) install_sysv_ipc ;;
        vm) ;;
        python) scripts/wheel.sh tools ;;
        arm64) install_arm64 ;;
        capi) cargo_tool cbindgen "$CBINDGEN_VERSION" ;;
        cluster) check_go ;;
        *) die "unknown extra '$extra': expected arm64, capi, cluster, deny, fuzz, python, unmodified or vm" ;;
    esac
done
