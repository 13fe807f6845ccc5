#include "api/http/failure_log.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "api/http/problem.h"
#include "base/log_fields.h"

namespace portway {

void FailureLog::report(std::string_view method, std::string_view route, const RequestOrigin& origin,
                        const Error& error) {
  const unsigned status = http_status(error.code);
  const bool is_denial = status == 401 || status == 403;
  if (status < 500 && !is_denial) return;
  LineBudget& budget = is_denial ? denied_ : failed_;
  if (!budget.take(origin.actor.empty() ? origin.client : origin.actor)) return;
  const std::uint64_t left_out = budget.take_left_out();
  const LogFields fields({{"request_id", std::string(origin.id)},
                          {"actor", origin.actor},
                          {"client", origin.client},
                          {"status", std::to_string(status)}});
  spdlog::log(status == 500 ? spdlog::level::err : spdlog::level::warn, "API: {} {}: {} {}: {}{}", method,
              route, status, to_string(error.code), error.detail,
              left_out == 0
                  ? ""
                  : fmt::format(" ({} more of {} before it)", left_out, is_denial ? "401 and 403" : "5xx"));
}

void log_exception(std::string_view what, const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& caught) {
    spdlog::error("API: {}: {}", what, caught.what());
  }
}

}  // namespace portway
