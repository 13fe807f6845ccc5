// metrics/metrics.md, the operators' table of all metrics, is generated from the exporter's help texts. With
// PORTWAY_UPDATE_REFERENCE=1 in the environment this test regenerates it.
#include <gtest/gtest.h>

#include "tests/metrics/measured_node.h"
#include "tests/metrics/reference_table.h"

namespace portway::test {
namespace {

constexpr std::string_view kHead = R"(# Metrics
All metrics of `GET /metrics`, generated from the exporter's help texts by `tests/metrics/reference_test.cpp`.

Units are bytes and seconds; `_total` counts up from 0 at the daemon's start. No label names a client, so clients and guests cannot add
series. The last column gives the most series that a metric can have; those "a forward" disappear with the forward.
`portway_api_requests_total` has one for each route of the API and status code that occurred (about 20 routes, each with fewer than 10
codes). A node with 10,000 forwards has about 70,000 series: a scrape takes 7.4 MB, 1.1 MB with gzip. `?scope=node` leaves out the
forwards, `?scope=forwards` everything else.

A gateway's metrics are in [gateway.md](gateway.md).
)";

/// Of a node in a fleet with one forward whose series all exist.
std::string reference() {
  MeasuredNode node;
  node.dataplane.stats[node.add_forward(20001).id].connect_errors.fill(1);
  node.api.count_request("/instances", 200, {});
  node.numbers.fleet.emplace();
  return reference_page(kHead, node.exporter().Collect());
}

TEST(MetricsReference, IsWhatTheExporterReports) {
  const std::string page = reference();
  EXPECT_EQ(read_reference(PORTWAY_METRICS_REFERENCE, page), page)
      << "PORTWAY_UPDATE_REFERENCE=1 writes " PORTWAY_METRICS_REFERENCE " again";
}

}  // namespace
}  // namespace portway::test
