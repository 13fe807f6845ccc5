// The command line of portwayd, and the configuration from it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/config.h"

namespace portway {

struct Arguments {
  // Empty: every key has its default.
  std::string config_path;
  // "table.key=value".
  std::vector<std::string> settings;
  // Only check the configuration.
  bool check = false;
  // With `check`: a daemon whose succession has this version asks; see handover_version(). Empty: nobody
  // does.
  std::string reads_handover;
  // Put this backup in the place of the store, and end; with `check`, only look at it. Empty: run.
  std::string restore;
  // Start the daemon, again whenever it crashes; see supervise().
  bool supervise = false;
  // Take over from the daemon that started this process; see Upgrade.
  bool take_over = false;
};

/// Fills `arguments`; returns the exit code if there is nothing to run: help, the version, or a mistake.
std::optional<int> parse_arguments(int argc, char** argv, Arguments& arguments);

/// Reads the file, the environment and the settings now.
Result<Config> read_config(const Arguments& arguments);

/// Settings that are allowed but probably not intended, of the configuration and of the node.
std::vector<std::string> warnings(const Config& config);

}  // namespace portway
