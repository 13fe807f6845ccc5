// The files and directories that a configuration names, looked at without changing anything: what is found
// here would otherwise end the next start.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"

namespace portway {

/// kInvalidConfig where the daemon would not start: the detail names the key, the file and the remedy, the
/// field is the key. Else sentences about what may be meant otherwise: a directory that the user of this
/// process cannot write, who need not be the daemon's, or that something may still make.
Result<std::vector<std::string>> check_config_files(const Config& config);

}  // namespace portway
