// Writes metrics in the Prometheus text format 0.0.4, series by series, to the end of one string.
//
// Takes prometheus-cpp's data model. Its own TextSerializer is not used: it formats each number through a
// stream and needs all series of a family at once, which would be most of the cost of a scrape with 10,000
// forwards. Source: prometheus.io/docs/instrumenting/exposition_formats. Any thread, one at a time.
#pragma once

#include <prometheus/client_metric.h>
#include <prometheus/metric_type.h>

#include <string>
#include <string_view>

namespace portway {

class TextWriter {
 public:
  /// `out` must outlive the writer.
  explicit TextWriter(std::string& out) : out_(out) {}

  /// Begins a family: counters, gauges and histograms only.
  void begin_family(prometheus::MetricType type, std::string_view name, std::string_view help);
  void write(const prometheus::ClientMetric& metric);

 private:
  using Labels = std::vector<prometheus::ClientMetric::Label>;

  void write_histogram(const prometheus::ClientMetric& metric);
  /// Writes NAME+SUFFIX{labels}, up to the value; `bound`, if not null, becomes the label "le".
  void begin_sample(std::string_view suffix, const Labels& labels, const double* bound = nullptr);
  void write_number(double value);

  std::string& out_;
  prometheus::MetricType type_ = prometheus::MetricType::Untyped;
  std::string name_;
};

}  // namespace portway
