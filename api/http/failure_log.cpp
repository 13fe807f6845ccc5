#include "api/http/failure_log.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <string>
#include <utility>

#include "api/http/problem.h"

namespace portway {

void FailureLog::report(std::string_view method, std::string_view route, std::string_view request_id,
                        const Error& error) {
  const unsigned status = http_status(error.code);
  if (status < 500) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - second_began_ >= std::chrono::seconds(1)) {
    second_began_ = now;
    lines_ = 0;
  }
  if (lines_ == kLinesPerSecond) {
    ++left_out_;
    return;
  }
  ++lines_;
  const std::uint64_t left_out = std::exchange(left_out_, 0);
  spdlog::log(status == 500 ? spdlog::level::err : spdlog::level::warn,
              "API: {} {}: {} {}: {} (request {}{})", method, route, status, to_string(error.code),
              error.detail, request_id,
              left_out == 0 ? "" : fmt::format("; {} more of 5xx before it", left_out));
}

void log_exception(std::string_view what, const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& caught) {
    spdlog::error("API: {}: {}", what, caught.what());
  }
}

}  // namespace portway
