#include "process/passed_sockets.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "base/listen_address.h"
#include "base/socket.h"

namespace portway {
namespace {

constexpr int kFirst = 3;  // SD_LISTEN_FDS_START
constexpr int kMax = 64;   // more is no list of api.listen

std::optional<int> number_in(const char* variable) {
  const char* text = ::getenv(variable);
  if (text == nullptr) return std::nullopt;
  const std::string_view digits(text);
  int number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

bool is_listening_stream(int fd) {
  int listens = 0;
  int type = 0;
  socklen_t size = sizeof listens;
  if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0) return false;
  size = sizeof type;
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

}  // namespace

PassedSockets PassedSockets::take() {
  PassedSockets passed;
  const auto process = number_in("LISTEN_PID");
  const auto count = number_in("LISTEN_FDS");
  for (const char* variable : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(variable);
  if (!process || *process != ::getpid() || !count) return passed;
  for (int fd = kFirst; fd < kFirst + std::clamp(*count, 0, kMax); ++fd) {
    Fd socket(fd);
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    const auto address = is_listening_stream(fd) ? local_endpoint(fd) : std::nullopt;
    if (address) {
      passed.sockets_.push_back(
          {.address = *address, .text = to_string(ListenAddress(*address)), .socket = std::move(socket)});
    } else {
      passed.sockets_.push_back(
          {.address = {}, .text = fmt::format("descriptor {}, no listening TCP socket", fd), .socket = Fd()});
    }
  }
  return passed;
}

Fd PassedSockets::take(const Endpoint& address) {
  const auto found = std::ranges::find_if(
      sockets_, [&](const Passed& each) { return each.socket && each.address == address; });
  if (found == sockets_.end()) return Fd();
  Fd taken = std::move(found->socket);
  sockets_.erase(found);
  return taken;
}

std::vector<std::string> PassedSockets::rest() const {
  std::vector<std::string> rest;
  for (const Passed& passed : sockets_) rest.push_back(passed.text);
  return rest;
}

}  // namespace portway
