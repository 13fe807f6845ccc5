#include "api/fair_use.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "api/http/problem.h"
#include "tests/control/node.h"

namespace portway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::Node;
using testing::HasSubstr;

// --- Buckets.

class BucketsTest : public testing::Test {
 protected:
  /// Whether there were enough.
  bool take(const std::string& name, std::uint32_t units) {
    return !buckets_.take(name, units, rule_, now_).has_value();
  }
  std::uint32_t left(const std::string& name) { return buckets_.level(name, rule_, now_).units; }

  Buckets::Time now_{std::chrono::hours(1)};
  Buckets::Rule rule_{.per_unit = milliseconds(100), .size = 20};
  Buckets buckets_{3};
};

TEST_F(BucketsTest, BeginFullAndRefillSteadily) {
  EXPECT_EQ(left("a"), 20U);
  EXPECT_TRUE(take("a", 15));
  EXPECT_EQ(left("a"), 5U);
  EXPECT_EQ(buckets_.take("a", 8, rule_, now_), milliseconds(300)) << "and nothing is taken";
  EXPECT_EQ(left("a"), 5U);
  now_ += milliseconds(300);
  EXPECT_TRUE(take("a", 8));
  EXPECT_EQ(left("a"), 0U);
  EXPECT_EQ(buckets_.level("a", rule_, now_).until_full, seconds(2));
  now_ += seconds(60);
  EXPECT_EQ(left("a"), 20U) << "no more than it holds";
}

TEST_F(BucketsTest, AreEachTheirOwn) {
  EXPECT_TRUE(take("a", 20));
  EXPECT_FALSE(take("a", 1));
  EXPECT_TRUE(take("b", 20));
}

TEST_F(BucketsTest, GiveWhatCostsMoreThanTheyHoldToAFullOne) {
  EXPECT_TRUE(take("a", 100));
  EXPECT_EQ(left("a"), 0U);
  EXPECT_EQ(buckets_.take("a", 100, rule_, now_), seconds(2));
}

TEST_F(BucketsTest, CanOweAsMuchAsTheyHold) {
  EXPECT_TRUE(take("a", 20));
  buckets_.take_anyway("a", 1'000'000, rule_, now_);
  EXPECT_EQ(left("a"), 0U);
  EXPECT_EQ(buckets_.take("a", 1, rule_, now_), milliseconds(2100));
}

TEST_F(BucketsTest, NeedNoEntryWhileFull) {
  EXPECT_TRUE(take("a", 1));
  EXPECT_TRUE(take("b", 2));
  EXPECT_EQ(buckets_.size(), 2U);
  now_ += milliseconds(100);
  EXPECT_TRUE(take("c", 1));
  EXPECT_EQ(buckets_.size(), 2U) << "a's is full again";
  now_ += seconds(1);
  EXPECT_TRUE(take("c", 0));
  EXPECT_EQ(buckets_.size(), 0U);
}

TEST_F(BucketsTest, ForgetWhoHasUsedLeastIfThereAreTooMany) {
  EXPECT_TRUE(take("flood", 20));
  EXPECT_TRUE(take("b", 2));
  EXPECT_TRUE(take("c", 3));
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(take("other" + std::to_string(i), 1 + i % 3));
  EXPECT_EQ(buckets_.size(), 3U);
  EXPECT_FALSE(take("flood", 1)) << "whoever floods is remembered";
}

TEST_F(BucketsTest, ARuleThatChangesIsNoRefill) {
  EXPECT_TRUE(take("a", 20));
  rule_ = {.per_unit = milliseconds(50), .size = 40};
  EXPECT_EQ(left("a"), 0U);
  rule_ = {.per_unit = milliseconds(200), .size = 5};
  EXPECT_EQ(left("a"), 0U);
  now_ += milliseconds(1999);
  EXPECT_EQ(left("a"), 4U);
}

// --- Callers.

Principal tenant(const std::string& owner) {
  return {.key_id = make_uuid(), .role = Role::kTenant, .owner = owner};
}
Principal admin() {
  return {.key_id = make_uuid(), .role = Role::kAdmin, .owner = "orchestrator"};
}

class FairUseTest : public testing::Test {
 protected:
  bool serves(const Principal& caller, std::uint32_t units = 1) {
    return fair_use_.charge(caller, units).has_value();
  }
  /// How many requests that cost 1 are served now.
  std::uint32_t flood(const Principal& caller) {
    std::uint32_t served = 0;
    while (served < 10'000 && serves(caller)) ++served;
    return served;
  }
  std::string left(const Principal& caller) {
    Response answer;
    fair_use_.settle(caller, answer);
    return Node::header(answer, "RateLimit");
  }
  ErrorCode wrong_key(const std::string& address) {
    Request request;
    request.peer = boost::asio::ip::make_address(address);
    return refusal_of(request).code;
  }
  Error refusal_of(const Request& request) {
    return fair_use_.refuse_wrong_key(request, {ErrorCode::kUnauthorized, "unknown"});
  }
  std::uint64_t throttled(ThrottleReason reason) {
    return stats_.throttled[static_cast<std::size_t>(reason)];
  }

  Config::Api config_{.rate_limit_per_second = 10, .rate_limit_burst = 40, .wrong_keys_per_minute = 6};
  ApiStats stats_;
  Buckets::Time now_{std::chrono::hours(1)};
  FairUse fair_use_{config_, stats_, [this] { return now_; }};
};

TEST_F(FairUseTest, OwnersDoNotFeelEachOther) {
  EXPECT_EQ(flood(tenant("mallory")), 40U);
  EXPECT_FALSE(serves(tenant("mallory"))) << "another key of the same owner";
  EXPECT_EQ(flood(tenant("alice")), 40U);
  now_ += seconds(1);
  EXPECT_EQ(flood(tenant("mallory")), 10U);
  EXPECT_EQ(throttled(ThrottleReason::kOwner), 4U);
  EXPECT_EQ(throttled(ThrottleReason::kAdmin), 0U);
}

TEST_F(FairUseTest, AnAdminKeyHasTenTimesAsMuchWhateverTenantsAndOtherAdminsUse) {
  flood(tenant("orchestrator"));
  const Principal one = admin();
  EXPECT_EQ(flood(one), 400U);
  EXPECT_EQ(throttled(ThrottleReason::kAdmin), 1U);
  EXPECT_EQ(flood(admin()), 400U) << "another key of the same name";
  EXPECT_EQ(flood(admin_user(0)), 400U);
  EXPECT_EQ(flood(admin_user(1000)), 400U);
  now_ += seconds(1);
  EXPECT_EQ(flood(one), 100U);
}

TEST_F(FairUseTest, ATableFullOfTenantsTakesNothingFromAdminsAndForgetsNoFlood) {
  const Principal one = admin();
  flood(one);
  flood(tenant("mallory"));
  for (std::size_t i = 0; i < FairUse::kOwnersMax + 100; ++i) {
    ASSERT_TRUE(serves(tenant("owner" + std::to_string(i))));
  }
  EXPECT_EQ(fair_use_.owners().size(), FairUse::kOwnersMax);
  EXPECT_FALSE(serves(tenant("mallory")));
  EXPECT_FALSE(serves(one)) << "admins are in another table";
  EXPECT_TRUE(serves(admin()));
  now_ += seconds(10);
  EXPECT_TRUE(serves(tenant("alice")));
  EXPECT_EQ(fair_use_.owners().size(), 1U);
}

TEST_F(FairUseTest, ARefusalSaysWhenToTryAgain) {
  const Principal alice = tenant("alice");
  EXPECT_TRUE(serves(alice, 40));
  const Error refused = fair_use_.charge(alice, 15).error();
  EXPECT_EQ(refused.code, ErrorCode::kRateLimited);
  EXPECT_EQ(refused.limit, 40);
  EXPECT_THAT(refused.detail, HasSubstr("this request costs 15"));
  Response answer = problem(refused, "r");
  EXPECT_EQ(Node::header(answer, "Retry-After"), "2");
  fair_use_.settle(alice, answer);
  EXPECT_EQ(Node::header(answer, "RateLimit"), R"("default";r=0;t=2)") << "of the same time as Retry-After";
  EXPECT_EQ(fair_use_.charge(alice, 1).error().retry_after, seconds(1)) << "at least";
  now_ += seconds(2);
  EXPECT_TRUE(serves(alice, 15));
}

TEST_F(FairUseTest, EachAnswerSaysWhatIsLeft) {
  const Principal alice = tenant("alice");
  EXPECT_TRUE(serves(alice, 5));
  Response answer;
  fair_use_.settle(alice, answer);
  EXPECT_EQ(Node::header(answer, "RateLimit-Policy"), R"("default";q=40;w=4)");
  EXPECT_EQ(Node::header(answer, "RateLimit"), R"("default";r=35;t=1)");
  EXPECT_EQ(left(admin()), R"("default";r=400;t=0)");
}

TEST_F(FairUseTest, AnAnswerCostsItsBytes) {
  const Principal alice = tenant("alice");
  Response answer;
  answer.body.resize(10 * FairUse::kBytesPerUnit + 1);
  fair_use_.settle(alice, answer);
  EXPECT_EQ(left(alice), R"("default";r=30;t=1)");
  answer.body.resize(1000 * FairUse::kBytesPerUnit);
  fair_use_.settle(alice, answer);
  EXPECT_EQ(left(alice), R"("default";r=0;t=8)");
  EXPECT_FALSE(serves(alice));
  now_ += milliseconds(4100);
  EXPECT_TRUE(serves(alice));
}

TEST_F(FairUseTest, IsOffAtZeroAndFollowsTheConfiguration) {
  const Principal alice = tenant("alice");
  flood(alice);
  config_.rate_limit_per_second = 0;
  EXPECT_TRUE(serves(alice));
  Response answer;
  fair_use_.settle(alice, answer);
  EXPECT_TRUE(answer.headers.empty());
  config_.rate_limit_per_second = 20;
  now_ += seconds(1);
  EXPECT_FALSE(serves(alice)) << "turning it off and on again refills nothing";
  now_ += seconds(4);
  EXPECT_EQ(flood(alice), 40U);
}

TEST_F(FairUseTest, WrongKeysAreCountedBySource) {
  for (int i = 0; i < 6; ++i) EXPECT_EQ(wrong_key("192.0.2.1"), ErrorCode::kUnauthorized);
  EXPECT_EQ(wrong_key("192.0.2.1"), ErrorCode::kRateLimited);
  EXPECT_EQ(throttled(ThrottleReason::kWrongKey), 1U);
  EXPECT_EQ(wrong_key("192.0.2.2"), ErrorCode::kUnauthorized);
  for (int i = 0; i < 6; ++i) wrong_key("2001:db8::" + std::to_string(i));
  EXPECT_EQ(wrong_key("2001:db8::ffff"), ErrorCode::kRateLimited) << "of the same network";
  EXPECT_EQ(wrong_key("2001:db8:0:1::1"), ErrorCode::kUnauthorized);
  Request request;
  request.peer_credentials = PeerCredentials{.pid = 1, .uid = 1000, .gid = 1000};
  for (int i = 0; i < 6; ++i) refusal_of(request);
  const Error refused = refusal_of(request);
  EXPECT_EQ(refused.code, ErrorCode::kRateLimited);
  EXPECT_EQ(refused.retry_after, seconds(10));
  request.peer_credentials->uid = 1001;
  EXPECT_EQ(refusal_of(request).code, ErrorCode::kUnauthorized);
  now_ += seconds(10);
  EXPECT_EQ(wrong_key("192.0.2.1"), ErrorCode::kUnauthorized);
  config_.wrong_keys_per_minute = 0;
  EXPECT_EQ(wrong_key("192.0.2.1"), ErrorCode::kUnauthorized);
}

TEST_F(FairUseTest, RemembersABoundedNumberOfSources) {
  for (int i = 0; i < 6; ++i) wrong_key("192.0.2.1");
  for (std::uint32_t i = 0; i < FairUse::kSourcesMax + 100; ++i) {
    wrong_key(boost::asio::ip::address_v4(0x0a000000 + i).to_string());
  }
  EXPECT_EQ(fair_use_.sources().size(), FairUse::kSourcesMax);
  EXPECT_EQ(wrong_key("192.0.2.1"), ErrorCode::kRateLimited);
}

// --- The API.

TEST(FairUseOfTheApi, AGoodKeyIsServedBesideAFloodOfWrongOnes) {
  Node node;
  node.put("vm-1");
  const std::string alice = node.tenant_key();
  const auto status = [&](std::string_view key) {
    return node.call("GET", "/instances/vm-1", "", key).status;
  };
  for (int i = 0; i < 60; ++i) EXPECT_EQ(status("pwk_wrong"), 401U);
  const Response refused = node.call("GET", "/instances/vm-1", "", "pwk_other");
  EXPECT_EQ(refused.status, 429U);
  EXPECT_EQ(Node::code(refused), "rate_limited");
  EXPECT_EQ(Node::header(refused, "Retry-After"), "1");
  EXPECT_EQ(Node::header(refused, "RateLimit"), "") << "nobody's";
  EXPECT_EQ(status(alice), 200U);
  EXPECT_EQ(status(Node::kAdminKey), 200U);
  EXPECT_EQ(status(""), 401U) << "no key is no wrong one";
  EXPECT_EQ(status("pwk_wrong"), 429U);
  node.time_passed += seconds(1);
  EXPECT_EQ(status("pwk_wrong"), 401U);
}

TEST(FairUseOfTheApi, RequestsCostWhatTheyCost) {
  Node node;
  node.put("vm-1");
  const std::string alice = node.tenant_key();
  node.config().api.rate_limit_per_second = 1;
  node.config().api.rate_limit_burst = 1000;
  int before = 1000;
  const auto cost = [&](const char* method, const std::string& path, const std::string& body = "") {
    const std::string left = Node::header(node.call(method, path, body, alice), "RateLimit");
    const int now = std::stoi(left.substr(left.find("r=") + 2));
    return std::exchange(before, now) - now;
  };
  const std::string forwards = "/instances/vm-1/port-forwards";
  EXPECT_EQ(cost("GET", "/instances/vm-1"), 1);
  EXPECT_EQ(cost("HEAD", "/instances/vm-1"), 1);
  EXPECT_EQ(cost("GET", "/instances/none"), 1) << "also if there is nothing";
  EXPECT_EQ(cost("GET", "/instances"), 5);
  EXPECT_EQ(cost("GET", "/port-forwards"), 5);
  EXPECT_EQ(cost("POST", forwards, R"({"guest_port": 3000})"), 5);
  EXPECT_EQ(cost("POST", forwards, R"({"guest_port": 22})"), 5) << "also if it is refused";
  EXPECT_EQ(cost("POST", forwards + ":batch", R"({"port_forwards": []})"), 20);
  EXPECT_EQ(cost("PUT", "/instances/vm-1", "{}"), 5) << "also if it is forbidden";
  EXPECT_EQ(cost("GET", "/v1/whoami"), 1);
  EXPECT_EQ(Node::header(node.call("GET", "/healthz", "", alice), "RateLimit"), "") << "needs no key";
}

TEST(FairUseOfTheApi, AnOwnerThatFloodsIsRefusedBeforeItsBodiesAreRead) {
  Node node;
  node.put("vm-1");
  const std::string mallory = node.tenant_key("mallory");
  const std::string alice = node.tenant_key("alice");
  node.config().api.rate_limit_per_second = 1;
  node.config().api.rate_limit_burst = 10;
  const Request change = Node::request_of("POST", "/instances/vm-1/port-forwards", "{}", mallory);
  EXPECT_FALSE(node.api().admit(change).refusal);
  EXPECT_FALSE(node.api().admit(change).refusal);
  const auto refused = node.api().admit(change).refusal;
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->status, 429U);
  EXPECT_EQ(Node::header(*refused, "Retry-After"), "5");
  EXPECT_EQ(Node::header(*refused, "RateLimit-Policy"), R"("default";q=10;w=10)");
  EXPECT_EQ((node.stats.requests[{"/instances/{id}/port-forwards", 429}]), 1U);
  EXPECT_EQ(node.call("GET", "/instances/vm-1", "", alice).status, 200U);
  EXPECT_EQ(node.call("GET", "/instances/vm-1").status, 200U) << "an admin's";
  node.time_passed += seconds(5);
  EXPECT_FALSE(node.api().admit(change).refusal);
}

}  // namespace
}  // namespace portway
