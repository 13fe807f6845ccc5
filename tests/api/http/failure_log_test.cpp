#include "api/http/failure_log.h"

#include <gmock/gmock.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>

#include "base/log_fields.h"

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

/// The fields of the last line, as a sink sees them.
class FieldsSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  std::map<std::string, std::string> fields;

 private:
  void sink_it_(const spdlog::details::log_msg&) override {
    fields.clear();
    for (const auto& [name, value] : LogFields::current()) fields[std::string(name)] = value;
  }
  void flush_() override {}
};

const RequestOrigin kOrigin{.id = "request-7", .actor = "key 1", .client = "192.0.2.1"};

TEST(FailureLog, ReportsWhatFailedAndWhatWasDenied) {
  const Logged logged;
  FailureLog log;
  log.report("PUT", "/instances/{id}", kOrigin, {ErrorCode::kStoreUnavailable, "The disk is full."});
  log.report("GET", "/v1/node", kOrigin, {ErrorCode::kForbidden, "An admin key is needed."});
  log.report("GET", "/v1/node", kOrigin, {ErrorCode::kUnauthorized, "No such key."});
  EXPECT_EQ(logged.text(),
            "warning API: PUT /instances/{id}: 503 store_unavailable: The disk is full.\n"
            "warning API: GET /v1/node: 403 forbidden: An admin key is needed.\n"
            "warning API: GET /v1/node: 401 unauthorized: No such key.\n");
}

TEST(FailureLog, SaysWhoseRequestItWas) {
  const auto sink = std::make_shared<FieldsSink>();
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  FailureLog log;
  log.report("GET", "/v1/node", kOrigin, {ErrorCode::kForbidden, "An admin key is needed."});
  spdlog::set_default_logger(before);
  EXPECT_EQ(
      sink->fields,
      (std::map<std::string, std::string>{
          {"request_id", "request-7"}, {"actor", "key 1"}, {"client", "192.0.2.1"}, {"status", "403"}}));
  EXPECT_TRUE(LogFields::current().empty());
}

TEST(FailureLog, IsSilentAboutMistakesOfClients) {
  const Logged logged;
  FailureLog log;
  log.report("GET", "other", kOrigin, {ErrorCode::kNotFound, "There is nothing."});
  EXPECT_THAT(logged.text(), IsEmpty());
}

// What one client repeats hides neither another client's lines nor those of the other kind.
TEST(FailureLog, CountsWhatItLeavesOut) {
  const Logged logged;
  FailureLog log;
  const Error denied{ErrorCode::kForbidden, "No."};
  const auto lines = [&logged] { return std::ranges::count(logged.text(), '\n'); };
  for (int i = 0; i < 1000; ++i) log.report("POST", "/x", kOrigin, denied);
  const auto of_one = lines();
  EXPECT_GE(of_one, FailureLog::kLinesOfOnePerSecond);
  EXPECT_LE(of_one, 3 * FailureLog::kLinesOfOnePerSecond) << "the thousand took several seconds?";
  log.report("POST", "/y", {.id = "request-8", .client = "192.0.2.2"}, denied);
  log.report("POST", "/z", kOrigin, {ErrorCode::kPortPoolExhausted, "No port is free."});
  EXPECT_EQ(lines(), of_one + 2);
  EXPECT_THAT(logged.text(), HasSubstr(" more of 401 and 403 before it)\nwarning API: POST /z: 503"));
}

}  // namespace
}  // namespace portway
