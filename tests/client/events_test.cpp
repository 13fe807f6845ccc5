// Server-sent events: the format, and following them over lost connections.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/sse.h"
#include "tests/client/fake_server.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

std::vector<std::string> events_of(const std::vector<std::string>& pieces) {
  std::vector<std::string> events;
  SseParser parser([&events](const ServerEvent& event) {
    events.push_back(event.id + "|" + event.type + "|" + event.data);
    return true;
  });
  for (const std::string& piece : pieces) EXPECT_TRUE(parser.feed(piece));
  return events;
}

TEST(SseParser, ReadsTheSameEventsHoweverTheStreamIsSplit) {
  const std::string stream =
      ": awake\n\nid: 1\nevent: forward.created\ndata: {\"a\":1}\n\r\n\r"
      "data:one\rdata: two\rid:2\r\rid: 3\n\nevent: nothing\n\ndata\n\n";
  const auto expected = ElementsAre("1|forward.created|{\"a\":1}", "2|message|one\ntwo", "3|message|");
  EXPECT_THAT(events_of({stream}), expected);
  std::vector<std::string> bytes;
  for (const char c : stream) bytes.emplace_back(1, c);
  EXPECT_THAT(events_of(bytes), expected);
}

TEST(SseParser, DropsAnIncompleteEventButKeepsTheLastId) {
  std::vector<std::string> events;
  SseParser parser([&events](const ServerEvent& event) {
    events.push_back(event.id + "|" + event.data);
    return true;
  });
  EXPECT_TRUE(parser.feed("id: 7\ndata: whole\n\nid: 8\ndata: half\n"));
  parser.restart();
  EXPECT_EQ(parser.last_id(), "7");
  EXPECT_TRUE(parser.feed("data: next\n\n"));
  EXPECT_THAT(events, ElementsAre("7|whole", "7|next"));
}

TEST(SseParser, RefusesALineWithoutAnEnd) {
  SseParser parser([](const ServerEvent&) { return true; });
  EXPECT_TRUE(parser.feed(std::string(SseParser::kLineMax, 'x')));
  EXPECT_FALSE(parser.feed("x"));
}

constexpr const char* kStream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

TEST(Events, ContinueAfterTheLastOneWhenTheConnectionIsLost) {
  FakeServer server("tcp", [](const std::string& request) -> std::string {
    if (request.find("Last-Event-ID") == std::string::npos) {
      return std::string(kStream) +
             "retry: 1\nid: 41\nevent: forward.created\n"
             "data: {\"time\":\"2026-01-31T12:00:00.000Z\",\"instance_id\":\"vm-1\",\"reason\":\"a "
             "b\",\"etag\":\"e\",\"port_forward\":{\"id\":\"f\"}}\n\nid: 42\ndata: cut";
    }
    return "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
           "1a\r\nid: 43\nevent: x\ndata: {}\n\n\r\n0\r\n\r\n";
  });
  const ClientRun run = run_portway({"events", "--count", "2", "--server", server.url()});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, "2026-01-31T12:00:00.000Z forward.created instance_id=vm-1 reason=\"a b\"\nx\n");
  EXPECT_THAT(run.err, HasSubstr("reconnecting in 1 ms"));
  EXPECT_THAT(server.requests(),
              ElementsAre(AllOf(HasSubstr("GET /events HTTP/1.1"), HasSubstr("Accept: text/event-stream"),
                                Not(HasSubstr("Last-Event-ID"))),
                          HasSubstr("Last-Event-ID: 41\r\n")));
}

TEST(Events, StartAfterTheRequestedIdAndPrintJsonLines) {
  FakeServer server("tcp", [](const std::string&) {
    return std::string(kStream) + "id: 9\nevent: e\ndata: {\"n\":1}\n\n";
  });
  const ClientRun run =
      run_portway({"events", "--since", "8", "--count", "1", "-o", "json", "--server", server.url()});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, "{\"id\":\"9\",\"event\":\"e\",\"data\":{\"n\":1}}\n");
  EXPECT_THAT(server.requests(), ElementsAre(HasSubstr("Last-Event-ID: 8\r\n")));
}

TEST(Events, DoNotWaitIfTheServerRefuses) {
  const FakeServer server("tcp", [](const std::string&) {
    return problem_answer(
        403, R"({"title":"Forbidden","detail":"This call needs an admin key.","code":"forbidden"})");
  });
  const ClientRun run = run_portway({"events", "--server", server.url()});
  EXPECT_EQ(run.exit, 5);
  EXPECT_THAT(run.err, HasSubstr("needs an admin key"));
  EXPECT_THAT(server.requests(), SizeIs(1));
}

/// A server whose first event stream ends after one event, and whose list differs whenever it is asked for.
class ChangingServer : public FakeServer {
 public:
  ChangingServer() : FakeServer("tcp", [this](const std::string& request) { return answer(request); }) {}

 private:
  std::optional<std::string> answer(const std::string& request) {
    if (request.starts_with("GET /instances?")) {
      return http_answer(200, R"({"instances":[{"id":"vm-)" + std::to_string(++lists_) + R"("}]})");
    }
    if (++streams_ > 1)
      return std::string(kStream) + "retry: 1\nid: 9\nevent: instance.started\ndata: {}\n\n";
    return std::string(kStream) + "retry: 1\nid: 8\nevent: connection.refused\ndata: {}\n\n";
  }

  int lists_ = 0;
  int streams_ = 0;
};

TEST(LiveList, IsPrintedAgainAfterAnEventAboutItAndAfterALostStream) {
  ChangingServer server;
  const ClientRun run =
      run_portway({"instances", "list", "--watch", "--count", "3", "--server", server.url()});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, "ID\nvm-1\n\nID\nvm-2\n\nID\nvm-3\n");
  EXPECT_THAT(run.err, HasSubstr("reconnecting in 1 ms"));
  EXPECT_THAT(
      server.requests(),
      ElementsAre(HasSubstr("GET /events "), HasSubstr("GET /instances?"),  // refused clients are not in it
                  AllOf(HasSubstr("GET /events "), HasSubstr("Last-Event-ID: 8\r\n")),
                  HasSubstr("GET /instances?"), HasSubstr("GET /instances?")));
}

TEST(LiveList, IsALineOfJsonOrADocumentOfYaml) {
  ChangingServer json;
  EXPECT_EQ(
      run_portway({"instances", "list", "--watch", "--count", "2", "-o", "json", "--server", json.url()}).out,
      "{\"instances\":[{\"id\":\"vm-1\"}]}\n{\"instances\":[{\"id\":\"vm-2\"}]}\n");
  ChangingServer yaml;
  EXPECT_EQ(
      run_portway({"instances", "list", "--watch", "--count", "2", "-o", "yaml", "--server", yaml.url()}).out,
      "---\ninstances:\n- id: vm-1\n---\ninstances:\n- id: vm-2\n");
}

TEST(LiveList, EndsIfTheServerRefuses) {
  const FakeServer server("tcp", [](const std::string& request) {
    if (request.starts_with("GET /events ")) return std::string(kStream) + ":\n\n";
    return problem_answer(404, R"({"title":"Not Found","detail":"No.","code":"not_found"})");
  });
  EXPECT_EQ(run_portway({"forwards", "list", "vm-9", "--watch", "--server", server.url()}).exit, 4);
  EXPECT_EQ(run_portway({"forwards", "list", "vm-9", "--count", "2", "--server", server.url()}).exit, 2);
}

TEST(Events, AreNotWhatAnotherServiceAnswers) {
  const FakeServer server("tcp", [](const std::string&) { return http_answer(200, "[]"); });
  EXPECT_EQ(run_portway({"events", "--server", server.url()}).exit, 3);
  EXPECT_THAT(server.requests(), SizeIs(1));
}

TEST(Events, EndIfTheFirstConnectionFails) {
  const ClientRun run = run_portway({"events", "--server", "unix:/nowhere/api.sock"});
  EXPECT_EQ(run.exit, 3);
  EXPECT_THAT(run.out, IsEmpty());
}

}  // namespace
}  // namespace portway::test
