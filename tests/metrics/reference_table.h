// The table of all metrics of a program, for operators, from their help texts.
#pragma once

#include <prometheus/metric_family.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace portway::test {

inline std::string_view type_name(prometheus::MetricType type) {
  if (type == prometheus::MetricType::Counter) return "counter";
  return type == prometheus::MetricType::Gauge ? "gauge" : "histogram";
}

/// The page: `head` and a row for each family.
inline std::string reference_page(std::string_view head,
                                  const std::vector<prometheus::MetricFamily>& families) {
  std::ostringstream out;
  out << head << "\n| metric | type | labels | series | how to read it |\n|---|---|---|---|---|\n";
  for (const prometheus::MetricFamily& family : families) {
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

/// What the file has; with PORTWAY_UPDATE_REFERENCE=1 in the environment it has `page` from then on.
inline std::string read_reference(const char* path, const std::string& page) {
  if (std::getenv("PORTWAY_UPDATE_REFERENCE") != nullptr) std::ofstream(path) << page;
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace portway::test
