// The node's events as JSON and as server-sent events. Which of them a subscriber gets:
// tests/control/events_test.cpp.
#include "api/event_json.h"

#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/api/http/running_server.h"

namespace portway {
namespace {

using namespace test;

const Principal kAdmin{.key_id = {}, .role = Role::kAdmin, .owner = "admin"};
const std::string kRequest = "GET /events HTTP/1.1\r\nHost: a\r\n\r\n";

Event event_of(const std::string& owner, event::Kind kind) {
  return {.time = Timestamp(std::chrono::milliseconds(1)),
          .instance_id = "vm-1",
          .session_id = {},
          .owner = owner,
          .kind = std::move(kind)};
}

std::string json(event::Kind kind) {
  return boost::json::serialize(to_json(event_of("alice", std::move(kind))));
}

// The contract: openapi.yaml, and its readers.
TEST(EventJson, HasTheFieldsOfEveryEventFirstThenItsForwardsThenItsOwn) {
  const std::string instance = R"({"time":"1970-01-01T00:00:00.001Z","instance_id":"vm-1",)"
                               R"("session_id":"00000000-0000-0000-0000-000000000000","owner":"alice")";
  const event::OfForward forward{.id = {}, .guest_port = 80, .host_port = 20000, .label = "web"};
  const std::string of_forward = instance + R"(,"forward_id":"00000000-0000-0000-0000-000000000000",)"
                                            R"("guest_port":80,"host_port":20000,"label":"web")";
  EXPECT_EQ(json(event::InstanceStarted()), instance + "}");
  EXPECT_EQ(json(event::InstanceUpdated{{"owner", "tap"}}), instance + R"(,"changed":["owner","tap"]})");
  EXPECT_EQ(json(event::InstanceTapUp()), instance + "}");
  EXPECT_EQ(json(event::InstanceTapRenamed{.tap = "tap0", .name = "tap1"}),
            instance + R"(,"tap":"tap0","name":"tap1"})");
  EXPECT_EQ(json(event::InstanceSourceModeChanged{.plan = SourcePlan::kTransparent, .reason = {}}),
            instance + R"(,"source_mode":"transparent"})");
  EXPECT_EQ(json(event::InstanceSourceModeChanged{.plan = SourcePlan::kNoReturnPath, .reason = "gone"}),
            instance + R"(,"source_mode":"plain","reason":"gone"})");
  EXPECT_EQ(json(event::InstanceStopped{.reason = SessionEnd::kVmmExited, .port_forwards = 2}),
            instance + R"(,"reason":"vmm_exited","port_forwards":2})");
  EXPECT_EQ(json(event::InstanceDeleted()), instance + "}");
  EXPECT_EQ(json(event::ForwardCreated{forward}), of_forward + "}");
  EXPECT_EQ(json(event::ForwardUpdated{forward}), of_forward + "}");
  EXPECT_EQ(json(event::ForwardDeleted{forward}), of_forward + R"(,"reason":"requested"})");
  EXPECT_EQ(json(event::ForwardDeleted{forward, true}), of_forward + R"(,"reason":"expired"})");
  EXPECT_EQ(json(event::ForwardFailed{forward, "taken"}), of_forward + R"(,"reason":"taken"})");
  EXPECT_EQ(json(event::ForwardListening{forward}), of_forward + "}");
  EXPECT_EQ(json(event::ConnectionRefused{.forward = forward,
                                          .client = Endpoint(*parse_address("192.0.2.1"), 5000),
                                          .cause = {.side = CloseSide::kGuest, .how = CloseHow::kReset}}),
            of_forward + R"(,"client":"192.0.2.1:5000","side":"guest","how":"reset"})");
  const auto of_node = [](event::Kind kind) {
    return boost::json::serialize(to_json({.time = Timestamp(std::chrono::milliseconds(1)),
                                           .instance_id = {},
                                           .owner = {},
                                           .kind = std::move(kind)}));
  };
  EXPECT_EQ(of_node(event::NodeTakenOver{.from_living = true, .connections = 3, .adopted = 2}),
            R"({"time":"1970-01-01T00:00:00.001Z","end":"upgrade","connections":3,"adopted":2})");
  EXPECT_EQ(of_node(event::NodeUpgradeFailed{"it ended with 2"}),
            R"({"time":"1970-01-01T00:00:00.001Z","reason":"it ended with 2"})");
}

TEST(EventStream, IsServerSentEventsWithAnIdEach) {
  EventHub hub;
  const auto stream = event_stream(hub.subscribe(kAdmin, ""));
  EXPECT_EQ(stream->read(), "retry: 1000\nid: " + hub.last_id() + "\n:\n\n");
  hub.publish(event_of("alice", event::InstanceTapUp()));
  hub.publish(event_of("bob", event::InstanceDeleted()));
  const std::string text = stream->read().value();
  const std::string id = text.substr(4, text.find('-') - 3);  // "id: 1f3a-1"
  const std::string data = R"({"time":"1970-01-01T00:00:00.001Z","instance_id":"vm-1",)"
                           R"("session_id":"00000000-0000-0000-0000-000000000000","owner":)";
  EXPECT_EQ(text, "id: " + id + "1\nevent: instance.tap_up\ndata: " + data + "\"alice\"}\n\n" + "id: " + id +
                      "2\nevent: instance.deleted\ndata: " + data + "\"bob\"}\n\n");
  EXPECT_EQ(stream->read(), "");
  EXPECT_EQ(stream->heartbeat(), ":\n\n");  // a comment that keeps the connection
}

TEST(EventStream, AGapIsAResetThatSaysWhy) {
  EventHub hub;
  const auto late = event_stream(hub.subscribe(kAdmin, "1-1"));
  const std::string text = late->read().value();
  EXPECT_TRUE(text.starts_with("retry: 1000\nid: ")) << text;
  EXPECT_NE(text.find("event: reset\ndata: {\"time\":\""), std::string::npos) << text;
  EXPECT_NE(text.find("\"reason\":\"no event has this id; events are missing here: read the lists again\","
                      "\"code\":\"unknown_id\"}\n\n"),
            std::string::npos)
      << text;
}

TEST(EventStream, ReadsWhatIsKeptInPieces) {
  EventHub hub;
  const auto stream = event_stream(hub.subscribe(kAdmin, ""));
  for (std::size_t i = 0; i < EventHub::kKept; ++i) hub.publish(event_of("alice", event::InstanceTapUp()));
  std::size_t events = 0;
  for (std::string text = stream->read().value(); !text.empty(); text = stream->read().value()) {
    EXPECT_LT(text.size(), 66'000U);
    for (std::size_t at = 0; (at = text.find("event: ", at)) != std::string::npos; ++at) ++events;
  }
  EXPECT_EQ(events, EventHub::kKept);
}

// The page subscribes to the events of a quiet node: each open page got a megabyte of heartbeats a second.
TEST(EventStream, WithoutNewsIsOneHeartbeatForEachSilence) {
  constexpr auto kHeartbeat = 50ms;
  constexpr int kClients = 8;
  EventHub hub;
  const Principal tenant{.key_id = {}, .role = Role::kTenant, .owner = "alice"};
  Running server({.stream_heartbeat = kHeartbeat}, [&](const Request&) {
    return Response{
        .status = 200, .body = {}, .headers = {}, .stream = event_stream(hub.subscribe(tenant, ""))};
  });
  const auto began = std::chrono::steady_clock::now();
  std::vector<std::unique_ptr<test::Client>> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<test::Client>(server.endpoint()));
    clients.back()->call(kRequest);
  }
  // Other owners' events are not for these streams. An event follows the last heartbeat.
  const std::string heartbeat = "3\r\n:\n\n\r\n";
  const auto publish = [&](const std::string& owner) {
    server.on_its_thread([&] {
      hub.publish(event_of(owner, event::ForwardCreated()));
      return 0;
    });
  };
  while (std::chrono::steady_clock::now() < began + 10 * kHeartbeat) publish("bob");
  publish("alice");
  for (const auto& client : clients) {
    std::string text;
    while (!text.ends_with("}\n\n\r\n")) text += client->receive_some(4096);
    const auto silences = (std::chrono::steady_clock::now() - began) / kHeartbeat;
    long heartbeats = 0;
    for (std::size_t at = 0; (at = text.find(heartbeat, at)) != std::string::npos; ++at) ++heartbeats;
    EXPECT_GE(heartbeats, 1);
    EXPECT_LE(heartbeats, silences);
    EXPECT_LE(text.size(), 450 + heartbeat.size() * static_cast<std::size_t>(heartbeats));
  }
}

}  // namespace
}  // namespace portway
