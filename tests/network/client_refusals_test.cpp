// Clients of a listener of the node; the kernel refuses one of them.
#include "network/client_refusals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "tests/network/world.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using namespace test;
using std::chrono::nanoseconds;
using std::chrono::steady_clock;
using test::NetworkNamespace;
using testing::HasSubstr;

struct Family {
  std::string name;
  const char* listener;
  const char* node;
  const char* node_again;
  const char* client;
  const char* client_again;

  friend void PrintTo(const Family& family, std::ostream* out) { *out << family.name; }
};

class ClientRefusalsTest : public testing::TestWithParam<Family> {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    world_.emplace();
    world_->node.ip("address add 198.18.1.11/24 dev eth0");
    world_->node.ip("address add fd00:1::11/64 nodad dev eth0");
    world_->client.ip("address add 198.18.1.12/24 dev eth0");
    world_->client.ip("address add fd00:1::12/64 nodad dev eth0");
    world_->node.run([&] { refusals_ = start_client_refusals().value(); });
    listener_ = listen(world_->node, {address(GetParam().listener), 0});
  }

  std::uint16_t port() const { return local_of(listener_).port(); }
  Endpoint local() const { return {address(GetParam().node), port()}; }
  IpAddress client() const { return address(GetParam().client); }

  int connect(const char* from, const Endpoint& to) const {
    return connect_plainly(world_->client, {address(from), 0}, to).error;
  }
  int connect() const { return connect(GetParam().client, local()); }

  std::optional<World> world_;
  std::unique_ptr<ClientRefusals> refusals_;
  Fd listener_;
};
INSTANTIATE_TEST_SUITE_P(
    Families, ClientRefusalsTest,
    testing::Values(
        Family{"V4", "0.0.0.0", "198.18.1.1", "198.18.1.11", "198.18.1.2", "198.18.1.12"},
        Family{"V4OneAddress", "198.18.1.1", "198.18.1.1", "198.18.1.1", "198.18.1.2", "198.18.1.12"},
        Family{"V4OfDualStackListener", "::", "198.18.1.1", "198.18.1.11", "198.18.1.2", "198.18.1.12"},
        Family{"V6", "::", "fd00:1::1", "fd00:1::11", "fd00:1::2", "fd00:1::12"}),
    [](const auto& test) { return test.param.name; });

TEST_P(ClientRefusalsTest, OneClientIsRefusedAndEverybodyElseServed) {
  const Fd other_port = listen(world_->node, {address(GetParam().listener), 0});
  EXPECT_EQ(connect(), 0);
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(connect(), ECONNREFUSED);
  EXPECT_EQ(connect(GetParam().client_again, local()), 0) << "another client";
  EXPECT_EQ(connect(GetParam().client, {local().address(), local_of(other_port).port()}), 0)
      << "another port";
  if (GetParam().node != std::string(GetParam().node_again)) {
    EXPECT_EQ(connect(GetParam().client, {address(GetParam().node_again), port()}), 0) << "another address";
  }
  EXPECT_EQ(connect(), ECONNREFUSED);
}

TEST_P(ClientRefusalsTest, AClientThatIsAllowedAgainIsServed) {
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  ASSERT_TRUE(refusals_->refuse(local(), address(GetParam().client_again)));
  refusals_->allow(local(), client());
  EXPECT_EQ(connect(), 0);
  EXPECT_EQ(connect(GetParam().client_again, local()), ECONNREFUSED);
  refusals_->allow(local(), client());  // was not refused
}

TEST_P(ClientRefusalsTest, ConnectionsThatAreThereRunOn) {
  const auto connected = connect_plainly(world_->client, {client(), 0}, local());
  ASSERT_EQ(connected.error, 0);
  const Fd accepted = accept(listener_);
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  EXPECT_EQ(exchange(connected.fd, accepted, "question"), "question");
  EXPECT_EQ(exchange(accepted, connected.fd, "answer"), "answer");
}

TEST_P(ClientRefusalsTest, ItReportsWhenTheClientLastTried) {
  EXPECT_EQ(refusals_->last_asked(local(), client()), nanoseconds::zero()) << "not refused";
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  EXPECT_EQ(refusals_->last_asked(local(), client()), nanoseconds::zero()) << "not asked yet";
  connect(GetParam().client_again, local());
  EXPECT_EQ(refusals_->last_asked(local(), client()), nanoseconds::zero()) << "somebody else";
  nanoseconds before = steady_clock::now().time_since_epoch();  // CLOCK_MONOTONIC
  for (int i = 0; i < 2; ++i) {
    connect();
    const nanoseconds asked = refusals_->last_asked(local(), client());
    EXPECT_GE(asked, before);
    before = steady_clock::now().time_since_epoch();
    EXPECT_LE(asked, before);
  }
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  EXPECT_EQ(refusals_->last_asked(local(), client()), nanoseconds::zero()) << "starts again";
}

TEST_P(ClientRefusalsTest, WhenThereIsNoRoomNothingChanges) {
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  int more = 0;
  while (more < 10'000 &&
         refusals_->refuse({local().address(), static_cast<std::uint16_t>(10'000 + more)}, client()))
    ++more;
  EXPECT_EQ(more, 4095);
  EXPECT_FALSE(refusals_->refuse(local(), address(GetParam().client_again)));
  EXPECT_EQ(connect(GetParam().client_again, local()), 0);
  EXPECT_EQ(connect(), ECONNREFUSED);
  refusals_->allow({local().address(), 10'000}, client());
  EXPECT_TRUE(refusals_->refuse(local(), address(GetParam().client_again)));
}

TEST_P(ClientRefusalsTest, AnyThreadMayCallIt) {
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const Endpoint mine(local().address(), static_cast<std::uint16_t>(10'000 + i));
      for (int round = 0; round < 500; ++round) {
        EXPECT_TRUE(refusals_->refuse(mine, client()));
        EXPECT_EQ(refusals_->last_asked(mine, client()), nanoseconds::zero());
        refusals_->allow(mine, client());
        (void)refusals_->last_asked(local(), client());
      }
    });
  }
  for (int i = 0; i < 20; ++i) EXPECT_EQ(connect(), ECONNREFUSED);
  threads.clear();
  EXPECT_GT(refusals_->last_asked(local(), client()), nanoseconds::zero());
}

TEST_P(ClientRefusalsTest, NothingStaysWhenItIsGone) {
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  refusals_.reset();
  EXPECT_EQ(connect(), 0);
}

TEST_P(ClientRefusalsTest, TwoOfThemDoNotDisturbEachOther) {
  std::unique_ptr<ClientRefusals> other;
  world_->node.run([&] { other = start_client_refusals().value(); });
  ASSERT_TRUE(refusals_->refuse(local(), client()));
  ASSERT_TRUE(other->refuse(local(), address(GetParam().client_again)));
  EXPECT_EQ(connect(), ECONNREFUSED);
  EXPECT_EQ(connect(GetParam().client_again, local()), ECONNREFUSED);
  refusals_.reset();
  EXPECT_EQ(connect(), 0);
  EXPECT_EQ(connect(GetParam().client_again, local()), ECONNREFUSED);
}

TEST_P(ClientRefusalsTest, NothingStaysOfAProcessThatWasKilled) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const Fd read_end(ready[0]);
  Fd write_end(ready[1]);
  pid_t child = -1;
  world_->node.run([&] {
    child = ::fork();
    if (child != 0) return;
    const auto started = start_client_refusals();
    const char done = started && (*started)->refuse(local(), client()) ? 1 : 0;
    (void)!::write(write_end.get(), &done, 1);
    for (;;) ::pause();
  });
  ASSERT_GT(child, 0);
  char done = 0;
  EXPECT_EQ(::read(read_end.get(), &done, 1), 1);
  EXPECT_EQ(done, 1);
  EXPECT_EQ(connect(), ECONNREFUSED);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  const auto deadline = steady_clock::now() + std::chrono::seconds(10);
  while (connect() != 0 && steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_EQ(connect(), 0);
}

TEST(ClientRefusals, WithoutTheCapabilitiesItSaysWhichItNeeds) {
  PORTWAY_NEEDS(why_no_namespaces());
  const NetworkNamespace network;
  network.run([] {
    drop_capabilities({CAP_BPF, CAP_SYS_ADMIN});
    const auto refused = start_client_refusals();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
    EXPECT_THAT(refused.error().detail, HasSubstr("CAP_BPF and CAP_NET_ADMIN"));
  });
}

}  // namespace
}  // namespace portway
