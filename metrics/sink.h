// Where families of metrics go: to the text of a scrape, or to prometheus-cpp's own structures.
//
// A sink takes one family after another, and the series of each one after another. Nothing is kept
// afterwards. One thread at a time.
#pragma once

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>

#include <array>
#include <boost/uuid/uuid_io.hpp>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/forward.h"
#include "metrics/text_writer.h"

namespace portway {

using prometheus::MetricType;

class Sink {
 public:
  virtual ~Sink() = default;
  virtual void begin_family(MetricType type, std::string_view name, std::string_view help) = 0;
  /// The caller may change the metric afterwards and pass it again.
  virtual void add(const prometheus::ClientMetric& metric) = 0;
};

class TextSink final : public Sink {
 public:
  explicit TextSink(std::string& out) : writer_(out) {}
  void begin_family(MetricType type, std::string_view name, std::string_view help) override {
    writer_.begin_family(type, name, help);
  }
  void add(const prometheus::ClientMetric& metric) override { writer_.write(metric); }

 private:
  TextWriter writer_;
};

class FamilySink final : public Sink {
 public:
  void begin_family(MetricType type, std::string_view name, std::string_view help) override {
    prometheus::MetricFamily& family = families.emplace_back();
    family.type = type;
    family.name = name;
    family.help = help;
  }
  void add(const prometheus::ClientMetric& metric) override { families.back().metric.push_back(metric); }

  std::vector<prometheus::MetricFamily> families;
};

/// A family of counters or gauges on its way to the sink. Its labels are named once, and all series share
/// one metric object.
class Family {
 public:
  Family(Sink& sink, MetricType type, std::string_view name, std::string_view help,
         std::span<const std::string_view> labels)
      : sink_(sink), type_(type) {
    sink.begin_family(type, name, help);
    for (const std::string_view label : labels) metric_.label.push_back({std::string(label), {}});
  }
  Family(Sink& sink, MetricType type, std::string_view name, std::string_view help,
         std::initializer_list<std::string_view> labels = {})
      : Family(sink, type, name, help, std::span(labels.begin(), labels.size())) {}

  /// Sets the value of the label at `index` for the series added from now on.
  Family& label(std::size_t index, std::string_view value) {
    metric_.label[index].value = value;
    return *this;
  }
  Family& label(std::size_t index, const ForwardId& id) {
    std::string& text = metric_.label[index].value;
    text.resize(36);
    boost::uuids::to_chars(id, text.begin());
    return *this;
  }
  void add(double value) {
    (type_ == MetricType::Counter ? metric_.counter.value : metric_.gauge.value) = value;
    sink_.add(metric_);
  }
  /// Exact up to 2^53: 9 PB, or nine quadrillion connections.
  void add(std::uint64_t value) { add(static_cast<double>(value)); }

 private:
  Sink& sink_;
  const MetricType type_;
  prometheus::ClientMetric metric_;
};

/// A family with one series and no labels.
template <class Value>
void emit(Sink& sink, MetricType type, std::string_view name, std::string_view help, Value value) {
  Family(sink, type, name, help).add(value);
}

/// Adds up the histograms that `get` finds in each of `writers`.
template <std::size_t N, class Writers, class Get>
void emit_histogram(Sink& sink, std::string_view name, std::string_view help,
                    const std::array<double, N>& bounds_s, const Writers& writers, Get get) {
  prometheus::ClientMetric metric;
  prometheus::ClientMetric::Histogram& out = metric.histogram;
  for (std::size_t i = 0; i <= N; ++i) {
    for (const auto* writer : writers) out.sample_count += get(*writer).buckets[i].get();
    out.bucket.push_back({out.sample_count, i < N ? bounds_s[i] : std::numeric_limits<double>::infinity()});
  }
  for (const auto* writer : writers) out.sample_sum += static_cast<double>(get(*writer).sum_us.get()) * 1e-6;
  sink.begin_family(MetricType::Histogram, name, help);
  sink.add(metric);
}

}  // namespace portway
