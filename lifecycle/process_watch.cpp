#include "lifecycle/process_watch.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>

namespace portway {
namespace {

Error no_such_process(std::int32_t pid) {
  return {.code = ErrorCode::kNotFound,
          .detail =
              fmt::format("there is no process {}; give the pid of the running virtual machine monitor", pid),
          .field = "vmm_pid"};
}

}  // namespace

Result<std::uint64_t> process_start_time(std::int32_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  const std::string stat{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // The second field, the program's name, may hold anything: count from its closing parenthesis.
  const auto name_end = stat.rfind(')');
  if (name_end == std::string::npos) return no_such_process(pid);
  std::istringstream fields(stat.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  std::uint64_t ticks = 0;
  if (!(fields >> ticks)) return no_such_process(pid);
  return ticks;
}

Result<ProcessWatch> ProcessWatch::start(std::int32_t pid) {
  Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0U)));
  if (!pidfd) {
    if (errno == ESRCH || errno == EINVAL) return no_such_process(pid);
    return Error{.code = ErrorCode::kResourceExhausted,
                 .detail = fmt::format("pidfd_open({}): {}", pid, std::strerror(errno)),
                 .field = "vmm_pid"};
  }
  pollfd ended{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  // A zombie: it has ended, and its parent has not asked yet.
  if (::poll(&ended, 1, 0) == 1) return no_such_process(pid);
  return ProcessWatch(std::move(pidfd));
}

}  // namespace portway
