#include "base/error.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <stdexcept>

namespace portway {
namespace {

TEST(Error, EveryCodeHasANameOfItsOwnInSnakeCase) {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < kErrorCodes; ++i) {
    const std::string_view name = to_string(static_cast<ErrorCode>(i));
    EXPECT_FALSE(name.empty());
    EXPECT_TRUE(std::all_of(name.begin(), name.end(), [](char c) {
      return ('a' <= c && c <= 'z') || c == '_';
    })) << name;
    EXPECT_TRUE(names.insert(name).second) << name;
  }
}

TEST(Error, NamesAreThoseOfTheApi) {
  EXPECT_EQ(to_string(ErrorCode::kInvalidConfig), "invalid_config");
  EXPECT_EQ(to_string(ErrorCode::kUnsupportedProtocol), "unsupported_protocol");
  EXPECT_EQ(to_string(ErrorCode::kBlockedPort), "blocked_port");
  EXPECT_EQ(to_string(ErrorCode::kPrivilegedPort), "privileged_port");
  EXPECT_EQ(to_string(ErrorCode::kInstanceNotRunning), "instance_not_running");
  EXPECT_EQ(to_string(ErrorCode::kQuotaExceeded), "quota_exceeded");
  EXPECT_EQ(to_string(ErrorCode::kHostPortTaken), "host_port_taken");
  EXPECT_EQ(to_string(ErrorCode::kPortPoolExhausted), "port_pool_exhausted");
  EXPECT_EQ(to_string(ErrorCode::kDraining), "draining");
  EXPECT_EQ(to_string(ErrorCode::kInternal), "internal");
}

TEST(Error, TakingAValueThatIsNotThereSaysWhatWentWrong) {
  const Result<int> failed = Error{ErrorCode::kNotFound, "no such thing", ""};
  try {
    static_cast<void>(failed.value());
    FAIL() << "value() returned";
  } catch (const std::logic_error& error) {
    EXPECT_NE(std::string_view(error.what()).find("not_found: no such thing"), std::string_view::npos)
        << error.what();
  }
}

TEST(Error, QuotedTextIsShortAndPrintable) {
  EXPECT_EQ(in_quotes("198.18.0.2"), "\"198.18.0.2\"");
  EXPECT_EQ(in_quotes(""), "\"\"");
  EXPECT_EQ(in_quotes(std::string_view("a\n\0\x7f\xff", 5)), "\"a????\"");
  EXPECT_EQ(in_quotes(std::string(1000, 'x')), '"' + std::string(64, 'x') + "...\"");
}

}  // namespace
}  // namespace portway
