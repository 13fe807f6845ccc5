// The worlds that the relay suite runs in: the kernel's loopback device under io_uring or epoll, and the
// simulator.
//
// A world gives the worker its Io and its listeners, and the test the other ends: clients and guests. One
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>

#include "base/endpoint.h"
#include "base/fd.h"
#include "proxy/io.h"
#include "proxy/uring_io.h"
#include "tests/sim/sim_io.h"
#include "tests/sim/sim_network.h"

namespace portway::test {

enum class Backend : std::uint8_t { kUring, kEpoll, kSim };
inline constexpr Backend kBackends[] = {Backend::kUring, Backend::kEpoll, Backend::kSim};
std::string_view to_string(Backend backend);
std::ostream& operator<<(std::ostream& out, Backend backend);

/// A peer's end of a connection. Nothing blocks; failures are -errno. Destroying it closes it.
class PeerSocket {
 public:
  virtual ~PeerSocket() = default;

  virtual std::ptrdiff_t send(std::string_view data, int flags) = 0;
  virtual std::ptrdiff_t recv(std::span<char> out, int flags) = 0;
  virtual void shutdown_write() = 0;
  virtual void close() = 0;
  virtual void close_with_reset() = 0;
  /// Bytes, FIN included, that have not arrived yet (SIOCOUTQ).
  virtual int unacknowledged() = 0;
  /// The other end's address, while it is connected.
  virtual Endpoint remote() = 0;
  /// SO_RCVBUF and SO_SNDBUF, about.
  virtual void set_buffers(std::size_t bytes) = 0;
  /// SO_OOBINLINE.
  virtual void set_urgent_inline() = 0;
  /// Sends an urgent byte that the other end's TCP notes but has no memory to keep, so that it comes again.
  /// There must be unread bytes.
  virtual void send_urgent_that_is_lost(char byte) = 0;
  /// Makes it answer nothing, as if its machine were paused or gone, until it is undone; kernel only.
  virtual void fall_silent() {}
  virtual void answer_again() {}
  /// Closes it without notifying the other end, which gets a reset for its next segment; kernel only.
  /// Needs root.
  virtual void forget() {}
  /// The other end's TCP gives up on this one with an error; simulated only.
  virtual void be_given_up(int) {}
};

/// What a guest does with a connection to it.
enum class GuestAnswer : std::uint8_t {
  kServes,
  kRefuses,      // RST
  kSilent,       // no answer to the SYN
  kUnreachable,  // a router says that there is no such host; simulated only
  kServesNode,   // to clients' own addresses it is silent; simulated only
};

class World {
 public:
  virtual ~World() = default;

  virtual Nanos now() = 0;
  /// Replaces io_uring_enter(2); call it before make_io(). Only for io_uring's world.
  virtual void set_enter(UringEnter) {}
  /// Call it once. Null, with the reason, if this machine cannot.
  virtual std::unique_ptr<Io> make_io(std::string& why_not) = 0;
  /// A listener for the Io, on a free port of `family`'s loopback address, which `endpoint` becomes.
  virtual Fd listen(int family, Endpoint& endpoint) = 0;

  /// A guest's service. It lasts as long as the world.
  virtual Endpoint serve(int family, GuestAnswer answer) = 0;
  /// From now on a service that refused serves, or the other way round.
  virtual void set_serving(const Endpoint& service, bool serving) = 0;
  /// From now on a service answers nothing; simulated only.
  virtual void set_silent(const Endpoint&) {}
  /// From now on a service refuses, or serves, one client; simulated only.
  virtual void set_serving(const Endpoint&, const IpAddress&, bool) {}
  /// The next connection that arrived at a guest's service; null if there is none.
  virtual std::unique_ptr<PeerSocket> accept(const Endpoint& service) = 0;
  /// From an address of the caller's choice, which only the simulator supports.
  virtual std::unique_ptr<PeerSocket> connect(const Endpoint& to,
                                              const std::optional<IpAddress>& from = std::nullopt) = 0;

  /// Open descriptors: of the process, or of the simulated Io.
  virtual std::size_t open_descriptors() = 0;
  /// Null in the kernel's worlds.
  virtual SimIo* sim() { return nullptr; }
  virtual SimRefusals* refusals() { return nullptr; }
};

std::unique_ptr<World> make_world(Backend backend, const SimNetworkOptions& options = {});

}  // namespace portway::test
