#include "tests/e2e/guest_network.h"

#include <stdexcept>

#include "tests/support/guest_ports.h"

namespace portway::test {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

constexpr const char* kGuestService = PORTWAY_GUEST_SERVICE;

/// Makes the virtual machine's kernel and initramfs, and returns their directory.
std::string build_guest_image() {
  std::string directory = PORTWAY_BUILD_DIRECTORY "/guest_image";
  Process build(
      {.command = {PORTWAY_SOURCE_DIRECTORY "/tests/e2e/guest/build-image.sh", kGuestService, directory}});
  if (build.wait(minutes(4)) != 0) throw std::runtime_error("build-image.sh failed: " + build.output());
  return directory;
}

}  // namespace

GuestNetwork::GuestNetwork(GuestKind kind) {
  connect({host_, "public0", "198.18.0.1/24"}, {client_, "eth0", "198.18.0.2/24"});
  kind == GuestKind::kVeth ? start_veth_guest() : start_virtual_machine();
  if (!guest_process_->wait_for_output(kGuestReadyLine, seconds(60))) {
    throw std::runtime_error("the guest did not start: " + guest_process_->output());
  }
}

void GuestNetwork::start_veth_guest() {
  guest_.emplace();
  connect({host_, kTap, "198.19.0.1/24"}, {*guest_, "eth0", "198.19.0.2/24"});
  guest_->ip("route add default via 198.19.0.1");
  guest_process_ = std::make_unique<Process>(SpawnOptions{.command = {kGuestService}, .network = &*guest_});
}

void GuestNetwork::start_virtual_machine() {
  const std::string image = build_guest_image();
  host_.ip("tuntap add dev tap0 mode tap");
  host_.ip("address add 198.19.0.1/24 dev tap0");
  host_.ip("link set tap0 up");
  guest_process_ = std::make_unique<Process>(SpawnOptions{
      .command = {"qemu-system-x86_64",
                  "-accel",
                  "tcg",
                  "-machine",
                  "q35",
                  "-m",
                  "128",
                  "-nodefaults",
                  "-no-reboot",
                  "-display",
                  "none",
                  "-serial",
                  "stdio",
                  "-kernel",
                  image + "/vmlinuz",
                  "-initrd",
                  image + "/initramfs",
                  "-append",
                  "console=ttyS0 quiet panic=-1 guest_address=198.19.0.2/24 guest_gateway=198.19.0.1",
                  "-netdev",
                  "tap,id=net0,ifname=tap0,script=no,downscript=no",
                  "-device",
                  "virtio-net-pci,netdev=net0,romfile="},
      .network = &host_});
}

}  // namespace portway::test
