#!/usr/bin/env bash
# Runs the tests of seals, charges and memory limits on the oldest kernel that podshm supports, Debian's 6.1, with cgroup v2: a virtual
# machine that QEMU emulates, which takes minutes. Nothing is installed as a kernel.
#
#   scripts/vm-test.sh                  the tests named below
#   scripts/vm-test.sh charges seals    these
#   VM_SECONDS=3600 scripts/vm-test.sh  how long it may take in all (default 2400)
#   VM_ACCELERATION=kvm scripts/vm-test.sh  by the processor itself
set -euo pipefail
source "$(dirname "$0")/lib.sh"

TESTS=("$@")
[ ${#TESTS[@]} -gt 0 ] || TESTS=(seals seals_in_pods charges handshake full_budget out_of_memory)
VM=$TARGET/vm
ROOTFS=$VM/root
SECONDS_IN_ALL=${VM_SECONDS:-2400}
mkdir -p "$VM"

step "Debian's kernel 6.1"
package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-6\.1\.[^ ]*\)$/\1/p' | head -n1)
[ -n "$package" ] || die "apt knows no kernel 6.1 behind linux-image-amd64: expected Debian 12; run apt-get update, or use another machine"
if ! ls "$VM/$package"/boot/vmlinuz-* >/dev/null 2>&1; then
    (cd "$VM" && apt-get download -q "$package") || die "$package could not be downloaded; run apt-get update"
    rm -rf "${VM:?}/$package"
    dpkg-deb -x "$VM/${package}"_*.deb "$VM/$package"
    rm -f "$VM/${package}"_*.deb
fi
kernel=$(ls "$VM/$package"/boot/vmlinuz-*)
say "$(basename "$kernel")"

step "the tests"
cargo build "${CARGO_LOCKED[@]}" --workspace --exclude podshm-cluster --exclude podshm-cluster-pod --exclude podshm-scale --bins
names=()
for name in "${TESTS[@]}"; do names+=(--test "$name"); done
mapfile -t programs < <(cargo test "${CARGO_LOCKED[@]}" -p podshm-tests "${names[@]}" --no-run --message-format=json |
    python3 -c 'import json,sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["target"]["name"] + "=" + message["executable"])')
[ ${#programs[@]} = ${#TESTS[@]} ] || die "expected ${#TESTS[@]} test programs, found ${#programs[@]}"

step "what boots"
rm -rf "$ROOTFS"
mkdir -p "$ROOTFS"/{bin,proc,sys,dev,tmp,run,new,etc} "$ROOTFS$ROOT/tests" "$ROOTFS$TARGET/test-sockets"
chmod 1777 "$ROOTFS/tmp"
cp /bin/busybox "$ROOTFS/bin/"
printf 'root:x:0:0::/:/bin/sh\n' >"$ROOTFS/etc/passwd"
# add FILE: at the same place, without what is for debuggers, with the libraries that it needs.
add() {
    mkdir -p "$ROOTFS$(dirname "$1")"
    strip -g -o "$ROOTFS$1" "$1"
    local library
    for library in $(ldd "$1" | grep -o '/[^ ]*'); do
        mkdir -p "$ROOTFS$(dirname "$library")"
        cp -Lu "$library" "$ROOTFS$library"
    done
}
for program in "$TARGET"/debug/podshm-{pod,pod-probe,test-broker,test-participant,test-pod}; do add "$program"; done
: >"$ROOTFS/tests.list"
for program in "${programs[@]}"; do
    add "${program#*=}"
    printf '%s\n' "${program/=/ }" >>"$ROOTFS/tests.list"
done
cat >"$ROOTFS/init" <<'INIT'
#!/bin/busybox sh
# Pods change their root, which the kernel's first file system does not let them do: everything goes to a tmpfs.
/bin/busybox --install -s /bin
mount -t tmpfs -o size=60%,mode=755 none /new
for entry in /*; do
    case $entry in /new | /proc | /sys | /dev) ;; *) cp -a "$entry" /new/ ;; esac
done
mkdir -p /new/proc /new/sys /new/dev
exec switch_root /new /run-tests
INIT
cat >"$ROOTFS/run-tests" <<RUN
#!/bin/busybox sh
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t devpts none /dev/pts
mount -t cgroup2 none /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
echo "vm-test: Linux \$(uname -r), cgroup controllers: \$(cat /sys/fs/cgroup/cgroup.subtree_control), user \$(id -u)"
cd $ROOT/tests
export RUST_BACKTRACE=1 PATH=/bin
while read -r name program; do
    echo "vm-test: begin \$name"
    # With what passing tests say: a test that is skipped passes, and says so.
    "\$program" --test-threads=1 --show-output </dev/null 2>&1
    echo "vm-test: end \$name \$?"
done </tests.list
echo "vm-test: all done"
poweroff -f
RUN
chmod +x "$ROOTFS/init" "$ROOTFS/run-tests"
(cd "$ROOTFS" && find . | cpio --quiet -o -H newc) | gzip -1 >"$VM/initramfs.gz"
say "$(du -h "$VM/initramfs.gz" | cut -f1) with $(basename "$kernel")"

# KVM inside a virtual machine is not to be relied on, even where its device is there.
acceleration=${VM_ACCELERATION:-tcg,thread=multi}
step "booting ($acceleration); at most $SECONDS_IN_ALL s"
start=$SECONDS
status=0
timeout "$SECONDS_IN_ALL" qemu-system-x86_64 -accel "$acceleration" -cpu max -smp 2 -m 3G -nodefaults -nographic -no-reboot \
    -serial stdio -kernel "$kernel" -initrd "$VM/initramfs.gz" \
    -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" </dev/null 2>&1 | sed -u 's,\r$,,' | tee "$VM/console.log" || status=$?

count() { sed -n "s/^test result: .* \([0-9]*\) $1.*/\1/p" "$VM/console.log" | awk '{n += $1} END {print n + 0}'; }
passed=$(count passed) failed=$(count failed) ignored=$(count ignored)
step "vm-test in $((SECONDS - start)) s ($acceleration): $(sed -n 's/.*vm-test: \(Linux.*\)/\1/p' "$VM/console.log")"
say "$passed passed, $failed failed, $ignored ignored"
if grep '^SKIPPED' "$VM/console.log"; then die "a test that is skipped here proves nothing"; fi
grep -q '^vm-test: all done' "$VM/console.log" || die "the machine did not come to its end (qemu: $status); see $VM/console.log"
if grep '^vm-test: end' "$VM/console.log" | grep -v ' 0$'; then die "these have failed; see $VM/console.log"; fi
if grep '^test result: .* 0 passed' "$VM/console.log"; then die "a test program in which nothing ran proves nothing"; fi
ended=$(grep -c '^vm-test: end' "$VM/console.log")
[ "$ended" = "${#TESTS[@]}" ] && [ "$passed" -gt 0 ] || die "expected ${#TESTS[@]} test programs to run, found $ended with $passed tests"
