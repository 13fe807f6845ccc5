// The daemon on a machine that refuses it something: each refusal has its own clear answer, and what can
// continue does.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <csignal>
#include <fstream>
#include <memory>

#include "tests/e2e/daemon.h"
#include "tests/e2e/guest_network.h"
#include "tests/support/guest_ports.h"
#include "tests/support/requirements.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

using testing::HasSubstr;

/// A listener on every address of `network`.
Fd listen_on(const NetworkNamespace& network, std::uint16_t port) {
  Fd listener;
  network.run([&] { listener.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); });
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  EXPECT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(listen(listener.get(), 1), 0);
  return listener;
}

class FaultsTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    network_ = std::make_unique<GuestNetwork>(GuestKind::kVeth);
  }

  void expect_echo(const CreatedForward& forward) {
    TcpClient client(network_->client(), kHostAddress, forward.host_port);
    ASSERT_EQ(client.connect_error(), 0);
    client.send("hello");
    EXPECT_EQ(client.receive(5), "hello");
  }

  std::unique_ptr<GuestNetwork> network_;
};

// It exited with the parser's own code for the error, 109.
TEST(CommandLineOfTheDaemon, AnUnknownFlagIsAConfigurationThatIsWrong) {
  const auto run = [](std::vector<std::string> words) {
    words.insert(words.begin(), PORTWAY_DAEMON);
    Process daemon({.command = std::move(words)});
    return daemon.wait(std::chrono::seconds(10));
  };
  EXPECT_EQ(run({"--nonsense"}), 2);
  EXPECT_EQ(run({"--config"}), 2);
  EXPECT_EQ(run({"--version"}), 0);
  EXPECT_EQ(run({"--help"}), 0);
}

TEST_F(FaultsTest, FallsBackToEpollAndSaysWhyWhereIoUringIsRefused) {
  Daemon daemon(*network_, {.deny_io_uring = true});
  daemon.put_instance("vm-1");
  expect_echo(daemon.create_forward("vm-1", kEchoPort));

  const auto info = daemon.metrics().families.at("portway_io_backend_info").samples.at(0).labels;
  EXPECT_EQ(info.at("backend"), "epoll");
  EXPECT_THAT(info.at("reason"), HasSubstr("seccomp"));
  EXPECT_THAT(daemon.process().output(), HasSubstr("seccomp"));
}

TEST_F(FaultsTest, DoesNotStartWhenTheConfigAsksForARefusedIoUring) {
  try {
    Daemon daemon(*network_, {.io_backend = "uring", .deny_io_uring = true});
    FAIL() << "it started";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("seccomp"));
  }
}

TEST_F(FaultsTest, RunsWithoutAnyCapability) {
  Daemon daemon(*network_, {.no_capabilities = true});
  const std::string capabilities =
      run_command(nullptr, {"grep", "CapEff", "/proc/" + std::to_string(daemon.process().pid()) + "/status"});
  ASSERT_THAT(capabilities, HasSubstr("\t0000000000000000"));
  daemon.put_instance("vm-1");
  expect_echo(daemon.create_forward("vm-1", kEchoPort));
  EXPECT_EQ(daemon.stop(SIGTERM), 0);
}

TEST_F(FaultsTest, RefusesAHostPortThatAnotherProgramHas) {
  Daemon daemon(*network_, {});
  daemon.put_instance("vm-1");
  const Fd other = listen_on(network_->host(), 25000);

  const HttpResponse answer =
      daemon.api("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000, "host_port": 25000})");
  EXPECT_EQ(answer.status, 409);
  EXPECT_EQ(answer.json().at("code"), "host_port_taken");
}

TEST_F(FaultsTest, RefusesChangesButForwardsOnWhenTheDiskIsFull) {
  Daemon daemon(*network_, {.store_disk_bytes = 1024 * 1024});
  daemon.put_instance("vm-1");
  const CreatedForward forward = daemon.create_forward("vm-1", kEchoPort);
  const std::string list = daemon.api("GET", "/instances/vm-1/port-forwards").body;
  const auto filler = daemon.store_directory() / "filler";
  std::ofstream(filler) << std::string(2 * 1024 * 1024, 'x');

  // The space that the store had reserved is soon used up.
  HttpResponse answer;
  for (int i = 0; i < 100 && answer.status != 503; ++i) {
    answer = daemon.api("PUT", "/instances/vm-" + std::to_string(1000 + i),
                        R"({"guest_address": "198.19.0.3", "tap": "tap)" + std::to_string(1000 + i) +
                            R"(", "owner": ")" + std::string(60, 'o') + R"("})");
  }
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.json().at("code"), "store_unavailable");
  answer = daemon.api("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.json().at("code"), "store_unavailable");
  EXPECT_EQ(daemon.api("GET", "/instances/vm-1/port-forwards").body, list)
      << "the refused change left something";
  expect_echo(forward);

  std::filesystem::remove(filler);
  expect_echo(daemon.create_forward("vm-1", kEchoPort));
}

}  // namespace
}  // namespace portway::test
