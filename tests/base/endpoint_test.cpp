#include "base/endpoint.h"

#include <gtest/gtest.h>

#include <string>

namespace portway {
namespace {

using boost::asio::ip::address_v6;
using boost::asio::ip::make_address;

TEST(Address, IsParsedInItsUsualSpellings) {
  for (const char* text : {"198.18.0.2", "0.0.0.0", "255.255.255.255", "fd00::2", "::", "::1"}) {
    const auto address = parse_address(text);
    ASSERT_TRUE(address) << text;
    EXPECT_EQ(address->to_string(), text);
  }
}

TEST(Address, AnythingElseIsRefused) {
  for (const std::string_view text :
       {std::string_view(""), std::string_view("198.18.0"), std::string_view("198.18.0.256"),
        std::string_view("198.18.0.02"), std::string_view("198.18.0.2 "), std::string_view("198.18.0.2:80"),
        std::string_view("0x7f.1"), std::string_view("2130706433"), std::string_view("fe80::1%eth0"),
        std::string_view("[fd00::2]"), std::string_view("localhost"), std::string_view("fd00:::2"),
        std::string_view("198.18.0.2\0.evil", 16)}) {
    const auto address = parse_address(text);
    ASSERT_FALSE(address) << text;
    EXPECT_EQ(address.error().code, ErrorCode::kInvalidAddress);
  }
}

TEST(Address, Ipv4MappedIpv6IsTheIpv4Host) {
  EXPECT_EQ(*parse_address("::ffff:198.18.0.2"), make_address("198.18.0.2"));
  EXPECT_EQ(*parse_address("::ffff:7f00:1"), make_address("127.0.0.1"));
}

TEST(EndpointText, GoesBothWays) {
  for (const char* text : {"198.18.0.2:80", "[fd00::2]:80", "127.0.0.1:0", "0.0.0.0:65535"}) {
    const auto endpoint = parse_endpoint(text);
    ASSERT_TRUE(endpoint) << text;
    EXPECT_EQ(to_string(*endpoint), text);
  }
}

TEST(EndpointText, AnythingElseIsRefused) {
  for (const char* text :
       {"", ":", "80", ":80", "198.18.0.2", "198.18.0.2:", "198.18.0.2:65536", "198.18.0.2:-1",
        "198.18.0.2:+1", "198.18.0.2: 80", "198.18.0.2:80 ", "198.18.0.2:http", "fd00::2:80", "[fd00::2]",
        "[fd00::2]80", "[198.18.0.2]:80", "[]:80", "localhost:80", "198.18.0.2:080000000000000000000080"}) {
    EXPECT_FALSE(parse_endpoint(text)) << text;
  }
}

TEST(Endpoint, OnlyAnAddressOfALinkNamesIt) {
  const auto scope = [](std::string_view text) {
    const Endpoint on = on_link({*parse_address(text), 3000}, 7);
    EXPECT_EQ(on.port(), 3000);
    EXPECT_EQ(folded(on.address()), *parse_address(text));
    return on.address().is_v6() ? on.address().to_v6().scope_id() : 0;
  };
  EXPECT_EQ(scope("fe80::2"), 7U);
  EXPECT_EQ(scope("febf::2"), 7U);
  for (const char* text : {"fec0::2", "fd00::2", "::1", "169.254.0.2", "198.18.0.2"})
    EXPECT_EQ(scope(text), 0U) << text;
}

TEST(Cidr, ContainsItsHostsAndNoOthers) {
  const Cidr network = *Cidr::parse("198.18.0.0/15");
  EXPECT_TRUE(network.contains(make_address("198.18.0.0")));
  EXPECT_TRUE(network.contains(make_address("198.19.255.255")));
  EXPECT_FALSE(network.contains(make_address("198.17.255.255")));
  EXPECT_FALSE(network.contains(make_address("198.20.0.0")));
  EXPECT_FALSE(network.contains(make_address("fd00::1")));

  const Cidr six = *Cidr::parse("fd00:0:0:8000::/49");
  EXPECT_TRUE(six.contains(make_address("fd00:0:0:8000::")));
  EXPECT_TRUE(six.contains(make_address("fd00:0:0:ffff:ffff:ffff:ffff:ffff")));
  EXPECT_FALSE(six.contains(make_address("fd00:0:0:7fff:ffff:ffff:ffff:ffff")));
  EXPECT_FALSE(six.contains(make_address("198.18.0.1")));
}

TEST(Cidr, ReachesFromEverythingToOneHost) {
  EXPECT_TRUE(Cidr::parse("0.0.0.0/0")->contains(make_address("203.0.113.7")));
  EXPECT_FALSE(Cidr::parse("0.0.0.0/0")->contains(make_address("2001:db8::7")));
  EXPECT_TRUE(Cidr::parse("::/0")->contains(make_address("2001:db8::7")));
  for (const char* text : {"198.18.0.2", "198.18.0.2/32"}) {
    EXPECT_TRUE(Cidr::parse(text)->contains(make_address("198.18.0.2")));
    EXPECT_FALSE(Cidr::parse(text)->contains(make_address("198.18.0.3")));
  }
  EXPECT_EQ(Cidr::parse("fd00::2")->to_string(), "fd00::2/128");
  EXPECT_EQ(Cidr::parse("198.18.0.0/15")->to_string(), "198.18.0.0/15");
}

TEST(Cidr, AClientOfADualStackListenerIsItsIpv4Self) {
  EXPECT_TRUE(Cidr::parse("198.18.0.0/15")->contains(make_address("::ffff:198.18.0.2")));
}

TEST(Cidr, AZoneDoesNotMatter) {
  const address_v6 zoned(make_address("fe80::1").to_v6().to_bytes(), 7);
  EXPECT_TRUE(Cidr::parse("fe80::/10")->contains(zoned));
}

TEST(Cidr, HostBitsAreATypingErrorAndTheRemedyIsNamed) {
  const auto network = Cidr::parse("198.18.0.1/15");
  ASSERT_FALSE(network);
  EXPECT_NE(network.error().detail.find("198.18.0.0/15"), std::string::npos) << network.error().detail;
  EXPECT_FALSE(Cidr::parse("fd00::1/64"));
}

TEST(Cidr, AnythingElseIsRefused) {
  for (const char* text : {"", "/", "/8", "198.18.0.0/", "198.18.0.0/33", "198.18.0.0/-1", "198.18.0.0/15/16",
                           "fd00::/129", "::ffff:198.18.0.0/111", "198.18/15", "guests"}) {
    EXPECT_FALSE(Cidr::parse(text)) << text;
  }
}

TEST(PortRangeText, GoesBothWays) {
  EXPECT_EQ(*parse_port_range("20000-32767"), (PortRange{20000, 32767}));
  EXPECT_EQ(*parse_port_range("1-65535"), (PortRange{1, 65535}));
  EXPECT_EQ(*parse_port_range("20000"), (PortRange{20000, 20000}));
  EXPECT_EQ(to_string(PortRange{20000, 32767}), "20000-32767");
  for (const char* text : {"", "-", "0-10", "10-9", "1-65536", "1-", "-1", "1 - 2", "1-2-3", "a-b"}) {
    EXPECT_FALSE(parse_port_range(text)) << text;
  }
}

TEST(PortRange, CountsBothEnds) {
  EXPECT_EQ((PortRange{1, 65535}.size()), 65535U);
  EXPECT_EQ((PortRange{7, 7}.size()), 1U);
  EXPECT_TRUE((PortRange{7, 8}.contains(8)));
  EXPECT_FALSE((PortRange{7, 8}.contains(9)));
}

}  // namespace
}  // namespace portway
