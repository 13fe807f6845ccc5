#!/usr/bin/env bash
# Builds Portway and runs its tests; installs the packages they need first (Debian 12).
#
#   ./test.sh [PRESET [CMAKE_ARGUMENT...]]     PRESET: dev (unless told), release, asan, tsan
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

preset=${1:-dev}
shift || true
step() { printf '\n== %s\n' "$*"; }

[ "$(id -u)" -eq 0 ] ||
  echo "Not root: what needs network namespaces is skipped. For all tests, run with sudo: sudo $0 $preset $*"

step "Packages"
./install-packages.sh build test
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1  # another checkout's objects are as good
fi

step "Build (preset $preset, in build/$preset)"
cmake --preset "$preset" "$@" >/dev/null
cmake --build --preset "$preset" -j "$(nproc)"

step "Tests (preset $preset)"
ctest --preset "$preset" -j $((4 * $(nproc))) --no-label-summary  # most tests wait most of their time
