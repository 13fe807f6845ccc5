// The suite's fixture: each test runs on io_uring, on epoll and in the simulator.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "tests/proxy/harness.h"
#include "tests/support/requirements.h"

namespace portway::test {

using namespace std::chrono_literals;

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;

class RelaySuite : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    std::string why_not;
    make_world(GetParam())->make_io(why_not);
    PORTWAY_NEEDS(why_not);
  }
};

inline std::string backend_name(const testing::TestParamInfo<Backend>& info) {
  return std::string(to_string(info.param));
}

}  // namespace portway::test
