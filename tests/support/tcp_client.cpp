#include "tests/support/tcp_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "tests/support/pattern.h"
#include "tests/support/sha256.h"

namespace portway::test {
namespace {

constexpr timeval kTimeout{30, 0};
constexpr std::size_t kBufferSize = 256 * 1024;

[[noreturn]] void fail(int error, const char* what) {
  throw std::system_error(error, std::generic_category(), what);
}

/// Calls take_chunk with the first `bytes` of Pattern(1), piece by piece.
template <class TakeChunk>
void for_pattern(std::uint64_t bytes, TakeChunk take_chunk) {
  Pattern pattern;
  std::vector<char> buffer(kBufferSize);
  while (bytes > 0) {
    const auto chunk = std::span(buffer).first(std::min<std::uint64_t>(bytes, buffer.size()));
    pattern.fill(chunk);
    take_chunk(chunk);
    bytes -= chunk.size();
  }
}

}  // namespace

TcpClient::TcpClient(const NetworkNamespace& network, const std::string& address, std::uint16_t port,
                     const TcpClientOptions& options) {
  const Endpoint to(parse_address(address).value(), port);
  const bool v6 = to.address().is_v6();
  network.run([&] {
    fd_.reset(socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd_) fail(errno, "socket");
  });
  if (options.source_port != 0) {
    const Endpoint from(v6 ? IpAddress(boost::asio::ip::address_v6()) : boost::asio::ip::address_v4(),
                        options.source_port);
    if (bind(fd_.get(), from.data(), static_cast<socklen_t>(from.size())) != 0) fail(errno, "bind");
  }
  if (options.dscp != 0) {
    setsockopt(fd_.get(), v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_TCLASS : IP_TOS, &options.dscp,
               sizeof options.dscp);
  }
  setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &kTimeout, sizeof kTimeout);
  setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &kTimeout, sizeof kTimeout);
  const int on = 1;
  setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (::connect(fd_.get(), to.data(), static_cast<socklen_t>(to.size())) != 0) {
    connect_error_ = errno == EINPROGRESS ? ETIMEDOUT : errno;  // EINPROGRESS: SO_SNDTIMEO has passed
  }
  // It was connected, and reset before connect(2) had returned.
  was_reset_ = connect_error_ == ECONNRESET;
  if (was_reset_) connect_error_ = 0;
}

Endpoint TcpClient::local() const {
  Endpoint endpoint;
  auto size = static_cast<socklen_t>(endpoint.capacity());
  if (getsockname(fd_.get(), endpoint.data(), &size) != 0) fail(errno, "getsockname");
  endpoint.resize(size);
  return endpoint;
}

void TcpClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0) fail(errno == EAGAIN ? ETIMEDOUT : errno, "send");
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
}

std::string TcpClient::send_pattern(std::uint64_t bytes) {
  Sha256 digest;
  for_pattern(bytes, [&](std::span<const char> chunk) {
    digest.add(chunk);
    send({chunk.data(), chunk.size()});
  });
  return digest.hex();
}

void TcpClient::finish() {
  if (shutdown(fd_.get(), SHUT_WR) != 0) fail(errno, "shutdown");
}

void TcpClient::reset() {
  const linger reset{1, 0};
  setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  fd_.reset();
}

std::ptrdiff_t TcpClient::receive_some(char* buffer, std::size_t size) {
  if (was_reset_) return -ECONNRESET;
  const ssize_t received = recv(fd_.get(), buffer, size, 0);
  if (received >= 0) return received;
  return errno == EAGAIN ? -ETIMEDOUT : -errno;
}

std::string TcpClient::receive(std::size_t size) {
  std::string bytes(size, '\0');
  std::size_t filled = 0;
  while (filled < size) {
    const std::ptrdiff_t received = receive_some(bytes.data() + filled, size - filled);
    if (received <= 0) fail(received == 0 ? ENODATA : static_cast<int>(-received), "receive");
    filled += static_cast<std::size_t>(received);
  }
  return bytes;
}

Received TcpClient::receive_to_end() {
  Received result;
  std::vector<char> buffer(kBufferSize);
  std::ptrdiff_t received;
  while ((received = receive_some(buffer.data(), buffer.size())) > 0) {
    result.bytes.append(buffer.data(), static_cast<std::size_t>(received));
  }
  result.error = static_cast<int>(-received);
  return result;
}

ReceivedDigest TcpClient::receive_digest_to_end() {
  ReceivedDigest result;
  Sha256 digest;
  std::vector<char> buffer(kBufferSize);
  std::ptrdiff_t received;
  while ((received = receive_some(buffer.data(), buffer.size())) > 0) {
    digest.add(std::span(buffer).first(static_cast<std::size_t>(received)));
    result.bytes += static_cast<std::uint64_t>(received);
  }
  result.sha256 = digest.hex();
  result.error = static_cast<int>(-received);
  return result;
}

std::string pattern_sha256(std::uint64_t bytes) {
  Sha256 digest;
  for_pattern(bytes, [&](std::span<const char> chunk) { digest.add(chunk); });
  return digest.hex();
}

}  // namespace portway::test
