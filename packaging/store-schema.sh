#!/usr/bin/env bash
# Prints the schema version of the store that this source's daemon writes: how many scripts kMigrations has.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
awk '/kMigrations = / { inside = 1 } inside && /^ *R"sql\($/ { count++ } inside && /^}\);/ { print count; exit }' \
  control/store_schema.cpp
