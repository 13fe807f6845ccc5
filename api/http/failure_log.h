// Logs answers of status 5xx: what could not be done, for which request, and why.
//
// A client may repeat what fails as often as it likes, so the lines are limited; the next line reports how
// many were left out. Belongs to the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <string_view>

#include "base/error.h"

namespace portway {

class FailureLog {
 public:
  static constexpr int kLinesPerSecond = 10;

  /// Does nothing unless the answer's status is 5xx. `route` is the pattern of the request's path.
  void report(std::string_view method, std::string_view route, std::string_view request_id,
              const Error& error);

 private:
  std::chrono::steady_clock::time_point second_began_{};
  int lines_ = 0;               // in this second
  std::uint64_t left_out_ = 0;  // since the last line
};

/// Logs an exception that has ended a coroutine.
void log_exception(std::string_view what, const std::exception_ptr& exception);

}  // namespace portway
