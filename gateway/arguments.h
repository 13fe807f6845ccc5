// The command line of portway-gateway, and the configuration from it: the same file format and the same keys
// as a node's, of the tables that a gateway has.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/config.h"

namespace portway {

struct GatewayArguments {
  std::string config_path;            // empty: every key has its default
  std::vector<std::string> settings;  // "table.key=value"
  bool check = false;                 // only the configuration
};

/// Fills `arguments`; returns the exit code if there is nothing to run: help, the version, or a mistake.
std::optional<int> parse_gateway_arguments(int argc, char** argv, GatewayArguments& arguments);

/// Reads the file, the environment and the settings now. kInvalidConfig, also for a key that only a node has.
Result<Config> read_gateway_config(const GatewayArguments& arguments);

}  // namespace portway
