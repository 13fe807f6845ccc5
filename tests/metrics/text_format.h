// A strict reader of the Prometheus text format 0.0.4, for tests: anything the format does not allow is an
// error.
//
// Source: prometheus.io/docs/instrumenting/exposition_formats. Stricter than a real scraper: HELP and TYPE
// must precede a family's samples, and nothing may occur twice.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace portway::test {

using SampleLabels = std::map<std::string, std::string>;

struct Sample {
  std::string name;
  SampleLabels labels;
  double value = 0;
};

struct ParsedFamily {
  std::string help;
  std::string type;
  std::vector<Sample> samples;
};

struct ParsedText {
  std::map<std::string, ParsedFamily> families;
  std::vector<std::string> errors;  // "line 12: ..."

  /// The value of one series; nullopt if there is none.
  std::optional<double> value(const std::string& name, const SampleLabels& labels = {}) const;
  /// How many series have this label with this value.
  std::size_t series_with(const std::string& label, const std::string& value) const;
};

ParsedText parse_text_format(std::string_view text);

}  // namespace portway::test
