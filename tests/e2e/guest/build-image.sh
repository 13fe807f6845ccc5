#!/usr/bin/env bash
# Makes a bootable guest without a disk: Debian's cloud kernel and an initramfs of busybox and guest_service.
#
#   build-image.sh GUEST_SERVICE OUT
#
# leaves OUT/vmlinuz and OUT/initramfs. The kernel's package is downloaded once (PORTWAY_GUEST_CACHE, build/guest in the
# source tree by default) and only unpacked, never installed.
set -euo pipefail

guest_service=$(readlink -f "$1")
here=$(dirname "$(readlink -f "$0")")
mkdir -p "$2"
out=$(readlink -f "$2")
cache=${PORTWAY_GUEST_CACHE:-$here/../../../build/guest}
mkdir -p "$cache"

# Each module after those it needs.
modules=(failover net_failover virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_net)

download_kernel() {
  local package unpacked=$cache/kernel.new
  rm -rf "$unpacked"
  mkdir -p "$unpacked"
  # linux-image-cloud-amd64 only names the current kernel's package.
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
  [ -n "$package" ] || return 1
  (cd "$unpacked" && apt-get download -q -o APT::Sandbox::User=root "$package") || return 1
  dpkg-deb -x "$unpacked"/*.deb "$unpacked"
  rm -rf "$cache/kernel" "$unpacked"/*.deb
  mv "$unpacked" "$cache/kernel"
}

# Several builds share the cache.
exec 9>"$cache/lock"
flock 9
if ! [ -d "$cache/kernel" ]; then
  if ! download_kernel; then
    # The lists are missing, or name a version that the mirror has replaced.
    apt-get update -q
    download_kernel || { echo "$0: cannot download the package that linux-image-cloud-amd64 depends on" >&2; exit 1; }
  fi
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,dev,modules,proc}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$guest_service" "$root/guest_service"
cp "$here/init" "$root/init"
chmod +x "$root/init"
for module in "${modules[@]}"; do
  cp "$(find "$cache/kernel/lib/modules" -name "$module.ko")" "$root/modules/"
  echo "$module.ko" >>"$root/modules/order"
done
cp "$cache"/kernel/boot/vmlinuz-* "$out/vmlinuz"
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$out/initramfs"
