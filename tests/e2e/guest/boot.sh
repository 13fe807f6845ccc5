#!/usr/bin/env bash
# Becomes a virtual machine behind TAP, made by build-image.sh; its console is standard output, which says "guest_service:
# ready" once its services listen.
#
#   boot.sh IMAGE TAP ADDRESS/LENGTH GATEWAY NAME [ADDRESS6/LENGTH GATEWAY6]
set -euo pipefail

# Without KVM, which the machines that run the tests do not have. no_timer_check: on a busy machine the emulated timer ticks
# too late for the kernel's probe of it, and the kernel gives up.
exec qemu-system-x86_64 -accel tcg -machine q35 -m 128 -nodefaults -no-reboot -display none -serial stdio \
  -kernel "$1/vmlinuz" -initrd "$1/initramfs" \
  -append "console=ttyS0 quiet panic=-1 no_timer_check guest_address=$3 guest_gateway=$4 guest_name=$5 guest_address6=${6:-} guest_gateway6=${7:-}" \
  -netdev "tap,id=net0,ifname=$2,script=no,downscript=no" -device virtio-net-pci,netdev=net0,romfile=
