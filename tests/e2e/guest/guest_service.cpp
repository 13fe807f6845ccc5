// What runs in the guest: a handful of TCP services, each on its port (tests/support/guest_ports.h). One
// program for both kinds of guest, a network namespace and a virtual machine; there it runs as the only
// process beside init, so it is linked statically. One thread per connection, blocking calls; every input
// is bounded.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/support/guest_ports.h"
#include "tests/support/pattern.h"
#include "tests/support/sha256.h"

namespace portway::test {
namespace {

using Buffer = std::array<char, 65536>;

bool send_all(int fd, std::span<const char> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), 0);
    if (sent <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
  return true;
}

/// What arrived up to and including `end`; nullopt if the client ends before that or sends more than 4
/// KiB.
std::optional<std::string> receive_until(int fd, std::string_view end) {
  std::string text;
  char byte;
  while (text.size() < 4096 && recv(fd, &byte, 1, 0) == 1) {
    text += byte;
    if (text.ends_with(end)) return text;
  }
  return std::nullopt;
}

void drain(int fd) {
  Buffer buffer;
  while (recv(fd, buffer.data(), buffer.size(), 0) > 0) {
  }
}

bool send_pattern(int fd, std::uint64_t bytes) {
  Buffer buffer;
  Pattern pattern;
  while (bytes > 0) {
    const std::size_t size = bytes < buffer.size() ? static_cast<std::size_t>(bytes) : buffer.size();
    pattern.fill(std::span(buffer).first(size));
    if (!send_all(fd, std::span(buffer).first(size))) return false;
    bytes -= size;
  }
  return true;
}

void serve_http(int fd) {
  if (!receive_until(fd, "\r\n\r\n")) return;
  utsname self{};
  uname(&self);
  const std::string body = "Hello from " + std::string(self.nodename) + ", Linux " + self.release + "\n";
  send_all(fd, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: " +
                   std::to_string(body.size()) + "\r\n\r\n" + body);
  shutdown(fd, SHUT_WR);
  drain(fd);
}

void serve_echo(int fd) {
  Buffer buffer;
  for (ssize_t size; (size = recv(fd, buffer.data(), buffer.size(), 0)) > 0;) {
    if (!send_all(fd, std::span(buffer).first(static_cast<std::size_t>(size)))) return;
  }
}

void serve_digest(int fd) {
  Buffer buffer;
  Sha256 digest;
  std::uint64_t bytes = 0;
  ssize_t size;
  while ((size = recv(fd, buffer.data(), buffer.size(), 0)) > 0) {
    digest.add(std::span(buffer).first(static_cast<std::size_t>(size)));
    bytes += static_cast<std::uint64_t>(size);
  }
  if (size == 0) send_all(fd, std::to_string(bytes) + " " + digest.hex() + "\n");
}

void serve_source(int fd) {
  const auto line = receive_until(fd, "\n");
  if (!line || !send_pattern(fd, std::strtoull(line->c_str(), nullptr, 10))) return;
  shutdown(fd, SHUT_WR);
  drain(fd);
}

void serve_reset(int fd) {
  const auto line = receive_until(fd, "\n");
  if (!line || !send_pattern(fd, std::strtoull(line->c_str(), nullptr, 10))) return;
  // A reset discards what was not acknowledged; the tests need it after all of the bytes.
  int unacknowledged = 0;
  while (ioctl(fd, TIOCOUTQ, &unacknowledged) == 0 && unacknowledged > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // no event reports acknowledgements
  }
  const linger reset{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
}

/// The client as its SYN showed it: address, port, DSCP shifted left by two.
void serve_who(int fd) {
  sockaddr_in6 peer{};
  socklen_t size = sizeof peer;
  getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size);
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (peer.sin6_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(&peer)->sin_addr, text.data(), text.size());
  } else if (IN6_IS_ADDR_V4MAPPED(&peer.sin6_addr)) {
    inet_ntop(AF_INET, &peer.sin6_addr.s6_addr[12], text.data(), text.size());
  } else {
    inet_ntop(AF_INET6, &peer.sin6_addr, text.data(), text.size());
  }
  std::array<unsigned char, 256> syn{};
  socklen_t syn_size = syn.size();
  getsockopt(fd, IPPROTO_TCP, TCP_SAVED_SYN, syn.data(), &syn_size);
  const int dscp = (syn[0] >> 4 == 4 ? syn[1] : syn[0] << 4 | syn[1] >> 4) & 0xfc;
  send_all(fd, std::string(text.data()) + " " + std::to_string(ntohs(peer.sin6_port)) + " " +
                   std::to_string(dscp) + "\n");
  shutdown(fd, SHUT_WR);
  drain(fd);
}

int listen_on(std::uint16_t port);
void accept_for_ever(int listener, void (*serve)(int));

/// "open\n": kClosedPort has an echo service from now on. "close\n": it has none.
void serve_switch(int fd) {
  static int listener = -1;
  static std::thread acceptor;
  const auto line = receive_until(fd, "\n");
  if (line == "open\n" && listener < 0) {
    listener = listen_on(kClosedPort);
    acceptor = std::thread(accept_for_ever, listener, serve_echo);
  } else if (line == "close\n" && listener >= 0) {
    shutdown(listener, SHUT_RD);
    acceptor.join();
    close(listener);
    listener = -1;
  }
  send_all(fd, std::string_view("done\n"));
}

struct Service {
  std::uint16_t port;
  void (*serve)(int fd);
};
constexpr Service kServices[] = {{kHttpPort, serve_http},     {kEchoPort, serve_echo},
                                 {kDigestPort, serve_digest}, {kSourcePort, serve_source},
                                 {kResetPort, serve_reset},   {kWhoPort, serve_who},
                                 {kSwitchPort, serve_switch}};

int listen_on(std::uint16_t port) {
  const int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  const int off = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  setsockopt(fd, IPPROTO_TCP, TCP_SAVE_SYN, &on, sizeof on);
  sockaddr_in6 address{};  // any, IPv4 too
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(port);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(fd, 1024) != 0) {
    std::perror(("guest_service: port " + std::to_string(port)).c_str());
    std::exit(1);
  }
  return fd;
}

void accept_for_ever(int listener, void (*serve)(int)) {
  for (;;) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0 && errno == EINVAL) return;  // nobody listens any more
    if (fd < 0) continue;
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    std::thread([fd, serve] {
      serve(fd);
      close(fd);
    }).detach();
  }
}

}  // namespace
}  // namespace portway::test

int main() {
  using namespace portway::test;
  std::signal(SIGPIPE, SIG_IGN);
  std::vector<std::thread> acceptors;
  for (const Service& service : kServices) {
    acceptors.emplace_back(accept_for_ever, listen_on(service.port), service.serve);
  }
  std::puts(kGuestReadyLine);
  std::fflush(stdout);
  for (std::thread& acceptor : acceptors) acceptor.join();
}
