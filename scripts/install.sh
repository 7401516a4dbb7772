#!/usr/bin/env bash
# Installs what a packager expects where one expects it:
#
#   make install PREFIX=/usr/local DESTDIR=      (LIBDIR=lib/x86_64-linux-gnu for Debian's places)
#
#   bin/podshm, podshm-{route,guard}-agent   lib/libpodshm.so*, libpodshm.a, pkgconfig/podshm.pc
#   include/podshm.h, podshm.hpp …           share/man/man1, share/doc/podshm, completions of bash, zsh, fish
#
# PROFILE=dev installs what `cargo build` makes. Nothing is written outside of PREFIX.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

PREFIX=${PREFIX:-/usr/local} DESTDIR=${DESTDIR:-} LIBDIR=${LIBDIR:-lib} PROFILE=${PROFILE:-release}
[[ $PREFIX == /* ]] || die "PREFIX is '$PREFIX', expected an absolute path"
to=$DESTDIR$PREFIX
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' Cargo.toml)
abi=$(sed -n 's/.*-soname,libpodshm\.so\.\([0-9]*\)".*/\1/p' crates/podshm-capi/build.rs)
[ -n "$version" ] && [ -n "$abi" ] || die "no version in Cargo.toml, or no soname in crates/podshm-capi/build.rs"

case $PROFILE in dev) built=$TARGET/debug ;; *) built=$TARGET/$PROFILE ;; esac
# BUILT=1: the programs are there. Building a few of the workspace again turns other features of their dependencies on, and takes minutes.
if [ "${BUILT:-}" = 1 ]; then
    for program in podshm route-agent guard-agent; do
        [ -x "$built/$program" ] || die "BUILT=1, but $built/$program is not there: cargo build --workspace --bins"
    done
    cargo build "${CARGO_LOCKED[@]}" --quiet --profile "$PROFILE" -p podshm-capi
else
    cargo build "${CARGO_LOCKED[@]}" --quiet --profile "$PROFILE" -p podshm-cli -p podshm-capi -p route-agent -p guard-agent
fi
pages=$(mktemp -d "${TMPDIR:-/tmp}/podshm-pages.XXXXXX")
trap 'rm -rf "$pages"' EXIT
"$built/podshm" pages "$pages"
"$built/guard-agent" --man >"$pages/man1/podshm-guard-agent.1"

put() { install -D -m "$1" "$2" "$to/$3"; }
put 755 "$built/podshm" bin/podshm
ln -sfn podshm "$to/bin/kubectl-podshm" # kubectl podshm …
put 755 "$built/route-agent" bin/podshm-route-agent
put 755 "$built/guard-agent" bin/podshm-guard-agent
put 755 "$built/libpodshm_capi.so" "$LIBDIR/libpodshm.so.$version"
ln -sfn "libpodshm.so.$version" "$to/$LIBDIR/libpodshm.so.$abi"
ln -sfn "libpodshm.so.$abi" "$to/$LIBDIR/libpodshm.so"
put 644 "$built/libpodshm_capi.a" "$LIBDIR/libpodshm.a"
for header in crates/podshm-capi/include/*; do put 644 "$header" "include/$(basename "$header")"; done
for page in "$pages"/man1/*; do put 644 "$page" "share/man/man1/$(basename "$page")"; done
put 644 "$pages/bash/podshm.bash" share/bash-completion/completions/podshm
put 644 "$pages/zsh/_podshm" share/zsh/site-functions/_podshm
put 644 "$pages/fish/podshm.fish" share/fish/vendor_completions.d/podshm.fish
for text in LICENSE CHANGELOG.md SEMANTICS.md docs/c-abi.md docs/guard.md docs/unmodified.md docs/upgrading.md; do
    put 644 "$text" "share/doc/podshm/$(basename "$text")"
done
sed -e "s|@PREFIX@|$PREFIX|; s|@LIBDIR@|$LIBDIR|; s|@VERSION@|$version|" crates/podshm-capi/podshm.pc.in >"$pages/podshm.pc"
put 644 "$pages/podshm.pc" "$LIBDIR/pkgconfig/podshm.pc"
say "podshm $version is in $to"
