#include "tests/proxy/world.h"

#include <linux/filter.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "proxy/epoll_io.h"
#include "proxy/uring_io.h"

namespace portway::test {
namespace {

IpAddress loopback(int family) {
  if (family == AF_INET6) return boost::asio::ip::address_v6::loopback();
  return boost::asio::ip::address_v4::loopback();
}

/// Of the n-th service of a world: IPv4 has an address for each.
IpAddress service_address(int family, std::size_t n) {
  if (family == AF_INET6) return loopback(family);
  return boost::asio::ip::address_v4(0x7f000001 + static_cast<std::uint32_t>(n));
}

// --- The kernel's.

template <class T>
T check(T result, const char* what) {
  if (result < 0) throw std::system_error(errno, std::generic_category(), what);
  return result;
}

std::ptrdiff_t result_of(std::ptrdiff_t result) {
  return result < 0 ? -errno : result;
}

void enable(int fd, int level, int option, int value = 1) {
  check(::setsockopt(fd, level, option, &value, sizeof value), "setsockopt");
}

Fd stream_socket(int family) {
  return Fd(check(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket"));
}

/// Of one end of a socket: `ask` is getsockname(2) or getpeername(2). Nothing, with errno, if it has no name.
std::optional<Endpoint> name_of(int fd, decltype(&::getsockname) ask) {
  Endpoint endpoint;
  auto size = static_cast<socklen_t>(endpoint.capacity());
  if (ask(fd, endpoint.data(), &size) != 0) return std::nullopt;
  endpoint.resize(size);
  return endpoint;
}

/// A socket bound to a free loopback port, which `endpoint` becomes. Bound to it by number: a port that the
/// kernel chose is lost with shutdown(2).
Fd bound_socket(const IpAddress& address, Endpoint& endpoint) {
  const int family = address.is_v6() ? AF_INET6 : AF_INET;
  // With SO_REUSEADDR the kernel could choose a port that another test has bound but not listening.
  Fd finder = stream_socket(family);
  Fd fd = stream_socket(family);
  const int on = 1;
  check(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
  endpoint = Endpoint(address, 0);
  check(::bind(finder.get(), endpoint.data(), static_cast<socklen_t>(endpoint.size())), "bind");
  const auto name = name_of(finder.get(), ::getsockname);
  check(name ? 0 : -1, "getsockname");
  endpoint = *name;
  finder.reset();
  check(::bind(fd.get(), endpoint.data(), static_cast<socklen_t>(endpoint.size())), "bind");
  return fd;
}

/// Discards every packet for this socket.
void make_silent(int fd) {
  sock_filter drop{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0};
  const sock_fprog program{.len = 1, .filter = &drop};
  check(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), "SO_ATTACH_FILTER");
}

constexpr int kDescriptorsMax = 4096;  // of a test

class KernelPeer final : public PeerSocket {
 public:
  explicit KernelPeer(Fd fd) : fd_(std::move(fd)) { enable(fd_.get(), IPPROTO_TCP, TCP_NODELAY); }

  std::ptrdiff_t send(std::string_view data, int flags) override {
    return result_of(::send(fd_.get(), data.data(), data.size(), flags | MSG_NOSIGNAL));
  }
  std::ptrdiff_t recv(std::span<char> out, int flags) override {
    return result_of(::recv(fd_.get(), out.data(), out.size(), flags));
  }
  void shutdown_write() override { ::shutdown(fd_.get(), SHUT_WR); }
  void close() override { fd_.reset(); }
  void close_with_reset() override {
    const linger reset{.l_onoff = 1, .l_linger = 0};
    check(::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset), "SO_LINGER");
    fd_.reset();
  }
  Endpoint remote() override {
    const auto name = name_of(fd_.get(), ::getpeername);
    check(name ? 0 : -1, "getpeername");
    return *name;
  }
  int unacknowledged() override {
    int bytes = 0;
    check(::ioctl(fd_.get(), SIOCOUTQ, &bytes), "SIOCOUTQ");
    return bytes;
  }
  void set_buffers(std::size_t bytes) override {
    enable(fd_.get(), SOL_SOCKET, SO_RCVBUF, static_cast<int>(bytes));
    enable(fd_.get(), SOL_SOCKET, SO_SNDBUF, static_cast<int>(bytes));
  }
  void set_urgent_inline() override { enable(fd_.get(), SOL_SOCKET, SO_OOBINLINE); }
  void send_urgent_that_is_lost(char byte) override {
    const int other = other_end();
    const int kept = option(other, SO_RCVBUF) / 2;  // the kernel doubles what is set
    enable(other, SOL_SOCKET, SO_RCVBUF, 1);
    check(static_cast<int>(send({&byte, 1}, MSG_OOB)), "the urgent byte");
    enable(other, SOL_SOCKET, SO_RCVBUF, kept);
  }
  void fall_silent() override { make_silent(fd_.get()); }
  void forget() override {
    enable(fd_.get(), IPPROTO_TCP, TCP_REPAIR);
    fd_.reset();
  }
  void answer_again() override { enable(fd_.get(), SOL_SOCKET, SO_DETACH_FILTER); }

 private:
  static int option(int fd, int name) {
    int value = 0;
    socklen_t size = sizeof value;
    check(::getsockopt(fd, SOL_SOCKET, name, &value, &size), "getsockopt");
    return value;
  }

  /// This process's descriptor of the other end.
  int other_end() {
    const auto own = name_of(fd_.get(), ::getsockname);
    check(own ? 0 : -1, "getsockname");
    for (int fd = 0; fd < kDescriptorsMax; ++fd) {
      if (name_of(fd, ::getpeername) == own) return fd;
    }
    throw std::runtime_error("the other end is not of this process");
  }

  Fd fd_;
};

class KernelWorld final : public World {
 public:
  explicit KernelWorld(Backend backend) : backend_(backend) {
    // As main() does: splice(2) has no flag for it.
    ::signal(SIGPIPE, SIG_IGN);
  }

  Nanos now() override {
    timespec time;
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return std::chrono::seconds(time.tv_sec) + Nanos(time.tv_nsec);
  }

  void set_enter(UringEnter enter) override { enter_ = std::move(enter); }
  std::unique_ptr<Io> make_io(std::string& why_not) override {
    auto io = backend_ == Backend::kUring ? make_uring_io(enter_) : make_epoll_io();
    if (io) return std::move(*io);
    why_not = io.error().detail;
    return nullptr;
  }

  Fd listen(int family, Endpoint& endpoint) override {
    Fd fd = bound_socket(loopback(family), endpoint);
    check(::listen(fd.get(), 4096), "listen");
    return fd;
  }

  Endpoint serve(int family, GuestAnswer answer) override {
    Endpoint endpoint;
    Fd fd = bound_socket(service_address(family, services_.size()), endpoint);
    if (answer == GuestAnswer::kSilent) make_silent(fd.get());
    if (answer != GuestAnswer::kRefuses) check(::listen(fd.get(), 4096), "listen");
    services_.emplace(endpoint, std::move(fd));
    return endpoint;
  }

  void set_serving(const Endpoint& service, bool serving) override {
    const int fd = services_.at(service).get();
    check(serving ? ::listen(fd, 4096) : ::shutdown(fd, SHUT_RD), "listen");
  }

  std::unique_ptr<PeerSocket> accept(const Endpoint& service) override {
    Fd fd(::accept4(services_.at(service).get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    return fd ? std::make_unique<KernelPeer>(std::move(fd)) : nullptr;
  }

  std::unique_ptr<PeerSocket> connect(const Endpoint& to, const std::optional<IpAddress>&) override {
    Fd fd = stream_socket(to.protocol().family());
    const int result = ::connect(fd.get(), to.data(), static_cast<socklen_t>(to.size()));
    if (result < 0 && errno != EINPROGRESS) check(result, "connect");
    return std::make_unique<KernelPeer>(std::move(fd));
  }

  std::size_t open_descriptors() override {
    // The iterator's own descriptor is there each time.
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                                                  std::filesystem::directory_iterator{}));
  }

 private:
  const Backend backend_;
  UringEnter enter_ = enter_uring;
  std::map<Endpoint, Fd> services_;
};

// --- The simulator's.

class SimPeer final : public PeerSocket {
 public:
  explicit SimPeer(SimSocket& socket) : socket_(&socket) {}
  ~SimPeer() override { close(); }

  std::ptrdiff_t send(std::string_view data, int flags) override { return socket_->send(data, flags); }
  std::ptrdiff_t recv(std::span<char> out, int flags) override { return socket_->recv(out, flags); }
  void shutdown_write() override { socket_->shutdown(SHUT_WR); }
  void close() override {
    if (SimSocket* socket = std::exchange(socket_, nullptr)) socket->close();
  }
  void close_with_reset() override { std::exchange(socket_, nullptr)->close_with_reset(); }
  Endpoint remote() override { return socket_->remote(); }
  int unacknowledged() override { return socket_->unacknowledged(); }
  void set_buffers(std::size_t bytes) override {
    socket_->set_receive_buffer(bytes);
    socket_->set_send_buffer(bytes);
  }
  void set_urgent_inline() override { socket_->set_urgent_inline(true); }
  void send_urgent_that_is_lost(char byte) override {
    socket_->lose_urgent();
    check(static_cast<int>(socket_->send({&byte, 1}, MSG_OOB)), "the urgent byte");
  }
  void be_given_up(int error) override { socket_->peer()->give_up(error); }

 private:
  SimSocket* socket_;
};

class SimWorld final : public World {
 public:
  explicit SimWorld(const SimNetworkOptions& options) : network_(options) {}

  Nanos now() override { return network_.now(); }
  std::unique_ptr<Io> make_io(std::string&) override {
    auto io = std::make_unique<SimIo>(network_);
    io_ = io.get();
    return io;
  }
  Fd listen(int family, Endpoint& endpoint) override {
    endpoint = Endpoint(loopback(family), next_port_++);
    return Fd(io_->listen(endpoint));
  }
  Endpoint serve(int family, GuestAnswer answer) override {
    const Endpoint endpoint(service_address(family, services_.size()), next_port_++);
    services_[endpoint] = &network_.listen(endpoint);
    if (answer == GuestAnswer::kRefuses) network_.set_answer(endpoint, ECONNREFUSED);
    if (answer == GuestAnswer::kSilent) network_.set_answer(endpoint, SimNetwork::kSilent);
    if (answer == GuestAnswer::kServesNode) network_.set_answer(endpoint, SimNetwork::kSilentToOthers);
    if (answer == GuestAnswer::kUnreachable) network_.set_answer(endpoint, EHOSTUNREACH);
    return endpoint;
  }
  void set_serving(const Endpoint& service, bool serving) override {
    network_.set_answer(service, serving ? SimNetwork::kAnswer : ECONNREFUSED);
  }
  void set_serving(const Endpoint& service, const IpAddress& client, bool serving) override {
    network_.set_answer_to(service, client, serving ? SimNetwork::kAnswer : ECONNREFUSED);
  }
  void set_silent(const Endpoint& service) override { network_.set_answer(service, SimNetwork::kSilent); }
  std::unique_ptr<PeerSocket> accept(const Endpoint& service) override {
    SimSocket* socket = services_.at(service)->accept();
    return socket != nullptr ? std::make_unique<SimPeer>(*socket) : nullptr;
  }
  std::unique_ptr<PeerSocket> connect(const Endpoint& to, const std::optional<IpAddress>& from) override {
    SimSocket& socket = network_.socket();
    if (from) socket.set_source({*from, next_client_port_++});
    socket.connect(to);
    return std::make_unique<SimPeer>(socket);
  }
  std::size_t open_descriptors() override { return io_->open_sockets() + io_->open_pipe_ends(); }
  SimIo* sim() override { return io_; }
  SimRefusals* refusals() override { return &network_.refusals(); }

 private:
  SimNetwork network_;
  SimIo* io_ = nullptr;
  std::map<Endpoint, SimListener*> services_;
  std::uint16_t next_port_ = 20000;
  std::uint16_t next_client_port_ = 30000;
};

}  // namespace

std::string_view to_string(Backend backend) {
  switch (backend) {
    case Backend::kUring:
      return "uring";
    case Backend::kEpoll:
      return "epoll";
    case Backend::kSim:
      return "sim";
  }
  return "?";
}

std::ostream& operator<<(std::ostream& out, Backend backend) {
  return out << to_string(backend);
}

std::unique_ptr<World> make_world(Backend backend, const SimNetworkOptions& options) {
  if (backend == Backend::kSim) return std::make_unique<SimWorld>(options);
  return std::make_unique<KernelWorld>(backend);
}

}  // namespace portway::test
