// Commands at a gateway: the nodes of its fleet, what it says of them in lists, and what is another server's.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <functional>
#include <string>
#include <vector>

#include "tests/client/fake_server.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using testing::StartsWith;

constexpr const char* kUp =
    R"({"id":"n1","state":"up","hostname":"n1.example","address":"https://n1:8443","version":"1.2.3",)"
    R"("load":{"instances":2,"port_forwards":30,"connections":400},"instances":2})";
constexpr const char* kLost = R"({"id":"n2","state":"lost","instances":1})";
constexpr const char* kNothingHere = R"({"title":"Not found","status":404,"code":"not_found",)"
                                     R"("detail":"There is nothing at this path."})";

/// A gateway or a node, by what GET /v1/info says, whose answer to anything else is `answer`.
class Server : public FakeServer {
 public:
  Server(const std::string& info, std::function<std::string(const std::string& request)> answer)
      : FakeServer("tcp", [info, answer = std::move(answer)](const std::string& request) {
          return request.starts_with("GET /v1/info ") ? http_answer(200, info) : answer(request);
        }) {}

  ClientRun run(const std::vector<std::string>& words) {
    return run_portway(words, {{"PORTWAY_SERVER", url()}});
  }
};

class GatewayServer : public Server {
 public:
  explicit GatewayServer(std::function<std::string(const std::string& request)> answer)
      : Server(R"({"role":"gateway","hostname":"gw"})", std::move(answer)) {}
  explicit GatewayServer(std::string answer)
      : GatewayServer([answer = std::move(answer)](const std::string&) { return answer; }) {}
};

class NodeServer : public Server {
 public:
  explicit NodeServer(std::string answer)
      : Server(R"({"hostname":"n1","io_backend":"uring"})",
               [answer = std::move(answer)](const std::string&) { return answer; }) {}
};

std::string nodes_of(const std::string& nodes, const std::string& more = "") {
  return http_answer(200, R"({"nodes":[)" + nodes + "]" + more + "}");
}

TEST(Fleet, ListsAllPagesOfNodes) {
  GatewayServer server([](const std::string& request) {
    const bool is_first = request.find("cursor=") == std::string::npos;
    return is_first ? nodes_of(kUp, R"(,"next_cursor":"n1")") : nodes_of(kLost);
  });
  const ClientRun run = server.run({"nodes"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out,
            "ID  STATE  HOSTNAME    INSTANCES  FORWARDS  CONNECTIONS  VERSION\n"
            "n1  up     n1.example  2          30        400          1.2.3\n"
            "n2  lost   -           1          -         -            -\n");
  EXPECT_THAT(server.requests(), ElementsAre(StartsWith("GET /nodes?limit=1000 "),
                                             StartsWith("GET /nodes?limit=1000&cursor=n1 ")));
  EXPECT_THAT(server.run({"nodes", "list", "--wide"}).out,
              AllOf(HasSubstr("ADDRESS"), HasSubstr("https://n1:8443")));
  const auto json = boost::json::parse(server.run({"nodes", "-o", "json"}).out);
  EXPECT_EQ(json.at("nodes").as_array().size(), 2);
  EXPECT_THAT(server.run({"-o", "yaml", "nodes"}).out, StartsWith("nodes:\n"));
}

TEST(Fleet, ListIsTheVerbOfNodesUnlessThereIsAnother) {
  GatewayServer server(nodes_of(kLost));
  EXPECT_EQ(server.run({"nodes", "--state", "lost"}).exit, 0);
  EXPECT_EQ(server.run({"--timeout", "5", "nodes", "list", "--state=lost"}).exit, 0);
  EXPECT_THAT(server.requests(), ElementsAre(StartsWith("GET /nodes?state=lost&limit=1000 "),
                                             StartsWith("GET /nodes?state=lost&limit=1000 ")));
  EXPECT_THAT(server.run({"nodes", "n1"}).err, HasSubstr("There is no command \"portway nodes n1\": list"));
  EXPECT_THAT(server.run({"nodes", "--help"}).out, HasSubstr("undrain"));
  EXPECT_THAT(server.run({"nodes", "--state", "gone"}).err, HasSubstr("--state"));
}

TEST(Fleet, ShowsAndDrainsANode) {
  GatewayServer server([](const std::string& request) {
    return http_answer(200, request.starts_with("GET") ? std::string(R"({"node":)") + kUp + "}"
                                                       : R"({"node":{"draining":true}})");
  });
  EXPECT_THAT(server.run({"nodes", "show", "n1"}).out,
              AllOf(HasSubstr("hostname:   n1.example\n"), HasSubstr("port_forwards=30")));
  EXPECT_EQ(server.run({"nodes", "drain", "n/1"}).out, "draining:  true\n");
  EXPECT_EQ(server.run({"nodes", "undrain", "n1"}).exit, 0);
  EXPECT_THAT(server.requests(),
              ElementsAre(StartsWith("GET /nodes/n1 "), StartsWith("POST /nodes/n%2F1/drain "),
                          StartsWith("DELETE /nodes/n1/drain ")));
}

TEST(Fleet, NamesTheNodeThatACommandIsFor) {
  GatewayServer server(http_answer(201, R"({"instance":{"id":"vm-1"}})"));
  EXPECT_EQ(server
                .run({"instances", "put", "vm-1", "--node", "n1", "--guest-address", "198.18.0.2", "--tap",
                      "tap0", "--owner", "alice"})
                .exit,
            0);
  EXPECT_THAT(server.requests(), ElementsAre(AllOf(StartsWith("PUT /instances/vm-1?node=n1 "),
                                                   EndsWith(R"("tap":"tap0","owner":"alice"})"))));
  GatewayServer of_process(http_answer(200, R"({"process":{"pid":1},"node":{"draining":false}})"));
  EXPECT_EQ(of_process.run({"node", "status", "--node", "n1"}).exit, 0);
  EXPECT_EQ(of_process.run({"drain", "--node", "n1"}).exit, 0);
  EXPECT_THAT(of_process.requests(),
              ElementsAre(StartsWith("GET /nodes/n1/v1/node "), StartsWith("POST /nodes/n1/v1/node/drain ")));
}

TEST(Fleet, AsksAGatewayForTheNodeWhileItReplacesItsDaemon) {
  int asked = 0;
  GatewayServer server([&asked](const std::string& request) {
    if (request.starts_with("POST /nodes/n1/v1/node/upgrade "))
      return http_answer(202, R"({"process":{"pid":1,"upgrading":true}})");
    if (++asked == 1) return problem_answer(503, R"({"title":"Gone","code":"node_unreachable"})");
    return http_answer(200, R"({"process":{"pid":2}})");
  });
  const ClientRun run = server.run({"node", "upgrade", "--node", "n1"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_THAT(server.requests().back(), StartsWith("GET /nodes/n1/v1/node "));
}

TEST(Fleet, ANodeIsToldFromAGateway) {
  NodeServer node(problem_answer(404, kNothingHere));
  for (const auto& words :
       std::vector<std::vector<std::string>>{{"nodes"}, {"nodes", "show", "n1"}, {"nodes", "drain", "n1"}}) {
    const ClientRun run = node.run(words);
    EXPECT_EQ(run.exit, 4);
    EXPECT_EQ(run.err, "portway: " + node.url() +
                           " is a node and not a gateway: it knows of no other nodes. Give the address of a "
                           "gateway in --server.\n");
  }
  EXPECT_THAT(node.run({"node", "status", "--node", "n1"}).err, HasSubstr("Leave out --node"));

  NodeServer of_parameters(problem_answer(
      400, R"({"title":"Invalid request","status":400,"code":"invalid_request","field":"node"})"));
  const ClientRun put = of_parameters.run(
      {"instances", "put", "vm-1", "--node", "n1", "--guest-address", "198.18.0.2", "--owner", "alice"});
  EXPECT_EQ(put.exit, 1);
  EXPECT_THAT(put.err, AllOf(HasSubstr("is a node and not a gateway"), HasSubstr("Leave out --node")));
}

TEST(Fleet, AGatewayIsToldFromANode) {
  GatewayServer gateway(problem_answer(404, kNothingHere));
  for (const auto& words : std::vector<std::vector<std::string>>{
           {"node", "status"}, {"drain"}, {"undrain"}, {"node", "upgrade"}}) {
    const ClientRun run = gateway.run(words);
    EXPECT_EQ(run.exit, 4);
    EXPECT_EQ(run.err, "portway: " + gateway.url() +
                           " is a gateway, and does not know which node is meant. Name it with --node; "
                           "portway nodes lists them.\n");
  }
  // What the gateway says of a node that it does not know is enough.
  EXPECT_THAT(gateway.run({"nodes", "show", "n9"}).err, HasSubstr("There is nothing at this path"));
  EXPECT_THAT(gateway.run({"instances", "get", "vm-1"}).err, HasSubstr("There is nothing at this path"));

  GatewayServer of_new(problem_answer(
      400, R"({"title":"Invalid request","status":400,"code":"invalid_request","field":"node"})"));
  EXPECT_THAT(
      of_new.run({"instances", "put", "vm-1", "--guest-address", "198.18.0.2", "--owner", "alice"}).err,
      HasSubstr("Name it with --node"));
}

TEST(Fleet, TakesTheHostNameFromEachForward) {
  GatewayServer server(http_answer(
      200,
      R"({"port_forwards":[{"id":"f-1","instance_id":"vm-1","host_port":1,"node":"n1","node_state":"up","hostname":"n1.example"},)"
      R"({"id":"f-2","instance_id":"vm-2","host_port":2,"node":"n2","node_state":"lost","hostname":"n2.example"}]})"));
  const ClientRun run = server.run({"forwards", "all"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out,
            "INSTANCE  NODE  NODE STATE  ID   ENDPOINT\n"
            "vm-1      n1    up          f-1  n1.example:1\n"
            "vm-2      n2    lost        f-2  n2.example:2\n");
}

TEST(Fleet, SaysOnceThatAListMayBeOld) {
  GatewayServer server([](const std::string& request) {
    const bool is_first = request.find("cursor=") == std::string::npos;
    return nodes_of(kUp, is_first ? R"(,"next_cursor":"n1")" : R"(,"stale":true)");
  });
  const std::string said = "portway: etcd cannot be reached by the gateway: the list may be old\n";
  EXPECT_EQ(server.run({"nodes"}).err, said);
  const ClientRun json = server.run({"nodes", "-o", "json"});
  EXPECT_EQ(json.err, said);
  EXPECT_TRUE(boost::json::parse(json.out).at("stale").as_bool());

  GatewayServer always(http_answer(200, R"({"connections":[],"stale":true})"));
  EXPECT_EQ(always.run({"connections", "watch", "vm-1", "f-1", "--interval", "1", "--count", "2"}).err, said);
  EXPECT_THAT(always.requests(), SizeIs(2));
  EXPECT_THAT(GatewayServer(nodes_of(kUp)).run({"nodes"}).err, IsEmpty());
}

TEST(Fleet, SaysWhenToTryANodeAgainThatCannotBeReached) {
  GatewayServer server(problem_answer(503,
                                      R"({"title":"Node unreachable","status":503,"code":"node_unreachable",)"
                                      R"("detail":"Node n1 is lost."})",
                                      "Retry-After: 10\r\n"));
  const ClientRun run = server.run({"forwards", "create", "vm-1", "3000"});
  EXPECT_EQ(run.exit, 6);
  EXPECT_EQ(run.err,
            "portway: Node unreachable: Node n1 is lost. Try again in 10 s. (code: node_unreachable, status: "
            "503)\n");
  EXPECT_THAT(server.requests(), SizeIs(1));
}

TEST(Fleet, DoctorIsForTheNodeThatItRunsOn) {
  GatewayServer server(http_answer(200, R"({"status":"ready","version":"1"})"));
  const ClientRun run = server.run({"doctor", "--server", server.url()});
  EXPECT_THAT(run.out,
              AllOf(HasSubstr("is a gateway, and this is about one node."), Not(HasSubstr("accepts"))));
}

}  // namespace
}  // namespace portway::test
