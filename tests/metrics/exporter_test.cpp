#include "metrics/exporter.h"

#include <gmock/gmock.h>

#include <memory>

#include "tests/metrics/measured_node.h"
#include "tests/metrics/text_format.h"

namespace portway {
namespace {

using test::MeasuredNode;
using test::ParsedText;
using testing::IsEmpty;
using testing::Optional;

TEST(TextFormat, OfTheTestsIsReadStrictly) {
  const auto errors = [](std::string_view text) { return test::parse_text_format(text).errors; };
  constexpr std::string_view kHead = "# HELP a_total x\n# TYPE a_total counter\n";
  EXPECT_THAT(errors(std::string(kHead) + "a_total{l=\"q\\\"\\\\\\n\"} 1e3\n"), IsEmpty());
  for (const char* bad : {"a_total 1", "a_total x\n", "a_total{l=1} 1\n", "a_total{l=\"\\t\"} 1\n",
                          "a_total{l=\"x} 1\n", "a_total{l=\"1\",l=\"2\"} 1\n", "a_total 1\na_total 2\n",
                          "b 1\n", "1a 1\n", "a_total  1\n", "# TYPE b money\n", "# HELP a_total again\n"}) {
    EXPECT_FALSE(errors(std::string(kHead) + bad).empty()) << bad;
  }
  EXPECT_FALSE(errors("# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum "
                      "1\nh_count 1\n")
                   .empty())
      << "buckets must ascend";
}

ParsedText scrape(const MeasuredNode& node) {
  ParsedText parsed = test::parse_text_format(node.exporter().expose());
  EXPECT_THAT(parsed.errors, testing::IsEmpty());
  return parsed;
}

TEST(Exporter, ReportsEveryFamilyWithHelpAndTypeOnAnIdleNode) {
  MeasuredNode node;
  const ParsedText text = scrape(node);
  for (const char* name : {"portway_forward_connections_active",
                           "portway_forward_connections_total",
                           "portway_forward_received_bytes_total",
                           "portway_forward_sent_bytes_total",
                           "portway_forward_connect_errors_total",
                           "portway_forward_info",
                           "portway_connect_duration_seconds",
                           "portway_connection_duration_seconds",
                           "portway_connections_closed_total",
                           "portway_connections_rejected_total",
                           "portway_ports_allocated",
                           "portway_ports_available",
                           "portway_port_allocation_errors_total",
                           "portway_bytes_spliced_total",
                           "portway_bytes_copied_total",
                           "portway_pipes_in_use",
                           "portway_pipes_clamped",
                           "portway_io_backend_info",
                           "portway_api_requests_total",
                           "portway_api_request_duration_seconds",
                           "portway_api_connections",
                           "portway_api_connections_total",
                           "portway_api_connections_refused_total",
                           "portway_api_requests_refused_total",
                           "portway_build_info",
                           "process_open_fds",
                           "process_max_fds",
                           "process_resident_memory_bytes",
                           "process_cpu_seconds_total",
                           "process_start_time_seconds"}) {
    ASSERT_TRUE(text.families.contains(name)) << name;
    const auto& family = text.families.at(name);
    EXPECT_FALSE(family.help.empty()) << name;
    EXPECT_EQ(std::string_view(name).ends_with("_total"), family.type == "counter") << name;
  }
}

TEST(Exporter, ReportsTheApiServersNumbersAndItsCertificateIfThereIsOne) {
  constexpr const char* kExpiry = "portway_api_tls_certificate_expiry_timestamp_seconds";
  MeasuredNode node;
  node.numbers.api_server = {.connections = 2,
                             .connections_total = 9,
                             .connections_refused_network = 3,
                             .connections_refused_limit = 1,
                             .connections_evicted = 6,
                             .half_open_evicted = 7,
                             .handshakes_failed = 4,
                             .requests_refused = 5};
  ParsedText text = scrape(node);
  EXPECT_THAT(text.value("portway_api_connections", {}), Optional(2.0));
  EXPECT_THAT(text.value("portway_api_connections_total", {}), Optional(9.0));
  EXPECT_THAT(text.value("portway_api_connections_refused_total", {{"reason", "network"}}), Optional(3.0));
  EXPECT_THAT(text.value("portway_api_connections_refused_total", {{"reason", "tls"}}), Optional(4.0));
  EXPECT_THAT(text.value("portway_api_connections_evicted_total", {{"state", "idle"}}), Optional(6.0));
  EXPECT_THAT(text.value("portway_api_connections_evicted_total", {{"state", "half_open"}}), Optional(7.0));
  EXPECT_THAT(text.value("portway_api_requests_refused_total", {}), Optional(5.0));
  EXPECT_FALSE(text.families.contains(kExpiry));
  node.numbers.api_server.tls_certificate_expiry = 1'900'000'000;
  text = scrape(node);
  EXPECT_THAT(text.value(kExpiry, {}), Optional(1.9e9));
}

TEST(Exporter, ReportsTheFleetsNumbersIfTheNodeIsInOne) {
  MeasuredNode node;
  EXPECT_FALSE(scrape(node).families.contains("portway_fleet_registered"));
  node.numbers.fleet = FleetNumbers{.registered = true,
                                    .pending = 2,
                                    .writes = 10,
                                    .writes_failed = 3,
                                    .claims_refused = 4,
                                    .sessions_lost = 5,
                                    .clock_ahead_seconds = -1.5};
  const ParsedText text = scrape(node);
  EXPECT_THAT(text.value("portway_fleet_registered", {}), Optional(1.0));
  EXPECT_THAT(text.value("portway_fleet_pending", {}), Optional(2.0));
  EXPECT_THAT(text.value("portway_fleet_writes_total", {{"result", "ok"}}), Optional(6.0));
  EXPECT_THAT(text.value("portway_fleet_writes_total", {{"result", "claim"}}), Optional(4.0));
  EXPECT_THAT(text.value("portway_fleet_writes_total", {{"result", "failed"}}), Optional(3.0));
  EXPECT_THAT(text.value("portway_fleet_sessions_lost_total", {}), Optional(5.0));
  EXPECT_THAT(text.value("portway_fleet_clock_ahead_seconds", {}), Optional(-1.5));
}

TEST(Exporter, ReportsAForwardsNumbersUnderItsId) {
  MeasuredNode node;
  const ForwardId forward = node.add_forward(20001).id;
  const std::string id = to_string(forward);
  node.dataplane.stats[forward] = {.id = forward,
                                   .connections_active = 3,
                                   .connections_accepted = 50,
                                   .connections_established = 40,
                                   .received_bytes = 9'007'199'254'740'991,
                                   .sent_bytes = 123'456'789'012,
                                   .connect_errors = {4, 3, 0, 0, 0, 0},
                                   .rejected = {2, 0, 1}};
  const ParsedText text = scrape(node);
  EXPECT_THAT(text.value("portway_forward_connections_active", {{"forward", id}}), Optional(3.0));
  EXPECT_THAT(text.value("portway_forward_received_bytes_total", {{"forward", id}}),
              Optional(9007199254740991.0));
  EXPECT_THAT(text.value("portway_forward_sent_bytes_total", {{"forward", id}}), Optional(123456789012.0));
  const auto connections = [&](const char* result) {
    return text.value("portway_forward_connections_total", {{"forward", id}, {"result", result}});
  };
  EXPECT_THAT(connections("established"), Optional(40.0));
  EXPECT_THAT(connections("failed"), Optional(7.0));
  EXPECT_THAT(connections("rejected"), Optional(3.0));
  const auto errors = [&](const char* reason) {
    return text.value("portway_forward_connect_errors_total", {{"forward", id}, {"reason", reason}});
  };
  EXPECT_THAT(errors("refused"), Optional(4.0));
  EXPECT_THAT(errors("timeout"), Optional(3.0));
  EXPECT_EQ(errors("other"), std::nullopt) << "what never occurred costs no series";
}

TEST(Exporter, ReportsOnceWhatAForwardIs) {
  MeasuredNode node;
  const Forward& forward = node.add_forward(20001, "a \"quoted\" \\ label \xc3\xa9");
  const ParsedText text = scrape(node);
  EXPECT_THAT(text.value("portway_forward_info", {{"forward", to_string(forward.id)},
                                                  {"label", forward.label},
                                                  {"instance_id", "vm-1"},
                                                  {"guest_port", "3000"},
                                                  {"host_port", "20001"}}),
              Optional(1.0));
  EXPECT_EQ(text.series_with("instance_id", "vm-1"), 1);
}

TEST(Exporter, ReportsNothingAboutADeletedForward) {
  MeasuredNode node;
  const ForwardId removed = node.add_forward(20001).id;
  const std::string gone = to_string(removed);
  const std::string stays = to_string(node.add_forward(20002).id);
  EXPECT_GT(scrape(node).series_with("forward", gone), 0);
  node.remove_forward(removed);
  const ParsedText text = scrape(node);
  EXPECT_EQ(text.series_with("forward", gone), 0);
  EXPECT_GT(text.series_with("forward", stays), 0);
}

TEST(Exporter, KeepsTheNodesCountsWhenAForwardIsGone) {
  MeasuredNode node;
  const ForwardId forward = node.add_forward(20001).id;
  node.dataplane.workers[0].spliced_bytes.add(1000);
  node.dataplane.workers[0].rejected[0].add(5);
  const auto counts = [&] {
    const ParsedText text = scrape(node);
    return std::pair(text.value("portway_bytes_spliced_total"),
                     text.value("portway_connections_rejected_total", {{"reason", "connections_max"}}));
  };
  const auto before = counts();
  EXPECT_EQ(before, std::pair(std::optional(1000.0), std::optional(5.0)));
  node.remove_forward(forward);
  EXPECT_EQ(counts(), before);
}

TEST(Exporter, AddsUpTheWorkers) {
  MeasuredNode node;
  node.dataplane.workers[0].connections_active.add(2);
  node.dataplane.workers[1].connections_active.add(5);
  node.dataplane.workers[0].spliced_bytes.add(1'000'000);
  node.dataplane.workers[1].spliced_bytes.add(1);
  node.dataplane.workers[1].copied_bytes.add(77);
  node.dataplane.workers[0].pipes_in_use.add(3);
  node.dataplane.workers[1].pipes_clamped.add(4);
  for (WorkerCounters& worker : node.dataplane.workers) {
    worker.closed[static_cast<std::size_t>(CloseSide::kGuest)][static_cast<std::size_t>(CloseHow::kReset)]
        .add(10);
  }
  const ParsedText text = scrape(node);
  EXPECT_THAT(text.value("portway_connections_active"), Optional(7.0));
  EXPECT_THAT(text.value("portway_bytes_spliced_total"), Optional(1'000'001.0));
  EXPECT_THAT(text.value("portway_bytes_copied_total"), Optional(77.0));
  EXPECT_THAT(text.value("portway_pipes_in_use"), Optional(3.0));
  EXPECT_THAT(text.value("portway_pipes_clamped"), Optional(4.0));
  EXPECT_THAT(text.value("portway_connections_closed_total", {{"side", "guest"}, {"how", "reset"}}),
              Optional(20.0));
  EXPECT_THAT(text.value("portway_connections_closed_total", {{"side", "client"}, {"how", "reset"}}),
              Optional(0.0));
}

TEST(Exporter, AddsUpTheWorkersHistograms) {
  MeasuredNode node;
  node.dataplane.workers[0].connect_duration.observe_us(90, kConnectBoundsS);
  node.dataplane.workers[1].connect_duration.observe_us(100, kConnectBoundsS);
  node.dataplane.workers[1].connect_duration.observe_us(2'000'000, kConnectBoundsS);
  node.dataplane.workers[1].connect_duration.observe_us(9'000'000, kConnectBoundsS);
  const ParsedText text = scrape(node);
  const auto bucket = [&](const char* le) {
    return text.value("portway_connect_duration_seconds_bucket", {{"le", le}});
  };
  EXPECT_THAT(bucket("0.0001"), Optional(2.0));
  EXPECT_THAT(bucket("1"), Optional(2.0));
  EXPECT_THAT(bucket("5"), Optional(3.0));
  EXPECT_THAT(bucket("+Inf"), Optional(4.0));
  EXPECT_THAT(text.value("portway_connect_duration_seconds_sum"),
              Optional(testing::DoubleNear(11.00019, 1e-9)));
  EXPECT_THAT(text.value("portway_connection_duration_seconds_count"), Optional(0.0));
}

TEST(Exporter, ReportsPortsRequestsAndBackEnd) {
  MeasuredNode node;
  for (std::uint16_t port = 20000; port < 20012; ++port) ASSERT_TRUE(node.ports.take(port));
  node.api.count_port_allocation_error(PortAllocationError::kExhausted);
  node.api.count_request("/instances/{id}/port-forwards", 201, std::chrono::microseconds(700));
  node.dataplane.io_backend = "epoll";
  node.dataplane.io_backend_reason = "io_uring_setup: EPERM";
  const ParsedText text = scrape(node);
  EXPECT_THAT(text.value("portway_ports_allocated"), Optional(12.0));
  EXPECT_THAT(text.value("portway_ports_available"), Optional(88.0));
  EXPECT_THAT(text.value("portway_port_allocation_errors_total", {{"reason", "exhausted"}}), Optional(1.0));
  EXPECT_THAT(text.value("portway_port_allocation_errors_total", {{"reason", "taken"}}), Optional(0.0));
  EXPECT_THAT(
      text.value("portway_api_requests_total", {{"route", "/instances/{id}/port-forwards"}, {"code", "201"}}),
      Optional(1.0));
  EXPECT_THAT(text.value("portway_api_request_duration_seconds_bucket", {{"le", "0.001"}}), Optional(1.0));
  EXPECT_THAT(
      text.value("portway_io_backend_info", {{"backend", "epoll"}, {"reason", "io_uring_setup: EPERM"}}),
      Optional(1.0));
  EXPECT_EQ(text.series_with("version", PORTWAY_VERSION), 1);
}

TEST(Exporter, CollectsTheSameFamiliesThatItExposes) {
  MeasuredNode node;
  node.add_forward(20001);
  const ParsedText text = scrape(node);
  const auto families = node.exporter().Collect();
  EXPECT_EQ(families.size(), text.families.size());
  for (const auto& family : families) EXPECT_TRUE(text.families.contains(family.name)) << family.name;
}

TEST(Exporter, ReportsOnlyTheNodeOrOnlyTheForwardsOnRequest) {
  MeasuredNode node;
  node.add_forward(20001);
  const auto names = [&](MetricsScope scope) {
    std::set<std::string> all;
    for (const auto& [name, family] : test::parse_text_format(node.exporter().expose(scope)).families)
      all.insert(name);
    return all;
  };
  const std::set<std::string> forwards = names(MetricsScope::kForwards);
  std::set<std::string> both = names(MetricsScope::kNode);
  for (const std::string& name : both) EXPECT_FALSE(name.starts_with("portway_forward_")) << name;
  for (const std::string& name : forwards) EXPECT_TRUE(name.starts_with("portway_forward_")) << name;
  both.insert(forwards.begin(), forwards.end());
  EXPECT_EQ(both, names(MetricsScope::kAll));
}

TEST(Exporter, BoundsASeriesCountByForwardsAlone) {
  MeasuredNode node;
  const auto series = [&] {
    std::size_t count = 0;
    for (const auto& family : node.exporter().Collect()) count += family.metric.size();
    return count;
  };
  const std::size_t none = series();
  for (std::uint16_t port = 20000; port < 20100; ++port) node.add_forward(port);
  EXPECT_EQ(series(), none + 700) << "seven series for a forward without connect errors";
}

}  // namespace
}  // namespace portway
