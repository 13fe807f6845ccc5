#include "tests/e2e/guest_network.h"

#include <csignal>
#include <stdexcept>

#include "tests/support/guest_ports.h"

namespace portway::test {
namespace {

using std::chrono::minutes;

const std::string kGuestDirectory = PORTWAY_SOURCE_DIRECTORY "/tests/e2e/guest";
constexpr const char* kGuestService = PORTWAY_GUEST_SERVICE;

/// Makes the virtual machine's kernel and initramfs, and returns their directory.
std::string build_guest_image() {
  std::string directory = PORTWAY_BUILD_DIRECTORY "/guest_image";
  Process build({.command = {kGuestDirectory + "/build-image.sh", kGuestService, directory}});
  if (build.wait(minutes(4)) != 0) throw std::runtime_error("build-image.sh failed: " + build.output());
  return directory;
}

/// At once, without duplicate address detection.
void add_address6(const NetworkNamespace& network, const std::string& address, const std::string& link) {
  network.ip("-6 address add " + address + " dev " + link + " nodad");
}

}  // namespace

GuestNetwork::GuestNetwork(GuestKind kind) : kind_(kind) {
  // With it, a link that a test takes down and up again keeps its IPv6 addresses, as it does the others.
  host_.set("net/ipv6/conf/all/keep_addr_on_down", "1");
  connect({host_, "public0", "198.18.0.1/24"}, {client_, "eth0", "198.18.0.2/24"});
  add_address6(host_, "fd00:18::1/64", "public0");
  add_address6(client_, "fd00:18::2/64", "eth0");
  const std::string silent(kSilentTap);
  host_.ip("link add " + silent + " type veth peer name silent1");
  host_.ip("link set silent1 up");
  host_.ip("link set " + silent + " up");
  host_.ip("neighbor add " + std::string(kSilentAddress) + " lladdr 02:00:00:00:00:77 dev " + silent);
  host_.ip("route add " + std::string(kSilentAddress) + " dev " + silent);
  kind == GuestKind::kVeth ? start_veth_guest() : start_virtual_machine();
  if (!guest_process_->wait_for_output(kGuestReadyLine, minutes(2))) {
    throw std::runtime_error("the guest did not start: " + guest_process_->output());
  }
}

void GuestNetwork::pause_guest() {
  guest_process_->signal(SIGSTOP);
}

void GuestNetwork::resume_guest() {
  guest_process_->signal(SIGCONT);
}

void GuestNetwork::kill_guest() {
  if (kind_ == GuestKind::kVirtualMachine) {
    guest_process_->signal(SIGKILL);
  } else {
    guest_->ip("link set eth0 down");
  }
}

void GuestNetwork::start_veth_guest() {
  guest_.emplace();
  connect({host_, kTap, "198.19.0.1/24"}, {*guest_, "eth0", "198.19.0.2/24"});
  guest_->ip("route add default via 198.19.0.1");
  add_address6(host_, "fd00:19::1/64", kTap);
  add_address6(*guest_, "fd00:19::2/64", "eth0");
  guest_->ip("-6 route add default via fd00:19::1");
  guest_process_ = std::make_unique<Process>(SpawnOptions{.command = {kGuestService}, .network = &*guest_});
}

std::unique_ptr<Process> boot_machine(const NetworkNamespace& network, const MachineOptions& options) {
  static const std::string image = build_guest_image();  // once: a machine may be reading it
  return std::make_unique<Process>(
      SpawnOptions{.command = {kGuestDirectory + "/boot.sh", image, options.tap, options.address,
                               options.gateway, options.name, options.address6, options.gateway6},
                   .network = &network});
}

void GuestNetwork::start_virtual_machine() {
  host_.ip("tuntap add dev tap0 mode tap");
  host_.ip("address add 198.19.0.1/24 dev tap0");
  add_address6(host_, "fd00:19::1/64", kTap);
  host_.ip("link set tap0 up");
  guest_process_ = boot_machine(host_, {});
}

}  // namespace portway::test
