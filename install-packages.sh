#!/usr/bin/env bash
# Installs the Debian packages of the given sections of packages.txt, as root or through sudo; does nothing when they are
# all there.
#
#   ./install-packages.sh build test
set -euo pipefail

list=$(dirname "$(readlink -f "$0")")/packages.txt
if [ $# -eq 0 ]; then
  echo "usage: $0 SECTION...   (sections: $(sed -n 's/^\[\(.*\)\]$/\1/p' "$list" | paste -sd ' '))" >&2
  exit 2
fi

packages=()
for section in "$@"; do
  mapfile -t found < <(awk -v header="[$section]" '/^\[/ { inside = $0 == header; next } inside && /^[^#]/' "$list")
  if [ ${#found[@]} -eq 0 ]; then
    echo "$0: no section [$section] in $list" >&2
    exit 2
  fi
  packages+=("${found[@]}")
done

missing=()
provided=$(dpkg-query --show --showformat='${db:Status-Status}, ${Provides},\n' | grep '^installed,' || true)
for package in "${packages[@]}"; do
  state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  # Another package may stand in for it, as other builds of nodejs do for npm, which they refuse beside them.
  [ "$state" = installed ] || grep -q ", $package[, ]" <<<"$provided" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "$0: run as root to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo "${as_root[@]}")
fi
echo "Installing ${#missing[@]} packages: ${missing[*]}"
# Recommended packages are left out: none is needed, and some are daemons.
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null >/dev/null
