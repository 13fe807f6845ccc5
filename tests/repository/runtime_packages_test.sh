#!/usr/bin/env bash
# The [runtime] section of packages.txt against what the daemon really loads: each library's package is listed, or is
# needed by apt, and so is part of every Debian image.
#
#   runtime_packages_test.sh PORTWAYD
set -euo pipefail
libraries=$(ldd "$1" | awk '$3 ~ /^\// { print $3 }')
cd "$(dirname "$(readlink -f "$0")")/../.."

listed=$(awk '/^\[/ { inside = $0 == "[runtime]"; next } inside && /^[^#]/' packages.txt)
mapfile -t image < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
  --no-enhances apt | sed -n 's/^\([a-z].*\)/\1/p')

known=$(printf '%s\n' "$listed" "${image[@]}")
missing=0
while read -r library; do
  # The linker's path may be a symbolic link of the merged /usr.
  package=$(dpkg-query --search "$library" "$(readlink -f "$library")" 2>/dev/null | head -n 1 | cut -d: -f1 || true)
  # Not by a pipe: grep -q ends at the first match, and what still writes to it would fail.
  if ! grep -qxF "$package" <<<"$known"; then
    echo "$library is in ${package:-no package}, which packages.txt's [runtime] does not have"
    missing=1
  fi
done <<<"$libraries"
exit $missing
