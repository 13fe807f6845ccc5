// Metrics over the API, and on their own listener.

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

TEST(Api, MetricsComeInTheRequestedScope) {
  Node node;
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics")), "metrics of scope 0");
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics?scope=all")), "metrics of scope 0");
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics?scope=node")), "metrics of scope 1");
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics?scope=forwards")), "metrics of scope 2");
  const Response refused = node.call("GET", "/metrics?scope=clients");
  EXPECT_EQ(refused.status, 400U);
  EXPECT_EQ(Node::json(refused).at("field"), "scope");
  EXPECT_EQ(node.call("GET", "/metrics?scopes=node").status, 422U) << "unknown parameters are refused";
}

class OpenMetrics : public testing::Test {
 protected:
  Response get(std::string target, std::string accept_encoding = "") {
    Request request{
        .id = "r", .method = "GET", .target = std::move(target), .headers = {}, .body = {}, .peer = {}};
    if (!accept_encoding.empty()) request.headers["accept-encoding"] = std::move(accept_encoding);
    return node_.run(node_.api().handle_open_metrics(request));
  }

 private:
  Node node_;
};

TEST_F(OpenMetrics, ServesMetricsAndHealthWithoutAKeyAndNothingElse) {
  EXPECT_EQ(Node::whole(get("/metrics")), "metrics of scope 0");
  EXPECT_EQ(Node::whole(get("/metrics?scope=node")), "metrics of scope 1");
  EXPECT_EQ(get("/metrics?scope=x").status, 400U);
  EXPECT_EQ(get("/healthz").status, 200U);
  EXPECT_EQ(get("/instances").status, 404U);
}

TEST_F(OpenMetrics, AreCompressedForWhoTakesThat) {
  const Response plain = get("/metrics");
  EXPECT_EQ(Node::header(plain, "Content-Encoding"), "");
  EXPECT_EQ(Node::header(plain, "Vary"), "Accept-Encoding");
  const Response zipped = get("/metrics", "gzip");  // as Prometheus asks
  EXPECT_EQ(Node::header(zipped, "Content-Encoding"), "gzip");
  EXPECT_EQ(Node::whole(zipped).substr(0, 2), "\x1f\x8b");
}

}  // namespace
}  // namespace portway
