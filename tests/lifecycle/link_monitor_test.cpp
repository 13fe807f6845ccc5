#include "lifecycle/link_monitor.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
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
      monitor_ = LinkMonitor::start(
                     [this](const Link& link, bool gone) {
                       told_.push_back(link.name + (gone ? " gone" : link.carrier ? " up" : " down"));
                     },
                     [this](int socket, const void* bytes, std::size_t size) -> ssize_t {
                       if (refusals_ == 0) return ::send(socket, bytes, size, 0);
                       --refusals_;
                       errno = ENOMEM;
                       return -1;
                     })
                     .value();
    });
  }

  /// Causes more messages than the socket holds while nothing is read. Deletes the first of the links
  /// again.
  void flood(int deleted = 0) {
    std::string lines;
    for (int i = 0; i < 600; ++i) lines += fmt::format("link add many{} type veth peer name peer{}\n", i, i);
    for (int i = 0; i < deleted; ++i) lines += fmt::format("link del many{}\n", i);
    network_->ip_batch(lines);
  }

  bool told(const std::string& what) const { return std::ranges::find(told_, what) != told_.end(); }

  void run_until_told(const std::string& what) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!told(what) && std::chrono::steady_clock::now() < deadline) {
      pollfd readable{.fd = monitor_->descriptor(), .events = POLLIN, .revents = 0};
      ::poll(&readable, 1, 100);
      monitor_->read();
    }
    EXPECT_TRUE(told(what)) << "never reported: " << what;
  }
  void run_until_settled() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (monitor_->unsettled() && std::chrono::steady_clock::now() < deadline) {
      pollfd readable{.fd = monitor_->descriptor(), .events = POLLIN, .revents = 0};
      if (::poll(&readable, 1, 100) == 0) monitor_->ask_again();
      monitor_->read();
    }
    EXPECT_FALSE(monitor_->unsettled());
  }

  std::optional<NetworkNamespace> network_;
  std::unique_ptr<LinkMonitor> monitor_;
  std::vector<std::string> told_;
  int refusals_ = 0;  // of requests to come
};

TEST_F(LinkMonitorTest, KnowsTheLinksThatExistWhenItStartsWithoutReportingThem) {
  start();
  ASSERT_TRUE(monitor_->find("guest0"));
  EXPECT_TRUE(monitor_->find("guest0")->carrier);
  EXPECT_TRUE(monitor_->find("lo"));
  EXPECT_FALSE(monitor_->find("guest7"));
  monitor_->read();
  EXPECT_TRUE(told_.empty());
}

TEST_F(LinkMonitorTest, ReportsWhenACarrierIsLostAndWhenItComesBack) {
  start();
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_FALSE(monitor_->find("guest0")->carrier);
  network_->ip("link set guest1 up");
  run_until_told("guest0 up");
}

TEST_F(LinkMonitorTest, ADeviceMadeAgainUnderTheSameNameIsAnotherDevice) {
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

TEST_F(LinkMonitorTest, CountsTheCarriersThatWereLost) {
  start();
  const auto before = monitor_->find("guest0")->carrier_downs;
  ASSERT_TRUE(before);
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_EQ(monitor_->find("guest0")->carrier_downs, *before + 1);
}

// The kernel reports a veth's carrier up to a second late.
TEST_F(LinkMonitorTest, KnowsALinkAsItIsNowWhenAsked) {
  start();
  const auto before = *monitor_->find("guest0")->carrier_downs;
  for (std::uint32_t flips = 1; flips <= 3; ++flips) {
    network_->ip("link set guest1 down");
    network_->ip("link set guest1 up");
    monitor_->refresh("guest0");
    EXPECT_EQ(monitor_->find("guest0")->carrier_downs, before + flips);
  }
  monitor_->refresh("guest7");
  monitor_->refresh(std::string(100, 'x'));
  EXPECT_FALSE(monitor_->find("guest7"));
}

// Messages were lost, and the kernel had no memory for the list of links: later changes were never
// noticed.
TEST_F(LinkMonitorTest, AListThatIsRefusedIsAskedForUntilItComes) {
  start();
  refusals_ = 2;
  flood();
  network_->ip("link set guest1 down");
  network_->ip("link del many599");
  monitor_->read();
  EXPECT_TRUE(monitor_->unsettled());
  monitor_->ask_again();
  monitor_->read();
  EXPECT_TRUE(monitor_->unsettled());
  EXPECT_TRUE(monitor_->find("guest0")->carrier) << "as far as anything was reported";
  EXPECT_FALSE(told("guest0 gone"));
  monitor_->ask_again();
  run_until_told("guest0 down");
  run_until_settled();
  EXPECT_FALSE(monitor_->find("many599"));
}

TEST_F(LinkMonitorTest, SeesWhatIsTrueAfterMoreChangesThanItsSocketHolds) {
  start();
  flood(300);
  run_until_told("many599 down");
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  run_until_settled();
  for (int i = 0; i < 600; ++i) {
    EXPECT_EQ(monitor_->find("many" + std::to_string(i)).has_value(), i >= 300) << i;
  }
}

}  // namespace
}  // namespace portway
