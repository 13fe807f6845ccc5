#include "daemon/watchdog.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "process/notify.h"

namespace portway {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// Four looks within systemd's time: a worker has a quarter of it to take a turn, and one look may come late.
constexpr int kLooks = 4;
constexpr milliseconds kPeriodMax(5000);
constexpr milliseconds kPeriodMin(10);

/// WatchdogSec= of the unit; 0: none. $WATCHDOG_PID is not asked: it is still that of the first process after
/// an upgrade.
microseconds timeout_of_systemd() {
  const char* text = std::getenv("WATCHDOG_USEC");
  if (text == nullptr) return microseconds(0);
  const std::string_view digits(text);
  std::int64_t timeout = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), timeout);
  const bool is_number = error == std::errc() && end == digits.data() + digits.size();
  return microseconds(is_number ? std::max<std::int64_t>(timeout, 0) : 0);
}

milliseconds period_of(microseconds timeout) {
  if (timeout.count() == 0) return kPeriodMax;
  return std::clamp(std::chrono::duration_cast<milliseconds>(timeout / kLooks), kPeriodMin, kPeriodMax);
}

}  // namespace

Watchdog::Watchdog(boost::asio::io_context& context, NodeFaults& faults,
                   std::function<std::vector<std::size_t>()> silent_workers)
    : timeout_(timeout_of_systemd()),
      faults_(faults),
      silent_workers_(std::move(silent_workers)),
      every_(context, period_of(timeout_), [this] { look(); }) {}

void Watchdog::look() {
  const std::vector<std::size_t> silent = silent_workers_();
  for (const std::size_t worker : silent) {
    faults_.set(FaultPart::kWorker, std::to_string(worker),
                fmt::format("the thread does not run: its connections stand still; {}",
                            timeout_.count() != 0 ? "systemd will start the daemon again if that lasts"
                                                  : "if that lasts, kill the daemon and start it again"));
  }
  for (const std::size_t worker : silent_) {
    if (std::ranges::find(silent, worker) == silent.end())
      faults_.clear(FaultPart::kWorker, std::to_string(worker));
  }
  silent_ = {silent.begin(), silent.end()};
  if (timeout_.count() != 0 && silent.empty()) notify("WATCHDOG=1");
}

}  // namespace portway
