// Opens the sockets to guests: sets the device, the source address and port, and the options.
//
// The source port is the client's own if the guest sees the client's address; otherwise the kernel chooses
// one. connect(2) would look through all of the node's ephemeral ports for it, those in TIME_WAIT
// included: 20 ms of the worker's time after 14,000 connections to one guest port within a minute. So it
// gets a few random ports to choose from (IP_LOCAL_PORT_RANGE, Linux 6.3), and a few tries. The same
// option selects the client's own port if that is an ephemeral one: bind(2) would keep the kernel from
// giving the port to any other outgoing connection of the node as long as this one and its TIME_WAIT last.
//
// Belongs to one worker's thread.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "base/endpoint.h"
#include "proxy/connection_options.h"
#include "proxy/dataplane.h"
#include "proxy/io.h"
#include "proxy/served_forward.h"
#include "proxy/stats.h"

namespace portway {

/// How the guest is to see the client at this one of its endpoints; nullopt if it must not see it at all.
std::optional<SourcePlan> first_plan(const ServedForward& forward, const Endpoint& client,
                                     const Endpoint& guest);

class UpstreamOpener {
 public:
  /// A connect(2) that chooses a port looks at no more than this many.
  static constexpr unsigned kPortsAtOnce = 64;
  static constexpr int kTries = 4;

  UpstreamOpener(Io& io, const ConnectionOptions& options);

  struct Target {
    const ServedForward& forward;
    int device = kAnyDevice;  // interface index, kAnyDevice or kNoDevice
    Endpoint client;
    Endpoint guest;
    std::uint8_t dscp = 0;  // shifted left by two; 0: the kernel's
  };
  /// Opens a socket to the client's guest and connects it: 0 if the connection is under way or made, else
  /// the errno of the last attempt. Sets `plan` to the one that was used and `fd` to the socket, also on
  /// an error; -1 if there is none. EADDRNOTAVAIL: no source port is free. EAGAIN, of a Unix socket: its
  /// backlog is full, or others wait for room in it; call connect_again() when it is the first's turn.
  int open(const Target& target, SourcePlan& plan, int& fd);
  int connect_again(int fd, const SocketTarget& target) { return -io_.connect(fd, target); }
  /// Asks Firecracker for the port of a vsock target, on a new connection. 0 or the errno.
  int request_vsock(int fd, const SocketTarget& target);
  /// 0: it has connected the guest. EAGAIN: ask again when there is more to read. Else the errno that says
  /// why not; see take_vsock_answer().
  int take_vsock_answer(int fd, bool ended);
  /// Sends the PROXY header of a client on a new connection; `downstream` is the client's socket. 0, or
  /// the errno if the socket did not take all of it.
  int send_proxy_header(int upstream, const Endpoint& client, int downstream);
  /// For a connect(2) that chooses a port: at most kPortsAtOnce adjacent ports at a random place; {0, 0}
  /// if the kernel may look at all.
  PortRange source_ports();

  /// Limits unsent bytes; worth the call only for a connection that sends the guest this many bytes.
  static constexpr std::uint64_t kMuch = 16 * 1024;
  void limit_unsent(int fd);
  /// For a connection that lasts. The kernel never ends it because the guest is silent: it would count an
  /// answered probe of a closed window as silence too. Nor because keepalive probes stay unanswered: a
  /// paused machine answers none. The probes are there to get the RST of a guest that has forgotten the
  /// connection.
  void set_lasting(int fd);
  /// Call it before closing with bytes that the guest has not acknowledged: nothing else would end the
  /// socket.
  void end_lasting(int fd);

 private:
  int open_once(const Target& target, SourcePlan plan, int& fd);
  int open_unix(const ServedForward& forward, int& fd);
  /// Whether the client has a connection from one of these ports to the same guest port by its own route.
  bool is_routed(const Target& target, PortRange ports) const;
  void set_options(const Target& target, int fd);
  int bind_to_client(int fd, const Endpoint& source);
  int connect(int fd, const Target& target, SourcePlan plan);
  int ask_for_ports(int fd, std::uint16_t first, std::uint16_t last);
  const std::vector<PortRange>& local_ports();

  Io& io_;
  const ConnectionOptions& options_;
  std::vector<PortRange> local_ports_;  // the kernel's settings of a moment ago
  std::uint32_t local_ports_count_ = 0;
  Nanos local_ports_read_at_;
  std::mt19937 random_;
};

}  // namespace portway
