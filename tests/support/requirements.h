// What a test needs from its machine. If it is missing, the test is skipped with the reason; on CI it
// fails.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace portway::test {

/// Why network namespaces cannot be made here; empty if they can.
inline std::string why_no_namespaces() {
  return geteuid() == 0 ? "" : "network namespaces need root: run the tests with sudo";
}

}  // namespace portway::test

/// Use it first in a test or its SetUp: `reason` is empty if the test can run.
#define PORTWAY_NEEDS(why_not)                                        \
  do {                                                                \
    const std::string portway_reason = (why_not);                     \
    if (portway_reason.empty()) break;                                \
    if (std::getenv("CI") != nullptr) GTEST_FAIL() << portway_reason; \
    GTEST_SKIP() << portway_reason;                                   \
  } while (false)
