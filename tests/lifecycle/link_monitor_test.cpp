#include "lifecycle/link_monitor.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::NetworkNamespace;

class LinkMonitorTest : public testing::Test {
 protected:
  void SetUp() override { PORTWAY_NEEDS(test::why_no_namespaces()); }

  /// Starts a monitor inside the namespace; it stays there.
  void start() {
    network_.emplace();
    network_->ip("link add guest0 type veth peer name guest1");
    network_->ip("link set guest0 up");
    network_->ip("link set guest1 up");
    network_->run([this] {
      monitor_ = LinkMonitor::start([this](const Link& link, bool gone) {
                   told_.push_back(link.name + (gone ? " gone" : link.carrier ? " up" : " down"));
                 }).value();
    });
  }

  bool told(const std::string& what) const { return std::ranges::find(told_, what) != told_.end(); }

  void run_until_told(const std::string& what) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!told(what) && std::chrono::steady_clock::now() < deadline) {
      pollfd readable{.fd = monitor_->descriptor(), .events = POLLIN, .revents = 0};
      ::poll(&readable, 1, 100);
      monitor_->read();
    }
    EXPECT_TRUE(told(what)) << "never told: " << what;
  }

  std::optional<NetworkNamespace> network_;
  std::unique_ptr<LinkMonitor> monitor_;
  std::vector<std::string> told_;
};

TEST_F(LinkMonitorTest, KnowsTheLinksThatExistWhenItStartsWithoutTellingOfThem) {
  start();
  ASSERT_TRUE(monitor_->find("guest0"));
  EXPECT_TRUE(monitor_->find("guest0")->carrier);
  EXPECT_TRUE(monitor_->find("lo"));
  EXPECT_FALSE(monitor_->find("guest7"));
  monitor_->read();
  EXPECT_TRUE(told_.empty());
}

TEST_F(LinkMonitorTest, TellsWhenACarrierIsLostAndWhenItComesBack) {
  start();
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_FALSE(monitor_->find("guest0")->carrier);
  network_->ip("link set guest1 up");
  run_until_told("guest0 up");
}

TEST_F(LinkMonitorTest, ADeviceMadeAnewUnderTheSameNameIsAnotherDevice) {
  start();
  const int first = monitor_->find("guest0")->index;
  network_->ip("link del guest0");
  run_until_told("guest0 gone");
  EXPECT_FALSE(monitor_->find("guest0"));
  network_->ip("link add guest0 type veth peer name guest1");
  run_until_told("guest0 down");
  EXPECT_NE(monitor_->find("guest0")->index, first);
  EXPECT_FALSE(monitor_->find(first));
}

TEST_F(LinkMonitorTest, ADeviceThatLeavesABridgeIsNotGone) {
  start();
  network_->ip("link add bridge0 type bridge");
  network_->ip("link set guest0 master bridge0");
  network_->ip("link set guest0 nomaster");
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_FALSE(told("guest0 gone"));
  EXPECT_TRUE(monitor_->find("guest0"));
}

TEST_F(LinkMonitorTest, SeesWhatIsTrueAfterMoreChangesThanItsSocketHolds) {
  start();
  const std::string batch = testing::TempDir() + "/links.batch";
  {
    std::ofstream lines(batch);
    for (int i = 0; i < 600; ++i) lines << "link add many" << i << " type veth peer name peer" << i << "\n";
    for (int i = 0; i < 600; i += 2) lines << "link del many" << i << "\n";
  }
  network_->ip("-batch " + batch);  // nothing is read meanwhile
  std::filesystem::remove(batch);
  run_until_told("many599 down");
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_FALSE(monitor_->find("many598"));
  for (int i = 1; i < 600; i += 2) EXPECT_TRUE(monitor_->find("many" + std::to_string(i))) << i;
}

}  // namespace
}  // namespace portway
