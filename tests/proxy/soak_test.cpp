// A hundred thousand short connections that end in every way: nothing may be left of them, neither in this
// process nor in the kernel.
//
// PORTWAY_SEED=N and PORTWAY_CONNECTIONS=N change the seed and their number.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <list>
#include <random>
#include <string>

#include "tests/proxy/relay_suite.h"
#include "tests/support/network.h"

namespace portway::test {
namespace {

class RelaySoak : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Relay, RelaySoak, testing::Values(Backend::kUring, Backend::kEpoll), backend_name);

constexpr std::size_t kAtOnce = 12;  // about as many as are accepted in two turns

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* value = std::getenv(variable);
  return value != nullptr ? std::strtoull(value, nullptr, 10) : otherwise;
}

/// Sockets of this thread's network namespace that the kernel holds, whether or not anybody has a descriptor
/// of them.
std::uint64_t kernel_sockets() {
  std::ifstream file("/proc/thread-self/net/sockstat");
  std::string sockets;
  std::string used;
  std::uint64_t count = 0;
  file >> sockets >> used >> count;
  EXPECT_EQ(sockets + used, "sockets:used");
  return count;
}

class Soak {
 public:
  Soak(Backend backend, std::uint64_t seed) : random_(seed), rig_(backend) {}

  void run(std::uint64_t connections) {
    std::uint64_t started = 0;
    const Nanos deadline = rig_.world().now() + 500s;
    while (started < connections || !ends_.empty()) {
      ASSERT_LT(rig_.world().now(), deadline)
          << ends_.size() << " peers are left of " << started << " connections";
      for (; started < connections && ends_.size() < 2 * kAtOnce; ++started) add(rig_.connect(), 12);
      rig_.turn();
      while (Peer* guest = rig_.try_accept()) add(*guest, 3);
      ends_.remove_if([this](End& end) { return step(end); });
    }
    EXPECT_TRUE(rig_.run_until([this] { return rig_.stats().connections_active == 0; }));
    const ForwardStats stats = rig_.stats();
    // A client that resets before it is looked at has no address any more on io_uring, whose accept returns
    // none.
    const std::uint64_t gone = stats.rejected[static_cast<std::size_t>(RejectReason::kClientGone)];
    EXPECT_EQ(stats.connections_accepted + gone, connections);
    EXPECT_LT(gone, connections / 10);
    EXPECT_GT(rig_.closed(CloseSide::kClient, CloseHow::kReset), connections / 20);
    EXPECT_GT(rig_.closed(CloseSide::kGuest, CloseHow::kReset), connections / 20);
    EXPECT_GT(rig_.closed(CloseSide::kClient, CloseHow::kFin), connections / 20);
    EXPECT_GT(rig_.closed(CloseSide::kGuest, CloseHow::kFin), connections / 20);
  }

 private:
  struct End {
    Peer& peer;
    std::uint64_t turns_left;
  };

  std::uint64_t pick(std::uint64_t count) { return random_() % count; }

  void add(Peer& peer, std::uint64_t turns_max) {
    if (pick(4) > 0) peer.send(std::string(1 + pick(pick(50) == 0 ? 300'000 : 2000), 'x'));
    ends_.push_back({peer, 1 + pick(turns_max)});
  }

  /// True if this end is done.
  bool step(End& end) {
    if (end.peer.ended()) {
      rig_.drop(end.peer);
      return true;
    }
    if (end.turns_left == 0) return false;  // it waits for the other side's end
    if (--end.turns_left > 0) return false;
    const std::uint64_t how = pick(8);
    if (how < 2) {
      end.peer.reset();
    } else if (how < 3) {
      end.peer.close();
    } else {
      end.peer.shutdown_write();
    }
    return false;
  }

  std::mt19937_64 random_;
  Rig rig_;
  std::list<End> ends_;
};

void soak(Backend backend) {
  const std::uint64_t sockets_before = kernel_sockets();
  Soak(backend, number_from("PORTWAY_SEED", 1)).run(number_from("PORTWAY_CONNECTIONS", 100'000));
  // The last ones are still closing.
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (kernel_sockets() > sockets_before && std::chrono::steady_clock::now() < deadline) {
  }
  EXPECT_LE(kernel_sockets(), sockets_before) << "sockets that no descriptor leads to";
}

TEST_P(RelaySoak, AHundredThousandConnectionsThatEndInEveryWayLeaveNothing) {
  PORTWAY_NEEDS(why_no_namespaces());
  // A network of its own, where nobody else opens sockets.
  NetworkNamespace network;
  network.run([] { soak(GetParam()); });
}

}  // namespace
}  // namespace portway::test
