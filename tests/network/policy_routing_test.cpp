// What the kernel says of the node's addresses, in a network namespace.
#include "network/policy_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(PolicyRouting, FindsTheAddressesThatTheNodeHasLost) {
  PORTWAY_NEEDS(test::why_no_namespaces());
  const test::NetworkNamespace network;
  std::vector<IpAddress> addresses;
  for (const char* each : {"0.0.0.0", "::", "127.0.0.1", "198.18.0.1", "fd00::1", "198.18.7.7"}) {
    addresses.push_back(boost::asio::ip::make_address(each));
  }
  const IpAddress v4 = addresses[3];
  const IpAddress v6 = addresses[4];
  const IpAddress any_ip = addresses[5];
  network.run([&] {
    EXPECT_THAT(addresses_lost(addresses), ElementsAre(v4, v6, any_ip)) << "without a route to them";
    network.ip("link add eth0 type veth peer name peer");
    network.ip("link set eth0 up");
    network.ip("link set peer up");
    network.ip("address add 198.18.1.1/24 dev eth0");
    network.ip("route add default via 198.18.1.2");
    EXPECT_THAT(addresses_lost(addresses), ElementsAre(v4, v6, any_ip)) << "with one";
    network.ip("address add 198.18.0.1/32 dev eth0");
    network.ip("address add fd00::1/64 dev eth0 nodad");
    network.ip("route add local 198.18.7.0/24 dev lo");
    EXPECT_THAT(addresses_lost(addresses), IsEmpty());
    network.ip("link set eth0 down");
    EXPECT_THAT(addresses_lost({&v4, 1}), IsEmpty()) << "it is the node's on every interface";
    network.ip("address del 198.18.0.1/32 dev eth0");
    EXPECT_THAT(addresses_lost({&v4, 1}), ElementsAre(v4));
  });
}

}  // namespace
}  // namespace portway
