#include "proxy/upstream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/random.h"
#include "network/local_port_range.h"
#include "network/proxy_header.h"
#include "network/routed_connections.h"
#include "network/source_plan.h"
#include "network/vsock_handshake.h"

namespace portway {
namespace {

constexpr Nanos kLocalPortsReadEvery = std::chrono::seconds(2);  // settings can change at any time

constexpr std::uint32_t kSearchAll = 1024;  // the kernel searches so few ports quickly

// As long as conntrack keeps an established connection (nf_conntrack_tcp_timeout_established).
constexpr std::chrono::milliseconds kLasting = std::chrono::hours(5 * 24);
constexpr int kKeepaliveProbes = 127;  // the maximum of TCP_KEEPCNT

}  // namespace

std::optional<SourcePlan> first_plan(const ServedForward& forward, const Endpoint& client,
                                     const Endpoint& guest) {
  const ForwardSource wanted = forward.source_to(guest);
  if (wanted.plan == SourcePlan::kNoReturnPath && wanted.required) return std::nullopt;
  if (wanted.plan != SourcePlan::kTransparent) return wanted.plan;
  const auto plan = plan_source(client, guest);
  if (plan == SourcePlan::kFamily && wanted.required) return std::nullopt;
  return plan;
}

UpstreamOpener::UpstreamOpener(Io& io, const ConnectionOptions& options)
    : io_(io),
      options_(options),
      local_ports_read_at_(io.now() - kLocalPortsReadEvery),
      random_(random_below(UINT32_MAX)) {}

int UpstreamOpener::open(const Target& target, SourcePlan& plan, int& fd) {
  if (target.forward.route.socket) return open_unix(target.forward, fd);
  const std::uint16_t port = target.client.port();
  if (plan == SourcePlan::kTransparent && is_routed(target, {port, port})) plan = SourcePlan::kPortInUse;
  for (;;) {
    const int result = open_once(target, plan, fd);
    if (result == 0 || result == -EINPROGRESS) return 0;
    const auto next = plan_after_failure(plan, -result);
    if (!next) return -result;
    plan = *next;
    if (fd >= 0) io_.close(fd);
  }
}

int UpstreamOpener::open_once(const Target& target, SourcePlan plan, int& fd) {
  const Endpoint guest = on_link(target.guest, target.device);
  fd = -1;
  if (target.device == kNoDevice) return -ENODEV;
  const auto netns = target.forward.session->netns.get();
  if (!netns) return -ENODEV;
  fd = io_.socket(guest.address().is_v6() ? AF_INET6 : AF_INET, *netns);
  if (fd < 0) {
    const int result = fd;
    fd = -1;
    return result;
  }
  if (*netns) io_.set_reset_at_end(fd, true);
  set_options(target, fd);
  if (target.device != kAnyDevice) {
    // Otherwise packets for a guest whose tap is gone would leave by the default route.
    if (const int result = io_.bind_to_device(fd, target.device); result < 0) return result;
  }
  if (!is_transparent(plan)) return connect(fd, target, plan);
  const Endpoint source = source_endpoint(target.client, plan);
  if (const int result = bind_to_client(fd, source); result < 0) return result;
  if (source.port() == 0) return connect(fd, target, plan);
  const int result = io_.connect(fd, guest);
  // A socket is already bound to this port, at some address, so bind(2) takes it from nobody.
  if (result == -EADDRNOTAVAIL && io_.bind_transparent(fd, source) == 0) return io_.connect(fd, guest);
  return result;
}

int UpstreamOpener::open_unix(const ServedForward& forward, int& fd) {
  fd = io_.socket(AF_UNIX, nullptr);
  if (fd < 0) {
    const int error = -fd;
    fd = -1;
    return error;
  }
  return forward.backlog->empty() ? -io_.connect(fd, *forward.route.socket) : EAGAIN;
}

int UpstreamOpener::request_vsock(int fd, const SocketTarget& target) {
  const std::string request = vsock_request(target.port);
  const std::ptrdiff_t sent = io_.send(fd, request.data(), request.size(), MSG_NOSIGNAL);
  if (sent < 0) return static_cast<int>(-sent);
  return sent == static_cast<std::ptrdiff_t>(request.size()) ? 0 : ENOBUFS;
}

int UpstreamOpener::take_vsock_answer(int fd, bool ended) {
  const auto receive = [&](void* buffer, std::size_t size, int flags) {
    return io_.recv(fd, buffer, size, flags);
  };
  return -portway::take_vsock_answer(receive, ended);
}

bool UpstreamOpener::is_routed(const Target& target, PortRange ports) const {
  if (options_.routed == nullptr || target.device <= 0) return false;
  const std::uint32_t space = target.forward.session->space.load(std::memory_order_relaxed);
  const Nanos now = io_.now();
  for (unsigned port = ports.first; port <= ports.last; ++port) {
    const Endpoint client(target.client.address(), static_cast<std::uint16_t>(port));
    if (options_.routed->contain(target.device, client, target.guest.port(), now, space)) return true;
  }
  return false;
}

void UpstreamOpener::set_options(const Target& target, int fd) {
  io_.set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (options_.config.guest_receive_buffer > 0) {
    io_.set_option(fd, SOL_SOCKET, SO_RCVBUF, static_cast<int>(options_.config.guest_receive_buffer));
  }
  if (target.dscp != 0) {
    const bool v6 = target.guest.address().is_v6();
    io_.set_option(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_TCLASS : IP_TOS, target.dscp);
  }
}

/// The socket is new and empty: if it does not take the whole header, memory is short.
int UpstreamOpener::send_proxy_header(int upstream, const Endpoint& client, int downstream) {
  Endpoint destination;
  if (const int result = io_.local_endpoint(downstream, destination); result < 0) return -result;
  const ProxyHeader header = proxy_header(client, destination);
  const std::ptrdiff_t sent = io_.send(upstream, header.bytes.data(), header.size, MSG_NOSIGNAL);
  if (sent < 0) return static_cast<int>(-sent);
  return sent == static_cast<std::ptrdiff_t>(header.size) ? 0 : ENOBUFS;
}

void UpstreamOpener::limit_unsent(int fd) {
  if (options_.config.unsent_max > 0)
    io_.set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, static_cast<int>(options_.config.unsent_max));
}

void UpstreamOpener::set_lasting(int fd) {
  if (options_.config.keepalive.count() > 0) {
    io_.set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    io_.set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, static_cast<int>(options_.config.keepalive.count()));
  }
  if (options_.config.user_timeout.count() > 0) {
    io_.set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(kLasting.count()));
  } else if (options_.config.keepalive.count() > 0) {
    // Without TCP_USER_TIMEOUT the kernel counts unanswered probes.
    const auto between = std::chrono::duration_cast<std::chrono::seconds>(kLasting) / kKeepaliveProbes;
    io_.set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, static_cast<int>(between.count()));
    io_.set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes);
  }
}

void UpstreamOpener::end_lasting(int fd) {
  const std::chrono::milliseconds timeout = options_.config.user_timeout;
  io_.set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(timeout.count()));
}

/// The client's address, and its port unless that is 0.
int UpstreamOpener::bind_to_client(int fd, const Endpoint& source) {
  const std::uint16_t port = source.port();
  const auto has_port = [port](const PortRange& range) { return range.contains(port); };
  if (port != 0 && std::ranges::any_of(local_ports(), has_port) && ask_for_ports(fd, port, port) == 0) {
    return io_.bind_transparent(fd, {source.address(), 0});
  }
  return io_.bind_transparent(fd, source);
}

/// The kernel chooses the source port.
int UpstreamOpener::connect(int fd, const Target& target, SourcePlan plan) {
  int result = -EADDRNOTAVAIL;
  for (int tries = 0; tries < kTries && result == -EADDRNOTAVAIL; ++tries) {
    const PortRange ports = source_ports();
    if (is_transparent(plan) && tries < kTries - 1 && is_routed(target, ports)) continue;
    const bool bounded = ports.first != 0 && ask_for_ports(fd, ports.first, ports.last) == 0;
    result = io_.connect(fd, on_link(target.guest, target.device));
    if (!bounded) break;  // the kernel has looked at all ports; older kernels always do
  }
  return result;
}

PortRange UpstreamOpener::source_ports() {
  if (local_ports(); local_ports_count_ <= kSearchAll) return {};
  std::uint32_t offset = std::uniform_int_distribution<std::uint32_t>(0, local_ports_count_ - 1)(random_);
  auto range = local_ports_.begin();
  for (; offset >= range->size(); ++range) offset -= range->size();
  const auto first = static_cast<std::uint16_t>(range->first + offset);
  const std::uint32_t size = std::min<std::uint32_t>(kPortsAtOnce, range->last - first + 1U);
  return {first, static_cast<std::uint16_t>(first + size - 1)};
}

int UpstreamOpener::ask_for_ports(int fd, std::uint16_t first, std::uint16_t last) {
  return io_.set_option(fd, IPPROTO_IP, kLocalPortRange, static_cast<int>(local_port_range({first, last})));
}

const std::vector<PortRange>& UpstreamOpener::local_ports() {
  const Nanos now = io_.now();
  if (now - local_ports_read_at_ >= kLocalPortsReadEvery) {
    local_ports_read_at_ = now;
    local_ports_ = io_.local_ports();
    local_ports_count_ = 0;
    for (const PortRange& range : local_ports_) local_ports_count_ += range.size();
  }
  return local_ports_;
}

}  // namespace portway
