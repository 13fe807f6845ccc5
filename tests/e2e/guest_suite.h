// A suite's fixture: each test has a daemon of its own, on each io backend, before a guest of each kind. The
// guest starts once for all tests of a process: a virtual machine takes seconds to boot.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>

#include "tests/e2e/daemon.h"
#include "tests/e2e/guest_network.h"

namespace portway::test {

using GuestParameters = std::tuple<GuestKind, std::string>;  // and the io backend

/// For INSTANTIATE_TEST_SUITE_P.
inline auto guests_and_backends() {
  return testing::Combine(testing::Values(GuestKind::kVeth, GuestKind::kVirtualMachine),
                          testing::Values("uring", "epoll"));
}
std::string guest_parameter_name(const testing::TestParamInfo<GuestParameters>& info);

class GuestSuite : public testing::TestWithParam<GuestParameters> {
 protected:
  void SetUp() override;
  /// Checks that nothing is connected, the daemon ends cleanly, and there is no netfilter rule.
  void TearDown() override;

  GuestNetwork& network();
  Daemon& daemon() { return *daemon_; }
  /// Null if namespaces cannot be made: the test was skipped.
  bool has_daemon() const { return daemon_ != nullptr; }

  /// Replaces the previous one; instance vm-1 is registered.
  void start_daemon(DaemonOptions options);

 private:
  std::unique_ptr<Daemon> daemon_;
};

}  // namespace portway::test
