#include "control/log_file.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstring>

namespace portway {

Result<Fd> open_log_file(std::string_view key, const std::string& path) {
  Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC, 0640));
  if (file) return file;
  return Error{
      ErrorCode::kInvalidConfig,
      fmt::format("{}: cannot open {} ({}); its directory must exist and be writable, or set it to \"\"", key,
                  path, errno == ENXIO ? "nobody reads this FIFO" : std::strerror(errno)),
      std::string(key)};
}

}  // namespace portway
