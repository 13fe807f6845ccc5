#include "fleet/fleet_keys.h"

#include <gtest/gtest.h>

#include <string>

namespace portway::test {
namespace {

using Kind = FleetKey::Kind;

TEST(FleetKeys, ReadWhatTheyWrite) {
  const FleetKeys keys("/p/");
  const Uuid id = make_uuid();
  EXPECT_EQ(keys.parse(keys.node("n")), (FleetKey{.kind = Kind::kNode, .node = "n"}));
  EXPECT_EQ(keys.parse(keys.claim("i")), (FleetKey{.kind = Kind::kClaim, .instance_id = "i"}));
  EXPECT_EQ(keys.parse(keys.instance("n", "i")),
            (FleetKey{.kind = Kind::kInstance, .node = "n", .instance_id = "i"}));
  EXPECT_EQ(keys.parse(keys.forward("n", "i", id)),
            (FleetKey{.kind = Kind::kForward, .node = "n", .instance_id = "i", .forward = id}));
  EXPECT_EQ(keys.parse(keys.api_key(id)), (FleetKey{.kind = Kind::kApiKey, .api_key = id}));
  EXPECT_EQ(keys.parse(keys.profile("large")), (FleetKey{.kind = Kind::kProfile, .profile = "large"}));
}

TEST(FleetKeys, AreNothingElse) {
  const FleetKeys keys("/p/");
  const std::string id = to_string(make_uuid());
  for (const std::string& key :
       {std::string(""), std::string("/p/"), std::string("/q/nodes/n"), std::string("/p/nodes/"),
        std::string("/p/nodes/n/x"), std::string("/p/other/n"), std::string("/p/state/n"),
        std::string("/p/state//instances/i"), std::string("/p/state/n/instances/"),
        std::string("/p/state/n/other/i"), std::string("/p/state/n/forwards/i"),
        "/p/state/n/forwards/i/" + id + "x", "/p/state/n/forwards//" + id, std::string("/p/keys/"),
        std::string("/p/keys/x"), "/p/keys/" + id + "/", "/p/keys/{" + id + "}", std::string("/p/profiles/"),
        std::string("/p/profiles/a b")}) {
    EXPECT_FALSE(keys.parse(key)) << key;
  }
}

}  // namespace
}  // namespace portway::test
