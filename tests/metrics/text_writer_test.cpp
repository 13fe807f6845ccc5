#include "metrics/text_writer.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/metrics/text_format.h"

namespace portway {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricType;

/// One gauge's sample line.
std::string line(double value, std::vector<ClientMetric::Label> labels = {}) {
  std::string out;
  TextWriter writer(out);
  writer.begin_family(MetricType::Gauge, "a", "x");
  out.clear();
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  writer.write(metric);
  return out;
}

TEST(TextWriter, WritesNumbersThatReadBackAsTheSame) {
  EXPECT_EQ(line(0), "a 0\n");
  EXPECT_EQ(line(-1), "a -1\n");
  EXPECT_EQ(line(9'007'199'254'740'991.0), "a 9007199254740991\n");
  EXPECT_EQ(line(9'007'199'254'740'992.0), "a 9007199254740992\n");
  EXPECT_EQ(line(1e22), "a 1e+22\n");
  EXPECT_EQ(line(0.1), "a 0.1\n");
  EXPECT_EQ(line(0.0001), "a 0.0001\n") << "a bucket's bound must stay as it always was: it names a series";
  EXPECT_EQ(line(1.0 / 3), "a 0.3333333333333333\n");
  EXPECT_EQ(line(5e-324), "a 5e-324\n");
  EXPECT_EQ(line(std::numeric_limits<double>::infinity()), "a +Inf\n");
  EXPECT_EQ(line(-std::numeric_limits<double>::infinity()), "a -Inf\n");
  EXPECT_EQ(line(std::numeric_limits<double>::quiet_NaN()), "a NaN\n");
}

TEST(TextWriter, EscapesLabelValues) {
  EXPECT_EQ(line(1, {{"l", "plain"}, {"m", ""}}), "a{l=\"plain\",m=\"\"} 1\n");
  EXPECT_EQ(line(1, {{"l", "a \"b\" \\ c\nd\t"}}), "a{l=\"a \\\"b\\\" \\\\ c\\nd\t\"} 1\n");
}

TEST(TextWriter, EscapesHelpButNotItsQuotes) {
  std::string out;
  TextWriter(out).begin_family(MetricType::Counter, "a_total", "one \\ \"two\"\nthree");
  EXPECT_EQ(out, "# HELP a_total one \\\\ \"two\"\\nthree\n# TYPE a_total counter\n");
}

TEST(TextWriter, WritesAHistogramsBucketsSumAndCount) {
  std::string out;
  TextWriter writer(out);
  writer.begin_family(MetricType::Histogram, "h_seconds", "x");
  out.clear();
  ClientMetric metric;
  metric.histogram.bucket = {{1, 0.00025}, {3, std::numeric_limits<double>::infinity()}};
  metric.histogram.sample_count = 3;
  metric.histogram.sample_sum = 0.5;
  writer.write(metric);
  metric.label = {{"l", "v"}};
  metric.histogram.bucket.resize(1);
  writer.write(metric);
  EXPECT_EQ(
      out,
      "h_seconds_bucket{le=\"0.00025\"} 1\nh_seconds_bucket{le=\"+Inf\"} 3\nh_seconds_sum 0.5\n"
      "h_seconds_count 3\n"
      "h_seconds_bucket{l=\"v\",le=\"0.00025\"} 1\nh_seconds_sum{l=\"v\"} 0.5\nh_seconds_count{l=\"v\"} 3\n");
}

}  // namespace
}  // namespace portway
