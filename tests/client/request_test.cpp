// Commands against a fake server that answers like the API: requests, tables, JSON, exit codes, messages.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <filesystem>
#include <fstream>

#include "client/output.h"
#include "tests/client/fake_server.h"
#include "tests/support/network.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using testing::StartsWith;

constexpr const char* kForward =
    R"({"id":"f-1","instance_id":"vm-1","guest_port":3000,"host_port":38492,"protocol":"tcp","label":"dev-server"})";

/// A server that gives the same answer to every request.
class OneAnswer : public FakeServer {
 public:
  explicit OneAnswer(std::string answer)
      : FakeServer("tcp", [answer = std::move(answer)](const std::string&) { return answer; }) {}

  ClientRun run(const std::vector<std::string>& words,
                std::vector<std::pair<std::string, std::string>> environment = {}) {
    environment.emplace_back("PORTWAY_SERVER", url());
    return run_portway(words, environment);
  }
};

TEST(Request, CreatesAForwardAsTheApiSpecifiesAndPrintsItsEndpoint) {
  OneAnswer server(http_answer(
      201, std::string(R"({"port_forward":)") + kForward + R"(,"hostname":"compute-1.example"})"));
  const ClientRun run = server.run(
      {"forwards", "create", "vm-1", "3000", "--label", "dev-server", "--host-port", "38492",
       "--allowed-cidr", "198.18.0.0/16", "--allowed-cidr", "fd00::/8", "--idempotency-key", "once"},
      {{"PORTWAY_API_KEY", "pwk_secret"}});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, "compute-1.example:38492\n");
  ASSERT_THAT(server.requests(), SizeIs(1));
  const std::string request = server.requests().front();
  EXPECT_THAT(request, StartsWith("POST /instances/vm-1/port-forwards HTTP/1.1\r\n"));
  EXPECT_THAT(request, HasSubstr("\r\nAuthorization: Bearer pwk_secret\r\n"));
  EXPECT_THAT(request, HasSubstr("\r\nContent-Type: application/json\r\n"));
  EXPECT_THAT(request, HasSubstr("\r\nIdempotency-Key: once\r\n"));
  EXPECT_THAT(request, EndsWith(R"({"guest_port":3000,"label":"dev-server","host_port":38492,)"
                                R"("allowed_cidrs":["198.18.0.0/16","fd00::/8"]})"));
}

TEST(Request, CreatesAForwardToASocketWithoutAGuestPort) {
  OneAnswer server(http_answer(201, R"({"port_forward":{"host_port":1},"hostname":"h"})"));
  const ClientRun run = server.run({"forwards", "create", "vm-1", "--target", "firecracker_vsock", "--socket",
                                    "/run/fc/v.sock", "--vsock-port", "3000"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_THAT(server.requests(),
              ElementsAre(EndsWith(
                  "\r\n\r\n"
                  R"({"target":{"kind":"firecracker_vsock","socket":"/run/fc/v.sock","port":3000}})")));
}

TEST(Request, SendsOnlyWhatWasGiven) {
  OneAnswer server(http_answer(201, R"({"port_forward":{"host_port":1},"hostname":"h"})"));
  server.run({"forwards", "create", "vm-1", "3000"});
  EXPECT_THAT(server.requests(), ElementsAre(EndsWith("\r\n\r\n{\"guest_port\":3000}")));
  EXPECT_THAT(server.requests(), ElementsAre(Not(HasSubstr("Authorization"))));
}

TEST(Request, KeepsALabelThatLooksLikeANumberAString) {
  OneAnswer server(http_answer(201, R"({"port_forward":{"host_port":1},"hostname":"h"})"));
  server.run({"forwards", "create", "vm-1", "3000", "--label", "8080"});
  EXPECT_THAT(server.requests(), ElementsAre(EndsWith(R"("label":"8080"})")));
}

TEST(Request, RemovesLimits) {
  OneAnswer server(http_answer(200, R"({"port_forward":{"id":"f-1"}})"));
  const ClientRun run = server.run({"forwards", "update", "vm-1", "f-1", "--max-connections", "5",
                                    "--no-limit", "allowed-cidr", "--no-limit", "max-per-source"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_THAT(server.requests(),
              ElementsAre(EndsWith(
                  R"({"max_connections":5,"allowed_cidrs":null,"max_connections_per_source":null})")));
}

TEST(Request, DoesNotSendAContradictoryOrEmptyUpdate) {
  OneAnswer server(http_answer(200, R"({"port_forward":{"id":"f-1"}})"));
  const ClientRun nothing = server.run({"forwards", "update", "vm-1", "f-1"});
  EXPECT_EQ(nothing.exit, 2);
  EXPECT_THAT(nothing.err, HasSubstr("nothing to change"));
  const ClientRun both = server.run(
      {"forwards", "update", "vm-1", "f-1", "--max-connections", "5", "--no-limit", "max-connections"});
  EXPECT_EQ(both.exit, 2);
  EXPECT_THAT(both.err, HasSubstr("--max-connections sets what --no-limit max-connections removes"));
  EXPECT_EQ(server.run({"forwards", "update", "vm-1", "f-1", "--no-limit", "speed"}).exit, 2);
  EXPECT_THAT(server.requests(), IsEmpty());
}

TEST(Request, AForwardMayLeadWhereItsInstanceSays) {
  OneAnswer server(http_answer(201, std::string(R"({"port_forward":)") + kForward + R"(,"hostname":"h"})"));
  server.run({"instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner",
              "alice", "--target", "firecracker_vsock", "--socket", "/run/fc/v.sock"});
  server.run({"forwards", "create", "vm-1"});
  server.run({"forwards", "create", "vm-1", "3000", "--target", "tcp"});
  EXPECT_THAT(
      server.requests(),
      ElementsAre(HasSubstr(R"("target":{"kind":"firecracker_vsock","socket":"/run/fc/v.sock"})"),
                  EndsWith("\r\n\r\n{}"), EndsWith(R"({"guest_port":3000,"target":{"kind":"tcp"}})")));
}

TEST(Request, ChangesAndRemovesGuestAddresses) {
  OneAnswer server(http_answer(200, R"({"instance":{"id":"vm-1"}})"));
  server.run({"instances", "update", "vm-1", "--guest-address", "198.19.0.9", "--session-id", "s"});
  server.run({"instances", "update", "vm-1", "--guest-address-v6", "fd00::9"});
  const ClientRun run = server.run({"instances", "update", "vm-1", "--remove", "guest-address-v6"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_THAT(server.requests(), ElementsAre(AllOf(StartsWith("PATCH /instances/vm-1?session_id=s "),
                                                   EndsWith(R"({"guest_address":"198.19.0.9"})")),
                                             EndsWith(R"({"guest_address_v6":"fd00::9"})"),
                                             EndsWith(R"({"guest_address_v6":null})")));
}

TEST(Request, RegistersAGuestWithAnAddressOfEachFamily) {
  OneAnswer server(http_answer(200, R"({"instance":{"id":"vm-1"}})"));
  server.run({"instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--guest-address", "fd00::2",
              "--tap", "tap0", "--owner", "alice"});
  EXPECT_THAT(
      server.requests(),
      ElementsAre(EndsWith(R"({"guest_addresses":["198.19.0.2","fd00::2"],"tap":"tap0","owner":"alice"})")));
}

TEST(Request, ChangesAForwardsLife) {
  OneAnswer server(http_answer(200, R"({"port_forward":{"id":"f-1"}})"));
  const auto update = [&](std::vector<std::string> options) {
    std::vector<std::string> arguments = {"forwards", "update", "vm-1", "f-1"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return server.run(arguments);
  };
  update({"--guest-port", "3001", "--enabled", "false", "--ttl", "60"});
  update({"--metadata", "env=dev=1", "--metadata", "team=", "--remove-metadata", "old"});
  update({"--remove-metadata", "old"});
  update({"--remove", "expires-at"});
  EXPECT_THAT(server.requests(),
              ElementsAre(EndsWith(R"({"guest_port":3001,"enabled":false,"ttl_seconds":60})"),
                          EndsWith(R"({"metadata":{"env":"dev=1","team":"","old":null}})"),
                          EndsWith(R"({"metadata":{"old":null}})"), EndsWith(R"({"expires_at":null})")));
  const auto refused = update({"--metadata", "env"});
  EXPECT_EQ(refused.exit, 2);
  EXPECT_THAT(refused.err, HasSubstr("--metadata env is no KEY=VALUE"));
}

TEST(Request, DeletesAllForwardsThatFit) {
  OneAnswer server(http_answer(200, R"({"deleted":["f-1","f-2"]})"));
  const auto deleted = server.run({"forwards", "delete-all", "vm-1", "--metadata", "env=dev,team"});
  EXPECT_EQ(deleted.out, "f-1\nf-2\n");
  EXPECT_THAT(server.requests(),
              ElementsAre(StartsWith("DELETE /instances/vm-1/port-forwards?metadata=env%3Ddev%2Cteam ")));
}

TEST(Request, SendsTheSessionId) {
  OneAnswer server(http_answer(200, R"({"instance":{"id":"vm-1"}})"));
  server.run({"instances", "stop", "vm-1", "--session-id", "s-1"});
  server.run({"instances", "delete", "vm-1", "--session-id", "s-1"});
  server.run({"instances", "put", "vm-1", "--session-id", "s-1", "--guest-address", "198.19.0.2", "--tap",
              "tap0", "--owner", "alice"});
  EXPECT_THAT(server.requests(), ElementsAre(StartsWith("POST /instances/vm-1/stop?session_id=s-1 HTTP/1.1"),
                                             StartsWith("DELETE /instances/vm-1?session_id=s-1 HTTP/1.1"),
                                             AllOf(StartsWith("PUT /instances/vm-1?session_id=s-1 HTTP/1.1"),
                                                   Not(HasSubstr(R"("session_id")")))));
}

TEST(Request, EscapesIdsInThePath) {
  OneAnswer server(http_answer(200, R"({"instance":{"id":"x"}})"));
  server.run({"instances", "get", "../api-keys?x"});
  EXPECT_THAT(server.requests(), ElementsAre(StartsWith("GET /instances/..%2Fapi-keys%3Fx HTTP/1.1")));
}

TEST(Request, ListsForwardsAsAnAlignedTableWithEndpoints) {
  OneAnswer server(http_answer(
      200,
      R"({"port_forwards":[{"id":"f-1","guest_port":3000,"host_port":38492,"label":"dev-server","state":"listening",)"
      R"("bind_addresses":["203.0.113.7","2001:db8::7"]},)"
      R"({"id":"f-22","guest_port":80,"host_port":20000,"label":"","state":"failed","cause":"not_bound",)"
      R"("reason":"taken",)"
      R"("bind_addresses":["203.0.113.7"]}],)"
      R"("hostname":"compute-1.example"})"));
  const ClientRun run = server.run({"forwards", "list", "vm-1", "--label", "a b"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(
      run.out,
      "ID    ENDPOINT                 LISTENS AT               GUEST PORT  LABEL       STATE      CAUSE\n"
      "f-1   compute-1.example:38492  203.0.113.7,2001:db8::7  3000        dev-server  listening  -\n"
      "f-22  compute-1.example:20000  203.0.113.7              80          -           failed     "
      "not_bound\n");
  EXPECT_THAT(server.requests(),
              ElementsAre(StartsWith("GET /instances/vm-1/port-forwards?label=a%20b&limit=1000 ")));
}

TEST(Request, ListsWhereAForwardLeadsThatIsNoTcp) {
  OneAnswer server(
      http_answer(200, R"({"port_forwards":[{"id":"f-1","guest_port":0,"host_port":38492,)"
                       R"("target":{"kind":"firecracker_vsock","socket":"/run/fc/v.sock","port":3000}},)"
                       R"({"id":"f-2","guest_port":80,"host_port":20000}],"hostname":"compute-1.example"})"));
  for (const std::vector<std::string>& command : {std::vector<std::string>{"forwards", "list", "vm-1"},
                                                  {"forwards", "watch", "vm-1", "--count", "1"}}) {
    EXPECT_THAT(
        server.run(command).out,
        AllOf(HasSubstr("TARGET"), HasSubstr("kind=firecracker_vsock, socket=/run/fc/v.sock, port=3000")));
  }
}

TEST(Request, SendsEveryNumberThatTheApiTakes) {
  OneAnswer server(http_answer(201, R"({"port_forward":{"id":"f-1","host_port":1},"hostname":"x"})"));
  const std::vector<std::string> vsock = {
      "forwards",          "create",   "vm-1",           "--target",
      "firecracker_vsock", "--socket", "/run/fc/v.sock", "--max-bytes-per-second",
      "1000000000000"};
  const auto with_port = [&](const std::string& port) {
    std::vector<std::string> command = vsock;
    command.insert(command.end(), {"--vsock-port", port});
    return server.run(command);
  };
  EXPECT_EQ(with_port("4294967294").exit, 0);
  EXPECT_THAT(server.requests(), ElementsAre(AllOf(HasSubstr(R"("port":4294967294)"),
                                                   HasSubstr(R"("max_bytes_per_second":1000000000000)"))));
  EXPECT_EQ(with_port("4294967295").exit, 2);
  EXPECT_EQ(with_port("0").exit, 2);
}

TEST(Request, ShowsNoJsonAndScaledBytesInTables) {
  const char* forward =
      R"({"id":"f-1","limits":{"max_connections":5,"max_bytes_per_second":1048576,"allowed_cidrs":["10.0.0.0/8","fd00::/8"],)"
      R"("none":null},"received_bytes":1536,"sent_bytes":1023,"queued_bytes":1048575})";
  OneAnswer one(http_answer(200, std::string(R"({"port_forward":)") + forward + "}"));
  EXPECT_EQ(one.run({"forwards", "get", "vm-1", "f-1"}).out,
            "id:              f-1\n"
            "limits:          max_connections=5, max_bytes_per_second=1.0 MiB/s, "
            "allowed_cidrs=10.0.0.0/8,fd00::/8\n"
            "received_bytes:  1.5 KiB\n"
            "sent_bytes:      1023 B\n"
            "queued_bytes:    1.0 MiB\n");
  EXPECT_THAT(one.run({"forwards", "get", "vm-1", "f-1", "-o", "json"}).out,
              HasSubstr("\"received_bytes\": 1536"));
  OneAnswer list(http_answer(
      200, R"({"profiles":[{"name":"large","limits":{"a":1,"b":true},"list":[{"c":2},{"c":3}]}]})"));
  EXPECT_EQ(list.run({"profiles", "list"}).out, "NAME   LIMITS       LIST\nlarge  a=1, b=true  c=2; c=3\n");
}

constexpr const char* kInstances =
    R"({"instances":[{"id":"vm-1","state":"running","owner":"alice","session_id":"s-1","vmm_pid":7,"tap_state":"up"},)"
    R"({"id":"vm-22","state":"stopped","owner":"bob","session_id":"s-2","tap_state":"gone"}]})";

TEST(Request, ShowsMoreColumnsInWideTables) {
  OneAnswer server(http_answer(200, kInstances));
  EXPECT_EQ(server.run({"instances", "list"}).out,
            "ID     STATE    OWNER\nvm-1   running  alice\nvm-22  stopped  bob\n");
  const std::string wide =
      "ID     STATE    OWNER  TAP STATE  VMM PID  SESSION\n"
      "vm-1   running  alice  up         7        s-1\n"
      "vm-22  stopped  bob    gone       -        s-2\n";
  EXPECT_EQ(server.run({"instances", "list", "-o", "wide"}).out, wide);
  EXPECT_EQ(server.run({"instances", "list", "--wide"}).out, wide);
}

constexpr const char* kOfEveryType =
    R"({"instance":{"id":"vm-1","owner":"no","count":1,"rate":1.5,"big":1e30,"ok":true,"none":null,)"
    R"("address":"fd00::1","time":"2026-01-31T12:00:00.000Z","text":"a: \"b\" # c\n\u001b\u0085","empty":[],)"
    R"("list":["x","1.0",{"a":1,"b":[2,[]]}],"limits":{"a b":0,"yes":-1}}})";

TEST(Request, PrintsYaml) {
  OneAnswer server(http_answer(200, kOfEveryType));
  EXPECT_EQ(server.run({"instances", "get", "vm-1", "-o", "yaml"}).out,
            R"(instance:
  id: vm-1
  owner: "no"
  count: 1
  rate: 1.5
  big: 1.0e+30
  ok: true
  none: null
  address: "fd00::1"
  time: "2026-01-31T12:00:00.000Z"
  text: "a: \"b\" # c\n\u001b\x85"
  empty: []
  list:
  - x
  - "1.0"
  - a: 1
    b:
    - 2
    - []
  limits:
    "a b": 0
    "yes": -1
)");
}

TEST(Request, PrintsYamlThatAParserReadsAsTheJson) {
  OneAnswer server(http_answer(200, kOfEveryType));
  const TemporaryDirectory directory;
  const std::string yaml =
      directory.write("answer.yaml", server.run({"instances", "get", "vm-1", "-o", "yaml"}).out);
  const std::string json = directory.write("answer.json", kOfEveryType);
  EXPECT_EQ(run_command(nullptr, {"python3", "-c",
                                  "import json, sys, yaml\n"
                                  "print(yaml.safe_load(open(sys.argv[1])) == json.load(open(sys.argv[2])))",
                                  yaml, json}),
            "True\n");
}

/// The words of a command, with a value for everything that it needs.
std::vector<std::string> words_of(const Command& command) {
  std::vector<std::string> words = {std::string(command.noun)};
  if (!command.verb.empty()) words.emplace_back(command.verb);
  for (const Parameter& parameter : command.parameters) {
    if (!parameter.positional() &&
        (parameter.required || (command.method == "PATCH" && parameter.place == Place::kBody))) {
      words.emplace_back(parameter.name);
    } else if (!parameter.positional() || parameter.optional) {
      continue;
    }
    const std::string_view word = parameter.kind == Kind::kEntry ? "k=1" : "1";
    words.emplace_back(parameter.choices.empty() ? word : parameter.choices.front());
  }
  return words;
}

TEST(Request, PrintsTheAnswerOfEveryCommandInEveryFormat) {
  for (const Command& command : commands()) {
    // An upgrade asks twice, and a command without a method does not show an answer of the API.
    if (command.envelope.empty() || command.method.empty() || command.verb == "upgrade") continue;
    const std::string object =
        command.show == show_ids ? R"("one")" : R"({"id":"one","host_port":1,"ok":true,"steps":[]})";
    const bool list = command.show != show_resource && command.show != show_node &&
                      command.show != show_check && command.show != show_endpoint &&
                      command.show != show_secret;
    OneAnswer server(http_answer(200, R"({"secret":"s","hostname":"h",")" + std::string(command.envelope) +
                                          "\":" + (list ? "[" + object + "]" : object) + "}"));
    for (const char* format : {"table", "wide", "json", "yaml"}) {
      std::vector<std::string> words = words_of(command);
      words.insert(words.end(), {"-o", format});
      if (command.verb == "watch") words.insert(words.end(), {"--count", "1"});
      const ClientRun run = server.run(words);
      EXPECT_EQ(run.exit, 0) << testing::PrintToString(words) << run.err;
      if (std::string_view(format) == "json") {
        EXPECT_TRUE(boost::json::parse(run.out).as_object().contains(command.envelope));
      } else if (std::string_view(format) == "yaml") {
        EXPECT_THAT(run.out, HasSubstr(std::string(command.envelope) + ":\n"));
      } else if (command.show != show_check) {
        EXPECT_THAT(run.out, Not(AnyOf(IsEmpty(), HasSubstr("{"))));
      }
    }
  }
}

TEST(Request, ShowsAnETagAndSendsOneAsThePrecondition) {
  const std::string answer = R"({"instance":{"id":"vm-1"}})";
  OneAnswer server("HTTP/1.1 200 OK\r\nETag: \"e-1\"\r\nContent-Length: " + std::to_string(answer.size()) +
                   "\r\n\r\n" + answer);
  EXPECT_EQ(server.run({"instances", "get", "vm-1"}).out, "id:  vm-1\n");
  EXPECT_EQ(server.run({"instances", "get", "vm-1", "-o", "wide"}).out, "id:    vm-1\netag:  \"e-1\"\n");
  EXPECT_EQ(boost::json::parse(server.run({"instances", "get", "vm-1", "-o", "json"}).out).at("etag"),
            "\"e-1\"");
  for (const char* etag : {"\"e-1\"", "e-1"}) {
    server.run({"instances", "update", "vm-1", "--owner", "bob", "--if-match", etag});
    EXPECT_THAT(server.requests().back(), HasSubstr("\r\nIf-Match: \"e-1\"\r\n"));
  }
  server.run({"forwards", "delete", "vm-1", "f-1", "--if-match", "*"});
  EXPECT_THAT(server.requests().back(), HasSubstr("\r\nIf-Match: *\r\n"));
}

TEST(Request, FollowsTheCursorToTheLastPage) {
  FakeServer server("tcp", [](const std::string& request) {
    if (request.find("cursor=") == std::string::npos) {
      return http_answer(200, R"({"next_cursor":"a/b","instances":[{"id":"vm-1"}]})");
    }
    if (request.find("cursor=a%2Fb ") != std::string::npos) {
      return http_answer(200, R"({"instances":[{"id":"vm-2"}],"next_cursor":"c"})");
    }
    return http_answer(200, R"({"instances":[{"id":"vm-3"}]})");
  });
  const ClientRun run = run_portway({"instances", "list", "-o", "json", "--server", server.url()});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(boost::json::parse(run.out),
            boost::json::parse(R"({"instances":[{"id":"vm-1"},{"id":"vm-2"},{"id":"vm-3"}]})"));
  EXPECT_THAT(server.requests(), SizeIs(3));
}

TEST(Request, PrintsTheApisJsonIndentedInItsOriginalOrder) {
  OneAnswer server(http_answer(
      200, R"({"port_forward":{"id":"f-1","host_port":38492,"cidrs":[],"limits":{}},"hostname":"h"})"));
  EXPECT_EQ(server.run({"-o", "json", "forwards", "get", "vm-1", "f-1"}).out,
            "{\n  \"port_forward\": {\n    \"id\": \"f-1\",\n    \"host_port\": 38492,\n    \"cidrs\": [],\n"
            "    \"limits\": {}\n  },\n  \"hostname\": \"h\"\n}\n");
}

TEST(Request, PrintsAKeysSecretAloneOnStandardOutput) {
  OneAnswer server(
      http_answer(201, R"({"api_key":{"id":"k-1","role":"tenant","owner":"alice"},"secret":"pwk_new"})"));
  const ClientRun run = server.run({"keys", "create", "--owner", "alice"});
  EXPECT_EQ(run.out, "pwk_new\n");
  EXPECT_THAT(run.err, AllOf(HasSubstr("k-1"), HasSubstr("not shown again"), Not(HasSubstr("pwk_new"))));
  EXPECT_THAT(server.requests(), ElementsAre(EndsWith(R"({"owner":"alice","role":"tenant"})")));
}

TEST(Request, MakesAKeyAsItIsAskedFor) {
  OneAnswer server(http_answer(201, R"({"api_key":{"id":"k-1"},"secret":"pwk_new"})"));
  server.run({"keys", "create", "--owner", "alice", "--scope", "read", "--instance", "vm-1", "--description",
              "of a job", "--ttl", "3600"});
  EXPECT_THAT(server.requests(),
              ElementsAre(EndsWith(R"({"owner":"alice","role":"tenant","scope":"read","instance_id":"vm-1",)"
                                   R"("description":"of a job","ttl_seconds":3600})")));
}

TEST(Request, RotatesAKeyAndPrintsItsNewSecret) {
  OneAnswer server(
      http_answer(200, R"({"api_key":{"id":"k-1","role":"tenant","owner":"alice"},"secret":"pwk_new"})"));
  const ClientRun run = server.run({"keys", "rotate", "k-1", "--overlap", "60"});
  EXPECT_EQ(run.out, "pwk_new\n");
  EXPECT_THAT(server.requests(), ElementsAre(AllOf(StartsWith("POST /api-keys/k-1/rotate HTTP/1.1"),
                                                   EndsWith(R"({"overlap_seconds":60})"))));
}

TEST(Request, ChangesAKeysDescriptionAndEnd) {
  OneAnswer server(http_answer(200, R"({"api_key":{"id":"k-1"}})"));
  server.run({"keys", "set", "k-1", "--description", "CI", "--remove", "expires-at"});
  EXPECT_THAT(server.requests(), ElementsAre(AllOf(StartsWith("PATCH /api-keys/k-1 HTTP/1.1"),
                                                   EndsWith(R"({"description":"CI","expires_at":null})"))));
  EXPECT_EQ(server.run({"keys", "set", "k-1"}).exit, 2);
}

TEST(Request, ShowsWhatTheKeyInUseMayDo) {
  OneAnswer server(http_answer(200, R"({"whoami":{"role":"tenant","owner":"alice","scope":"read"}})"));
  EXPECT_EQ(server.run({"whoami"}).out, "role:   tenant\nowner:  alice\nscope:  read\n");
  EXPECT_THAT(server.requests(), ElementsAre(StartsWith("GET /v1/whoami HTTP/1.1")));
}

TEST(Request, PrintsNothingIfTheAnswerHasNoBody) {
  OneAnswer server("HTTP/1.1 204 No Content\r\n\r\n");
  for (const char* format : {"table", "json"}) {
    const ClientRun run =
        server.run({"forwards", "delete", "vm-1", "f-1", "--connections", "drain", "-o", format});
    EXPECT_EQ(run.exit, 0) << run.err;
    EXPECT_THAT(run.out + run.err, IsEmpty());
  }
  EXPECT_THAT(server.requests().front(),
              StartsWith("DELETE /instances/vm-1/port-forwards/f-1?connections=drain HTTP/1.1"));
}

TEST(Request, ReplacesControlCharactersFromTheServer) {
  OneAnswer server(
      http_answer(200, R"({"instances":[{"id":"\u001b]0;owned\u0007","tap":"\u009b31m","owner":"Zoë"}]})"));
  EXPECT_EQ(server.run({"instances", "list"}).out, "ID          TAP   OWNER\n?]0;owned?  ?31m  Zoë\n");
}

std::string contents(const std::filesystem::path& file) {
  std::ifstream stream(file);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::vector<std::string> files_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

constexpr const char* kWholeCapture =
    "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.tcpdump.pcap\r\nTransfer-Encoding: "
    "chunked\r\n\r\n4\r\npcap\r\n0\r\n\r\n";
constexpr const char* kHalfCapture =
    "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.tcpdump.pcap\r\nTransfer-Encoding: "
    "chunked\r\n\r\n4\r\npcap\r\n";

TEST(Capture, ReplacesAFileOnlyWhenItIsComplete) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("web.pcap", "yesterday's");
  const std::vector<std::string> words = {"forwards", "capture", "vm-1", "f-1", "--write", file};
  OneAnswer refusing(problem_answer(404, R"({"title":"Not Found","detail":"No.","code":"not_found"})"));
  EXPECT_EQ(refusing.run(words).exit, 4);
  EXPECT_EQ(run_portway(words, {{"PORTWAY_SERVER", "http://127.0.0.1:1"}}).exit, 3);
  EXPECT_EQ(contents(file), "yesterday's");
  EXPECT_THAT(files_in(directory.path()), ElementsAre("web.pcap"));

  OneAnswer broken(kHalfCapture);
  const ClientRun run = broken.run(words);
  EXPECT_EQ(run.exit, 3);
  EXPECT_THAT(run.err, AllOf(HasSubstr("the capture was cut off"),
                             HasSubstr("The received part is in " + file + ".part")));
  EXPECT_EQ(contents(file), "yesterday's");
  EXPECT_EQ(contents(file + ".part"), "pcap");
  EXPECT_EQ(refusing.run(words).exit, 4);
  EXPECT_EQ(contents(file + ".part"), "pcap") << "it stays until the server agrees to another capture";
  EXPECT_THAT(files_in(directory.path()), ElementsAre("web.pcap", "web.pcap.part"));

  OneAnswer whole(kWholeCapture);
  EXPECT_EQ(whole.run(words).exit, 0);
  EXPECT_EQ(contents(file), "pcap");
  EXPECT_THAT(files_in(directory.path()), ElementsAre("web.pcap"));
}

TEST(Capture, IsNotWhatAnotherServiceAnswers) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("web.pcap", "yesterday's");
  OneAnswer other("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>");
  const ClientRun run = other.run({"forwards", "capture", "vm-1", "f-1", "--write", file});
  EXPECT_EQ(run.exit, 3);
  EXPECT_THAT(run.err, HasSubstr("HTTP status 200 with an answer of another kind"));
  EXPECT_EQ(contents(file), "yesterday's");
  EXPECT_THAT(files_in(directory.path()), ElementsAre("web.pcap"));
}

TEST(Capture, ThatIsCutOffOnStandardOutputFails) {
  OneAnswer broken(kHalfCapture);
  const ClientRun run = broken.run({"forwards", "capture", "vm-1", "f-1"});
  EXPECT_EQ(run.exit, 3);
  EXPECT_EQ(run.out, "pcap");
  EXPECT_THAT(run.err, HasSubstr("the capture was cut off"));
  OneAnswer whole(kWholeCapture);
  EXPECT_EQ(whole.run({"forwards", "capture", "vm-1", "f-1"}).exit, 0);
}

TEST(Capture, WritesToDevicesAndThroughLinks) {
  const TemporaryDirectory directory;
  OneAnswer server(kWholeCapture);
  EXPECT_EQ(server.run({"forwards", "capture", "vm-1", "f-1", "--write", "/dev/null"}).exit, 0);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  const std::string target = directory.write("target.pcap", "old");
  const std::string link = directory.path() / "link.pcap";
  std::filesystem::create_symlink("target.pcap", link);
  EXPECT_EQ(server.run({"forwards", "capture", "vm-1", "f-1", "--write", link}).exit, 0);
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(contents(target), "pcap");
  const ClientRun nowhere = server.run({"forwards", "capture", "vm-1", "f-1", "--write", "/nowhere/a.pcap"});
  EXPECT_EQ(nowhere.exit, 2);
  EXPECT_THAT(nowhere.err, HasSubstr("/nowhere/a.pcap.part"));
  EXPECT_THAT(server.requests(), SizeIs(2)) << "a capture that cannot be written must not start";
}

TEST(ForwardCheck, FailsIfAStepIsNotOk) {
  const auto answer = [](bool ok) {
    const std::string value = ok ? "true" : "false";
    return http_answer(200, R"({"check":{"ok":)" + value + R"(,"steps":[{"step":"guest","ok":)" + value +
                                R"(,"detail":"It answers."}]}})");
  };
  OneAnswer well(answer(true));
  EXPECT_EQ(well.run({"forwards", "check", "vm-1", "f-1"}).exit, 0);
  OneAnswer ill(answer(false));
  const ClientRun table = ill.run({"forwards", "check", "vm-1", "f-1"});
  EXPECT_EQ(table.exit, 1);
  EXPECT_EQ(table.out, "NOT OK  guest  It answers.\n");
  EXPECT_THAT(table.err, HasSubstr("not ok"));
  const ClientRun json = ill.run({"forwards", "check", "vm-1", "f-1", "-o", "json"});
  EXPECT_EQ(json.exit, 1);
  EXPECT_EQ(boost::json::parse(json.out).at("check").at("ok"), false);
  EXPECT_THAT(json.err, IsEmpty());
}

// --- Failures.

TEST(Refusal, ReportsEverythingInTheProblemDocument) {
  OneAnswer server(problem_answer(
      409, R"({"type":"about:blank","title":"Conflict","status":409,"detail":"Delete one first.",)"
           R"("code":"quota_exceeded","request_id":"r-1","limit":5,"current":5})"));
  const ClientRun run = server.run({"forwards", "create", "vm-1", "3000"});
  EXPECT_EQ(run.exit, 1);
  EXPECT_THAT(run.out, IsEmpty());
  EXPECT_EQ(run.err,
            "portway: Conflict: Delete one first. (code: quota_exceeded, status: 409, limit: 5, current: 5, "
            "request_id: r-1)\n");
}

TEST(Refusal, PrintsTheProblemDocumentItselfIfJsonIsRequested) {
  OneAnswer server(problem_answer(
      422, R"({"title":"t","status":422,"detail":"d","code":"invalid_label","field":"label"})"));
  const ClientRun run = server.run({"-o", "json", "forwards", "create", "vm-1", "3000"});
  EXPECT_EQ(run.exit, 1);
  EXPECT_THAT(run.out, IsEmpty());
  EXPECT_EQ(boost::json::parse(run.err).at("field"), "label");
  EXPECT_EQ(std::ranges::count(run.err, '\n'), 1) << run.err;
}

TEST(Refusal, IsOneLineWhateverTheServerSends) {
  OneAnswer server(
      problem_answer(429, R"({"title":"a\nb","detail":"c\r\n\u001b[2Jd","code":"e"})", "Retry-After: 7\r\n"));
  EXPECT_EQ(server.run({"instances", "list"}).err,
            "portway: a?b: c???[2Jd Try again in 7 s. (code: e, status: 429)\n");
}

struct StatusExit {
  int status;
  int exit;
};
class RefusalExit : public testing::TestWithParam<StatusExit> {};

TEST_P(RefusalExit, FollowsTheStatus) {
  for (const std::string& answer :
       {problem_answer(GetParam().status, R"({"title":"t","detail":"d","code":"c"})"),
        http_answer(GetParam().status, "<html>a gateway's page</html>")}) {
    OneAnswer server(answer);
    EXPECT_EQ(server.run({"instances", "get", "vm-1"}).exit, GetParam().exit);
  }
}
INSTANTIATE_TEST_SUITE_P(Statuses, RefusalExit,
                         testing::Values(StatusExit{400, 1}, StatusExit{401, 5}, StatusExit{403, 5},
                                         StatusExit{404, 4}, StatusExit{409, 1}, StatusExit{413, 1},
                                         StatusExit{422, 1}, StatusExit{429, 6}, StatusExit{500, 1},
                                         StatusExit{502, 1}, StatusExit{503, 6}, StatusExit{302, 1}),
                         [](const auto& parameters) { return std::to_string(parameters.param.status); });

TEST(Refusal, SaysWhenToTryAgain) {
  OneAnswer server(
      problem_answer(429, R"({"title":"Too Many Requests","detail":"Slow down.","code":"rate_limited"})",
                     "Retry-After: 7\r\n"));
  EXPECT_THAT(server.run({"instances", "list"}).err, HasSubstr("Try again in 7 s."));
}

TEST(Refusal, WithoutAKeySaysWhereToGiveOne) {
  OneAnswer server(
      problem_answer(401, R"({"title":"Unauthorized","detail":"Send a key.","code":"unauthorized"})"));
  EXPECT_THAT(server.run({"instances", "list"}).err, HasSubstr("PORTWAY_API_KEY_FILE"));
  EXPECT_THAT(server.run({"instances", "list"}, {{"PORTWAY_API_KEY", "pwk_x"}}).err,
              AllOf(HasSubstr("not known to this server"), Not(HasSubstr("pwk_x"))));
}

TEST(Unreachable, NamesTheServerAndTheRemedy) {
  std::string url;
  {
    const OneAnswer gone("");
    url = gone.url();
  }
  const ClientRun run = run_portway({"instances", "list", "--server", url});
  EXPECT_EQ(run.exit, 3);
  EXPECT_THAT(run.err, AllOf(HasSubstr(url), HasSubstr("Connection refused"),
                             HasSubstr("Check that portwayd is running.")));
}

TEST(Unreachable, IsAServerThatTakesTooLong) {
  const FakeServer server("tcp", [](const std::string&) { return std::nullopt; });
  const ClientRun run = run_portway({"instances", "list", "--timeout", "1", "--server", server.url()});
  EXPECT_EQ(run.exit, 3);
  EXPECT_THAT(run.err, HasSubstr("no answer within 1 s"));
}

TEST(Unreachable, IsWhateverIsNotTheApi) {
  for (const char* answer : {"", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
                             "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                             "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}",
                             "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"instances\":"}) {
    OneAnswer server(answer);
    const ClientRun run = server.run({"instances", "list"});
    EXPECT_EQ(run.exit, 3) << answer;
    EXPECT_THAT(run.err, HasSubstr("Check that Portway's API listens there")) << answer;
    EXPECT_EQ(std::ranges::count(run.err, '\n'), 1) << run.err;
  }
}

TEST(Unreachable, IsASocketThatIsNotThere) {
  const TemporaryDirectory directory;
  const ClientRun run =
      run_portway({"instances", "list", "--server", "unix:" + (directory.path() / "no.sock").string()});
  EXPECT_EQ(run.exit, 3);
  EXPECT_THAT(run.err, HasSubstr("No such file or directory"));
}

// --- Transports.

TEST(Transport, IsAUnixSocketToo) {
  const TemporaryDirectory directory;
  const FakeServer server("unix:" + (directory.path() / "api.sock").string(), [](const std::string&) {
    return http_answer(200, R"({"profiles":[{"name":"default"}]})");
  });
  const ClientRun run = run_portway({"profiles", "list", "--server", server.url()});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, "NAME\ndefault\n");
}

TEST(Transport, IsTlsWithATrustedCertificateOnly) {
  const TemporaryDirectory directory;
  const std::string pem = directory.path() / "server.pem";
  make_certificate(pem);
  const FakeServer server("tls:" + pem,
                          [](const std::string&) { return http_answer(200, R"({"profiles":[]})"); });

  const ClientRun trusted = run_portway({"profiles", "list", "--server", server.url(), "--ca", pem});
  EXPECT_EQ(trusted.exit, 0) << trusted.err;

  const ClientRun unknown =
      run_portway({"profiles", "list", "--server", server.url()}, {{"PORTWAY_API_KEY", "pwk_x"}});
  EXPECT_EQ(unknown.exit, 3);
  EXPECT_THAT(unknown.err, AllOf(HasSubstr("certificate is not trusted"), HasSubstr("--ca")));

  // Trusted, but for another host: "localhost" is not in it.
  std::string other = server.url();
  other.replace(other.find("127.0.0.1"), 9, "localhost");
  EXPECT_EQ(run_portway({"profiles", "list", "--server", other, "--ca", pem}).exit, 3);

  EXPECT_THAT(server.requests(), SizeIs(1)) << "the key must not reach a server that is not trusted";
}

TEST(Transport, PresentsTheClientsCertificateIfOneIsGiven) {
  const TemporaryDirectory directory;
  const std::string pem = directory.path() / "both.pem";
  make_certificate(pem);
  const FakeServer server("mtls:" + pem,
                          [](const std::string&) { return http_answer(200, R"({"profiles":[]})"); });
  std::vector<std::string> words = {"profiles", "list", "--server", server.url(), "--ca", pem};
  EXPECT_EQ(run_portway(words).exit, 3);
  words.insert(words.end(), {"--cert", pem});
  EXPECT_EQ(run_portway(words).exit, 0);
  words.insert(words.end(), {"--cert-key", pem});
  EXPECT_EQ(run_portway(words).exit, 0);
}

TEST(Transport, SaysWhichCertificateFileItCannotRead) {
  const ClientRun run =
      run_portway({"profiles", "list", "--server", "https://127.0.0.1:1", "--ca", "/nowhere/ca.pem"});
  EXPECT_EQ(run.exit, 2);
  EXPECT_THAT(run.err, AllOf(HasSubstr("/nowhere/ca.pem"), HasSubstr("--ca")));
}

// --- Keys.

TEST(Credentials, ComeFromAFileWithoutItsNewline) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("admin.key", "pwk_from_file\n");
  ::chmod(file.c_str(), 0600);
  OneAnswer server(http_answer(200, R"({"instances":[]})"));
  EXPECT_THAT(server.run({"instances", "list", "--key-file", file}, {{"PORTWAY_API_KEY", "pwk_other"}}).err,
              IsEmpty());
  EXPECT_THAT(server.run({"instances", "list"}, {{"PORTWAY_API_KEY_FILE", file}}).err, IsEmpty());
  for (const std::string& request : server.requests()) {
    EXPECT_THAT(request, HasSubstr("Authorization: Bearer pwk_from_file\r\n"));
  }
}

TEST(Credentials, InAFileThatOthersCanReadCauseAWarning) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("admin.key", "pwk_from_file\n");
  ::chmod(file.c_str(), 0644);
  OneAnswer server(http_answer(200, R"({"instances":[]})"));
  const ClientRun run = server.run({"instances", "list", "--key-file", file});
  EXPECT_EQ(run.exit, 0);
  EXPECT_THAT(run.err, HasSubstr("chmod 600 " + file));
}

TEST(Credentials, ThatAreInvalidAreRefusedBeforeAnythingIsSent) {
  const TemporaryDirectory directory;
  OneAnswer server(http_answer(200, "{}"));
  for (const std::string& file :
       {directory.write("empty.key", "\n"), directory.write("two.key", "pwk_a\npwk_b\n"),
        directory.write("long.key", std::string(5000, 'a')), std::string("/nowhere/a.key")}) {
    const ClientRun run = server.run({"instances", "list", "--key-file", file});
    EXPECT_EQ(run.exit, 2) << file;
    EXPECT_THAT(run.err, HasSubstr(file));
  }
  EXPECT_EQ(server.run({"instances", "list"}, {{"PORTWAY_API_KEY", "pwk_a\r\nX-Evil: 1"}}).exit, 2);
  EXPECT_THAT(server.requests(), IsEmpty());
}

TEST(Version, IsTheClientsAndTheServers) {
  OneAnswer server(http_answer(200, R"({"version":"9.9.9"})"));
  EXPECT_EQ(server.run({"version"}).out, "client: " PORTWAY_VERSION "\nserver: 9.9.9\n");
}

TEST(Watch, ListsAgainAndLeavesOutWhatTheServerDoesNotReport) {
  int asked = 0;
  FakeServer server("tcp", [&asked](const std::string&) {
    return http_answer(200, R"({"port_forwards":[{"id":"f-1","host_port":1,"connections_active":)" +
                                std::to_string(++asked) + R"(}],"hostname":"h"})");
  });
  const ClientRun run =
      run_portway({"forwards", "watch", "vm-1", "--interval", "1", "--count", "2", "--server", server.url()});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, "ID   ENDPOINT  ACTIVE\nf-1  h:1       1\n\nID   ENDPOINT  ACTIVE\nf-1  h:1       2\n");
}

}  // namespace
}  // namespace portway::test
