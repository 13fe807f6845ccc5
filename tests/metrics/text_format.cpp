#include "tests/metrics/text_format.h"

#include <charconv>
#include <cmath>
#include <limits>

namespace portway::test {
namespace {

bool is_name(std::string_view text, bool colons) {
  if (text.empty() || (text[0] >= '0' && text[0] <= '9')) return false;
  for (const char c : text) {
    const bool letter =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    if (!letter && !(colons && c == ':')) return false;
  }
  return true;
}

std::optional<double> parse_number(std::string_view text) {
  if (text == "+Inf") return std::numeric_limits<double>::infinity();
  if (text == "-Inf") return -std::numeric_limits<double>::infinity();
  if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  double value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || rest != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string_view family_of(std::string_view sample, const std::map<std::string, ParsedFamily>& families) {
  for (const std::string_view suffix : {"_bucket", "_sum", "_count"}) {
    if (!sample.ends_with(suffix)) continue;
    const std::string_view stem = sample.substr(0, sample.size() - suffix.size());
    const auto family = families.find(std::string(stem));
    if (family != families.end() && family->second.type == "histogram") return stem;
  }
  return sample;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  ParsedText run() {
    if (!text_.ends_with('\n')) fail("the text must end with a line feed");
    while (!text_.empty()) {
      ++line_number_;
      const std::size_t end = text_.find('\n');
      line_ = text_.substr(0, end);
      text_ = end == std::string_view::npos ? std::string_view() : text_.substr(end + 1);
      if (line_.starts_with('#')) {
        comment();
      } else if (!line_.empty()) {
        sample();
      }
    }
    for (const auto& [name, family] : out_.families) check_histogram(name, family);
    return std::move(out_);
  }

 private:
  void fail(const std::string& what) {
    out_.errors.push_back("line " + std::to_string(line_number_) + ": " + what + ": " + std::string(line_));
  }

  std::string_view word() {
    const std::size_t end = line_.find(' ');
    const std::string_view word = line_.substr(0, end);
    line_ = end == std::string_view::npos ? std::string_view() : line_.substr(end + 1);
    return word;
  }

  void comment() {
    word();
    const std::string_view kind = word();
    const std::string_view name = word();
    if (!is_name(name, true)) return fail("bad metric name");
    ParsedFamily& family = out_.families[std::string(name)];
    if (!family.samples.empty()) return fail("comes after its samples");
    std::string& field = kind == "HELP" ? family.help : family.type;
    if (kind != "HELP" && kind != "TYPE") return fail("neither HELP nor TYPE");
    if (line_.empty()) return fail("empty " + std::string(kind));
    if (!field.empty()) return fail("a second " + std::string(kind));
    field = line_;
    static const std::set<std::string_view> kTypes = {"counter", "gauge", "histogram", "summary", "untyped"};
    if (kind == "TYPE" && !kTypes.contains(line_)) fail("unknown type");
  }

  /// A quoted label value, its three escapes undone.
  std::optional<std::string> quoted_value() {
    std::string value;
    if (!line_.starts_with('"')) return std::nullopt;
    for (std::size_t i = 1; i < line_.size(); ++i) {
      char c = line_[i];
      if (c == '"') {
        line_.remove_prefix(i + 1);
        return value;
      }
      if (c == '\\') {
        if (++i == line_.size()) return std::nullopt;
        c = line_[i];
        if (c == 'n') {
          c = '\n';
        } else if (c != '\\' && c != '"') {
          return std::nullopt;
        }
      }
      value += c;
    }
    return std::nullopt;
  }

  /// "{a="b",c="d"}"; false if it is malformed.
  bool labels(SampleLabels& labels) {
    line_.remove_prefix(1);
    while (!line_.starts_with('}')) {
      const std::size_t equals = line_.find('=');
      if (equals == std::string_view::npos) return false;
      const std::string name(line_.substr(0, equals));
      line_.remove_prefix(equals + 1);
      const auto value = quoted_value();
      if (!is_name(name, false) || !value || !labels.emplace(name, *value).second) return false;
      if (line_.starts_with(',')) line_.remove_prefix(1);
    }
    line_.remove_prefix(1);
    return true;
  }

  void sample() {
    Sample sample;
    const std::size_t name_end = line_.find_first_of("{ ");
    sample.name = line_.substr(0, name_end);
    if (name_end == std::string_view::npos || !is_name(sample.name, true)) return fail("bad sample");
    line_.remove_prefix(name_end);
    if (line_.starts_with('{') && !labels(sample.labels)) return fail("bad labels");
    if (!line_.starts_with(' ')) return fail("no space before the value");
    const auto value = parse_number(line_.substr(1));
    if (!value) return fail("bad value");
    sample.value = *value;
    if (!seen_.emplace(sample.name, sample.labels).second) return fail("a second value for " + sample.name);

    const std::string family_name(family_of(sample.name, out_.families));
    const auto family = out_.families.find(family_name);
    if (family == out_.families.end() || family->second.help.empty() || family->second.type.empty()) {
      return fail("no HELP and TYPE before " + family_name);
    }
    if (family_name != last_family_ && !family->second.samples.empty()) fail("samples in two places");
    last_family_ = family_name;
    family->second.samples.push_back(std::move(sample));
  }

  void check_histogram(const std::string& name, const ParsedFamily& family) {
    if (family.type != "histogram") return;
    double bound = -std::numeric_limits<double>::infinity();
    double count = 0;
    for (const Sample& sample : family.samples) {
      if (sample.name != name + "_bucket") continue;
      const bool has_bound = sample.labels.contains("le");
      const double le = has_bound ? parse_number(sample.labels.at("le")).value_or(bound) : bound;
      if (le <= bound || sample.value < count) fail("buckets of " + name + " do not ascend");
      bound = le;
      count = sample.value;
    }
    if (!std::isinf(bound)) fail("no +Inf bucket in " + name);
    if (out_.value(name + "_count") != count) fail(name + "_count is not the +Inf bucket");
    if (!out_.value(name + "_sum")) fail("no " + name + "_sum");
  }

  std::string_view text_;
  std::string_view line_;
  std::size_t line_number_ = 0;
  std::string last_family_;
  std::set<std::pair<std::string, SampleLabels>> seen_;
  ParsedText out_;
};

}  // namespace

std::optional<double> ParsedText::value(const std::string& name, const SampleLabels& labels) const {
  const auto family = families.find(std::string(family_of(name, families)));
  if (family == families.end()) return std::nullopt;
  for (const Sample& sample : family->second.samples) {
    if (sample.name == name && sample.labels == labels) return sample.value;
  }
  return std::nullopt;
}

std::size_t ParsedText::series_with(const std::string& label, const std::string& value) const {
  std::size_t count = 0;
  for (const auto& [name, family] : families) {
    for (const Sample& sample : family.samples) {
      const auto found = sample.labels.find(label);
      count += found != sample.labels.end() && found->second == value;
    }
  }
  return count;
}

ParsedText parse_text_format(std::string_view text) {
  return Parser(text).run();
}

}  // namespace portway::test
