// A machine's end of a tap, for tests that need a carrier to come and go: while the descriptor is open, the
// tap has one. `NetworkNamespace::ip("tuntap add dev NAME mode tap")` makes one that outlives its machines.
#pragma once

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "base/fd.h"
#include "tests/support/network.h"

namespace portway::test {

inline Fd hold_tap(const NetworkNamespace& network, const std::string& name) {
  Fd tap;
  network.run([&] {
    tap.reset(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    ifreq request{};
    name.copy(request.ifr_name, sizeof request.ifr_name - 1);
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    if (!tap || ::ioctl(tap.get(), TUNSETIFF, &request) != 0) {
      throw std::system_error(errno, std::generic_category(), "tap " + name);
    }
  });
  return tap;
}

}  // namespace portway::test
