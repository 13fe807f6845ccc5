// Instances over the API. Sessions and their ends: tests/control/sessions_test.cpp.

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

TEST(Api, AGuestAddressThatLeadsIntoTheNodeIsRefused) {
  Node node;
  for (const std::string address : {"127.0.0.1", "169.254.169.254", "10.0.0.1", "nonsense", "0.0.0.0"}) {
    const Response response =
        node.call("PUT", "/instances/vm-1",
                  R"({"guest_address": ")" + address + R"(", "tap": "tap0", "owner": "alice"})");
    EXPECT_EQ(response.status, 422U) << address;
    EXPECT_EQ(Node::code(response), "invalid_address") << address;
  }
}

TEST(Api, AnInstanceHasOneGuestAddressOrOneOfEachFamily) {
  Node node;
  const auto put = [&](const std::string& fields) {
    return node.call("PUT", "/instances/vm-1", "{" + fields + R"(, "tap": "tap0", "owner": "alice"})");
  };
  struct Case {
    std::string fields;
    boost::json::array addresses;
  };
  for (const Case& each : {
           Case{R"("guest_address": "198.19.0.2")", {"198.19.0.2"}},
           Case{R"("guest_address": "fd00:19::2")", {"fd00:19::2"}},
           Case{R"("guest_addresses": ["fd00:19::2"])", {"fd00:19::2"}},
           Case{R"("guest_addresses": ["198.19.0.2", "fd00:19::2"])", {"198.19.0.2", "fd00:19::2"}},
           Case{R"("guest_addresses": ["fd00:19::2", "198.19.0.2"])", {"198.19.0.2", "fd00:19::2"}},
           Case{R"("guest_address": "fd00:19::2", "guest_addresses": ["198.19.0.2", "fd00:19::2"])",
                {"198.19.0.2", "fd00:19::2"}},
           Case{R"("guest_address": "198.19.0.2", "guest_addresses": null)", {"198.19.0.2"}},
       }) {
    const Response response = put(each.fields);
    ASSERT_LT(response.status, 300U) << each.fields << response.body;
    const auto instance = Node::json(response).at("instance").as_object();
    EXPECT_EQ(instance.at("guest_addresses"), each.addresses) << each.fields;
    EXPECT_EQ(instance.at("guest_address"), each.addresses.at(0)) << each.fields;
  }
}

TEST(Api, GuestAddressesThatMakeNoSenseAreRefusedByField) {
  Node node;
  struct Case {
    std::string fields;
    std::string code;
    std::string field;
  };
  for (const Case& each : {
           Case{R"("profile": "default")", "invalid_request", "guest_address"},
           Case{R"("guest_addresses": "198.19.0.2")", "invalid_request", "guest_addresses"},
           Case{R"("guest_addresses": [])", "invalid_request", "guest_addresses"},
           Case{R"("guest_address": "198.19.0.2", "guest_addresses": [])", "invalid_request",
                "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "fd00:19::2", "fd00:19::3"])", "invalid_request",
                "guest_addresses"},
           Case{R"("guest_addresses": [7])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "nonsense"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "198.19.0.3"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "::ffff:198.19.0.2"])", "invalid_address",
                "guest_addresses"},
           Case{R"("guest_addresses": ["fd00:19::2", "fd00:19::3"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "::1"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "fe80::2"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "2001:db8::2"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["127.0.0.1", "fd00:19::2"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_address": "198.19.0.3", "guest_addresses": ["198.19.0.2", "fd00:19::2"])",
                "invalid_address", "guest_address"},
           Case{R"("guest_address": "", "guest_addresses": ["198.19.0.2"])", "invalid_address",
                "guest_address"},
       }) {
    const Response response =
        node.call("PUT", "/instances/vm-1", "{" + each.fields + R"(, "tap": "tap0", "owner": "alice"})");
    EXPECT_EQ(response.status, 422U) << each.fields;
    EXPECT_EQ(Node::code(response), each.code) << each.fields << response.body;
    EXPECT_EQ(Node::json(response).at("field").as_string(), each.field) << each.fields << response.body;
  }
}

}  // namespace
}  // namespace portway
