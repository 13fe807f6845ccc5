#!/usr/bin/env bash
# Builds the Debian packages portway, portway-client and portway-gateway, and those with their debug symbols, for the Debian that it runs on.
# Needs the packages of [build] and [packaging] in packages.txt. Nothing is left in the source tree but the output.
#
#   packaging/build-deb.sh [OUTPUT_DIRECTORY]     (unless told, build/packages)
#
# The same source gives the same bytes, wherever and whenever it is built. What counts as the time is SOURCE_DATE_EPOCH, by
# default the commit's. DEBFULLNAME and DEBEMAIL: who is named as the maintainer. PORTWAY_KEEP: a new directory
# that the build is done in, and that is kept. PORTWAY_BUILD: a build directory whose programs are packed, instead of building.
set -euo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
output=${1:-$top/build/packages}
export LC_ALL=C.UTF-8 TZ=UTC
umask 022

for tool in dh dpkg-buildpackage cmake ninja; do
  command -v "$tool" >/dev/null ||
    { echo "$0: $tool is missing; run: sudo $top/install-packages.sh build packaging" >&2; exit 1; }
done

if [ -n "${PORTWAY_KEEP:-}" ]; then
  mkdir -p "$PORTWAY_KEEP"
  work=$(readlink -f "$PORTWAY_KEEP")
else
  work=$(mktemp -d "${TMPDIR:-/tmp}/portway-deb-XXXXXX")
  trap 'rm -rf "$work"' EXIT
fi
source=$work/source
mkdir "$source"

# What git would commit, or without git everything: with the time of now, so that no older one gets into a package.
list_files() {
  if git -C "$top" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git -C "$top" ls-files -z --cached --others --exclude-standard
  else
    (cd "$top" && find . -path ./build -prune -o -type f -print0)
  fi
}
(cd "$top" && list_files | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
  tar --create --no-recursion --null --files-from=-) | tar --extract --touch --no-same-permissions --directory "$source"

version=$(sed -n 's/^project(portway VERSION \([0-9.]*\) .*/\1/p' "$top/CMakeLists.txt")
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || stat --format=%Y "$top/CMakeLists.txt")}
export SOURCE_DATE_EPOCH
maintainer="${DEBFULLNAME:-The Portway authors} <${DEBEMAIL:-portway@portway.invalid}>"
build_depends=$(awk '/^\[/ { inside = $0 == "[build]"; next } inside && /^[^#]/ { printf ", %s", $0 }' "$top/packages.txt")

cp -r "$source/packaging/debian" "$source/debian"
sed -i "s/@MAINTAINER@/$maintainer/; s/@BUILD_DEPENDS@/debhelper-compat (= 13)$build_depends/" "$source/debian/control"
cp "$source/packaging/portwayd.service" "$source/debian/portway.portwayd.service"
cp "$source/packaging/portway-gateway.service" "$source/debian/portway-gateway.service"
cat >"$source/debian/changelog" <<END
portway ($version-1) bookworm; urgency=medium

  * Version $version; changelog.gz says what has changed.

 -- $maintainer  $(date --utc --date="@$SOURCE_DATE_EPOCH" --rfc-email)
END

# Objects of a build in another directory have its name in what link-time optimisation reads: they are not shared.
unset CCACHE_BASEDIR CCACHE_NOHASHDIR
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_NAMESPACE=$source
  CCACHE_DIR=$(ccache --get-config cache_dir)  # debhelper sets another HOME
  export CCACHE_DIR
fi

cd "$source"
DEB_BUILD_OPTIONS="${DEB_BUILD_OPTIONS:-parallel=$(nproc)}" \
  dpkg-buildpackage --build=binary --no-sign --no-pre-clean
mkdir -p "$output"
cp "$work"/*.deb "$output/"
cp debian/portway/usr/share/doc/portway/portway.cdx.json "$output/portway_$version.cdx.json"
