#include "proxy/kernel_io.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "proxy/epoll_io.h"
#include "proxy/listen_socket.h"

namespace portway::test {
namespace {

class TakeClient : public testing::TestWithParam<const char*> {
 protected:
  TakeClient() {
    const IpAddress address = boost::asio::ip::make_address(GetParam());
    auto listener = open_listen_socket(Endpoint(address, 0), {});
    if (!listener) throw std::runtime_error(listener.error().detail);
    listener_ = std::move(*listener);
    connecting_ = Fd(::socket(address.is_v6() ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int dscp = 0x28;
    ::setsockopt(connecting_.get(), address.is_v6() ? IPPROTO_IPV6 : IPPROTO_IP,
                 address.is_v6() ? IPV6_TCLASS : IP_TOS, &dscp, sizeof dscp);
    const Endpoint to = local(listener_.get());
    EXPECT_EQ(::connect(connecting_.get(), to.data(), static_cast<socklen_t>(to.size())), 0);
    accepted_ = Fd(::accept(listener_.get(), nullptr, nullptr));
    EXPECT_TRUE(accepted_);
  }

  static Endpoint local(int fd) {
    Endpoint endpoint;
    auto size = static_cast<socklen_t>(endpoint.capacity());
    EXPECT_EQ(::getsockname(fd, endpoint.data(), &size), 0);
    endpoint.resize(size);
    return endpoint;
  }

  std::unique_ptr<Io> io_ = *make_epoll_io();
  Fd listener_;
  Fd connecting_;
  Fd accepted_;
};

INSTANTIATE_TEST_SUITE_P(Loopback, TakeClient, testing::Values("127.0.0.1", "::1"),
                         [](const auto& address) { return address.index == 0 ? "IPv4" : "IPv6"; });

TEST_P(TakeClient, KnowsTheClientAndTheDscpOfItsSyn) {
  Client client;
  EXPECT_EQ(io_->take_client(accepted_.get(), client), 0);
  EXPECT_EQ(client.endpoint, local(connecting_.get()));
  EXPECT_EQ(client.dscp, 0x28);
}

TEST_P(TakeClient, ASecondTimeTheSynIsGoneAndTheClientIsStillKnown) {
  Client client;
  io_->take_client(accepted_.get(), client);
  Client again;
  EXPECT_EQ(io_->take_client(accepted_.get(), again), 0);
  EXPECT_EQ(again.endpoint, client.endpoint);
  EXPECT_EQ(again.dscp, 0);
}

TEST_P(TakeClient, AClientThatHasResetItsConnectionIsKnownByItsSyn) {
  const Endpoint was = local(connecting_.get());
  io_->close_with_reset(connecting_.release());
  Client client;
  EXPECT_EQ(io_->take_client(accepted_.get(), client), 0);
  EXPECT_EQ(client.endpoint, was);
}

}  // namespace
}  // namespace portway::test
