// Live connections, why they close, and the access log, on the daemon as it ships.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>

#include "tests/e2e/daemon.h"
#include "tests/e2e/guest_network.h"
#include "tests/support/guest_ports.h"
#include "tests/support/requirements.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

class ConnectionsTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    network_ = std::make_unique<GuestNetwork>(GuestKind::kVeth);
    daemon_ =
        std::make_unique<Daemon>(*network_, DaemonOptions{.io_backend = GetParam(), .access_log = true});
    daemon_->put_instance("vm-1");
  }

  TcpClient connect_to(const CreatedForward& forward) {
    return TcpClient(network_->client(), kHostAddress, forward.host_port);
  }
  static std::string path_of(const CreatedForward& forward) {
    return "/instances/vm-1/port-forwards/" + forward.id + "/connections";
  }
  boost::json::array connections(const CreatedForward& forward, const std::string& query = "") {
    return daemon_->api("GET", path_of(forward) + query).json().at("connections").as_array();
  }
  std::filesystem::path log_path() const { return daemon_->directory() / "access.log"; }

  /// The lines of a log once there are `count`.
  static std::vector<boost::json::value> wait_for_lines(const std::filesystem::path& path,
                                                        std::size_t count) {
    std::vector<boost::json::value> lines;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (lines.size() < count && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));  // no event reports that a file has grown
      lines.clear();
      std::ifstream file(path);
      for (std::string line; std::getline(file, line);) lines.push_back(boost::json::parse(line));
    }
    EXPECT_EQ(lines.size(), count);
    return lines;
  }

  std::unique_ptr<GuestNetwork> network_;
  std::unique_ptr<Daemon> daemon_;
};
INSTANTIATE_TEST_SUITE_P(Backends, ConnectionsTest, testing::Values("uring", "epoll"),
                         [](const auto& backend) { return backend.param; });

TEST_P(ConnectionsTest, AreListedEndedOneByOneAndRemembered) {
  const CreatedForward forward = daemon_->create_forward("vm-1", kEchoPort);
  EXPECT_TRUE(connections(forward).empty());
  TcpClient first = connect_to(forward);
  first.send("hello");
  EXPECT_EQ(first.receive(5), "hello");
  TcpClient second = connect_to(forward);
  second.send("you too");
  EXPECT_EQ(second.receive(7), "you too");

  const boost::json::array live = connections(forward);
  ASSERT_EQ(live.size(), 2u);
  const boost::json::value* one = live[0].at("sent_bytes") == 5 ? &live[0] : &live[1];
  EXPECT_EQ(one->at("state"), "established");
  EXPECT_EQ(one->at("received_bytes"), 5);
  EXPECT_THAT(std::string(one->at("client").as_string()), testing::StartsWith("198.18.0.2:"));
  EXPECT_GT(one->at("guest_rtt_us").to_number<int>(), 0);
  const std::string id = boost::json::serialize(one->at("id"));
  EXPECT_EQ(daemon_->api("DELETE", path_of(forward) + "/" + id).status, 204);
  EXPECT_EQ(first.receive_to_end().error, ECONNRESET);
  EXPECT_EQ(daemon_->api("DELETE", path_of(forward) + "/" + id).status, 404);
  second.send("still");
  EXPECT_EQ(second.receive(5), "still");

  const std::vector<boost::json::value> lines = wait_for_lines(log_path(), 1);
  EXPECT_EQ(lines.at(0).at("how"), "killed");
  const boost::json::array closed = connections(forward, "?state=closed");
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0], lines[0]) << "the same in the log and in memory";
  EXPECT_EQ(daemon_->api("DELETE", path_of(forward)).status, 204);
  EXPECT_EQ(second.receive_to_end().error, ECONNRESET);
}

TEST_P(ConnectionsTest, LeaveALineOfTheAccessLogEachThatSaysWhyTheyEnded) {
  const CreatedForward digest = daemon_->create_forward("vm-1", kDigestPort);
  const CreatedForward closed = daemon_->create_forward("vm-1", kClosedPort);
  TcpClient client = connect_to(digest);
  client.send_pattern(1'000'003);
  client.finish();
  const std::size_t answer_size = client.receive_to_end().bytes.size();
  boost::json::value line = wait_for_lines(log_path(), 1).at(0);
  EXPECT_EQ(line.at("forward").as_string(), digest.id);
  EXPECT_EQ(line.at("instance"), "vm-1");
  EXPECT_EQ(line.at("guest").as_string(), std::string(kGuestAddress) + ":" + std::to_string(kDigestPort));
  EXPECT_EQ(line.at("received_bytes"), 1'000'003);
  EXPECT_EQ(line.at("sent_bytes"), answer_size);
  EXPECT_EQ(line.at("side"), "client");
  EXPECT_EQ(line.at("how"), "fin");
  EXPECT_GT(line.at("connect_s").as_double(), 0);
  EXPECT_GE(line.at("duration_s").as_double(), line.at("connect_s").as_double());

  connect_to(closed).receive_to_end();
  line = wait_for_lines(log_path(), 2).at(1);
  EXPECT_EQ(line.at("side"), "guest");
  EXPECT_EQ(line.at("how"), "refused");
  EXPECT_EQ(line.at("error"), "ECONNREFUSED");

  TcpClient stopped = connect_to(digest);
  stopped.send("x");
  ASSERT_TRUE(daemon_->wait_for_metric("portway_forward_connections_active", {{"forward", digest.id}}, 1));
  EXPECT_EQ(daemon_->api("POST", "/instances/vm-1/stop").status, 200);
  EXPECT_EQ(wait_for_lines(log_path(), 3).at(2).at("how"), "instance_stopped");
}

TEST_P(ConnectionsTest, AreLoggedToANewFileAfterSigusr1AndToTheEndOfTheDaemon) {
  const CreatedForward forward = daemon_->create_forward("vm-1", kEchoPort);
  TcpClient client = connect_to(forward);
  client.send("hello");
  EXPECT_EQ(client.receive(5), "hello");
  const std::filesystem::path moved = log_path().string() + ".1";
  std::filesystem::rename(log_path(), moved);
  daemon_->process().signal(SIGUSR1);
  ASSERT_TRUE(daemon_->process().wait_for_output("access log reopened", std::chrono::seconds(10)));
  daemon_->process().signal(SIGTERM);
  ASSERT_TRUE(daemon_->process().wait_for_output("draining", std::chrono::seconds(10)));
  EXPECT_EQ(daemon_->stop(SIGTERM), 0) << "a second signal ends the drain";
  const std::vector<boost::json::value> lines = wait_for_lines(log_path(), 1);
  EXPECT_EQ(lines.at(0).at("how"), "shutdown");
  EXPECT_EQ(std::filesystem::file_size(moved), 0u);
}

}  // namespace
}  // namespace portway::test
