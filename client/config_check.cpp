#include "client/config_check.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <iterator>
#include <ostream>

#include "client/output.h"
#include "config/config.h"
#include "config/config_files.h"
#include "network/ephemeral_ports.h"

namespace portway {
namespace {

namespace json = boost::json;

json::object result_as_json(const std::string& file, const Result<Config>& config,
                            const std::vector<std::string>& warnings) {
  json::object result{{"file", file}, {"valid", config.has_value()}};
  if (!config) {
    result["detail"] = config.error().detail;
    if (!config.error().field.empty()) result["key"] = config.error().field;
  }
  result["warnings"] = json::array(warnings.begin(), warnings.end());
  return result;
}

}  // namespace

Outcome<void> run_config_check(const Invocation& invocation, Console& console) {
  const std::string& file = invocation.arguments.text("FILE");
  // The file alone: this shell's environment is not the daemon's.
  Result<Config> config = load_config(file);
  std::vector<std::string> warnings;
  if (config) {
    warnings = config_warnings(*config);
    if (auto files = check_config_files(*config)) {
      std::ranges::move(*files, std::back_inserter(warnings));
    } else {
      config = files.error();
    }
  }
  if (config) {
    if (const auto overlap = ephemeral_overlap(config->ports.range)) {
      warnings.push_back(overlap->problem + " " + overlap->remedy);
    }
  }
  if (invocation.wants_data()) {
    console.out << as_data(invocation.format(), result_as_json(file, config, warnings));
    if (!config) return Failure{Exit::kRefused, {}};
    return {};
  }
  if (!config) return Failure{Exit::kRefused, config.error().detail};
  for (const std::string& warning : warnings) console.out << "warning: " << warning << "\n";
  console.out << file << ": valid\n";
  return {};
}

}  // namespace portway
