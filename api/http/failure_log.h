// Logs answers that somebody may have to look into, a line each: 5xx, what could not be done, and 401 and
// 403, what was denied.
//
// A client may repeat what fails as often as it likes, so the lines are limited, of one actor and in all, for
// 5xx and for what was denied each; the next line reports how many were left out. Belongs to the control
// thread.
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/line_budget.h"

namespace portway {

/// Whose request it was.
struct RequestOrigin {
  std::string_view id;      // of the request
  std::string actor = {};   // "key ID", "uid:0"; empty: not known
  std::string client = {};  // the address, or "unix"
};

class FailureLog {
 public:
  static constexpr int kLinesPerSecond = 20;
  static constexpr int kLinesOfOnePerSecond = 10;

  /// Does nothing if the answer's status is none of these. `route` is the pattern of the request's path.
  void report(std::string_view method, std::string_view route, const RequestOrigin& origin,
              const Error& error);

 private:
  LineBudget failed_{kLinesPerSecond, kLinesOfOnePerSecond};
  LineBudget denied_{kLinesPerSecond, kLinesOfOnePerSecond};
};

/// Logs an exception that has ended a coroutine.
void log_exception(std::string_view what, const std::exception_ptr& exception);

}  // namespace portway
