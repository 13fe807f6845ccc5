#!/usr/bin/env bash
# Builds the packages twice, from the first source file on, in directories of other names and in other surroundings, and
# compares every byte. Takes twice as long as a full build. What CI does at each run is to pack the same programs twice
# (tests/packaging).
#
#   packaging/check-reproducible.sh
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
work=$(mktemp -d "${TMPDIR:-/tmp}/portway-reproducible-XXXXXX")
trap 'rm -rf "$work"' EXIT
export CCACHE_DISABLE=1

mkdir "$work/a" "$work/another-directory"
(umask 022 && TMPDIR=$work/a TZ=UTC LC_ALL=C "$here/build-deb.sh" "$work/first" >"$work/first.log" 2>&1) ||
  { cat "$work/first.log"; exit 1; }
(umask 077 && TMPDIR=$work/another-directory TZ=Pacific/Kiritimati LC_ALL=C.UTF-8 DEB_BUILD_OPTIONS=parallel=1 \
  "$here/build-deb.sh" "$work/second" >"$work/second.log" 2>&1) || { cat "$work/second.log"; exit 1; }
(cd "$work/first" && sha256sum -- *) | tee "$work/sums"
(cd "$work/second" && sha256sum --check --strict "$work/sums")
[ "$(ls "$work/first")" = "$(ls "$work/second")" ]
echo "The packages are the same, byte for byte."
