// Connections to a guest, a virtual machine among them, outlive the daemon: killed and started again, and
// upgraded, while bytes move both ways.

#include <gtest/gtest.h>

#include <csignal>
#include <functional>
#include <future>
#include <string>

#include "tests/e2e/guest_suite.h"
#include "tests/support/guest_ports.h"
#include "tests/support/pattern.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

constexpr std::size_t kPiece = 8 * 1024 * 1024;
constexpr int kRounds = 2;

class HandoverTest : public GuestSuite {
 protected:
  TcpClient connect_to(std::uint16_t guest_port) {
    return TcpClient(network().client(), kHostAddress,
                     daemon().create_forward("vm-1", guest_port, "transparent").host_port);
  }
  void kill_and_start() {
    EXPECT_EQ(daemon().stop(SIGKILL), 128 + SIGKILL);
    daemon().start();
  }
};
INSTANTIATE_TEST_SUITE_P(Guests, HandoverTest, guests_and_backends(), guest_parameter_name);

TEST_P(HandoverTest, ConnectionsOutliveAKillAndAnUpgrade) {
  TcpClient echo = connect_to(kEchoPort);
  TcpClient source = connect_to(kSourcePort);
  TcpClient digest = connect_to(kDigestPort);
  source.send(std::to_string(2 * kRounds * kPiece) + "\n");
  Pattern pattern;
  const auto outlive = [&](const std::function<void()>& disturb) {
    std::string piece(kPiece, '\0');
    pattern.fill(piece);
    auto uploaded = std::async(std::launch::async, [&] { digest.send(piece); });
    auto downloaded = std::async(std::launch::async, [&] { return source.receive(piece.size()); });
    disturb();
    uploaded.get();
    EXPECT_TRUE(downloaded.get() == piece);
    echo.send("ping");
    EXPECT_EQ(echo.receive(4), "ping");
  };
  for (int round = 0; round < kRounds; ++round) {
    outlive([&] { kill_and_start(); });
    outlive([&] { daemon().upgrade(); });
  }
  digest.finish();
  const std::uint64_t bytes = 2 * kRounds * kPiece;
  EXPECT_EQ(digest.receive_to_end().bytes, std::to_string(bytes) + " " + pattern_sha256(bytes) + "\n");
  EXPECT_EQ(source.receive_to_end().error, 0);
  source.finish();
  echo.finish();
  EXPECT_EQ(echo.receive_to_end().error, 0);

  TcpClient client = connect_to(kWhoPort);
  const std::string who = client.local().address().to_string() + " " + std::to_string(client.local().port());
  EXPECT_EQ(client.receive_to_end().bytes, who + " 0\n") << "the return path is there for new ones, too";
}

}  // namespace
}  // namespace portway::test
