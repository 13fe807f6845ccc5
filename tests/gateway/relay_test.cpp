#include "gateway/relay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/caller_header.h"

namespace portway::test {
namespace {

using testing::Contains;
using testing::Pair;
using testing::UnorderedElementsAre;

TEST(RelayTest, ATargetArrivesAsItCame) {
  for (const char* target :
       {"/instances/vm-a", "/v1/instances/vm%2Da/port-forwards?label=a%20b&metadata=x%3Dy,z",
        "/instances/vm-a?", "/instances/vm-a?a=+%2B", "/instances/a%2Fb"}) {
    EXPECT_EQ(path_and_query(target), target);
    EXPECT_EQ(path_and_query("http://api.example.com" + std::string(target)), target);
    EXPECT_EQ(path_and_query("https://api.example.com:8443" + std::string(target)), target);
  }
}

TEST(RelayTest, TheTargetAtANodeIsWhatIsBehindIt) {
  for (const char* front :
       {"/nodes/n1", "/v1/nodes/n1", "/%76%31/nodes/n1", "http://a/v1/nodes/n1", "/nodes/v1"}) {
    for (const char* rest : {"/v1/info", "/metrics?scope=a%20b", "/instances/vm%2Da", "/nodes/x", "/events?"})
      EXPECT_EQ(target_at_node(std::string(front) + rest), rest) << front;
  }
}

class RelayedRequest : public testing::Test {
 protected:
  NodeRequest made(std::string target = "/t") {
    return request_for_node({.request = request_, .caller = caller_, .path = {}, .query = {}},
                            std::move(target));
  }

  Request request_;
  const Principal caller_{.key_id = make_uuid(), .owner = "alice"};
};

TEST_F(RelayedRequest, ItsHeadersAreThoseThatANodeNeeds) {
  request_.method = "PATCH";
  request_.body = "{}";
  request_.id = "r1";
  for (const char* name : {"accept", "content-type", "idempotency-key", "if-match", "if-none-match",
                           "last-event-id", "authorization", "cookie", "connection", "host",
                           "x-forwarded-for", "transfer-encoding", "portway-caller", "accept-encoding", "te"})
    request_.headers[name] = "value";
  const NodeRequest sent = made();
  EXPECT_THAT(sent.headers,
              UnorderedElementsAre(Pair("accept", "value"), Pair("content-type", "value"),
                                   Pair("idempotency-key", "value"), Pair("if-match", "value"),
                                   Pair("if-none-match", "value"), Pair("last-event-id", "value"),
                                   Pair("X-Request-Id", "r1"), Pair(kCallerHeader, caller_header(caller_))));
  EXPECT_EQ(sent.method + sent.target + sent.body, "PATCH/t{}");
}

TEST_F(RelayedRequest, OnlyWhatIsAsGoodTwiceIsRepeatable) {
  request_.method = "POST";
  EXPECT_FALSE(made().repeatable);
  request_.headers["idempotency-key"] = "k";
  EXPECT_TRUE(made("/instances/vm-1/port-forwards?a=b").repeatable);
  EXPECT_TRUE(made("/v1/instances/vm-1/port-forwards:batch").repeatable);
  EXPECT_FALSE(made("/v1/node/upgrade").repeatable) << "the node does not look at the key there";
  request_.method = "DELETE";
  EXPECT_FALSE(made("/instances/vm-1/port-forwards").repeatable);
  request_.headers.clear();
  for (const char* method : {"PUT", "PATCH", "DELETE"}) {
    request_.method = method;
    EXPECT_FALSE(made().repeatable) << method;
  }
  for (const char* method : {"GET", "HEAD"}) {
    request_.method = method;
    EXPECT_TRUE(made().repeatable) << method;
    EXPECT_EQ(made().method, "GET");
  }
}

}  // namespace
}  // namespace portway::test
