// The command line of portwayd, and the configuration that it names.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/config.h"

namespace portway {

inline constexpr int kExitFailed = 1;
inline constexpr int kExitBadConfig = 2;

struct Arguments {
  // Empty: every key has its default.
  std::string config_path;
  // "table.key=value".
  std::vector<std::string> settings;
  // Only check the configuration.
  bool check = false;
};

/// The arguments, or the exit code if that is all: help, the version, or a mistake.
std::optional<int> parse_arguments(int argc, char** argv, Arguments& arguments);

/// The file, the environment and the settings, as they are now.
Result<Config> read_config(const Arguments& arguments);

/// What is allowed but probably not meant, also in the node's own settings.
std::vector<std::string> warnings(const Config& config);

}  // namespace portway
