#include "metrics/text_writer.h"

#include <cassert>
#include <charconv>
#include <cmath>
#include <cstdint>

namespace portway {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricType;

std::string_view type_name(MetricType type) {
  switch (type) {
    case MetricType::Counter:
      return "counter";
    case MetricType::Gauge:
      return "gauge";
    case MetricType::Histogram:
      return "histogram";
    default:
      assert(false && "a type that no metric of ours has");
      return "untyped";
  }
}

/// `special` are the characters to escape with a backslash; a line feed is written as \n.
void append_escaped(std::string& out, std::string_view text, std::string_view special) {
  while (!text.empty()) {
    const std::size_t plain = text.find_first_of(special);
    out.append(text.substr(0, plain));
    if (plain == std::string_view::npos) return;
    out += '\\';
    out += text[plain] == '\n' ? 'n' : text[plain];
    text.remove_prefix(plain + 1);
  }
}

}  // namespace

void TextWriter::begin_family(MetricType type, std::string_view name, std::string_view help) {
  type_ = type;
  name_ = name;
  out_.append("# HELP ").append(name) += ' ';
  append_escaped(out_, help, "\\\n");
  out_.append("\n# TYPE ").append(name) += ' ';
  out_.append(type_name(type)) += '\n';
}

void TextWriter::write(const ClientMetric& metric) {
  if (type_ == MetricType::Histogram) {
    write_histogram(metric);
    return;
  }
  begin_sample("", metric.label);
  write_number(type_ == MetricType::Counter ? metric.counter.value : metric.gauge.value);
}

void TextWriter::write_histogram(const ClientMetric& metric) {
  const ClientMetric::Histogram& histogram = metric.histogram;
  for (const ClientMetric::Bucket& bucket : histogram.bucket) {
    begin_sample("_bucket", metric.label, &bucket.upper_bound);
    write_number(static_cast<double>(bucket.cumulative_count));
  }
  begin_sample("_sum", metric.label);
  write_number(histogram.sample_sum);
  begin_sample("_count", metric.label);
  write_number(static_cast<double>(histogram.sample_count));
}

void TextWriter::begin_sample(std::string_view suffix, const Labels& labels, const double* bound) {
  out_.append(name_).append(suffix);
  char before = '{';
  for (const ClientMetric::Label& label : labels) {
    out_ += before;
    out_.append(label.name).append("=\"");
    append_escaped(out_, label.value, "\\\"\n");
    out_ += '"';
    before = ',';
  }
  if (bound != nullptr) {
    out_ += before;
    out_.append("le=\"");
    write_number(*bound);
    out_.back() = '"';  // instead of the line's end
    before = ',';
  }
  out_.append(before == ',' ? "} " : " ");
}

/// The shortest text that reads back as the same number, and the line's end.
void TextWriter::write_number(double value) {
  constexpr double kExactMax = 9'007'199'254'740'992.0;  // 2^53: up to it, whole numbers are exact
  char text[32];
  char* end = text;
  if (std::isnan(value)) {
    out_.append("NaN\n");
    return;
  }
  if (std::isinf(value)) {
    out_.append(value > 0 ? "+Inf\n" : "-Inf\n");
    return;
  }
  if (value == std::trunc(value) && std::abs(value) <= kExactMax) {
    end = std::to_chars(text, text + sizeof text, static_cast<std::int64_t>(value)).ptr;
  } else {
    end = std::to_chars(text, text + sizeof text, value, std::chars_format::general).ptr;
  }
  *end++ = '\n';
  out_.append(text, end);
}

}  // namespace portway
