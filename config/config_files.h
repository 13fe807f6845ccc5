// Checks the files and directories that a configuration names, without changing anything: a fault found here
// would otherwise stop the next start.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/config.h"

namespace portway {

/// Those that are set of the files that logs are written to, each with its key.
std::vector<std::pair<std::string_view, std::string>> log_files(const Config& config);

/// Where a file is made: the nearest directory above it that is there.
std::filesystem::path nearest_directory(const std::filesystem::path& file);

/// The TLS files of all listeners of the API; errors are those of check_tls_files().
Result<void> check_listeners_tls(const Config::Api& api);

/// kInvalidConfig if the daemon would not start: the detail names the key, the file and the remedy, the field
/// is the key. Else warnings about what may be a mistake: a directory that the user of this process, who need
/// not be the daemon's, cannot write, or one that something may still create.
Result<std::vector<std::string>> check_config_files(const Config& config);

/// The same of what a gateway reads.
Result<std::vector<std::string>> check_gateway_files(const Config& config);

}  // namespace portway
