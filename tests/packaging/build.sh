#!/usr/bin/env bash
# Packs the programs of the BUILD that is tested for the tests, in DIRECTORY. Skips (77) on a machine without what that needs;
# on CI that is a failure. packaging/build-deb.sh by itself builds what is shipped.
#
#   build.sh DIRECTORY BUILD
set -euo pipefail
rm -rf "$1"
for tool in dh dpkg-buildpackage lintian; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: ./install-packages.sh packaging"; exit "$([ -n "${CI:-}" ] && echo 1 || echo 77)"; }
done
top=$(dirname "$(readlink -f "$0")")/../..
export PORTWAY_BUILD=$2
exec "$top/packaging/build-deb.sh" "$1"
