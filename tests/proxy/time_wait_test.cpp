// Ends a closed connection's TIME_WAIT, and nothing else.
#include "proxy/time_wait.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "tests/network/named_namespaces.h"
#include "tests/support/network.h"

namespace portway {
namespace {

class TimeWaitTest : public test::NamedNamespacesTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    NamedNamespacesTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    network_.emplace();  // nobody else takes a port there
    network_->run([&] {
      ender_.emplace();
      connect();
    });
  }

  void connect() {
    const IpAddress loopback = GetParam() ? IpAddress(boost::asio::ip::address_v6::loopback())
                                          : boost::asio::ip::address_v4::loopback();
    Fd listener = bind({loopback, 0});
    ASSERT_TRUE(listener);
    ASSERT_EQ(::listen(listener.get(), 1), 0);
    remote_ = name(listener, ::getsockname);
    connection_.reset(::socket(family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(connection_.get(), remote_.data(), static_cast<socklen_t>(remote_.size())), 0);
    local_ = name(connection_, ::getsockname);
    accepted_.reset(::accept(listener.get(), nullptr, nullptr));
    ASSERT_TRUE(accepted_);
  }

  int family() const { return GetParam() ? AF_INET6 : AF_INET; }
  Fd bound(const Endpoint& to) const {
    Fd fd;
    network_->run([&] { fd = bind(to); });
    return fd;
  }
  Fd bind(const Endpoint& to) const {
    Fd fd(::socket(family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::bind(fd.get(), to.data(), static_cast<socklen_t>(to.size())) != 0) fd.reset();
    return fd;
  }
  template <class Call>
  static Endpoint name(const Fd& fd, Call call) {
    Endpoint endpoint;
    auto size = static_cast<socklen_t>(endpoint.capacity());
    call(fd.get(), endpoint.data(), &size);
    endpoint.resize(size);
    return endpoint;
  }
  static void end(Fd& fd) {
    char byte = 0;
    ::shutdown(fd.get(), SHUT_WR);
    ASSERT_EQ(::recv(fd.get(), &byte, 1, 0), 0);
    fd.reset();
  }

  Fd connection_;
  Fd accepted_;
  Endpoint local_;
  Endpoint remote_;
  std::optional<test::NetworkNamespace> network_;
  std::optional<TimeWaitEnder> ender_;
};

TEST_P(TimeWaitTest, IsOver) {
  ::shutdown(connection_.get(), SHUT_WR);  // first
  end(accepted_);
  end(connection_);
  EXPECT_FALSE(bound(local_)) << "it is in TIME_WAIT";
  ender_->end(local_, remote_, 0);
  EXPECT_TRUE(bound(local_));
}

TEST_P(TimeWaitTest, AnotherConnectionWithThePortsContinues) {
  ender_->end(local_, remote_, 0);
  EXPECT_EQ(::send(connection_.get(), "x", 1, MSG_NOSIGNAL), 1);
  char byte = 0;
  EXPECT_EQ(::recv(accepted_.get(), &byte, 1, 0), 1) << errno;
  ::shutdown(connection_.get(), SHUT_WR);  // half-closed: FIN_WAIT2
  ender_->end(local_, remote_, 0);
  EXPECT_EQ(::send(accepted_.get(), "y", 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(::recv(connection_.get(), &byte, 1, 0), 1) << errno;
}

// A socket in another namespace is not made for each connection, and the namespace is not kept alive
// meanwhile.
TEST_P(TimeWaitTest, InAnotherNamespaceSomeAreEndedTogether) {
  std::filesystem::create_directory("/run/netns");
  network_->mount_at("/run/netns/guest");
  auto netns = open_named("guest");
  std::vector<Endpoint> waiting;
  for (std::size_t i = 0; i != TimeWaitEnder::kAtOnce; ++i) {
    for (const Endpoint& each : waiting)
      ASSERT_FALSE(bound(each)) << "it is in TIME_WAIT, and " << i << " are too few";
    if (i != 0) network_->run([&] { connect(); });
    ::shutdown(connection_.get(), SHUT_WR);
    end(accepted_);
    end(connection_);
    waiting.push_back(local_);
    ender_->end(local_, remote_, 0, netns);
  }
  for (const Endpoint& each : waiting) EXPECT_TRUE(bound(each));
  ender_->end(local_, remote_, 0, netns);
  const std::weak_ptr<const NetworkNamespace> left = netns;
  netns.reset();
  EXPECT_TRUE(left.expired());
}

INSTANTIATE_TEST_SUITE_P(Families, TimeWaitTest, testing::Bool(),
                         [](const auto& v6) { return v6.param ? "V6" : "V4"; });

}  // namespace
}  // namespace portway
