#!/usr/bin/env bash
# Makes a release of the commit that is checked out: the source, the packages that are built from it, the list of what is
# inside them, and checksums.
#
#   packaging/release.sh [--dry-run] DIRECTORY
#
# The version is that of project() in CMakeLists.txt. A release needs a tree without changes, and CHANGELOG.md must have a
# section for the version and nothing under Unreleased. A dry run says what is missing, and makes the files nevertheless.
set -euo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=yes
  shift
fi
[ $# -eq 1 ] || { echo "usage: $0 [--dry-run] DIRECTORY" >&2; exit 2; }
mkdir -p "$1"
output=$(readlink -f "$1")
[ -z "$(ls -A "$output")" ] || { echo "$0: $output is not empty; name a new directory" >&2; exit 2; }

refuse() {
  echo "release: $*" >&2
  [ -n "$dry_run" ] || exit 1
}

cd "$top"
version=$(sed -n 's/^project(portway VERSION \([0-9.]*\) .*/\1/p' CMakeLists.txt)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
[ -z "$(git status --porcelain)" ] || refuse "the tree has changes that are not committed: git status"
grep -q "^## ${version//./\\.}\( \|$\)" CHANGELOG.md ||
  refuse "CHANGELOG.md has no section \"## $version\"; write one, or correct the version in CMakeLists.txt"
[ -z "$(awk '/^## / { inside = $2 == "Unreleased"; next } inside && NF' CHANGELOG.md)" ] ||
  refuse "CHANGELOG.md has changes under Unreleased; move them to the section of $version"

work=$(mktemp -d "${TMPDIR:-/tmp}/portway-release-XXXXXX")
trap 'rm -rf "$work"' EXIT
git archive --format=tar --prefix="portway-$version/" HEAD | gzip --best --no-name >"$output/portway-$version.tar.gz"
# From the archive, so that whoever has it gets the same packages.
tar --extract --gzip --directory "$work" --file "$output/portway-$version.tar.gz"
"$work/portway-$version/packaging/build-deb.sh" "$output"
cd "$output"
sha256sum -- * >"$work/SHA256SUMS"
mv "$work/SHA256SUMS" .
echo "Portway $version is in $output:"
cat SHA256SUMS
