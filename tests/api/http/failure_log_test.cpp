#include "api/http/failure_log.h"

#include <gmock/gmock.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <sstream>
#include <string>

namespace portway {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

/// What is logged during its lifetime.
class Logged {
 public:
  Logged() : before_(spdlog::default_logger()) {
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(out_)));
    spdlog::set_pattern("%l %v");
  }
  ~Logged() { spdlog::set_default_logger(before_); }
  std::string text() const { return out_.str(); }

 private:
  std::ostringstream out_;
  const std::shared_ptr<spdlog::logger> before_;
};

TEST(FailureLog, ReportsWhatFailedForWhomAndWhy) {
  const Logged logged;
  FailureLog log;
  log.report("PUT", "/instances/{id}", "request-7", {ErrorCode::kStoreUnavailable, "The disk is full."});
  EXPECT_EQ(
      logged.text(),
      "warning API: PUT /instances/{id}: 503 store_unavailable: The disk is full. (request request-7)\n");
}

TEST(FailureLog, IsSilentAboutMistakesOfClients) {
  const Logged logged;
  FailureLog log;
  log.report("GET", "other", "request-7", {ErrorCode::kNotFound, "There is nothing."});
  EXPECT_THAT(logged.text(), IsEmpty());
}

TEST(FailureLog, CountsWhatItLeavesOut) {
  const Logged logged;
  FailureLog log;
  const Error error{ErrorCode::kPortPoolExhausted, "No port is free."};
  const auto lines = [&logged] { return std::ranges::count(logged.text(), '\n'); };
  int failed = 0;
  while (lines() == failed && failed < 1000) {
    log.report("POST", "/x", "r", error);
    ++failed;
  }
  EXPECT_EQ(lines(), FailureLog::kLinesPerSecond) << "of a flood";
  for (auto before = lines(); lines() == before;)
    log.report("POST", "/x", "r", error);  // until the second is over
  EXPECT_THAT(logged.text(), HasSubstr(" more of 5xx before it)"));
}

}  // namespace
}  // namespace portway
