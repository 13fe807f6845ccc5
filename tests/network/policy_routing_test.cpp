// What the kernel reports about the node's addresses, in a network namespace.
#include "network/policy_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <memory>
#include <set>
#include <string>
#include <string_view>

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
    // The kernel makes an IPv6 address's local route a moment after the address.
    for (int tries = 0; tries < 10'000 && !addresses_lost({&v6, 1}).empty(); ++tries) ::poll(nullptr, 0, 1);
    EXPECT_THAT(addresses_lost(addresses), IsEmpty());
    network.ip("link set eth0 down");
    EXPECT_THAT(addresses_lost({&v4, 1}), IsEmpty()) << "it is the node's on every interface";
    network.ip("address del 198.18.0.1/32 dev eth0");
    EXPECT_THAT(addresses_lost({&v4, 1}), ElementsAre(v4));
  });
}

TEST(LocalAddresses, AreThoseThatTheLibraryKnows) {
  ifaddrs* list = nullptr;
  ASSERT_EQ(::getifaddrs(&list), 0);
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, &::freeifaddrs);
  std::set<std::string> known;
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    const int family = each->ifa_addr == nullptr ? AF_UNSPEC : each->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const auto size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    ASSERT_EQ(::getnameinfo(each->ifa_addr, static_cast<socklen_t>(size), text.data(), text.size(), nullptr,
                            0, NI_NUMERICHOST),
              0);
    const std::string_view address(text.data());
    known.emplace(address.substr(0, address.find('%')));
  }
  std::set<std::string> told;
  for (const IpAddress& address : local_addresses().value()) told.insert(address.to_string());
  EXPECT_EQ(told, known);
}

TEST(LocalAddresses, HaveLoopbackAmongThem) {
  const auto addresses = local_addresses();
  ASSERT_TRUE(addresses) << addresses.error().detail;
  // A namespace whose loopback is down has no address at all.
  if (addresses->empty()) GTEST_SKIP() << "this network namespace has no addresses";
  EXPECT_TRUE(std::any_of(addresses->begin(), addresses->end(),
                          [](const IpAddress& address) { return address.is_loopback(); }));
}

}  // namespace
}  // namespace portway
