#!/usr/bin/env bash
# Builds the fuzz targets and runs each for SECONDS (60 by default), starting from tests/fuzz/corpus; new inputs are kept in
# build/asan. Ends with the first that crashes, whose input libFuzzer names.
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]     TARGET: http, api, config, proxy_header
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."

seconds=${1:-60}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(http api config proxy_header)
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
fi
cmake --preset asan >/dev/null
cmake --build --preset fuzz -j "$(nproc)"
run_one() {
  mkdir -p "build/asan/corpus/$1"
  echo "== $1 for $seconds s"
  build/asan/tests/fuzz/"$1"_fuzz -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 \
    -artifact_prefix="build/asan/$1-" -print_final_stats=1 "build/asan/corpus/$1" "tests/fuzz/corpus/$1" 2>"build/asan/$1.log" ||
    { tail -60 "build/asan/$1.log"; return 1; }
  grep "stat::number_of_executed_units" "build/asan/$1.log"
}
export -f run_one
export seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'run_one {}'
