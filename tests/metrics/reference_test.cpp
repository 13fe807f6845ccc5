// metrics/metrics.md, the operators' table of all metrics, is generated from the exporter's help texts. With
// PORTWAY_UPDATE_REFERENCE=1 in the environment this test regenerates it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "tests/metrics/measured_node.h"

namespace portway::test {
namespace {

constexpr std::string_view kHead = R"(# Metrics
All metrics of `GET /metrics`, generated from the exporter's help texts by `tests/metrics/reference_test.cpp`.

Units are bytes and seconds; `_total` counts up from 0 at the daemon's start. No label names a client, so clients and guests cannot add
series. The last column gives the most series that a metric can have; those "a forward" disappear with the forward.
`portway_api_requests_total` has one for each route of the API and status code that occurred (about 20 routes, each with fewer than 10
codes). A node with 10,000 forwards has about 70,000 series: a scrape takes 7.4 MB, 1.1 MB with gzip. `?scope=node` leaves out the
forwards, `?scope=forwards` everything else.

| metric | type | labels | series | how to read it |
|---|---|---|---|---|
)";

std::string_view type_name(prometheus::MetricType type) {
  if (type == prometheus::MetricType::Counter) return "counter";
  return type == prometheus::MetricType::Gauge ? "gauge" : "histogram";
}

/// Of a node in a fleet with one forward whose series all exist.
std::string reference() {
  MeasuredNode node;
  node.dataplane.stats[node.add_forward(20001).id].connect_errors.fill(1);
  node.api.count_request("/instances", 200, {});
  node.numbers.fleet.emplace();
  std::ostringstream out;
  out << kHead;
  for (const prometheus::MetricFamily& family : node.exporter().Collect()) {
    std::string labels;
    for (const auto& label : family.metric.front().label)
      labels += (labels.empty() ? "`" : ", `") + label.name + "`";
    std::size_t series = family.metric.size();
    if (family.type == prometheus::MetricType::Histogram)
      series = family.metric.front().histogram.bucket.size() + 2;
    out << "| `" << family.name << "` | " << type_name(family.type) << " | " << labels << " | ";
    if (family.name == "portway_api_requests_total") {
      out << "see above";
    } else {
      out << series << (labels.starts_with("`forward`") ? " a forward" : "");
    }
    out << " | " << family.help << " |\n";
  }
  return out.str();
}

std::string read_file(const char* path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

TEST(MetricsReference, IsWhatTheExporterReports) {
  if (std::getenv("PORTWAY_UPDATE_REFERENCE") != nullptr)
    std::ofstream(PORTWAY_METRICS_REFERENCE) << reference();
  EXPECT_EQ(read_file(PORTWAY_METRICS_REFERENCE), reference())
      << "PORTWAY_UPDATE_REFERENCE=1 writes " PORTWAY_METRICS_REFERENCE " again";
}

}  // namespace
}  // namespace portway::test
