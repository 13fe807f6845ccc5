#include "api/socket_check.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/unix_socket.h"
#include "network/vsock_handshake.h"

namespace portway {
namespace {

CheckStep socket_step(const SocketTarget& target, int error, std::chrono::milliseconds after) {
  const std::string path = fmt::format("{}/{}", target.directory, target.name);
  const auto failed = [](std::string detail) { return CheckStep{"socket", false, std::move(detail)}; };
  switch (error) {
    case 0:
      return {"socket", true, fmt::format("{} accepts connections ({} ms).", path, after.count())};
    case ENOENT:
    case ENOTDIR:
      return failed(fmt::format("There is no {}. Start the program that makes it.", path));
    case ECONNREFUSED:
      return failed(fmt::format("Nobody listens on {}: the program that made it has ended.", path));
    case ELOOP:
      return failed(
          fmt::format("There is a symbolic link in {} below {}, and links are not followed. Let the "
                      "forward lead to the socket itself.",
                      path, target.directory));
    case ENOTSOCK:
      return failed(fmt::format("{} is no socket.", path));
    case EPROTOTYPE:
      return failed(fmt::format("{} is no stream socket.", path));
    case EACCES:
      return failed(fmt::format("portwayd may not connect to {}: give its user write permission.", path));
    case EPERM:
      return failed(fmt::format("{} is a socket of portwayd itself, to which no forward may lead.", path));
    case ETIMEDOUT:
      return failed(fmt::format("The backlog of {} has been full for {} ms: its program does not accept.",
                                path, after.count()));
    default:
      return failed(fmt::format("The node cannot connect to {}: {}.", path, std::strerror(error)));
  }
}

CheckStep vsock_step(const SocketTarget& target, int error, std::chrono::milliseconds after) {
  const std::string where = fmt::format("vsock port {}", target.port);
  const auto failed = [](std::string detail) { return CheckStep{"guest", false, std::move(detail)}; };
  switch (error) {
    case 0:
      return {"guest", true,
              fmt::format("A service accepts connections on {} ({} ms).", where, after.count())};
    case ECONNREFUSED:
      return failed(
          fmt::format("The connection ended without an answer: nothing listens on {} in the guest. "
                      "Start the service.",
                      where));
    case EBADMSG:
      return failed(
          "The answer to CONNECT was not OK: this is not the socket of a Firecracker's vsock "
          "(its uds_path).");
    case ETIMEDOUT:
      return failed(fmt::format("No answer to CONNECT for {} within {} ms. Is the machine paused?", where,
                                after.count()));
    default:
      return failed(fmt::format("The node cannot reach {}: {}.", where, std::strerror(error)));
  }
}

}  // namespace

bool SocketCheck::poll(bool over) {
  if (!fd_) fd_ = make_unix_socket();
  if (!fd_) {
    error_ = errno;
    return true;
  }
  if (!connected_) {
    error_ = -connect_client_to(fd_.get(), target_);
    if (error_ == EAGAIN && !over) return false;
    if (error_ == EAGAIN) error_ = ETIMEDOUT;
    if (error_ != 0) return true;
    connected_ = true;
  }
  return target_.kind == TargetKind::kUnix || ask(over);
}

bool SocketCheck::ask(bool over) {
  if (!std::exchange(requested_, true)) {
    const std::string request = vsock_request(target_.port);
    (void)::send(fd_.get(), request.data(), request.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  pollfd ended{.fd = fd_.get(), .events = POLLRDHUP, .revents = 0};
  const bool has_ended = ::poll(&ended, 1, 0) == 1;
  const auto receive = [this](void* buffer, std::size_t size, int flags) -> std::ptrdiff_t {
    const ssize_t got = ::recv(fd_.get(), buffer, size, flags | MSG_DONTWAIT);
    return got < 0 ? -errno : got;
  };
  error_ = -take_vsock_answer(receive, has_ended);
  if (error_ == EAGAIN && !over) return false;
  if (error_ == EAGAIN) error_ = ETIMEDOUT;
  return true;
}

std::vector<CheckStep> SocketCheck::steps(std::chrono::milliseconds after) const {
  std::vector<CheckStep> steps = {socket_step(target_, connected_ ? 0 : error_, after)};
  if (connected_ && target_.kind == TargetKind::kFirecrackerVsock)
    steps.push_back(vsock_step(target_, error_, after));
  return steps;
}

}  // namespace portway
