#include "api/json.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>
#include <vector>

namespace portway {
namespace {

std::vector<std::string> names_in(const boost::json::object& object) {
  std::vector<std::string> names;
  for (const auto& [name, value] : object) names.emplace_back(name);
  return names;
}

ForwardStatus forward_status() {
  ForwardStatus status;
  status.forward.id = make_uuid();
  status.forward.instance_id = "vm-1";
  status.forward.guest_port = 3000;
  status.forward.host_port = 28492;
  status.forward.label = "dev";
  status.bind_addresses = {"203.0.113.7", "2001:db8::7"};
  return status;
}

TEST(Json, AForwardHasItsMembersInTheOrderOfTheContract) {
  const boost::json::object json = to_json(forward_status());
  EXPECT_EQ(names_in(json),
            (std::vector<std::string>{"id", "instance_id", "guest_port", "host_port", "protocol", "label",
                                      "state", "bind_address", "bind_addresses", "source_mode", "created_at",
                                      "connections_active", "connections_total", "received_bytes",
                                      "sent_bytes", "connection_seconds", "usage_since"}));
  EXPECT_EQ(json.at("state"), "listening");
  EXPECT_EQ(json.at("bind_address"), "203.0.113.7");
  EXPECT_EQ(json.at("bind_addresses").as_array().size(), 2U);
}

TEST(Json, AForwardThatIsNotServedSaysWhy) {
  ForwardStatus status = forward_status();
  status.state = ForwardState::kFailed;
  status.cause = ForwardCause::kNotBound;
  status.reason = "the port is taken";
  const boost::json::object json = to_json(status);
  EXPECT_EQ(json.at("state"), "failed");
  EXPECT_EQ(json.at("reason"), "the port is taken");
}

TEST(Json, AForwardHasOnlyTheLimitsThatAreSet) {
  ForwardStatus status = forward_status();
  status.forward.limits.max_connections = 10;
  status.forward.limits.allowed_cidrs = {Cidr::parse("203.0.113.0/24").value()};
  status.forward.admin_limits[static_cast<std::size_t>(Limit::kMaxConnections)] = true;
  const boost::json::object json = to_json(status);
  EXPECT_EQ(json.at("max_connections"), 10);
  EXPECT_EQ(json.at("allowed_cidrs"), boost::json::array{"203.0.113.0/24"});
  EXPECT_EQ(json.at("admin_limits"), boost::json::array{"max_connections"});
  EXPECT_FALSE(json.contains("max_bytes_per_second"));
}

TEST(Json, AForwardSaysWhatItHasCarried) {
  ForwardStatus status = forward_status();
  status.usage.since = status.forward.created_at;
  status.usage.reading.connections_now = 2;
  status.usage.reading.totals = {
      .connections = 5, .received_bytes = 7, .sent_bytes = 8, .connection_us = 1'234'999};
  boost::json::object json = to_json(status);
  EXPECT_EQ(json.at("connections_active"), 2);
  EXPECT_EQ(json.at("connections_total"), 5);
  EXPECT_EQ(json.at("received_bytes"), 7);
  EXPECT_EQ(json.at("sent_bytes"), 8);
  EXPECT_EQ(json.at("connection_seconds"), 1.234);
  EXPECT_EQ(json.at("usage_since"), json.at("created_at"));
  EXPECT_FALSE(json.contains("last_byte_at")) << "never";
  EXPECT_FALSE(json.contains("last_connection_at"));
  status.usage.reading.totals.last_byte_at_ms = 1;
  status.usage.reading.totals.last_connection_at_ms = 1000;
  json = to_json(status);
  EXPECT_EQ(json.at("last_byte_at"), "1970-01-01T00:00:00.001Z");
  EXPECT_EQ(json.at("last_connection_at"), "1970-01-01T00:00:01.000Z");
}

Instance instance() {
  Instance instance;
  instance.id = "vm-1";
  instance.guest_address = parse_address("198.18.0.2").value();
  instance.tap = "tap0";
  instance.owner = "alice";
  instance.profile = "default";
  return instance;
}

TEST(Json, AnInstanceHasItsMembersInTheOrderOfTheContract) {
  const boost::json::object json = to_json(InstanceStatus{.instance = instance(), .tap_state = "up"});
  EXPECT_EQ(names_in(json), (std::vector<std::string>{"id", "guest_address", "guest_addresses", "tap",
                                                      "owner", "profile", "session_id", "state", "tap_state",
                                                      "source_mode", "port_forwards", "created_at"}));
}

TEST(Json, AnInstancesQuotaIsNeverOverdrawn) {
  const InstanceStatus status{
      .instance = instance(), .tap_state = "up", .forwards_max = 5, .forwards_now = 6};  // the profile shrank
  const boost::json::object quota = to_json(status).at("port_forwards").as_object();
  EXPECT_EQ(quota.at("limit"), 5);
  EXPECT_EQ(quota.at("current"), 6);
  EXPECT_EQ(quota.at("available"), 0);
}

TEST(Json, AnInstanceWhoseEndIsNotOnDiskIsEnding) {
  InstanceStatus status{.instance = instance(), .tap_state = "up"};
  EXPECT_EQ(to_json(status).at("state"), "running");
  status.ending = true;
  EXPECT_EQ(to_json(status).at("state"), "ending");
}

TEST(Json, AKeyDoesNotShowItsSecret) {
  KeyStatus status{
      .key = {
          .id = make_uuid(), .role = Role::kTenant, .owner = "alice", .secret_sha256 = {}, .created_at = {}}};
  const std::vector<std::string> always = {"id",          "role",  "owner", "created_at",
                                           "description", "scope", "state"};
  EXPECT_EQ(names_in(to_json(status)), always);
  EXPECT_EQ(to_json(status).at("role"), "tenant");
  EXPECT_EQ(to_json(status).at("state"), "active");
  status.key.instance_id = "vm-1";
  status.key.expires_at = status.key.last_used_at = status.old_secret_valid_until = Timestamp();
  status.key.old_secret = ApiKey::OldSecret{};
  status.expired = true;
  EXPECT_EQ(to_json(status).at("state"), "expired");
  EXPECT_EQ(
      names_in(to_json(status)),
      (std::vector<std::string>{"id", "role", "owner", "created_at", "description", "scope", "instance_id",
                                "state", "expires_at", "last_used_at", "old_secret_valid_until"}));
}

TEST(Json, AConnectionsRatesAreThoseOfItsWholeLife) {
  LiveConnection connection;
  connection.age = std::chrono::seconds(2);
  connection.received_bytes = 1000;
  EXPECT_EQ(to_json(connection).at("received_bytes_per_second"), 500.0);
  connection.age = {};
  EXPECT_EQ(to_json(connection).at("received_bytes_per_second"), 1'000'000.0) << "an age of 0 counts as 1 ms";
}

}  // namespace
}  // namespace portway
