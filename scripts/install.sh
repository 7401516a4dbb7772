#!/usr/bin/env bash
# Installs what a packager expects where one expects it:
#
#   make install PREFIX=/usr/local DESTDIR=      (LIBDIR=lib/x86_64-linux-gnu for Debian's places)
#
#   bin/podshm, podshm-{route,guard}-agent   lib/libpodshm.so*, libpodshm.a, pkgconfig/podshm.pc
#   include/podshm.h, podshm.hpp …           share/man/man1, share/doc/podshm, completions of bash, zsh, fish
#
# Linked by zig, which is fetched from PyPI, all of it runs with glibc 2.17 and later; ZIG=no, or no zig, and it needs this machine's, which is
# said. PROFILE=dev installs what is quick to build. Nothing is written outside of PREFIX and the caches of cargo and of scripts/lib.sh.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

PREFIX=${PREFIX:-/usr/local} DESTDIR=${DESTDIR:-} LIBDIR=${LIBDIR:-lib} PROFILE=${PROFILE:-release}
[[ $PREFIX == /* ]] || die "PREFIX is '$PREFIX', expected an absolute path"
# Many a packager's is absolute; everything else here lies below PREFIX.
LIBDIR=${LIBDIR#"${PREFIX%/}/"}
[[ $LIBDIR != /* && /$LIBDIR/ != */../* ]] || die "LIBDIR is '$LIBDIR', expected a folder of PREFIX, $PREFIX: lib, or $PREFIX/lib64"
to=$DESTDIR$PREFIX
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' Cargo.toml)
abi=$(sed -n 's/.*-soname,libpodshm\.so\.\([0-9]*\)".*/\1/p' crates/podshm-capi/build.rs)
[ -n "$version" ] && [ -n "$abi" ] || die "no version in Cargo.toml, or no soname in crates/podshm-capi/build.rs"

library=$(PROFILE=$PROFILE scripts/c-library)
case $PROFILE in dev) programs=$TARGET/debug ;; *) programs=$TARGET/$PROFILE ;; esac
wanted=(-p podshm-cli -p route-agent -p guard-agent)
# BUILT=1: the programs are there. Building a few of the workspace again turns other features of their dependencies on, and takes minutes.
if [ "${BUILT:-}" = 1 ]; then
    for program in podshm route-agent guard-agent; do
        [ -x "$programs/$program" ] || die "BUILT=1, but $programs/$program is not there: cargo build --workspace --bins"
    done
elif [ "${ZIG:-}" != no ] && have_zig && by_zig build "${CARGO_LOCKED[@]}" --quiet --profile "$PROFILE" "${wanted[@]}"; then
    programs=$library
    # What was asked of zig is looked for in what it made. (The library's: scripts/c-library.)
    scripts/glibc-needs "$OLDEST_GLIBC" "$programs"/{podshm,route-agent,guard-agent} >&2
else
    cargo build "${CARGO_LOCKED[@]}" --quiet --profile "$PROFILE" "${wanted[@]}"
fi
pages=$(mktemp -d "${TMPDIR:-/tmp}/podshm-pages.XXXXXX")
trap 'rm -rf "$pages"' EXIT
"$programs/podshm" pages "$pages"
for agent in route-agent guard-agent; do
    "$programs/$agent" --man >"$pages/man1/podshm-$agent.1"
    "$programs/$agent" --completions bash >"$pages/bash/podshm-$agent.bash"
    "$programs/$agent" --completions zsh >"$pages/zsh/_podshm-$agent"
    "$programs/$agent" --completions fish >"$pages/fish/podshm-$agent.fish"
done

put() { install -D -m "$1" "$2" "$to/$3"; }
put 755 "$programs/podshm" bin/podshm
ln -sfn podshm "$to/bin/kubectl-podshm" # kubectl podshm …
put 755 "$programs/route-agent" bin/podshm-route-agent
put 755 "$programs/guard-agent" bin/podshm-guard-agent
put 755 "$library/libpodshm_capi.so" "$LIBDIR/libpodshm.so.$version"
ln -sfn "libpodshm.so.$version" "$to/$LIBDIR/libpodshm.so.$abi"
ln -sfn "libpodshm.so.$abi" "$to/$LIBDIR/libpodshm.so"
put 644 "$library/libpodshm_capi.a" "$LIBDIR/libpodshm.a"
for header in crates/podshm-capi/include/*; do put 644 "$header" "include/$(basename "$header")"; done
for page in "$pages"/man1/*; do put 644 "$page" "share/man/man1/$(basename "$page")"; done
for command in podshm podshm-route-agent podshm-guard-agent; do
    put 644 "$pages/bash/$command.bash" "share/bash-completion/completions/$command"
    put 644 "$pages/zsh/_$command" "share/zsh/site-functions/_$command"
    put 644 "$pages/fish/$command.fish" "share/fish/vendor_completions.d/$command.fish"
done
for text in LICENSE CHANGELOG.md SEMANTICS.md docs/c-abi.md docs/guard.md docs/unmodified.md docs/upgrading.md; do
    put 644 "$text" "share/doc/podshm/$(basename "$text")"
done
sed -e "s|@PREFIX@|$PREFIX|; s|@LIBDIR@|$LIBDIR|; s|@VERSION@|$version|" crates/podshm-capi/podshm.pc.in >"$pages/podshm.pc"
put 644 "$pages/podshm.pc" "$LIBDIR/pkgconfig/podshm.pc"

say "podshm $version is in $to"
scripts/glibc-needs any "$to/$LIBDIR/libpodshm.so.$version" "$to"/bin/podshm{,-route-agent,-guard-agent}
