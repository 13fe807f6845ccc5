#include "tests/e2e/guest_suite.h"

#include <csignal>

#include "tests/support/requirements.h"

namespace portway::test {
namespace {

std::unique_ptr<GuestNetwork>& shared_network() {
  static std::unique_ptr<GuestNetwork> network;
  return network;
}

class SharedNetwork : public testing::Environment {
 public:
  void TearDown() override { shared_network().reset(); }
};
const testing::Environment* const kSharedNetwork = testing::AddGlobalTestEnvironment(new SharedNetwork);

}  // namespace

std::string guest_parameter_name(const testing::TestParamInfo<GuestParameters>& info) {
  return testing::PrintToString(std::get<GuestKind>(info.param)) + "_" + std::get<std::string>(info.param);
}

GuestNetwork& GuestSuite::network() {
  return *shared_network();
}

void GuestSuite::SetUp() {
  PORTWAY_NEEDS(why_no_namespaces());
  if (!shared_network()) shared_network() = std::make_unique<GuestNetwork>(std::get<GuestKind>(GetParam()));
  start_daemon({});
}

void GuestSuite::TearDown() {
  if (!daemon_) return;
  // The client's side is done: whatever the daemon still holds now, it has leaked.
  EXPECT_TRUE(daemon_->wait_for_metric("portway_connections_active", {}, 0));
  EXPECT_EQ(network().host().nft_ruleset(), "") << "netfilter rules in the host's namespace";
  EXPECT_EQ(daemon_->stop(SIGTERM), 0) << "a sanitizer's report, too, shows in the exit code";
}

void GuestSuite::start_daemon(DaemonOptions options) {
  options.io_backend = std::get<std::string>(GetParam());
  daemon_.reset();
  daemon_ = std::make_unique<Daemon>(network(), options);
  daemon_->put_instance("vm-1");
}

}  // namespace portway::test
