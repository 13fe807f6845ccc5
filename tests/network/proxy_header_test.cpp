#include "network/proxy_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace portway {
namespace {

using testing::ElementsAre;

Endpoint endpoint(std::string_view text) {
  return parse_endpoint(text).value();
}

TEST(ProxyHeader, OfIpv4HasBothAddressesAndPorts) {
  EXPECT_THAT(proxy_header(endpoint("198.18.1.2:40000"), endpoint("203.0.113.7:38492")).view(),
              ElementsAre(0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a,  //
                          0x21, 0x11, 0x00, 0x0c,                                                  //
                          198, 18, 1, 2, 203, 0, 113, 7, 0x9c, 0x40, 0x96, 0x5c));
}

TEST(ProxyHeader, OfIpv6HasBothAddressesAndPorts) {
  EXPECT_THAT(proxy_header(endpoint("[fd00:1::2]:1"), endpoint("[2001:db8::ff]:65535")).view(),
              ElementsAre(0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a,  //
                          0x21, 0x21, 0x00, 0x24,                                                  //
                          0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,                       //
                          0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff,           //
                          0x00, 0x01, 0xff, 0xff));
}

TEST(ProxyHeader, OfAnIpv4ClientThroughAnIpv6SocketIsIpv4) {
  const Endpoint client(boost::asio::ip::make_address("::ffff:198.18.1.2"), 40000);
  const Endpoint node(boost::asio::ip::make_address("::ffff:203.0.113.7"), 38492);
  EXPECT_TRUE(
      std::ranges::equal(proxy_header(client, node).view(),
                         proxy_header(endpoint("198.18.1.2:40000"), endpoint("203.0.113.7:38492")).view()));
}

TEST(ProxyHeader, OfTwoFamiliesMapsTheIpv4Address) {
  EXPECT_THAT(proxy_header(endpoint("198.18.1.2:1"), endpoint("[fd00::7]:2")).view(),
              ElementsAre(0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a,  //
                          0x21, 0x21, 0x00, 0x24,                                                  //
                          0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 1, 2,                 //
                          0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,                       //
                          0x00, 0x01, 0x00, 0x02));
}

TEST(ProxyHeader, OfTheNodesOwnConnectionsHasNoAddresses) {
  EXPECT_THAT(local_proxy_header().view(), ElementsAre(0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55,
                                                       0x49, 0x54, 0x0a, 0x20, 0x00, 0x00, 0x00));
}

}  // namespace
}  // namespace portway
