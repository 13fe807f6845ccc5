#include "bench/compare/tap_bridge.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <thread>

namespace portway::bench {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

int open_tap(const std::string& name) {
  const int fd = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  if (fd < 0) fail("/dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  if (::ioctl(fd, TUNSETIFF, &request) < 0) fail("TUNSETIFF " + name);
  if (::ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0) fail("TUNSETOFFLOAD " + name);
  return fd;
}

void carry(int from, int to) {
  std::array<char, 66'000> frame;  // a TSO frame of 64 KiB, its Ethernet header, its virtio header
  for (;;) {
    const auto size = ::read(from, frame.data(), frame.size());
    if (size < 0 && errno != EINTR) return;
    // A frame that the other side does not take (it is down, its queue is full) is lost, as on a wire.
    if (size > 0) (void)!::write(to, frame.data(), static_cast<std::size_t>(size));
  }
}

}  // namespace

void bridge_taps(const TapBridgeOptions& options) {
  const int here = open_tap(options.device);
  const int there = ::open(options.guest_namespace.c_str(), O_RDONLY | O_CLOEXEC);
  if (there < 0 || ::setns(there, CLONE_NEWNET) < 0) fail(options.guest_namespace);
  const int guest = open_tap(options.guest_device);
  std::puts("ready");
  std::fflush(stdout);
  std::thread outward([=] { carry(guest, here); });
  carry(here, guest);
  outward.join();
  fail("reading a tap");
}

}  // namespace portway::bench
